//! Where the next path will be found: whoever holds a path holds all that it refers to, and
//! Nix asks for those next. So they are asked for there at once, without a question to the LAN;
//! but for one in eleven, so that other holders are heard of and take their part,
//! unless all of them have told what they share.

use std::{
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;

use crate::{
    format::{PathInfo, StorePath, StorePathHash},
    protocol::PeerAddr,
};

/// References of some hundred paths; an entry takes about 150 bytes.
const CAPACITY: NonZeroUsize = NonZeroUsize::new(8_192).expect("not zero");

/// Nix asks for a reference within seconds.
const FRESH_FOR: Duration = Duration::from_secs(60);

/// Holders of paths that were not asked for yet, by what refers to them.
#[derive(Debug)]
pub(super) struct Expected(Mutex<LruCache<StorePathHash, (Instant, PeerAddr)>>);

impl Default for Expected {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(CAPACITY)))
    }
}

impl Expected {
    /// `holder` has given `info` at `now`, so it has its references; `covered`: who else has them is
    /// known without a question.
    pub(super) fn references(
        &self,
        now: Instant,
        info: &PathInfo,
        holder: PeerAddr,
        covered: bool,
    ) {
        let mut expected = self.lock();
        let others = info
            .references
            .iter()
            .filter(|reference| **reference != info.path);
        for hash in others
            .map(StorePath::hash)
            .filter(|hash| covered || !is_for_all(*hash))
        {
            expected.put(hash, (now, holder));
        }
    }

    /// Whether it is known who should have `hash`.
    pub(super) fn has(&self, hash: StorePathHash) -> bool {
        self.lock().contains(&hash)
    }

    /// Who should have `hash`; asked once.
    pub(super) fn take(&self, now: Instant, hash: StorePathHash) -> Option<PeerAddr> {
        let (since, holder) = self.lock().pop(&hash)?;
        (now.duration_since(since) < FRESH_FOR).then_some(holder)
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<StorePathHash, (Instant, PeerAddr)>> {
        // Every change is one call, so a panic elsewhere leaves nothing half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One hash in eleven: the last digit is `1`, `a` or `q`, three of 32.
fn is_for_all(hash: StorePathHash) -> bool {
    hash.as_bytes()[31] % 16 == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::NarHash;

    fn path(number: u32, last: char) -> StorePath {
        StorePath::from_basename(&format!("{number:031}{last}-x")).expect("path")
    }

    #[test]
    fn references_are_expected_once_at_who_has_the_path_and_some_are_not() {
        let (expected, now) = (Expected::default(), Instant::now());
        let holder: PeerAddr = "127.0.0.1:1".parse().expect("peer");
        let digits = "0123456789abcdfghijklmnpqrsvwxyz";
        let info = PathInfo {
            path: path(1, '1'),
            nar_hash: NarHash::from_digest([0; 32]),
            nar_size: 1,
            references: digits
                .chars()
                .map(|last| path(2, last))
                .chain([path(1, '1')])
                .collect(),
            deriver: None,
            signatures: Vec::new(),
            ca: None,
        };
        expected.references(now, &info, holder, false);
        let taken: Vec<_> = digits
            .chars()
            .filter_map(|last| expected.take(now, path(2, last).hash()))
            .collect();
        assert_eq!(taken, [holder; 29]);
        expected.references(now, &info, holder, true);
        assert!(
            digits
                .chars()
                .all(|last| expected.has(path(2, last).hash())),
            "all of them where no question is needed"
        );
        for last in digits.chars() {
            expected.take(now, path(2, last).hash()).expect("expected");
        }
        assert_eq!(expected.take(now, path(2, '2').hash()), None, "asked once");
        assert_eq!(expected.take(now, info.path.hash()), None, "not itself");
        expected.references(now, &info, holder, false);
        assert_eq!(
            expected.take(now + FRESH_FOR, path(2, '2').hash()),
            None,
            "too late"
        );
    }
}
