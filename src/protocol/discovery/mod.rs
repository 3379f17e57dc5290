//! Who has this path, and who is there at all: a state machine without I/O.
//!
//! Lookups come in bursts. The first after a quiet minute says hello to the LAN, and for
//! [`Settings::wake_timeout`] lookups wait for peers that have to start first. After that a
//! lookup waits only for those known to answer every request, and at most for
//! [`Settings::timeout`]; with nobody to wait for it ends at once. Old peers, which answer
//! only with what they have, bring that timeout back while they are around.
//!
//! All that strangers can make grow is bounded: lookups, ids, peers, sources, candidates.

mod action;
mod counters;
mod incoming;
mod limits;
mod lookups;
mod peer_info;
mod peers;
mod saved;
mod slots;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

pub use action::{Action, End, Origin, Outcome, Question};
pub use counters::{Counters, Reject};
pub use peer_info::PeerInfo;
pub use peers::Kind;
pub use saved::{Saved, SavedPeer};

use super::wire::{About, Datagram, VERSION};
use crate::format::StorePathHash;
use limits::SourceLimit;
use lookups::{Lookup, Lookups, MAX_LOOKUPS};
use peers::Peers;
use slots::Slots;

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
    peers: Peers,
    lookups: Lookups,
    sources: SourceLimit,
    counters: Counters,
    has_networks: bool,
    last_asked: Option<Instant>,
    window_ends: Option<Instant>,
    hello: Option<(u32, Instant)>,
}

impl Discovery {
    /// `instance` is a random number that stays for as long as this machine runs.
    pub fn new(settings: Settings, instance: u64) -> Self {
        let mut peers = Peers::default();
        peers.set_static(&settings.static_peers);
        Self {
            sources: SourceLimit::new(settings.rate, settings.burst),
            settings,
            instance,
            generation: 0,
            peers,
            lookups: Lookups::default(),
            counters: Counters::default(),
            has_networks: false,
            last_asked: None,
            window_ends: None,
            hello: None,
        }
    }

    /// As [`Self::new`], with what [`Self::save`] gave, `asleep` ago, by an earlier process.
    pub fn restore(now: Instant, settings: Settings, saved: &Saved, asleep: Duration) -> Self {
        let mut discovery = Self::new(settings, saved.instance);
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
        self.peers.set_static(&settings.static_peers);
        if (settings.rate, settings.burst) != (self.settings.rate, self.settings.burst) {
            self.sources = SourceLimit::new(settings.rate, settings.burst);
        }
        self.settings = settings;
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The generation of our store, told to others.
    pub fn set_generation(&mut self, generation: u64) {
        self.generation = generation;
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
            return;
        }
        self.counters.bursts += 1;
        self.window_ends = Some(now + self.settings.wake_timeout);
        self.hello = Some((id, now));
        self.peers.begin_burst();
        self.lookups.hold();
        let about = self.about();
        self.ask(now, Datagram::Hello { id, about }, actions);
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
        if self.lookups.knows(id) {
            return Err(IdTaken(id));
        }
        self.stir(now, id, actions);
        self.counters.lookups += 1;
        if let Some(end) = self.refusal() {
            let outcome = Outcome::without_asking(end);
            self.finish(id, outcome, actions);
            return Ok(());
        }
        self.ask(now, Datagram::Request { id, hash }, actions);
        let settles = self.window_ends.map_or(now, |at| at.max(now));
        let lookup = Lookup {
            hash,
            settles,
            ends: settles.max(now + self.settings.timeout),
            counts_silence: settles == now,
            answered: Slots::default(),
            candidates: Vec::new(),
            absent: 0,
        };
        self.lookups.insert(now, id, lookup);
        self.finish_if_over(now, id, actions);
        Ok(())
    }

    /// Whoever began the lookup needs no more candidates.
    pub fn cancel(&mut self, id: u32) {
        if self.lookups.remove(id).is_some() {
            self.counters.cancelled += 1;
        }
    }

    /// When [`Self::expire`] has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.lookups.deadline()
    }

    /// Ends the lookups whose time is up.
    pub fn expire(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while let Some(id) = self.lookups.pop_due(now) {
            self.finish_if_over(now, id, actions);
        }
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
        self.has_networks || self.peers.has_others_configured()
    }

    fn refusal(&self) -> Option<End> {
        if !self.reaches_anyone() {
            Some(End::Alone)
        } else if self.lookups.len() >= MAX_LOOKUPS {
            Some(End::Overload)
        } else {
            None
        }
    }

    fn ask(&mut self, now: Instant, datagram: Datagram, actions: &mut Vec<Action>) {
        let packet = datagram.encode();
        if self.has_networks {
            actions.push(Action::Broadcast(packet));
        }
        let direct = self.peers.ask_directly(now).into_iter();
        actions.extend(direct.map(|to| Action::Send { to, packet }));
    }

    /// Ends the lookup if nothing that matters can come any more.
    fn finish_if_over(&mut self, now: Instant, id: u32, actions: &mut Vec<Action>) {
        let Some(lookup) = self.lookups.get(id) else {
            return;
        };
        let waited = self.peers.waited();
        let end = if now >= lookup.ends {
            End::Timeout
        } else if now < lookup.settles
            || !waited.is_subset(&lookup.answered)
            || self.peers.may_miss_someone(now)
        {
            return;
        } else if waited.is_empty() {
            End::Alone
        } else {
            End::Answered
        };
        let outcome = Outcome {
            end,
            present: lookup.candidates.len() as u32,
            absent: lookup.absent,
            silent: waited.without(&lookup.answered).count() as u32,
        };
        if end == End::Timeout && lookup.counts_silence {
            self.peers.note_silence(&lookup.answered);
        }
        self.lookups.remove(id);
        self.finish(id, outcome, actions);
    }

    fn finish(&mut self, lookup: u32, outcome: Outcome, actions: &mut Vec<Action>) {
        let counter = match outcome.end {
            End::Answered => &mut self.counters.ended_answered,
            End::Timeout => &mut self.counters.ended_timeout,
            End::Alone => &mut self.counters.ended_alone,
            End::Overload => &mut self.counters.ended_overload,
        };
        *counter += 1;
        actions.push(Action::Finished { lookup, outcome });
    }
}

#[cfg(test)]
mod tests;
