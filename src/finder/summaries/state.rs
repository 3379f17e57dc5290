//! What is known of the peers' summaries, and of the burst that they serve.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use lru::LruCache;

use crate::protocol::{PeerAddr, summary::Summary};

/// A burst ends when Nix has asked nothing for this long, as in `protocol::discovery`.
pub(super) const QUIET: Duration = Duration::from_secs(60);

/// Summaries that are kept.
pub(super) const MOST_HELD: usize = 16;

/// Memory for all of them.
pub(super) const MOST_MEMORY: usize = 4 << 20;

/// Of so many paths that a summary had, more than one in twenty must not be absent.
pub(super) const FEWEST_POSITIVES: u32 = 64;

/// Peers whose faults and finds are remembered.
pub(super) const PEERS: NonZeroUsize = NonZeroUsize::new(1_024).expect("not zero");

#[derive(Debug)]
pub(super) struct State {
    pub(super) burst: Option<Burst>,
    pub(super) held: HashMap<PeerAddr, Held>,
    /// Who was there at the last look, and whether that was in this burst.
    pub(super) live: Vec<Live>,
    pub(super) is_planned: bool,
    /// When a peer may be asked again.
    pub(super) shunned: LruCache<PeerAddr, Instant>,
    /// Paths that were found at a peer.
    pub(super) finds: LruCache<PeerAddr, u64>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            burst: None,
            held: HashMap::new(),
            live: Vec::new(),
            is_planned: false,
            shunned: LruCache::new(PEERS),
            finds: LruCache::new(PEERS),
        }
    }
}

/// A peer that was heard, and what it said of itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Live {
    pub(super) peer: PeerAddr,
    pub(super) instance: u64,
    pub(super) generation: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Burst {
    pub(super) began: Instant,
    pub(super) last: Instant,
    pub(super) lookups: u32,
}

impl Burst {
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.last) >= QUIET
    }
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) summary: Summary,
    /// When it is fetched whole again.
    pub(super) until: Instant,
    /// Whether the peer has confirmed it in this burst.
    pub(super) is_confirmed: bool,
    /// Paths of this burst that it has, and that were asked for; and that were absent.
    pub(super) positives: u32,
    pub(super) wrong: u32,
}

impl Held {
    pub(super) fn is_too_often_wrong(&self) -> bool {
        self.positives >= FEWEST_POSITIVES && self.wrong * 20 > self.positives
    }
}

impl State {
    pub(super) fn is_live(&self, peer: &PeerAddr) -> bool {
        self.live.iter().any(|live| live.peer == *peer)
    }

    pub(super) fn memory_bytes(&self) -> usize {
        let held = self.held.values();
        held.map(|held| held.summary.memory_bytes()).sum()
    }

    /// Bytes that a summary of `peer` may have: it takes the place of its last one, and of those of
    /// peers that are not there.
    pub(super) fn room_for(&self, peer: PeerAddr) -> u64 {
        let others = self.held.iter();
        let stay = others.filter(|(other, _)| **other != peer && self.is_live(other));
        let taken: usize = stay.map(|(_, held)| held.summary.memory_bytes()).sum();
        MOST_MEMORY.saturating_sub(taken) as u64
    }

    pub(super) fn fits(&self) -> bool {
        self.held.len() <= MOST_HELD && self.memory_bytes() <= MOST_MEMORY
    }

    /// Holds a summary, in the place of peers that are not there if need be; false if there is no
    /// room.
    pub(super) fn hold(&mut self, peer: PeerAddr, summary: Summary, until: Instant) -> bool {
        let held = Held {
            summary,
            until,
            is_confirmed: true,
            positives: 0,
            wrong: 0,
        };
        self.held.insert(peer, held);
        while !self.fits() {
            let gone = self.held.keys();
            let gone = gone.filter(|it| **it != peer && !self.is_live(it));
            let gone = gone.min_by_key(|it| self.finds.peek(it).copied()).copied();
            match gone {
                Some(gone) => self.held.remove(&gone),
                None => {
                    self.held.remove(&peer);
                    return false;
                }
            };
        }
        true
    }
}
