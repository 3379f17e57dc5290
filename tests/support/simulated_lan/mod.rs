//! A simulated LAN: the state machines of many hosts on a virtual clock, with loss, delay,
//! duplicates, reordering, hosts that sleep, and hosts that come and go. The same seed gives the
//! same run.
//!
//! [`gateway`] asks in it as Nix would through a daemon, and [`closure`] is what it asks for.

pub(crate) mod closure;
pub(crate) mod gateway;
pub(crate) mod host;
pub(crate) mod report;
pub(crate) mod traffic;
pub(crate) mod weather;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use peerix::protocol::{
    Action, Datagram, Discovery, Held, Origin, Outcome, PeerAddr, Question, Settings,
    discovery::Saved,
};

use host::{Holdings, Host, PORT, Reach, Speech, address, address_v6, host_at};
use traffic::Traffic;
use weather::{Draws, Weather};

pub(crate) const TIMEOUT: Duration = Duration::from_millis(50);
pub(crate) const WAKE: Duration = Duration::from_millis(500);

#[derive(Debug)]
enum Event {
    Deliver {
        from: SocketAddr,
        to: usize,
        packet: Rc<[u8]>,
    },
    Booted(usize),
    Clock(usize),
    Alarm(u64),
}

/// What whoever drives the LAN may want to act on.
#[derive(Debug, Clone)]
pub(crate) enum News {
    /// A lookup of a host found a holder.
    Candidate(usize, u32, PeerAddr),
    /// A lookup of a host has ended.
    Finished(usize, u32, Outcome),
    /// The time of [`Lan::alarm`].
    Alarm(u64),
}

/// What is known of a lookup.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) began: Instant,
    pub(crate) ended: Option<(Instant, Outcome)>,
    pub(crate) is_cancelled: bool,
    pub(crate) holders: BTreeSet<SocketAddr>,
}

pub(crate) struct Lan {
    pub(crate) now: Instant,
    pub(crate) start: Instant,
    pub(crate) draws: Draws,
    pub(crate) weather: Weather,
    pub(crate) hosts: Vec<Host>,
    pub(crate) lookups: BTreeMap<(usize, u32), Found>,
    pub(crate) traffic: Traffic,
    events: BTreeMap<(Instant, u64), Event>,
    /// When the last datagram of one host reaches another.
    arrivals: HashMap<(usize, usize), Instant>,
    sequence: u64,
    news: Vec<News>,
}

impl Lan {
    pub(crate) fn new(seed: u64, weather: Weather) -> Self {
        let now = Instant::now();
        Self {
            now,
            start: now,
            draws: Draws(seed),
            weather,
            hosts: Vec::new(),
            lookups: BTreeMap::new(),
            traffic: Traffic::default(),
            events: BTreeMap::new(),
            arrivals: HashMap::new(),
            sequence: 0,
            news: Vec::new(),
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

    pub(crate) fn add(&mut self, speech: Speech, holds: impl IntoIterator<Item = u32>) -> usize {
        let holds: Holdings = holds.into_iter().collect();
        let mut host = Host::new(speech, holds);
        if let Speech::New(core) = &mut host.speech {
            core.set_generation(host.generation);
        }
        self.hosts.push(host);
        self.traffic.add_host();
        self.hosts.len() - 1
    }

    pub(crate) fn add_new(&mut self, holds: impl IntoIterator<Item = u32>) -> usize {
        let speech = self.awake();
        self.add(speech, holds)
    }

    pub(crate) fn add_asleep(
        &mut self,
        boot: Duration,
        holds: impl IntoIterator<Item = u32>,
    ) -> usize {
        let saved = Saved {
            instance: self.draws.next(),
            peers: Vec::new(),
        };
        self.add(Speech::Asleep { saved, boot }, holds)
    }

    fn awake(&mut self) -> Speech {
        let mut core = Discovery::new(Self::settings(), self.draws.next(), self.draws.next());
        core.set_networks(true, true);
        Speech::New(Box::new(core))
    }

    /// A host is switched off.
    pub(crate) fn leave(&mut self, host: usize) {
        self.hosts[host].speech = Speech::Gone;
    }

    /// A host that was off is there, and awake.
    pub(crate) fn come(&mut self, host: usize) {
        self.hosts[host].speech = self.awake();
        let generation = self.hosts[host].generation;
        self.core(host).set_generation(generation);
    }

    /// A host gets a path.
    pub(crate) fn gain(&mut self, host: usize, number: u32) {
        self.hosts[host].holds.insert(number);
        self.hosts[host].generation += 1;
        let generation = self.hosts[host].generation;
        if let Speech::New(core) = &mut self.hosts[host].speech {
            core.set_generation(generation);
        }
    }

    pub(crate) fn core(&mut self, host: usize) -> &mut Discovery {
        match &mut self.hosts[host].speech {
            Speech::New(core) => core,
            other => panic!("host {host} has no daemon: {other:?}"),
        }
    }

    /// [`News::Alarm`] comes with `number` after that time.
    pub(crate) fn alarm(&mut self, after: Duration, number: u64) {
        self.schedule(after, Event::Alarm(number));
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now + after, self.sequence), event);
    }

