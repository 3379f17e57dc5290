//! Where a path is asked for: in memory, at the peers of the LAN, in our own store.

use super::{Finder, Found};
use crate::format::StorePathHash;

impl Finder {
    /// The path, from the LAN or from our own store.
    pub(super) async fn find(&self, hash: StorePathHash) -> Option<Found> {
        if let Some(found) = self.prefetched(hash).await {
            // It is a lookup all the same: the neighbours stay awake, or wake up.
            self.0.lan.wake_peers();
            return Some(found);
        }
        match self.ask(hash, None, &[]).await {
            Ok(found) => Some(found),
            Err(_) => self.own(hash, None).await,
        }
    }
}
