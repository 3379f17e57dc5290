//! `/local/HASH.narinfo`: a path of our store, if it is shared.

use super::{
    Service,
    answer::{Answer, Refusal, content},
};
use crate::format::{
    Narinfo, PathInfo, StoreDir, StorePathHash,
    narinfo::{Compression, NarUrl},
};

pub(super) async fn answer(service: &Service, hash: StorePathHash) -> Result<Answer, Refusal> {
    let finder = service.finder().ok_or(Refusal::NotFound)?;
    let holdings = finder.holdings();
    match holdings.store.shared(hash, &holdings.share).await {
        Ok(Some(info)) => Ok(print(&service.config.store.dir, "", info)),
        Ok(None) => Err(Refusal::NotFound),
        Err(error) => {
            log::debug!(hash:% = hash; "no answer from the store: {error}");
            Err(Refusal::NotFound)
        }
    }
}

/// The narinfo of `info`, with its NAR under `PREFIXnar/`. Old peers resolve that against the
/// root, Nix against the directory of the narinfo; both are routes.
pub(super) fn print(dir: &StoreDir, prefix: &'static str, info: PathInfo) -> Answer {
    let url = NarUrl::of(prefix, info.path.hash(), &info.nar_hash);
    let narinfo = Narinfo {
        info,
        url,
        compression: Compression::None,
        file_size: None,
    };
    content("text/x-nix-narinfo", narinfo.print(dir))
}
