//! One lookup: ask the LAN, fetch the narinfos of those that say they have the path, take the
//! first that verifies.
//!
//! Several candidates are asked at once, each a little after the one before, so that one that
//! hangs costs nothing where another one answers, and [`ANSWER_WITHIN`] where none does.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use log::debug;
use tokio::time::{sleep_until, timeout};

use super::{
    Finder, Found, Holder,
    acceptance::{Offer, Rejection},
    standing::{Expectation, Standing},
};
use crate::{
    format::{NarHash, StorePathHash},
    peer::PeerError,
    protocol::PeerAddr,
    system::journal::chain,
};

/// Candidates of one lookup that are asked for their narinfo at the same time.
const ASKED_AT_ONCE: usize = 8;

/// From the first candidate of a lookup to the end of patience with all of them.
const ANSWER_WITHIN: Duration = Duration::from_millis(450);

/// A holder that gave a path a moment ago answers for its references faster than a question
/// to the LAN and a narinfo would take. Once it is later than usual the LAN is asked as well;
/// when nobody there has the path, it is waited for no longer than this.
const EXPECTED_WITHIN: Duration = Duration::from_millis(100);

/// Candidates of one lookup that are remembered; a LAN with more of them has holders enough.
const CANDIDATES: usize = 16;

/// Why a candidate's narinfo is of no use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("{peer} offers what cannot be accepted")]
    Rejected {
        peer: PeerAddr,
        #[source]
        source: Rejection,
    },
}

impl Standing {
    /// Accounts for a narinfo that was of no use.
    fn account(&self, peer: PeerAddr, refused: &Refused) {
        match refused {
            // It has lost the path since it said it had it.
            Refused::Peer(PeerError::Status { .. }) => {}
            Refused::Peer(error) if error.is_unreachable() => {
                self.unreachable(Instant::now(), peer)
            }
            _ => self.failed(Instant::now(), peer),
        }
    }
}

/// Nobody gave it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Miss {
    /// Somebody said that it has the path and then did not answer, as one that restarts.
    pub(super) unkept: bool,
}

impl Finder {
    /// Asks the LAN, except the peers in `tried`; what is found is remembered.
    pub(super) async fn ask(
        &self,
        hash: StorePathHash,
        nar_hash: Option<NarHash>,
        tried: &[PeerAddr],
    ) -> Result<Found, Miss> {
        let mut miss = Miss::default();
        let standing = &self.0.memory.standing;
        let mut lookup = self.0.lan.lookup(hash);
        let mut candidates = Candidates::default();
        let mut asked = FuturesUnordered::new();
        let mut answering = true;
        let mut next_at = tokio::time::Instant::now();
        // Until there is a candidate, the lookup itself is what ends.
        let mut give_up_at = None;
        let (address, offer) = loop {
            if asked.is_empty() && candidates.is_empty() && !answering {
                return Err(miss);
            }
            let room = !candidates.is_empty() && asked.len() < ASKED_AT_ONCE;
            let end = give_up_at.unwrap_or(next_at);
            tokio::select! {
                candidate = lookup.next(), if answering => match candidate {
                    Some(peer) if tried.contains(&peer) => {}
                    Some(peer) => {
                        give_up_at.get_or_insert_with(|| tokio::time::Instant::now() + ANSWER_WITHIN);
                        candidates.add(peer, standing, nar_hash.is_some());
                    }
                    None => answering = false,
                },
                Some((peer, result)) = asked.next() => {
                    candidates.asked.retain(|other| *other != peer);
                    miss.unkept |= matches!(&result, Err(Refused::Peer(error)) if error.may_pass());
                    if let Some(offer) = self.judge(peer, hash, nar_hash, result) {
                        break (peer, offer);
                    }
                    next_at = tokio::time::Instant::now();
                }
                () = sleep_until(next_at), if room => {
                    if let Some(peer) = candidates.next() {
                        if !asked.is_empty() {
                            self.0.memory.counters.hedged();
                        }
                        asked.push(self.fetch(peer, hash));
                        next_at = tokio::time::Instant::now() + standing.late_after(peer);
                    }
                }
                () = sleep_until(end), if give_up_at.is_some() => {
                    for peer in &candidates.asked {
                        self.0.memory.counters.refused("late");
                        standing.failed(Instant::now(), *peer);
                    }
                    return Err(Miss { unkept: true });
                }
            }
        };
        Ok(self.remember(hash, address, offer, candidates.rest()))
    }

