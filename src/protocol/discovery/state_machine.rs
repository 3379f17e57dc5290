//! The state machine: its parts, its inputs, and what time brings.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::{
    Action, Counters, End, Link, LookupId, Outcome, PeerInfo, PersistedState, Scope,
    asks::Asks,
    burst::Burst,
    delayed_answers::DelayedAnswers,
    ids::Ids,
    lookup::{BroadcastWait, FREE_BROADCAST_WAIT, Lookup, Stage},
    peer_table::{AWAKE, HOUR, Peer, PeerTable, REPEATS, Wanted, Wave},
    rate_limit::{AskLimit, NewPeerLimit, PerSecond},
    slots::Slots,
};
use crate::{
    format::StorePathHash,
    protocol::{
        PeerAddr, WaitBudget,
        datagram::{Ask, Datagram, MAX_HASHES, Magnitude, Packet, Sender},
    },
};

/// Lookups in progress at once; further ones end without an answer.
pub const MAX_LOOKUPS: usize = 4_096;

/// Peers that are asked one by one. Above it most of them are asked by broadcast.
pub(super) const MAX_UNICAST: usize = 64;

/// Peers of a large LAN that are asked one by one before the others, and how many on a wireless
/// network, where an access point holds broadcasts back.
const SAMPLE: usize = 16;
const SAMPLE_WIRELESS: usize = MAX_UNICAST;

/// Those that gave most in this burst have so many places of the sample.
const SAMPLE_OF_GIVERS: usize = SAMPLE / 2;

/// The sample is drawn anew this often.
const SAMPLE_PAUSE: Duration = Duration::from_millis(100);

/// While a peer was turned away within this time, the table does not have all of them.
const TURNED_AWAY_COUNTS_FOR: Duration = Duration::from_secs(60);

/// Copies of a broadcast ask, and the pause between two.
const BROADCAST_COPIES: u32 = 4;
const BROADCAST_PAUSE: Duration = Duration::from_millis(2);

/// Answers to a broadcast ask are spread over this for each live peer, and over this at most.
pub(super) const ASK_SPREAD: (Duration, Duration) =
    (Duration::from_micros(5), Duration::from_millis(5));

/// The same for a discovery broadcast, which all peers answer.
pub(super) const DISCOVERY_SPREAD: (Duration, Duration) =
    (Duration::from_micros(20), Duration::from_millis(20));

/// After the spread, answers to a broadcast are waited for at least this long and at most so long.
const LEAST_BROADCAST_WAIT: Duration = Duration::from_millis(2);
const LONGEST_BROADCAST_WAIT: Duration = Duration::from_millis(300);

/// Times from broadcast to answer that are remembered for each interface.
const BROADCAST_SAMPLES: usize = 128;

/// A peer that says it has a path has so long to give it before others are asked.
const CANDIDATE_WAIT: Duration = Duration::from_millis(5);

/// Peers that asked while nothing was looked up, to be asked with the next burst.
const MAX_NOTED: usize = 64;

/// Open lookups that a peer is asked for which has just shown itself.
const MAX_CATCH_UP: usize = 2 * MAX_HASHES;

/// What discovery is told by configuration and host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Wait for old peers, which do not say what they do not have.
    pub timeout: Duration,
    /// Wait for peers that may have to start first.
    pub wake_timeout: Duration,
    /// UDP port that is broadcast to and from.
    pub port: u16,
    /// TCP port where this machine serves, told to others.
    pub http_port: u16,
    /// Peers that are always asked one by one, canonical.
    pub configured: Vec<SocketAddr>,
}

/// The state machine.
#[derive(Debug)]
pub struct Discovery {
    pub(super) settings: Settings,
    pub(super) instance: u64,
    pub(super) ids: Ids,
    pub(super) peers: PeerTable,
    pub(super) asks: Asks,
    pub(super) burst: Burst,
    pub(super) counters: Counters,
    pub(super) delayed: DelayedAnswers,
    pub(super) ask_limit: AskLimit,
    pub(super) broadcasts_answered: PerSecond,
    pub(super) greetings: PerSecond,
    pub(super) new_peers: NewPeerLimit,
    pub(super) turned_away: Option<Instant>,
    pub(super) lookups: BTreeMap<LookupId, Lookup>,
    next_lookup: u64,
    /// Peers to which something is to be sent, or repeated.
    pub(super) busy: Slots,
    links: Vec<Link>,
    /// Interfaces on which a peer answered, and when it last did.
    heard_on: HashMap<u32, Instant>,
    broadcast_times: HashMap<u32, VecDeque<Duration>>,
    /// Lookups that go out with the next broadcast ask.
    broadcast_queue: Vec<LookupId>,
    broadcasts: Vec<BroadcastAsk>,
    sample: Slots,
    sampled: Option<Instant>,
    /// Found by name, and announced by DNS-SD.
    named: (Vec<SocketAddr>, Vec<SocketAddr>),
    /// Askers that were not known while nothing was looked up.
    noted: Vec<SocketAddr>,
}

