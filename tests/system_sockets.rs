//! Sockets as systemd passes them: descriptors from 3 up and variables that announce them, in
//! a process of its own.

#![expect(
    clippy::unwrap_used,
    reason = "a test says by panicking that it failed"
)]

use std::{
    env,
    fmt::Write as _,
    fs::File,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    process,
};

use nix::{
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    sys::{
        signal::{Signal, raise},
        socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket},
        wait::waitpid,
    },
    unistd::{ForkResult, alarm, fork, pipe},
};
use peerix::system::{
    journal::chain,
    sockets::{Sockets, inherited},
};
use socket2::{Domain, Protocol, Socket, Type};

const ANNOUNCING: [&str; 4] = [
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PIDFDID",
];

/// Passes the descriptors on as 3, 4, ... with the variables, and says what `inherited` makes of it.
fn activate(fds: Vec<OwnedFd>, variables: &[(&str, &str)]) -> String {
    let mut all = vec![("LISTEN_FDS".to_owned(), fds.len().to_string())];
    for (name, value) in variables {
        all.retain(|(known, _)| known != name);
        all.push(((*name).to_owned(), (*value).to_owned()));
    }
    in_child(fds, move || {
        for (name, value) in all {
            #[expect(unsafe_code, reason = "the variables must name this very process")]
            // SAFETY: the child of fork has one thread.
            unsafe {
                env::set_var(name, value.replace("OUR_PID", &process::id().to_string()));
            }
        }
        let answer = match inherited() {
            Ok(None) => "none".to_owned(),
            Ok(Some(sockets)) => describe(&sockets),
            Err(error) => chain(&error).to_string(),
        };
        let left: Vec<_> = ANNOUNCING
            .into_iter()
            .filter(|name| env::var_os(name).is_some())
            .collect();
        if left.is_empty() {
            answer
        } else {
            format!("{answer} LEFT {left:?}")
        }
    })
}

fn describe(sockets: &Sockets) -> String {
    let mut text = format!("activated={}", sockets.activated);
    for listener in &sockets.tcp {
        let address = listener.local_addr().unwrap();
        write!(text, " tcp {address} {}", flags(listener)).unwrap();
        // Whoever connects over loopback, by whichever protocol the socket takes, is served.
        let ip = if address.is_ipv4() {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        } else {
            IpAddr::V6(Ipv6Addr::LOCALHOST)
        };
        let client = TcpStream::connect((ip, address.port())).unwrap();
        let (_, peer) = listener.accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
    }
    for socket in &sockets.udp {
        let broadcast = if socket.broadcast().unwrap() {
            "broadcast"
        } else {
            "NO BROADCAST"
        };
        write!(
            text,
            " udp {} {} {broadcast}",
            socket.local_addr().unwrap(),
            flags(socket)
        )
        .unwrap();
    }
    text
}

fn flags(fd: &impl AsFd) -> &'static str {
    let close = FdFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFD).unwrap())
        .contains(FdFlag::FD_CLOEXEC);
    let nonblocking =
        OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).unwrap()).contains(OFlag::O_NONBLOCK);
    if close && nonblocking {
        "ready"
    } else {
        "NOT SET UP"
    }
}

/// Runs `job` in a child process whose only descriptors above 2 are these, from 3 up.
fn in_child(fds: Vec<OwnedFd>, job: impl FnOnce() -> String) -> String {
    let (mut reader, writer) = pipe()
        .map(|(reader, writer)| (File::from(reader), File::from(writer)))
        .unwrap();
    #[expect(
        unsafe_code,
        reason = "only a process of its own can be handed descriptors"
    )]
    // SAFETY: the child touches no lock that another thread could have held: it allocates, which
    // glibc allows after fork, and ends without running anything of its parent's.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            alarm::set(20);
            let mut writer = place(fds, writer);
            let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job))
                .unwrap_or_else(|_| "the job panicked".to_owned());
            writer.write_all(answer.as_bytes()).unwrap();
            raise(Signal::SIGKILL).unwrap();
            unreachable!("killed")
        }
    };
    drop(writer);
    let mut answer = String::new();
    reader.read_to_string(&mut answer).unwrap();
    waitpid(child, None).unwrap();
    answer
}

