//! Lookups in progress, the asks that they were sent in, and what of both is remembered when
//! they have ended.
//!
//! An *ask* is what went out at one time: one lookup or several, which share their clock. Its
//! *frames* are the batches that it was sent in, the first and those sent again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::slots::Slots;
use crate::format::StorePathHash;

/// Lookups in progress at once.
pub(super) const MAX_LOOKUPS: usize = 4_096;

/// Ids of ended lookups, and of ended frames, that are remembered: what they asked still
/// echoes, and is still answered.
const MAX_ENDED: usize = 4_096;

/// Holders of one path that are told of.
const MAX_CANDIDATES: usize = 32;

/// How often an ask is sent at most.
pub(super) const TRIES: u8 = 3;

/// The same while those who are silent may be waking up: whoever is late has a chance near the end.
const WAKE_TRIES: u8 = 4;

/// The same if only who has something answers: then all the others are asked again with whom it
/// may have missed, by one datagram.
pub(super) const QUIET_TRIES: u8 = 4;

/// One question to the LAN.
#[derive(Debug)]
pub(super) struct Lookup {
    pub(super) hash: StorePathHash,
    /// The ask that it is part of.
    pub(super) ask: u64,
    /// Peers of the table that have answered.
    pub(super) answered: Slots,
    /// Who has it.
    pub(super) candidates: Vec<SocketAddr>,
    pub(super) absent: u32,
}

impl Lookup {
    pub(super) fn new(hash: StorePathHash, ask: u64) -> Self {
        Self {
            hash,
            ask,
            answered: Slots::default(),
            candidates: Vec::new(),
            absent: 0,
        }
    }

    /// Takes note of a holder; false if it is known already, or there are enough.
    pub(super) fn add_candidate(&mut self, from: SocketAddr) -> bool {
        let room = self.candidates.len() < MAX_CANDIDATES;
        let is_new = room && !self.candidates.contains(&from);
        if is_new {
            self.candidates.push(from);
        }
        is_new
    }
}

/// What went out together.
#[derive(Debug)]
pub(super) struct Ask {
    /// Ids of its lookups that have not ended.
    pub(super) lookups: Vec<u32>,
    pub(super) sent: Instant,
    /// When it was last sent, the first time or again.
    pub(super) last_sent: Instant,
    /// The end of the wake window, or when it was sent: from then on answers can end its lookups.
    pub(super) settles: Instant,
    /// When it ends at the latest.
    pub(super) ends: Instant,
    /// It was sent after the wake window, so who is silent is gone, and not just waking up.
    pub(super) counts_silence: bool,
    /// Only who has something answers.
    pub(super) is_quiet: bool,
    /// Peers of the table that have answered any of it.
    pub(super) answered: Slots,
    /// How often it was sent.
    tries: u8,
    /// How long answers usually take: then who is silent is asked again.
    pause: Duration,
    again: Option<Instant>,
    /// Its place among the deadlines.
    due: Instant,
}

impl Ask {
    /// An ask that is sent at `now`, and ends by itself at `ends`. After the wake window who is
    /// silent is asked again after each `pause`.
    pub(super) fn new(now: Instant, settles: Instant, ends: Instant, pause: Duration) -> Self {
        let mut ask = Self {
            lookups: Vec::new(),
            sent: now,
            last_sent: now,
            settles,
            ends,
            counts_silence: settles <= now,
            is_quiet: false,
            answered: Slots::default(),
            tries: 1,
            pause,
            again: None,
            due: ends,
        };
        ask.plan(now);
        ask
    }

    /// Whether only who has something will answer.
    pub(super) fn set_quiet(&mut self, now: Instant, is_quiet: bool) {
        self.is_quiet = is_quiet;
        self.plan(now);
    }

    /// When to ask again those who are silent, a few times at most; those who may have been asleep in
    /// the middle of their time, and in the middle of what is left.
    fn plan(&mut self, now: Instant) {
        let at = if now < self.settles {
            now + self.settles.duration_since(now) / 2
        } else {
            now + self.pause
        };
        let most = if self.is_quiet {
            QUIET_TRIES
        } else if now < self.settles {
            WAKE_TRIES
        } else {
            TRIES
        };
        self.again = Some(at).filter(|&at| self.tries < most && now < at && at < self.ends);
    }

    /// Whether it is time to ask again; if so that is counted.
    pub(super) fn is_to_be_repeated(&mut self, now: Instant) -> bool {
        let due = self.again.is_some_and(|at| at <= now);
        if due {
            self.tries += 1;
            self.last_sent = now;
            self.plan(now);
        }
        due
    }

    /// When something is to be done about it.
    fn wakes(&self, now: Instant) -> Instant {
        let next = if now < self.settles {
            self.settles
        } else {
            self.ends
        };
        self.again.map_or(next, |at| at.min(next))
    }
}

/// What an id stands for.
#[derive(Debug)]
pub(super) enum Asked<T> {
    Now(T),
    /// It has ended; when it was last sent.
    Before(Instant),
    Never,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Asks {
    lookups: HashMap<u32, Lookup>,
    /// By number; numbers rise with time.
    asks: BTreeMap<u64, Ask>,
    next_ask: u64,
    deadlines: BTreeSet<(Instant, u64)>,
    /// Ids of batches, and the lookups of each in its order.
    frames: HashMap<u32, Vec<u32>>,
    frame_order: VecDeque<u32>,
    /// What was asked for, and when it was last sent.
    ended: HashMap<u32, (StorePathHash, Instant)>,
    ended_order: VecDeque<u32>,
}

impl Asks {
    pub(super) fn len(&self) -> usize {
        self.lookups.len()
    }

