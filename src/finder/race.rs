//! The narinfos of one path that are asked for at the same time.

use std::sync::Arc;

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{runtime::Handle, sync::Semaphore};

use super::{
    Finder,
    acceptance::Offer,
    asking::{ASKED_AT_ONCE, Refused},
};
use crate::{format::StorePathHash, protocol::PeerAddr};

/// Races that are heard to their end in the background at the same time.
const MOST_HEARD: usize = 64;

type Runner = BoxFuture<'static, (PeerAddr, Result<Offer, Refused>)>;

/// The peers that are asked. Those who have not answered when it is dropped are heard to their end
/// all the same, for less than a second: or one that hangs would be asked first in each lookup, and
/// never be found out.
pub(super) struct Race {
    finder: Finder,
    hash: StorePathHash,
    runners: FuturesUnordered<Runner>,
}

/// How many races more may be heard to their end.
#[derive(Debug)]
pub(super) struct Hearings(Arc<Semaphore>);

impl Default for Hearings {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MOST_HEARD)))
    }
}

impl Race {
    pub(super) fn new(finder: &Finder, hash: StorePathHash) -> Self {
        Self {
            finder: finder.clone(),
            hash,
            runners: FuturesUnordered::new(),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.runners.len() < ASKED_AT_ONCE
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runners.is_empty()
    }

    /// Asks `peer` as well.
    pub(super) fn ask(&self, peer: PeerAddr) {
        let (finder, hash) = (self.finder.clone(), self.hash);
        self.runners.push(
            async move {
                let result = finder.fetch(peer, hash).await;
                (peer, result)
            }
            .boxed(),
        );
    }

    /// The next answer; none if nobody is asked. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<(PeerAddr, Result<Offer, Refused>)> {
        self.runners.next().await
    }

    /// Nobody is to be heard any more: it is known what to think of them.
    pub(super) fn break_off(&mut self) {
        self.runners.clear();
    }
}

impl Drop for Race {
    fn drop(&mut self) {
        if self.is_empty() {
            return;
        }
        let hearings = Arc::clone(&self.finder.memory().hearings.0);
        // Too many of them, or the process ends: this is only about who is asked next time.
        let (Ok(turn), Ok(runtime)) = (hearings.try_acquire_owned(), Handle::try_current()) else {
            return;
        };
        let mut rest = Self {
            finder: self.finder.clone(),
            hash: self.hash,
            runners: std::mem::take(&mut self.runners),
        };
        runtime.spawn(async move {
            let _turn = turn;
            while let Some((peer, result)) = rest.next().await {
                rest.finder.judge(peer, rest.hash, None, result);
            }
        });
    }
}
