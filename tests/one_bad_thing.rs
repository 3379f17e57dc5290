//! Promise 9: one bad thing costs that one thing. What a peer does wrong counts against it only
//! where it matters, and never hides what it has.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use support::{
    daemon::Daemon,
    eventually,
    host::Host,
    http::Connection,
    item::Item,
    peer::{self, Asked, Peer, Then},
    timed,
};

/// What the machine that runs the tests may take for itself, beside a full test run.
const SLACK: Duration = Duration::from_millis(700);

/// Narinfos that Nix asks for at the same time.
const CONNECTIONS: usize = 25;

type Served = std::io::Result<Then>;

fn items(name: &str, count: usize) -> Vec<Item> {
    (0..count)
        .map(|number| Item::signed(&format!("{name}-{number}"), 300))
        .collect()
}

fn narinfo_path(item: &Item) -> String {
    format!("/{}.narinfo", item.hash())
}

fn nar_path(item: &Item) -> String {
    format!("/v3/nar/{}", item.nar_name())
}

/// Asks for these as a Nix command does, on so many connections at once; how many were 200.
fn ask_all(address: SocketAddr, paths: &[String], connections: usize) -> usize {
    let found = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for worker in 0..connections {
            let found = &found;
            scope.spawn(move || {
                let mut connection = Connection::open(address).expect("connection");
                for path in paths.iter().skip(worker).step_by(connections) {
                    let answer = connection.ask("GET", path, &[]).expect("answer");
                    assert!(
                        matches!(answer.status, 200 | 404),
                        "{path}: {}",
                        answer.status
                    );
                    found.fetch_add(usize::from(answer.status == 200), SeqCst);
                }
            });
        }
    });
    found.into_inner()
}

fn narinfos(daemon: &Daemon, items: &[Item]) -> usize {
    let paths: Vec<String> = items.iter().map(narinfo_path).collect();
    ask_all(daemon.address(), &paths, CONNECTIONS)
}

/// One after the other, as the narinfos of a chain of references.
fn chain(daemon: &Daemon, items: &[Item]) -> usize {
    let paths: Vec<String> = items.iter().map(narinfo_path).collect();
    ask_all(daemon.address(), &paths, 1)
}

/// A peer that says it has everything, and answers for one path as `bad` does.
fn good_but_for(items: &[Item], one: &Item, bad: fn(&Item, &mut TcpStream) -> Served) -> Peer {
    let (items, one) = (items.to_vec(), one.clone());
    Peer::holding_all(move |asked, stream| {
        if asked.path == format!("/local/{}.narinfo", one.hash()) {
            bad(&one, stream)
        } else {
            peer::serve_honestly(&items, asked, stream)
        }
    })
}

#[test]
fn one_path_that_is_refused_costs_that_path_alone() {
    let kinds: [(&str, fn(&Item, &mut TcpStream) -> Served); 6] = [
        ("an untrusted signature", |item, stream| {
            let mut unsigned = item.clone();
            unsigned.info.signatures.clear();
            peer::ok(stream, unsigned.peer_narinfo().as_bytes())
        }),
        ("404 after a yes", |_, stream| peer::not_found(stream)),
        ("the narinfo of another path", |_, stream| {
            peer::ok(stream, Item::signed("other", 10).peer_narinfo().as_bytes())
        }),
        ("a narinfo that is too large", |_, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50000000\r\n\r\n")?;
            Ok(Then::Close)
        }),
        ("no narinfo", |_, stream| peer::ok(stream, b"<html></html>")),
        ("503", |_, stream| {
            stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")?;
            Ok(Then::KeepOpen)
        }),
    ];
    for (what, bad) in kinds {
        let good = items("good", 100);
        let one = Item::signed("bad", 300);
        let holder = good_but_for(&good, &one, bad);
        let host = Host::new().with(&Peer::setting(&[&holder]));
        let daemon = host.start();
        let mut asked: Vec<String> = good.iter().map(narinfo_path).collect();
        for at in [0, 30, 60] {
            asked.insert(at, narinfo_path(&one));
        }
        assert_eq!(
            ask_all(daemon.address(), &asked, CONNECTIONS),
            100,
            "{what}"
        );
    }
}

