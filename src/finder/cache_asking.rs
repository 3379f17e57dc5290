//! One lookup, with the plain caches: each that is known to answer is asked for the narinfo at
//! once, while the LAN is asked. The first narinfo that verifies wins.
//!
//! When the LAN has nothing, a cache is waited for as long as it usually takes, and one that has
//! not said a word by then is off until it has been probed again. Waits for an announced cache that
//! gave no path so far are paid from the budget of the burst.

use std::{
    collections::VecDeque,
    future::pending,
    pin::pin,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use log::debug;
use tokio::time::{sleep_until, timeout};

use super::{
    Finder, Found, Holder,
    acceptance::{Offer, Rejection},
    caches::{Answer, CacheTrust, Candidate, Readiness},
    lookup::{LONGEST_FREE_WAIT, Open, Refused},
    peer_health::{Failure, Order, Success},
};
use crate::{
    format::{NarHash, StorePathHash},
    lan::PaidWait,
    peer::{Packing, PeerError},
    protocol::{PeerAddr, PlainCache},
    system::journal::chain,
};

/// The longest that a cache is waited for.
const ANSWER_WITHIN: Duration = Duration::from_millis(450);

/// The shortest that a cache is given when nobody else has the path. One that writes head and body
/// apart takes 40 ms for each answer: its system waits for an acknowledgement, and ours with it. A
/// hiccup costs more than patience: Nix does not ask again within the hour for what was missed.
const LEAST_PATIENCE: Duration = Duration::from_millis(250);

/// How long a lookup waits, without the budget of the burst, for an announced cache that gave no path
/// so far. A web server in the same network takes less.
const FREE_WAIT: Duration = Duration::from_millis(10);

/// A cache in a lookup.
struct Asked {
    cache: Arc<PlainCache>,
    stage: Stage,
    trust: CacheTrust,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its probe is under way, and waited for until then.
    Probed(Option<Instant>),
    Asked(Instant),
    Done,
}

enum Event {
    Ready(usize, bool),
    Answer(usize, Option<Box<(Offer, Packing)>>),
}

impl Finder {
    /// Asks the LAN and the plain caches, except those in `tried`; what is found is remembered.
    pub(super) async fn ask(
        &self,
        hash: StorePathHash,
        nar_hash: Option<NarHash>,
        tried: &[PeerAddr],
    ) -> Option<Found> {
        let mut caches = self.caches_for(hash, nar_hash, tried);
        let mut lan = pin!(self.ask_peers(hash, nar_hash, tried));
        if caches.is_empty() {
            return lan.await;
        }
        let mut has_lan = false;
        let mut paid: Option<PaidWait> = None;
        let mut events = Open::new(self);
        // Requests that wait for a permit end with the lookup.
        let lookup = Arc::new(());
        for (at, asked) in caches.iter_mut().enumerate() {
            if matches!(asked.stage, Stage::Probed(_)) {
                let (finder, cache) = (self.clone(), Arc::clone(&asked.cache));
                events.push(async move {
                    Event::Ready(at, finder.memory().caches.becomes_good(&cache).await)
                });
            } else {
                self.question(&mut events, at, asked, (hash, nar_hash), &lookup);
            }
        }
        loop {
            let mut wake = None;
            if has_lan {
                for asked in &mut caches {
                    let late_at = self.late_at(asked);
                    if late_at.is_none_or(|at| at <= Instant::now()) {
                        asked.stage = Stage::Done;
                    }
                }
                wake = Some(self.look_again_at(&caches, &mut paid)?);
            }
            let late = async {
                match wake {
                    Some(at) => sleep_until(at.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                found = lan.as_mut(), if !has_lan => match found {
                    Some(found) => return Some(found),
                    None => has_lan = true,
                },
                Some(event) = events.next() => match event {
                    // One that is not waited for any more gets no time of its own.
                    Event::Ready(at, true) if caches[at].stage != Stage::Done => {
                        self.question(&mut events, at, &mut caches[at], (hash, nar_hash), &lookup);
                    }
                    Event::Ready(at, _) => caches[at].stage = Stage::Done,
                    Event::Answer(at, None) => caches[at].stage = Stage::Done,
                    Event::Answer(at, Some(offer)) => {
                        if let Some(paid) = paid {
                            paid.refund();
                        }
                        let cache = Arc::clone(&caches[at].cache);
                        return Some(self.remember_at_cache(hash, cache, *offer));
                    }
                },
                () = late => {}
            }
        }
    }

    /// When to check the requests again; none if no request is worth waiting for.
    fn look_again_at(&self, caches: &[Asked], paid: &mut Option<PaidWait>) -> Option<Instant> {
        let late = caches
            .iter()
            .filter_map(|asked| self.late_at(asked))
            .min()?;
        let free = caches.iter().filter_map(|asked| self.free_until(asked));
        let now = Instant::now();
        if let Some(free) = free.max().filter(|until| now < *until) {
            *paid = None;
            return Some(free.min(late));
        }
        let paid = paid.get_or_insert_with(|| self.0.lan.begin_wait());
        if let Some(ends) = paid.ends_at() {
            return Some(ends.min(late));
        }
        for asked in caches.iter().filter(|asked| asked.stage != Stage::Done) {
            self.memory().caches.left(&asked.cache);
        }
        None
    }

    /// Who was at this address when it sent something.
    pub(super) fn holder_at(&self, address: PeerAddr) -> Holder {
        let cache = self.memory().caches.at(address);
        cache.map_or(Holder::Unproven(address), Holder::UnprovenCache)
    }

    /// Fetches and verifies the narinfo of a plain cache; the caller holds its permit.
    pub(super) async fn fetch_of_cache(
        &self,
        cache: &PlainCache,
        hash: StorePathHash,
    ) -> Result<(Offer, Packing), Refused> {
        let name = format!("{hash}.narinfo");
        let (peer, limit) = (cache.address, self.limits().narinfo.bytes());
        let asked = Instant::now();
        let fetched = self.client().cache_file(cache, &name, limit, ANSWER_WITHIN);
        let fetched = fetched.await;
        if matches!(fetched, Ok(_) | Err(PeerError::Status { .. })) {
            self.memory().health.record_latency(peer, asked.elapsed());
        }
        let judged = self.0.trust.judge_of_cache(hash, &fetched?);
        judged.map_err(|source| Refused::Rejected { peer, source })
    }

    /// `cache` did not answer what it was `asked` then.
    pub(super) fn cache_failed(&self, cache: &PlainCache, asked: Instant) {
        let (memory, now) = (self.memory(), Instant::now());
        let is_off = memory.caches.failed(now, cache, asked);
        // One that answers some and lets others wait is left out as a peer is.
        if !is_off {
            let failure = Failure::Transport {
                asked,
                last_answer: None,
            };
            memory.health.record_failure(now, cache.address, failure);
        }
    }

    fn caches_for(
        &self,
        hash: StorePathHash,
        nar_hash: Option<NarHash>,
        tried: &[PeerAddr],
    ) -> Vec<Asked> {
        let memory = self.memory();
        let now = Instant::now();
        let promised = nar_hash.is_some();
        let mut candidates = memory.caches.candidates(now);
        candidates.retain(|candidate| {
            let address = candidate.cache.address;
            let health = &memory.health;
            !tried.contains(&address)
                && !health.is_banned(now, address)
                && match self.order_of(address, hash) {
                    Order::Healthy | Order::PathFailed => true,
                    Order::NarsFail => promised || health.may_probe_nar(now, address),
                    Order::BackingOff => promised || health.may_wait(now, address),
                }
        });
        let asked = |candidate: Candidate| Asked {
            cache: candidate.cache,
            trust: if promised {
                CacheTrust::Configured
            } else {
                candidate.trust
            },
            stage: match candidate.readiness {
                Readiness::Now => Stage::Asked(now),
                Readiness::Probed(until) => Stage::Probed(until),
            },
        };
        candidates.into_iter().map(asked).collect()
    }

    fn question(
        &self,
        events: &mut Open<Event>,
        at: usize,
        asked: &mut Asked,
        (hash, nar_hash): (StorePathHash, Option<NarHash>),
        lookup: &Arc<()>,
    ) {
        asked.stage = Stage::Asked(Instant::now());
        let (finder, cache) = (self.clone(), Arc::clone(&asked.cache));
        let lookup = Arc::downgrade(lookup);
        events.push(async move {
            let offer = finder.request_of_cache(&cache, hash, nar_hash, lookup);
            Event::Answer(at, offer.await.map(Box::new))
        });
    }

    /// Requests the narinfo of `hash` from a cache; none if it is of no use. The outcome is recorded
    /// here alone, also when the lookup has ended.
    async fn request_of_cache(
        &self,
        cache: &PlainCache,
        hash: StorePathHash,
        nar_hash: Option<NarHash>,
        lookup: Weak<()>,
    ) -> Option<(Offer, Packing)> {
        let began = Instant::now();
        let mut fetched = pin!(async {
            let _turn = self.memory().caches.question_turn(cache).await;
            if lookup.strong_count() == 0 {
                return None;
            }
            Some(self.fetch_of_cache(cache, hash).await)
        });
        let mut is_late = false;
        // A request that timed out counts as a failure for other lookups, although it goes on. A cache
        // that answers other requests is busy.
        let result = match timeout(self.usual_timeout(cache), fetched.as_mut()).await {
            Ok(result) => result,
            Err(_) => {
                if !self.memory().caches.has_answered_since(cache, began) {
                    debug!(hash:% = hash; "{cache} is late with {hash}");
                    self.memory().counters.refused("late");
                    self.cache_failed(cache, began);
                    is_late = true;
                }
                fetched.await
            }
        };
        self.account(cache, hash, nar_hash, result?, (began, is_late))
    }

    /// After how long a request to a cache has timed out, unless the cache answers other requests.
    fn usual_timeout(&self, cache: &PlainCache) -> Duration {
        let usual = self.memory().health.typical_latency(cache.address);
        let usual = usual.unwrap_or(LEAST_PATIENCE);
        usual.clamp(LEAST_PATIENCE, ANSWER_WITHIN)
    }

    /// Until when a cache is waited for while nobody else has the path.
    fn late_at(&self, asked: &Asked) -> Option<Instant> {
        match asked.stage {
            Stage::Probed(until) => until,
            Stage::Asked(at) => {
                let memory = self.memory();
                let timeout = if memory.caches.has_answered_since(&asked.cache, at) {
                    ANSWER_WITHIN
                } else {
                    self.usual_timeout(&asked.cache)
                };
                Some(at + timeout)
            }
            Stage::Done => None,
        }
    }

    /// Until when it is waited for free of charge.
    fn free_until(&self, asked: &Asked) -> Option<Instant> {
        let late = self.late_at(asked)?;
        match (asked.trust, asked.stage) {
            (CacheTrust::Configured, _) => Some(late),
            (CacheTrust::HasGiven, Stage::Asked(at)) => Some(late.min(at + LONGEST_FREE_WAIT)),
            (CacheTrust::Stranger, Stage::Asked(at)) => Some(at + FREE_WAIT),
            (CacheTrust::HasGiven | CacheTrust::Stranger, Stage::Probed(_) | Stage::Done) => None,
        }
    }

    /// Takes an offer, or accounts for what was wrong with it.
    fn account(
        &self,
        cache: &PlainCache,
        hash: StorePathHash,
        nar_hash: Option<NarHash>,
        result: Result<(Offer, Packing), Refused>,
        (began, is_late): (Instant, bool),
    ) -> Option<(Offer, Packing)> {
        let (memory, now) = (self.memory(), Instant::now());
        let health = &memory.health;
        let refused = match result {
            Ok((offer, packing)) => {
                health.record_success(cache.address, Success::Transport { at: now });
                health.record_success(cache.address, Success::Path(hash));
                let is_right = nar_hash.is_none_or(|wanted| wanted == offer.info.nar_hash);
                let answer = if is_right {
                    Answer::Hit
                } else {
                    Answer::Refused
                };
                memory.caches.answered(now, cache, answer);
                return is_right.then_some((offer, packing));
            }
            Err(refused) => refused,
        };
        let answer = match &refused {
            Refused::Peer(error) => answer_of(error),
            Refused::Rejected { source, .. } if *source == Rejection::Compressed => {
                Answer::Compressed
            }
            Refused::Rejected { .. } => Answer::Refused,
        };
        match answer {
            Answer::Failure if !is_late => self.cache_failed(cache, began),
            // Given up before, which was accounted for.
            Answer::Failure => {}
            _ => memory.caches.answered(now, cache, answer),
        }
        if answer == Answer::Miss {
            return None;
        }
        let kind = refused.kind();
        memory.counters.refused(kind);
        if answer == Answer::Refused {
            health.record_failure(now, cache.address, Failure::Path(hash));
        }
        debug!(
            hash:% = hash, peer:% = cache.address.ip(), reason = kind;
            "nothing of use from {cache}: {}", chain(&refused)
        );
        None
    }

    fn remember_at_cache(
        &self,
        hash: StorePathHash,
        cache: Arc<PlainCache>,
        (Offer { info, url, proof }, packing): (Offer, Packing),
    ) -> Found {
        let found = Found {
            info: Arc::new(info),
            proof,
            holders: VecDeque::from([Holder::Cache {
                cache,
                url,
                packing,
            }]),
        };
        let sources = &self.memory().nar_sources;
        sources.insert(Instant::now(), hash, found.clone());
        found
    }
}

fn answer_of(error: &PeerError) -> Answer {
    match error {
        // A directory that must not be listed says 403 of what is not in it.
        PeerError::Status { status, .. } if matches!(status.as_u16(), 403 | 404 | 410) => {
            Answer::Miss
        }
        _ if error.is_transport() => Answer::Failure,
        _ => Answer::Refused,
    }
}
