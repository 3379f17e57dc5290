//! `peerix refresh`: Nix forgets the misses that it remembers of this gateway.
//!
//! Whose memory counts: with a Nix daemon root's, else that of whoever runs Nix. Root refreshes
//! its own, and for the user who called it through `sudo` starts this program again as that user:
//! root writes to nothing that somebody else controls.

mod caller;
mod nix_daemon;

use std::{
    collections::BTreeSet,
    env,
    ffi::OsString,
    fmt::Display,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};
use nix::unistd::{Uid, User, geteuid};

use super::{
    Failure, Refresh,
    arguments::OwnLocks,
    failure::{EX_CONFIG, EX_NOPERM, EX_SOFTWARE},
};
use crate::{
    daemon::read_config,
    system::{
        journal::{chain, single_line},
        narinfo_cache::{
            Gateway, Locks, NarinfoCacheError, cache_directory, databases, forget_misses,
        },
        nix_conf,
    },
};

impl Refresh {
    pub(super) fn run(&self) -> Result<(), Failure> {
        let (gateway, locks) = self.settings()?;
        let mut work = Work {
            gateway,
            locks,
            done_with: BTreeSet::new(),
            failures: Vec::new(),
        };
        if self.own.is_some() {
            work.refresh_own();
        } else if geteuid().is_root() {
            work.refresh_root();
            work.refresh_caller();
        } else {
            work.refresh_own();
            work.tell_of_daemon();
        }
        work.done()
    }

    /// Which gateway, and how Nix locks what it remembers of it.
    fn settings(&self) -> Result<(Gateway, Locks), Failure> {
        if let (Some(own), Some(gateway)) = (self.own, self.port.and_then(Gateway::at)) {
            let locks = match own {
                OwnLocks::Posix => Locks::Posix,
                OwnLocks::Dotfile => Locks::Dotfile,
            };
            return Ok((gateway, locks));
        }
        let config = read_config(self.config.as_deref())?;
        let gateway = Gateway::at(self.port.unwrap_or(config.port)).ok_or_else(|| Failure {
            code: EX_CONFIG,
            error: anyhow!(
                "the settings say port = 0, any free one; right would be --port with the port that nix.conf has in substituters"
            ),
        })?;
        let locks = match nix_conf::uses_sqlite_wal(&config.trust.nix_conf) {
            Ok(true) => Locks::Posix,
            Ok(false) => Locks::Dotfile,
            Err(error) => {
                log::warn!(
                    "taking it that Nix locks its databases as it does by default: {}",
                    chain(&error)
                );
                Locks::Posix
            }
        };
        Ok((gateway, locks))
    }
}

/// What is to be forgotten, and what went wrong so far: one failure does not keep the others
/// from being refreshed.
struct Work {
    gateway: Gateway,
    locks: Locks,
    /// Directories that had their turn.
    done_with: BTreeSet<PathBuf>,
    failures: Vec<Failure>,
}

/// What it means if a directory is not root's alone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It comes from this command's environment, which may be that of another user.
    Environment,
    /// Nix would use it, so it should be root's.
    Nix,
}

impl Work {
    fn refresh_own(&mut self) {
        let user = geteuid();
        self.refresh_cache(|name| env::var_os(name), user, Origin::Nix);
    }

    /// Root's databases may be where nothing says otherwise (systemd starts services without
    /// `HOME`), where the environment of the Nix daemon says, and where this one says.
    fn refresh_root(&mut self) {
        let root = Uid::from_raw(0);
        let of_daemon = nix_daemon::environment();
        let of_daemon = |name: &str| {
            let found = of_daemon.iter().rev().find(|(key, _)| key == name);
            found.map(|(_, value)| value.clone())
        };
        self.refresh_cache(|_| None, root, Origin::Nix);
        self.refresh_cache(of_daemon, root, Origin::Nix);
        self.refresh_cache(|name| env::var_os(name), root, Origin::Environment);
    }

    /// The cache directory of a Nix of this user with this environment, unless it was done.
    fn refresh_cache(
        &mut self,
        variable: impl Fn(&str) -> Option<OsString>,
        user: Uid,
        origin: Origin,
    ) {
        match cache_directory(variable, user, || home_of(user)) {
            Ok(directory) => {
                let real = fs::canonicalize(&directory).unwrap_or_else(|_| directory.clone());
                if self.done_with.insert(real) {
                    self.refresh_directory(&directory, origin);
                }
            }
            Err(error) => self.fail(EX_SOFTWARE, error),
        }
    }