    /// The path, from the LAN or from our own store. The holder of a path that refers to it, if
    /// there is one in good standing, is asked first.
    pub(super) async fn find(&self, hash: StorePathHash) -> Option<Found> {
        let memory = &self.0.memory;
        let now = Instant::now();
        let expected = memory.expected.take(now, hash);
        let good = |peer: &PeerAddr| memory.standing.expect(now, *peer) == Expectation::Good;
        let Some(peer) = expected.filter(good) else {
            return self.ask_all(hash).await;
        };
        // It is a lookup all the same: the neighbours stay awake, or wake up.
        self.0.lan.stir();
        let mut first = pin!(async {
            let (_, result) = self.fetch(peer, hash).await;
            let offer = self.judge(peer, hash, None, result)?;
            Some(self.remember(hash, peer, offer, std::iter::empty()))
        });
        match timeout(memory.standing.late_after(peer), first.as_mut()).await {
            Ok(Some(found)) => return Some(found),
            Ok(None) => return self.ask_all(hash).await,
            Err(_) => memory.counters.hedged(),
        }
        tokio::select! {
            Some(found) = first.as_mut() => Some(found),
            found = self.ask_all(hash) => match found {
                Some(found) => Some(found),
                None => {
                    let left = EXPECTED_WITHIN.saturating_sub(now.elapsed());
                    timeout(left, first).await.ok().flatten()
                }
            }
        }
    }

    /// Asks the LAN, then our own store.
    async fn ask_all(&self, hash: StorePathHash) -> Option<Found> {
        match self.ask(hash, None, &[]).await {
            Ok(found) => Some(found),
            Err(_) => self.own(hash, None).await,
        }
    }

    fn remember(
        &self,
        hash: StorePathHash,
        address: PeerAddr,
        offer: Offer,
        others: impl Iterator<Item = PeerAddr>,
    ) -> Found {
        let Offer { info, url, proof } = offer;
        let others = others.map(Holder::Unproven);
        self.0
            .memory
            .expected
            .references(Instant::now(), &info, address);
        let holders = std::iter::once(Holder::Peer { address, url })
            .chain(others)
            .collect();
        let found = Found {
            info: Arc::new(info),
            proof,
            holders,
        };
        self.0
            .memory
            .known
            .insert(Instant::now(), hash, found.clone());
        found
    }

    /// The narinfo of one peer, judged.
    pub(super) async fn fetch(
        &self,
        peer: PeerAddr,
        hash: StorePathHash,
    ) -> (PeerAddr, Result<Offer, Refused>) {
        let path = format!("local/{hash}.narinfo");
        let asked = Instant::now();
        let offer = match self
            .0
            .client
            .narinfo(peer, &path, self.limits().narinfo.bytes())
            .await
        {
            Ok(body) => {
                let standing = &self.0.memory.standing;
                standing.answered(peer, asked.elapsed());
                let judged = self.0.trust.judge(hash, &body);
                judged.map_err(|source| Refused::Rejected { peer, source })
            }
            Err(error) => Err(error.into()),
        };
        (peer, offer)
    }

    /// Takes an offer, or accounts for what was wrong with it.
    fn judge(
        &self,
        peer: PeerAddr,
        hash: StorePathHash,
        nar_hash: Option<NarHash>,
        result: Result<Offer, Refused>,
    ) -> Option<Offer> {
        let memory = &self.0.memory;
        let refused = match result {
            Ok(offer) => {
                memory.standing.served(peer);
                return nar_hash
                    .is_none_or(|wanted| wanted == offer.info.nar_hash)
                    .then_some(offer);
            }
            Err(refused) => refused,
        };
        let kind = match &refused {
            Refused::Peer(error) => error.kind(),
            Refused::Rejected { source, .. } => source.kind(),
        };
        memory.counters.refused(kind);
        memory.standing.account(peer, &refused);
        debug!(
            hash:% = hash, peer:% = peer.ip(), reason = kind;
            "nothing of use from {peer}: {}", chain(&refused)
        );
        None
    }
}

/// Peers that said they have the path, those of good standing first.
#[derive(Debug, Default)]
struct Candidates {
    good: VecDeque<PeerAddr>,
    doubtful: VecDeque<PeerAddr>,
    /// Asked, without an answer so far.
    asked: Vec<PeerAddr>,
}

impl Candidates {
    /// Adds `peer`, unless it is banned, or failed lately and another lookup tries it already.
    /// For a NAR that Nix was `promised`, every peer that failed is worth a try.
    fn add(&mut self, peer: PeerAddr, standing: &Standing, promised: bool) {
        let now = Instant::now();
        let queue = match standing.expect(now, peer) {
            Expectation::Good => &mut self.good,
            Expectation::Doubtful if promised || standing.may_try(now, peer) => &mut self.doubtful,
            Expectation::Doubtful | Expectation::Banned => return,
        };
        if queue.len() < CANDIDATES {
            queue.push_back(peer);
        }
    }

    fn is_empty(&self) -> bool {
        self.good.is_empty() && self.doubtful.is_empty()
    }

    fn next(&mut self) -> Option<PeerAddr> {
        let peer = self
            .good
            .pop_front()
            .or_else(|| self.doubtful.pop_front())?;
        self.asked.push(peer);
        Some(peer)
    }

    /// Those that were not needed, and those whose answer was not waited for.
    fn rest(self) -> impl Iterator<Item = PeerAddr> {
        self.good.into_iter().chain(self.asked).chain(self.doubtful)
    }
}
