//! What the sharing rule has decided, by the digest of the row that it was decided about.
//!
//! A path that is shared stays shared as long as its row is the same: what it refers to cannot
//! change while it is valid, and signatures are only added. A path that is not shared because of
//! its own row alone stays so, too. What is refused because of another path is remembered for one
//! state of the database.
//!
//! The shared ones outlive the process in a file: magic (27 bytes), digest of the rule (32), digests
//! of rows (32 each), SHA-256 of all that (32). Any defect, or another rule, discards it.

use std::num::NonZeroUsize;

use lru::LruCache;
use sha2::{Digest as _, Sha256};

use super::{
    not_shared::NotSharedReason,
    seen_rows::{Digest, Stamp},
};
use crate::format::Signature;

/// Decisions remembered with their signatures or reasons, about 250 bytes each.
const MOST_DECISIONS: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();

/// Rows remembered as shared, about 90 bytes each, 32 in the file.
pub(super) const MOST_SHARED: usize = 65_536;

/// Changes with every change of the format, of the digests, or of how is decided.
const MAGIC: &[u8; 27] = b"peerix-sharing-decisions-1\n";

const DIGEST_BYTES: usize = size_of::<Digest>();

/// One decision.
#[derive(Debug, Clone)]
pub(super) enum Decided {
    /// Shared, with the signatures to send instead of the row's own.
    Shared(Option<Vec<Signature>>),
    /// Not shared, because of the row alone.
    Refused(NotSharedReason),
    /// Not shared because of what it refers to, in that state of the database.
    ReferenceRefused(NotSharedReason, Stamp),
}

/// All that are remembered.
#[derive(Debug)]
pub(super) struct Decisions {
    by_digest: LruCache<Digest, Decided>,
    /// Bounded by [`MOST_SHARED`]; not allocated at once.
    shared: LruCache<Digest, ()>,
}

impl Decisions {
    pub(super) fn new() -> Self {
        Self {
            by_digest: LruCache::new(MOST_DECISIONS),
            shared: LruCache::unbounded(),
        }
    }

    /// The whole decision, if it holds in the state `now`.
    pub(super) fn find(&mut self, digest: &Digest, now: &Stamp) -> Option<Decided> {
        self.by_digest
            .get(digest)
            .filter(|decided| decided.holds(now))
            .cloned()
    }

    /// Whether the row is shared, if that is known in the state `now`.
    pub(super) fn is_shared(&mut self, digest: &Digest, now: &Stamp) -> Option<bool> {
        if self.is_known_as_shared(digest) {
            return Some(true);
        }
        let decided = self.by_digest.get(digest)?;
        decided
            .holds(now)
            .then_some(matches!(decided, Decided::Shared(_)))
    }

    /// Whether the row is known to be shared.
    pub(super) fn is_known_as_shared(&mut self, digest: &Digest) -> bool {
        self.shared.get(digest).is_some()
    }

    pub(super) fn insert(&mut self, digest: Digest, decided: Decided) {
        if let Decided::Shared(_) = decided {
            self.insert_shared(digest);
        }
        self.by_digest.put(digest, decided);
    }

    pub(super) fn insert_shared(&mut self, digest: Digest) {
        self.shared.put(digest, ());
        if self.shared.len() > MOST_SHARED {
            self.shared.pop_lru();
        }
    }

    /// The file's content, for the rule with that digest.
    pub(super) fn to_bytes(&self, rule: &Digest) -> Vec<u8> {
        let mut bytes = [&MAGIC[..], rule].concat();
        // The oldest first, so that they are in the same order again when they are read.
        for (digest, ()) in self.shared.iter().rev() {
            bytes.extend_from_slice(digest);
        }
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    /// Adds what a file has, if it is sound and of this rule; returns how many rows that are.
    pub(super) fn restore(&mut self, rule: &Digest, bytes: &[u8]) -> Option<usize> {
        let (content, sum) = bytes.split_last_chunk::<DIGEST_BYTES>()?;
        let digests = content.strip_prefix(&MAGIC[..])?.strip_prefix(&rule[..])?;
        if *Sha256::digest(content) != *sum {
            return None;
        }
        let (digests, rest) = digests.as_chunks::<DIGEST_BYTES>();
        if !rest.is_empty() || digests.len() > MOST_SHARED {
            return None;
        }
        for digest in digests {
            self.insert_shared(*digest);
        }
        Some(digests.len())
    }
}

impl Decided {
    fn holds(&self, now: &Stamp) -> bool {
        match self {
            Self::Shared(_) | Self::Refused(_) => true,
            Self::ReferenceRefused(_, at) => at == now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Digest = [7; 32];

    fn decisions(count: u32) -> Decisions {
        let mut decisions = Decisions::new();
        for number in 0..count {
            decisions.insert_shared(digest(number));
        }
        decisions
    }

    fn digest(number: u32) -> Digest {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&number.to_be_bytes());
        digest
    }

    #[test]
    fn what_is_saved_is_restored_for_the_same_rule() {
        for count in [0, 1, 1_000] {
            let bytes = decisions(count).to_bytes(&RULE);
            let mut restored = Decisions::new();
            assert_eq!(restored.restore(&RULE, &bytes), Some(count as usize));
            assert!((0..count).all(|number| restored.is_known_as_shared(&digest(number))));
            assert!(!restored.is_known_as_shared(&digest(count)));
            assert_eq!(restored.restore(&[8; 32], &bytes), None, "another rule");
        }
    }

    #[test]
    fn any_defect_discards_all_of_it() {
        let bytes = decisions(3).to_bytes(&RULE);
        for length in 0..bytes.len() {
            assert_eq!(Decisions::new().restore(&RULE, &bytes[..length]), None);
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            assert_eq!(Decisions::new().restore(&RULE, &bytes), None, "{at}");
        }
        let longer = [&bytes[..], &[0; 32]].concat();
        assert_eq!(Decisions::new().restore(&RULE, &longer), None);
    }

    #[test]
    fn memory_and_file_are_bounded() {
        let mut decisions = decisions(MOST_SHARED as u32 + 10);
        assert_eq!(decisions.shared.len(), MOST_SHARED);
        assert!(!decisions.is_known_as_shared(&digest(0)), "the oldest went");
        assert!(decisions.to_bytes(&RULE).len() <= 4 << 20);
        for number in 0..=MOST_DECISIONS.get() as u32 {
            decisions.insert(digest(number), Decided::Shared(None));
        }
        assert_eq!(decisions.by_digest.len(), MOST_DECISIONS.get());
    }
}
