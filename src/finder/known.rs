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
    peer::Packing,
    protocol::{PeerAddr, PlainCache},
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
    /// A plain cache whose narinfo was verified.
    Cache {
        /// Which.
        cache: Arc<PlainCache>,
        /// Where it keeps the NAR.
        url: NarUrl,
        /// In which form.
        packing: Packing,
    },
    /// A plain cache that may have the path.
    UnprovenCache(Arc<PlainCache>),
    /// The store of this machine.
    Own,
}

impl Holder {
    /// The peer's address; none for ourselves.
    pub fn address(&self) -> Option<PeerAddr> {
        match self {
            Self::Peer { address, .. } | Self::Unproven(address) => Some(*address),
            Self::Cache { cache, .. } | Self::UnprovenCache(cache) => Some(cache.address),
            Self::Own => None,
        }
    }

    /// Whether its NAR can be read from its start only, as far as we know.
    pub(super) fn is_packed(&self) -> bool {
        match self {
            Self::Cache { packing, .. } => *packing != Packing::None,
            Self::Peer { .. } | Self::Unproven(_) | Self::UnprovenCache(_) | Self::Own => false,
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

/// Nix has a part of a NAR that cannot be completed. It asks for the rest a third of a second
/// later.
const HOPELESS_FOR: Duration = Duration::from_secs(30);

/// Such NARs that are remembered.
const MOST_HOPELESS: NonZeroUsize = NonZeroUsize::new(1_024).expect("not zero");

/// Why Nix had better ask its next substituter for the rest of a NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hopeless {
    /// What it has is wrong, and whatever it gets cannot mend that.
    Wrong,
    /// The only holder has gone silent, and would do so again.
    Silent,
}

/// The memory of finds, bounded in size and age.
#[derive(Debug)]
pub struct Known {
    finds: Mutex<LruCache<StorePathHash, (Instant, Found)>>,
    hopeless: Mutex<LruCache<(StorePathHash, NarHash), (Instant, Hopeless)>>,
}

impl Default for Known {
    fn default() -> Self {
        Self {
            finds: Mutex::new(LruCache::new(CAPACITY)),
            hopeless: Mutex::new(LruCache::new(MOST_HOPELESS)),
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

    /// Nix has got a part of this NAR, and is to get no more of it for a while.
    pub fn give_up(&self, now: Instant, hash: StorePathHash, nar_hash: NarHash, why: Hopeless) {
        let mut hopeless = self.hopeless.lock().unwrap_or_else(PoisonError::into_inner);
        hopeless.put((hash, nar_hash), (now, why));
    }

    /// Why the rest of this NAR is not given at `now`.
    pub fn hopeless(
        &self,
        now: Instant,
        hash: StorePathHash,
        nar_hash: NarHash,
    ) -> Option<Hopeless> {
        let mut hopeless = self.hopeless.lock().unwrap_or_else(PoisonError::into_inner);
        let (since, why) = hopeless.get(&(hash, nar_hash))?;
        (now.duration_since(*since) < HOPELESS_FOR).then_some(*why)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LruCache<StorePathHash, (Instant, Found)>> {
        // Every write is one call, so a panic elsewhere leaves nothing half-done.
        self.finds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
