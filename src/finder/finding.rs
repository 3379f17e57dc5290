//! Where a path is asked for first: in memory, at the holder of what refers to it, and at peers
//! whose summaries have it. Only then the LAN is asked, which decides.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::FusedFuture};
use tokio::time::timeout;

use super::{
    Finder, Found,
    asking::{ANSWER_WITHIN, CANDIDATES, reached},
    race::Race,
    standing::Expectation,
};
use crate::{format::StorePathHash, protocol::PeerAddr};

/// A holder that gave a path a moment ago answers for its references faster than a question
/// to the LAN and a narinfo would take. Once it is later than usual the LAN is asked as well;
/// when nobody there has the path, it is waited for no longer than this. It has not said that it
/// has the path; one whose summary says so is waited for like any peer that has said it.
const EXPECTED_WITHIN: Duration = Duration::from_millis(100);

/// Peers that may each be later than usual before the LAN is asked as well, the other probable
/// ones included.
const TRIED_BEFORE_THE_LAN: usize = 2;

impl Finder {
    /// The path, from the LAN or from our own store.
    pub(super) async fn find(&self, hash: StorePathHash) -> Option<Found> {
        let memory = &self.0.memory;
        if let Some(found) = self.prefetched(hash).await {
            // It is a lookup all the same: the neighbours stay awake, or wake up.
            self.0.lan.stir();
            return Some(found);
        }
        let now = Instant::now();
        let expected = memory.expected.take(now, hash);
        let probable = memory.summaries.consult(hash);
        let others = probable.iter().filter(|peer| Some(**peer) != expected);
        let peers = expected.into_iter().chain(others.copied());
        let mut peers: Vec<PeerAddr> = peers
            .filter(|peer| self.is_good(*peer))
            .take(CANDIDATES)
            .collect();
        let others = peers.split_off(peers.len().min(TRIED_BEFORE_THE_LAN));
        if peers.is_empty() {
            return self.ask_all(hash, &[]).await;
        }
        self.0.lan.stir();
        let late_after = |peer: &PeerAddr| memory.standing.late_after(*peer);
        let usual = peers.iter().map(late_after).sum();
        let is_promised = peers.iter().any(|peer| probable.contains(peer));
        let patience = if is_promised {
            ANSWER_WITHIN
        } else {
            EXPECTED_WITHIN
        };
        let first = self.ask_directly(hash, &peers, &others);
        let mut first = pin!(timeout(patience, first).map(|it| it.ok().flatten()).fuse());
        match timeout(usual, first.as_mut()).await {
            Ok(Some(found)) => return Some(found),
            Ok(None) => return self.ask_all(hash, &peers).await,
            Err(_) => memory.counters.hedged(),
        }
        tokio::select! {
            Some(found) = first.as_mut() => Some(found),
            found = self.ask_all(hash, &peers) => match found {
                Some(found) => Some(found),
                // It may have ended with nothing before the LAN did.
                None if first.is_terminated() => None,
                None => first.await,
            }
        }
    }

    /// Asks the LAN, but not those in `tried`, then our own store.
    async fn ask_all(&self, hash: StorePathHash, tried: &[PeerAddr]) -> Option<Found> {
        match self.ask(hash, None, tried).await {
            Ok(found) => Some(found),
            Err(_) => self.own(hash, None).await,
        }
    }

    /// Asks `peers` for `hash` over HTTP, the next one when the one before is later than usual.
    /// What is found is remembered, with `others` that may have it, too.
    async fn ask_directly(
        &self,
        hash: StorePathHash,
        peers: &[PeerAddr],
        others: &[PeerAddr],
    ) -> Option<Found> {
        let memory = &self.0.memory;
        let mut waiting = peers.iter().copied();
        let mut under_way: Vec<PeerAddr> = Vec::new();
        let mut asked = Race::new(self, hash);
        let mut next_at = None;
        loop {
            if asked.is_empty() && waiting.len() == 0 {
                return None;
            }
            tokio::select! {
                Some((peer, result)) = asked.next() => {
                    under_way.retain(|other| *other != peer);
                    if let Some(offer) = self.judge(peer, hash, None, result) {
                        let more = under_way.into_iter().chain(waiting);
                        let others = more.chain(others.iter().copied());
                        return Some(self.remember(hash, peer, offer, others));
                    }
                    next_at = None;
                }
                () = reached(next_at), if waiting.len() > 0 => {
                    if let Some(peer) = waiting.next() {
                        if !asked.is_empty() {
                            memory.counters.hedged();
                        }
                        under_way.push(peer);
                        asked.ask(peer);
                        let late_after = memory.standing.late_after(peer);
                        next_at = Some(tokio::time::Instant::now() + late_after);
                    }
                }
            }
        }
    }

    pub(super) fn is_good(&self, peer: PeerAddr) -> bool {
        self.0.memory.standing.expect(Instant::now(), peer) == Expectation::Good
    }
}