    fn refresh_caller(&mut self) {
        match caller::find(|name| env::var_os(name)) {
            Ok(None) => {}
            Ok(Some(user)) => self.refresh_as(&user),
            Err(error) => self.fail(EX_SOFTWARE, error),
        }
    }

    fn refresh_as(&mut self, user: &User) {
        let locks = match self.locks {
            Locks::Posix => "posix",
            Locks::Dotfile => "dotfile",
        };
        let port = self.gateway.port().to_string();
        let arguments = ["refresh", "--port", &port, "--own", locks];
        match caller::run_as(user, &arguments) {
            Ok(ended) => {
                for line in ended.stdout.lines() {
                    self.say(line);
                }
                for line in ended.stderr.lines() {
                    // Where stderr is closed nobody would read this either.
                    writeln!(io::stderr(), "{}", single_line(line)).unwrap_or_default();
                }
                if !ended.status.success() {
                    let error = anyhow!("{} has misses left, see above", user.name);
                    let is_permission = ended.status.code() == Some(EX_NOPERM.into());
                    self.fail(exit_code(is_permission), error);
                }
            }
            Err(error) => {
                let is_permission = error.kind() == io::ErrorKind::PermissionDenied;
                let error = anyhow::Error::new(error)
                    .context(format!("cannot start this program again as {}", user.name));
                self.fail(exit_code(is_permission), error);
            }
        }
    }

    fn refresh_directory(&mut self, directory: &Path, origin: Origin) {
        match databases(directory) {
            Ok(found) if found.is_empty() => {
                self.say(format_args!(
                    "nothing is remembered in {}",
                    directory.display()
                ));
            }
            Ok(found) => {
                for database in found {
                    self.refresh_database(&database);
                }
            }
            Err(error @ NarinfoCacheError::Shared { .. }) if origin == Origin::Environment => {
                self.say(error);
            }
            Err(error) => self.fail_with(error),
        }
    }

    fn refresh_database(&mut self, database: &Path) {
        let gateway = self.gateway;
        match forget_misses(database, gateway, self.locks) {
            Ok(0) => self.say(format_args!(
                "no misses of {gateway} in {}",
                database.display()
            )),
            Ok(count) => {
                let misses = if count == 1 { "miss" } else { "misses" };
                self.say(format_args!(
                    "forgot {count} {misses} of {gateway} in {}",
                    database.display()
                ));
            }
            Err(error) => self.fail_with(error),
        }
    }

    /// With a Nix daemon an ordinary user's own memory is of little use.
    fn tell_of_daemon(&mut self) {
        if let Some(socket) = nix_daemon::socket() {
            self.fail(
                EX_NOPERM,
                anyhow!(
                    "there is a Nix daemon ({}), and what root remembers is what counts; right would be `sudo peerix refresh`",
                    socket.display()
                ),
            );
        }
    }

    /// One line on stdout, at once: the next database may take a while.
    fn say(&mut self, line: impl Display) {
        let written = writeln!(io::stdout(), "{}", single_line(&line));
        if let Err(error) = written {
            self.fail(
                EX_SOFTWARE,
                anyhow::Error::new(error).context("cannot print"),
            );
        }
    }

    fn fail_with(&mut self, error: NarinfoCacheError) {
        self.fail(exit_code(error.is_permission()), error.into());
    }

    fn fail(&mut self, code: u8, error: anyhow::Error) {
        self.failures.push(Failure { code, error });
    }

    /// The last failure is the caller's to log, with the code that all of them have, if they do.
    fn done(mut self) -> Result<(), Failure> {
        let Some(last) = self.failures.pop() else {
            return Ok(());
        };
        let mut code = last.code;
        for failure in &self.failures {
            log::error!("{}", chain(failure.error.as_ref()));
            if failure.code != code {
                code = EX_SOFTWARE;
            }
        }
        Err(Failure { code, ..last })
    }
}

/// The exit code for want of a right, or for anything else.
const fn exit_code(is_permission: bool) -> u8 {
    if is_permission {
        EX_NOPERM
    } else {
        EX_SOFTWARE
    }
}

/// The home of a user in the password database.
fn home_of(user: Uid) -> anyhow::Result<PathBuf> {
    let found = User::from_uid(user).with_context(|| format!("cannot look up user {user}"))?;
    Ok(found
        .with_context(|| format!("there is no user {user} in the password database"))?
        .dir)
}
