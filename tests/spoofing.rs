//! Forged datagrams: whoever sends them from whatever address, a miss costs no more than before.
//!
//! All of 127.0.0.0/8 is this machine, so that one test has as many sources as it likes.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use peerix::protocol::{BURST_WAIT, PathState};

use support::{
    daemon::{Daemon, Sockets},
    eventually,
    host::Host,
    http::Connection,
    item::Item,
    peer::{self, Peer},
    timed,
};

/// What is measured is what is shipped, but for the wait at the start of a burst.
const SETTINGS: &str = "discovery.timeout = \"50ms\"\ndiscovery.wake-timeout = \"300ms\"";

/// What a busy machine may add to a miss that waits for nobody.
const SLACK: Duration = Duration::from_millis(10);

/// Ghosts: as many as the table of peers holds, each in a network of its own, because one
/// network introduces only 8 a second.
const GHOSTS: u32 = 1_024;

fn ghost(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x7f0a_0001 + (number << 8))
}

/// Sends `datagram` from a port of `source` that the system chooses.
fn forge(source: Ipv4Addr, datagram: &[u8], to: SocketAddr) {
    forge_from(SocketAddr::from((source, 0)), datagram, to);
}

fn forge_from(source: SocketAddr, datagram: &[u8], to: SocketAddr) {
    let socket = UdpSocket::bind(source).expect("a loopback address");
    socket.send_to(datagram, to).expect("send");
}

/// An asker with one peer that answers at once, past the wait of its burst.
struct Lan {
    daemon: Daemon,
    misses: AtomicU32,
    _host: Host,
    _peer: Peer,
}

impl Lan {
    fn new() -> Self {
        Self::with(|_, _| {})
    }

    /// `overhear` gets what the peer gets, as everybody does who hears a broadcast, and the
    /// asker's address.
    fn with(overhear: impl Fn(&[u8], SocketAddr) + Send + Sync + 'static) -> Self {
        let asker = Arc::new(OnceLock::new());
        let peer = {
            let asker = Arc::clone(&asker);
            let held = Item::signed("held", 500).hash();
            Peer::new(
                move |datagram, port| {
                    let answer = peer::has(datagram, port, |hash| hash == held);
                    overhear(datagram, *asker.get().expect("the daemon runs"));
                    answer
                },
                |_, stream| peer::not_found(stream),
            )
        };
        let host = Host::new().with(SETTINGS).with(&Peer::setting(&[&peer]));
        // Its port is free on all other addresses of loopback.
        let sockets = Sockets::open();
        give_buffer(&sockets);
        asker.set(sockets.address()).expect("set once");
        let daemon = host.launch().activate(&sockets);
        let lan = Self {
            daemon,
            misses: AtomicU32::new(0),
            _host: host,
            _peer: peer,
        };
        // The first pays the wait of the burst.
        lan.misses_take(1);
        lan
    }

    fn at(&self) -> SocketAddr {
        self.daemon.address()
    }

    /// How long `count` misses take, one after the other.
    fn misses_take(&self, count: u32) -> Vec<Duration> {
        let mut connection = Connection::open(self.at()).expect("connection");
        let ask = |_| {
            let number = self.misses.fetch_add(1, SeqCst);
            let path = format!("/{number:032}.narinfo");
            let (answer, took) = timed(|| connection.ask("GET", &path, &[]).expect("answer"));
            assert_eq!(answer.status, 404);
            took
        };
        (0..count).map(ask).collect()
    }

    fn median_miss(&self) -> Duration {
        median(self.misses_take(101))
    }

    fn peers(&self) -> usize {
        self.daemon.status()["peers"]
            .as_array()
            .expect("peers")
            .len()
    }

    fn received(&self) -> u64 {
        let received = &self.daemon.status()["discovery"]["datagrams-received"];
        received.as_u64().expect("a number")
    }

    /// `work` beside `flood`, which is called 5,000 times a second and has arrived when work
    /// begins. What a machine can take at all is another question.
    fn beside<T>(&self, flood: impl Fn(u32) + Sync, work: impl FnOnce() -> T) -> T {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for turn in (0..).take_while(|_| !stop.load(SeqCst)) {
                    flood(turn);
                    if turn % 25 == 0 {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            });
            let _end = End(&stop);
            let before = self.received();
            eventually("the flood arrives", || {
                (self.received() > before + 2_000).then_some(())
            });
            work()
        })
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Says a figure; seen with `--nocapture`.
fn report(what: &str, quiet: Duration, now: Duration) {
    println!("{what}: a miss takes {now:?}, before {quiet:?}");
}

