//! Who has this path, and who is there at all: a state machine without I/O.
//!
//! Lookups come in bursts. The first after a quiet minute says hello to the LAN, and for
//! [`Settings::wake_timeout`] lookups wait for peers that have to start first. After that a
//! lookup waits only for those known to answer everything, each as long as its answers usually
//! take, and at most for [`Settings::timeout`]; with nobody to wait for it ends at once, and so
//! it does where summaries tell what all of them have. Lookups that come together go out
//! together. Old peers, which answer only with what they have, bring that timeout back while
//! they are around.
//!
//! All that strangers can make grow is bounded: lookups, ids, peers, sources, candidates.

mod action;
mod again;
mod asking;
mod asks;
mod counters;
mod deferred;
mod heard;
mod ids;
mod incoming;
mod limits;
mod peer;
mod peer_info;
mod peers;
mod saved;
mod slots;

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

pub use action::{Action, End, Origin, Outcome, Question, Wanted};
pub use counters::{Counters, Reject};
pub use peer::Kind;
pub use peer_info::PeerInfo;
pub use saved::{Saved, SavedPeer};

use super::wire::{About, Datagram, Held, MAX_BATCH, Packet, VERSION};
use crate::format::StorePathHash;
use asking::FIRST_PROBE;
use asks::{Asks, MAX_LOOKUPS};
use deferred::Deferred;
use heard::{Heard, Sent};
use ids::Ids;
use limits::SourceLimit;
use peers::Peers;

/// A burst ends when loopback has asked nothing for this long.
const QUIET: Duration = Duration::from_secs(60);

/// For so long a hello may be answered.
const HELLO_MEMORY: Duration = Duration::from_secs(60);

/// What discovery is told by configuration and host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Longest wait for a peer that is awake.
    pub timeout: Duration,
    /// Wait while peers wake up, from the start of a burst.
    pub wake_timeout: Duration,
    /// UDP port that is broadcast to; a request from another one tells of no peer.
    pub port: u16,
    /// TCP port where this machine serves, told to others.
    pub http_port: u16,
    /// Peers that are asked directly, canonical; 512 at most are.
    pub static_peers: Vec<SocketAddr>,
    /// Requests and hellos answered to one source, per second.
    pub rate: u32,
    /// And at once.
    pub burst: u32,
}

/// The id is in use, or was a moment ago: draw another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the id {0:#010x} is in use")]
pub struct IdTaken(pub u32);

/// The state machine.
#[derive(Debug)]
pub struct Discovery {
    settings: Settings,
    instance: u64,
    generation: u64,
    ids: Ids,
    peers: Peers,
    asks: Asks,
    /// Lookups that go out with the next ask, and since when the first of them waits.
    queue: Vec<(u32, StorePathHash)>,
    queued_since: Option<Instant>,
    /// When the last ask went out, if it was of several lookups.
    joint_ask: Option<Instant>,
    /// Lookups of this burst that have gone out.
    requested: usize,
    heard: Heard,
    sent: Sent,
    deferred: Deferred,
    sources: SourceLimit,
    counters: Counters,
    has_networks: bool,
    last_asked: Option<Instant>,
    window_ends: Option<Instant>,
    hello: Option<(u32, Instant)>,
    /// Who has answered the hello of this burst and found no place in the table.
    unplaced: HashSet<IpAddr>,
    /// When everybody was last asked, whoever has a summary here or not.
    all_asked: Option<Instant>,
    probe_pause: Duration,
    /// When an announcement last began a burst.
    announced: Option<Instant>,
    /// Announced since, and not yet said hello to.
    strangers: Vec<SocketAddr>,
    /// Peers that were found by name or announcement, asked like configured ones.
    named: Vec<SocketAddr>,
    /// Of these, the announced ones.
    announced_peers: Vec<SocketAddr>,
}

impl Discovery {
    /// `instance` is a random number that stays for as long as this machine runs, `secret` one
    /// that nobody else learns.
    pub fn new(settings: Settings, instance: u64, secret: u64) -> Self {
        let mut peers = Peers::default();
        peers.set_static(&settings.static_peers);
        Self {
            sources: SourceLimit::new(settings.rate, settings.burst),
            settings,
            instance,
            generation: 0,
            ids: Ids::new(secret),
            peers,
            asks: Asks::default(),
            queue: Vec::new(),
            queued_since: None,
            joint_ask: None,
            requested: 0,
            heard: Heard::default(),
            sent: Sent::default(),
            deferred: Deferred::default(),
            counters: Counters::default(),
            has_networks: false,
            last_asked: None,
            window_ends: None,
            hello: None,
            unplaced: HashSet::new(),
            all_asked: None,
            probe_pause: FIRST_PROBE,
            announced: None,
            strangers: Vec::new(),
            named: Vec::new(),
            announced_peers: Vec::new(),
        }
    }

