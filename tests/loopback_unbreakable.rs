//! Promise 1: no state of a peer, of the network, of the configuration or of peerix itself fails a
//! Nix build that has another source, or slows it by more than half a second per command.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::sys::signal::Signal;

use support::{
    daemon::Sockets,
    eventually,
    host::Host,
    http::{Connection, get, raw},
    is_root,
    item::{Item, key_text},
    manager::Manager,
    peer::{self, Asked, Peer, Then},
    skip, timed,
};

/// What a whole Nix command may lose because of us.
const BUDGET: Duration = Duration::from_millis(500);

/// What the machine that runs the tests may take for itself, beside a full test run.
const SLACK: Duration = Duration::from_millis(400);

/// What is measured is what is shipped.
const AS_SHIPPED: &str = "discovery.timeout = \"50ms\"";

const HASH: &str = "0123456789abcdfghijklmnpqrsvwxyz";

/// Requests for something that ends in `.narinfo`, none of them as Nix would make it.
fn malformed() -> Vec<Vec<u8>> {
    let get = |path: &[u8]| [b"GET ", path, b" HTTP/1.1\r\nHost: localhost\r\n\r\n"].concat();
    let with = |header: &str| {
        format!("GET /{HASH}.narinfo HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n").into_bytes()
    };
    let mut requests: Vec<Vec<u8>> = [
        &b"/.narinfo"[..],
        b"/x.narinfo",
        b"//.narinfo",
        b"/../../etc/passwd.narinfo",
        b"/%2e%2e/%2e%2e/x.narinfo",
        b"/%00.narinfo",
        b"/%.narinfo",
        b"/%zz%.narinfo",
        b"/%ff%fe.narinfo",
        b"/\xff\xfe\xfd.narinfo",
        b"/\xc3\x28.narinfo",
        b"/\x01\x02.narinfo",
        b"/a b.narinfo",
        b"/a\tb.narinfo",
        b"/<script>.narinfo",
        b"/\"'`{}|\\^.narinfo",
        b"/0123456789ABCDFGHIJKLMNPQRSVWXYZ.narinfo",
        b"/0123456789abcdefghijklmnopqrstuv.narinfo",
        b"/0123456789abcdfghijklmnpqrsvwxy.narinfo",
        b"/0123456789abcdfghijklmnpqrsvwxyzz.narinfo",
        b"/sub/dir/0123456789abcdfghijklmnpqrsvwxyz.narinfo",
        b"/0123456789abcdfghijklmnpqrsvwxyz.narinfo?x=%zz&y",
        b"/0123456789abcdfghijklmnpqrsvwxyz.narinfo#fragment",
        b"http://localhost/0123456789abcdfghijklmnpqrsvwxyz.narinfo",
        b"http://127.0.0.1:1/0123456789abcdfghijklmnpqrsvwxyz.narinfo",
        b"x.narinfo",
        b"*.narinfo",
    ]
    .into_iter()
    .map(get)
    .collect();
    requests.push(get(&[b"/", &b"a".repeat(20_000)[..], b".narinfo"].concat()));
    requests.push(get(&[b"/", &b"%41".repeat(3_000)[..], b".narinfo"].concat()));
    requests.push(get(
        &[b"/", &b"../".repeat(3_000)[..], b"x.narinfo"].concat()
    ));
    for head in [
        "GET /H.narinfo HTTP/1.0\r\n\r\n",
        "GET /H.narinfo HTTP/1.0\r\nHost: localhost\r\nConnection: keep-alive\r\n\r\n",
        "GET /H.narinfo HTTP/1.1\r\n\r\n",
        "GET /H.narinfo HTTP/1.2\r\nHost: localhost\r\n\r\n",
        "GET /H.narinfo HTTP/2.0\r\nHost: localhost\r\n\r\n",
        "GET /H.narinfo HTTP/9.9\r\nHost: localhost\r\n\r\n",
        "GET /H.narinfo\r\nHost: localhost\r\n\r\n",
        "GET  /H.narinfo HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /H.narinfo  HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /H.narinfo HTTP/1.1\nHost: localhost\n\n",
        "\r\n\r\nGET /H.narinfo HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "get /H.narinfo HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "G\u{cb}T /H.narinfo HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "POST /H.narinfo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        "POST /H.narinfo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody",
        "PUT /H.narinfo HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "DELETE /H.narinfo HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "BREW /H.narinfo HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ] {
        requests.push(head.replace('H', HASH).into_bytes());
    }
    for header in [
        "Content-Length: -1",
        "Content-Length: 99999999999999999999999999",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: nonsense",
        "Range: bytes=0-1",
        "Range: nonsense",
        "If-None-Match: *",
        "Expect: 100-continue",
        "Expect: nonsense",
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
        "No colon here",
        ": empty name",
        "Bad Name: x",
        "X: \u{1}\u{2}",
        "Accept-Encoding: nonsense;q=9",
    ] {
        requests.push(with(header));
    }
    requests.push(
        [
            &b"GET /x.narinfo HTTP/1.1\r\nHost: localhost\r\nX: "[..],
            b"\xff\xfe\0",
            b"\r\n\r\n",
        ]
        .concat(),
    );
    requests.push(with(
        (0..90)
            .map(|n| format!("X-{n}: y\r\n"))
            .collect::<String>()
            .trim_end(),
    ));
    requests.push(with(
        (0..1_000)
            .map(|n| format!("X-{n}: y\r\n"))
            .collect::<String>()
            .trim_end(),
    ));
    requests.push(with(&format!("X: {}", "y".repeat(20_000))));
    requests.push(with(&format!("Cookie: {}", "y".repeat(500_000))));
    // The preface of HTTP/2, and of TLS, for which nobody here asked.
    requests
}

