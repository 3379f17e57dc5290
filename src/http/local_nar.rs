//! `/nar/HASH-NARHASH.nar`, also under `/local`, and the old peerix form: the NAR of a path of
//! our store, if it is shared; any range of it in constant time.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use hyper::{Method, Request};

use super::{
    App, Service,
    access::Client,
    answer::{Answer, Refusal, nar_head, part},
    body::{Body, Cut, Pieces},
    served::Served,
};
use crate::{
    format::{NarHash, StorePathHash},
    system::journal::chain,
};

pub(super) async fn answer<B>(
    app: &App,
    service: &Arc<Service>,
    client: Client,
    hash: StorePathHash,
    nar_hash: Option<NarHash>,
    request: &Request<B>,
) -> Result<Answer, Refusal> {
    let finder = service.finder().ok_or(Refusal::NotFound)?;
    let holdings = finder.holdings();
    let unavailable = |error: &dyn std::error::Error| {
        log::debug!(hash:% = hash; "cannot serve the NAR: {}", chain(error));
        Refusal::NotFound
    };
    let shared = holdings.store.shared(hash, &holdings.share).await;
    let info = shared
        .map_err(|error| unavailable(&error))?
        .ok_or(Refusal::NotFound)?;
    // A narinfo from before the path was built anew leads nowhere, rather than to other bytes.
    if nar_hash.is_some_and(|asked| asked != info.nar_hash) {
        return Err(Refusal::NotFound);
    }
    let range = part(request.headers(), &info.nar_hash, info.nar_size)?;
    let mut head = nar_head(&info.nar_hash, &range, info.nar_size, "self");
    if request.method() == Method::HEAD {
        return Ok(head);
    }
    let (slot, place) = if client.is_loopback() {
        let slot = service.budget.for_loopback().await;
        (slot.ok_or(Refusal::NotFound)?, None)
    } else {
        let place = app.admit_lan_nar(client.address.ip());
        let place = place.ok_or(Refusal::Busy)?;
        (service.budget.for_lan().ok_or(Refusal::Busy)?, Some(place))
    };
    let nar = holdings
        .store
        .nar(&info)
        .await
        .map_err(|error| unavailable(&error))?;
    let length = range.end - range.start;
    let served = Served::new(
        Arc::clone(&app.counters),
        client.address,
        &service.config.store.dir,
        info,
        range.clone(),
    );
    let peer = client.address.ip();
    let upload = service.upload.clone().filter(|_| !client.is_loopback());
    let source = Box::pin(nar.read(range));
    let pieces: Pieces = Box::pin(stream::unfold(
        (source, served, (slot, place)),
        move |(mut source, mut served, held)| {
            let upload = upload.clone();
            async move {
                let piece = match source.next().await? {
                    Ok(piece) => {
                        if let Some(upload) = upload {
                            upload.pay(peer, piece.len()).await;
                        }
                        served.sent(piece.len() as u64);
                        Ok(piece)
                    }
                    Err(error) => {
                        served.broke(&error);
                        Err(Cut::from(error))
                    }
                };
                Some((piece, (source, served, held)))
            }
        },
    ));
    *head.body_mut() = Body::nar(pieces, length);
    Ok(head)
}
