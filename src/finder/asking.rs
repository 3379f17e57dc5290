//! One lookup: ask the LAN, fetch the narinfos of those that say they have the path, take the
//! first that verifies.
//!
//! Several candidates are asked at once, each a little after the one before, so that one that
//! hangs costs nothing where another one answers, and [`ANSWER_WITHIN`] where none does.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use log::debug;
use tokio::time::sleep_until;

use super::{
    Finder, Found, Holder,
    acceptance::{Offer, Rejection},
    race::Race,
    standing::{Expectation, Standing},
};
use crate::{
    format::{NarHash, StorePathHash},
    peer::PeerError,
    protocol::PeerAddr,
    system::journal::chain,
};

/// Candidates of one lookup that are asked for their narinfo at the same time.
pub(super) const ASKED_AT_ONCE: usize = 8;

/// From the first candidate of a lookup to the end of patience with all of them.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_millis(450);

/// Candidates of one lookup that are remembered; a LAN with more of them has holders enough.
pub(super) const CANDIDATES: usize = 16;

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

/// Returns at that time, and for none at once: a timer takes up to a millisecond even if it is due,
/// which is more than a narinfo takes.
pub(super) async fn reached(at: Option<tokio::time::Instant>) {
    if let Some(at) = at {
        sleep_until(at).await;
    }
}

impl Finder {
    /// Asks the peers of the LAN, except those in `tried`; what is found is remembered.
    pub(super) async fn ask_peers(
        &self,
        hash: StorePathHash,
        nar_hash: Option<NarHash>,
        tried: &[PeerAddr],
    ) -> Result<Found, Miss> {
        let mut miss = Miss::default();
        let standing = &self.0.memory.standing;
        let mut lookup = self.0.lan.lookup(hash);
        let mut candidates = Candidates::default();
        let mut asked = Race::new(self, hash);
        let mut answering = true;
        let mut next_at = None;
        // Until there is a candidate, the lookup itself is what ends.
        let mut give_up_at = None;
        let (address, offer) = loop {
            if asked.is_empty() && candidates.is_empty() && !answering {
                return Err(miss);
            }
            let room = !candidates.is_empty() && asked.has_room();
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
                    if asked.is_empty() && candidates.is_empty() {
                        // All of them have answered; the patience is with those who have not.
                        give_up_at = None;
                    }
                    next_at = None;
                }
                () = reached(next_at), if room => {
                    if let Some(peer) = candidates.next() {
                        if !asked.is_empty() {
                            self.0.memory.counters.hedged();
                        }
                        asked.ask(peer);
                        next_at = Some(tokio::time::Instant::now() + standing.late_after(peer));
                    }
                }
                () = reached(give_up_at), if give_up_at.is_some() => {
                    for peer in &candidates.asked {
                        self.0.memory.counters.refused("late");
                        standing.failed(Instant::now(), *peer);
                    }
                    asked.break_off();
                    return Err(Miss { unkept: true });
                }
            }
        };
        Ok(self.remember(hash, address, offer, candidates.rest()))
    }

    pub(super) fn remember(
        &self,
        hash: StorePathHash,
        address: PeerAddr,
        offer: Offer,
        others: impl Iterator<Item = PeerAddr>,
    ) -> Found {
        let Offer { info, url, proof } = offer;
        let others = others.map(Holder::Unproven);
        let memory = &self.0.memory;
        let holders = std::iter::once(Holder::Peer { address, url })
            .chain(others)
            .collect();
        let found = Found {
            info: Arc::new(info),
            proof,
            holders,
        };
        memory.known.insert(Instant::now(), hash, found.clone());
        found
    }

    /// The narinfo of one peer, judged.
    pub(super) async fn fetch(
        &self,
        peer: PeerAddr,
        hash: StorePathHash,
    ) -> Result<Offer, Refused> {
        let path = format!("local/{hash}.narinfo");
        let asked = Instant::now();
        let limit = self.limits().narinfo.bytes();
        let body = self.client().narinfo(peer, &path, limit).await?;
        self.memory().standing.answered(peer, asked.elapsed());
        let judged = self.0.trust.judge(hash, &body);
        judged.map_err(|source| Refused::Rejected { peer, source })
    }

    /// Takes an offer, or accounts for what was wrong with it.
    pub(super) fn judge(
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
