//! A simulated LAN: the state machines of many hosts on a virtual clock, with loss, delay,
//! duplicates, reordering, hosts that sleep, and hosts that come and go. The same seed gives the
//! same run.
//!
//! [`gateway`] asks in it as Nix would through a daemon, and [`closure`] is what it asks for.

pub(crate) mod closure;
pub(crate) mod gateway;
pub(crate) mod host;
pub(crate) mod report;
pub(crate) mod scenarios;
pub(crate) mod traffic;
pub(crate) mod weather;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use peerix::protocol::{
    Discovery, PathState, PeerAddr,
    datagram::{Answer, Datagram, Magnitude, Packet, Sender},
    discovery::{
        Action, Arrival, Link, LookupId, Outcome, PeerRequest, PersistedPeer, PersistedState,
        ReturnPath, Scope, Settings,
    },
};

use host::{Daemon, Holdings, Host, PORT, address, hash, host_at};
use traffic::Traffic;
use weather::{Draws, Weather};

pub(crate) const TIMEOUT: Duration = Duration::from_millis(50);
pub(crate) const WAKE: Duration = Duration::from_millis(300);

/// Hosts that come are found by a discovery broadcast, which there is so often while there is
/// work, and which is answered within so long.
const DISCOVERY_PAUSE: Duration = Duration::from_secs(10);
const KNOWN_AFTER: Duration = Duration::from_millis(25);

/// A daemon's timers expire at whole milliseconds, as those of its runtime do.
const TIMER: u128 = 1_000_000;

/// A state machine whose timer expires more often in one instant never gets further.
const MOST_EXPIRED: u32 = 1_000;

/// Answers of a [`Daemon::Forger`] to one ask.
const FORGED: u32 = 1_000;

/// The one interface of every host.
const LINK: Link = Link {
    interface: 2,
    is_wireless: false,
};

#[derive(Debug)]
enum Event {
    Deliver {
        to: usize,
        arrival: Arrival,
        packet: Rc<[u8]>,
    },
    Booted(usize),
    Clock(usize),
    Alarm(u64),
}

/// What the driver of the LAN may want to act on.
#[derive(Debug, Clone)]
pub(crate) enum News {
    /// A lookup of a host found a holder.
    Candidate(usize, LookupId, PeerAddr),
    /// A lookup of a host has ended.
    Finished(usize, LookupId, Outcome),
    /// The time of [`Lan::alarm`].
    Alarm(u64),
}

/// What is known of a lookup.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) path: u32,
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
    pub(crate) lookups: BTreeMap<(usize, LookupId), Found>,
    pub(crate) traffic: Traffic,
    events: BTreeMap<(Instant, u64), Event>,
    /// When the last datagram of one host reaches another.
    arrivals: HashMap<(SocketAddr, usize), Instant>,
    sequence: u64,
    news: Vec<News>,
}

