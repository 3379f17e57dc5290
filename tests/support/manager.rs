//! The service manager's end of `NOTIFY_SOCKET` (sd_notify(3)).

use std::{
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::PATIENCE;

/// Receives what the daemon says of itself, in order.
pub(crate) struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    pub(crate) fn new(directory: &Path) -> Self {
        let path = directory.join("notify");
        let socket = UnixDatagram::bind(&path).expect("notify socket");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).expect("rights");
        Self { socket, path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The next message, if one comes in time.
    pub(crate) fn next(&self, within: Duration) -> Option<String> {
        self.socket
            .set_read_timeout(Some(within.max(Duration::from_millis(1))))
            .expect("timeout");
        let mut buffer = [0; 8192];
        let length = self.socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    /// Waits for the message with a line that begins with `start`; messages before it are dropped.
    pub(crate) fn until(&self, start: &str) -> String {
        self.until_message(start, |message| {
            message.lines().any(|line| line.starts_with(start))
        })
    }

    /// The same for any message.
    pub(crate) fn until_message(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let began = Instant::now();
        let mut seen = Vec::new();
        while let Some(left) = PATIENCE.checked_sub(began.elapsed()) {
            let Some(message) = self.next(left) else {
                break;
            };
            if wanted(&message) {
                return message;
            }
            seen.push(message);
        }
        panic!("no {what:?} within {PATIENCE:?}, but {seen:?}");
    }
}
