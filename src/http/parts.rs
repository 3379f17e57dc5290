//! Who has fetched parts of which NAR: what must not go unseen, and must not fill the journal.
//!
//! The first part that a machine fetches of a path is told, and so is the one with which it has
//! got as many bytes as the NAR has. If the memory of a pair is lost, its next part is the first.

use std::{
    net::IpAddr,
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;

use crate::format::StorePathHash;

/// Pairs of machine and path that are remembered.
const MOST_PAIRS: NonZeroUsize = NonZeroUsize::new(1_024).expect("not 0");

/// After a pause of this length a part is the first again.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// A machine and the path that it fetches.
pub(super) type Pair = (IpAddr, StorePathHash);

/// What a part is among those of its pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Nothing of it is in the journal.
    First,
    /// With it there are as many bytes as the NAR has.
    Whole {
        /// Of all parts together.
        bytes: u64,
        /// When the first one began.
        since: Instant,
    },
    /// Anything between.
    Further,
}

/// What was fetched in parts lately.
#[derive(Debug)]
pub(super) struct Parts(Mutex<LruCache<Pair, Fetched>>);

#[derive(Debug)]
struct Fetched {
    bytes: u64,
    since: Instant,
    last: Instant,
}

impl Default for Parts {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(MOST_PAIRS)))
    }
}

impl Parts {
    /// A part of `bytes`, fetched from `began` to `now`, of a NAR of `size`.
    pub(super) fn add(
        &self,
        pair: Pair,
        (began, now): (Instant, Instant),
        bytes: u64,
        size: u64,
    ) -> Part {
        let mut parts = self.lock();
        let known = parts.get_mut(&pair);
        let known = known.filter(|it| now.saturating_duration_since(it.last) < FORGOTTEN_AFTER);
        let Some(fetched) = known else {
            let fetched = Fetched {
                bytes,
                since: began,
                last: now,
            };
            parts.put(pair, fetched);
            return Part::First;
        };
        fetched.bytes += bytes;
        fetched.last = now;
        let (bytes, since) = (fetched.bytes, fetched.since);
        if bytes < size {
            return Part::Further;
        }
        parts.pop(&pair);
        Part::Whole { bytes, since }
    }

    /// The first part of `pair` was not told after all: the next one is the first.
    pub(super) fn forget(&self, pair: Pair) {
        self.lock().pop(&pair);
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<Pair, Fetched>> {
        // Nothing between the changes of one call can panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(number: u32) -> Pair {
        let hash = StorePathHash::parse(b"s66mzxpvicwk07gjbjfw9izjfa797vsw").expect("hash");
        (IpAddr::from(number.to_be_bytes()), hash)
    }

    #[test]
    fn the_first_part_and_the_whole_are_told_again_and_again() {
        let parts = Parts::default();
        let begin = Instant::now();
        let at = |second| {
            (
                begin + Duration::from_secs(second),
                begin + Duration::from_secs(second + 1),
            )
        };
        for round in 0..3 {
            let add = |second| parts.add(pair(1), at(round * 10 + second), 40, 100);
            assert_eq!(add(0), Part::First);
            assert_eq!(add(1), Part::Further);
            let since = at(round * 10).0;
            assert_eq!(add(2), Part::Whole { bytes: 120, since });
        }
    }

    #[test]
    fn what_is_forgotten_is_told_again() {
        let parts = Parts::default();
        let begin = Instant::now();
        let add = |number, at| parts.add(pair(number), (at, at), 1, 100);
        assert_eq!(add(1, begin), Part::First);
        parts.forget(pair(1));
        assert_eq!(add(1, begin), Part::First);
        assert_eq!(add(1, begin), Part::Further);
        assert_eq!(add(1, begin + FORGOTTEN_AFTER), Part::First);
        // Others push it out.
        for number in 2..2_000 {
            assert_eq!(add(number, begin), Part::First);
        }
        assert_eq!(add(1, begin + FORGOTTEN_AFTER), Part::First);
        assert_eq!(parts.lock().len(), MOST_PAIRS.get());
    }
}
