//! Who can give a NAR: the holders that were found lately for each path, what each needs to be
//! opened at, and which NARs cannot be completed.

use std::{
    collections::VecDeque,
    fmt,
    num::NonZeroUsize,
    ops::Range,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use lru::LruCache;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Finder, Holdings,
    acceptance::{Offer, Proof},
    lookup::Refused,
};
use crate::{
    format::{NarHash, PathInfo, StorePathHash, narinfo::NarUrl},
    peer::{NarBody, Packing, PeerError},
    protocol::{PeerAddr, PlainCache},
    store::{NarError, StoreError},
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
const INCOMPLETABLE_FOR: Duration = Duration::from_secs(30);

/// Such NARs that are remembered.
const MOST_INCOMPLETABLE: NonZeroUsize = NonZeroUsize::new(1_024).expect("not zero");

/// Why Nix had better ask its next substituter for the rest of a NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incompletable {
    /// What it has is wrong, and whatever it gets cannot mend that.
    Wrong,
    /// The only holder has gone silent, and would do so again.
    Silent,
}

/// The memory of finds, bounded in size and age.
#[derive(Debug)]
pub struct NarSources {
    finds: Mutex<LruCache<StorePathHash, (Instant, Found)>>,
    incompletable: Mutex<LruCache<(StorePathHash, NarHash), (Instant, Incompletable)>>,
}

impl Default for NarSources {
    fn default() -> Self {
        Self {
            finds: Mutex::new(LruCache::new(CAPACITY)),
            incompletable: Mutex::new(LruCache::new(MOST_INCOMPLETABLE)),
        }
    }
}

impl NarSources {
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
        let mut finds = self.lock();
        let (since, found) = finds.get(&hash)?;
        let right = nar_hash.is_none_or(|wanted| wanted == found.info.nar_hash);
        (right && now.duration_since(*since) < FRESH_FOR).then(|| found.clone())
    }

    /// What is known of `hash`, however old: for when nobody answers.
    pub fn stale(&self, hash: StorePathHash, nar_hash: Option<NarHash>) -> Option<Found> {
        let mut finds = self.lock();
        let (_, found) = finds.get(&hash)?;
        nar_hash
            .is_none_or(|wanted| wanted == found.info.nar_hash)
            .then(|| found.clone())
    }

    /// Forgets `hash`, whose holders failed.
    pub fn forget(&self, hash: StorePathHash) {
        self.lock().pop(&hash);
    }

    /// Nix has got a part of this NAR, and is to get no more of it for a while.
    pub fn give_up(
        &self,
        now: Instant,
        hash: StorePathHash,
        nar_hash: NarHash,
        why: Incompletable,
    ) {
        let mut incompletable = self
            .incompletable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        incompletable.put((hash, nar_hash), (now, why));
    }

    /// Why the rest of this NAR is not given at `now`.
    pub fn incompletable(
        &self,
        now: Instant,
        hash: StorePathHash,
        nar_hash: NarHash,
    ) -> Option<Incompletable> {
        let mut incompletable = self
            .incompletable
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (since, why) = incompletable.get(&(hash, nar_hash))?;
        (now.duration_since(*since) < INCOMPLETABLE_FOR).then_some(*why)
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<StorePathHash, (Instant, Found)>> {
        // Every write is one call, so a panic elsewhere leaves nothing half-done.
        self.finds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes of a NAR from one holder.
pub(super) type Body = Pin<Box<dyn Stream<Item = Result<Bytes, HolderError>> + Send + Sync>>;

/// Why one holder cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum HolderError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("its narinfo is of no use")]
    Refused(#[from] Refused),
    #[error("it has another NAR for this path")]
    OtherNar,
    #[error("its narinfo was not asked for")]
    Unproven,
    #[error("its last NARs failed, and it was tried a moment ago")]
    NarsFail,
    #[error("silent for {} ms", after.as_millis())]
    Stalled { after: Duration },
    #[error("silent for {} ms, and nobody else has it", after.as_millis())]
    Silent { after: Duration },
    #[error("asked for as many NARs as it is asked for at a time, for {} ms", after.as_millis())]
    Busy { after: Duration },
    #[error("its bytes have no end")]
    NoEnd,
    #[error("others are quicker")]
    Overtaken,
    #[error("below the least rate for {} ms", after.as_millis())]
    Slow { after: Duration, alone: bool },
    #[error("it knows no ranges")]
    WithoutRanges,
    #[error("its bytes are not those that it gives the digest of")]
    Contradiction,
    #[error("our own store cannot give it")]
    Own(#[from] NarError),
    #[error("our own store did not answer")]
    OwnStore(#[from] StoreError),
    #[error("not shared by our own store")]
    NotOurs,
}

impl HolderError {
    /// A word for metrics and the journal.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Peer(error) | Self::Refused(Refused::Peer(error)) => error.kind(),
            Self::Refused(Refused::Rejected { source, .. }) => source.kind(),
            Self::OtherNar => "other-nar",
            Self::Unproven => "unproven",
            Self::NarsFail => "nars-fail",
            Self::Stalled { .. } | Self::Silent { .. } => "stalled",
            Self::Busy { .. } => "busy",
            Self::NoEnd => "wrong-length",
            Self::Slow { .. } | Self::Overtaken => "slow",
            Self::WithoutRanges => "without-ranges",
            Self::Contradiction => "contradiction",
            Self::Own(_) | Self::OwnStore(_) | Self::NotOurs => "own-store",
        }
    }

    /// Whether the same holder may be able to go on in a moment.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Peer(error) | Self::Refused(Refused::Peer(error)) => error.may_pass(),
            Self::Stalled { .. } | Self::Busy { .. } => true,
            Self::Overtaken | Self::WithoutRanges => true,
            // One that was slow beside others may be the only one that is left.
            Self::Slow { alone, .. } => !alone,
            Self::Refused(Refused::Rejected { .. }) | Self::OtherNar | Self::Unproven => false,
            Self::Silent { .. } | Self::NoEnd | Self::Contradiction | Self::NarsFail => false,
            Self::Own(_) | Self::OwnStore(_) | Self::NotOurs => false,
        }
    }
}