/// A broadcast ask of which copies are still to leave.
#[derive(Debug)]
struct BroadcastAsk {
    lookups: Vec<LookupId>,
    copies: u32,
    next: Instant,
}

impl Discovery {
    /// `instance` is a random number that stays for as long as this machine runs, `secret` one
    /// that nobody else learns.
    pub fn new(settings: Settings, instance: u64, secret: u64) -> Self {
        let mut discovery = Self {
            settings,
            instance,
            ids: Ids::new(secret),
            peers: PeerTable::default(),
            asks: Asks::default(),
            burst: Burst::default(),
            counters: Counters::default(),
            delayed: DelayedAnswers::default(),
            ask_limit: AskLimit::default(),
            broadcasts_answered: PerSecond::new(5),
            greetings: PerSecond::new(1),
            new_peers: NewPeerLimit::default(),
            turned_away: None,
            lookups: BTreeMap::new(),
            next_lookup: 0,
            busy: Slots::default(),
            links: Vec::new(),
            heard_on: HashMap::new(),
            broadcast_times: HashMap::new(),
            broadcast_queue: Vec::new(),
            broadcasts: Vec::new(),
            sample: Slots::default(),
            sampled: None,
            named: (Vec::new(), Vec::new()),
            noted: Vec::new(),
        };
        discovery.place_named();
        discovery
    }

    /// As [`Self::new`], with what [`Self::save`] gave, `asleep` ago, by an earlier process.
    pub fn restore(
        now: Instant,
        settings: Settings,
        saved: &PersistedState,
        asleep: Duration,
        secret: u64,
    ) -> Self {
        let mut discovery = Self::new(settings, saved.instance, secret);
        discovery.peers.restore(now, &saved.peers, asleep);
        discovery
    }

    /// What the next process should know.
    pub fn save(&self, now: Instant) -> PersistedState {
        PersistedState {
            instance: self.instance,
            peers: self.peers.save(now),
        }
    }

    /// New settings; lookups in progress go on.
    pub fn configure(&mut self, settings: Settings) {
        self.settings = settings;
        self.place_named();
    }

    /// Peers that names and SRV records stand for at present (asked like configured ones), and
    /// those that DNS-SD announces, canonical.
    pub fn set_named(&mut self, named: &[SocketAddr], announced: &[SocketAddr]) {
        self.named = (named.to_vec(), announced.to_vec());
        self.place_named();
    }

    fn place_named(&mut self) {
        let (named, announced) = &self.named;
        let configured = self.settings.configured.iter().chain(named);
        let configured: Vec<SocketAddr> = configured.copied().collect();
        self.peers.set_named(&configured, announced);
    }

    /// The interfaces that can be broadcast on. `is_new`: a carrier, an address or a route has
    /// come of late.
    pub fn set_links(&mut self, links: Vec<Link>, is_new: bool) {
        if is_new {
            self.burst.note_network_change();
        }
        self.links = links;
    }