impl Lan {
    pub(crate) fn new(seed: u64, weather: Weather) -> Self {
        // Far from the beginning of the clock: peers are restored that were heard long ago.
        let now = Instant::now() + Duration::from_secs(30 * 24 * 3600);
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

    pub(crate) fn settings() -> Settings {
        Settings {
            timeout: TIMEOUT,
            wake_timeout: WAKE,
            port: PORT,
            http_port: PORT,
            configured: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, daemon: Daemon, holds: impl IntoIterator<Item = u32>) -> usize {
        let holds: Holdings = holds.into_iter().collect();
        self.hosts.push(Host::new(daemon, holds, self.start));
        self.traffic.add_host();
        self.hosts.len() - 1
    }

    /// A host whose daemon was just started for the first time.
    pub(crate) fn add_new(&mut self, holds: impl IntoIterator<Item = u32>) -> usize {
        let daemon = self.started();
        self.add(daemon, holds)
    }

    /// A host whose daemon is started by the first datagram.
    pub(crate) fn add_asleep(
        &mut self,
        boot: Duration,
        holds: impl IntoIterator<Item = u32>,
    ) -> usize {
        let instance = self.draws.next();
        let saved = PersistedState {
            instance,
            peers: Vec::new(),
        };
        let saved = Rc::new(saved);
        self.add(Daemon::Asleep { saved, boot }, holds)
    }

    fn started(&mut self) -> Daemon {
        let (instance, secret) = (self.draws.next(), self.draws.next());
        let mut core = Discovery::new(Self::settings(), instance, secret);
        core.set_links(vec![LINK], false);
        Daemon::New(Box::new(core))
    }

    /// The daemon of `host` is started anew and knows the first `peers` other hosts from before,
    /// which it heard `heard` ago.
    pub(crate) fn restart(&mut self, host: usize, peers: usize, heard: Duration) {
        let others = (0..self.hosts.len()).filter(|&other| other != host);
        let known = |other: usize| PersistedPeer {
            address: address(other),
            sender: match &self.hosts[other].daemon {
                Daemon::Old => None,
                _ => Some(Sender {
                    http_port: PORT,
                    instance: other as u64,
                }),
            },
            heard_seconds_ago: heard.as_secs(),
            given_seconds_ago: None,
        };
        let saved = PersistedState {
            instance: u64::MAX - host as u64,
            peers: others.take(peers).map(known).collect(),
        };
        self.boot_with(host, &saved);
    }

    fn boot_with(&mut self, host: usize, saved: &PersistedState) {
        let (settings, secret) = (Self::settings(), self.draws.next());
        let mut core = Discovery::restore(self.now, settings, saved, Duration::ZERO, secret);
        core.set_links(vec![LINK], false);
        self.hosts[host].daemon = Daemon::New(Box::new(core));
    }

    /// A host is switched off.
    pub(crate) fn leave(&mut self, host: usize) {
        self.hosts[host].daemon = Daemon::Off;
    }

    /// A host that was off is there, and awake.
    pub(crate) fn come(&mut self, host: usize) {
        self.hosts[host].daemon = self.started();
        self.hosts[host].known_from = self.now + DISCOVERY_PAUSE + KNOWN_AFTER;
    }

    /// Makes hosts configured peers of `host`.
    pub(crate) fn configure(&mut self, host: usize, peers: &[usize]) {
        let configured = peers.iter().map(|&peer| address(peer)).collect();
        let settings = Settings {
            configured,
            ..Self::settings()
        };
        self.core(host).configure(settings);
    }

    pub(crate) fn core(&mut self, host: usize) -> &mut Discovery {
        match &mut self.hosts[host].daemon {
            Daemon::New(core) => core,
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

    pub(crate) fn lookup(&mut self, host: usize, path: u32) -> LookupId {
        let mut actions = Vec::new();
        let now = self.now;
        let id = self.core(host).lookup(now, hash(path), &mut actions);
        let found = Found {
            path,
            began: now,
            ended: None,
            is_cancelled: false,
            holders: BTreeSet::new(),
        };
        self.lookups.insert((host, id), found);
        self.perform(host, actions);
        id
    }

    pub(crate) fn cancel(&mut self, host: usize, id: LookupId) {
        let now = self.now;
        self.core(host).cancel(now, id);
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
            Event::Deliver {
                to,
                arrival,
                packet,
            } => self.deliver(to, arrival, packet),
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
        let (last, count) = self.hosts[host].expired;
        let count = if last == Some(now) { count + 1 } else { 0 };
        assert!(
            count < MOST_EXPIRED,
            "the timer of host {host} stands still"
        );
        self.hosts[host].expired = (Some(now), count);
        if let Daemon::New(core) = &mut self.hosts[host].daemon {
            let mut actions = Vec::new();
            core.expire(now, &mut actions);
            self.perform(host, actions);
        }
    }

    /// How a datagram of `from` comes.
    pub(crate) fn arrival(from: SocketAddr, is_own: bool, is_broadcast: bool) -> Arrival {
        Arrival {
            from,
            path: ReturnPath {
                interface: LINK.interface,
                ..ReturnPath::default()
            },
            is_broadcast,
            is_own,
            is_allowed: true,
            is_on_link: true,
        }
    }

    /// Bytes arrive at a host, wherever they come from.
    pub(crate) fn deliver(&mut self, to: usize, arrival: Arrival, packet: Rc<[u8]>) {
        self.traffic.note_received(to, &packet);
        let host = &mut self.hosts[to];
        match &mut host.daemon {
            Daemon::New(core) => {
                let mut actions = Vec::new();
                core.receive(self.now, &arrival, &packet, &mut actions);
                self.perform(to, actions);
            }
            Daemon::Old => {
                if let Ok(Datagram::Request { id, hash: asked }) = Datagram::parse(&packet)
                    && !arrival.is_own
                    && host.holds.holds(&asked)
                {
                    let response = Datagram::Response {
                        id,
                        http_port: PORT,
                        hash: asked,
                    };
                    self.send(to, arrival.from, &response.encode());
                }
            }
            Daemon::Asleep { boot, .. } => {
                let boot = *boot;
                host.queue.push((arrival, packet));
                if host.queue.len() == 1 {
                    self.schedule(boot, Event::Booted(to));
                }
            }
            Daemon::Forger => self.forge(to, &arrival, &packet),
            Daemon::Off => {}
        }
    }

    /// A thousand hosts that do not exist say that they have all that `asker` asks for.
    fn forge(&mut self, forger: usize, arrival: &Arrival, packet: &[u8]) {
        let (Ok(Datagram::Ask(ask)), Some(asker)) =
            (Datagram::parse(packet), host_at(arrival.from))
        else {
            return;
        };
        if !arrival.is_broadcast {
            return;
        }
        for number in 0..FORGED {
            let instance = 1 << 32 | u64::from(number);
            let answer = Datagram::Answer(Answer {
                id: ask.id,
                sender: Sender {
                    http_port: PORT,
                    instance,
                },
                streams: Magnitude::default(),
                states: vec![PathState::Present; ask.hashes.len()],
            });
            let packet = answer.encode();
            self.traffic.note_sent(forger, &packet, false);
            let ip = [10, 9, (number >> 8) as u8, number as u8];
            let event = Event::Deliver {
                to: asker,
                arrival: Self::arrival((ip, PORT).into(), false, false),
                packet: packet[..].into(),
            };
            let delay = self.weather.one_way(&mut self.draws);
            self.schedule(delay, event);
        }
    }

    fn boot(&mut self, host: usize) {
        let queue = std::mem::take(&mut self.hosts[host].queue);
        if let Daemon::Asleep { saved, .. } = &self.hosts[host].daemon {
            let saved = Rc::clone(saved);
            self.boot_with(host, &saved);
        }
        for (arrival, packet) in queue {
            self.deliver(host, arrival, packet);
        }
    }

    fn perform(&mut self, host: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                // Each host has one network, which all scopes mean.
                Action::Broadcast { packet, scope } => {
                    if scope == Scope::Everywhere {
                        self.note_discovery();
                    }
                    self.broadcast(host, &packet);
                }
                Action::Send { to, packet } | Action::Reply { to, packet, .. } => {
                    self.send(host, to, &packet);
                }
                Action::Request(request) => self.answer(host, &request),
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
        let Daemon::New(core) = &host_of.daemon else {
            return;
        };
        let Some(at) = core.deadline(now) else {
            return;
        };
        let since_start = at.saturating_duration_since(self.start).as_nanos();
        let late = match since_start % TIMER {
            _ if at <= now => 0,
            0 => 0,
            part => TIMER - part,
        };
        let at = at.max(now) + Duration::from_nanos(late as u64);
        if host_of.clock.is_none_or(|clock| at < clock) {
            host_of.clock = Some(at);
            self.schedule(at - now, Event::Clock(host));
        }
    }

    /// Hosts that have come are known from now on.
    fn note_discovery(&mut self) {
        let known_from = self.now + KNOWN_AFTER;
        for host in &mut self.hosts {
            host.known_from = host.known_from.min(known_from);
        }
    }

    fn answer(&mut self, host: usize, request: &PeerRequest) {
        let holds = &self.hosts[host].holds;
        let state = |asked| match holds.holds(asked) {
            true => PathState::Present,
            false => PathState::Absent,
        };
        let states: Vec<PathState> = request.hashes.iter().map(state).collect();
        let mut actions = Vec::new();
        let now = self.now;
        self.core(host)
            .answer(now, request, &states, 0, &mut actions);
        self.perform(host, actions);
    }

    fn broadcast(&mut self, from: usize, packet: &Packet) {
        self.traffic.note_sent(from, packet, true);
        let shared: Rc<[u8]> = packet[..].into();
        for to in 0..self.hosts.len() {
            self.carry(from, to, true, &shared);
        }
    }

    fn send(&mut self, from: usize, to: SocketAddr, packet: &Packet) {
        self.traffic.note_sent(from, packet, false);
        if let Some(host) = host_at(to).filter(|&host| host < self.hosts.len()) {
            self.carry(from, host, false, &packet[..].into());
        }
    }

    fn carry(&mut self, from: usize, to: usize, is_broadcast: bool, packet: &Rc<[u8]>) {
        if self.hosts[to].is_off() {
            return;
        }
        let weather = self.weather;
        let copies = 1 + usize::from(self.draws.percent(weather.duplicates));
        let distance = if from == to {
            Duration::ZERO
        } else {
            self.hosts[from].distance + self.hosts[to].distance
        };
        let source = address(from);
        for _ in 0..copies {
            if from != to && self.draws.percent(weather.loss) {
                continue;
            }
            let mut delay = weather.one_way(&mut self.draws) + distance;
            if !self.draws.percent(weather.reordered) {
                let last = self.arrivals.entry((source, to)).or_insert(self.now);
                *last = (*last).max(self.now + delay);
                delay = *last - self.now;
            }
            let event = Event::Deliver {
                to,
                arrival: Self::arrival(source, from == to, is_broadcast),
                packet: Rc::clone(packet),
            };
            self.schedule(delay, event);
        }
    }

    /// There and back between two hosts, over HTTP.
    pub(crate) fn round_trip(&mut self, one: usize, other: usize) -> Duration {
        let distance = self.hosts[one].distance + self.hosts[other].distance;
        let there = self.weather.one_way(&mut self.draws);
        there + self.weather.one_way(&mut self.draws) + distance * 2
    }

    pub(crate) fn found(&self, host: usize, id: LookupId) -> &Found {
        &self.lookups[&(host, id)]
    }

    pub(crate) fn time_of(&self, host: usize, id: LookupId) -> Duration {
        let found = self.found(host, id);
        let (ended, _) = found.ended.expect("an end");
        ended - found.began
    }
}
