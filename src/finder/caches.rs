//! The plain binary caches that are known: which of them answer, and what each has done.
//!
//! A cache is asked for `nix-cache-info` in the background: when Nix begins to ask, and then
//! once a minute at most. One that has answered is asked for each path; one that fails is not
//! asked until it has answered again. So a cache that is off costs a lookup nothing.

mod patience;
mod probing;
mod status;

use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use log::debug;
use lru::LruCache;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::{
    format::{StoreDir, StorePathHash, narinfo::NarUrl},
    protocol::{PeerAddr, PlainCache},
};

pub(super) use patience::Patience;
pub use probing::run;
pub(super) use status::Answer;
pub use status::{CacheState, CacheStatus};

/// Caches that are asked; each of them is for each path.
pub const MOST_CACHES: usize = 8;

/// Questions that a cache is asked at a time, and NARs that are opened there beside them. Some web
/// servers have room for six connections that they have not looked at yet, and what is dropped then
/// comes again a second later.
const ASKED_AT_ONCE: usize = 4;
const OPENED_AT_ONCE: usize = 2;

/// From one probe of a cache to the next, while Nix asks; and how long the last sign of life
/// counts.
const PROBED_EVERY: Duration = Duration::from_secs(60);

/// After so long without a question Nix begins anew, and the caches are probed then.
const QUIET: Duration = Duration::from_secs(5);

/// As in discovery, a burst has ended when Nix has asked for nothing so long.
const BURST_ENDS_AFTER: Duration = Duration::from_secs(60);

/// A cache of which nothing is known is waited for so long, once: its probe takes two round trips,
/// and what Nix is told is not there, it does not ask for again within the hour.
const FIRST_PROBE_WITHIN: Duration = Duration::from_millis(250);

/// A cache is not asked again for a path that it did not have a moment ago.
const ABSENT_FOR: Duration = Duration::from_secs(60);

/// Such answers that are remembered; each takes about 120 bytes.
const MOST_ABSENT: NonZeroUsize = NonZeroUsize::new(8_192).expect("not zero");

/// The caches, and what is known of them.
#[derive(Debug)]
pub struct Caches {
    known: Mutex<Known>,
    /// A probe is due.
    due: Notify,
    /// A probe has ended.
    probed: watch::Sender<()>,
}

#[derive(Debug)]
struct Known {
    entries: Vec<Entry>,
    /// Those that there is no room for.
    spare: VecDeque<Arc<PlainCache>>,
    next_id: u64,
    absent: LruCache<(u64, StorePathHash), Instant>,
    last_question: Option<Instant>,
    store_dir: StoreDir,
    own_port: u16,
    /// What lookups waited in this burst for announced caches that were of no use.
    credit: patience::Meter,
    turn: patience::Turn,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    cache: Arc<PlainCache>,
    state: CacheState,
    probe: Probe,
    /// When the last probe was due.
    probed_at: Option<Instant>,
    /// When it last answered anything.
    heard: Option<Instant>,
    /// One for each question that it can be asked now, and for each NAR that can be opened.
    questions: Arc<Semaphore>,
    openings: Arc<Semaphore>,
    answers: status::Answers,
    of_use: patience::Use,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    Over,
    Due,
    UnderWay,
}

/// A cache that may be asked now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) cache: Arc<PlainCache>,
    pub(super) readiness: Readiness,
    pub(super) patience: Patience,
}

/// Whether a cache can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    Now,
    /// When its probe has ended well; to be waited for until then, if that is said.
    Probed(Option<Instant>),
}

impl Default for Caches {
    fn default() -> Self {
        Self {
            known: Mutex::new(Known {
                entries: Vec::new(),
                spare: VecDeque::new(),
                next_id: 0,
                absent: LruCache::new(MOST_ABSENT),
                last_question: None,
                store_dir: StoreDir::default(),
                own_port: 0,
                turn: patience::Turn::default(),
                credit: patience::Meter::default(),
            }),
            due: Notify::new(),
            probed: watch::Sender::new(()),
        }
    }
}

impl Caches {
    /// These are the caches from now on, [`MOST_CACHES`] of them at a time: first those of the
    /// settings, then those that have been of use, then those that answer. What is known of those
    /// that stay is kept.
    pub fn set(&self, list: Vec<PlainCache>) {
        let mut known = self.lock();
        let mut before = std::mem::take(&mut known.entries);
        let mut entries: Vec<Entry> = Vec::new();
        for cache in list {
            let is_known = entries.iter().any(|entry| *entry.cache == cache);
            if is_known || !is_sound(&cache) {
                continue;
            }
            let stays = before.iter().position(|entry| *entry.cache == cache);
            entries.push(match stays {
                Some(at) => before.swap_remove(at),
                None => known.entry(cache),
            });
        }
        entries.sort_by_key(Entry::rank);
        let spare = entries.split_off(entries.len().min(MOST_CACHES));
        for Entry { cache, .. } in &spare {
            debug!("{cache} is not asked: there are {MOST_CACHES} others");
        }
        known.spare = spare.into_iter().map(|entry| entry.cache).collect();
        known.entries = entries;
        drop(known);
        // Nobody waits for one that is not there any more.
        self.probed.send_replace(());
    }