    /// The random number that tells others who we are.
    pub fn instance(&self) -> u64 {
        self.instance
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The time that the lookups of this burst may still wait.
    pub fn budget(&mut self) -> &mut WaitBudget {
        &mut self.burst.budget
    }

    /// Who is known.
    pub fn peers(&self, now: Instant) -> Vec<PeerInfo> {
        let all = self.peers.iter();
        all.map(|(_, peer)| PeerInfo::of(peer, now)).collect()
    }

    /// The retransmission time of a peer, if a round trip was measured.
    pub fn round_trip(&self, peer: PeerAddr) -> Option<Duration> {
        let all = self.peers.at(peer.ip());
        all.filter_map(|peer| peer.measured_timeout()).min()
    }

    /// When the host of a peer last answered.
    pub fn last_answer(&self, peer: PeerAddr) -> Option<Instant> {
        self.peers.at(peer.ip()).filter_map(|peer| peer.heard).max()
    }

    /// Whether a peer is configured, or gave a path within a week.
    pub fn is_trusted_to_answer(&self, now: Instant, peer: PeerAddr) -> bool {
        self.peers
            .at(peer.ip())
            .any(|peer| peer.is_trusted_to_answer(now))
    }

    /// A peer has given a path: what was waited for it comes back.
    pub fn record_given(&mut self, now: Instant, given: PeerAddr) {
        let mut owed = Duration::ZERO;
        for (_, peer) in self.peers.iter_mut() {
            if peer.address.ip() == given.ip() {
                peer.given = Some(now);
                peer.given_in_burst += 1;
                owed = owed.max(std::mem::take(&mut peer.owed));
            }
        }
        let lookups = self.lookups.values();
        let paid = lookups.filter(|lookup| lookup.candidates.contains(&given));
        let owed = owed.max(
            paid.map(|lookup| lookup.paid(now))
                .max()
                .unwrap_or_default(),
        );
        if let Some(since) = now.checked_sub(owed) {
            self.burst.budget.refund(since, now);
        }
    }

    /// Loopback has asked something other than a path: peers may wake up already.
    pub fn wake_peers(&mut self, now: Instant) {
        self.note_activity(now);
    }

    /// Looks `hash` up. Candidates follow as actions, and one `Finished`, unless
    /// [`Self::cancel`] comes first. Asks leave with the next [`Self::expire`], which is due at
    /// once: what is looked up together goes out together.
    pub fn lookup(
        &mut self,
        now: Instant,
        hash: StorePathHash,
        actions: &mut Vec<Action>,
    ) -> LookupId {
        let id = LookupId(self.next_lookup);
        self.next_lookup += 1;
        self.counters.lookups += 1;
        self.note_activity(now);
        let refusal = if self.links.is_empty() && self.peers.is_empty() {
            Some(End::Alone)
        } else if self.lookups.len() >= MAX_LOOKUPS {
            Some(End::Overload)
        } else {
            None
        };
        if let Some(end) = refusal {
            let outcome = Outcome {
                end,
                present: 0,
                absent: 0,
                silent: 0,
            };
            self.finish(id, outcome, actions);
            return id;
        }
        let mut lookup = Lookup::new(now, hash);
        for slot in self.choose(now).iter() {
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.queue.push(Wanted {
                    lookup: id,
                    copy: 0,
                    first_asked: now,
                });
                lookup.ask(slot, !peer.is_silent);
            }
        }
        if lookup.waiting.is_empty() {
            // Nobody is left but those who did not answer: the next one to answer may be back.
            let is_ready = |&slot: &usize| {
                let peer = self.peers.get(slot);
                peer.is_some_and(|peer| peer.ready_at(now) <= now)
            };
            for slot in lookup.unanswered.iter().filter(is_ready) {
                lookup.waiting.insert(slot);
            }
        }
        self.busy = self.busy.union(&lookup.asked);
        self.lookups.insert(id, lookup);
        id
    }

    /// Whoever began the lookup needs no more candidates.
    pub fn cancel(&mut self, now: Instant, id: LookupId) {
        if self.remove(now, id).is_some() {
            self.counters.cancelled += 1;
        }
    }

