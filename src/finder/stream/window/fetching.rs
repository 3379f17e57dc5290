//! What a window waits for: pieces, and digests of pieces.

use std::{ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use log::debug;
use sha2::{Digest, Sha256};

use super::{super::testimony::SourceId, Event};
use crate::{
    finder::{Finder, Holder, nar_sources::HolderError},
    format::PathInfo,
    peer::PieceDigests,
    protocol::pieces::PieceDigest,
};

pub(super) async fn next_digests(source: SourceId, mut digests: PieceDigests) -> Event {
    match digests.next().await {
        Some(Ok(next)) => Event::Digests(source, Some((next, digests))),
        Some(Err(error)) => {
            debug!("digests broke off: {error}");
            Event::Digests(source, None)
        }
        None => Event::Digests(source, None),
    }
}

/// Fetches one piece from one holder.
pub(super) async fn fetch(
    finder: Finder,
    info: Arc<PathInfo>,
    holder: Holder,
    range: Range<u64>,
) -> Result<(Bytes, PieceDigest), HolderError> {
    if holder.is_packed() {
        return Err(HolderError::WithoutRanges);
    }
    let after = finder.limits().stall;
    let stalled = |_| HolderError::Stalled { after };
    let turn = tokio::time::timeout(after, finder.opening_turn(&holder)).await;
    let turn = turn.map_err(|_| HolderError::Busy { after })?;
    let opening = finder.remote_nar(&holder, &info, range.clone());
    let mut body = tokio::time::timeout(after, opening)
        .await
        .map_err(stalled)??;
    drop(turn);
    if body.is_without_ranges() {
        return Err(HolderError::WithoutRanges);
    }
    let mut piece = BytesMut::with_capacity((range.end - range.start) as usize);
    let mut hasher = Sha256::new();
    while let Some(bytes) = tokio::time::timeout(after, body.next())
        .await
        .map_err(stalled)?
    {
        let bytes = bytes?;
        hasher.update(&bytes);
        piece.extend_from_slice(&bytes);
    }
    Ok((piece.freeze(), hasher.finalize().into()))
}
