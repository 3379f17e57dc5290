//! What was found lately: the verified facts of a path and who has it, kept for the NAR
//! request that follows a narinfo.

use std::{
    collections::VecDeque,
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;

use super::acceptance::Proof;
use crate::{
    format::{NarHash, PathInfo, StorePathHash, narinfo::NarUrl},
    protocol::PeerAddr,
};

/// Nix asks for up to a few thousand narinfos before the first NAR; an entry takes about 1 KiB.
const CAPACITY: NonZeroUsize = NonZeroUsize::new(8_192).expect("not zero");

/// After this long the holders are asked for again: garbage collection, sleep, another network.
const FRESH_FOR: Duration = Duration::from_secs(300);

/// Who can give a NAR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A peer whose narinfo was verified.
    Peer {
        /// Its HTTP address.
        address: PeerAddr,
        /// Where it keeps the NAR.
        url: NarUrl,
    },
    /// A peer that said it has the path; its narinfo was not needed so far.
    Unproven(PeerAddr),
    /// The store of this machine.
    Own,
}

impl Holder {
    /// The peer's address; none for ourselves.
    pub fn address(&self) -> Option<PeerAddr> {
        match self {
            Self::Peer { address, .. } | Self::Unproven(address) => Some(*address),
            Self::Own => None,
        }
    }
}

impl fmt::Display for Holder {
    /// The value of `X-Peerix-Peer`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address() {
            Some(address) => address.fmt(f),
            None => f.write_str("self"),
        }
    }
}

/// A verified path and its holders, best first, never empty.
#[derive(Debug, Clone)]
pub struct Found {
    /// The facts, for Nix.
    pub info: Arc<PathInfo>,
    /// What its bytes must prove.
    pub proof: Proof,
    /// Who has it.
    pub holders: VecDeque<Holder>,
}

/// Nix has a part of a NAR that was wrong. It asks for the rest a third of a second later, and
/// whatever it gets cannot mend what it has.
const TAINTED_FOR: Duration = Duration::from_secs(30);

/// Wrong NARs that are remembered for so short a time.
const MOST_TAINTED: NonZeroUsize = NonZeroUsize::new(1_024).expect("not zero");

/// The memory of finds, bounded in size and age.
#[derive(Debug)]
pub struct Known {
    finds: Mutex<LruCache<StorePathHash, (Instant, Found)>>,
    tainted: Mutex<LruCache<(StorePathHash, NarHash), Instant>>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            finds: Mutex::new(LruCache::new(CAPACITY)),
            tainted: Mutex::new(LruCache::new(MOST_TAINTED)),
        }
    }
}

impl Known {
    /// Remembers what was found at `now`.
    pub fn insert(&self, now: Instant, hash: StorePathHash, found: Found) {
        self.lock().put(hash, (now, found));
    }

    /// What is known of `hash` and still fresh; with `nar_hash` only if that is its NAR.
    pub fn fresh(
        &self,
        now: Instant,
        hash: StorePathHash,
        nar_hash: Option<NarHash>,
    ) -> Option<Found> {
        let mut known = self.lock();
        let (since, found) = known.get(&hash)?;
        let right = nar_hash.is_none_or(|wanted| wanted == found.info.nar_hash);
        (right && now.duration_since(*since) < FRESH_FOR).then(|| found.clone())
    }

    /// What is known of `hash`, however old: for when nobody answers.
    pub fn stale(&self, hash: StorePathHash, nar_hash: Option<NarHash>) -> Option<Found> {
        let mut known = self.lock();
        let (_, found) = known.get(&hash)?;
        nar_hash
            .is_none_or(|wanted| wanted == found.info.nar_hash)
            .then(|| found.clone())
    }

    /// Forgets `hash`, whose holders failed.
    pub fn forget(&self, hash: StorePathHash) {
        self.lock().pop(&hash);
    }

    /// Nix has got wrong bytes of this NAR at `now`.
    pub fn taint(&self, now: Instant, hash: StorePathHash, nar_hash: NarHash) {
        let mut tainted = self.tainted.lock().unwrap_or_else(PoisonError::into_inner);
        tainted.put((hash, nar_hash), now);
    }

    /// Whether Nix, which asks for the rest of this NAR, has wrong bytes of it.
    pub fn is_tainted(&self, now: Instant, hash: StorePathHash, nar_hash: NarHash) -> bool {
        let mut tainted = self.tainted.lock().unwrap_or_else(PoisonError::into_inner);
        let since = tainted.get(&(hash, nar_hash));
        since.is_some_and(|since| now.duration_since(*since) < TAINTED_FOR)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<StorePathHash, (Instant, Found)>> {
        // Every write is one call, so a panic elsewhere leaves nothing half-done.
        self.finds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
