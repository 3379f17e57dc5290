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
    time::Duration,
};

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

/// What a miss costs if it waits for somebody who does not answer.
const TIMEOUT: Duration = Duration::from_millis(50);

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

fn about(kind: u8, id: &[u8], instance: u32) -> Vec<u8> {
    let rest = [
        &u64::from(instance).to_be_bytes()[..],
        &1_u16.to_be_bytes(),
        &80_u16.to_be_bytes(),
        &7_u64.to_be_bytes(),
    ];
    [&[kind], id, &rest.concat()].concat()
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
        Self::with(|_, _, _| {})
    }

    /// `overhear` gets what the peer gets, as everybody does who hears a broadcast, and the
    /// asker's address.
    fn with(overhear: impl Fn(u8, &[u8], SocketAddr) + Send + Sync + 'static) -> Self {
        let asker = Arc::new(OnceLock::new());
        let peer = {
            let asker = Arc::clone(&asker);
            let held = Item::signed("held", 500).hash();
            Peer::new(
                move |datagram, port| {
                    let answer = peer::has(datagram, port, |hash| hash == held);
                    overhear(
                        datagram[0],
                        &datagram[1..5],
                        *asker.get().expect("the daemon runs"),
                    );
                    answer
                },
                |_, stream| peer::not_found(stream),
            )
        };
        let host = Host::new().with(SETTINGS).with(&Peer::setting(&[&peer]));
        // Its port is free on all other addresses of loopback.
        let sockets = Sockets::open();
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
            let before = self.received();
            eventually("the flood arrives", || {
                (self.received() > before + 2_000).then_some(())
            });
            let done = work();
            stop.store(true, SeqCst);
            done
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
fn a_flood_of_here_that_nobody_asked_for_costs_a_miss_nothing() {
    let lan = Lan::new();
    let quiet = lan.median_miss();
    let flood = |turn: u32| {
        let id = turn.wrapping_mul(0x9e37_79b9).to_be_bytes();
        forge(ghost(turn % GHOSTS), &about(4, &id, turn), lan.at());
    };
    let during = lan.beside(flood, || lan.median_miss());
    let after = lan.median_miss();
    report("during forged heres", quiet, during);
    report("after forged heres", quiet, after);
    assert!(during < quiet + SLACK, "{during:?}, quiet {quiet:?}");
    assert!(after < quiet + SLACK, "{after:?}, quiet {quiet:?}");
    assert_eq!(lan.peers(), 1, "a ghost got into the table");
}

#[test]
fn questions_and_greetings_from_forged_addresses_cost_a_miss_nothing() {
    let lan = Lan::new();
    let quiet = lan.median_miss();
    let flood = |turn: u32| {
        let id = turn.to_be_bytes();
        let request = [&[0], &id[..], format!("{turn:032}").as_bytes()].concat();
        let source = ghost(turn % (4 * GHOSTS));
        forge(source, &request, lan.at());
        forge(source, &about(3, &id, turn), lan.at());
    };
    let during = lan.beside(flood, || lan.median_miss());
    let after = lan.median_miss();
    report("during forged hellos and requests", quiet, during);
    report("after forged hellos and requests", quiet, after);
    assert!(during < quiet + SLACK, "{during:?}, quiet {quiet:?}");
    assert!(after < quiet + SLACK, "{after:?}, quiet {quiet:?}");
    let known = lan.peers();
    assert!(known > 100 && known <= 1_024, "{known} peers");
}

/// A machine that hears our hello answers it as 1,024 machines that are never heard again.
fn haunted() -> Lan {
    Lan::with(move |heard, id, asker| {
        if heard == 3 {
            for number in 0..GHOSTS {
                let datagram = about(4, id, number);
                forge_from(SocketAddr::from((ghost(number), 40_000)), &datagram, asker);
                // The asker's socket holds some 250 of them.
                if number % 32 == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
    })
}

#[test]
fn a_table_full_of_ghosts_costs_four_timeouts_and_then_nothing() {
    let quiet = Lan::new().median_miss();
    let lan = haunted();
    eventually("a table full of ghosts", || {
        (lan.peers() > 1_000).then_some(())
    });
    let first = lan.misses_take(12);
    let after = lan.median_miss();
    let total: Duration = first.iter().sum();
    report("with 1,024 ghosts, the first twelve", quiet, total / 12);
    report("with 1,024 ghosts", quiet, after);
    assert!(
        first[0] > TIMEOUT / 2,
        "the ghosts were not waited for, so nothing was tested: {first:?}"
    );
    assert!(total < TIMEOUT * 4 + (quiet + SLACK) * 12, "{first:?}");
    assert!(after < quiet + SLACK, "{after:?}, quiet {quiet:?}");
}

#[test]
fn ghosts_that_greet_again_and_again_are_not_waited_for_again() {
    let quiet = Lan::new().median_miss();
    let lan = haunted();
    eventually("a table full of ghosts", || {
        (lan.peers() > 1_000).then_some(())
    });
    lan.misses_take(12);
    let flood = |turn: u32| {
        let source = SocketAddr::from((ghost(turn % GHOSTS), 40_000));
        forge_from(source, &about(3, &turn.to_be_bytes(), turn), lan.at());
    };
    let during = lan.beside(flood, || lan.median_miss());
    let after = lan.misses_take(12);
    report("while ghosts greet", quiet, during);
    report("when they have stopped", quiet, median(after.clone()));
    assert!(during < quiet + SLACK, "{during:?}, quiet {quiet:?}");
}

#[test]
fn one_forged_question_from_our_port_costs_a_miss_nothing() {
    let lan = Lan::new();
    let quiet = lan.median_miss();
    let request = [&[0, 1, 2, 3, 4][..], "0".repeat(32).as_bytes()].concat();
    let source = SocketAddr::from((ghost(1), lan.at().port()));
    forge_from(source, &request, lan.at());
    eventually("it is known", || (lan.peers() == 2).then_some(()));
    let after = lan.median_miss();
    report("after one request from our port", quiet, after);
    assert!(after < quiet + SLACK, "{after:?}, quiet {quiet:?}");
}