/// Held by tests that measure time, so that they do not measure each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shown(request: &[u8]) -> String {
    let text = String::from_utf8_lossy(&request[..request.len().min(120)]).into_owned();
    format!("{text:?}")
}

#[test]
fn any_narinfo_from_loopback_however_malformed_is_200_or_404() {
    let item = Item::signed("present", 100);
    let peer = Peer::honest(&[&item]);
    // Alone, with peers, and degraded: every way to an answer.
    let alone = Host::new();
    let with_peers = Host::new().with(AS_SHIPPED).with(&Peer::setting(&[&peer]));
    let broken = Host::new().with("no-such-key = 1");
    let sockets = Sockets::open();
    let daemons = [
        alone.start(),
        with_peers.start(),
        broken.launch().activate(&sockets),
    ];
    for mut daemon in daemons {
        for request in malformed() {
            let answer = raw(daemon.address(), &request);
            let answer =
                answer.unwrap_or_else(|error| panic!("{} got no answer: {error}", shown(&request)));
            assert!(
                matches!(answer.status, 200 | 404),
                "{} got {}",
                shown(&request),
                answer.status
            );
        }
        daemon.assert_well();
    }
}

#[test]
fn a_request_after_a_malformed_one_on_the_same_connection_is_served_or_the_connection_ends() {
    let host = Host::new();
    let mut daemon = host.start();
    for request in malformed() {
        let mut connection = Connection::open(daemon.address()).expect("connection");
        // The daemon may have ended the connection before all was written.
        connection.send(&request).ok();
        connection
            .answer(false)
            .unwrap_or_else(|error| panic!("{}: {error}", shown(&request)));
        if let Ok(next) = connection.ask("GET", &format!("/{HASH}.narinfo"), &[]) {
            assert!(
                matches!(next.status, 200 | 404),
                "after {}: {}",
                shown(&request),
                next.status
            );
        }
    }
    daemon.assert_well();
}