    /// As [`Self::new`], with what [`Self::save`] gave, `asleep` ago, by an earlier process.
    pub fn restore(
        now: Instant,
        settings: Settings,
        saved: &Saved,
        asleep: Duration,
        secret: u64,
    ) -> Self {
        let mut discovery = Self::new(settings, saved.instance, secret);
        discovery.peers.restore(now, &saved.peers, asleep);
        discovery
    }

    /// What the next process should know.
    pub fn save(&self, now: Instant) -> Saved {
        Saved {
            instance: self.instance,
            peers: self.peers.save(now),
        }
    }

    /// New settings; lookups in progress go on with the old ones.
    pub fn configure(&mut self, settings: Settings) {
        if (settings.rate, settings.burst) != (self.settings.rate, self.settings.burst) {
            self.sources = SourceLimit::new(settings.rate, settings.burst);
        }
        self.settings = settings;
        self.place_statics();
    }

    /// Peers that names, SRV records or announcements stand for at present, canonical: asked
    /// directly, as those of [`Settings::static_peers`] are, but for those that broadcast has
    /// reached already. A new one may be asleep: the next question begins a burst. Anybody can
    /// announce, so for `announced` ones that is once a minute; others are sent a hello with it.
    pub fn set_named(&mut self, now: Instant, named: &[SocketAddr], announced: &[SocketAddr]) {
        let is_new =
            |peer: &SocketAddr| !self.named.contains(peer) && !self.peers.is_present(*peer);
        let late: Vec<SocketAddr> = announced.iter().copied().filter(is_new).collect();
        let begins = self.announced.is_none_or(|at| now >= at + QUIET);
        let is_named = named.iter().any(is_new);
        let all = named.iter().chain(announced).copied();
        self.named = all
            .filter(|peer| self.named.contains(peer) || is_new(peer))
            .collect();
        self.announced_peers = announced.to_vec();
        self.strangers.retain(|peer| self.named.contains(peer));
        if is_named || begins && !late.is_empty() {
            self.last_asked = None;
        } else {
            self.strangers.extend(&late);
        }
        if begins && !late.is_empty() {
            self.announced = Some(now);
        }
        self.place_statics();
    }

    fn place_statics(&mut self) {
        let all = self.settings.static_peers.iter().chain(&self.named);
        let all: Vec<SocketAddr> = all.copied().collect();
        self.peers.set_static(&all);
        let by_others = |peer: &&SocketAddr| !self.settings.static_peers.contains(peer);
        let announced = self.announced_peers.iter().filter(by_others).copied();
        self.peers.set_announced(&announced.collect::<Vec<_>>());
    }

