//! Telling the service manager how we are, by sd_notify(3). Without a manager all of it does nothing.

use std::{
    env,
    ffi::OsStr,
    fmt::Write,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use sd_notify::NotifyState;

use super::journal::{chain, single_line};

/// A manager that reads nothing for this long gets no message; it must not hold up the daemon.
const SEND_TIMEOUT: Duration = Duration::from_millis(500);

/// The way to the manager.
///
/// Connected once, before privileges are dropped: the socket's directory may be closed to the
/// user that the daemon becomes.
#[derive(Debug, Default)]
pub struct Notifier {
    manager: Option<Manager>,
}

#[derive(Debug)]
struct Manager {
    address: SocketAddr,
    connected: UnixDatagram,
}

impl Notifier {
    /// To the manager named by `NOTIFY_SOCKET`.
    pub fn from_env() -> Self {
        match env::var_os("NOTIFY_SOCKET") {
            Some(name) if !name.is_empty() => Self::to(&name),
            _ => Self::default(),
        }
    }

    /// To the socket of that name: a path, or `@` and an abstract name.
    pub fn to(name: &OsStr) -> Self {
        let manager = Manager::connect(name);
        if let Err(error) = &manager {
            log::debug!(
                "no way to the service manager at {}: {}",
                single_line(&name.display()),
                chain(error)
            );
        }
        Self {
            manager: manager.ok(),
        }
    }

    /// The daemon answers requests.
    pub fn ready(&self, status: &str) {
        self.send(&[
            NotifyState::Ready,
            NotifyState::Status(&single_line(&status).to_string()),
        ]);
    }

    /// One line for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&[NotifyState::Status(&single_line(&status).to_string())]);
    }

    /// The settings are being read again; [`Notifier::ready`] ends it.
    pub fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => log::debug!("no clock to tell the service manager: {}", chain(&error)),
        }
    }

    /// The daemon takes no more requests: what comes now is for the next one.
    pub fn stopping(&self) {
        self.send(&[NotifyState::Stopping]);
    }

    /// All is well.
    pub fn watchdog(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    fn send(&self, states: &[NotifyState<'_>]) {
        let Some(manager) = &self.manager else { return };
        let mut message = String::new();
        for state in states {
            // Writing to a String cannot fail.
            if writeln!(message, "{state}").is_err() {
                return;
            }
        }
        if let Err(error) = manager.send(message.as_bytes()) {
            log::debug!(
                "the service manager does not take {:?}: {}",
                message.trim_end(),
                chain(&error)
            );
        }
    }
}

/// How often to call [`Notifier::watchdog`]: half of `WatchdogSec=`; `None` if nobody watches.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled()
        .map(|timeout| timeout / 2)
        .filter(|interval| !interval.is_zero())
}

impl Manager {
    fn connect(name: &OsStr) -> io::Result<Self> {
        let address = match name.as_bytes() {
            [b'@', abstract_name @ ..] => SocketAddr::from_abstract_name(abstract_name)?,
            _ => SocketAddr::from_pathname(name)?,
        };
        Ok(Self {
            connected: connected(&address)?,
            address,
        })
    }

    /// Over the connection, and if the manager has made its socket anew, over a fresh one.
    fn send(&self, message: &[u8]) -> io::Result<usize> {
        use io::ErrorKind::{ConnectionRefused, NotConnected};
        match self.connected.send(message) {
            // The kernel says the first once and the second from then on.
            Err(error) if matches!(error.kind(), ConnectionRefused | NotConnected) => {
                connected(&self.address)?.send(message)
            }
            sent => sent,
        }
    }
}

fn connected(address: &SocketAddr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(address)?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::{fs, process, time::Instant};

    use super::*;

    fn manager() -> (tempfile::TempDir, UnixDatagram, Notifier) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let notifier = Notifier::to(path.as_os_str());
        (dir, socket, notifier)
    }

    fn receive(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn each_message_is_one_datagram() {
        let (_dir, socket, notifier) = manager();
        notifier.ready("2 peers");
        assert_eq!(receive(&socket), "READY=1\nSTATUS=2 peers\n");
        notifier.status("served 3\nREADY=1");
        assert_eq!(receive(&socket), "STATUS=served 3\\nREADY=1\n");
        notifier.watchdog();
        assert_eq!(receive(&socket), "WATCHDOG=1\n");
        notifier.stopping();
        assert_eq!(receive(&socket), "STOPPING=1\n");
    }

    #[test]
    fn a_reload_carries_the_monotonic_clock() {
        let (_dir, socket, notifier) = manager();
        // The clock of Instant is the same one; two readings enclose the sent one.
        let clock = || -> i128 {
            let text = fs::read_to_string("/proc/uptime").unwrap();
            (text.split(' ').next().unwrap().parse::<f64>().unwrap() * 1e6) as i128
        };
        let started = Instant::now();
        let before = clock();
        notifier.reloading();
        let message = receive(&socket);
        let sent: i128 = message
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .and_then(|rest| rest.trim_end().parse().ok())
            .unwrap_or_else(|| panic!("{message:?}"));
        // /proc/uptime is CLOCK_BOOTTIME with a resolution of 10 ms: ahead of the monotonic
        // clock by the time spent suspended.
        assert!(
            sent > 0
                && sent <= before + i128::try_from(started.elapsed().as_micros()).unwrap() + 10_000
        );
    }

    #[test]
    fn a_manager_with_a_new_socket_is_found_again() {
        let (dir, socket, notifier) = manager();
        drop(socket);
        notifier.status("nobody listens");
        fs::remove_file(dir.path().join("notify")).unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        notifier.status("back");
        assert_eq!(receive(&socket), "STATUS=back\n");
    }

    #[test]
    fn abstract_names_and_no_manager() {
        let name = format!("@peerix-notify-test-{}", process::id());
        let socket =
            UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name[1..]).unwrap()).unwrap();
        Notifier::to(OsStr::new(&name)).stopping();
        assert_eq!(receive(&socket), "STOPPING=1\n");

        Notifier::default().ready("to nobody");
        Notifier::to(OsStr::new("/nonexistent/notify")).ready("to nobody");
    }

    #[test]
    fn a_deaf_manager_does_not_hold_us_up_for_long() {
        let (_dir, _socket, notifier) = manager();
        let manager = notifier.manager.as_ref().unwrap();
        let full = (0..10_000)
            .find_map(|_| manager.send(b"STATUS=x").err())
            .unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }
}