#[test]
fn bytes_that_are_not_http_do_no_harm() {
    let _alone = alone();
    let host = Host::new();
    let mut daemon = host.start();
    for bytes in [
        &b""[..],
        b"\0",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET",
        b"GET /x.narinfo HTTP/1.1\r\nHost: localhost\r\n",
        &[0xff; 70_000],
        &[b'A'; 70_000],
        &[b'\n'; 70_000],
    ] {
        let mut stream = TcpStream::connect(daemon.address()).expect("connection");
        // The daemon may end the connection before all was written.
        stream.write_all(bytes).ok();
        drop(stream);
    }
    // And connections that say nothing at all, which must not be in anybody's way.
    let silent: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(daemon.address()).expect("connection"))
        .collect();
    let (answer, took) = timed(|| get(daemon.address(), &format!("/{HASH}.narinfo")));
    assert_eq!(answer.status, 404);
    assert!(took < SLACK, "{took:?} beside silent connections");
    drop(silent);
    daemon.assert_well();
}

#[test]
fn loopback_is_served_beside_more_connections_than_the_limit() {
    let host = Host::new().with("limits.connections = 128");
    let mut daemon = host.start();
    let busy: Vec<_> = (0..300)
        .map(|_| TcpStream::connect(daemon.address()).expect("connection"))
        .collect();
    for _ in 0..20 {
        assert_eq!(
            get(daemon.address(), &format!("/{HASH}.narinfo")).status,
            404
        );
    }
    drop(busy);
    daemon.assert_well();
}

/// Peers that answer each datagram with "I have it", and then are of no use.
fn useless_peers() -> Vec<(&'static str, Peer)> {
    type Serve = fn(&Asked, &mut TcpStream) -> std::io::Result<Then>;
    let serving: [(&'static str, Serve); 10] = [
        ("hangs", |_, stream| peer::hang(stream)),
        ("resets", |_, _| Ok(Then::Reset)),
        ("closes", |_, _| Ok(Then::Close)),
        ("answers 404", |_, stream| peer::not_found(stream)),
        ("answers 500", |_, stream| {
            stream.write_all(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")?;
            Ok(Then::KeepOpen)
        }),
        ("sends half a head and hangs", |_, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le")?;
            peer::hang(stream)
        }),
        ("sends half a body and hangs", |_, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nStorePath: ")?;
            peer::hang(stream)
        }),
        ("trickles", |_, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")?;
            loop {
                stream.write_all(b"S")?;
                std::thread::sleep(Duration::from_millis(20));
            }
        }),
        ("sends junk", |_, stream| {
            stream.write_all(&[0xff; 5_000])?;
            Ok(Then::Close)
        }),
        ("sends an endless head", |_, stream| {
            loop {
                stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
                stream.write_all("X-Header: value\r\n".repeat(1_000).as_bytes())?;
            }
        }),
    ];
    let mut peers: Vec<_> = serving
        .into_iter()
        .map(|(what, serve)| (what, Peer::holding_all(serve)))
        .collect();
    // Nobody listens where it points to.
    let closed = TcpListener::bind("127.0.0.1:0")
        .expect("listener")
        .local_addr()
        .expect("address")
        .port();
    let refuses = Peer::new(
        move |datagram, _| peer::has_all(datagram, closed),
        |_, stream| peer::not_found(stream),
    );
    peers.push(("refuses connections", refuses));
    // Its backlog is full: connections are neither accepted nor refused.
    peers.push(("does not accept", deaf_peer()));
    peers.push((
        "says nothing at all",
        Peer::new(|_, _| Vec::new(), |_, stream| peer::hang(stream)),
    ));
    peers.push((
        "answers datagrams with junk",
        Peer::new(
            |datagram, _| {
                vec![
                    Vec::new(),
                    vec![0xff; 1_400],
                    [&[1], &datagram[1..5], &[0xff; 40]].concat(),
                    [&[3], &datagram[1..5], &[0xff; 40]].concat(),
                    vec![3],
                ]
            },
            |_, stream| peer::hang(stream),
        ),
    ));
    peers
}

