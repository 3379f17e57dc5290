//! The lookup of one hash: who says that it has the path, and the first narinfo of them that
//! verifies.
//!
//! Candidates are asked for their narinfo in the order of their health, each a little after the
//! one before (a hedge), so that one that hangs costs nothing where another one answers. The
//! lookup ends when nobody else can say yes and no request is worth waiting for: each is waited
//! for as long as [`AllowedWait`] says, and after that as long as the budget of the burst lasts. A
//! request goes on when its lookup has ended, so that its outcome counts.

mod requests;
mod wait;

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use log::debug;
use tokio::time::{sleep_until, timeout};

use super::{
    Finder, Found, Holder,
    acceptance::{Offer, Rejection},
    peer_health::{Order, Success},
};
use crate::{
    format::{NarHash, StorePathHash},
    peer::PeerError,
    protocol::PeerAddr,
};

pub(super) use requests::Open;
use requests::{Candidates, Requests};
use wait::{AllowedWait, Wait};

/// A request to any peer is waited for so long free of charge.
const FREE_WAIT: Duration = Duration::from_millis(5);

/// The round trip of a peer that is trusted to answer is free of charge up to this.
pub(super) const LONGEST_FREE_WAIT: Duration = Duration::from_millis(200);

/// The same where a lost packet has to be repeated, however far away the peer is.
const LONGEST_FAR_FREE_WAIT: Duration = Duration::from_millis(400);

/// What is asked of a NAR to see whether it comes.
const FIRST_BYTES: u64 = 4 << 10;

/// The first bytes of a NAR must come within that and two round trips, from a peer whose NARs fail.
const FIRST_BYTES_WITHIN: Duration = Duration::from_millis(50);

/// Why a narinfo is of no use.
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

impl Refused {
    /// A word for metrics and the journal.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Peer(error) => error.kind(),
            Self::Rejected { source, .. } => source.kind(),
        }
    }
}

impl Finder {
    /// The path for Nix: prefetched, else from the LAN or a plain cache, else from our own store.
    pub(super) async fn find(&self, hash: StorePathHash) -> Option<Found> {
        if let Some(found) = self.prefetched(hash) {
            // It is a lookup all the same: the neighbours stay awake, or wake up.
            self.0.lan.wake_peers();
            return Some(found);
        }
        let mut others = pin!(async {
            tokio::select! {
                biased;
                found = self.prefetched_soon(hash) => Some(found),
                found = self.ask(hash, None, &[]) => found,
            }
        });
        // Our own store is asked meanwhile, and counts when nobody else has the path.
        let mut own = pin!(self.own(hash, None));
        let mut ours = None;
        let found = loop {
            tokio::select! {
                biased;
                found = others.as_mut() => break found,
                found = own.as_mut(), if ours.is_none() => ours = Some(found),
            }
        };
        match (found, ours) {
            (Some(found), _) => Some(found),
            (None, Some(ours)) => ours,
            (None, None) => own.await,
        }
    }

