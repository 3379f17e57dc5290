//! What a descriptor is, in the words of an error message.

use std::{
    fmt, fs, io,
    os::fd::{AsFd, BorrowedFd, RawFd},
};

use nix::sys::stat::{SFlag, fstat};
use socket2::{Domain, Protocol, SockRef, Type};

/// `IPPROTO_MPTCP`: a TCP listener for all that an application can see.
const MPTCP: i32 = 262;

/// What a descriptor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A listening TCP socket over IPv4 or IPv6.
    TcpListener,
    /// An unconnected UDP socket over IPv4 or IPv6.
    Udp,
    /// Not open.
    Closed,
    /// A socket of another kind.
    OtherSocket {
        /// Its address family.
        domain: Domain,
        /// Its type.
        r#type: Type,
        /// Its protocol, if it has one.
        protocol: Option<Protocol>,
        /// Whether it has a peer.
        connected: bool,
    },
    /// No socket at all; the words for it.
    NoSocket(&'static str),
}

impl Kind {
    pub(super) fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let format = SFlag::from_bits_truncate(fstat(fd.as_fd())?.st_mode) & SFlag::S_IFMT;
        if format != SFlag::S_IFSOCK {
            return Ok(Self::NoSocket(words(format)));
        }
        let socket = SockRef::from(&fd);
        let (domain, r#type, protocol) = (socket.domain()?, socket.r#type()?, socket.protocol()?);
        let connected = socket.peer_addr().is_ok();
        let is_ip = domain == Domain::IPV4 || domain == Domain::IPV6;
        let is_tcp = r#type == Type::STREAM
            && matches!(protocol.map(i32::from), Some(libc::IPPROTO_TCP | MPTCP));
        let is_udp = r#type == Type::DGRAM && protocol == Some(Protocol::UDP);
        Ok(match () {
            () if is_ip && is_tcp && socket.is_listener()? => Self::TcpListener,
            () if is_ip && is_udp && !connected => Self::Udp,
            () => Self::OtherSocket {
                domain,
                r#type,
                protocol,
                connected,
            },
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (domain, r#type, protocol, connected) = match *self {
            Self::TcpListener => return f.write_str("a TCP listener"),
            Self::Udp => return f.write_str("a UDP socket"),
            Self::Closed => return f.write_str("not open"),
            Self::NoSocket(words) => return f.write_str(words),
            Self::OtherSocket {
                domain,
                r#type,
                protocol,
                connected,
            } => (domain, r#type, protocol, connected),
        };
        let is_ip = domain == Domain::IPV4 || domain == Domain::IPV6;
        let name = match protocol {
            Some(Protocol::TCP) if is_ip => "TCP",
            Some(Protocol::UDP) if is_ip => "UDP",
            _ => "",
        };
        match (name, connected) {
            ("TCP", true) => return f.write_str("a TCP connection"),
            ("TCP", false) => return f.write_str("a TCP socket that does not listen"),
            ("UDP", _) => return f.write_str("a connected UDP socket"),
            _ => {}
        }
        let family = match i32::from(domain) {
            libc::AF_UNIX => "a Unix",
            libc::AF_INET | libc::AF_INET6 => "an IP",
            libc::AF_NETLINK => "a netlink",
            libc::AF_VSOCK => "a vsock",
            libc::AF_PACKET => "a packet",
            family => return write!(f, "a socket of address family {family}"),
        };
        let shape = match i32::from(r#type) {
            libc::SOCK_STREAM => "stream",
            libc::SOCK_DGRAM => "datagram",
            libc::SOCK_SEQPACKET => "seqpacket",
            libc::SOCK_RAW => "raw",
            _ => "odd",
        };
        write!(f, "{family} {shape} socket")?;
        match protocol.map(i32::from) {
            Some(number) if is_ip => write!(f, " of protocol {number}"),
            _ => Ok(()),
        }
    }
}

pub(super) fn is_open(fd: RawFd) -> bool {
    fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok()
}

fn words(format: SFlag) -> &'static str {
    match format {
        SFlag::S_IFREG => "a regular file",
        SFlag::S_IFDIR => "a directory",
        SFlag::S_IFIFO => "a pipe",
        SFlag::S_IFCHR | SFlag::S_IFBLK => "a device",
        _ => "neither a file nor a socket",
    }
}
