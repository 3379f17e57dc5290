//! The sockets: those that systemd opened (sd_listen_fds(3)), or our own.
//!
//! All of them are close-on-exec and non-blocking, and UDP may broadcast. Inherited ones stay
//! open in systemd: what arrives after the daemon is gone wakes the next one.

mod kind;
mod own;

use std::{
    env, io,
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::{BorrowedFd, RawFd},
    process,
};

use listenfd::ListenFd;

use super::journal::single_line;
use kind::Kind;

pub use own::bind;

/// More than any unit has; a larger `LISTEN_FDS` is a mistake.
const MAX_INHERITED: usize = 1024;

const FIRST_INHERITED: RawFd = 3;

/// What the daemon listens on.
#[derive(Debug)]
pub struct Sockets {
    /// Listening; IPv4, IPv6 or dual-stack; never empty.
    pub tcp: Vec<TcpListener>,
    /// Bound, not connected; empty if the socket unit has none: then nobody is asked.
    pub udp: Vec<UdpSocket>,
    /// Whether systemd holds them too and wakes us again.
    pub activated: bool,
}

/// Why there are no sockets.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// `LISTEN_FDS` is not a number of descriptors.
    #[error("LISTEN_FDS is {value:?}; right would be a number up to {MAX_INHERITED}")]
    Count {
        /// What it is.
        value: String,
    },
    /// A descriptor that was announced is not open.
    #[error("fd {fd} ({name}) is not open; LISTEN_FDS announced it")]
    NotOpen {
        /// The descriptor.
        fd: RawFd,
        /// Its name.
        name: FdName,
    },
    /// A descriptor is no socket of the kinds that the daemon uses.
    #[error(
        "fd {fd} ({name}) is {kind}; peerix takes TCP listeners and unconnected UDP sockets over IPv4 or IPv6"
    )]
    NotOurs {
        /// The descriptor.
        fd: RawFd,
        /// Its name.
        name: FdName,
        /// What it is.
        kind: Kind,
    },
    /// An inherited socket cannot be examined or set up.
    #[error("cannot set up fd {fd} ({name})")]
    SetUp {
        /// The descriptor.
        fd: RawFd,
        /// Its name.
        name: FdName,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// systemd passed sockets, but nothing that Nix could connect to.
    #[error(
        "none of the sockets from systemd is a TCP listener; right would be a ListenStream= in the socket unit"
    )]
    NoTcp,
    /// An own socket cannot be made or configured.
    #[error("cannot open a {protocol} socket")]
    Open {
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The address is taken.
    #[error(
        "{protocol} {address} is in use: another peerix runs, or systemd holds the port for one \
         (`systemctl status peerix.socket`; `ss -lnptu` names other programs)"
    )]
    InUse {
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// What was to be bound.
        address: SocketAddr,
    },
    /// An own socket cannot be bound.
    #[error("cannot listen on {protocol} {address}")]
    Bind {
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// What was to be bound.
        address: SocketAddr,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

/// What `LISTEN_FDNAMES` calls a descriptor: the name of its socket unit, unless
/// `FileDescriptorName=` says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FdName(Option<String>);

impl std::fmt::Display for FdName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(name) => write!(f, "`{}`", single_line(name)),
            None => f.write_str("without a name"),
        }
    }
}

/// The sockets that systemd passed, if it passed any to this very process. To be called once,
/// while the process has one thread: the variables that announce them are removed.
pub fn inherited() -> Result<Option<Sockets>, SocketError> {
    let count = announced();
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    // An invention of listenfd; sd_listen_fds(3) knows no other start than 3.
    forget(&["LISTEN_FDS_FIRST_FD"]);
    // It would make a list of any length.
    let fds = count
        .as_ref()
        .map_or_else(|_| ListenFd::empty(), |_| ListenFd::from_env());
    // listenfd itself forgets the first two alone.
    forget(&[
        "LISTEN_PID",
        "LISTEN_FDS",
        "LISTEN_FDNAMES",
        "LISTEN_PIDFDID",
    ]);
    match count? {
        0 => Ok(None),
        count => take_all(fds, count, &names).map(Some),
    }
}

fn take_all(mut fds: ListenFd, count: usize, names: &str) -> Result<Sockets, SocketError> {
    let mut names = names
        .split(':')
        .filter(|_| !names.is_empty())
        .map(str::to_owned);
    let mut sockets = Sockets {
        tcp: Vec::new(),
        udp: Vec::new(),
        activated: true,
    };
    for (index, fd) in (FIRST_INHERITED..).enumerate().take(count) {
        take(&mut fds, index, fd, FdName(names.next()), &mut sockets)?;
    }
    if sockets.tcp.is_empty() {
        return Err(SocketError::NoTcp);
    }
    if sockets.udp.is_empty() {
        log::warn!(
            "none of the sockets from systemd is for UDP: no peer can be asked, and none is answered"
        );
    }
    Ok(sockets)
}

/// How many descriptors are announced to this process.
fn announced() -> Result<usize, SocketError> {
    let Some(value) = env::var_os("LISTEN_FDS") else {
        return Ok(0);
    };
    let value = value.to_string_lossy();
    let for_us = match env::var("LISTEN_PID") {
        Ok(pid) if !pid.is_empty() => pid.parse() == Ok(process::id()),
        // `systemfd --no-pid` and the like: for whoever comes first.
        _ => true,
    };
    if !for_us {
        return Ok(0);
    }
    let count = value.parse().ok().filter(|count| *count <= MAX_INHERITED);
    count.ok_or_else(|| SocketError::Count {
        value: value.into_owned(),
    })
}

fn forget(variables: &[&str]) {
    for variable in variables.iter().filter(|name| env::var_os(name).is_some()) {
        #[expect(
            unsafe_code,
            reason = "the environment has no other way to forget a variable"
        )]
        // SAFETY: called from the prologue, where no second thread exists that could read the
        // environment meanwhile.
        unsafe {
            env::remove_var(variable);
        }
    }
}

/// Moves one descriptor to its place. One that is not ours stays open and unowned: it may
/// belong to somebody else in this process if `LISTEN_FDS` counts too far.
fn take(
    fds: &mut ListenFd,
    index: usize,
    fd: RawFd,
    name: FdName,
    sockets: &mut Sockets,
) -> Result<(), SocketError> {
    let set_up = |source| SocketError::SetUp {
        fd,
        name: name.clone(),
        source,
    };
    match kind_of(fd).map_err(set_up)? {
        Kind::Closed => return Err(SocketError::NotOpen { fd, name }),
        Kind::TcpListener => {
            if let Some(listener) = fds.take_tcp_listener(index).map_err(set_up)? {
                listener.set_nonblocking(true).map_err(set_up)?;
                sockets.tcp.push(listener);
            }
        }
        Kind::Udp => {
            if let Some(socket) = fds.take_udp_socket(index).map_err(set_up)? {
                socket.set_nonblocking(true).map_err(set_up)?;
                socket.set_broadcast(true).map_err(set_up)?;
                sockets.udp.push(socket);
            }
        }
        kind => return Err(SocketError::NotOurs { fd, name, kind }),
    }
    Ok(())
}

fn kind_of(fd: RawFd) -> io::Result<Kind> {
    if !kind::is_open(fd) {
        return Ok(Kind::Closed);
    }
    #[expect(
        unsafe_code,
        reason = "an inherited descriptor is known by its number alone"
    )]
    // SAFETY: it is open, as was just seen, and nothing closes it while it is borrowed: there
    // is one thread.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    Kind::of(fd)
}