/// A peer whose listener has a full queue for as long as it lives.
fn deaf_peer() -> Peer {
    let socket =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("socket");
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .expect("bind");
    socket.listen(0).expect("listen");
    let listener = TcpListener::from(socket);
    let address = listener.local_addr().expect("address");
    let queued: Vec<_> = (0..3)
        .filter_map(|_| TcpStream::connect_timeout(&address, Duration::from_millis(50)).ok())
        .collect();
    // Kept by the closure: neither the listener nor what is queued goes before the peer.
    let kept = Arc::new((listener, queued));
    Peer::new(
        move |datagram, _| peer::has_all(datagram, kept.0.local_addr().expect("address").port()),
        |_, stream| peer::not_found(stream),
    )
}

/// Asks for narinfos as a Nix command does: on 25 connections at once.
fn command(address: SocketAddr, narinfos: usize) {
    std::thread::scope(|scope| {
        for worker in 0..25 {
            scope.spawn(move || {
                let mut connection = Connection::open(address).expect("connection");
                for at in (worker..narinfos).step_by(25) {
                    let path = format!("/{at:032}.narinfo");
                    let answer = connection.ask("GET", &path, &[]).expect("answer");
                    assert_eq!(answer.status, 404, "{path}");
                }
            });
        }
    });
}

#[test]
fn one_narinfo_loses_half_a_second_at_most_whatever_a_peer_does() {
    let _alone = alone();
    for (what, peer) in useless_peers() {
        let host = Host::new().with(AS_SHIPPED).with(&Peer::setting(&[&peer]));
        let mut daemon = host.start();
        for attempt in ["first", "second"] {
            let (answer, took) = timed(|| daemon.get(&format!("/{HASH}.narinfo")));
            assert_eq!(answer.status, 404, "a peer that {what}");
            assert!(
                took < BUDGET + SLACK,
                "{attempt} narinfo beside a peer that {what}: {took:?}"
            );
        }
        daemon.assert_well();
    }
}

#[test]
fn a_command_of_200_narinfos_loses_half_a_second_at_most_whatever_a_peer_does() {
    let _alone = alone();
    let nobody = Host::new();
    let alone = nobody.start();
    let ((), without) = timed(|| command(alone.address(), 200));
    for (what, peer) in useless_peers() {
        let host = Host::new().with(AS_SHIPPED).with(&Peer::setting(&[&peer]));
        let mut daemon = host.start();
        let ((), took) = timed(|| command(daemon.address(), 200));
        assert!(
            took < without + BUDGET + SLACK,
            "beside a peer that {what}: {took:?}, alone {without:?}"
        );
        daemon.assert_well();
    }
}

#[test]
fn a_command_beside_all_of_them_together_loses_little_more() {
    let _alone = alone();
    let peers = useless_peers();
    let peers: Vec<&Peer> = peers.iter().map(|(_, peer)| peer).collect();
    let host = Host::new().with(AS_SHIPPED).with(&Peer::setting(&peers));
    let mut daemon = host.start();
    let ((), took) = timed(|| command(daemon.address(), 200));
    // A tenth of a second for each that hangs before the next is asked beside it, and half a
    // second for one that is asked again.
    assert!(took < 4 * BUDGET + 2 * SLACK, "{took:?}");
    daemon.assert_well();
}

#[test]
fn a_nar_that_nobody_can_give_is_404() {
    let item = Item::signed("gone", 1_000);
    for (what, peer) in useless_peers() {
        let host = Host::new().with(AS_SHIPPED).with(&Peer::setting(&[&peer]));
        let mut daemon = host.start();
        assert_eq!(
            daemon.get(&format!("/v3/nar/{}", item.nar_name())).status,
            404,
            "a peer that {what}"
        );
        daemon.assert_well();
    }
}

/// Something that is broken, and what its repair is.
struct Breakage {
    what: &'static str,
    breaks: fn(&mut Host),
    repairs: fn(&mut Host),
    /// What the reason must say.
    names: &'static str,
    /// Root's daemon reads keys and settings before it gives up its rights.
    hidden_from_root: bool,
}

impl Breakage {
    const fn new(
        what: &'static str,
        names: &'static str,
        breaks: fn(&mut Host),
        repairs: fn(&mut Host),
    ) -> Self {
        Self {
            what,
            breaks,
            repairs,
            names,
            hidden_from_root: true,
        }
    }

