//! A simulated LAN: the state machines of many hosts on a virtual clock, with loss, delay,
//! duplicates, reordering and hosts that sleep. The same seed gives the same run.

#![expect(clippy::expect_used, reason = "the helpers of tests are tests, too")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use peerix::{
    format::StorePathHash,
    protocol::{
        Action, Datagram, Discovery, End, Origin, Outcome, Packet, Settings,
        discovery::{Kind, Saved},
    },
};
use proptest::prelude::*;

const PORT: u16 = 12_304;
const TIMEOUT: Duration = Duration::from_millis(50);
const WAKE: Duration = Duration::from_millis(500);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// All in one /24, as at home.
fn address(host: usize) -> SocketAddr {
    SocketAddr::new([10, 0, 0, 1 + host as u8].into(), PORT)
}

fn hash(number: u32) -> StorePathHash {
    StorePathHash::parse(format!("{number:032}").as_bytes()).expect("a hash")
}

/// A small generator (SplitMix64): the simulation draws everything from one.
#[derive(Debug)]
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// What the network does to datagrams.
#[derive(Debug, Clone, Copy)]
struct Weather {
    loss: u64,
    duplicates: u64,
    /// Longest delay; each datagram draws its own, so they overtake each other.
    delay: Duration,
}

const FAIR: Weather = Weather {
    loss: 0,
    duplicates: 0,
    delay: Duration::from_micros(900),
};

#[derive(Debug)]
enum Speech {
    New(Box<Discovery>),
    /// The first peerix: answers what it has, ignores all but requests.
    Old,
    /// Its socket is open, and the first datagram starts the daemon.
    Asleep {
        saved: Saved,
        boot: Duration,
    },
}

#[derive(Debug)]
struct Host {
    speech: Speech,
    holds: BTreeSet<u32>,
    /// What came in before the daemon was up.
    queue: Vec<(SocketAddr, Packet)>,
}

#[derive(Debug)]
enum Event {
    Deliver {
        from: usize,
        to: usize,
        packet: Packet,
    },
    Booted(usize),
    Clock(usize),
}

#[derive(Debug, Clone)]
struct Found {
    began: Instant,
    ended: Option<(Instant, Outcome)>,
    holders: BTreeSet<SocketAddr>,
}

struct Lan {
    now: Instant,
    start: Instant,
    draws: Draws,
    weather: Weather,
    hosts: Vec<Host>,
    events: BTreeMap<(Instant, u64), Event>,
    sequence: u64,
    lookups: BTreeMap<(usize, u32), Found>,
    /// Type bytes of what each host sent, broadcasts once.
    sent: Vec<BTreeMap<(u8, bool), usize>>,
    /// Type bytes of what reached each host.
    received: Vec<BTreeMap<u8, usize>>,
}

impl Lan {
    fn new(seed: u64, weather: Weather) -> Self {
        let now = Instant::now();
        Self {
            now,
            start: now,
            draws: Draws(seed),
            weather,
            hosts: Vec::new(),
            events: BTreeMap::new(),
            sequence: 0,
            lookups: BTreeMap::new(),
            sent: Vec::new(),
            received: Vec::new(),
        }
    }

    fn settings() -> Settings {
        Settings {
            timeout: TIMEOUT,
            wake_timeout: WAKE,
            port: PORT,
            http_port: PORT,
            static_peers: Vec::new(),
            rate: 4_000,
            burst: 8_000,
        }
    }

    fn add(&mut self, speech: Speech, holds: impl IntoIterator<Item = u32>) -> usize {
        self.hosts.push(Host {
            speech,
            holds: holds.into_iter().collect(),
            queue: Vec::new(),
        });
        self.sent.push(BTreeMap::new());
        self.received.push(BTreeMap::new());
        self.hosts.len() - 1
    }

    fn add_new(&mut self, holds: impl IntoIterator<Item = u32>) -> usize {
        let mut core = Discovery::new(Self::settings(), self.draws.next());
        core.set_networks(true, true);
        self.add(Speech::New(Box::new(core)), holds)
    }

    fn add_asleep(&mut self, boot: Duration, holds: impl IntoIterator<Item = u32>) -> usize {
        let instance = self.draws.next();
        let saved = Saved {
            instance,
            peers: Vec::new(),
        };
        self.add(Speech::Asleep { saved, boot }, holds)
    }

