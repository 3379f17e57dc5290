//! The UDP sockets: which of them reaches whom, and sending without ever waiting.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6},
    os::fd::AsRawFd,
    task::{Context, Poll},
};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, recvfrom, sendmsg};
use socket2::SockRef;
use tokio::net::UdpSocket;

use super::{LanError, networks::Reach};
use crate::protocol::{Network, canonical};

/// One socket, ours or inherited.
#[derive(Debug)]
pub(super) struct Socket {
    socket: UdpSocket,
    /// In bytes, as the kernel counts them.
    send_buffer: usize,
    local: SocketAddr,
    is_ipv6: bool,
    speaks_ipv4: bool,
}

impl Socket {
    pub(super) fn new(socket: UdpSocket) -> Result<Self, LanError> {
        let bound = socket.local_addr().map_err(LanError::LocalAddress)?;
        let inspect = |source| LanError::Prepare {
            address: bound,
            source,
        };
        socket.set_broadcast(true).map_err(inspect)?;
        let local = canonical(bound);
        let is_ipv6 = bound.is_ipv6();
        let speaks_ipv4 = match bound.ip() {
            IpAddr::V4(_) => true,
            IpAddr::V6(ip) if ip.is_unspecified() => {
                !SockRef::from(&socket).only_v6().map_err(inspect)?
            }
            IpAddr::V6(_) => local.is_ipv4(),
        };
        let send_buffer = SockRef::from(&socket).send_buffer_size().map_err(inspect)?;
        Ok(Self {
            socket,
            send_buffer,
            local,
            is_ipv6,
            speaks_ipv4,
        })
    }

    /// Where it is bound, canonical.
    pub(super) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Whether a datagram from `source` may be one that this socket sent; `is_ours` knows
    /// the addresses of the machine.
    pub(super) fn may_have_sent(
        &self,
        source: SocketAddr,
        is_ours: impl Fn(IpAddr) -> bool,
    ) -> bool {
        let any = self.local.ip().is_unspecified();
        source.port() == self.local.port()
            && (source.ip() == self.local.ip() || any && is_ours(source.ip()))
    }

    pub(super) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.socket.poll_recv_ready(context)
    }

    /// One datagram, if there is one; longer ones are cut to the buffer.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.socket.try_recv_from(buffer)
    }

    /// The same from the system itself, whose word the runtime may not have heard yet.
    pub(super) fn receive_now(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        let (length, from) = recvfrom::<SockaddrStorage>(self.socket.as_raw_fd(), buffer)?;
        let v4 = from.as_ref().and_then(SockaddrStorage::as_sockaddr_in);
        let v6 = from.as_ref().and_then(SockaddrStorage::as_sockaddr_in6);
        let from = match (v4, v6) {
            (Some(v4), _) => SocketAddr::V4((*v4).into()),
            (_, Some(v6)) => SocketAddr::V6((*v6).into()),
            // A socket of ours has no other kind; port 0 is dropped.
            _ => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        };
        Ok((length, from))
    }

    /// Whether there is room for an answer to a stranger. What is sent to a machine that does not
    /// exist stays in the socket until the system gives up looking for it, seconds later, and
    /// anybody can ask in the name of such machines: half of the room is kept for our questions.
    pub(super) fn has_room_for_answers(&self) -> bool {
        let mut unsent: libc::c_int = 0;
        let descriptor = self.socket.as_raw_fd();
        #[expect(
            unsafe_code,
            reason = "no crate we use wraps SIOCOUTQ, see socket(7) and udp(7)"
        )]
        // SAFETY: the descriptor is open as long as `self`, and the request writes one int.
        let asked = unsafe { libc::ioctl(descriptor, libc::TIOCOUTQ, &raw mut unsent) };
        // A kernel that does not say is trusted to refuse when it is full.
        asked != 0 || usize::try_from(unsent).is_ok_and(|unsent| unsent < self.send_buffer / 2)
    }

    /// Sends now or not at all. The socket is asked itself, as its readiness is not known
    /// before the runtime has polled it once.
    pub(super) fn send(&self, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let to = self.destination(to);
        SockRef::from(&self.socket).send_to(bytes, &to.into())?;
        Ok(())
    }

    /// Sends to all of a network, through its interface whatever the routes say.
    pub(super) fn broadcast(&self, network: &Network, port: u16, bytes: &[u8]) -> io::Result<()> {
        let to = network.everybody(port);
        match network {
            Network::Broadcast { interface, .. } => self.broadcast_through(*interface, to, bytes),
            // The scope of the address is the interface. No router passes it on, nor does the
            // hop limit of 1, the default, let it.
            Network::Link { .. } => self.send(to, bytes),
        }
    }

    fn broadcast_through(&self, interface: u32, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let to = self.destination(to);
        let through = libc::in_pktinfo {
            ipi_ifindex: i32::try_from(interface).unwrap_or(0),
            ipi_spec_dst: libc::in_addr { s_addr: 0 },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &[ControlMessage::Ipv4PacketInfo(&through)],
            MsgFlags::empty(),
            Some(&SockaddrStorage::from(to)),
        )?;
        Ok(())
    }

    fn speaks_ipv6(&self) -> bool {
        self.is_ipv6 && self.local.is_ipv6()
    }

    /// `to` as this socket's family writes it.
    fn destination(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V4(v4) if self.is_ipv6 => {
                SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into()
            }
            _ => to,
        }
    }
}

/// What these sockets can do.
pub(super) fn reach(sockets: &[Socket]) -> Reach {
    let to_links = |socket: &Socket| socket.speaks_ipv6() && !socket.local.ip().is_loopback();
    Reach {
        links: sockets.iter().any(to_links),
    }
}

/// The socket to send to all of `network` through.
pub(super) fn for_network<'a>(sockets: &'a [Socket], network: &Network) -> Option<&'a Socket> {
    let able = |socket: &&Socket| {
        let bound = socket.local.ip();
        let speaks = match network {
            Network::Broadcast { .. } => socket.speaks_ipv4,
            Network::Link { .. } => socket.speaks_ipv6(),
        };
        speaks && (bound.is_unspecified() || bound == network.address())
    };
    sockets.iter().find(able)
}

/// The socket to send to `peer` through: one that is bound to no address rather than one
/// that is, and of those one on the same side of the loopback.
pub(super) fn for_peer(sockets: &[Socket], peer: SocketAddr) -> Option<&Socket> {
    let able = |socket: &&Socket| match peer {
        SocketAddr::V4(_) => socket.speaks_ipv4,
        SocketAddr::V6(_) => socket.speaks_ipv6(),
    };
    let rank = |socket: &&Socket| {
        let bound = socket.local.ip();
        let same_side = bound.is_loopback() == peer.ip().is_loopback();
        if bound.is_unspecified() {
            0
        } else if same_side {
            1
        } else {
            2
        }
    };
    sockets.iter().filter(able).min_by_key(rank)
}