    const fn rights(mut self) -> Self {
        self.hidden_from_root = false;
        self
    }
}

fn rewrite(host: &mut Host, text: &[u8]) {
    fs::write(host.config(), text).expect("peerix.toml");
}

fn mend(host: &mut Host) {
    host.file("key", key_text("good-1", 9), 0o444);
    host.restore();
}

fn set_mode(path: &std::path::Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("rights");
}

const BREAKAGES: [Breakage; 19] = [
    Breakage::new(
        "a config file that is not there",
        "peerix.toml",
        |it| fs::remove_file(it.config()).expect("remove"),
        mend,
    ),
    Breakage::new(
        "a config file that is no TOML",
        "line 1",
        |it| rewrite(it, b"this is not toml"),
        mend,
    ),
    Breakage::new(
        "an unknown key",
        "prot",
        |it| rewrite(it, b"prot = 1"),
        mend,
    ),
    Breakage::new(
        "a value of the wrong kind",
        "idle",
        |it| rewrite(it, b"idle = 5"),
        mend,
    ),
    Breakage::new(
        "a value out of bounds",
        "limits.connections",
        |it| rewrite(it, b"limits.connections = 1"),
        mend,
    ),
    Breakage::new(
        "a config file that is no text",
        "UTF-8",
        |it| rewrite(it, b"port\xff"),
        mend,
    ),
    Breakage::new(
        "a config file that is a directory",
        "a directory",
        |it| {
            fs::remove_file(it.config()).expect("remove");
            fs::create_dir(it.config()).expect("directory");
        },
        |it| {
            fs::remove_dir(it.config()).expect("remove");
            mend(it);
        },
    ),
    Breakage::new(
        "an endless config file",
        "larger",
        |it| rewrite(it, &[b'#'; 3 << 20]),
        mend,
    ),
    Breakage::new(
        "a config file without rights",
        "peerix.toml",
        |it| set_mode(&it.config(), 0),
        |it| {
            set_mode(&it.config(), 0o644);
        },
    )
    .rights(),
    Breakage::new(
        "a key file that is not there",
        "nokey",
        |it| it.set_file_setting("signing.key-file", "nokey"),
        mend,
    ),
    Breakage::new(
        "a key file that is no key",
        "not a secret key",
        |it| {
            it.file("key", "nonsense", 0o444);
            it.set_file_setting("signing.key-file", "key");
        },
        mend,
    ),
    Breakage::new(
        "a key file that is empty",
        "holds no key",
        |it| {
            it.file("key", "", 0o444);
            it.set_file_setting("signing.key-file", "key");
        },
        mend,
    ),
    Breakage::new(
        "a key whose halves differ",
        "halves",
        |it| {
            let mut key = key_text("odd-1", 3);
            key.replace_range(key.len() - 20..key.len() - 16, "AAAA");
            it.file("key", key, 0o444);
            it.set_file_setting("signing.key-file", "key");
        },
        mend,
    ),
    Breakage::new(
        "a nix.conf with a broken key",
        "nix.conf",
        |it| {
            fs::write(it.nix_conf(), "trusted-public-keys = nonsense").expect("nix.conf");
        },
        mend,
    ),
    Breakage::new(
        "a nix.conf that is a directory",
        "nix.conf",
        |it| {
            fs::remove_file(it.nix_conf()).expect("remove");
            fs::create_dir(it.nix_conf()).expect("directory");
        },
        |it| {
            fs::remove_dir(it.nix_conf()).expect("remove");
            mend(it);
        },
    ),
    Breakage::new(
        "a nix.conf without rights",
        "nix.conf",
        |it| set_mode(&it.nix_conf(), 0),
        |it| {
            set_mode(&it.nix_conf(), 0o644);
        },
    )
    .rights(),
    Breakage::new(
        "a database that is none",
        "db.sqlite",
        |it| {
            it.save_database();
            fs::write(it.database(), vec![b'x'; 8192]).expect("database");
        },
        |it| it.restore_database(),
    ),
    Breakage::new(
        "a database without the tables of Nix",
        "db.sqlite",
        |it| {
            it.save_database();
            fs::remove_file(it.database()).expect("remove");
            let other = rusqlite::Connection::open(it.database()).expect("database");
            other.execute_batch("create table T (x)").expect("table");
        },
        |it| it.restore_database(),
    ),
    Breakage::new(
        "a database without rights",
        "db.sqlite",
        |it| set_mode(&it.database(), 0),
        |it| {
            set_mode(&it.database(), 0o644);
        },
    ),
];