/// Moves the descriptors to 3, 4, ..., inheritable and blocking as after exec, and closes all others.
fn place(fds: Vec<OwnedFd>, writer: File) -> File {
    const OUT_OF_THE_WAY: RawFd = 200;
    let moved = |fd: &dyn AsRawFd, to: RawFd| {
        #[expect(
            unsafe_code,
            reason = "descriptors at fixed numbers are what is tested"
        )]
        // SAFETY: the number belongs to nobody in this child any more: it forgets all that its
        // parent had open.
        unsafe {
            assert_eq!(nix::libc::dup2(fd.as_raw_fd(), to), to);
        }
    };
    let first = OUT_OF_THE_WAY + 1;
    moved(&writer, OUT_OF_THE_WAY);
    for (fd, to) in fds.iter().zip(first..) {
        moved(fd, to);
    }
    for (index, _) in (0..).zip(&fds) {
        moved(&(first + index), 3 + index);
    }
    let count = RawFd::try_from(fds.len()).unwrap();
    std::mem::forget((fds, writer));
    for fd in (3 + count..OUT_OF_THE_WAY).chain(first..first + count) {
        #[expect(unsafe_code, reason = "what is not passed is closed, as systemd does")]
        // SAFETY: as above.
        unsafe {
            nix::libc::close(fd);
        }
    }
    #[expect(unsafe_code, reason = "it was moved there above")]
    // SAFETY: open, and owned by nobody else.
    unsafe {
        std::os::fd::FromRawFd::from_raw_fd(OUT_OF_THE_WAY)
    }
}

fn bound(domain: Domain, r#type: Type, only_v6: bool) -> Socket {
    let socket = Socket::new(domain, r#type, None).unwrap();
    let address: SocketAddr = if domain == Domain::IPV4 {
        ([127, 0, 0, 1], 0).into()
    } else {
        socket.set_only_v6(only_v6).unwrap();
        (
            if only_v6 {
                Ipv6Addr::LOCALHOST
            } else {
                Ipv6Addr::UNSPECIFIED
            },
            0,
        )
            .into()
    };
    socket.bind(&address.into()).unwrap();
    if r#type == Type::STREAM {
        socket.listen(8).unwrap();
    }
    socket
}

fn address(socket: &Socket) -> SocketAddr {
    socket.local_addr().unwrap().as_socket().unwrap()
}