    fn core(&mut self, host: usize) -> &mut Discovery {
        match &mut self.hosts[host].speech {
            Speech::New(core) => core,
            other => panic!("host {host} has no daemon: {other:?}"),
        }
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now + after, self.sequence), event);
    }

    fn lookup(&mut self, host: usize, number: u32) -> u32 {
        let id = self.draws.next() as u32;
        let mut actions = Vec::new();
        let now = self.now;
        let begun = self.core(host).lookup(now, id, hash(number), &mut actions);
        begun.expect("a fresh id");
        let found = Found {
            began: now,
            ended: None,
            holders: BTreeSet::new(),
        };
        self.lookups.insert((host, id), found);
        self.perform(host, actions);
        id
    }

    /// Lets time pass, event by event.
    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(entry) = self
            .events
            .first_entry()
            .filter(|entry| entry.key().0 <= until)
        {
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            match event {
                Event::Deliver { from, to, packet } => self.deliver(address(from), to, packet),
                Event::Booted(host) => self.boot(host),
                Event::Clock(host) => {
                    let mut actions = Vec::new();
                    self.core(host).expire(at, &mut actions);
                    self.perform(host, actions);
                }
            }
        }
        self.now = until;
    }

    fn deliver(&mut self, from: SocketAddr, to: usize, packet: Packet) {
        let host = &mut self.hosts[to];
        match &mut host.speech {
            Speech::New(core) => {
                *self.received[to].entry(packet[0]).or_default() += 1;
                let origin = Origin {
                    is_own: from == address(to),
                    is_allowed: true,
                };
                let mut actions = Vec::new();
                core.receive(self.now, from, &packet, origin, &mut actions);
                self.perform(to, actions);
            }
            Speech::Old => {
                if let Ok(Datagram::Request { id, hash: asked }) = Datagram::parse(&packet)
                    && from != address(to)
                    && host.holds.iter().any(|&number| hash(number) == asked)
                {
                    let http_port = PORT;
                    let answer = Datagram::Response {
                        id,
                        http_port,
                        hash: asked,
                    };
                    self.send(to, from, answer.encode());
                }
            }
            Speech::Asleep { boot, .. } => {
                let boot = *boot;
                host.queue.push((from, packet));
                if host.queue.len() == 1 {
                    self.schedule(boot, Event::Booted(to));
                }
            }
        }
    }

    fn boot(&mut self, host: usize) {
        let queue = std::mem::take(&mut self.hosts[host].queue);
        if let Speech::Asleep { saved, .. } = &self.hosts[host].speech {
            let settings = Self::settings();
            let mut core = Discovery::restore(self.now, settings, saved, Duration::ZERO);
            core.set_networks(true, true);
            self.hosts[host].speech = Speech::New(Box::new(core));
        }
        for (from, packet) in queue {
            self.deliver(from, host, packet);
        }
    }

    fn perform(&mut self, host: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Broadcast(packet) => {
                    *self.sent[host].entry((packet[0], true)).or_default() += 1;
                    for to in 0..self.hosts.len() {
                        self.carry(host, to, packet);
                    }
                }
                Action::Send { to, packet } | Action::Reply { to, packet } => {
                    self.send(host, to, packet);
                }
                Action::Question(question) => {
                    let holds = &self.hosts[host].holds;
                    let held = holds.iter().any(|&number| hash(number) == question.hash);
                    self.send(host, question.from, question.answer(held, PORT));
                }
                Action::Candidate { lookup, peer } => {
                    let found = self.lookups.get_mut(&(host, lookup)).expect("a lookup");
                    assert!(found.ended.is_none(), "a candidate after the end");
                    assert!(found.holders.insert(peer.socket_addr()), "{peer} twice");
                }
                Action::Finished { lookup, outcome } => {
                    let found = self.lookups.get_mut(&(host, lookup)).expect("a lookup");
                    let before = found.ended.replace((self.now, outcome));
                    assert_eq!(before, None, "a lookup ended twice");
                }
            }
        }
        if let Speech::New(core) = &self.hosts[host].speech
            && let Some(at) = core.deadline()
        {
            self.schedule(at.saturating_duration_since(self.now), Event::Clock(host));
        }
    }

    fn send(&mut self, from: usize, to: SocketAddr, packet: Packet) {
        *self.sent[from].entry((packet[0], false)).or_default() += 1;
        let host = (0..self.hosts.len()).find(|&host| address(host) == to);
        self.carry(from, host.expect("answers go to who asked"), packet);
    }

    fn carry(&mut self, from: usize, to: usize, packet: Packet) {
        let copies = 1 + usize::from(self.draws.percent(self.weather.duplicates));
        for _ in 0..copies {
            if from != to && self.draws.percent(self.weather.loss) {
                continue;
            }
            let longest = self.weather.delay.as_micros() as u64;
            let delay = Duration::from_micros(100 + self.draws.below(longest));
            self.schedule(delay, Event::Deliver { from, to, packet });
        }
    }

    fn found(&self, host: usize, id: u32) -> &Found {
        &self.lookups[&(host, id)]
    }

    fn time_of(&self, host: usize, id: u32) -> Duration {
        let found = self.found(host, id);
        let (ended, _) = found.ended.expect("an end");
        ended - found.began
    }

    fn sent(&self, host: usize, kind: u8, broadcast: bool) -> usize {
        let count = self.sent[host].get(&(kind, broadcast));
        count.copied().unwrap_or_default()
    }

    fn received(&self, host: usize, kind: u8) -> usize {
        self.received[host].get(&kind).copied().unwrap_or_default()
    }

    /// What holds in any weather.
    fn check(&mut self) {
        for (&(host, id), found) in &self.lookups {
            let limit = (self.start + WAKE).max(found.began + TIMEOUT);
            let ended = found.ended.map(|(at, _)| at);
            assert!(
                ended.is_some_and(|at| at <= limit),
                "lookup {id:#x} of {host} lasts from {:?} to {ended:?}",
                found.began
            );
        }
        for host in 0..self.hosts.len() {
            let asks = self.lookups.keys().any(|&(asker, _)| asker == host);
            let answers = self.sent(host, 1, false) + self.sent(host, 2, false);
            if let Speech::New(_) = self.hosts[host].speech {
                assert!(
                    answers <= self.received(host, 0),
                    "an unasked answer of {host}"
                );
            }
            assert!(
                self.sent(host, 4, false) <= self.hosts.len(),
                "{host} repeats itself"
            );
            assert_eq!(
                self.sent(host, 3, true),
                usize::from(asks),
                "hellos of {host}"
            );
            assert!(
                asks || self.sent(host, 0, true) == 0,
                "{host} asks by itself"
            );
        }
    }
}

