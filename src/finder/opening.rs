//! Opens a NAR at one holder: a verified peer, one that only said it has the path, or our
//! own store.

use std::{ops::Range, pin::Pin, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};

use super::{Finder, Holder, Holdings, acceptance::Offer, asking::Refused};
use crate::{
    format::{PathInfo, narinfo::NarUrl},
    peer::{NarBody, PeerError},
    protocol::PeerAddr,
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
            Self::Stalled { .. } | Self::Overtaken | Self::WithoutRanges => true,
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
        let Holder::Unproven(address) = holder else {
            return Ok(holder);
        };
        match self.fetch(address, info.path.hash()).await.1 {
            Ok(Offer {
                info: theirs, url, ..
            }) if (theirs.nar_hash, theirs.nar_size) == (info.nar_hash, info.nar_size) => {
                Ok(Holder::Peer { address, url })
            }
            Ok(_) => Err((holder, HolderError::OtherNar)),
            Err(refused) => Err((holder, refused.into())),
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
            Holder::Peer { address, url } => {
                let body = self.peer_nar(*address, url, info, range).await?;
                Ok(Box::pin(body.map(|piece| Ok(piece?))))
            }
            Holder::Unproven(_) => Err(HolderError::Unproven),
            Holder::Own => {
                let Holdings { store, share } = self.holdings();
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

    /// The bytes of `range` at a peer.
    pub(super) async fn peer_nar(
        &self,
        address: PeerAddr,
        url: &NarUrl,
        info: &PathInfo,
        range: Range<u64>,
    ) -> Result<NarBody, PeerError> {
        let client = &self.0.client;
        client
            .nar(address, url.as_str(), range, info.nar_size)
            .await
    }
}
