//! `/v3/nar/HASH-NARHASH.nar`: the NAR from whichever holder can give it.

use std::sync::Arc;

use futures_util::stream;
use hyper::{Method, Request, header::RANGE};

use super::{
    Service,
    answer::{Answer, Refusal, nar_head, part},
    body::{Body, Cut, Pieces},
};
use crate::{
    finder::NarStream,
    format::{NarHash, StorePathHash},
};

pub(super) async fn answer<B>(
    service: &Arc<Service>,
    hash: StorePathHash,
    nar_hash: Option<NarHash>,
    request: &Request<B>,
) -> Result<Answer, Refusal> {
    let finder = service.finder().ok_or(Refusal::NotFound)?;
    // Nix wants the rest of a NAR that cannot be had: 404 sends it to its next substituter.
    let resumes = request.headers().contains_key(RANGE);
    if resumes && nar_hash.is_some_and(|nar_hash| finder.is_incompletable(hash, nar_hash)) {
        return Err(Refusal::NotFound);
    }
    let found = finder.nar(hash, nar_hash).await.ok_or_else(|| {
        log::info!(hash:% = hash, reason = "no-holder"; "nobody who answers has the NAR of {hash}");
        Refusal::NotFound
    })?;
    let (nar_hash, size) = (found.info.nar_hash, found.info.nar_size);
    let range = part(request.headers(), &nar_hash, size)?;
    if request.method() == Method::HEAD {
        let source = found
            .holders
            .front()
            .map(ToString::to_string)
            .unwrap_or_default();
        return Ok(nar_head(&nar_hash, &range, size, &source));
    }
    // 404 sends Nix to its next substituter; there is no slot for a long time only if this
    // machine alone keeps them all busy.
    let slot = service
        .budget
        .for_loopback()
        .await
        .ok_or(Refusal::NotFound)?;
    let opened = NarStream::open(finder, found, range.clone(), slot)
        .await
        .map_err(|error| {
            log::info!(hash:% = hash, reason = "no-holder"; "{error}");
            Refusal::NotFound
        })?;
    let source = opened.holder().map(ToString::to_string).unwrap_or_default();
    let mut head = nar_head(&nar_hash, &range, size, &source);
    let pieces: Pieces = Box::pin(stream::unfold(opened, |mut opened| async {
        let piece = opened.next().await?;
        let piece = piece.map_err(|error| {
            log::info!(reason = "cut"; "{error}; Nix resumes");
            Cut::from(error)
        });
        Some((piece, opened))
    }));
    *head.body_mut() = Body::nar(pieces, range.end - range.start);
    Ok(head)
}
