//! How peers behave. This is the only place that keeps marks about a peer (or a plain cache).
//!
//! | kind | what counts | what follows | what clears it |
//! |---|---|---|---|
//! | transport | no connection, or a reset, time-out or stall before the headers of a narinfo | it comes last, 1 s doubling to 60 s | any HTTP answer; an answer over UDP puts it back to 1 s |
//! | stalled narinfo | the headers of a narinfo came, and its body is late | no lookup waits for it, but one a second | a narinfo that came to its end |
//! | lie | wrong bytes, or again and again narinfos for other paths | a ban, 10 min doubling to a day | time, SIGHUP |
//! | path | an answer about one path that is of no use | it comes last for that path, 30 s | a good narinfo for that path, new trust settings, SIGHUP |
//! | NAR | a NAR refused, cut, reset or stalled | after two in a row it comes last for NARs, and its paths are offered only after a probe | a NAR that came |
//!
//! A mark puts a peer last and never hides the only one; a ban alone hides it. The success of a
//! kind clears that kind alone. The clock is an argument.

mod nars;
mod record;

use std::{
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;
use serde::{Deserialize, Serialize};

use crate::{format::StorePathHash, protocol::PeerAddr};

use record::{Backoff, FIRST_BACKOFF, LONGEST_BACKOFF, LONGEST_BAN, Latency, Record};

/// While a peer backs off and the budget of waits is used up, one lookup in this time waits for it.
const WAITED_FOR_EVERY: Duration = Duration::from_secs(1);

/// A peer that is wanted gets connection attempts for so long after the last lookup that wanted
/// it: then the burst is over.
const WANTED_FOR: Duration = Duration::from_secs(60);

/// A restart takes a peer at most so long: requests under way end, and a new process starts.
const RESTART: Duration = Duration::from_secs(2);

/// Peers that get connection attempts at the same time.
const MOST_RECONNECTING: usize = 8;

/// A peer that gives so many narinfos for other paths, and no good one in between, is banned. One
/// may be an accident of a proxy or a disk.
const WRONG_PATHS_BAN_AT: u32 = 3;

/// For how long a peer comes last for a path.
const PATH_COUNTS_FOR: Duration = Duration::from_secs(30);

/// The next candidate is asked when the one before has not answered after its typical latency,
/// within these bounds; the longer one holds for a peer whose latency is not known.
const SHORTEST_HEDGE_DELAY: Duration = Duration::from_millis(5);
const LONGEST_HEDGE_DELAY: Duration = Duration::from_millis(50);

/// Peers remembered, and marks about paths; the oldest is forgotten first.
const MOST_PEERS: NonZeroUsize = NonZeroUsize::new(1_024).expect("not zero");
const MOST_PATHS: NonZeroUsize = NonZeroUsize::new(8_192).expect("not zero");

/// A failure that is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection, or no headers of a narinfo.
    Transport {
        /// When it was asked. If it has answered anything since, this says nothing.
        asked: Instant,
        /// When the peer's host last answered over UDP.
        last_answer: Option<Instant>,
    },
    /// The headers of a narinfo came, and its body is late.
    NarinfoStalled,
    /// An answer about this path that is of no use.
    Path(StorePathHash),
    /// A NAR was refused, cut, reset or stalled.
    Nar {
        /// When it was asked for. What was under way together fails together and counts once.
        asked: Instant,
        /// It said nothing for too long, which is what asking costs again.
        is_stall: bool,
    },
}

/// A success that is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Success {
    /// It has answered over HTTP, whatever it said.
    Transport {
        /// When.
        at: Instant,
    },
    /// A narinfo came to its end, whatever it said.
    Narinfo,
    /// A good narinfo for this path.
    Path(StorePathHash),
    /// A NAR came to its end.
    Nar,
    /// The first bytes of a NAR came, which clears nothing.
    NarProbe,
}

/// In which order sources are used: the smallest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Nothing is held against it.
    Healthy,
    /// Its answer about this path was of no use a moment ago.
    PathFailed,
    /// Its NARs fail.
    NarsFail,
    /// It does not answer over TCP.
    BackingOff,
}

/// A ban, as it is saved and shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Ban {
    /// Where the peer serves HTTP.
    pub peer: SocketAddr,
    /// For how much longer.
    pub seconds_left: u64,
    /// Bans so far, this one included.
    pub times: u32,
}

impl Ban {
    /// What is left of it after `time`.
    pub fn after(self, time: Duration) -> Option<Self> {
        let seconds_left = self.seconds_left.checked_sub(time.as_secs())?;
        Some(Self {
            seconds_left,
            ..self
        })
    }
}

/// The marks of all peers. Bounded in size.
#[derive(Debug)]
pub struct PeerHealth(Mutex<State>);

#[derive(Debug)]
struct State {
    peers: LruCache<PeerAddr, Record>,
    paths: LruCache<(PeerAddr, StorePathHash), Instant>,
    reconnecting: usize,
}

