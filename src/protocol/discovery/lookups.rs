//! Lookups in progress, and the ids of those that ended.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::SocketAddr,
    time::Instant,
};

use super::slots::Slots;
use crate::format::StorePathHash;

/// Lookups in progress at once.
pub(super) const MAX_LOOKUPS: usize = 4_096;

/// Ids of ended lookups that are remembered: what they asked still echoes, and is still
/// answered.
const MAX_ENDED: usize = 4_096;

/// Holders of one path that are told of.
const MAX_CANDIDATES: usize = 32;

/// One question to the LAN.
#[derive(Debug)]
pub(super) struct Lookup {
    pub(super) hash: StorePathHash,
    /// The end of the wake window, or the start: from then on answers can end it.
    pub(super) settles: Instant,
    /// When it ends at the latest.
    pub(super) ends: Instant,
    /// It began after the wake window, so who is silent is gone, and not just waking up.
    pub(super) counts_silence: bool,
    /// Peers of the table that have answered.
    pub(super) answered: Slots,
    /// Who has it.
    pub(super) candidates: Vec<SocketAddr>,
    pub(super) absent: u32,
}

impl Lookup {
    /// Takes note of a holder; false if it is known already, or there are enough.
    pub(super) fn add_candidate(&mut self, from: SocketAddr) -> bool {
        let room = self.candidates.len() < MAX_CANDIDATES;
        let is_new = room && !self.candidates.contains(&from);
        if is_new {
            self.candidates.push(from);
        }
        is_new
    }

    fn wakes(&self, now: Instant) -> Instant {
        if now < self.settles {
            self.settles
        } else {
            self.ends
        }
    }
}

/// What an id stands for.
#[derive(Debug)]
pub(super) enum Asked<'a> {
    Now(&'a mut Lookup),
    Before,
    Never,
}

/// All lookups.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    active: HashMap<u32, Lookup>,
    deadlines: BTreeSet<(Instant, u32)>,
    ended: HashMap<u32, StorePathHash>,
    ended_order: VecDeque<u32>,
}

impl Lookups {
    pub(super) fn len(&self) -> usize {
        self.active.len()
    }

    /// Whether `id` is in use, or was of late.
    pub(super) fn knows(&self, id: u32) -> bool {
        self.active.contains_key(&id) || self.ended.contains_key(&id)
    }

    /// What was asked for with `id`.
    pub(super) fn hash_of(&self, id: u32) -> Option<StorePathHash> {
        let active = self.active.get(&id).map(|lookup| lookup.hash);
        active.or_else(|| self.ended.get(&id).copied())
    }

    pub(super) fn asked(&mut self, id: u32) -> Asked<'_> {
        match self.active.get_mut(&id) {
            Some(lookup) => Asked::Now(lookup),
            None if self.ended.contains_key(&id) => Asked::Before,
            None => Asked::Never,
        }
    }

    pub(super) fn get(&self, id: u32) -> Option<&Lookup> {
        self.active.get(&id)
    }

    pub(super) fn insert(&mut self, now: Instant, id: u32, lookup: Lookup) {
        self.deadlines.insert((lookup.wakes(now), id));
        self.active.insert(id, lookup);
    }

    /// Ends a lookup; its id stays known for a while.
    pub(super) fn remove(&mut self, id: u32) -> Option<Lookup> {
        let lookup = self.active.remove(&id)?;
        self.deadlines.remove(&(lookup.settles, id));
        self.deadlines.remove(&(lookup.ends, id));
        self.remember(id, lookup.hash);
        Some(lookup)
    }

    /// The next time at which a lookup may end by itself.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(at, _)| at)
    }

    /// The next lookup whose time has come; it is asked for again at its end.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<u32> {
        let &(at, id) = self.deadlines.first().filter(|&&(at, _)| at <= now)?;
        self.deadlines.remove(&(at, id));
        if let Some(lookup) = self.active.get(&id)
            && now < lookup.ends
        {
            self.deadlines.insert((lookup.ends, id));
        }
        Some(id)
    }

    /// From now on only time ends the lookups in progress.
    pub(super) fn hold(&mut self) {
        for (&id, lookup) in &mut self.active {
            self.deadlines.remove(&(lookup.settles, id));
            lookup.settles = lookup.ends;
            self.deadlines.insert((lookup.ends, id));
        }
    }

    /// The slot has become another peer's.
    pub(super) fn forget_slot(&mut self, slot: usize) {
        for lookup in self.active.values_mut() {
            lookup.answered.remove(slot);
        }
    }

    fn remember(&mut self, id: u32, hash: StorePathHash) {
        if self.ended_order.len() == MAX_ENDED
            && let Some(oldest) = self.ended_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
        self.ended_order.push_back(id);
        self.ended.insert(id, hash);
    }
}
