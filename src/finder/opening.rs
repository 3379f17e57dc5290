//! Opens a NAR at one holder: a verified peer, one that only said it has the path, or our
//! own store.

use std::{ops::Range, pin::Pin, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};

use super::{Finder, Holder, Holdings, acceptance::Offer, asking::Refused};
use crate::{
    format::PathInfo,
    peer::PeerError,
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
    #[error("silent for {} ms", after.as_millis())]
    Stalled { after: Duration },
    #[error("our own store cannot give it")]
    Own(#[from] NarError),
    #[error("our own store did not answer")]
    OwnStore(#[from] StoreError),
    #[error("not shared by our own store")]
    NotOurs,
}

impl HolderError {
    /// Whether the same holder may be able to go on in a moment.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Peer(error) | Self::Refused(Refused::Peer(error)) => error.may_pass(),
            Self::Stalled { .. } => true,
            Self::Refused(Refused::Rejected { .. }) | Self::OtherNar => false,
            Self::Own(_) | Self::OwnStore(_) | Self::NotOurs => false,
        }
    }
}

impl Finder {
    /// The bytes of `range`, not empty, at `holder`, if it has the very NAR of `info`.
    pub(super) async fn open(
        &self,
        holder: &Holder,
        info: &PathInfo,
        range: Range<u64>,
    ) -> Result<Body, HolderError> {
        let client = &self.0.client;
        match holder {
            Holder::Peer { address, url } => {
                let body = client
                    .nar(*address, url.as_str(), range, info.nar_size)
                    .await?;
                Ok(Box::pin(body.map(|piece| Ok(piece?))))
            }
            Holder::Unproven(address) => {
                let (_, offer) = self.fetch(*address, info.path.hash()).await;
                let Offer {
                    info: theirs, url, ..
                } = offer?;
                if (theirs.nar_hash, theirs.nar_size) != (info.nar_hash, info.nar_size) {
                    return Err(HolderError::OtherNar);
                }
                let body = client
                    .nar(*address, url.as_str(), range, info.nar_size)
                    .await?;
                Ok(Box::pin(body.map(|piece| Ok(piece?))))
            }
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
}