#[test]
fn a_path_that_was_refused_is_found_as_soon_as_it_is_signed() {
    let item = Item::signed("late", 300);
    let is_signed = Arc::new(AtomicBool::new(false));
    let holder = {
        let (item, is_signed) = (item.clone(), Arc::clone(&is_signed));
        Peer::holding_all(move |_, stream| {
            let mut item = item.clone();
            if !is_signed.load(SeqCst) {
                item.info.signatures.clear();
            }
            peer::ok(stream, item.peer_narinfo().as_bytes())
        })
    };
    let host = Host::new().with(&Peer::setting(&[&holder]));
    let daemon = host.start();
    for _ in 0..3 {
        assert_eq!(daemon.get(&narinfo_path(&item)).status, 404);
    }
    is_signed.store(true, SeqCst);
    assert_eq!(daemon.get(&narinfo_path(&item)).status, 200);
}

/// How a peer fails at NARs.
type FailNar = fn(&Asked, &[u8], &mut TcpStream) -> Served;

fn status(line: &str, stream: &mut TcpStream) -> Served {
    write!(stream, "HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n")?;
    Ok(Then::KeepOpen)
}

const FAILING_NARS: [(&str, FailNar); 8] = [
    ("404", |_, _, stream| status("404 Not Found", stream)),
    ("307", |_, _, stream| {
        status(
            "307 Temporary Redirect\r\nLocation: http://192.0.2.1/",
            stream,
        )
    }),
    ("403", |_, _, stream| status("403 Forbidden", stream)),
    ("no headers", |_, _, stream| peer::hang(stream)),
    ("no byte after the headers", |asked, nar, stream| {
        let (head, _) = peer::part_of(asked, nar);
        stream.write_all(head.as_bytes())?;
        peer::hang(stream)
    }),
    ("a reset after the headers", |asked, nar, stream| {
        let (head, _) = peer::part_of(asked, nar);
        stream.write_all(head.as_bytes())?;
        Ok(Then::Reset)
    }),
    ("an empty body", |_, _, stream| status("200 OK", stream)),
    ("a stall in the middle", |asked, nar, stream| {
        let (head, bytes) = peer::part_of(asked, nar);
        stream.write_all(head.as_bytes())?;
        stream.write_all(&bytes[..bytes.len() / 2])?;
        peer::hang(stream)
    }),
];

/// A peer with these paths that gives their narinfos, and NARs only once it is `repaired`.
fn narinfos_only(items: &[Item], fail: FailNar, repaired: &Arc<AtomicBool>) -> Peer {
    let (items, repaired) = (items.to_vec(), Arc::clone(repaired));
    Peer::holding_all(move |asked, stream| {
        let is_nar = |item: &&Item| asked.path == format!("/nar/{}", item.nar_name());
        // Head and body leave apart.
        stream.set_nodelay(true)?;
        match items.iter().find(is_nar) {
            Some(item) if !repaired.load(SeqCst) => fail(asked, &item.nar, stream),
            _ => peer::serve_honestly(&items, asked, stream),
        }
    })
}

#[test]
fn a_peer_that_gives_narinfos_and_no_nars_is_not_offered_for_long() {
    for (what, fail) in FAILING_NARS {
        let items = items("only", 60);
        let repaired = Arc::new(AtomicBool::new(false));
        let holder = narinfos_only(&items, fail, &repaired);
        let host = Host::new().with(&Peer::setting(&[&holder]));
        let daemon = host.start();
        // What Nix was told before it asked for a first NAR it asks for in any case.
        assert_eq!(narinfos(&daemon, &items[..30]), 30, "{what}");
        let nars: Vec<String> = items[..30].iter().map(nar_path).collect();
        let (found, took) = timed(|| ask_all(daemon.address(), &nars, 16));
        assert_eq!(found, 0, "{what}");
        let stalls = matches!(what, "no headers" | "no byte after the headers")
            || what == "a stall in the middle";
        let most = Duration::from_millis(if stalls { 7_500 } else { 1_000 });
        assert!(took < most + SLACK, "{what}: {took:?}");
        let (found, took) = timed(|| chain(&daemon, &items[30..]));
        assert!(
            found <= 1 + took.as_secs() as usize,
            "{what}: {found} offered"
        );
        assert!(
            took < Duration::from_millis(500) + SLACK,
            "{what}: {took:?}"
        );
        repaired.store(true, SeqCst);
        let mut offered = items[30..].iter().cycle();
        let item = eventually("it is offered again", || {
            let item = offered.next().expect("endless");
            (daemon.get(&narinfo_path(item)).status == 200).then_some(item)
        });
        let answer = daemon.get(&nar_path(item));
        assert_eq!(
            (answer.status, answer.body == item.nar),
            (200, true),
            "{what}"
        );
        // One NAR is enough. Probes would let one path in a second through.
        assert!(narinfos(&daemon, &items) > 30, "{what}");
    }
}

