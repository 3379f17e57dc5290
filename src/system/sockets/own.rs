//! Binding without systemd.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::{SocketError, Sockets};

/// As in peerix.socket.
const BACKLOG: i32 = 4096;

/// As in peerix.socket: the default holds 256 small datagrams.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// How often a free TCP port is sought whose number is free for UDP too. Each attempt fails
/// with the share of UDP ports in use, a few in ten thousand.
const ATTEMPTS: usize = 16;

/// One TCP listener and one UDP socket on all addresses, dual-stack where the kernel has IPv6.
/// Port 0 takes any port that is free for both. The UDP socket refuses to share its port, so
/// that of two daemons the second fails.
pub fn bind(port: u16) -> Result<Sockets, SocketError> {
    let mut attempts = 1..=if port == 0 { ATTEMPTS } else { 1 };
    loop {
        let result = bind_once(port);
        attempts.next();
        match result {
            Err(SocketError::InUse { .. }) if !attempts.is_empty() => {}
            result => return result,
        }
    }
}

fn bind_once(port: u16) -> Result<Sockets, SocketError> {
    let open_error = |protocol| move |source| SocketError::Open { protocol, source };
    let tcp = bound("TCP", Type::STREAM, port)?;
    tcp.listen(BACKLOG).map_err(open_error("TCP"))?;
    let port = tcp
        .local_addr()
        .map_err(open_error("TCP"))?
        .as_socket()
        .map_or(port, |address| address.port());
    let udp = bound("UDP", Type::DGRAM, port)?;
    udp.set_broadcast(true).map_err(open_error("UDP"))?;
    enlarge_receive_buffer(&udp);
    Ok(Sockets {
        tcp: vec![tcp.into()],
        udp: vec![udp.into()],
        activated: false,
    })
}

fn bound(protocol: &'static str, r#type: Type, port: u16) -> Result<Socket, SocketError> {
    let everywhere = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match bound_to(protocol, r#type, everywhere) {
        Err(error) if lacks_ipv6(&error) => bound_to(
            protocol,
            r#type,
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
        ),
        result => result,
    }
}

fn bound_to(
    protocol: &'static str,
    r#type: Type,
    address: SocketAddr,
) -> Result<Socket, SocketError> {
    let socket =
        configured(r#type, address).map_err(|source| SocketError::Open { protocol, source })?;
    match socket.bind(&address.into()) {
        Ok(()) => Ok(socket),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(SocketError::InUse { protocol, address })
        }
        Err(source) => Err(SocketError::Bind {
            protocol,
            address,
            source,
        }),
    }
}

fn configured(r#type: Type, address: SocketAddr) -> io::Result<Socket> {
    let protocol = if r#type == Type::STREAM {
        Protocol::TCP
    } else {
        Protocol::UDP
    };
    let socket = Socket::new(Domain::for_address(address), r#type, Some(protocol))?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if r#type == Type::STREAM {
        // Old connections in TIME_WAIT do not keep a restarted daemon out.
        socket.set_reuse_address(true)?;
    }
    Ok(socket)
}

fn lacks_ipv6(error: &SocketError) -> bool {
    let (SocketError::Open { source, .. } | SocketError::Bind { source, .. }) = error else {
        return false;
    };
    matches!(
        source.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

/// As large as we may: root passes the kernel's limit, everybody else gets what it allows.
fn enlarge_receive_buffer(udp: &Socket) {
    let forced = setsockopt(udp, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES);
    if let Err(error) = forced.or_else(|_| setsockopt(udp, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES))
    {
        log::debug!("the UDP receive buffer keeps its size: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn port(sockets: &Sockets) -> u16 {
        sockets.tcp[0].local_addr().unwrap().port()
    }

    #[test]
    fn any_free_port_is_one_for_both() {
        let sockets = bind(0).unwrap();
        assert_eq!(sockets.udp[0].local_addr().unwrap().port(), port(&sockets));
        assert!(!sockets.activated);
        assert!(sockets.udp[0].broadcast().unwrap());
        let mut locals = vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port(&sockets)))];
        if UdpSocket::bind("[::1]:0").is_ok() {
            locals.push((Ipv6Addr::LOCALHOST, port(&sockets)).into());
        } else {
            eprintln!("skipped: no IPv6 here");
        }
        for local in &locals {
            TcpStream::connect(local).unwrap();
        }
        let blocks = io::ErrorKind::WouldBlock;
        assert_eq!(sockets.udp[0].recv(&mut [0]).unwrap_err().kind(), blocks);
        for _ in &locals {
            assert!(sockets.tcp[0].accept().is_ok());
        }
        assert_eq!(sockets.tcp[0].accept().unwrap_err().kind(), blocks);
    }

    #[test]
    fn a_second_daemon_fails_and_says_why() {
        let first = bind(0).unwrap();
        let port = port(&first);
        let error = bind(port).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains(&format!(":{port} is in use: another peerix")),
            "{message}"
        );

        drop(first);
        // Also one that cannot be seen by its TCP port, and one on IPv4 alone.
        let _udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
        let error = bind(port).unwrap_err();
        assert!(
            matches!(
                error,
                SocketError::InUse {
                    protocol: "UDP",
                    ..
                }
            ),
            "{error}"
        );
    }

    #[test]
    fn a_port_left_in_time_wait_is_free() {
        let sockets = bind(0).unwrap();
        let port = port(&sockets);
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        sockets.tcp[0].set_nonblocking(false).unwrap();
        // The side that closes first is the one that waits.
        drop(sockets.tcp[0].accept().unwrap());
        drop(client);
        drop(sockets);
        bind(port).unwrap();
    }

    #[test]
    fn ports_of_root_need_root() {
        if nix::unistd::geteuid().is_root() {
            eprintln!("skipped: root may bind any port");
            return;
        }
        let error = bind(1).unwrap_err();
        assert!(
            matches!(&error, SocketError::Bind { source, .. } if source.kind() == io::ErrorKind::PermissionDenied),
            "{error}"
        );
    }

    #[test]
    fn ipv4_alone_will_do() {
        let no_family = SocketError::Open {
            protocol: "TCP",
            source: io::Error::from_raw_os_error(libc::EAFNOSUPPORT),
        };
        let in_use = SocketError::Bind {
            protocol: "TCP",
            address: ([0; 4], 1).into(),
            source: io::ErrorKind::PermissionDenied.into(),
        };
        assert!(lacks_ipv6(&no_family) && !lacks_ipv6(&in_use));
        let socket: TcpListener = bound_to("TCP", Type::STREAM, ([0, 0, 0, 0], 0).into())
            .unwrap()
            .into();
        assert!(socket.local_addr().unwrap().is_ipv4());
    }
}