    pub(crate) fn lookup(&mut self, host: usize, number: u32) -> u32 {
        let id = self.draws.next() as u32;
        let mut actions = Vec::new();
        let now = self.now;
        let hash = host::hash(number);
        let begun = self.core(host).lookup(now, id, hash, &mut actions);
        begun.expect("a fresh id");
        let found = Found {
            began: now,
            ended: None,
            is_cancelled: false,
            holders: BTreeSet::new(),
        };
        self.lookups.insert((host, id), found);
        self.perform(host, actions);
        id
    }

    pub(crate) fn cancel(&mut self, host: usize, id: u32) {
        self.core(host).cancel(id);
        let found = self.lookups.get_mut(&(host, id)).expect("a lookup");
        found.is_cancelled = true;
    }

    /// Lets time pass, event by event.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {
            self.news.clear();
        }
        self.now = until;
    }

    /// What has happened since this was called last.
    pub(crate) fn news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    /// Goes on to the next event, unless that is later than `until`; false if it is.
    pub(crate) fn step(&mut self, until: Instant) -> bool {
        let Some(entry) = self.events.first_entry() else {
            return false;
        };
        if entry.key().0 > until {
            return false;
        }
        let ((at, _), event) = entry.remove_entry();
        self.now = at;
        match event {
            Event::Deliver { from, to, packet } => self.deliver(from, to, packet),
            Event::Booted(host) => self.boot(host),
            Event::Clock(host) => self.tick(host),
            Event::Alarm(number) => self.news.push(News::Alarm(number)),
        }
        true
    }

    fn tick(&mut self, host: usize) {
        let now = self.now;
        // An earlier time may have been set since, and this one be out of date.
        if self.hosts[host].clock != Some(now) {
            return;
        }
        self.hosts[host].clock = None;
        if let Speech::New(core) = &mut self.hosts[host].speech {
            let mut actions = Vec::new();
            core.expire(now, &mut actions);
            self.perform(host, actions);
        }
    }

    pub(crate) fn deliver(&mut self, from: SocketAddr, to: usize, packet: Rc<[u8]>) {
        let is_own = host_at(from) == to;
        let host = &mut self.hosts[to];
        match &mut host.speech {
            Speech::New(core) => {
                self.traffic.note_received(to, &packet);
                let origin = Origin {
                    is_own,
                    is_allowed: true,
                };
                let mut actions = Vec::new();
                core.receive(self.now, from, &packet, origin, &mut actions);
                self.perform(to, actions);
            }
            Speech::Old => {
                if let Ok(Datagram::Request { id, hash: asked }) = Datagram::parse(&packet)
                    && !is_own
                    && host.holds.holds(&asked)
                {
                    let http_port = PORT;
                    let answer = Datagram::Response {
                        id,
                        http_port,
                        hash: asked,
                    };
                    self.send(to, from, &answer.encode());
                }
            }
            Speech::Asleep { boot, .. } => {
                let boot = *boot;
                host.queue.push((from, packet));
                if host.queue.len() == 1 {
                    self.schedule(boot, Event::Booted(to));
                }
            }
            Speech::Gone => {}
        }
    }

    fn boot(&mut self, host: usize) {
        let queue = std::mem::take(&mut self.hosts[host].queue);
        if let Speech::Asleep { saved, .. } = &self.hosts[host].speech {
            let (settings, secret) = (Self::settings(), self.draws.next());
            let mut core = Discovery::restore(self.now, settings, saved, Duration::ZERO, secret);
            core.set_networks(true, true);
            core.set_generation(self.hosts[host].generation);
            self.hosts[host].speech = Speech::New(Box::new(core));
        }
        for (from, packet) in queue {
            self.deliver(from, host, packet);
        }
    }

    fn perform(&mut self, host: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Broadcast { packet, everywhere } => {
                    self.broadcast(host, &packet, everywhere);
                }
                Action::Send { to, packet } | Action::Reply { to, packet } => {
                    self.send(host, to, &packet);
                }
                Action::Question(question) => {
                    self.answer(host, &question);
                }
                Action::Candidate { lookup, peer } => {
                    let found = self.lookups.get_mut(&(host, lookup)).expect("a lookup");
                    assert!(found.ended.is_none(), "a candidate after the end");
                    assert!(!found.is_cancelled, "a candidate of a cancelled lookup");
                    assert!(found.holders.insert(peer.socket_addr()), "{peer} twice");
                    self.news.push(News::Candidate(host, lookup, peer));
                }
                Action::Finished { lookup, outcome } => {
                    self.news.push(News::Finished(host, lookup, outcome));
                    let now = self.now;
                    let found = self.lookups.get_mut(&(host, lookup)).expect("a lookup");
                    assert!(!found.is_cancelled, "the end of a cancelled lookup");
                    let before = found.ended.replace((now, outcome));
                    assert_eq!(before, None, "a lookup ended twice");
                }
            }
        }
        self.set_clock(host);
    }

    fn set_clock(&mut self, host: usize) {
        let now = self.now;
        let host_of = &mut self.hosts[host];
        if let Speech::New(core) = &host_of.speech
            && let Some(at) = core.deadline()
            && host_of.clock.is_none_or(|clock| at < clock)
        {
            let at = at.max(now);
            host_of.clock = Some(at);
            self.schedule(at - now, Event::Clock(host));
        }
    }

    fn answer(&mut self, host: usize, question: &Question) {
        let holds = &self.hosts[host].holds;
        let hashes = question.wanted.hashes().iter();
        let held = Held::of(hashes.map(|asked| holds.holds(asked)));
        if let Some(packet) = question.answer(!held.is_empty(), PORT) {
            self.send(host, question.from, &packet);
            return;
        }
        let now = self.now;
        if let Some(Action::Reply { to, packet }) = self.core(host).answer(now, question, held) {
            self.send(host, to, &packet);
        }
    }

    /// By IPv4, and `everywhere` by IPv6 as well.
    fn broadcast(&mut self, from: usize, packet: &[u8], everywhere: bool) {
        let shared: Rc<[u8]> = packet.into();
        for is_ipv6 in [false, true] {
            if is_ipv6 && !everywhere || !self.hosts[from].reach.by(is_ipv6) {
                continue;
            }
            self.traffic.note_sent(from, packet, true);
            for to in 0..self.hosts.len() {
                if self.hosts[to].reach.by(is_ipv6) {
                    self.carry(from, to, is_ipv6, &shared);
                }
            }
        }
    }

    fn send(&mut self, from: usize, to: SocketAddr, packet: &[u8]) {
        self.traffic.note_sent(from, packet, false);
        let host = host_at(to);
        if self.hosts[host].reach.by(to.is_ipv6()) {
            self.carry(from, host, to.is_ipv6(), &packet.into());
        }
    }

    fn carry(&mut self, from: usize, to: usize, is_ipv6: bool, packet: &Rc<[u8]>) {
        if matches!(self.hosts[to].speech, Speech::Gone) {
            return;
        }
        let weather = self.weather;
        let copies = 1 + usize::from(self.draws.percent(weather.duplicates));
        let source = if is_ipv6 { address_v6 } else { address };
        for _ in 0..copies {
            if from != to && self.draws.percent(weather.loss) {
                continue;
            }
            let mut delay = weather.delay(&mut self.draws);
            if !self.draws.percent(weather.reordered) {
                let last = self.arrivals.entry((from, to)).or_insert(self.now);
                *last = (*last).max(self.now + delay);
                delay = *last - self.now;
            }
            let event = Event::Deliver {
                from: source(from),
                to,
                packet: Rc::clone(packet),
            };
            self.schedule(delay, event);
        }
    }

    /// How a host is reached from now on.
    pub(crate) fn set_reach(&mut self, host: usize, reach: Reach) {
        self.hosts[host].reach = reach;
    }

    pub(crate) fn found(&self, host: usize, id: u32) -> &Found {
        &self.lookups[&(host, id)]
    }

    pub(crate) fn time_of(&self, host: usize, id: u32) -> Duration {
        let found = self.found(host, id);
        let (ended, _) = found.ended.expect("an end");
        ended - found.began
    }
}