#[test]
fn activated_by_systemd_nothing_broken_ends_the_start_and_a_reload_repairs() {
    let _alone = alone();
    let item = Item::signed("held", 500);
    if is_root() {
        skip("at its start root's daemon may read settings and nix.conf whatever their rights");
    }
    for breakage in &BREAKAGES {
        let what = breakage.what;
        if is_root() && !breakage.hidden_from_root {
            continue;
        }
        let mut host = Host::new().holding(&[&item]);
        (breakage.breaks)(&mut host);
        let manager = Manager::new(host.dir());
        let sockets = Sockets::open();
        // The request is there before the daemon, as it is when systemd starts it.
        let mut waiting = Connection::open(sockets.address()).expect("connection");
        waiting
            .send(format!("GET /{HASH}.narinfo HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
            .expect("send");
        let mut daemon = host
            .launch()
            .env("NOTIFY_SOCKET", manager.path())
            .activate(&sockets);
        assert_eq!(waiting.answer(false).expect("answer").status, 404, "{what}");

        let ready = manager.until("READY=1");
        assert!(
            ready.contains("STATUS=degraded: ") && ready.contains(breakage.names),
            "{what}: {ready}"
        );
        daemon.log.line(&["error", breakage.names]);
        let paths = [
            format!("/{}.narinfo", item.hash()),
            format!("/local/{}.narinfo", item.hash()),
        ];
        for path in paths
            .iter()
            .chain([&format!("/v3/nar/{}", item.nar_name())])
        {
            let (answer, took) = timed(|| get(sockets.address(), path));
            assert_eq!(answer.status, 404, "{what}: {path}");
            assert!(
                took < Duration::from_millis(100),
                "{what}: {path} took {took:?}"
            );
        }
        let status = daemon.status();
        assert_eq!(status["state"], "degraded", "{what}");
        assert!(
            status["reason"]
                .as_str()
                .is_some_and(|why| why.contains(breakage.names)),
            "{what}: {status}"
        );

        (breakage.repairs)(&mut host);
        daemon.signal(Signal::SIGHUP);
        manager.until_message("ready and not degraded", |message| {
            message.contains("READY=1") && !message.contains("degraded")
        });
        for path in &paths {
            assert_eq!(
                get(sockets.address(), path).status,
                200,
                "{what}: {path} after the repair"
            );
        }
        daemon.assert_well();
        assert_eq!(daemon.stop().0, Some(0), "{what}");
    }
}

#[test]
fn a_reload_with_something_broken_keeps_the_old_settings_and_says_why() {
    let item = Item::signed("held", 500);
    for breakage in &BREAKAGES {
        let what = breakage.what;
        let mut host = Host::new().holding(&[&item]);
        let manager = Manager::new(host.dir());
        let sockets = Sockets::open();
        let mut daemon = host
            .launch()
            .env("NOTIFY_SOCKET", manager.path())
            .activate(&sockets);
        manager.until("READY=1");
        let path = format!("/local/{}.narinfo", item.hash());
        assert_eq!(daemon.get(&path).status, 200, "{what}");

        (breakage.breaks)(&mut host);
        daemon.signal(Signal::SIGHUP);
        manager.until("RELOADING=1");
        let ready = manager.until("READY=1");
        assert!(ready.contains(breakage.names), "{what}: {ready}");
        daemon.log.line(&["error", breakage.names]);
        assert_eq!(daemon.status()["state"], "ready", "{what}");
        assert!(matches!(daemon.get(&path).status, 200 | 404), "{what}");

        (breakage.repairs)(&mut host);
        daemon.signal(Signal::SIGHUP);
        manager.until_message("ready and in order", |message| {
            message.contains("READY=1") && !message.contains("old settings")
        });
        assert_eq!(daemon.get(&path).status, 200, "{what} after the repair");
        daemon.assert_well();
    }
}

#[test]
fn a_store_that_is_not_there_is_no_reason_for_anything_but_a_warning() {
    let item = Item::signed("theirs", 500);
    let peer = Peer::honest(&[&item]);
    let host = Host::new().with(AS_SHIPPED).with(&Peer::setting(&[&peer]));
    fs::remove_file(host.database()).expect("remove");
    let mut daemon = host.start();
    daemon.log.line(&["warn", "there is no Nix database"]);
    assert_eq!(daemon.get(&format!("/{}.narinfo", item.hash())).status, 200);
    assert!(daemon.get(&format!("/v3/nar/{}", item.nar_name())).body == item.nar);
    assert_eq!(
        daemon
            .get(&format!("/local/{}.narinfo", item.hash()))
            .status,
        404
    );
    daemon.assert_well();
}

#[test]
fn a_start_of_a_minute_of_datagram_junk_changes_nothing() {
    let item = Item::signed("held", 500);
    let host = Host::new().holding(&[&item]);
    let mut daemon = host.start();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("UDP");
    let before = daemon.log.text().len();
    for size in (0..64).chain([100, 1_000, 1_400, 9_000, 65_000]) {
        for kind in 0..=8 {
            let mut datagram = support::item::noise(size, size as u64 * 16 + kind);
            if let Some(first) = datagram.first_mut() {
                *first = if kind == 8 { 0xff } else { kind as u8 };
            }
            socket.send_to(&datagram, daemon.address()).expect("send");
        }
    }
    // It has got through all of them when it answers one after them.
    socket
        .set_read_timeout(Some(support::PATIENCE))
        .expect("timeout");
    let request = [&[0, 1, 2, 3, 4], item.hash().as_bytes()].concat();
    socket.send_to(&request, daemon.address()).expect("send");
    let answer = eventually("the answer", || {
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).ok()?;
        buffer[..length]
            .starts_with(&[1, 1, 2, 3, 4])
            .then(|| buffer[..length].to_vec())
    });
    assert_eq!(
        answer,
        peer::present(&[1, 2, 3, 4], daemon.address().port(), &item.hash())
    );
    // A stranger cannot fill the journal.
    assert_eq!(daemon.log.text().len(), before);
    daemon.assert_well();
}

#[test]
fn a_command_beside_a_good_holder_loses_half_a_second_at_most_whatever_another_peer_does() {
    let _alone = alone();
    let items: Vec<Item> = (0..100)
        .map(|at| Item::signed(&format!("item-{at}"), 100))
        .collect();
    let honest = Peer::honest(&items.iter().collect::<Vec<_>>());
    let hits = |address: SocketAddr| {
        std::thread::scope(|scope| {
            for worker in 0..10 {
                let items = &items;
                scope.spawn(move || {
                    let mut connection = Connection::open(address).expect("connection");
                    for item in items.iter().skip(worker).step_by(10) {
                        let path = format!("/{}.narinfo", item.hash());
                        assert_eq!(
                            connection.ask("GET", &path, &[]).expect("answer").status,
                            200,
                            "{path}"
                        );
                    }
                });
            }
        });
    };
    let host = Host::new().with(&Peer::setting(&[&honest]));
    let alone = host.start();
    let ((), without) = timed(|| hits(alone.address()));
    for (what, peer) in useless_peers() {
        let host = Host::new().with(&Peer::setting(&[&peer, &honest]));
        let mut daemon = host.start();
        let ((), took) = timed(|| hits(daemon.address()));
        assert!(
            took < without + BUDGET + SLACK,
            "beside a peer that {what}: {took:?}, alone {without:?}"
        );
        daemon.assert_well();
    }
}