    /// The store that Nix uses, and the port at which we serve ourselves.
    pub fn configure(&self, store_dir: StoreDir, own_port: u16) {
        let mut known = self.lock();
        (known.store_dir, known.own_port) = (store_dir, own_port);
    }

    /// Forgets who answered and what was absent, because the owner says so.
    pub fn forget(&self) {
        let mut known = self.lock();
        known.absent.clear();
        known.last_question = None;
        known.credit = patience::Meter::default();
        for entry in &mut known.entries {
            (entry.state, entry.probed_at) = (CacheState::Unknown, None);
        }
    }

    /// Nix asks: caches that nobody has heard of lately are probed.
    pub(super) fn stir(&self, now: Instant) {
        if self.lock().stir(now) {
            self.due.notify_one();
        }
    }

    /// Whom to ask for `hash`. Those that did not have it a moment ago are asked again only if it
    /// was `promised` to Nix.
    pub(super) fn candidates(
        &self,
        now: Instant,
        hash: StorePathHash,
        promised: bool,
    ) -> Vec<Candidate> {
        self.stir(now);
        let known = &mut *self.lock();
        let mut candidates = Vec::new();
        let mut on_trial = None;
        for entry in &mut known.entries {
            let patience = if entry.is_trusted() || promised {
                Patience::Full
            } else {
                *on_trial.get_or_insert_with(|| known.turn.of_a_lookup(&known.credit))
            };
            let readiness = match (entry.state, entry.probe) {
                (CacheState::Good, _) => Readiness::Now,
                (_, Probe::Over) => continue,
                (CacheState::Unknown, _) if patience == Patience::Full => {
                    Readiness::Probed(entry.probed_at.map(|at| at + FIRST_PROBE_WITHIN))
                }
                _ => Readiness::Probed(None),
            };
            let absent = known.absent.get(&(entry.id, hash));
            if !promised && absent.is_some_and(|since| now.duration_since(*since) < ABSENT_FOR) {
                entry.answers.count(Answer::Remembered);
                continue;
            }
            let cache = Arc::clone(&entry.cache);
            candidates.push(Candidate {
                cache,
                readiness,
                patience,
            });
        }
        candidates
    }

    /// Whether the probe of `cache`, which is under way, ends well. Cancel safe.
    pub(super) async fn becomes_good(&self, cache: &PlainCache) -> bool {
        let mut probed = self.probed.subscribe();
        loop {
            match self.lock().find(cache) {
                Some(entry) if entry.state == CacheState::Good => return true,
                Some(entry) if entry.probe != Probe::Over => {}
                _ => return false,
            }
            if probed.changed().await.is_err() {
                return false;
            }
        }
    }

    /// What `cache` answered when it was asked for `hash`.
    pub(super) fn answered(
        &self,
        now: Instant,
        cache: &PlainCache,
        hash: StorePathHash,
        answer: Answer,
    ) {
        let known = &mut *self.lock();
        if let Some(entry) = known.find(cache) {
            entry.answers.count(answer);
            let was_on_trial = !entry.is_trusted();
            entry.of_use.note(answer == Answer::Hit);
            entry.heard = Some(now);
            let key = (entry.id, hash);
            match answer {
                Answer::Hit if was_on_trial => known.credit.earn(),
                Answer::Miss => {
                    known.absent.put(key, now);
                }
                _ => {}
            }
        }
    }

    /// `cache` did not answer what it was `asked` then. If it has answered others meanwhile it is
    /// busy, else it is off; whether it is.
    pub(super) fn failed(&self, now: Instant, cache: &PlainCache, asked: Instant) -> bool {
        let mut known = self.lock();
        let Some(entry) = known.find(cache) else {
            return true;
        };
        entry.answers.count(Answer::Failure);
        entry.of_use.note(false);
        let is_off = entry.heard.is_none_or(|heard| heard <= asked);
        if is_off {
            // No probe before its time: it has had one, as it were.
            (entry.state, entry.probed_at) = (CacheState::Off, Some(now));
        }
        is_off
    }

    /// A lookup waited for `cache` alone, `since` then.
    pub(super) fn waited(&self, cache: &PlainCache, since: Instant, now: Instant) {
        let known = &mut *self.lock();
        let Some(entry) = known.find(cache) else {
            return;
        };
        let is_trusted = entry.is_trusted();
        entry.of_use.waited(since, now);
        if !is_trusted {
            known.credit.waited(since, now);
        }
    }

    /// Whether `cache` is worth waiting for by now: another lookup may have found something there.
    pub(super) fn is_trusted(&self, cache: &PlainCache) -> bool {
        self.lock().find(cache).is_some_and(|it| it.is_trusted())
    }