#[test]
fn a_flood_of_answers_that_nobody_asked_for_costs_a_miss_nothing() {
    let lan = Lan::new();
    let quiet = lan.median_miss();
    let flood = |turn: u32| {
        let id = turn.wrapping_mul(0x9e37_79b9);
        let answer = peer::answer(id, turn.into(), 80, &[PathState::Present]);
        forge(ghost(turn % GHOSTS), &answer, lan.at());
    };
    let during = lan.beside(flood, || lan.median_miss());
    let after = lan.median_miss();
    report("during forged answers", quiet, during);
    report("after forged answers", quiet, after);
    assert!(during < quiet + SLACK, "{during:?}, quiet {quiet:?}");
    assert!(after < quiet + SLACK, "{after:?}, quiet {quiet:?}");
    assert_eq!(lan.peers(), 1, "a ghost got into the table");
}

#[test]
fn asks_from_forged_addresses_cost_a_miss_nothing() {
    let lan = Lan::new();
    let quiet = lan.median_miss();
    let flood = |turn: u32| {
        let hash = format!("{turn:032}");
        let request = [&[0], &turn.to_be_bytes()[..], hash.as_bytes()].concat();
        let source = ghost(turn % (4 * GHOSTS));
        forge(source, &request, lan.at());
        // From our port, so that whoever asks might be a peer.
        let source = SocketAddr::from((source, lan.at().port()));
        forge_from(source, &peer::ask(turn, turn.into(), 80, &[]), lan.at());
    };
    let during = lan.beside(flood, || lan.median_miss());
    let after = lan.median_miss();
    report("during forged asks", quiet, during);
    report("after forged asks", quiet, after);
    assert!(during < quiet + SLACK, "{during:?}, quiet {quiet:?}");
    assert!(after < quiet + SLACK, "{after:?}, quiet {quiet:?}");
    assert_eq!(lan.peers(), 1, "who only asks is not in the table");
}

/// As the socket unit does; the system may allow less.
fn give_buffer(sockets: &Sockets) {
    let buffered = socket2::SockRef::from(&sockets.udp).set_recv_buffer_size(4 << 20);
    buffered.expect("an option");
}

/// A machine that hears our first ask answers it as 1,024 machines that are never heard again.
fn haunted() -> Lan {
    let is_first = AtomicBool::new(true);
    Lan::with(move |datagram, asker| {
        if datagram[0] != 2 || !is_first.swap(false, SeqCst) {
            return;
        }
        let id = u32::from_be_bytes(datagram[1..5].try_into().expect("four bytes"));
        let states = vec![PathState::Absent; peer::asked_hashes(datagram).len()];
        for number in 0..GHOSTS {
            let answer = peer::answer(id, number.into(), 80, &states);
            forge_from(
                SocketAddr::from((ghost(number), asker.port())),
                &answer,
                asker,
            );
        }
    })
}

#[test]
fn a_table_full_of_ghosts_costs_what_a_burst_may_wait_and_then_nothing() {
    let quiet = Lan::new().median_miss();
    let lan = haunted();
    // Of those some are lost where the buffer of the socket is small.
    assert!(lan.peers() > 500, "{} peers", lan.peers());
    let first = lan.misses_take(12);
    let after = lan.median_miss();
    let total: Duration = first.iter().sum();
    report("with 1,024 ghosts, the first twelve", quiet, total / 12);
    report("with 1,024 ghosts", quiet, after);
    assert!(total < BURST_WAIT + (quiet + SLACK) * 12, "{first:?}");
    assert!(after < quiet + SLACK, "{after:?}, quiet {quiet:?}");
}

#[test]
fn ghosts_that_ask_again_and_again_are_not_waited_for_again() {
    let quiet = Lan::new().median_miss();
    let lan = haunted();
    // Of those some are lost where the buffer of the socket is small.
    assert!(lan.peers() > 500, "{} peers", lan.peers());
    lan.misses_take(12);
    let flood = |turn: u32| {
        let source = SocketAddr::from((ghost(turn % GHOSTS), lan.at().port()));
        let ask = peer::ask(turn, turn.into(), 80, &[]);
        forge_from(source, &ask, lan.at());
    };
    let during = lan.beside(flood, || lan.median_miss());
    let after = lan.misses_take(12);
    report("while ghosts ask", quiet, during);
    report("when they have stopped", quiet, median(after.clone()));
    assert!(during < quiet + SLACK, "{during:?}, quiet {quiet:?}");
}