    /// When [`Self::expire`] has something to do; it may be in the past.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let has_queue = (!self.broadcast_queue.is_empty()).then_some(now);
        let peers = self.busy.iter().filter_map(|slot| self.peers.get(slot));
        let peers = peers.filter_map(|peer| peer.deadline(now));
        let lookups = self.lookups.values().filter_map(|lookup| lookup.check_at);
        let broadcasts = self.broadcasts.iter().map(|ask| ask.next);
        peers
            .chain(lookups)
            .chain(broadcasts)
            .chain(has_queue)
            .chain(self.burst.discovery_at())
            .chain(self.delayed.deadline())
            .min()
    }

    /// Does what time brings: sends what waits, repeats, ends lookups.
    pub fn expire(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while let Some(reply) = self.delayed.pop_due(now) {
            actions.push(reply);
        }
        if self.burst.take_discovery(now) {
            self.send_discovery(now, actions);
        }
        for slot in self.busy.clone().iter() {
            self.repeat(now, slot, actions);
            self.flush(now, slot, actions);
            if !self.peers.get(slot).is_some_and(Peer::is_busy) {
                self.busy.remove(slot);
            }
        }
        self.send_broadcasts(now, actions);
        let is_due = |lookup: &Lookup| lookup.check_at.is_some_and(|at| at <= now);
        let due = self.lookups.iter().filter(|(_, lookup)| is_due(lookup));
        for id in due.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.check(now, id, actions);
        }
    }

    fn note_activity(&mut self, now: Instant) {
        let is_change = self.burst.is_on(now);
        if !self.burst.note_activity(now, !self.links.is_empty()) {
            return;
        }
        self.counters.bursts += 1;
        let gone = self.peers.prune(now);
        for lookup in self.lookups.values_mut() {
            lookup.forget(&gone);
        }
        self.busy = self.busy.minus(&gone);
        for (_, peer) in self.peers.iter_mut() {
            let is_recent = |at: Instant| now.saturating_duration_since(at) < HOUR;
            // What our own networks did says nothing about peers.
            if is_change || peer.is_configured || peer.heard.is_some_and(is_recent) {
                peer.is_silent = false;
                peer.last_ask = None;
            }
            peer.given_in_burst = 0;
        }
        self.sampled = None;
    }

    /// The sender that our datagrams name.
    pub(super) fn sender(&self) -> Sender {
        Sender {
            http_port: self.settings.http_port,
            instance: self.instance,
        }
    }

    pub(super) fn live_peers(&self) -> Magnitude {
        Magnitude::of(self.peers.live())
    }

    /// Whether there are too many peers to ask each of them.
    pub(super) fn is_crowded(&self, now: Instant) -> bool {
        let is_recent = |at| now.saturating_duration_since(at) < TURNED_AWAY_COUNTS_FOR;
        self.turned_away.is_some_and(is_recent) || self.peers.live() > MAX_UNICAST
    }

    fn is_broadcast_to(&self, interface: u32) -> bool {
        self.links.iter().any(|link| link.interface == interface)
    }

    /// The peers that a new lookup asks one by one.
    fn choose(&mut self, now: Instant) -> Slots {
        let twins = self.peers.twins();
        let takes_asks = |slot: usize, peer: &Peer| peer.takes_asks() && !twins.contains(slot);
        let mut chosen = Slots::default();
        if self.is_crowded(now) {
            self.draw_sample(now, &twins);
            for (slot, peer) in self.peers.iter() {
                let is_reached = self.is_broadcast_to(peer.interface) && !peer.is_configured;
                if takes_asks(slot, peer) && (!is_reached || self.sample.contains(slot)) {
                    chosen.insert(slot);
                }
            }
            return chosen;
        }
        // All that have answered; of those that only broadcasts told of, as many as there is room.
        let mut others = Vec::new();
        for (slot, peer) in self.peers.iter() {
            if !takes_asks(slot, peer) {
                continue;
            }
            if peer.is_live || peer.is_configured {
                chosen.insert(slot);
            } else {
                others.push((peer.heard, slot));
            }
        }
        others.sort_unstable_by(|one, other| other.cmp(one));
        for (_, slot) in others
            .into_iter()
            .take(MAX_UNICAST.saturating_sub(chosen.len()))
        {
            chosen.insert(slot);
        }
        chosen
    }

    /// Draws the sample of a large LAN anew, if that is due: who gave most, and random others.
    fn draw_sample(&mut self, now: Instant, twins: &Slots) {
        let is_fresh = |at| now.saturating_duration_since(at) < SAMPLE_PAUSE;
        if self.sampled.is_some_and(is_fresh) {
            return;
        }
        self.sampled = Some(now);
        let is_wireless = |interface| {
            let mut links = self.links.iter();
            links.any(|link| link.interface == interface && link.is_wireless)
        };
        let able = |(slot, peer): &(usize, &Peer)| {
            peer.takes_asks() && peer.is_live && !peer.is_silent && !twins.contains(*slot)
        };
        let able: Vec<_> = self.peers.iter().filter(able).collect();
        let size = if able.iter().any(|(_, peer)| is_wireless(peer.interface)) {
            SAMPLE_WIRELESS
        } else {
            SAMPLE
        };
        let mut givers: Vec<_> = able
            .iter()
            .filter(|(_, peer)| peer.given_in_burst > 0)
            .map(|(slot, peer)| (peer.given_in_burst, *slot))
            .collect();
        givers.sort_unstable_by(|one, other| other.cmp(one));
        let mut sample = Slots::default();
        for (_, slot) in givers.into_iter().take(SAMPLE_OF_GIVERS) {
            sample.insert(slot);
        }
        let mut rest: Vec<usize> = able.iter().map(|(slot, _)| *slot).collect();
        rest.retain(|&slot| !sample.contains(slot));
        while sample.len() < size && !rest.is_empty() {
            let drawn = self.ids.draw() as usize % rest.len();
            sample.insert(rest.swap_remove(drawn));
        }
        self.sample = sample;
    }

    /// A peer has shown itself that is not waited for: it is asked for what others were asked.
    pub(super) fn catch_up(&mut self, now: Instant, slot: usize) {
        if self.is_crowded(now) || self.peers.twins().contains(slot) {
            return;
        }
        let Some(peer) = self.peers.get_mut(slot).filter(|peer| peer.takes_asks()) else {
            return;
        };
        self.busy.insert(slot);
        let open = self.lookups.iter_mut();
        let open = open.filter(|(_, lookup)| !lookup.asked.contains(slot));
        for (&id, lookup) in open.take(MAX_CATCH_UP) {
            peer.queue.push(Wanted {
                lookup: id,
                copy: 0,
                first_asked: now,
            });
            lookup.ask(slot, true);
        }
    }

    /// Repeats what `slot` has not answered in time, or gives it up.
    fn repeat(&mut self, now: Instant, slot: usize, actions: &mut Vec<Action>) {
        let Some(peer) = self.peers.get_mut(slot) else {
            return;
        };
        let due: Vec<Wave>;
        (due, peer.waves) = std::mem::take(&mut peer.waves)
            .into_iter()
            .partition(|wave| wave.due <= now);
        let is_silent = peer.is_silent;
        // What answered a moment ago does not sleep.
        let is_awake = peer.was_heard_within(now, AWAKE)
            && self.burst.first_burst_until(self.settings.wake_timeout) <= Some(now);
        let mut is_lost = false;
        for wanted in due.into_iter().flat_map(|wave| wave.sent) {
            let Some(lookup) = self.lookups.get_mut(&wanted.lookup) else {
                continue;
            };
            if !lookup.unanswered.contains(slot) {
                continue;
            }
            let Some(peer) = self.peers.get_mut(slot) else {
                return;
            };
            // One that sleeps has the asks in its socket and answers when it is up.
            let patient_until = if is_awake && !lookup.is_undecided {
                now
            } else {
                wanted.first_asked + self.settings.wake_timeout
            };
            if is_silent {
                lookup.give_up(slot);
                lookup.check_at = Some(now);
            } else if wanted.copy < REPEATS {
                self.counters.repeated += 1;
                let copy = wanted.copy + 1;
                peer.queue.push(Wanted { copy, ..wanted });
            } else if now < patient_until && lookup.is_undecided {
                peer.queue.push(wanted);
            } else if now < patient_until {
                peer.waves.push(Wave {
                    due: patient_until,
                    sent: vec![wanted],
                });
            } else {
                lookup.give_up(slot);
                lookup.check_at = Some(now);
                is_lost |= peer.heard.is_none_or(|at| at < wanted.first_asked);
            }
        }
        if is_lost {
            self.give_up(now, slot, actions);
        }
    }

    /// `slot` has let a whole lookup pass: no lookup waits for it until it answers.
    fn give_up(&mut self, now: Instant, slot: usize, actions: &mut Vec<Action>) {
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.is_silent = true;
            self.counters.gone_silent += 1;
        }
        let waits = self.lookups.iter_mut();
        let given_up: Vec<LookupId> = waits
            .filter_map(|(&id, lookup)| lookup.give_up(slot).then_some(id))
            .collect();
        for id in given_up {
            self.check(now, id, actions);
        }
    }

    /// Sends what waits for `slot`, if its turn has come.
    pub(super) fn flush(&mut self, now: Instant, slot: usize, actions: &mut Vec<Action>) {
        let (sender, live) = (self.sender(), self.live_peers());
        let Some(peer) = self.peers.get_mut(slot) else {
            return;
        };
        let lookups = &self.lookups;
        peer.queue.retain(|wanted| {
            let lookup = lookups.get(&wanted.lookup);
            lookup.is_some_and(|lookup| lookup.unanswered.contains(slot))
        });
        if peer.queue.is_empty() || peer.ready_at(now) > now {
            return;
        }
        let count = peer.queue.len().min(MAX_HASHES);
        let sent: Vec<Wanted> = peer.queue.drain(..count).collect();
        let ids: Vec<LookupId> = sent.iter().map(|wanted| wanted.lookup).collect();
        for copy in 0..=REPEATS {
            let same = sent.iter().filter(|wanted| wanted.copy == copy).copied();
            let same: Vec<Wanted> = same.collect();
            if !same.is_empty() {
                let due = now + peer.gap(copy);
                peer.waves.push(Wave { due, sent: same });
            }
        }
        let id = self.ids.draw();
        peer.last_ask = Some((id, now, false));
        let to = peer.address;
        let packet = self.encode(id, sender, live, false, &ids);
        self.asks.insert(now, id, Some(slot), ids);
        self.counters.asks_sent += 1;
        actions.push(Action::Send { to, packet });
    }

    fn encode(
        &self,
        id: u32,
        sender: Sender,
        peers: Magnitude,
        only_if_any: bool,
        lookups: &[LookupId],
    ) -> Packet {
        let hash = |id| self.lookups.get(id).map(|lookup: &Lookup| lookup.hash);
        let ask = Ask {
            id,
            sender,
            only_if_any,
            peers,
            hashes: lookups.iter().filter_map(hash).collect(),
        };
        Datagram::Ask(ask).encode()
    }

    /// Asks one address whether there is a peer.
    pub(super) fn greet(&mut self, now: Instant, to: SocketAddr, actions: &mut Vec<Action>) {
        if !self.greetings.admit(now, to.ip()) {
            return;
        }
        let id = self.ids.draw();
        let packet = self.encode(id, self.sender(), self.live_peers(), false, &[]);
        self.asks.insert(now, id, self.peers.find(to), Vec::new());
        self.counters.asks_sent += 1;
        actions.push(Action::Send { to, packet });
    }

    /// A peer that is not known, or does not answer, has asked: so it is there.
    pub(super) fn note_asker(&mut self, now: Instant, from: SocketAddr, actions: &mut Vec<Action>) {
        let known = self.peers.find(from).and_then(|slot| self.peers.get(slot));
        let is_known = known.is_some_and(|peer| peer.is_live && !peer.is_silent);
        if is_known || from.port() != self.settings.port {
            return;
        }
        if self.burst.is_on(now) {
            self.greet(now, from, actions);
        } else if self.noted.len() < MAX_NOTED && !self.noted.contains(&from) {
            self.noted.push(from);
        }
    }

    /// Asks everyone who is there, and for what is looked up at the moment.
    fn send_discovery(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for address in std::mem::take(&mut self.noted) {
            self.greet(now, address, actions);
        }
        let id = self.ids.draw();
        let live = self.live_peers();
        // All peers answer: on a large LAN those that have nothing need not say for what.
        let open = self.lookups.keys().copied().take(MAX_HASHES);
        let lookups: Vec<LookupId> = if self.is_crowded(now) {
            Vec::new()
        } else {
            open.collect()
        };
        let packet = self.encode(id, self.sender(), live, false, &lookups);
        self.asks.insert(now, id, None, lookups);
        self.counters.discoveries += 1;
        let scope = Scope::Everywhere;
        actions.push(Action::Broadcast { packet, scope });
        if self.burst.gate.is_none() {
            let wait = spread(DISCOVERY_SPREAD, live) + LEAST_BROADCAST_WAIT;
            self.burst.gate = Some(now + wait);
        }
    }

    fn heard_links(&self, now: Instant) -> Vec<u32> {
        let is_recent = |interface: &u32| {
            let at = self.heard_on.get(interface);
            at.is_some_and(|&at| now.saturating_duration_since(at) < HOUR)
        };
        let all: HashSet<u32> = self.links.iter().map(|link| link.interface).collect();
        let mut heard: Vec<u32> = all.into_iter().filter(is_recent).collect();
        heard.sort_unstable();
        heard
    }

    /// An answer came in on this interface; `took`: so long after a broadcast.
    pub(super) fn note_heard_on(&mut self, now: Instant, interface: u32, took: Option<Duration>) {
        if !self.is_broadcast_to(interface) {
            return;
        }
        self.heard_on.insert(interface, now);
        if let Some(took) = took {
            let times = self.broadcast_times.entry(interface).or_default();
            if times.len() >= BROADCAST_SAMPLES {
                times.pop_front();
            }
            times.push_back(took);
        }
    }

    /// The time within which 99 of 100 answers to a broadcast come, of the slowest interface.
    fn slowest_broadcast(&self, interfaces: &[u32]) -> Duration {
        let slow = |interface| {
            let times = self.broadcast_times.get(interface)?;
            let mut times: Vec<Duration> = times.iter().copied().collect();
            times.sort_unstable();
            times
                .get((times.len() * 99).div_ceil(100).saturating_sub(1))
                .copied()
        };
        let slowest = interfaces.iter().filter_map(slow).max();
        slowest.unwrap_or_default().min(LONGEST_BROADCAST_WAIT)
    }

    /// Sends the copies of broadcast asks that are due.
    fn send_broadcasts(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while !self.broadcast_queue.is_empty() {
            let count = self.broadcast_queue.len().min(MAX_HASHES);
            let lookups = self.broadcast_queue.drain(..count).collect();
            self.broadcasts.push(BroadcastAsk {
                lookups,
                copies: 0,
                next: now,
            });
        }
        let interfaces = self.heard_links(now);
        let live = self.live_peers();
        for mut ask in std::mem::take(&mut self.broadcasts) {
            ask.lookups.retain(|id| self.lookups.contains_key(id));
            if ask.lookups.is_empty() {
                continue;
            }
            if ask.next > now {
                self.broadcasts.push(ask);
                continue;
            }
            let id = self.ids.draw();
            let packet = self.encode(id, self.sender(), live, true, &ask.lookups);
            self.asks.insert(now, id, None, ask.lookups.clone());
            for &interface in &interfaces {
                self.counters.broadcasts_sent += 1;
                let (packet, scope) = (packet.clone(), Scope::Interface(interface));
                actions.push(Action::Broadcast { packet, scope });
            }
            ask.copies += 1;
            ask.next = now + BROADCAST_PAUSE;
            if ask.copies < BROADCAST_COPIES {
                self.broadcasts.push(ask);
                continue;
            }
            let least = spread(ASK_SPREAD, live) + LEAST_BROADCAST_WAIT;
            let over = BroadcastWait {
                free_until: now + FREE_BROADCAST_WAIT,
                until: now + least.max(self.slowest_broadcast(&interfaces)),
            };
            for id in ask.lookups {
                if let Some(lookup) = self.lookups.get_mut(&id) {
                    lookup.stage = Stage::Broadcast { over: Some(over) };
                    lookup.check_at = Some(now);
                }
            }
        }
    }

    /// Looks whether a lookup is over, or what it goes on with.
    pub(super) fn check(&mut self, now: Instant, id: LookupId, actions: &mut Vec<Action>) {
        let is_crowded = self.is_crowded(now) && !self.heard_links(now).is_empty();
        loop {
            let Some(lookup) = self.lookups.get_mut(&id) else {
                return;
            };
            if lookup.is_out_of_time {
                lookup.waiting = Slots::default();
            }
            let is_done = match lookup.stage {
                Stage::Unicast => lookup.waiting.is_empty(),
                Stage::Broadcast { over } => over.is_some_and(|over| {
                    let until = if lookup.is_out_of_time {
                        over.until.min(over.free_until)
                    } else {
                        over.until
                    };
                    until <= now
                }),
                // The table may have become too large since.
                Stage::Old { .. } => is_crowded && !lookup.was_broadcast,
            };
            if is_done && self.hold(now, id, is_crowded).is_none() {
                self.go_on(now, id, is_crowded, actions);
                continue;
            }
            let (free, paid) = self.obstacles(now, id);
            let Some(lookup) = self.lookups.get_mut(&id) else {
                return;
            };
            if free.is_some_and(|until| until > now) {
                lookup.check_at = free;
                if let Some(since) = lookup.paid_since.take() {
                    lookup.paid += now.saturating_duration_since(since);
                    self.burst.budget.end(now);
                }
                return;
            }
            let Some(until) = paid.filter(|&until| until > now && !lookup.is_out_of_time) else {
                let outcome = lookup.outcome();
                self.remove(now, id);
                self.finish(id, outcome, actions);
                return;
            };
            let left = self.burst.budget.left(now);
            if left.is_zero() {
                lookup.is_out_of_time = true;
                continue;
            }
            if lookup.paid_since.is_none() {
                self.burst.budget.begin(now);
                lookup.paid_since = Some(now);
            }
            lookup.check_at = Some(until.min(now + left));
            return;
        }
    }

    /// Until when a lookup must not go on to the next stage, if that is not over: answers to the
    /// discovery broadcast may still come, or a peer that says it has the path may give it.
    fn hold(&self, now: Instant, id: LookupId, is_crowded: bool) -> Option<Instant> {
        let lookup = self.lookups.get(&id)?;
        let is_broadcast_next = is_crowded && !lookup.was_broadcast;
        let gate = self
            .burst
            .gate
            .filter(|_| !is_broadcast_next && !self.links.is_empty());
        let named = self.candidate_wait(now, lookup);
        gate.max(named).filter(|&until| until > now)
    }

    /// Until when a peer that says it has the path may give it before others are asked.
    fn candidate_wait(&self, now: Instant, lookup: &Lookup) -> Option<Instant> {
        let named = lookup.named_at.map(|at| at + CANDIDATE_WAIT);
        named.filter(|_| !self.burst.budget.left(now).is_zero())
    }

    /// Until when a lookup is held open at no cost, and until when on the budget of the burst.
    fn obstacles(&self, now: Instant, id: LookupId) -> (Option<Instant>, Option<Instant>) {
        let Some(lookup) = self.lookups.get(&id) else {
            return (None, None);
        };
        let wake_timeout = self.settings.wake_timeout;
        let has_links = !self.links.is_empty();
        let mut free = self.burst.gate.filter(|_| has_links);
        if !matches!(lookup.stage, Stage::Old { .. }) {
            free = free.max(self.candidate_wait(now, lookup));
        }
        let mut paid = self.burst.first_burst_until(wake_timeout);
        paid = paid.filter(|_| has_links);
        match lookup.stage {
            Stage::Unicast => {
                let waits = lookup
                    .waiting
                    .iter()
                    .filter_map(|slot| self.peers.get(slot));
                let is_over = self.burst.budget.left(now).is_zero();
                let wait = waits.map(|peer| peer.free_wait(now, is_over)).max();
                free = free.max(wait.map(|wait| lookup.began + wait));
                // The repeats of each say when it is given up.
                paid = paid.max(wait.map(|_| now + wake_timeout));
            }
            Stage::Broadcast { over: None } => free = free.max(Some(now + wake_timeout)),
            Stage::Broadcast { over: Some(over) } => {
                free = free.max(Some(over.until.min(over.free_until)));
                paid = paid.max(Some(over.until));
            }
            Stage::Old {
                until,
                is_free: true,
            } => free = free.max(Some(until)),
            Stage::Old { until, .. } => paid = paid.max(Some(until)),
        }
        (free, paid)
    }

    /// The next stage of a lookup that nobody has answered so far.
    fn go_on(&mut self, now: Instant, id: LookupId, is_crowded: bool, actions: &mut Vec<Action>) {
        if let Some(lookup) = self.lookups.get_mut(&id)
            && is_crowded
            && !lookup.was_broadcast
        {
            self.broadcast_queue.push(id);
            lookup.was_broadcast = true;
            lookup.stage = Stage::Broadcast { over: None };
            return;
        }
        let has_old_peer = self.peers.has_old_peer(now);
        let until = match self.burst.take_old_request(now, has_old_peer) {
            Some(is_everywhere) => {
                self.ask_old_peers(now, id, is_everywhere, actions);
                let timeout = self.settings.timeout;
                if has_old_peer {
                    now + timeout
                } else {
                    self.burst.old_wait(now, timeout)
                }
            }
            None => now,
        };
        if let Some(lookup) = self.lookups.get_mut(&id) {
            let is_free = has_old_peer;
            lookup.stage = Stage::Old { until, is_free };
        }
    }

    /// Sends a request as old peers understand it: to the networks, and to those that no
    /// broadcast reaches.
    fn ask_old_peers(
        &mut self,
        now: Instant,
        id: LookupId,
        is_everywhere: bool,
        actions: &mut Vec<Action>,
    ) {
        let Some(lookup) = self.lookups.get(&id) else {
            return;
        };
        let request = self.ids.draw();
        let (packet, hash) = (request, lookup.hash);
        let packet = Datagram::Request { id: packet, hash }.encode();
        self.asks.insert(now, request, None, vec![id]);
        let scopes = if is_everywhere {
            vec![Scope::Ipv4]
        } else {
            let heard = self.heard_links(now).into_iter();
            heard.map(Scope::Ipv4On).collect()
        };
        for scope in scopes {
            self.counters.old_requests_sent += 1;
            let packet = packet.clone();
            actions.push(Action::Broadcast { packet, scope });
        }
        for (_, peer) in self.peers.iter() {
            let may_be_old = peer.sender.is_none() && !peer.is_myself;
            let is_reached = self.is_broadcast_to(peer.interface) && !peer.is_configured;
            if may_be_old && !is_reached && !(peer.is_silent && peer.heard_old.is_none()) {
                let (to, packet) = (peer.address, packet.clone());
                self.counters.old_requests_sent += 1;
                actions.push(Action::Send { to, packet });
            }
        }
    }

    fn remove(&mut self, now: Instant, id: LookupId) -> Option<Lookup> {
        let lookup = self.lookups.remove(&id)?;
        if lookup.paid_since.is_some() {
            self.burst.budget.end(now);
        }
        Some(lookup)
    }

    fn finish(&mut self, lookup: LookupId, outcome: Outcome, actions: &mut Vec<Action>) {
        let counter = match outcome.end {
            End::Answered => &mut self.counters.ended_answered,
            End::TimedOut => &mut self.counters.ended_timed_out,
            End::Alone => &mut self.counters.ended_alone,
            End::Overload => &mut self.counters.ended_overload,
        };
        *counter += 1;
        actions.push(Action::Finished { lookup, outcome });
    }

    /// Whether `ip` belongs to a live peer.
    pub(super) fn is_live(&self, ip: IpAddr) -> bool {
        self.peers.at(ip).any(|peer| peer.is_live)
    }
}

/// The time over which so many peers spread their answers.
pub(super) fn spread((each, longest): (Duration, Duration), peers: Magnitude) -> Duration {
    each.saturating_mul(peers.at_most()).min(longest)
}
