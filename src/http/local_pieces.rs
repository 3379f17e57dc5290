//! `/nar/HASH-NARHASH.pieces`, also under `/local`: the digests of the pieces of a NAR that is
//! shared (docs/protocol.md), each as soon as it is known.

use futures_util::stream;
use hyper::{Method, Request};

use super::{
    Service,
    answer::{Answer, Refusal, octets_head},
    body::{Body, Cut, Pieces},
};
use crate::{
    format::{NarHash, StorePathHash},
    protocol::pieces::digests_bytes,
    store::PiecesError,
    system::journal::chain,
};

pub(super) async fn answer<B>(
    service: &Service,
    hash: StorePathHash,
    nar_hash: NarHash,
    request: &Request<B>,
) -> Result<Answer, Refusal> {
    let finder = service.finder().ok_or(Refusal::NotFound)?;
    let holdings = finder.holdings();
    let unavailable = |error: &dyn std::error::Error| {
        log::debug!(hash:% = hash; "cannot give the digests: {}", chain(error));
        Refusal::NotFound
    };
    let shared = holdings.store.shared(hash, &holdings.share).await;
    let info = shared
        .map_err(|error| unavailable(&error))?
        .filter(|info| info.nar_hash == nar_hash)
        .ok_or(Refusal::NotFound)?;
    let length = digests_bytes(info.nar_size);
    let mut head = octets_head(length);
    if request.method() == Method::HEAD {
        return Ok(head);
    }
    let digests = holdings
        .store
        .pieces(&info)
        .await
        .map_err(|error| match error {
            PiecesError::Busy { .. } => Refusal::Busy,
            PiecesError::Nar(error) => unavailable(&error),
        })?;
    let pieces: Pieces = Box::pin(stream::unfold(digests, |mut digests| async {
        let piece = digests.next().await?;
        if piece.is_err() {
            // Hyper discards what it has not written when a body fails, and writes when one waits.
            tokio::task::yield_now().await;
        }
        Some((piece.map_err(Cut::from), digests))
    }));
    *head.body_mut() = Body::nar(pieces, length);
    Ok(head)
}
