//! The candidates of one lookup, and its open requests for narinfos.

use std::time::Instant;

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};

use crate::{
    finder::{Finder, acceptance::Offer, peer_health::Order},
    format::StorePathHash,
    protocol::PeerAddr,
};

use super::Refused;

/// Candidates of one lookup that are asked at the same time.
const ASKED_AT_ONCE: usize = 8;

/// Candidates of one lookup that are remembered.
const MOST_CANDIDATES: usize = 32;

/// A narinfo of this peer was asked for.
type Answer = (PeerAddr, Result<Offer, Refused>);

/// Peers that said they have the path and were not asked yet.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// The best first.
    queue: Vec<(Order, PeerAddr)>,
    /// Of no use unless somebody else has the path: their NARs fail.
    pub(super) withheld: Vec<PeerAddr>,
}

impl Candidates {
    pub(super) fn add(&mut self, order: Order, peer: PeerAddr) {
        let is_known = self.queue.iter().any(|(_, other)| *other == peer);
        if self.queue.len() < MOST_CANDIDATES && !is_known {
            self.queue.push((order, peer));
            self.queue.sort_by_key(|(order, _)| *order);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// The best of them.
    pub(super) fn take_next(&mut self) -> Option<PeerAddr> {
        (!self.queue.is_empty()).then(|| self.queue.remove(0).1)
    }

    /// Those that were not asked, those that have not answered, and those whose NARs fail.
    pub(super) fn into_rest(
        self,
        requests: &Requests,
        doubtful: Option<PeerAddr>,
    ) -> Vec<PeerAddr> {
        let rest = self.queue.into_iter().map(|(_, peer)| peer);
        rest.chain(requests.peers())
            .chain(doubtful)
            .chain(self.withheld)
            .take(MOST_CANDIDATES)
            .collect()
    }
}

/// The requests of one lookup that are open. Dropped, they are finished in the background.
pub(super) struct Requests {
    finder: Finder,
    hash: StorePathHash,
    open: FuturesUnordered<BoxFuture<'static, Answer>>,
    /// Who is asked, and since when.
    began: Vec<(PeerAddr, Instant)>,
}

impl Requests {
    pub(super) fn new(finder: &Finder, hash: StorePathHash) -> Self {
        Self {
            finder: finder.clone(),
            hash,
            open: FuturesUnordered::new(),
            began: Vec::new(),
        }
    }

    /// The peers that are asked.
    pub(super) fn peers(&self) -> impl Iterator<Item = PeerAddr> {
        self.began.iter().map(|(peer, _)| *peer)
    }

    /// The same, and since when.
    pub(super) fn began(&self) -> impl Iterator<Item = (PeerAddr, Instant)> {
        self.began.iter().copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.open.len() < ASKED_AT_ONCE
    }

    pub(super) fn begin(&mut self, peer: PeerAddr) {
        let (finder, hash) = (self.finder.clone(), self.hash);
        self.began.push((peer, Instant::now()));
        let request = async move { (peer, finder.request_narinfo(peer, hash).await) };
        self.open.push(request.boxed());
    }

    /// The next answer; none if no request is open. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Answer> {
        let (peer, result) = self.open.next().await?;
        self.began.retain(|(other, _)| *other != peer);
        Some((peer, result))
    }
}

impl Drop for Requests {
    fn drop(&mut self) {
        if !self.open.is_empty() {
            let open = std::mem::take(&mut self.open);
            // Without room the outcome counts for nothing, which costs the next lookup a hedge.
            self.finder
                .finish_later(open.for_each(|_| std::future::ready(())));
        }
    }
}