impl Finder {
    /// Makes sure that `holder` has the very NAR of `info`, and finds out where it keeps it.
    pub(super) async fn prove(
        &self,
        holder: Holder,
        info: &PathInfo,
    ) -> Result<Holder, (Holder, HolderError)> {
        let hash = info.path.hash();
        let proved = match &holder {
            Holder::Peer { .. } | Holder::Cache { .. } | Holder::Own => return Ok(holder),
            Holder::Unproven(address) => {
                let fetched = self.request_narinfo(*address, hash).await;
                fetched.map(|Offer { info, url, .. }| {
                    let address = *address;
                    (info, Holder::Peer { address, url })
                })
            }
            Holder::UnprovenCache(cache) => {
                let _turn = self.memory().caches.question_turn(cache).await;
                let fetched = self.fetch_of_cache(cache, hash).await;
                fetched.map(|(Offer { info, url, .. }, packing)| {
                    let cache = Arc::clone(cache);
                    (
                        info,
                        Holder::Cache {
                            cache,
                            url,
                            packing,
                        },
                    )
                })
            }
        };
        match proved {
            Ok((theirs, proved))
                if (theirs.nar_hash, theirs.nar_size) == (info.nar_hash, info.nar_size) =>
            {
                Ok(proved)
            }
            Ok(_) => Err((holder, HolderError::OtherNar)),
            Err(refused) => Err((holder, refused.into())),
        }
    }

    /// The turn of a NAR that is to be opened at `holder`, to be kept until it is open. How long that
    /// takes is not up to the holder.
    pub(super) async fn opening_turn(&self, holder: &Holder) -> Option<OwnedSemaphorePermit> {
        match holder {
            Holder::Cache { cache, .. } | Holder::UnprovenCache(cache) => {
                self.memory().caches.opening_turn(cache).await
            }
            Holder::Peer { .. } | Holder::Unproven(_) | Holder::Own => None,
        }
    }

    /// The bytes of `range`, not empty, at a holder that was proved.
    pub(super) async fn open(
        &self,
        holder: &Holder,
        info: &PathInfo,
        range: Range<u64>,
    ) -> Result<Body, HolderError> {
        match holder {
            Holder::Peer { .. }
            | Holder::Cache { .. }
            | Holder::Unproven(_)
            | Holder::UnprovenCache(_) => {
                let body = self.remote_nar(holder, info, range).await?;
                Ok(Box::pin(body.map(|piece| Ok(piece?))))
            }
            Holder::Own => {
                let Holdings { store, share, .. } = self.holdings();
                let ours = store
                    .shared(info.path.hash(), share)
                    .await?
                    .ok_or(HolderError::NotOurs)?;
                if (ours.nar_hash, ours.nar_size) != (info.nar_hash, info.nar_size) {
                    return Err(HolderError::OtherNar);
                }
                let nar = store.nar(&ours).await?;
                Ok(Box::pin(nar.read(range).map(|piece| Ok(piece?))))
            }
        }
    }

    /// The bytes of `range` at a peer or a plain cache that was proved.
    pub(super) async fn remote_nar(
        &self,
        holder: &Holder,
        info: &PathInfo,
        range: Range<u64>,
    ) -> Result<NarBody, HolderError> {
        let client = self.client();
        let size = info.nar_size;
        match holder {
            Holder::Peer { address, url } => {
                Ok(client.nar(*address, url.as_str(), range, size).await?)
            }
            Holder::Cache {
                cache,
                url,
                packing,
            } => {
                let asked = Instant::now();
                let opened = client.cache_nar(cache, url, *packing, range, size).await;
                if let Err(PeerError::Connect { .. }) = &opened {
                    self.cache_failed(cache, asked);
                }
                Ok(opened?)
            }
            Holder::Unproven(_) | Holder::UnprovenCache(_) | Holder::Own => {
                Err(HolderError::Unproven)
            }
        }
    }
}
