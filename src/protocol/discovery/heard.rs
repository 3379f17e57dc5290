//! What was asked in batches of late, of us and by us. An asker sends the same questions one by
//! one as well while there may be old peers: to those no second answer is given. So it asks in a
//! batch again what it has just asked in one.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::format::StorePathHash;

/// Requests follow their batch at once: for so long they get no answer of their own.
const FOLLOWS: Duration = Duration::from_millis(100);

/// For so long nothing is asked by a request alone that was asked in a batch: twice as long, as
/// the batch may have been slower than the request.
const IN_DOUBT: Duration = Duration::from_millis(200);

/// Questions that are remembered.
const MOST: usize = 8_192;

/// Questions, and when each was last asked.
#[derive(Debug)]
struct Recent<T> {
    at: HashMap<T, Instant>,
    order: VecDeque<T>,
}

impl<T> Default for Recent<T> {
    fn default() -> Self {
        Self {
            at: HashMap::new(),
            order: VecDeque::new(),
        }
    }
}

impl<T: Copy + Eq + Hash> Recent<T> {
    fn note(&mut self, now: Instant, question: T) {
        if self.at.insert(question, now).is_none() {
            self.order.push_back(question);
        }
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.at.remove(&oldest);
        }
    }

    fn knows(&self, now: Instant, question: T, memory: Duration) -> bool {
        let at = self.at.get(&question);
        at.is_some_and(|&at| now < at + memory)
    }
}

/// Batches of others.
#[derive(Debug, Default)]
pub(super) struct Heard(Recent<(SocketAddr, StorePathHash)>);

impl Heard {
    pub(super) fn note(&mut self, now: Instant, from: SocketAddr, hashes: &[StorePathHash]) {
        for &hash in hashes {
            self.0.note(now, (from, hash));
        }
    }

    /// Whether `from` has just asked for `hash` in a batch.
    pub(super) fn knows(&self, now: Instant, from: SocketAddr, hash: StorePathHash) -> bool {
        self.0.knows(now, (from, hash), FOLLOWS)
    }
}

/// Batches of ours.
#[derive(Debug, Default)]
pub(super) struct Sent(Recent<StorePathHash>);

impl Sent {
    pub(super) fn note(&mut self, now: Instant, hash: StorePathHash) {
        self.0.note(now, hash);
    }

    /// Whether a request for `hash` may be taken for one that follows a batch.
    pub(super) fn knows(&self, now: Instant, hash: StorePathHash) -> bool {
        self.0.knows(now, hash, IN_DOUBT)
    }
}
