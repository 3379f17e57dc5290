//! One lookup, with the plain caches: each that is known to answer is asked for the narinfo at
//! once, while the LAN is asked. The first narinfo that verifies wins.
//!
//! When the LAN has nothing, a cache is waited for as long as it usually takes, and one that has
//! not said a word by then is off until it has been probed again.

use std::{
    collections::VecDeque,
    future::pending,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use log::debug;
use tokio::time::sleep_until;

use super::{
    Finder, Found, Holder,
    acceptance::{Offer, Rejection},
    caches::{Answer, Candidate, Patience, Readiness},
    lookup::Refused,
    peer_health::{Failure, Order, Success},
};
use crate::{
    format::{NarHash, StorePathHash},
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

/// What a lookup gives a cache that is announced and has been of no use lately: a web server in
/// the same network takes less. And while it answers others, one after the other.
const BRIEFLY: Duration = Duration::from_millis(10);
const BRIEFLY_IF_BUSY: Duration = Duration::from_millis(50);

/// A cache in a lookup.
struct Asked {
    cache: Arc<PlainCache>,
    stage: Stage,
    patience: Patience,
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
    Answer(usize, Box<Result<(Offer, Packing), Refused>>),
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
        let mut lan_miss: Option<Instant> = None;
        let mut events = FuturesUnordered::<BoxFuture<'_, Event>>::new();
        for at in 0..caches.len() {
            let asked = &mut caches[at];
            events.push(if matches!(asked.stage, Stage::Probed(_)) {
                let cache = Arc::clone(&asked.cache);
                let caches = &self.memory().caches;
                async move { Event::Ready(at, caches.becomes_good(&cache).await) }.boxed()
            } else {
                self.question(at, asked, hash)
            });
        }
        loop {
            if lan_miss.is_some() {
                for asked in &mut caches {
                    self.give_up_late(asked, lan_miss, hash);
                }
                if caches.iter().all(|asked| asked.stage == Stage::Done) {
                    return None;
                }
            }
            let wake = lan_miss.and_then(|_| {
                let waited = caches.iter().filter_map(|asked| self.late_at(asked));
                waited.min()
            });
            let late = async {
                match wake {
                    Some(at) => sleep_until(at.into()).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                asked = lan.as_mut(), if lan_miss.is_none() => match asked {
                    Some(found) => return Some(found),
                    None => lan_miss = Some(Instant::now()),
                },
                Some(event) = events.next() => match event {
                    // One that is not waited for any more gets no time of its own.
                    Event::Ready(at, true) if caches[at].stage != Stage::Done => {
                        let question = self.question(at, &mut caches[at], hash);
                        events.push(question);
                    }
                    Event::Ready(at, _) => {
                        self.note_wait(&caches[at], lan_miss);
                        caches[at].stage = Stage::Done;
                    }
                    Event::Answer(at, result) => {
                        let asked = &mut caches[at];
                        self.note_wait(asked, lan_miss);
                        let judged = self.judge_of_cache(asked, hash, nar_hash, *result);
                        asked.stage = Stage::Done;
                        if let Some((offer, packing)) = judged {
                            let cache = Arc::clone(&asked.cache);
                            return Some(self.remember_at_cache(hash, cache, offer, packing));
                        }
                    }
                },
                () = late => {}
            }
        }
    }

    /// Who was at this address when it sent something.
    pub(super) fn holder_at(&self, address: PeerAddr) -> Holder {
        let cache = self.memory().caches.at(address);
        cache.map_or(Holder::Unproven(address), Holder::UnprovenCache)
    }

    /// The narinfo of a plain cache, judged.
    pub(super) async fn fetch_of_cache(
        &self,
        cache: &PlainCache,
        hash: StorePathHash,
    ) -> Result<(Offer, Packing), Refused> {
        let name = format!("{hash}.narinfo");
        let (peer, limit) = (cache.address, self.limits().narinfo.bytes());
        let _turn = self.memory().caches.question_turn(cache).await;
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
            let failure = Failure::Transport { last_answer: None };
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
        let mut candidates = memory.caches.candidates(now, hash, promised);
        candidates.retain(|candidate| {
            let address = candidate.cache.address;
            let mean = memory.health.mean_latency(address);
            let is_slow = mean.is_some_and(|mean| mean > BRIEFLY);
            if candidate.patience == Patience::Brief && is_slow {
                memory.caches.left(&candidate.cache);
                return false;
            }
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
            patience: candidate.patience,
            stage: match candidate.readiness {
                Readiness::Now => Stage::Asked(now),
                Readiness::Probed(until) => Stage::Probed(until),
            },
        };
        candidates.into_iter().map(asked).collect()
    }

    fn question<'a>(
        &'a self,
        at: usize,
        asked: &mut Asked,
        hash: StorePathHash,
    ) -> BoxFuture<'a, Event> {
        asked.stage = Stage::Asked(Instant::now());
        let cache = Arc::clone(&asked.cache);
        async move { Event::Answer(at, Box::new(self.fetch_of_cache(&cache, hash).await)) }.boxed()
    }

    /// Until when a cache is waited for while nobody else has the path.
    fn late_at(&self, asked: &Asked) -> Option<Instant> {
        match asked.stage {
            Stage::Probed(until) => until,
            Stage::Asked(at) => {
                let memory = self.memory();
                // One that answers others is busy, not dead.
                let is_busy = memory.caches.has_answered_since(&asked.cache, at);
                let patience = if self.is_brief_with(asked) {
                    if is_busy { BRIEFLY_IF_BUSY } else { BRIEFLY }
                } else if is_busy {
                    ANSWER_WITHIN
                } else {
                    let usual = memory.health.typical_latency(asked.cache.address);
                    let usual = usual.unwrap_or(LEAST_PATIENCE);
                    usual.clamp(LEAST_PATIENCE, ANSWER_WITHIN)
                };
                Some(at + patience)
            }
            Stage::Done => None,
        }
    }

    /// Waits no longer for a cache that is late.
    fn give_up_late(&self, asked: &mut Asked, lan_miss: Option<Instant>, hash: StorePathHash) {
        let is_waited_for = self.late_at(asked).is_some_and(|at| Instant::now() < at);
        if is_waited_for || asked.stage == Stage::Done {
            return;
        }
        self.note_wait(asked, lan_miss);
        match asked.stage {
            Stage::Asked(_) if self.is_brief_with(asked) => {
                self.memory().caches.left(&asked.cache);
            }
            Stage::Asked(at) => {
                debug!(hash:% = hash; "{} is late with {hash}", asked.cache);
                self.memory().counters.refused("late");
                self.cache_failed(&asked.cache, at);
            }
            Stage::Probed(_) | Stage::Done => {}
        }
        asked.stage = Stage::Done;
    }

    /// A cache will be waited for no longer, if it was: since the LAN had nothing, for it alone.
    fn note_wait(&self, asked: &Asked, lan_miss: Option<Instant>) {
        if let (Some(since), true) = (lan_miss, asked.stage != Stage::Done) {
            let caches = &self.memory().caches;
            caches.waited(&asked.cache, since, Instant::now());
        }
    }

    fn is_brief_with(&self, asked: &Asked) -> bool {
        asked.patience == Patience::Brief && !self.memory().caches.is_trusted(&asked.cache)
    }

    /// Takes an offer, or accounts for what was wrong with it.
    fn judge_of_cache(
        &self,
        asked: &Asked,
        hash: StorePathHash,
        nar_hash: Option<NarHash>,
        result: Result<(Offer, Packing), Refused>,
    ) -> Option<(Offer, Packing)> {
        let (memory, now) = (self.memory(), Instant::now());
        let cache = &asked.cache;
        let account = |answer| memory.caches.answered(now, cache, hash, answer);
        let refused = match result {
            Ok((offer, packing)) => {
                memory
                    .health
                    .record_success(cache.address, Success::Transport);
                memory
                    .health
                    .record_success(cache.address, Success::Path(hash));
                let is_right = nar_hash.is_none_or(|wanted| wanted == offer.info.nar_hash);
                account(if is_right {
                    Answer::Hit
                } else {
                    Answer::Refused
                });
                return is_right.then_some((offer, packing));
            }
            Err(refused) => refused,
        };
        let kind = refused.kind();
        let answer = match &refused {
            Refused::Peer(error) => answer_of(error),
            Refused::Rejected { source, .. } if *source == Rejection::Compressed => {
                Answer::Compressed
            }
            Refused::Rejected { .. } => Answer::Refused,
        };
        match (answer, asked.stage) {
            (Answer::Failure, Stage::Asked(at)) => self.cache_failed(cache, at),
            // Given up before, which was accounted for; and no sign of life.
            (Answer::Failure, _) => {}
            _ => account(answer),
        }
        if answer == Answer::Miss {
            return None;
        }
        memory.counters.refused(kind);
        if answer == Answer::Refused {
            let failure = Failure::Path(hash);
            memory.health.record_failure(now, cache.address, failure);
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
        offer: Offer,
        packing: Packing,
    ) -> Found {
        let Offer { info, url, proof } = offer;
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