impl Default for PeerHealth {
    fn default() -> Self {
        Self(Mutex::new(State {
            peers: LruCache::new(MOST_PEERS),
            paths: LruCache::new(MOST_PATHS),
            reconnecting: 0,
        }))
    }
}

impl PeerHealth {
    /// Records that `peer` failed.
    pub fn record_failure(&self, now: Instant, peer: PeerAddr, failure: Failure) {
        let mut state = self.lock();
        match failure {
            Failure::Transport { asked, last_answer } => {
                let record = state.record(peer);
                let is_old = record.answered.is_some_and(|at| at > asked);
                // What fails while it backs off is the same failure.
                if is_old || record.is_backing_off(now, last_answer) {
                    return;
                }
                let pause = record.transport.map_or(FIRST_BACKOFF, |before| {
                    let pause = before.until(last_answer) - before.failed_at;
                    (pause * 2).min(LONGEST_BACKOFF)
                });
                record.transport = Some(Backoff {
                    failed_at: now,
                    pause,
                });
            }
            Failure::NarinfoStalled => state.record(peer).narinfos_stall = true,
            Failure::Path(hash) => {
                state.paths.put((peer, hash), now);
            }
            Failure::Nar { asked, is_stall } => {
                let record = state.record(peer);
                if record.nar_failed_at.is_none_or(|failed| failed <= asked) {
                    record.nar_failures = record.nar_failures.saturating_add(1);
                    record.nar_failed_at = Some(now);
                    record.nar_stalled = is_stall;
                    if std::mem::take(&mut record.nar_probe_passed) {
                        record.nar_probes_wrong = record.nar_probes_wrong.saturating_add(1);
                    }
                }
            }
        }
    }

    /// Records that `peer` did what it was asked for.
    pub fn record_success(&self, peer: PeerAddr, success: Success) {
        let mut state = self.lock();
        match success {
            Success::Transport { at } => {
                let record = state.record(peer);
                record.transport = None;
                record.answered = record.answered.max(Some(at));
            }
            Success::Narinfo => {
                if let Some(record) = state.peers.get_mut(&peer) {
                    record.narinfos_stall = false;
                }
            }
            Success::Path(hash) => {
                state.paths.pop(&(peer, hash));
                if let Some(record) = state.peers.get_mut(&peer) {
                    record.wrong_paths = 0;
                }
            }
            Success::Nar => {
                if let Some(record) = state.peers.get_mut(&peer) {
                    record.nar_failures = 0;
                    record.nar_failed_at = None;
                    record.nar_probed_at = None;
                    record.nar_probe_passed = false;
                    record.nar_probes_wrong = 0;
                }
            }
            Success::NarProbe => state.record(peer).nar_probe_passed = true,
        }
    }

    /// `peer` alone sent bytes that do not have the hash that was signed. Returns for how long it
    /// is banned.
    pub fn ban(&self, now: Instant, peer: PeerAddr) -> Duration {
        self.lock().record(peer).ban(now)
    }

    /// `peer` gave a narinfo for another path than it was asked for. Returns for how long it is
    /// banned, if it is.
    pub fn record_wrong_path(&self, now: Instant, peer: PeerAddr) -> Option<Duration> {
        let mut state = self.lock();
        let record = state.record(peer);
        record.wrong_paths += 1;
        if record.wrong_paths < WRONG_PATHS_BAN_AT {
            return None;
        }
        record.wrong_paths = 0;
        Some(record.ban(now))
    }

    /// Whether `peer` is not to be asked at all.
    pub fn is_banned(&self, now: Instant, peer: PeerAddr) -> bool {
        let state = self.lock();
        let record = state.peers.peek(&peer);
        record.is_some_and(|record| record.is_banned(now))
    }

    /// When `peer` is to be used for `hash`, compared with others.
    pub fn order(
        &self,
        now: Instant,
        peer: PeerAddr,
        hash: StorePathHash,
        last_answer: Option<Instant>,
    ) -> Order {
        let state = self.lock();
        let path = state.paths.peek(&(peer, hash));
        let path_failed = path.is_some_and(|at| now.duration_since(*at) < PATH_COUNTS_FOR);
        match state.peers.peek(&peer) {
            Some(record) if record.is_backing_off(now, last_answer) => Order::BackingOff,
            Some(record) if record.nars_fail() => Order::NarsFail,
            _ if path_failed => Order::PathFailed,
            _ => Order::Healthy,
        }
    }

    /// Whether the last request to `peer` had no answer, or not its end: nothing is waited for free
    /// of charge.
    pub fn is_late(&self, peer: PeerAddr) -> bool {
        let state = self.lock();
        let record = state.peers.peek(&peer);
        record.is_some_and(|record| record.transport.is_some() || record.narinfos_stall)
    }

    /// Whether the last request to `peer` had no answer.
    pub fn is_unreachable(&self, peer: PeerAddr) -> bool {
        let state = self.lock();
        let record = state.peers.peek(&peer);
        record.is_some_and(|record| record.transport.is_some())
    }

