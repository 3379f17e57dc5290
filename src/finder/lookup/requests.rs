//! The candidates of one lookup, and its open requests for narinfos.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use log::{debug, warn};
use tokio::time::timeout;

use crate::{
    finder::{
        Finder,
        acceptance::{Offer, Rejection},
        peer_health::{Failure, Order, Success},
    },
    format::StorePathHash,
    peer::PeerError,
    protocol::PeerAddr,
    system::journal::chain,
};

use super::Refused;

/// Candidates of one lookup that are asked at the same time.
const ASKED_AT_ONCE: usize = 8;

/// Candidates of one lookup that are remembered.
const MOST_CANDIDATES: usize = 32;

/// A request to a peer that is not trusted to answer is late after that, and three round trips.
const LATE_AFTER: Duration = Duration::from_millis(100);

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

/// Requests that are open. Dropped, they are finished in the background.
pub(in crate::finder) struct Open<T: Send + 'static> {
    finder: Finder,
    requests: FuturesUnordered<BoxFuture<'static, T>>,
}

impl<T: Send + 'static> Open<T> {
    pub(in crate::finder) fn new(finder: &Finder) -> Self {
        Self {
            finder: finder.clone(),
            requests: FuturesUnordered::new(),
        }
    }

    pub(in crate::finder) fn push(&mut self, request: impl Future<Output = T> + Send + 'static) {
        self.requests.push(request.boxed());
    }

    /// The next answer; none if no request is open. Cancel safe.
    pub(in crate::finder) async fn next(&mut self) -> Option<T> {
        self.requests.next().await
    }
}

impl<T: Send + 'static> Drop for Open<T> {
    fn drop(&mut self) {
        if !self.requests.is_empty() {
            let open = std::mem::take(&mut self.requests);
            // Without room the outcome counts for nothing, which costs the next lookup a hedge.
            self.finder
                .finish_later(open.for_each(|_| std::future::ready(())));
        }
    }
}

/// The requests of one lookup to peers.
pub(super) struct Requests {
    hash: StorePathHash,
    open: Open<Answer>,
    /// Who is asked, and since when.
    began: Vec<(PeerAddr, Instant)>,
}

impl Requests {
    pub(super) fn new(finder: &Finder, hash: StorePathHash) -> Self {
        Self {
            hash,
            open: Open::new(finder),
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
        self.open.requests.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.open.requests.len() < ASKED_AT_ONCE
    }

    pub(super) fn begin(&mut self, peer: PeerAddr) {
        let (finder, hash) = (self.open.finder.clone(), self.hash);
        self.began.push((peer, Instant::now()));
        self.open
            .push(async move { (peer, finder.request_narinfo(peer, hash).await) });
    }

    /// The next answer; none if no request is open. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Answer> {
        let (peer, result) = self.open.next().await?;
        self.began.retain(|(other, _)| *other != peer);
        Some((peer, result))
    }
}

impl Finder {
    /// The narinfo of one peer, verified. Its outcome is recorded here and nowhere else.
    pub(in crate::finder) async fn request_narinfo(
        &self,
        peer: PeerAddr,
        hash: StorePathHash,
    ) -> Result<Offer, Refused> {
        let (memory, asked) = (self.memory(), Instant::now());
        let health = &memory.health;
        let fetched = self.fetch_narinfo(peer, hash).await;
        let verified = match fetched {
            Ok(body) => {
                let verified = self.0.trust.judge(hash, &body);
                verified.map_err(|source| Refused::Rejected { peer, source })
            }
            Err(error) => Err(error.into()),
        };
        let now = Instant::now();
        match &verified {
            Err(Refused::Peer(error)) if error.is_transport() => self.record_no_answer(peer, asked),
            _ => {
                health.record_success(peer, Success::Transport { at: now });
                health.record_latency(peer, now - asked);
            }
        }
        match &verified {
            Ok(_) => health.record_success(peer, Success::Path(hash)),
            Err(refused) => {
                memory.counters.refused(refused.kind());
                debug!(
                    hash:% = hash, peer:% = peer.ip(), reason = refused.kind();
                    "nothing of use from {peer}: {}", chain(refused)
                );
                if !matches!(refused, Refused::Peer(error) if error.is_transport()) {
                    health.record_failure(now, peer, Failure::Path(hash));
                }
                let is_other_path = matches!(
                    refused,
                    Refused::Rejected {
                        source: Rejection::OtherPath { .. },
                        ..
                    }
                );
                if is_other_path && let Some(ban) = health.record_wrong_path(now, peer) {
                    warn!(
                        hash:% = hash, peer:% = peer.ip(), reason = refused.kind();
                        "{peer} answers with narinfos of other paths and is not asked for {} minutes", ban.as_secs() / 60
                    );
                }
            }
        }
        verified
    }

    async fn fetch_narinfo(
        &self,
        peer: PeerAddr,
        hash: StorePathHash,
    ) -> Result<bytes::Bytes, PeerError> {
        let path = format!("local/{hash}.narinfo");
        let limit = self.limits().narinfo.bytes();
        let client = self.client();
        let (asked, late_after) = (Instant::now(), self.late_after(peer));
        // What is late has failed already, as far as other lookups are concerned.
        let mut answered = pin!(client.narinfo(peer, &path));
        let narinfo = match timeout(late_after, answered.as_mut()).await {
            Ok(narinfo) => narinfo?,
            Err(_) => {
                self.record_no_answer(peer, asked);
                answered.await?
            }
        };
        let health = &self.memory().health;
        let mut read = pin!(narinfo.read(limit));
        let body = match timeout(late_after, read.as_mut()).await {
            Ok(body) => body,
            Err(_) => {
                health.record_failure(Instant::now(), peer, Failure::NarinfoStalled);
                read.await
            }
        };
        if !matches!(body, Err(PeerError::Incomplete { .. })) {
            health.record_success(peer, Success::Narinfo);
        }
        body
    }

    fn record_no_answer(&self, peer: PeerAddr, asked: Instant) {
        let last_answer = self.0.lan.last_answer(peer);
        let failure = Failure::Transport { asked, last_answer };
        let health = &self.memory().health;
        debug!(peer:% = peer.ip(); "{peer} does not answer over HTTP");
        health.record_failure(Instant::now(), peer, failure);
        self.reconnect(peer);
    }

    /// A request to `peer` that has no answer after so long has failed, as far as others are concerned.
    pub(super) fn late_after(&self, peer: PeerAddr) -> Duration {
        let lan = &self.0.lan;
        if lan.is_trusted_to_answer(peer) {
            return self.longest_free_wait(peer);
        }
        LATE_AFTER.max(3 * lan.round_trip(peer).unwrap_or_default())
    }
}