#[test]
fn all_that_is_there_is_found_and_misses_cost_a_round_trip() {
    let mut lan = Lan::new(1, FAIR);
    let asker = lan.add_new([]);
    for host in 1..=20 {
        lan.add_new((0..10).map(|n| host * 10 + n));
    }
    lan.lookup(asker, 1_000);
    lan.run(WAKE);
    for number in 10..210 {
        let id = lan.lookup(asker, number);
        lan.run(ms(5));
        let holder = address((number / 10) as usize);
        assert_eq!(lan.found(asker, id).holders, BTreeSet::from([holder]));
    }
    for number in 1_001..1_101 {
        lan.lookup(asker, number);
        lan.run(TIMEOUT);
    }
    for number in 2_000..2_100 {
        let id = lan.lookup(asker, number);
        lan.run(ms(5));
        assert!(
            lan.time_of(asker, id) <= ms(2),
            "{:?}",
            lan.time_of(asker, id)
        );
        let (_, outcome) = lan.found(asker, id).ended.expect("an end");
        let all = Outcome {
            end: End::Answered,
            present: 0,
            absent: 20,
            silent: 0,
        };
        assert_eq!(outcome, all);
    }
    lan.check();
}

#[test]
fn a_sleeping_holder_is_found_by_the_first_lookup() {
    for seed in 0..50 {
        let mut lan = Lan::new(seed, FAIR);
        let asker = lan.add_new([]);
        let boot = ms(20 + lan.draws.below(400));
        let holder = lan.add_asleep(boot, [7]);
        let id = lan.lookup(asker, 7);
        lan.run(WAKE);
        assert_eq!(
            lan.found(asker, id).holders,
            BTreeSet::from([address(holder)])
        );
        lan.check();
    }
}

#[test]
fn one_lookup_wakes_all_and_they_wake_nobody() {
    let mut lan = Lan::new(2, FAIR);
    let asker = lan.add_new([]);
    let hosts: Vec<usize> = (0..50)
        .map(|n| lan.add_asleep(ms(30 + n), [n as u32]))
        .collect();
    lan.lookup(asker, 1_000);
    lan.run(Duration::from_secs(30));
    for &host in &hosts {
        assert_eq!(lan.sent(host, 4, false), 1, "one here");
        assert_eq!(lan.sent(host, 2, false), 1, "one absent");
        let all: usize = lan.sent[host].values().sum();
        assert_eq!(all, 2, "and nothing else: {:?}", lan.sent[host]);
    }
    lan.check();
}

