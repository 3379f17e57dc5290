//! `/HASH.narinfo`: 200 with what the LAN (or, after it, our own store) has and Nix will
//! accept, else 404. Never anything else: Nix fails a build at other answers.

use super::{
    Service,
    answer::{Answer, Refusal},
    local_narinfo::print,
};
use crate::format::StorePathHash;

pub(super) async fn answer(service: &Service, hash: StorePathHash) -> Result<Answer, Refusal> {
    let finder = service.finder().ok_or(Refusal::NotFound)?;
    let info = finder.narinfo(hash).await.ok_or(Refusal::NotFound)?;
    Ok(print(
        &service.config.store.dir,
        "v3/",
        std::sync::Arc::unwrap_or_clone(info),
    ))
}