#[test]
fn beside_a_good_holder_one_without_nars_makes_no_difference() {
    for (what, fail) in FAILING_NARS {
        let items = items("both", 60);
        let bad = narinfos_only(&items, fail, &Arc::default());
        let all: Vec<&Item> = items.iter().collect();
        let good = Peer::honest(&all);
        let host = Host::new().with(&Peer::setting(&[&bad, &good]));
        let daemon = host.start();
        assert_eq!(narinfos(&daemon, &items[..30]), 30, "{what}");
        let nars: Vec<String> = items[..30].iter().map(nar_path).collect();
        assert_eq!(ask_all(daemon.address(), &nars, 16), 30, "{what}");
        assert_eq!(chain(&daemon, &items[30..]), 30, "{what}");
        let nars: Vec<String> = items[30..].iter().map(nar_path).collect();
        let (found, took) = timed(|| ask_all(daemon.address(), &nars, 16));
        assert_eq!(found, 30, "{what}");
        // Both lots of 16 may have met it once.
        assert!(
            took < Duration::from_millis(2_500) + SLACK,
            "{what}: {took:?}"
        );
    }
}

#[test]
fn a_peer_that_takes_connections_and_answers_nothing_costs_a_chain_half_a_second() {
    let items = items("chain", 60);
    let silent = Peer::holding_all(|_, stream| peer::hang(stream));
    let host = Host::new().with(&Peer::setting(&[&silent]));
    let daemon = host.start();
    let (found, took) = timed(|| chain(&daemon, &items));
    assert_eq!(found, 0);
    assert!(took < Duration::from_millis(500) + SLACK, "{took:?}");
}

/// A peer over UDP that says it has everything, at the HTTP port of another one.
fn pointing_to(port: u16) -> Peer {
    Peer::new(
        move |datagram, _| peer::has_all(datagram, port),
        |_, stream| peer::not_found(stream),
    )
}

#[test]
fn a_peer_whose_port_opens_is_found_from_a_fifth_of_a_second_later() {
    let items = items("back", 100);
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listener");
    let address = closed.local_addr().expect("address");
    drop(closed);
    let holder = pointing_to(address.port());
    let host = Host::new().with(&Peer::setting(&[&holder]));
    let daemon = host.start();
    let (found, took) = timed(|| chain(&daemon, &items[..60]));
    assert_eq!(found, 0);
    assert!(took < Duration::from_millis(500) + SLACK, "{took:?}");
    std::thread::sleep(Duration::from_secs(2));
    let listener = TcpListener::bind(address).expect("the same port");
    let served = items.clone();
    let _back = Peer::on(
        listener,
        std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("UDP"),
        Arc::new(|_, _| Vec::new()),
        Arc::new(move |asked, stream| peer::serve_honestly(&served, asked, stream)),
    );
    // This is the promise, and no wait for luck.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(narinfos(&daemon, &items), 100);
}

#[test]
fn a_connection_that_hangs_costs_a_tenth_of_a_second_once() {
    let items = items("hang", 100);
    let served = items.clone();
    // The first connection of all leads nowhere, as one whose SYN was lost.
    let first: Mutex<Option<SocketAddr>> = Mutex::new(None);
    let holder = Peer::holding_all(move |asked, stream| {
        let from = stream.peer_addr()?;
        let first = *first.lock().expect("first").get_or_insert(from);
        if first == from {
            return peer::hang(stream);
        }
        peer::serve_honestly(&served, asked, stream)
    });
    let host = Host::new().with(&Peer::setting(&[&holder]));
    let daemon = host.start();
    let (found, took) = timed(|| chain(&daemon, &items[..1]));
    assert_eq!(found, 1);
    assert!(took < Duration::from_millis(300) + SLACK, "{took:?}");
    assert_eq!(narinfos(&daemon, &items), 100);
}