#[test]
fn one_forged_ask_from_our_port_costs_a_miss_nothing() {
    let lan = Lan::new();
    let quiet = lan.median_miss();
    let hash = "0".repeat(32);
    let request = [&[0, 1, 2, 3, 4][..], hash.as_bytes()].concat();
    let source = SocketAddr::from((ghost(1), lan.at().port()));
    let before = lan.received();
    forge_from(source, &request, lan.at());
    forge_from(source, &peer::ask(1, 1, 80, &[&hash]), lan.at());
    eventually("both have come", || {
        (lan.received() >= before + 2).then_some(())
    });
    let after = lan.median_miss();
    report("after one ask from our port", quiet, after);
    assert!(after < quiet + SLACK, "{after:?}, quiet {quiet:?}");
}

/// Ends a flood when dropped, by a panic too.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Items, a daemon that has them, and one that asks it; both know each other.
struct Pair {
    items: Vec<Item>,
    holder: Daemon,
    asker: Daemon,
    _hosts: [Host; 2],
}

impl Pair {
    fn new() -> Self {
        let items: Vec<Item> = (0..100)
            .map(|at| Item::signed(&format!("item-{at}"), 100))
            .collect();
        let sockets = [1, 2].map(|last| Sockets::open_at(Ipv4Addr::new(127, 0, 0, last)));
        give_buffer(&sockets[0]);
        let knows = |other: usize| {
            let peer = sockets[other].address().to_string();
            Host::new()
                .with(SETTINGS)
                .with(&format!("discovery.peers = [{peer:?}]"))
        };
        let hosts = [
            knows(1).holding(&items.iter().collect::<Vec<_>>()),
            knows(0),
        ];
        let asker = hosts[1].launch().activate(&sockets[1]);
        let holder = hosts[0].launch().activate(&sockets[0]);
        // The holder has heard from the asker, which so is a live peer to it.
        let missing = format!("/{}.narinfo", "1".repeat(32));
        eventually("the asker is live", || {
            assert_eq!(holder.get(&missing).status, 404);
            (holder.status()["peers"][0]["live"] == true).then_some(())
        });
        Self {
            items,
            holder,
            asker,
            _hosts: hosts,
        }
    }

    /// All that the asker wants is found beside `flood`, which is called 10,000 times a second.
    fn assert_found_beside(&self, flood: impl Fn(u32) + Sync) {
        let stop = AtomicBool::new(false);
        let received = || {
            let received = &self.holder.status()["discovery"]["datagrams-received"];
            received.as_u64().expect("a number")
        };
        let before = received();
        let (took, arrived) = std::thread::scope(|scope| {
            scope.spawn(|| {
                let (began, mut turn) = (Instant::now(), 0);
                while !stop.load(SeqCst) {
                    while f64::from(turn) < began.elapsed().as_secs_f64() * 10_000.0 {
                        flood(turn);
                        turn += 1;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let _end = End(&stop);
            eventually("the flood arrives", || {
                (received() > before + 1_000).then_some(())
            });
            let (before, begun) = (received(), Instant::now());
            let mut connection = Connection::open(self.asker.address()).expect("connection");
            for item in &self.items {
                let path = format!("/{}.narinfo", item.hash());
                let answer = connection.ask("GET", &path, &[]).expect("answer");
                let status = self.holder.status();
                assert_eq!(answer.status, 200, "{path}: {:#}", status["discovery"]);
            }
            let took = begun.elapsed();
            (took, received() - before)
        });
        println!(
            "{} found in {took:?} beside {arrived} forged datagrams",
            self.items.len()
        );
        let peer = &self.asker.status()["peers"][0];
        assert_eq!(peer["present"], self.items.len(), "{peer:#}");
    }
}

#[test]
fn ten_thousand_forged_asks_a_second_in_its_name_cost_an_asker_no_answer() {
    let pair = Pair::new();
    let (at, name) = (pair.holder.address(), pair.asker.address().ip());
    let socket = UdpSocket::bind((name, 0)).expect("the asker's address");
    let hash = "2".repeat(32);
    pair.assert_found_beside(|turn| {
        let ask = peer::ask(turn, 7, 80, &[&hash]);
        socket.send_to(&ask, at).expect("send");
    });
}

#[test]
fn ten_thousand_full_asks_a_second_in_other_names_cost_an_asker_no_answer() {
    let pair = Pair::new();
    let at = pair.holder.address();
    let sockets: Vec<_> = (0..64)
        .map(|number| UdpSocket::bind((ghost(number), 0)).expect("a loopback address"))
        .collect();
    let hashes: Vec<String> = (0..56).map(|number| format!("{number:032}")).collect();
    let hashes: Vec<&str> = hashes.iter().map(String::as_str).collect();
    let ask = peer::ask(1, 7, 80, &hashes);
    pair.assert_found_beside(|turn| {
        sockets[turn as usize % sockets.len()]
            .send_to(&ask, at)
            .expect("send");
    });
}