#[test]
fn every_ordinary_set_of_sockets_is_taken() {
    let (v4, v6) = (Domain::IPV4, Domain::IPV6);
    for kinds in [
        // As peerix.socket has them: dual-stack.
        vec![(v6, Type::STREAM, false), (v6, Type::DGRAM, false)],
        // As it has them without IPv6, and the other way round.
        vec![(v4, Type::DGRAM, false), (v4, Type::STREAM, false)],
        vec![(v6, Type::STREAM, true), (v6, Type::DGRAM, true)],
        // Several of each.
        vec![
            (v4, Type::STREAM, false),
            (v6, Type::DGRAM, true),
            (v6, Type::STREAM, true),
            (v4, Type::DGRAM, false),
            (v6, Type::STREAM, false),
        ],
        // A gateway that nobody can be asked through.
        vec![(v4, Type::STREAM, false)],
    ] {
        if kinds.iter().any(|(domain, ..)| *domain == v6) && UdpSocket::bind("[::1]:0").is_err() {
            eprintln!("skipped: no IPv6 here");
            continue;
        }
        let sockets: Vec<_> = kinds
            .iter()
            .map(|(domain, r#type, only_v6)| bound(*domain, *r#type, *only_v6))
            .collect();
        let of = |wanted: Type| {
            let matching = kinds
                .iter()
                .zip(&sockets)
                .filter(move |((_, r#type, _), _)| *r#type == wanted);
            matching
                .map(|(_, socket)| address(socket))
                .collect::<Vec<_>>()
        };
        let mut expected = "activated=true".to_owned();
        for address in of(Type::STREAM) {
            write!(expected, " tcp {address} ready").unwrap();
        }
        for address in of(Type::DGRAM) {
            write!(expected, " udp {address} ready broadcast").unwrap();
        }
        let answer = activate(
            sockets.into_iter().map(OwnedFd::from).collect(),
            &[
                ("LISTEN_PID", "OUR_PID"),
                ("LISTEN_FDNAMES", "peerix.socket"),
                ("LISTEN_PIDFDID", "1234"),
            ],
        );
        assert_eq!(answer, expected);
    }
}

#[test]
fn what_is_not_ours_is_refused_by_name() {
    let tcp_listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp_client = TcpStream::connect(tcp_listener.local_addr().unwrap()).unwrap();
    let tcp_not_listening = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let udp_connected = UdpSocket::bind("127.0.0.1:0").unwrap();
    udp_connected
        .connect(udp_connected.local_addr().unwrap())
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::empty(),
        SockProtocol::NetlinkRoute,
    )
    .unwrap();
    let wrong: Vec<(OwnedFd, &str)> = vec![
        (
            UnixListener::bind(dir.path().join("socket"))
                .unwrap()
                .into(),
            "a Unix stream socket",
        ),
        (UnixStream::pair().unwrap().0.into(), "a Unix stream socket"),
        (
            UnixDatagram::unbound().unwrap().into(),
            "a Unix datagram socket",
        ),
        (
            Socket::new(Domain::UNIX, Type::SEQPACKET, None)
                .unwrap()
                .into(),
            "a Unix seqpacket socket",
        ),
        (netlink, "a netlink raw socket"),
        (tcp_client.into(), "a TCP connection"),
        (
            tcp_not_listening.into(),
            "a TCP socket that does not listen",
        ),
        (udp_connected.into(), "a connected UDP socket"),
        (tempfile::tempfile().unwrap().into(), "a regular file"),
        (File::open(dir.path()).unwrap().into(), "a directory"),
        (File::open("/dev/null").unwrap().into(), "a device"),
        (pipe().unwrap().0, "a pipe"),
    ];
    for (fd, words) in wrong {
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        let answer = activate(
            vec![good.into(), fd],
            &[
                ("LISTEN_PID", "OUR_PID"),
                ("LISTEN_FDNAMES", "peerix.socket:odd\none"),
            ],
        );
        let right = "peerix takes TCP listeners and unconnected UDP sockets over IPv4 or IPv6";
        assert_eq!(answer, format!("fd 4 (`odd\\none`) is {words}; {right}"));
    }
    if let Ok(raw) = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)) {
        let answer = activate(vec![raw.into()], &[("LISTEN_PID", "OUR_PID")]);
        assert!(
            answer.starts_with("fd 3 (without a name) is an IP raw socket of protocol 1; "),
            "{answer}"
        );
    }
}

#[test]
fn an_announcement_that_is_wrong_is_said_to_be() {
    let tcp = || vec![OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap())];
    let udp = || vec![OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap())];
    let number = "right would be a number up to 1024";
    for (fds, variables, answer) in [
        (tcp(), vec![("LISTEN_FDS", "2")], "fd 4 (without a name) is not open; LISTEN_FDS announced it".to_owned()),
        (tcp(), vec![("LISTEN_FDS", "one")], format!("LISTEN_FDS is \"one\"; {number}")),
        (tcp(), vec![("LISTEN_FDS", "4294967295")], format!("LISTEN_FDS is \"4294967295\"; {number}")),
        (tcp(), vec![("LISTEN_FDS", "-1")], format!("LISTEN_FDS is \"-1\"; {number}")),
        (tcp(), vec![("LISTEN_FDS", "0")], "none".to_owned()),
        (tcp(), vec![("LISTEN_PID", "1")], "none".to_owned()),
        (tcp(), vec![("LISTEN_PID", "1"), ("LISTEN_FDS", "one")], "none".to_owned()),
        (tcp(), vec![("LISTEN_PID", "nobody")], "none".to_owned()),
        (
            udp(),
            vec![("LISTEN_PID", "OUR_PID")],
            "none of the sockets from systemd is a TCP listener; right would be a ListenStream= in the socket unit"
                .to_owned(),
        ),
    ] {
        assert_eq!(activate(fds, &variables), answer, "{variables:?}");
    }
    assert_eq!(
        in_child(Vec::new(), || format!(
            "{:?}",
            inherited().map(|sockets| sockets.is_some())
        )),
        "Ok(false)"
    );
}

#[test]
fn a_socket_without_a_pid_is_for_whoever_comes_first() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let expected = format!(
        "activated=true tcp {} ready",
        listener.local_addr().unwrap()
    );
    assert_eq!(
        activate(vec![listener.into()], &[("LISTEN_PID", "")]),
        expected
    );
}
