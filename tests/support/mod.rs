//! What the tests of the real binary share: machines with a small store, the daemon as a process,
//! a stand-in for systemd, a plain HTTP client, and peers that do as they are told.
//!
//! Everything is on loopback, and nothing is broadcast. Waiting is for an event and bounded.

pub(crate) mod daemon;
pub(crate) mod documents;
pub(crate) mod host;
pub(crate) mod http;
pub(crate) mod item;
pub(crate) mod manager;
pub(crate) mod peer;
pub(crate) mod store;

use std::{
    io::Write,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Longest wait for something that has to happen; ordinary machines need a hundredth of it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What `ready` gives as soon as it gives something; a failure that names `what` otherwise.
pub(crate) fn eventually<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What `work` gives, and how long it took.
pub(crate) fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    let value = work();
    (value, began.elapsed())
}

/// Says aloud that this machine cannot run a check, past the capture of the test harness.
pub(crate) fn skip(reason: &str) {
    writeln!(std::io::stderr(), "skipped: {reason}").expect("stderr");
}

/// Whether the tests run as root: then the daemon becomes nobody.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// An address of this machine that is not on loopback: who connects to it comes from it, so to
/// the daemon it is a machine of the LAN, and no packet leaves.
pub(crate) fn own_lan_address() -> Option<IpAddr> {
    let mut listed = nix::ifaddrs::getifaddrs().expect("interfaces");
    listed.find_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        let v6 = address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip()));
        let scoped =
            |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if v6.segments()[0] & 0xffc0 == 0xfe80);
        v4.or(v6).filter(|ip| !ip.is_loopback() && !scoped(ip))
    })
}