    /// Asks the peers of the LAN, except these; with `nar_hash` only who has that NAR counts. What
    /// is found is remembered.
    pub(super) async fn ask_peers(
        &self,
        hash: StorePathHash,
        nar_hash: Option<NarHash>,
        except: &[PeerAddr],
    ) -> Option<Found> {
        let mut discovery = self.0.lan.lookup(hash);
        let mut is_discovering = true;
        let mut candidates = Candidates::default();
        let mut requests = Requests::new(self, hash);
        let mut wait = Wait::default();
        // When the next candidate is asked beside those that have been; at once, if none was.
        let mut next_at: Option<Instant> = None;
        // A good narinfo of a peer whose NARs fail.
        let mut doubtful: Option<(PeerAddr, Offer)> = None;
        loop {
            if !is_discovering && requests.is_empty() && candidates.is_empty() {
                break;
            }
            let mut end = None;
            if !is_discovering && !requests.is_empty() {
                end = Some(wait.end(&self.0.lan));
            }
            let now = Instant::now();
            let is_over = end.is_some_and(|end| end <= now);
            let has_next = !candidates.is_empty() && requests.has_room();
            let asks_next = has_next && (is_over || next_at.is_none_or(|at| at <= now));
            if is_over && !has_next {
                // One of them has given another path since it was asked; for a NAR that Nix was
                // promised all are given the time that they may take.
                let until = requests
                    .began()
                    .filter(|(peer, _)| nar_hash.is_some() || self.is_worth_waiting(*peer))
                    .map(|(peer, began)| began + self.late_after(peer) + FREE_WAIT)
                    .max();
                if until.is_some_and(|until| until > now) {
                    wait.extend_to(until);
                    continue;
                }
                debug!(hash:% = hash; "{:?} have not answered in time", requests.peers().collect::<Vec<_>>());
                break;
            }
            let wake = if asks_next {
                None
            } else {
                next_at.filter(|_| has_next).into_iter().chain(end).min()
            };
            tokio::select! {
                biased;
                Some((peer, result)) = requests.next() => {
                    next_at = None;
                    let is_wanted =
                        |offer: &Offer| nar_hash.is_none_or(|wanted| wanted == offer.info.nar_hash);
                    let Some(offer) = result.ok().filter(is_wanted) else {
                        discovery.reject_candidate();
                        continue;
                    };
                    if nar_hash.is_none() && self.memory().health.nars_fail(peer) {
                        discovery.reject_candidate();
                        doubtful.get_or_insert((peer, offer));
                        continue;
                    }
                    wait.refund();
                    let others = candidates.into_rest(&requests, doubtful.map(|(peer, _)| peer));
                    self.0.lan.record_given(peer);
                    return Some(self.remember(hash, peer, offer, others));
                }
                candidate = discovery.next(), if is_discovering => match candidate {
                    Some(peer) => {
                        let is_asked = !except.contains(&peer)
                            && self.consider(&mut candidates, peer, hash, nar_hash.is_some());
                        if !is_asked {
                            discovery.reject_candidate();
                        }
                    }
                    None => is_discovering = false,
                },
                () = until(wake), if asks_next || wake.is_some() => {
                    if asks_next && let Some(peer) = candidates.take_next() {
                        let allowed = self.allowed_wait(peer);
                        if allowed.at_least.is_zero() && wait.is_used_up(&self.0.lan) {
                            // Connection attempts are under way all the same.
                            debug!(hash:% = hash, peer:% = peer.ip(); "{peer} did not answer lately and is not waited for");
                            discovery.reject_candidate();
                            continue;
                        }
                        if !requests.is_empty() {
                            self.memory().counters.hedged();
                        }
                        requests.begin(peer);
                        wait.extend(now, allowed);
                        next_at = Some(now + self.hedge_delay(peer));
                    }
                }
            }
        }
        // Nobody else has it.
        let (peer, offer) = doubtful?;
        if !self.gives_first_bytes(peer, &offer).await {
            return None;
        }
        self.0.lan.record_given(peer);
        let others = candidates.into_rest(&requests, None);
        Some(self.remember(hash, peer, offer, others))
    }

    /// `peer` says that it has the path, whose NAR is `promised` to Nix or not. False if it is
    /// not asked for it.
    fn consider(
        &self,
        candidates: &mut Candidates,
        peer: PeerAddr,
        hash: StorePathHash,
        promised: bool,
    ) -> bool {
        let (health, now) = (&self.memory().health, Instant::now());
        if health.is_banned(now, peer) {
            return false;
        }
        if health.is_unreachable(peer) {
            self.reconnect(peer);
        }
        if !promised && health.nars_fail(peer) && !health.is_nar_probe_due(now, peer) {
            candidates.withheld.push(peer);
            return false;
        }
        candidates.add(self.order_of(peer, hash), peer);
        true
    }

    /// When `peer` is to be used for `hash`, compared with others.
    pub(super) fn order_of(&self, peer: PeerAddr, hash: StorePathHash) -> Order {
        let last_answer = self.0.lan.last_answer(peer);
        let health = &self.memory().health;
        health.order(Instant::now(), peer, hash, last_answer)
    }

