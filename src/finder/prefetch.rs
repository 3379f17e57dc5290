//! The references of a path that Nix has just been told of, asked for at the same holder before
//! Nix asks: its next questions are answered from memory.
//!
//! Only what `narinfo` has given to Nix starts this, and nothing that was prefetched does before
//! Nix has asked for it: so it is never more than one step ahead.

use std::{
    collections::HashMap,
    future::pending,
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use lru::LruCache;
use tokio::sync::{mpsc, watch};

use super::{Finder, Found, Holder, peer_health::Order};
use crate::{
    format::{StorePath, StorePathHash},
    protocol::PeerAddr,
};

/// References that wait to be asked for; further ones are left to Nix.
pub const MOST_WAITING: usize = 512;

/// Asked for at the same time.
const AT_ONCE: usize = 8;

/// Answers that Nix has not asked for so far. With so many, nothing more is prefetched.
const MOST_UNUSED: NonZeroUsize = NonZeroUsize::new(1_024).expect("not zero");

/// Nix asks for a reference within seconds; later the holder may have lost it.
const FRESH_FOR: Duration = Duration::from_secs(60);

/// Nix has gone when it has asked for nothing for this long.
const GONE_AFTER: Duration = Duration::from_secs(2);

/// A reference to be asked for.
#[derive(Debug)]
pub struct Errand {
    finder: Finder,
    hash: StorePathHash,
    /// Who gave the path that refers to it.
    holder: PeerAddr,
}

/// What is there and what is on its way.
#[derive(Debug)]
pub(super) struct Prefetched(Mutex<State>);

#[derive(Debug)]
struct State {
    asked: Option<Instant>,
    unused: LruCache<StorePathHash, Instant>,
    under_way: HashMap<StorePathHash, watch::Receiver<()>>,
}

impl Default for Prefetched {
    fn default() -> Self {
        Self(Mutex::new(State {
            asked: None,
            unused: LruCache::new(MOST_UNUSED),
            under_way: HashMap::new(),
        }))
    }
}

impl Prefetched {
    /// Nix asks for a path.
    pub(super) fn asked(&self, now: Instant) {
        self.lock().asked = Some(now);
    }

    /// Whether Nix still asks, and uses what it is given.
    fn is_wanted(&self, now: Instant) -> bool {
        let state = &mut *self.lock();
        let unused = &mut state.unused;
        while let Some((_, at)) = unused.peek_lru()
            && now.duration_since(*at) >= FRESH_FOR
        {
            unused.pop_lru();
        }
        let is_there = |asked| now.duration_since(asked) < GONE_AFTER;
        state.asked.is_some_and(is_there) && state.unused.len() < MOST_UNUSED.get()
    }

    fn began(&self, hash: StorePathHash) -> Option<UnderWay<'_>> {
        let (end, ended) = watch::channel(());
        let mut state = self.lock();
        if state.under_way.contains_key(&hash) {
            return None;
        }
        state.under_way.insert(hash, ended);
        drop(state);
        Some(UnderWay {
            prefetched: self,
            hash,
            _end: end,
        })
    }

    /// Whether `hash` has come. Once for each.
    fn take(&self, now: Instant, hash: StorePathHash) -> bool {
        let came = self.lock().unused.pop(&hash);
        came.is_some_and(|at| now.saturating_duration_since(at) < FRESH_FOR)
    }

    /// Returns when `hash`, which is on its way, has come or will not come; at once if it is not on
    /// its way.
    async fn ends(&self, hash: StorePathHash) {
        let under_way = self.lock().under_way.get(&hash).cloned();
        if let Some(mut ended) = under_way {
            // An error is the end of it, and what happened is in the state.
            ended.changed().await.ok();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is one call, so a panic elsewhere leaves nothing half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A path that is being asked for; dropped, those who wait for it go on.
struct UnderWay<'a> {
    prefetched: &'a Prefetched,
    hash: StorePathHash,
    _end: watch::Sender<()>,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.prefetched.lock().under_way.remove(&self.hash);
    }
}

impl Finder {
    /// Has the references of what Nix was given asked for.
    pub(super) fn prefetch(&self, given: &Found) {
        let Some(&Holder::Peer { address, .. }) = given.holders.front() else {
            return;
        };
        let references = given.info.references.iter();
        let others = references.filter(|it| **it != given.info.path);
        for hash in others.map(StorePath::hash).filter(|it| self.may_come(*it)) {
            let errand = Errand {
                finder: self.clone(),
                hash,
                holder: address,
            };
            if self.0.background.prefetches.try_send(errand).is_err() {
                self.0.memory.counters.prefetch_dropped();
            }
        }
    }

    /// What was prefetched for Nix, if it was and its holder is still worth offering.
    pub(super) fn prefetched(&self, hash: StorePathHash) -> Option<Found> {
        let memory = &self.0.memory;
        let now = Instant::now();
        if !memory.prefetched.take(now, hash) {
            return None;
        }
        let found = memory.nar_sources.fresh(now, hash, None)?;
        let holder = found.holders.front()?.address()?;
        if !self.may_be_offered(holder, hash) {
            return None;
        }
        memory.counters.prefetch_used();
        Some(found)
    }

    /// What is on its way for Nix, as soon as it comes; never if it does not come. Nobody waits for
    /// it alone: a lookup runs beside it.
    pub(super) async fn prefetched_soon(&self, hash: StorePathHash) -> Found {
        self.0.memory.prefetched.ends(hash).await;
        match self.prefetched(hash) {
            Some(found) => found,
            None => pending().await,
        }
    }

    fn may_be_offered(&self, holder: PeerAddr, hash: StorePathHash) -> bool {
        let is_banned = self.0.memory.health.is_banned(Instant::now(), holder);
        !is_banned && self.order_of(holder, hash) == Order::Healthy
    }

    /// Whether Nix may ask for `hash` next, and it is not known yet.
    fn may_come(&self, hash: StorePathHash) -> bool {
        let memory = &self.0.memory;
        let now = Instant::now();
        memory.nar_sources.fresh(now, hash, None).is_none()
    }
}

impl Errand {
    async fn run(self) {
        let Self {
            finder,
            hash,
            holder,
        } = self;
        let memory = finder.memory();
        if !finder.may_come(hash) {
            return;
        }
        let now = Instant::now();
        if !memory.prefetched.is_wanted(now) {
            memory.counters.prefetch_dropped();
            return;
        }
        // What is valid here Nix does not ask for.
        if !matches!(finder.holdings().store.query(hash).await, Ok(None)) {
            return;
        }
        let Some(_under_way) = memory.prefetched.began(hash) else {
            return;
        };
        if !finder.may_be_offered(holder, hash) {
            return;
        }
        if let Ok(offer) = finder.request_narinfo(holder, hash).await {
            finder.remember(hash, holder, offer, Vec::new());
            memory.prefetched.lock().unused.put(hash, Instant::now());
            memory.counters.prefetched();
        }
    }
}

/// Asks for what comes, until nobody can send anything.
pub async fn run(mut errands: mpsc::Receiver<Errand>) {
    let mut under_way = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = under_way.next() => {}
            errand = errands.recv(), if under_way.len() < AT_ONCE => match errand {
                Some(errand) => under_way.push(errand.run()),
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(number: usize) -> StorePathHash {
        StorePathHash::parse(format!("{number:032}").as_bytes()).expect("hash")
    }

    #[test]
    fn nothing_is_wanted_when_nix_has_gone_or_uses_nothing() {
        let (prefetched, now) = (Prefetched::default(), Instant::now());
        assert!(!prefetched.is_wanted(now), "it has never asked");
        prefetched.asked(now);
        assert!(prefetched.is_wanted(now));
        assert!(!prefetched.is_wanted(now + GONE_AFTER));
        for number in 0..MOST_UNUSED.get() {
            prefetched.lock().unused.put(hash(number), now);
        }
        assert!(!prefetched.is_wanted(now));
        let later = now + FRESH_FOR;
        prefetched.asked(later);
        assert!(prefetched.is_wanted(later), "the old ones are forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_on_its_way_is_waited_for_and_given_once() {
        let (prefetched, now) = (Prefetched::default(), Instant::now());
        assert!(!prefetched.take(now, hash(1)));
        prefetched.ends(hash(1)).await;
        let under_way = prefetched.began(hash(1)).expect("the first");
        assert!(prefetched.began(hash(1)).is_none(), "once at a time");
        let coming = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            prefetched.lock().unused.put(hash(1), now);
            drop(under_way);
        };
        tokio::join!(prefetched.ends(hash(1)), coming);
        assert!(prefetched.take(now, hash(1)));
        assert!(!prefetched.take(now, hash(1)), "once");
    }
}
