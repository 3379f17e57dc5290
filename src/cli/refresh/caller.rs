//! Who called root, and this program once more as that user.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::unix::process::CommandExt,
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context, anyhow};
use nix::unistd::{Uid, User, setsid};

/// Whatever is installed where: the very program that runs.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// What is read of another user's process, of stdout and of stderr; beyond that it is on its own.
const MOST_BYTES: u64 = 64 << 10;

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
    let mut command = command_as(user, THIS_PROGRAM);
    let mut child = command.args(arguments).spawn()?;
    // One after the other: what our own program writes to stderr fits into the pipe meanwhile.
    let stdout = up_to_bound(child.stdout.take())?;
    let stderr = up_to_bound(child.stderr.take())?;
    Ok(Ended {
        status: child.wait()?,
        stdout,
        stderr,
    })
}

/// As after `sudo -u`: the user's own ids from the password database and none of root's groups
/// (`Command` gives them up when root changes the user). In a session of its own and with pipes
/// alone: the user can take the process over with a debugger, and must not find in it the
/// terminal of root's shell to type into.
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
    // SAFETY: setsid(2) is async-signal-safe, and the closure allocates nothing.
    unsafe {
        command.pre_exec(|| setsid().map(drop).map_err(io::Error::from));
    }
    command
}

fn up_to_bound(pipe: Option<impl Read>) -> io::Result<String> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        pipe.take(MOST_BYTES).read_to_end(&mut bytes)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use nix::unistd::geteuid;

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
    fn the_child_has_nothing_of_roots() {
        if !geteuid().is_root() {
            // Past the capture of the test harness.
            writeln!(io::stderr(), "skipped: a child of root's: not root").unwrap();
            return;
        }
        let user = User::from_name("nobody").unwrap().unwrap();
        let output = command_as(&user, "/bin/sh")
            .args([
                "-c",
                "grep -E '^(Uid|Gid|Groups|CapEff|CapPrm|CapAmb):' /proc/$$/status; env | sort; cut -d' ' -f 6,7 /proc/$$/stat; echo $$; readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2; pwd",
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
