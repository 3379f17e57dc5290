//! The UDP sockets: which of them reaches whom, and sending without ever waiting.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::AsRawFd,
    task::{Context, Poll},
};

use nix::{
    cmsg_space,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg,
        setsockopt, sockopt,
    },
};
use socket2::SockRef;
use tokio::{io::Interest, net::UdpSocket};

use super::{LanError, networks::Reach};
use crate::protocol::{Network, canonical};

/// A datagram that has come in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Received {
    /// Its bytes in the buffer; a longer one is cut to that.
    pub(super) length: usize,
    pub(super) from: SocketAddr,
    /// Index of the interface; 0 if the kernel does not say.
    pub(super) interface: u32,
    /// The address that it was sent to, of ours or of a network; none if the kernel does not say.
    pub(super) to: Option<IpAddr>,
    /// Our address to answer from; none for a multicast, and for what came in before this socket
    /// asked for it.
    pub(super) local: Option<IpAddr>,
}

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
        // Without it answers leave from whatever address the routes prefer.
        if speaks_ipv4 {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)
                .map_err(|errno| inspect(errno.into()))?;
        }
        if is_ipv6 {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)
                .map_err(|errno| inspect(errno.into()))?;
        }
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

    /// One datagram, if there is one.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Received> {
        self.socket
            .try_io(Interest::READABLE, || self.receive_now(buffer))
    }

    /// The same from the system itself, whose word the runtime may not have heard yet.
    pub(super) fn receive_now(&self, buffer: &mut [u8]) -> io::Result<Received> {
        let mut control = cmsg_space!(libc::in_pktinfo, libc::in6_pktinfo);
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg::<SockaddrStorage>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut control),
            MsgFlags::empty(),
        )?;
        let source = message.address.as_ref();
        let v4 = source.and_then(SockaddrStorage::as_sockaddr_in);
        let v6 = source.and_then(SockaddrStorage::as_sockaddr_in6);
        let from = match (v4, v6) {
            (Some(v4), _) => SocketAddr::V4((*v4).into()),
            (_, Some(v6)) => SocketAddr::V6((*v6).into()),
            // A socket of ours has no other kind; port 0 is dropped.
            _ => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        };
        let mut received = Received {
            length: message.bytes,
            from,
            interface: 0,
            to: None,
            local: None,
        };
        // A dual-stack socket tells of an IPv4 datagram in both ways; the IPv4 one says more.
        for part in message.cmsgs()? {
            match part {
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    let [to, local] = [info.ipi_addr, info.ipi_spec_dst]
                        .map(|it| Ipv4Addr::from_bits(u32::from_be(it.s_addr)));
                    received.interface = u32::try_from(info.ipi_ifindex).unwrap_or(0);
                    received.to = Some(to.into());
                    received.local = (!local.is_unspecified()).then_some(local.into());
                    break;
                }
                ControlMessageOwned::Ipv6PacketInfo(info) => {
                    let to = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                    received.interface = info.ipi6_ifindex;
                    received.to = Some(to.to_canonical());
                    received.local = (!to.is_multicast()).then_some(to.to_canonical());
                }
                _ => {}
            }
        }
        Ok(received)
    }

    /// Whether there is room for an answer. A datagram to a machine that does not exist stays in the
    /// socket until the kernel gives up looking for that machine, seconds later. Any host can forge
    /// asks of such machines, so half of the room is kept for our own asks.
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

    /// Sends as [`Self::send`], from our address `local`.
    pub(super) fn send_from(&self, local: IpAddr, to: SocketAddr, bytes: &[u8]) -> io::Result<()> {
        let (IpAddr::V6(local), SocketAddr::V6(v6)) = (local, to) else {
            let IpAddr::V4(local) = local else {
                return self.send(to, bytes);
            };
            return self.send_with_info(0, local, to, bytes);
        };
        let info = libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr {
                s6_addr: local.octets(),
            },
            ipi6_ifindex: v6.scope_id(),
        };
        sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &[ControlMessage::Ipv6PacketInfo(&info)],
            MsgFlags::empty(),
            Some(&SockaddrStorage::from(to)),
        )?;
        Ok(())
    }

    /// Sends to all of a network, through its interface whatever the routes say.
    pub(super) fn broadcast(&self, network: &Network, port: u16, bytes: &[u8]) -> io::Result<()> {
        let to = network.everybody(port);
        match network {
            Network::Broadcast {
                interface, address, ..
            } => self.send_with_info(*interface, *address, to, bytes),
            // The scope of the address is the interface. No router passes it on, nor does the
            // hop limit of 1, the default, let it.
            Network::Link { .. } => self.send(to, bytes),
        }
    }

    /// Sends by IPv4 through an interface (0: as the routes say), from our address `local`.
    fn send_with_info(
        &self,
        interface: u32,
        local: Ipv4Addr,
        to: SocketAddr,
        bytes: &[u8],
    ) -> io::Result<()> {
        let to = self.destination(to);
        let info = libc::in_pktinfo {
            ipi_ifindex: i32::try_from(interface).unwrap_or(0),
            ipi_spec_dst: libc::in_addr {
                s_addr: local.to_bits().to_be(),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &[ControlMessage::Ipv4PacketInfo(&info)],
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
