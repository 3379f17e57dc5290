//! What an error of a UDP socket means. Errors that peers and networks cause pass; a socket
//! that is broken ends the receive loop.

use std::io;

use nix::errno::Errno;

/// Kinds of failure of one send or receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing to read, or no room to send: the datagram is dropped.
    Full,
    /// The network is not there (any more): the list of interfaces is old.
    Network,
    /// A peer, a firewall or a router refused.
    Refused,
    /// The file descriptor is not a socket that can be used.
    Broken,
}

impl Fault {
    pub(super) fn of(error: &io::Error) -> Self {
        let Some(number) = error.raw_os_error() else {
            return if error.kind() == io::ErrorKind::WouldBlock {
                Self::Full
            } else {
                Self::Refused
            };
        };
        match Errno::from_raw(number) {
            Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS | Errno::ENOMEM => Self::Full,
            Errno::ENETUNREACH
            | Errno::ENETDOWN
            | Errno::ENETRESET
            | Errno::EADDRNOTAVAIL
            | Errno::ENODEV
            | Errno::ENXIO => Self::Network,
            Errno::EBADF | Errno::ENOTSOCK | Errno::EFAULT => Self::Broken,
            _ => Self::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_can_cause_breaks_nothing() {
        for errno in [
            Errno::ECONNREFUSED,
            Errno::EHOSTUNREACH,
            Errno::EHOSTDOWN,
            Errno::ENETUNREACH,
            Errno::EPERM,
            Errno::EACCES,
            Errno::ENOBUFS,
            Errno::EMSGSIZE,
            Errno::EPROTO,
            Errno::ENOPROTOOPT,
            Errno::ETIMEDOUT,
            Errno::EAGAIN,
            Errno::EINTR,
        ] {
            assert_ne!(Fault::of(&errno.into()), Fault::Broken, "{errno}");
        }
        assert_eq!(Fault::of(&Errno::EBADF.into()), Fault::Broken);
        assert_eq!(Fault::of(&Errno::ENETUNREACH.into()), Fault::Network);
        assert_eq!(Fault::of(&io::ErrorKind::WouldBlock.into()), Fault::Full);
    }
}