#[test]
fn alone_a_miss_costs_nothing_after_the_window() {
    let mut lan = Lan::new(3, FAIR);
    let asker = lan.add_new([]);
    let first = lan.lookup(asker, 1);
    lan.run(ms(100));
    let second = lan.lookup(asker, 2);
    lan.run(WAKE);
    assert_eq!(lan.time_of(asker, first), WAKE);
    assert_eq!(
        lan.time_of(asker, second),
        WAKE - ms(100),
        "the window is paid once"
    );
    for number in 3..100 {
        let id = lan.lookup(asker, number);
        assert_eq!(lan.time_of(asker, id), Duration::ZERO);
    }
    lan.check();
}

#[test]
fn an_old_peer_is_found_in_both_directions() {
    let mut lan = Lan::new(4, FAIR);
    let asker = lan.add_new([1]);
    let old = lan.add(Speech::Old, [2, 3]);
    let first = lan.lookup(asker, 2);
    lan.run(WAKE);
    let second = lan.lookup(asker, 3);
    lan.run(TIMEOUT);
    let miss = lan.lookup(asker, 4);
    lan.run(TIMEOUT);
    for id in [first, second] {
        assert_eq!(lan.found(asker, id).holders, BTreeSet::from([address(old)]));
    }
    assert_eq!(lan.time_of(asker, miss), TIMEOUT);
    let now = lan.now;
    let kinds: Vec<Kind> = lan
        .core(asker)
        .peers(now)
        .iter()
        .map(|peer| peer.kind)
        .collect();
    assert_eq!(kinds, [Kind::Old]);
    let request = Datagram::Request {
        id: 5,
        hash: hash(1),
    };
    lan.deliver(address(old), asker, request.encode());
    assert_eq!(lan.sent(asker, 1, false), 1);
    lan.check();
}

#[test]
fn a_peer_that_vanishes_costs_four_timeouts() {
    let mut lan = Lan::new(5, FAIR);
    let asker = lan.add_new([]);
    let gone = lan.add_new([]);
    lan.lookup(asker, 1);
    lan.run(WAKE);
    lan.hosts[gone].speech = Speech::Old;
    let times: Vec<Duration> = (0..10)
        .map(|number| {
            let id = lan.lookup(asker, number);
            lan.run(TIMEOUT);
            lan.time_of(asker, id)
        })
        .collect();
    assert_eq!(times[..4], [TIMEOUT; 4]);
    assert_eq!(times[4..], [Duration::ZERO; 6]);
}

#[test]
fn with_five_in_a_hundred_lost_most_is_found() {
    let weather = Weather {
        loss: 5,
        duplicates: 2,
        delay: ms(3),
    };
    let mut lan = Lan::new(6, weather);
    let asker = lan.add_new([]);
    for host in 1..=10 {
        lan.add_new((0..100).map(|n| host * 100 + n));
    }
    lan.lookup(asker, 0);
    lan.run(WAKE);
    let ids: Vec<u32> = (100..1_100)
        .map(|number| {
            let id = lan.lookup(asker, number);
            lan.run(ms(10));
            id
        })
        .collect();
    lan.run(TIMEOUT);
    let found = ids
        .iter()
        .filter(|&&id| !lan.found(asker, id).holders.is_empty())
        .count();
    println!("found {found} of 1000 with 5 % loss each way");
    assert!(found >= 860, "{found}");
    lan.check();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn in_any_weather(
        seed in any::<u64>(),
        (loss, duplicates, delay) in (0..60_u64, 0..60_u64, 1..80_u64),
        kinds in prop::collection::vec(0..3_u8, 1..12),
        lookups in prop::collection::vec((0..4_u64, 0..40_u32), 1..60),
    ) {
        let mut lan = Lan::new(seed, Weather { loss, duplicates, delay: ms(delay) });
        let asker = lan.add_new([1, 2, 3]);
        for (number, kind) in kinds.iter().enumerate() {
            let holds = (0..20).filter(|n| n % (number as u32 + 1) == 0);
            match kind {
                0 => lan.add_new(holds),
                1 => lan.add_asleep(ms(20 + 40 * number as u64), holds),
                _ => lan.add(Speech::Old, holds),
            };
        }
        for (pause, number) in lookups {
            lan.lookup(asker, number);
            lan.run(ms(pause * 40));
        }
        lan.run(Duration::from_secs(2));
        lan.check();
        let honest = |(&(_, _), found): (&(usize, u32), &Found)| found.holders.len() <= kinds.len();
        prop_assert!(lan.lookups.iter().all(honest));
    }
}