    fn allowed_wait(&self, peer: PeerAddr) -> AllowedWait {
        let (health, lan) = (&self.memory().health, &self.0.lan);
        // A connection and a request.
        let round_trips = lan.round_trip(peer).unwrap_or_default() * 2;
        if health.is_late(peer) {
            let round_trips = round_trips + Duration::from_millis(1);
            return if health.may_wait(Instant::now(), peer) {
                AllowedWait::free(round_trips.min(LONGEST_FREE_WAIT))
            } else {
                AllowedWait::free(Duration::ZERO)
            };
        }
        if !lan.is_trusted_to_answer(peer) {
            return AllowedWait::free(FREE_WAIT);
        }
        let latency = health.typical_latency(peer).unwrap_or_default();
        let free = (round_trips + FREE_WAIT).max(latency);
        let longest = self.longest_free_wait(peer);
        AllowedWait {
            free: free.min(longest),
            at_least: longest,
        }
    }

    fn is_worth_waiting(&self, peer: PeerAddr) -> bool {
        self.0.lan.is_trusted_to_answer(peer) && !self.memory().health.is_late(peer)
    }

    /// How long a lookup waits for a trusted peer. The kernel repeats a lost packet after a round trip
    /// and 200 ms; the response to that counts.
    fn longest_free_wait(&self, peer: PeerAddr) -> Duration {
        let round_trip = self.0.lan.round_trip(peer).unwrap_or_default();
        (LONGEST_FREE_WAIT + 3 * round_trip).min(LONGEST_FAR_FREE_WAIT)
    }

    /// After how long without an answer of `peer` the next candidate is asked.
    fn hedge_delay(&self, peer: PeerAddr) -> Duration {
        let delay = self.memory().health.hedge_delay(peer);
        match self.0.lan.round_trip(peer) {
            Some(round_trip) => delay.min(round_trip * 2 + FREE_WAIT),
            None => delay,
        }
    }

    /// Whether `peer`, whose NARs fail, gives the first bytes of this one. Asked once a second; in
    /// between the answer is no.
    async fn gives_first_bytes(&self, peer: PeerAddr, offer: &Offer) -> bool {
        if !self.memory().health.may_probe_nar(Instant::now(), peer) {
            return false;
        }
        let size = offer.info.nar_size;
        let first = 0..size.min(FIRST_BYTES);
        let opened = async {
            let client = self.client();
            let opened = client.nar(peer, offer.url.as_str(), first, size).await;
            opened.ok()?.next().await?.ok()
        };
        let within = self.first_bytes_within(peer);
        let _wait = self.0.lan.begin_wait();
        let has_passed = matches!(timeout(within, opened).await, Ok(Some(_)));
        if has_passed {
            let health = &self.memory().health;
            health.record_success(peer, Success::NarProbe);
        }
        has_passed
    }

    /// Within what time a peer whose NARs fail has to give the first bytes of one.
    pub(super) fn first_bytes_within(&self, peer: PeerAddr) -> Duration {
        let round_trip = self.0.lan.round_trip(peer).unwrap_or_default();
        FIRST_BYTES_WITHIN + 2 * round_trip.min(LONGEST_FREE_WAIT)
    }

    pub(super) fn remember(
        &self,
        hash: StorePathHash,
        address: PeerAddr,
        offer: Offer,
        others: Vec<PeerAddr>,
    ) -> Found {
        let Offer { info, url, proof } = offer;
        let others = others.into_iter().map(Holder::Unproven);
        let holders = std::iter::once(Holder::Peer { address, url })
            .chain(others)
            .collect();
        let found = Found {
            info: Arc::new(info),
            proof,
            holders,
        };
        let sources = &self.memory().nar_sources;
        sources.insert(Instant::now(), hash, found.clone());
        found
    }
}

/// Returns at that time, and for none at once: a timer takes up to a millisecond even if it is due,
/// which is more than a narinfo takes.
async fn until(at: Option<Instant>) {
    if let Some(at) = at {
        sleep_until(at.into()).await;
    }
}
