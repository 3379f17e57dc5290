//! The Nix daemon of this machine: whether there is one, and with which environment.

use std::{
    env,
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Where clients of Nix look for it unless `NIX_DAEMON_SOCKET_PATH` says otherwise.
const SOCKET: &str = "/nix/var/nix/daemon-socket/socket";

/// Not by `PATH`: that may still be an ordinary user's while we are root.
const SYSTEMCTL: [&str; 3] = [
    "/run/current-system/sw/bin/systemctl",
    "/usr/bin/systemctl",
    "/bin/systemctl",
];

/// The daemon's socket, if there is one.
pub(super) fn socket() -> Option<PathBuf> {
    let path = env::var_os("NIX_DAEMON_SOCKET_PATH").filter(|path| !path.is_empty());
    let path = path.map_or_else(|| SOCKET.into(), PathBuf::from);
    path.exists().then_some(path)
}

/// What `Environment=` of its unit says; nothing where there is no such unit, or no systemd.
pub(super) fn environment() -> Vec<(OsString, OsString)> {
    let Some(systemctl) = SYSTEMCTL.iter().find(|path| Path::new(path).exists()) else {
        return Vec::new();
    };
    let ended = Command::new(systemctl)
        .args(["show", "-p", "Environment", "--value", "nix-daemon.service"])
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    match ended {
        Ok(ended) if ended.status.success() => assignments(&ended.stdout),
        _ => Vec::new(),
    }
}

/// `A=b "C=d e"`: words as systemctl prints them, quoted with `"` where that is needed, and `\`
/// before a character that stands for itself.
fn assignments(text: &[u8]) -> Vec<(OsString, OsString)> {
    let mut words = vec![Vec::new()];
    let mut is_quoted = false;
    let mut bytes = text.iter().copied();
    while let Some(byte) = bytes.next() {
        let word = words.len() - 1;
        match byte {
            b'"' => is_quoted = !is_quoted,
            b'\\' => words[word].extend(bytes.next()),
            byte if byte.is_ascii_whitespace() && !is_quoted => words.push(Vec::new()),
            byte => words[word].push(byte),
        }
    }
    let split = |word: Vec<u8>| {
        let at = word.iter().position(|byte| *byte == b'=')?;
        let value = word[at + 1..].to_vec();
        Some((
            OsString::from_vec(word[..at].to_vec()),
            OsString::from_vec(value),
        ))
    };
    words.into_iter().filter_map(split).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_systemctl_prints() {
        let read = |text: &str| -> Vec<(String, String)> {
            assignments(text.as_bytes())
                .into_iter()
                .map(|(name, value)| (name.into_string().unwrap(), value.into_string().unwrap()))
                .collect()
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(read("\n"), []);
        assert_eq!(
            read("HOME=/root XDG_CACHE_HOME=/var/cache\n"),
            [pair("HOME", "/root"), pair("XDG_CACHE_HOME", "/var/cache")]
        );
        assert_eq!(
            read(r#""XDG_CACHE_HOME=/var/my cache" "A=\"quoted\" \\ =" B="c d" E="#),
            [
                pair("XDG_CACHE_HOME", "/var/my cache"),
                pair("A", r#""quoted" \ ="#),
                pair("B", "c d"),
                pair("E", "")
            ]
        );
        assert_eq!(
            read("no-assignment \"unfinished=x"),
            [pair("unfinished", "x")]
        );
    }
}
