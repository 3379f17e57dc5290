//! The state machine: its parts, its inputs, and what time brings.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::{
    Action, Counters, End, Link, LookupId, Outcome, PeerInfo, PersistedState,
    asks::Asks,
    broadcast::BroadcastAsk,
    burst::Burst,
    delayed_answers::DelayedAnswers,
    ids::Ids,
    lookup::Lookup,
    peer::{Peer, Wanted},
    peer_table::{HOUR, PeerTable},
    rate_limit::{AskLimit, GreetingLimit, NewPeerLimit, PerSecond},
    slots::Slots,
};
use crate::{
    format::StorePathHash,
    protocol::{
        PeerAddr, WaitBudget,
        datagram::{Magnitude, Sender},
    },
};

/// Lookups in progress at once; further ones end without an answer.
pub const MAX_LOOKUPS: usize = 4_096;

/// Peers that are asked one by one. Above it most of them are asked by broadcast.
pub(super) const MAX_UNICAST: usize = 64;

/// While a peer was turned away within this time, the table does not have all of them.
const TURNED_AWAY_COUNTS_FOR: Duration = Duration::from_secs(60);

/// Answers to a broadcast ask are spread over this for each live peer, and over this at most.
pub(super) const ASK_SPREAD: (Duration, Duration) =
    (Duration::from_micros(5), Duration::from_millis(5));

/// The same for a discovery broadcast, which all peers answer.
pub(super) const DISCOVERY_SPREAD: (Duration, Duration) =
    (Duration::from_micros(20), Duration::from_millis(20));

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
    pub(super) greetings: GreetingLimit,
    pub(super) new_peers: NewPeerLimit,
    pub(super) turned_away: Option<Instant>,
    pub(super) lookups: BTreeMap<LookupId, Lookup>,
    pub(super) next_lookup: u64,
    /// Peers to which something is to be sent, or repeated.
    pub(super) busy: Slots,
    pub(super) links: Vec<Link>,
    /// Interfaces on which a peer answered, and when it last did.
    pub(super) heard_on: HashMap<u32, Instant>,
    pub(super) broadcast_times: HashMap<u32, VecDeque<Duration>>,
    /// Lookups that go out with the next broadcast ask.
    pub(super) broadcast_queue: Vec<LookupId>,
    pub(super) broadcasts: Vec<BroadcastAsk>,
    pub(super) sample: Slots,
    pub(super) sampled: Option<Instant>,
    /// Found by name, and announced by DNS-SD.
    pub(super) named: (Vec<SocketAddr>, Vec<SocketAddr>),
    /// Askers that were not known while nothing was looked up.
    pub(super) noted: Vec<SocketAddr>,
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
            greetings: GreetingLimit::default(),
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
    pub fn set_named(&mut self, now: Instant, named: &[SocketAddr], announced: &[SocketAddr]) {
        let (before, announced_before) = &self.named;
        if named.iter().any(|peer| !before.contains(peer)) {
            self.burst.note_network_change();
        }
        let is_new = |peer: &SocketAddr| {
            !announced_before.contains(peer) && self.peers.find(*peer).is_none()
        };
        if announced.iter().any(is_new) {
            self.burst.note_announcement(now);
        }
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

    /// The instance that a peer says it is.
    pub fn instance_of(&self, peer: PeerAddr) -> Option<u64> {
        let mut here = self.peers.at(peer.ip());
        Some(here.find(|it| it.http() == Some(peer))?.sender?.instance)
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
        self.burst.note_given(given);
        let mut periods = Vec::new();
        for (_, peer) in self.peers.iter_mut() {
            if peer.address.ip() == given.ip() {
                peer.given = Some(now);
                peer.given_in_burst += 1;
                periods.extend(peer.owed.take());
            }
        }
        let lookups = self.lookups.values();
        let waiting = lookups.filter(|lookup| lookup.candidates.contains(&given));
        periods.extend(waiting.filter_map(|lookup| Some(lookup.first_paid?..now)));
        for period in periods {
            self.burst.budget.refund(now, period);
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
        // One that answered within the hour is asked for all; others only for what is denied.
        if self.peers.has_old_peer(now) {
            self.request_of_old_peers(now, id, actions);
        }
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
            // Another machine may have that address now.
            peer.is_myself = false;
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

    pub(super) fn is_broadcast_to(&self, interface: u32) -> bool {
        self.links.iter().any(|link| link.interface == interface)
    }

    pub(super) fn remove(&mut self, now: Instant, id: LookupId) -> Option<Lookup> {
        let lookup = self.lookups.remove(&id)?;
        if lookup.paid_since.is_some() {
            self.burst.budget.end(now);
        }
        Some(lookup)
    }

    pub(super) fn finish(&mut self, lookup: LookupId, outcome: Outcome, actions: &mut Vec<Action>) {
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
