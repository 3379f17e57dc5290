//! Who called root, and this program once more as that user.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::{fd::AsFd, unix::process::CommandExt},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::{Uid, User, setsid},
};

/// Whatever is installed where: the very program that runs.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// What is taken of another user's process, of stdout and stderr each; it says a line a database.
const MOST_BYTES: usize = 64 << 10;

/// How long that process may take: its user can stop it, and root must not wait for that. Two
/// databases that Nix keeps locked take 10 s each.
const PATIENCE: Duration = Duration::from_secs(60);

/// The ordinary user who became root to run this, by `sudo`, `doas` or `pkexec`; `None` if it
/// was root all along.
pub(super) fn find(variable: impl Fn(&str) -> Option<OsString>) -> anyhow::Result<Option<User>> {
    let text = |name: &str| variable(name).filter(|value| !value.is_empty());
    for name in ["SUDO_UID", "PKEXEC_UID"] {
        if let Some(value) = text(name) {
            let number = value.to_str().and_then(|value| value.parse().ok());
            let uid = Uid::from_raw(
                number.with_context(|| format!("{name}={value:?} is no number of a user"))?,
            );
            let user = User::from_uid(uid).with_context(|| format!("cannot look up user {uid}"))?;
            return known(user, || format!("{name}={uid}"));
        }
    }
    let Some(value) = text("DOAS_USER") else {
        return Ok(None);
    };
    let name = value.to_string_lossy();
    let user = User::from_name(&name).with_context(|| format!("cannot look up user {name:?}"))?;
    known(user, || format!("DOAS_USER={name:?}"))
}

fn known(user: Option<User>, source: impl Fn() -> String) -> anyhow::Result<Option<User>> {
    let user = user.ok_or_else(|| {
        anyhow!(
            "{}: there is no such user in the password database",
            source()
        )
    })?;
    Ok(Some(user).filter(|user| !user.uid.is_root()))
}

/// What a process of another user said, and how it ended.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// Runs this program as `user`, with an environment that holds nothing of root's.
pub(super) fn run_as(user: &User, arguments: &[&str]) -> io::Result<Ended> {
    let child = command_as(user, THIS_PROGRAM).args(arguments).spawn()?;
    ended(child, PATIENCE)
}

/// What `child` says until it ends or `patience` does; then it is killed.
fn ended(mut child: Child, patience: Duration) -> io::Result<Ended> {
    let read = read_both(&mut child, Instant::now() + patience);
    if read.is_err() {
        child.kill()?;
    }
    let status = child.wait()?;
    let [stdout, stderr] = read?.map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok(Ended {
        status,
        stdout,
        stderr,
    })
}

/// Both pipes as they fill, whichever first, until both are closed; no more than the bound is kept.
fn read_both(child: &mut Child, deadline: Instant) -> io::Result<[Vec<u8>; 2]> {
    let (Some(mut stdout), Some(mut stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Ok(Default::default());
    };
    let mut read = [Vec::new(), Vec::new()];
    let mut is_open = [true, true];
    while is_open != [false, false] {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut waiting = [
            PollFd::new(stdout.as_fd(), PollFlags::POLLIN),
            PollFd::new(stderr.as_fd(), PollFlags::POLLIN),
        ];
        let from = usize::from(!is_open[0]);
        let to = if is_open[1] { 2 } else { 1 };
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut waiting[from..to], timeout) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let is_ready = waiting.map(|pipe| pipe.any().unwrap_or_default());
        let pipes: [&mut dyn Read; 2] = [&mut stdout, &mut stderr];
        for (index, pipe) in pipes.into_iter().enumerate() {
            if is_open[index] && is_ready[index] {
                let mut piece = [0; 4 << 10];
                let length = pipe.read(&mut piece)?;
                let room = MOST_BYTES - read[index].len();
                read[index].extend_from_slice(&piece[..length.min(room)]);
                is_open[index] = length > 0;
            }
        }
    }
    Ok(read)
}

