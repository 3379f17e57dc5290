//! One lookup: who was asked, who is waited for, and what else holds it open.

use std::time::{Duration, Instant};

use super::{End, Outcome, slots::Slots};
use crate::{format::StorePathHash, protocol::PeerAddr};

/// Peers that are named to whoever looks up; a LAN with more of them has holders enough.
pub const MAX_CANDIDATES: usize = 32;

/// Answers to a broadcast are waited for at no cost until so long after its last copy.
pub(super) const FREE_BROADCAST_WAIT: Duration = Duration::from_millis(15);

/// How far a lookup has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Peers are asked one by one.
    Unicast,
    /// On a large LAN, all that those lacked is broadcast. `over` is known once the last copy
    /// has left.
    Broadcast { over: Option<BroadcastWait> },
    /// The old peers are asked for what new ones do not have.
    Old { until: Instant, is_free: bool },
}

/// How long the answers to a broadcast are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BroadcastWait {
    pub(super) free_until: Instant,
    pub(super) until: Instant,
}

/// One lookup in progress.
#[derive(Debug)]
pub(super) struct Lookup {
    pub(super) hash: StorePathHash,
    pub(super) began: Instant,
    pub(super) stage: Stage,
    /// Peers that were asked, or answered a broadcast.
    pub(super) asked: Slots,
    /// Those of them without a definite answer.
    pub(super) unanswered: Slots,
    /// Those of these that are waited for.
    pub(super) waiting: Slots,
    /// Its broadcast has been sent, or waits to be.
    pub(super) was_broadcast: bool,
    /// When old peers were asked.
    pub(super) old_requested: Option<Instant>,
    /// When the first holder was named of those that may still give it.
    pub(super) named_at: Option<Instant>,
    /// Holders that were named.
    pub(super) candidates: Vec<PeerAddr>,
    /// How many of them do not give it.
    rejected: usize,
    /// A peer cannot say yet: it is asked on.
    pub(super) is_undecided: bool,
    /// The waiting of the burst is used up: what costs something is not waited for.
    pub(super) is_out_of_time: bool,
    /// Since when the budget of the burst pays for it.
    pub(super) paid_since: Option<Instant>,
    /// Since when it paid for the first time.
    pub(super) first_paid: Option<Instant>,
    /// When it is to be looked at again.
    pub(super) check_at: Option<Instant>,
    present: u32,
    absent: u32,
    silent: u32,
}

impl Lookup {
    pub(super) fn new(now: Instant, hash: StorePathHash) -> Self {
        Self {
            hash,
            began: now,
            stage: Stage::Unicast,
            asked: Slots::default(),
            unanswered: Slots::default(),
            waiting: Slots::default(),
            was_broadcast: false,
            old_requested: None,
            named_at: None,
            candidates: Vec::new(),
            rejected: 0,
            is_undecided: false,
            is_out_of_time: false,
            paid_since: None,
            first_paid: None,
            check_at: Some(now),
            present: 0,
            absent: 0,
            silent: 0,
        }
    }

    /// `slot` is about to be asked; a lookup waits for it unless it is known not to answer.
    pub(super) fn ask(&mut self, slot: usize, is_waited_for: bool) {
        self.asked.insert(slot);
        self.unanswered.insert(slot);
        self.waiting
            .set(slot, is_waited_for && !self.is_out_of_time);
    }

    /// `slot` has said what it has. False if it had said so before.
    pub(super) fn take_answer(&mut self, slot: usize, is_present: bool) -> bool {
        let is_first = !self.asked.contains(slot) || self.unanswered.contains(slot);
        self.asked.insert(slot);
        self.unanswered.remove(slot);
        self.waiting.remove(slot);
        if is_first {
            let count = if is_present {
                &mut self.present
            } else {
                &mut self.absent
            };
            *count += 1;
        }
        is_first
    }

    /// `slot` is not waited for any longer. True if it was.
    pub(super) fn give_up(&mut self, slot: usize) -> bool {
        let was_waited_for = self.waiting.contains(slot);
        self.waiting.remove(slot);
        self.silent += u32::from(was_waited_for);
        was_waited_for
    }

    /// `slot` is this machine itself. True if it was waited for.
    pub(super) fn give_up_on_myself(&mut self, slot: usize) -> bool {
        let was_waited_for = self.waiting.contains(slot);
        self.unanswered.remove(slot);
        self.waiting.remove(slot);
        was_waited_for
    }

    /// Names a holder; false if it was named, or there are enough.
    pub(super) fn add_candidate(&mut self, now: Instant, peer: PeerAddr) -> bool {
        let is_new = self.candidates.len() < MAX_CANDIDATES && !self.candidates.contains(&peer);
        if is_new {
            self.named_at.get_or_insert(now);
            self.candidates.push(peer);
        }
        is_new
    }

    /// One of the holders that were named does not give it.
    pub(super) fn reject_candidate(&mut self) {
        self.rejected += 1;
        if self.rejected >= self.candidates.len() {
            self.named_at = None;
        }
    }

    /// The peer behind a slot is another one now, or none.
    pub(super) fn forget(&mut self, slots: &Slots) {
        self.asked = self.asked.minus(slots);
        self.unanswered = self.unanswered.minus(slots);
        self.waiting = self.waiting.minus(slots);
    }

    pub(super) fn outcome(&self) -> Outcome {
        Outcome {
            end: if self.silent > 0 || self.is_out_of_time {
                End::TimedOut
            } else {
                End::Answered
            },
            present: self.present,
            absent: self.absent,
            silent: self.silent,
        }
    }
}