    /// A lookup did not wait for `cache`.
    pub(super) fn left(&self, cache: &PlainCache) {
        if let Some(entry) = self.lock().find(cache) {
            entry.answers.count(Answer::Left);
        }
    }

    /// The turn of a question to `cache`, kept until it has been answered; none if the cache is not
    /// known any more. Cancel safe.
    pub(super) async fn question_turn(&self, cache: &PlainCache) -> Option<OwnedSemaphorePermit> {
        let questions = self.lock().find(cache)?.questions.clone();
        questions.acquire_owned().await.ok()
    }

    /// The turn of a NAR that is to be opened at `cache`, kept until it comes. Cancel safe.
    pub(super) async fn opening_turn(&self, cache: &PlainCache) -> Option<OwnedSemaphorePermit> {
        let openings = self.lock().find(cache)?.openings.clone();
        openings.acquire_owned().await.ok()
    }

    /// Whether `cache` has answered anything since then.
    pub(super) fn has_answered_since(&self, cache: &PlainCache, then: Instant) -> bool {
        let mut known = self.lock();
        let heard = known.find(cache).and_then(|entry| entry.heard);
        heard.is_some_and(|heard| heard > then)
    }

    /// The cache at this address.
    pub(super) fn at(&self, address: PeerAddr) -> Option<Arc<PlainCache>> {
        let known = self.lock();
        let mut entries = known.entries.iter();
        let entry = entries.find(|entry| entry.cache.address == address)?;
        Some(Arc::clone(&entry.cache))
    }

    /// What is known of each of them.
    pub fn status(&self, now: Instant) -> Vec<CacheStatus> {
        self.lock()
            .entries
            .iter()
            .map(|entry| entry.status(now))
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // A panic elsewhere leaves at worst a probe that is under way for ever, for one cache.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Whether lookups wait for it: its owner says so, or it has been of use.
    fn is_trusted(&self) -> bool {
        !self.cache.announced || self.of_use.is_recent()
    }

    /// Who comes first if there are too many: a stranger can announce as many as it likes.
    fn rank(&self) -> u8 {
        match self.state {
            _ if !self.cache.announced => 0,
            _ if self.of_use.is_recent() => 1,
            CacheState::Good => 2,
            CacheState::Unknown => 3,
            _ => 4,
        }
    }
}

impl Known {
    fn entry(&mut self, cache: impl Into<Arc<PlainCache>>) -> Entry {
        self.next_id += 1;
        Entry {
            id: self.next_id,
            cache: cache.into(),
            state: CacheState::Unknown,
            probe: Probe::Over,
            probed_at: None,
            heard: None,
            questions: Arc::new(Semaphore::new(ASKED_AT_ONCE)),
            openings: Arc::new(Semaphore::new(OPENED_AT_ONCE)),
            answers: status::Answers::default(),
            of_use: patience::Use::default(),
        }
    }

    fn find(&mut self, cache: &PlainCache) -> Option<&mut Entry> {
        let mut entries = self.entries.iter_mut();
        entries.find(|entry| *entry.cache == *cache)
    }

    /// Whether a probe has become due.
    fn stir(&mut self, now: Instant) -> bool {
        let quiet_for = self.last_question.map(|last| now.duration_since(last));
        let begins = quiet_for.is_none_or(|quiet| quiet >= QUIET);
        if quiet_for.is_none_or(|quiet| quiet >= BURST_ENDS_AFTER) {
            self.credit = patience::Meter::default();
        }
        self.last_question = Some(now);
        let mut any = false;
        for entry in &mut self.entries {
            let is_old = |since: Option<Instant>| {
                since.is_none_or(|since| now.duration_since(since) >= PROBED_EVERY)
            };
            if entry.state == CacheState::Good && is_old(entry.heard) {
                entry.state = CacheState::Unknown;
            }
            let begins = begins && entry.state != CacheState::Good;
            if entry.probe == Probe::Over && (begins || is_old(entry.probed_at)) {
                (entry.probe, entry.probed_at) = (Probe::Due, Some(now));
                any = true;
            }
        }
        any
    }
}

/// Whether names of files can be put behind its prefix: what is announced on a network comes from
/// strangers.
fn is_sound(cache: &PlainCache) -> bool {
    let prefix = &cache.prefix;
    let is_path = NarUrl::parse(&format!("x/{prefix}x")).is_ok() && !prefix.contains('?');
    let is_directory = prefix.is_empty() || prefix.ends_with('/');
    let is_host = !cache.host.is_empty() && cache.host.bytes().all(|byte| byte.is_ascii_graphic());
    let is_sound = is_path && is_directory && is_host;
    if !is_sound {
        debug!("`{cache}` is not a cache that can be asked");
    }
    is_sound
}

#[cfg(test)]
mod tests;
