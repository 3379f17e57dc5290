//! Opens a NAR at one holder: a verified peer, one that only said it has the path, a plain cache,
//! or our own store.

use std::{
    ops::Range,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::OwnedSemaphorePermit;

use super::{Finder, Holder, Holdings, acceptance::Offer, asking::Refused};
use crate::{
    format::PathInfo,
    peer::{NarBody, PeerError},
    store::{NarError, StoreError},
};

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
            Self::Silent { .. } | Self::NoEnd | Self::Contradiction => false,
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
                let fetched = self.fetch(*address, hash).await;
                fetched.map(|Offer { info, url, .. }| {
                    let address = *address;
                    (info, Holder::Peer { address, url })
                })
            }
            Holder::UnprovenCache(cache) => {
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