    /// The random number that tells others who we are.
    pub fn instance(&self) -> u64 {
        self.instance
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The generation of our store, told to others.
    pub fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// The summaries that are here: instance and generation of each. Who has one of them, and
    /// has said in this burst that nothing was added since, need not be asked.
    pub fn set_summaries(&mut self, summaries: &[(u64, u64)]) {
        self.peers.set_summaries(summaries);
    }

    /// Whether there is a network to broadcast on, and whether one appeared of late that
    /// has not heard our hello. In that case the next question begins a burst.
    pub fn set_networks(&mut self, any: bool, new: bool) {
        self.has_networks = any;
        if new {
            self.last_asked = None;
        }
    }

    /// Loopback has asked something: the first time in a while this says hello, with `id`.
    pub fn stir(&mut self, now: Instant, id: u32, actions: &mut Vec<Action>) {
        if !self.reaches_anyone() {
            return;
        }
        let before = self.last_asked.replace(now);
        if before.is_some_and(|at| now < at + QUIET) {
            self.greet(now, id, actions);
            return;
        }
        self.strangers.clear();
        self.counters.bursts += 1;
        let window_ends = now + self.settings.wake_timeout;
        self.window_ends = Some(window_ends);
        self.hello = Some((id, now));
        self.unplaced.clear();
        self.requested = 0;
        // The answers to a hello tell what those to a batch do.
        self.all_asked = Some(now);
        self.probe_soon();
        self.peers.begin_burst(window_ends);
        self.asks.hold();
        self.say_hello(now, id, actions);
    }

    /// Asks the LAN for `hash`. Candidates follow as actions, and one `Finished`, at once
    /// or later, unless [`Self::cancel`] comes first.
    pub fn lookup(
        &mut self,
        now: Instant,
        id: u32,
        hash: StorePathHash,
        actions: &mut Vec<Action>,
    ) -> Result<(), IdTaken> {
        if self.asks.knows(id) || self.queue.iter().any(|&(queued, _)| queued == id) {
            return Err(IdTaken(id));
        }
        self.stir(now, id, actions);
        self.counters.lookups += 1;
        if let Some(end) = self.refusal() {
            let outcome = Outcome::without_asking(end);
            self.finish(id, outcome, actions);
            return Ok(());
        }
        if self.is_covered(now) {
            self.probe(now, id, hash, actions);
            self.finish(id, Outcome::without_asking(End::Covered), actions);
            return Ok(());
        }
        self.queue.push((id, hash));
        self.queued_since.get_or_insert(now);
        if self.queue.len() >= MAX_BATCH || !self.gathers(now) {
            self.flush(now, actions);
        }
        Ok(())
    }

    /// Whoever began the lookup needs no more candidates.
    pub fn cancel(&mut self, id: u32) {
        let waiting = self.queue.len();
        self.queue.retain(|&(queued, _)| queued != id);
        if self.asks.remove(id).is_some() || self.queue.len() < waiting {
            self.counters.cancelled += 1;
        }
        if self.queue.is_empty() {
            self.queued_since = None;
        }
    }

    /// When [`Self::expire`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let times = [
            self.asks.deadline(),
            self.gathered_at(),
            self.deferred.deadline(),
        ];
        times.into_iter().flatten().min()
    }

    /// Does what time brings: ends lookups, asks again, sends what has waited.
    pub fn expire(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while let Some((to, packet)) = self.deferred.pop_due(now) {
            actions.push(Action::Reply { to, packet });
        }
        while let Some(number) = self.asks.pop_due(now) {
            self.attend(now, number, actions);
        }
        let due = self.gathered_at().is_some_and(|at| at <= now);
        if due || self.queued_since.is_some() && !self.gathers(now) {
            self.flush(now, actions);
        }
    }

    /// Answers a batch; `held`: which of its paths are here and shared. Only who asked many at
    /// once, and knows many, gets no answer where there is nothing to say.
    pub fn answer(&mut self, now: Instant, question: &Question, held: Held) -> Option<Action> {
        let Wanted::Batch { known, to_many, .. } = &question.wanted else {
            return None;
        };
        if held.is_empty() && *to_many && *known > asking::FEW_PEERS {
            self.counters.left_out += 1;
            return None;
        }
        let (id, about) = (question.id, self.about());
        let packet = Datagram::Answer { id, about, held }.encode();
        let known = if *to_many { *known } else { 0 };
        self.reply_within(now, known, question.from, question.id, packet)
    }

    /// Answers at once, or after a part of the time over which `known` peers spread theirs.
    fn reply_within(
        &mut self,
        now: Instant,
        known: u16,
        to: SocketAddr,
        id: u32,
        packet: Packet,
    ) -> Option<Action> {
        let spread = deferred::spread(known);
        let packet = if spread.is_zero() {
            packet
        } else {
            // Every peer has another part, and another one each time.
            let part =
                self.instance.wrapping_mul(0x9e37_79b9_7f4a_7c15) as u32 ^ id.rotate_left(16);
            let wait = spread.mul_f64(f64::from(part) / f64::from(u32::MAX));
            self.deferred.push(now + wait, to, packet)?
        };
        Some(Action::Reply { to, packet })
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Who is known.
    pub fn peers(&self, now: Instant) -> Vec<PeerInfo> {
        self.peers.snapshot(now)
    }

    fn about(&self) -> About {
        About {
            instance: self.instance,
            version: VERSION,
            http_port: self.settings.http_port,
            generation: self.generation,
        }
    }

    fn reaches_anyone(&self) -> bool {
        self.has_networks || self.peers.has_direct()
    }

    fn refusal(&self) -> Option<End> {
        if !self.reaches_anyone() {
            Some(End::Alone)
        } else if self.asks.len() + self.queue.len() >= MAX_LOOKUPS {
            Some(End::Overload)
        } else {
            None
        }
    }

    fn finish(&mut self, lookup: u32, outcome: Outcome, actions: &mut Vec<Action>) {
        let counter = match outcome.end {
            End::Answered => &mut self.counters.ended_answered,
            End::Timeout => &mut self.counters.ended_timeout,
            End::Alone => &mut self.counters.ended_alone,
            End::Covered => &mut self.counters.ended_covered,
            End::Overload => &mut self.counters.ended_overload,
        };
        *counter += 1;
        actions.push(Action::Finished { lookup, outcome });
    }
}

#[cfg(test)]
mod tests;
