//! The plain binary caches that are known: which of them answer, and what each has done.
//!
//! A cache is asked for `nix-cache-info` in the background: when Nix begins to ask, and then
//! once a minute at most. One that has answered is asked for each path; one that fails is not
//! asked until it has answered again. So a cache that is off costs a lookup nothing.

mod probing;
mod status;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use log::debug;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use crate::{
    format::{StoreDir, narinfo::NarUrl},
    protocol::{PeerAddr, PlainCache},
};

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

/// A cache of which nothing is known is waited for so long, once: its probe takes two round trips,
/// and what Nix is told is not there, it does not ask for again within the hour.
const FIRST_PROBE_WITHIN: Duration = Duration::from_millis(250);

/// As with peers, one that gave a path within this time is worth waiting for.
const GIVEN_COUNTS_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

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
    last_question: Option<Instant>,
    store_dir: StoreDir,
    own_port: u16,
}

#[derive(Debug)]
struct Entry {
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
    /// When it last gave a path.
    given: Option<Instant>,
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
    pub(super) trust: CacheTrust,
}

/// Whether a cache is worth waiting for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CacheTrust {
    /// The settings name it.
    Configured,
    /// It is announced on the network, and gave a path.
    HasGiven,
    /// It is announced on the network, and gave no path so far.
    Stranger,
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
                last_question: None,
                store_dir: StoreDir::default(),
                own_port: 0,
            }),
            due: Notify::new(),
            probed: watch::Sender::new(()),
        }
    }
}

impl Caches {
    /// These are the caches from now on, [`MOST_CACHES`] of them at a time: first those of the
    /// settings, then those that gave a path, then those that answer. What is known of those
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
                None => Entry::new(cache),
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

    /// Forgets which caches answered, at a reload.
    pub fn forget(&self) {
        let mut known = self.lock();
        known.last_question = None;
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

    /// The caches to ask.
    pub(super) fn candidates(&self, now: Instant) -> Vec<Candidate> {
        self.stir(now);
        let known = self.lock();
        let candidate = |entry: &Entry| {
            let readiness = match (entry.state, entry.probe) {
                (CacheState::Good, _) => Readiness::Now,
                (_, Probe::Over) => return None,
                (CacheState::Unknown, _) => {
                    Readiness::Probed(entry.probed_at.map(|at| at + FIRST_PROBE_WITHIN))
                }
                _ => Readiness::Probed(None),
            };
            Some(Candidate {
                cache: Arc::clone(&entry.cache),
                readiness,
                trust: entry.trust(now),
            })
        };
        known.entries.iter().filter_map(candidate).collect()
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

    /// What `cache` answered when it was asked for a path.
    pub(super) fn answered(&self, now: Instant, cache: &PlainCache, answer: Answer) {
        if let Some(entry) = self.lock().find(cache) {
            entry.answers.count(answer);
            entry.heard = Some(now);
            if entry.state == CacheState::Off {
                // Its response came after the timeout.
                entry.state = CacheState::Good;
            }
            if answer == Answer::Hit {
                entry.given = Some(now);
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
        let is_off = entry.heard.is_none_or(|heard| heard <= asked);
        if is_off {
            // No probe before its time: it has had one, as it were.
            (entry.state, entry.probed_at) = (CacheState::Off, Some(now));
        }
        is_off
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
    fn new(cache: impl Into<Arc<PlainCache>>) -> Self {
        Self {
            cache: cache.into(),
            state: CacheState::Unknown,
            probe: Probe::Over,
            probed_at: None,
            heard: None,
            questions: Arc::new(Semaphore::new(ASKED_AT_ONCE)),
            openings: Arc::new(Semaphore::new(OPENED_AT_ONCE)),
            answers: status::Answers::default(),
            given: None,
        }
    }

    fn trust(&self, now: Instant) -> CacheTrust {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < GIVEN_COUNTS_FOR;
        match self.given {
            _ if !self.cache.announced => CacheTrust::Configured,
            Some(at) if is_recent(at) => CacheTrust::HasGiven,
            _ => CacheTrust::Stranger,
        }
    }

    /// Who comes first if there are too many: a stranger can announce as many as it likes.
    fn rank(&self) -> u8 {
        match self.state {
            _ if !self.cache.announced => 0,
            _ if self.given.is_some() => 1,
            CacheState::Good => 2,
            CacheState::Unknown => 3,
            _ => 4,
        }
    }
}

impl Known {
    fn find(&mut self, cache: &PlainCache) -> Option<&mut Entry> {
        let mut entries = self.entries.iter_mut();
        entries.find(|entry| *entry.cache == *cache)
    }

    /// Whether a probe has become due.
    fn stir(&mut self, now: Instant) -> bool {
        let quiet_for = self.last_question.map(|last| now.duration_since(last));
        let begins = quiet_for.is_none_or(|quiet| quiet >= QUIET);
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
