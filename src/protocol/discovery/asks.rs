//! Which datagrams of ours an answer may belong to: by their random ids.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::LookupId;

/// An answer that comes later than this tells nothing.
const REMEMBERED_FOR: Duration = Duration::from_secs(2);

/// Datagrams that are remembered.
const MOST: usize = 16_384;

/// Where a datagram went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// To one peer of the table.
    Peer(usize),
    /// To one address that is not in the table.
    Address,
    /// To everyone: who is there?
    Discovery,
    /// To everyone: who has one of these?
    Broadcast,
    /// To old peers.
    Old,
}

/// One datagram.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) at: Instant,
    pub(super) target: Target,
    /// What it asked for, in its order.
    pub(super) lookups: Vec<LookupId>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Asks {
    by_id: HashMap<u32, Sent>,
    order: VecDeque<(Instant, u32)>,
}

impl Asks {
    pub(super) fn insert(&mut self, now: Instant, id: u32, target: Target, lookups: Vec<LookupId>) {
        while let Some(&(at, old)) = self.order.front()
            && (now.saturating_duration_since(at) >= REMEMBERED_FOR || self.order.len() >= MOST)
        {
            self.order.pop_front();
            self.by_id.remove(&old);
        }
        let sent = Sent {
            at: now,
            target,
            lookups,
        };
        self.by_id.insert(id, sent);
        self.order.push_back((now, id));
    }

    pub(super) fn get(&self, id: u32) -> Option<&Sent> {
        self.by_id.get(&id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_are_forgotten_by_age_and_number() {
        let (mut asks, now) = (Asks::default(), Instant::now());
        for id in 0..=MOST as u32 {
            asks.insert(now, id, Target::Peer(1), Vec::new());
        }
        assert!(asks.get(0).is_none() && asks.get(1).is_some());
        asks.insert(
            now + REMEMBERED_FOR,
            1 << 20,
            Target::Old,
            vec![LookupId(7)],
        );
        assert!(asks.get(1).is_none());
        assert_eq!(asks.get(1 << 20).expect("there").lookups, [LookupId(7)]);
    }
}