    /// Whether a peer has stopped answering a moment ago: it may be restarting.
    pub fn may_restart(&self, now: Instant) -> bool {
        let is_new = |backoff: Backoff| {
            backoff.pause <= FIRST_BACKOFF * 2 && now.duration_since(backoff.failed_at) < RESTART
        };
        let state = self.lock();
        state
            .peers
            .iter()
            .any(|(_, record)| record.transport.is_some_and(is_new))
    }

    /// Whether one lookup may wait for a `peer` that is late: one in a second.
    pub fn may_wait(&self, now: Instant, peer: PeerAddr) -> bool {
        let mut state = self.lock();
        let waited_for = &mut state.record(peer).waited_for;
        let may = waited_for.is_none_or(|at| now.duration_since(at) >= WAITED_FOR_EVERY);
        if may {
            *waited_for = Some(now);
        }
        may
    }

    /// A lookup wants `peer`, which is unreachable. Whether connection attempts are to begin, which
    /// [`Self::ends_reconnecting`] ends.
    pub fn begin_reconnecting(&self, now: Instant, peer: PeerAddr) -> bool {
        let state = &mut *self.lock();
        let has_room = state.reconnecting < MOST_RECONNECTING;
        let record = state.record(peer);
        record.wanted = Some(now);
        if record.is_reconnecting || !has_room {
            return false;
        }
        record.is_reconnecting = true;
        state.reconnecting += 1;
        true
    }

    /// Whether the connection attempts to `peer` are at their end: it is reachable, or no lookup
    /// of this burst wants it any more.
    pub fn ends_reconnecting(&self, now: Instant, peer: PeerAddr) -> bool {
        let state = &mut *self.lock();
        if let Some(record) = state.peers.get_mut(&peer) {
            let is_wanted = |at| now.duration_since(at) < WANTED_FOR;
            if record.transport.is_some() && record.wanted.is_some_and(is_wanted) {
                return false;
            }
        }
        state.end_reconnecting(peer);
        true
    }

    /// No connection attempts to `peer` can be made, although they were to begin.
    pub fn end_reconnecting(&self, peer: PeerAddr) {
        self.lock().end_reconnecting(peer);
    }

    /// A narinfo of `peer` took so long.
    pub fn record_latency(&self, peer: PeerAddr, took: Duration) {
        let mut state = self.lock();
        let record = state.record(peer);
        record.latency = Some(Latency::with(record.latency, took));
    }

    /// How long nearly all narinfos of `peer` take, if that is known.
    pub fn typical_latency(&self, peer: PeerAddr) -> Option<Duration> {
        let latency = self.lock().peers.peek(&peer)?.latency?;
        Some(latency.mean + latency.deviation * 4)
    }

    /// After how long without an answer of `peer` the next candidate is asked as well.
    pub fn hedge_delay(&self, peer: PeerAddr) -> Duration {
        let latency = self.typical_latency(peer).unwrap_or(LONGEST_HEDGE_DELAY);
        latency.clamp(SHORTEST_HEDGE_DELAY, LONGEST_HEDGE_DELAY)
    }

    /// Forgets everything, because the owner says so. Returns how many bans were in force.
    pub fn clear_all(&self, now: Instant) -> usize {
        let bans = self.bans(now).len();
        let mut state = self.lock();
        state.paths.clear();
        for (_, record) in state.peers.iter_mut() {
            *record = Record {
                is_reconnecting: record.is_reconnecting,
                latency: record.latency,
                ..Record::default()
            };
        }
        bans
    }

    /// Forgets which answers were of no use: other keys may be trusted now.
    pub fn clear_paths(&self) {
        self.lock().paths.clear();
    }

    /// Bans in force at `now`.
    pub fn bans(&self, now: Instant) -> Vec<Ban> {
        let ban = |(peer, record): (&PeerAddr, &Record)| {
            let left = record.banned_until?.checked_duration_since(now)?;
            Some(Ban {
                peer: peer.socket_addr(),
                seconds_left: left.as_secs(),
                times: record.bans,
            })
        };
        self.lock().peers.iter().filter_map(ban).collect()
    }

    /// Takes over the bans of an earlier process.
    pub fn restore(&self, now: Instant, bans: &[Ban]) {
        let mut state = self.lock();
        for ban in bans {
            if let Ok(peer) = PeerAddr::new(ban.peer) {
                let left = Duration::from_secs(ban.seconds_left).min(LONGEST_BAN);
                let record = state.record(peer);
                record.bans = ban.times;
                record.banned_until = Some(now + left);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves at worst one peer without connection attempts.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn record(&mut self, peer: PeerAddr) -> &mut Record {
        self.peers.get_or_insert_mut(peer, Record::default)
    }

    fn end_reconnecting(&mut self, peer: PeerAddr) {
        self.reconnecting = self.reconnecting.saturating_sub(1);
        if let Some(record) = self.peers.get_mut(&peer) {
            record.is_reconnecting = false;
        }
    }
}

#[cfg(test)]
mod tests;