/// As after `sudo -u`: the user's own ids from the password database and none of root's groups
/// (`Command` gives them up when root changes the user). In a session of its own and with pipes
/// alone: the user can take the process over with a debugger, and must not find in it the
/// terminal of root's shell to type into, nor a file that this shell has open.
fn command_as(user: &User, program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("HOME", &user.dir)
        .env("USER", &user.name)
        .env("LOGNAME", &user.name)
        .uid(user.uid.as_raw())
        .gid(user.gid.as_raw())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    #[expect(
        unsafe_code,
        reason = "only a child before its exec can leave the session without this process"
    )]
    // SAFETY: setsid(2) and close_range(2) are async-signal-safe, and the closure allocates nothing.
    unsafe {
        command.pre_exec(|| {
            setsid()?;
            // Not closed at once: std tells of a failing exec through one of them.
            let flags = libc::c_int::try_from(libc::CLOSE_RANGE_CLOEXEC).unwrap_or_default();
            Errno::result(libc::close_range(3, libc::c_uint::MAX, flags))?;
            Ok(())
        });
    }
    command
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nix::{
        fcntl::{FcntlArg, FdFlag, fcntl},
        unistd::geteuid,
    };

    use super::*;

    fn found(variables: &[(&str, &str)]) -> anyhow::Result<Option<String>> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Ok(find(variable)?.map(|user| user.name))
    }

    #[test]
    fn the_caller_is_named_by_the_way_to_root() {
        let name = |variables: &[(&str, &str)]| found(variables).unwrap();
        assert_eq!(name(&[]), None);
        assert_eq!(name(&[("SUDO_UID", "")]), None);
        assert_eq!(name(&[("SUDO_UID", "0"), ("SUDO_USER", "root")]), None);
        assert_eq!(name(&[("DOAS_USER", "root")]), None);
        for way in [
            ("SUDO_UID", "65534"),
            ("PKEXEC_UID", "65534"),
            ("DOAS_USER", "nobody"),
        ] {
            assert_eq!(name(&[way]).as_deref(), Some("nobody"), "{way:?}");
        }
        for (variable, value) in [
            ("SUDO_UID", "nobody"),
            ("SUDO_UID", "-1"),
            ("SUDO_UID", "4294967296"),
            ("SUDO_UID", "3999999999"),
            ("DOAS_USER", "no-such-user"),
        ] {
            let error = found(&[(variable, value)]).unwrap_err().to_string();
            assert!(error.contains(variable) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn a_child_that_does_not_end_is_killed() {
        let patience = Duration::from_millis(200);
        let ended_of = |script: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            ended(command.spawn().unwrap(), patience)
        };
        for script in [
            "exec sleep 100",
            "kill -STOP $$",
            "exec >&-; exec sleep 100",
        ] {
            let began = Instant::now();
            let error = ended_of(script).err().expect(script);
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{script}");
            assert!(began.elapsed() < Duration::from_secs(10), "{script}");
        }
        // Neither pipe waits for the other, and what is beyond the bound is passed over.
        let much = ended_of("head -c 300000 /dev/zero >&2; echo after").unwrap();
        assert_eq!((&*much.stdout, much.stderr.len()), ("after\n", MOST_BYTES));
        let little = "echo out; echo err >&2; exit 3";
        let ended = ended_of(little).unwrap();
        assert_eq!((&*ended.stdout, &*ended.stderr), ("out\n", "err\n"));
        assert_eq!(ended.status.code(), Some(3));
    }

    #[test]
    fn the_child_has_nothing_of_roots() {
        if !geteuid().is_root() {
            // Past the capture of the test harness.
            writeln!(io::stderr(), "skipped: a child of root's: not root").unwrap();
            return;
        }
        // A file that the shell has open without close-on-exec.
        let secret = std::fs::File::open("/etc/shadow").unwrap();
        fcntl(&secret, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        let user = User::from_name("nobody").unwrap().unwrap();
        let output = command_as(&user, "/bin/sh")
            .args([
                "-c",
                "grep -E '^(Uid|Gid|Groups|CapEff|CapPrm|CapAmb):' /proc/$$/status; env | sort; cut -d' ' -f 6,7 /proc/$$/stat; echo $$; readlink /proc/$$/fd/*; pwd",
            ])
            .output()
            .unwrap();
        assert!(output.status.success());
        let said = String::from_utf8(output.stdout).unwrap();
        let words: Vec<Vec<&str>> = said
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        let (uid, gid) = (user.uid.to_string(), user.gid.to_string());
        assert_eq!(words[0], ["Uid:", &uid, &uid, &uid, &uid]);
        assert_eq!(words[1], ["Gid:", &gid, &gid, &gid, &gid]);
        assert_eq!(words[2], ["Groups:"]);
        for capabilities in &words[3..6] {
            assert_eq!(capabilities[1], "0000000000000000");
        }
        let home = format!("HOME={}", user.dir.display());
        let environment: Vec<_> = said
            .lines()
            .filter(|line| line.contains('=') && !line.starts_with("_="))
            .collect();
        assert_eq!(
            environment,
            [&home, "LOGNAME=nobody", "PWD=/", "USER=nobody"]
        );
        let rest = &words[words.len() - 6..];
        // Session and terminal of /proc/PID/stat: its own session, no terminal.
        assert_eq!(rest[0], [rest[1][0], "0"], "{said}");
        assert_eq!(rest[2], ["/dev/null"]);
        for pipe in &rest[3..5] {
            assert!(pipe[0].starts_with("pipe:"), "{said}");
        }
        assert_eq!(rest[5], ["/"]);
    }
}