    /// Whether `id` is in use, or was of late.
    pub(super) fn knows(&self, id: u32) -> bool {
        self.lookups.contains_key(&id)
            || self.ended.contains_key(&id)
            || self.frames.contains_key(&id)
    }

    /// What was asked for with `id`.
    pub(super) fn hash_of(&self, id: u32) -> Option<StorePathHash> {
        let active = self.lookups.get(&id).map(|lookup| lookup.hash);
        active.or_else(|| self.ended.get(&id).map(|&(hash, _)| hash))
    }

    pub(super) fn asked(&mut self, id: u32) -> Asked<&mut Lookup> {
        match self.lookups.get_mut(&id) {
            Some(lookup) => Asked::Now(lookup),
            None => match self.ended.get(&id) {
                Some(&(_, sent)) => Asked::Before(sent),
                None => Asked::Never,
            },
        }
    }

    /// The lookups of the batch `id`, in its order; some may have ended.
    pub(super) fn framed(&self, id: u32) -> Asked<Vec<u32>> {
        match self.frames.get(&id) {
            Some(lookups) if lookups.iter().any(|id| self.lookups.contains_key(id)) => {
                Asked::Now(lookups.clone())
            }
            Some(lookups) => {
                let sent = lookups.iter().find_map(|id| self.ended.get(id));
                sent.map_or(Asked::Never, |&(_, sent)| Asked::Before(sent))
            }
            None => Asked::Never,
        }
    }

    pub(super) fn get(&self, id: u32) -> Option<&Lookup> {
        self.lookups.get(&id)
    }

    pub(super) fn ask(&self, number: u64) -> Option<&Ask> {
        self.asks.get(&number)
    }

    pub(super) fn ask_mut(&mut self, number: u64) -> Option<&mut Ask> {
        self.asks.get_mut(&number)
    }

    /// Whether something was sent at `since` or later and is not answered.
    pub(super) fn any_since(&self, since: Instant) -> bool {
        let latest = self.asks.last_key_value();
        latest.is_some_and(|(_, ask)| ask.sent >= since)
    }

    /// The lookups that go out as one.
    pub(super) fn begin(&mut self, now: Instant, mut ask: Ask, asked: &[(u32, StorePathHash)]) {
        let number = self.next_ask;
        self.next_ask += 1;
        ask.lookups = asked.iter().map(|&(id, _)| id).collect();
        for &(id, hash) in asked {
            self.lookups.insert(id, Lookup::new(hash, number));
        }
        self.asks.insert(number, ask);
        self.settle(now, number);
    }

    /// Remembers in what order a batch names its lookups.
    pub(super) fn frame(&mut self, id: u32, lookups: Vec<u32>) {
        if self.frame_order.len() == MAX_ENDED
            && let Some(oldest) = self.frame_order.pop_front()
        {
            self.frames.remove(&oldest);
        }
        self.frame_order.push_back(id);
        self.frames.insert(id, lookups);
    }

    /// Ends a lookup; its id stays known for a while.
    pub(super) fn remove(&mut self, id: u32) -> Option<Lookup> {
        let lookup = self.lookups.remove(&id)?;
        if let Some(ask) = self.asks.get_mut(&lookup.ask) {
            ask.lookups.retain(|&other| other != id);
            let (sent, is_last) = (ask.last_sent, ask.lookups.is_empty());
            if is_last {
                self.drop_ask(lookup.ask);
            }
            self.remember(id, lookup.hash, sent);
        }
        Some(lookup)
    }

    /// The next time at which something is to be done.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(at, _)| at)
    }

    /// The next ask whose time has come, until [`Self::settle`] gives it another one.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<u64> {
        let &(at, number) = self.deadlines.first().filter(|&&(at, _)| at <= now)?;
        self.deadlines.remove(&(at, number));
        Some(number)
    }

    /// Puts an ask that was popped back to its next time, if it is still there.
    pub(super) fn settle(&mut self, now: Instant, number: u64) {
        if let Some(ask) = self.asks.get_mut(&number) {
            self.deadlines.remove(&(ask.due, number));
            ask.due = ask.wakes(now);
            self.deadlines.insert((ask.due, number));
        }
    }

    /// From now on only time ends the lookups in progress.
    pub(super) fn hold(&mut self) {
        self.deadlines.clear();
        for (&number, ask) in &mut self.asks {
            ask.settles = ask.ends;
            ask.again = None;
            ask.due = ask.ends;
            self.deadlines.insert((ask.due, number));
        }
    }

    /// Numbers of the asks in progress.
    pub(super) fn numbers(&self) -> Vec<u64> {
        self.asks.keys().copied().collect()
    }

    /// The slot has become another peer's.
    pub(super) fn forget_slot(&mut self, slot: usize) {
        for lookup in self.lookups.values_mut() {
            lookup.answered.remove(slot);
        }
        for ask in self.asks.values_mut() {
            ask.answered.remove(slot);
        }
    }

    /// Remembers `id` as that of a lookup that was last `sent` then, and has ended.
    pub(super) fn remember(&mut self, id: u32, hash: StorePathHash, sent: Instant) {
        if self.ended_order.len() == MAX_ENDED
            && let Some(oldest) = self.ended_order.pop_front()
        {
            self.ended.remove(&oldest);
        }
        self.ended_order.push_back(id);
        self.ended.insert(id, (hash, sent));
    }

    fn drop_ask(&mut self, number: u64) {
        if let Some(ask) = self.asks.remove(&number) {
            self.deadlines.remove(&(ask.due, number));
        }
    }
}
