//! How peers have behaved: who failed lately is asked last, who lied is not asked at all.

use std::{
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use lru::LruCache;
use serde::{Deserialize, Serialize};

use crate::protocol::PeerAddr;

/// An unreachable peer costs one lookup its connect timeout, then none for this long.
const FAILURE_COUNTS_FOR: Duration = Duration::from_secs(60);

/// Pause before one lookup tries a peer that failed; each further failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Requests that are under way together fail together.
const EXCUSE: Duration = Duration::from_millis(500);

/// A peer whose usual time is not known is given this long before another one is asked as well;
/// nobody is given more, nor less than a busy machine takes at times.
const LONGEST_USUAL: Duration = Duration::from_millis(50);
const SHORTEST_USUAL: Duration = Duration::from_millis(5);

/// The first ban; each further one doubles, up to the longest.
const FIRST_BAN: Duration = Duration::from_secs(600);
const LONGEST_BAN: Duration = Duration::from_secs(24 * 3600);

/// Peers remembered; the least recently judged is forgotten first.
const CAPACITY: NonZeroUsize = NonZeroUsize::new(1_024).expect("not zero");

/// What to expect of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Expectation {
    /// Nothing is held against it.
    Good,
    /// It failed lately: ask others first.
    Doubtful,
    /// It sent wrong bytes: do not ask.
    Banned,
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

#[derive(Debug, Default)]
struct Record {
    failed_at: Option<Instant>,
    /// It has done well since it last failed.
    did_well: bool,
    /// What fails until then is one failure, and excused.
    excused_until: Option<Instant>,
    /// Failures since it last did well.
    failures: u32,
    /// When one lookup may try it again.
    next_try: Option<Instant>,
    bans: u32,
    banned_until: Option<Instant>,
    /// How long its narinfos take.
    usual: Option<Usual>,
}

/// A mean and how far from it the times are, both moving (as in RFC 6298, section 2).
#[derive(Debug, Clone, Copy)]
struct Usual {
    mean: Duration,
    deviation: Duration,
}

impl Usual {
    fn with(this: Option<Self>, took: Duration) -> Self {
        match this {
            Some(Self { mean, deviation }) => Self {
                mean: (mean * 7 + took) / 8,
                deviation: (deviation * 3 + mean.abs_diff(took)) / 4,
            },
            None => Self {
                mean: took,
                deviation: took / 2,
            },
        }
    }
}

/// The records of all peers that gave reason for one.
#[derive(Debug)]
pub struct Standing(Mutex<LruCache<PeerAddr, Record>>);

impl Default for Standing {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(CAPACITY)))
    }
}

impl Standing {
    /// What to expect of `peer` at `now`.
    pub fn expect(&self, now: Instant, peer: PeerAddr) -> Expectation {
        let mut records = self.lock();
        let Some(record) = records.get(&peer) else {
            return Expectation::Good;
        };
        if record.banned_until.is_some_and(|until| now < until) {
            Expectation::Banned
        } else if record
            .failed_at
            .is_some_and(|at| now.duration_since(at) < FAILURE_COUNTS_FOR)
        {
            Expectation::Doubtful
        } else {
            Expectation::Good
        }
    }

    /// `peer` could not be reached, was late, or broke off.
    pub fn failed(&self, now: Instant, peer: PeerAddr) {
        let mut records = self.lock();
        let record = records.get_or_insert_mut(peer, Record::default);
        // Whoever did well just before may be late once, on a busy machine or in a restart.
        if std::mem::take(&mut record.did_well) {
            record.excused_until = Some(now + EXCUSE);
        }
        if record.excused_until.is_some_and(|until| now < until) {
            return;
        }
        // All that were under way when it failed are one failure.
        if record.next_try.is_none_or(|at| at <= now) {
            record.failures = record.failures.saturating_add(1);
            let pause = FIRST_PAUSE.saturating_mul(1 << record.failures.min(6));
            record.next_try = Some(now + pause.min(FAILURE_COUNTS_FOR));
        }
        record.failed_at = Some(now);
    }

    /// `peer` did not even take a connection in time, so each try costs all of that time: it is
    /// left out until its failure is forgotten.
    pub fn unreachable(&self, now: Instant, peer: PeerAddr) {
        let mut records = self.lock();
        let record = records.get_or_insert_mut(peer, Record::default);
        record.failed_at = Some(now);
        record.next_try = Some(now + FAILURE_COUNTS_FOR);
    }

    /// A narinfo of `peer` took so long.
    pub fn answered(&self, peer: PeerAddr, took: Duration) {
        let mut records = self.lock();
        let record = records.get_or_insert_mut(peer, Record::default);
        record.usual = Some(Usual::with(record.usual, took));
    }

    /// After how long a narinfo of `peer` is later than usual.
    pub fn late_after(&self, peer: PeerAddr) -> Duration {
        let usual = self.usual(peer).unwrap_or(LONGEST_USUAL);
        usual.clamp(SHORTEST_USUAL, LONGEST_USUAL)
    }

    /// How long nearly all narinfos of `peer` take, if that is known.
    pub fn usual(&self, peer: PeerAddr) -> Option<Duration> {
        let usual = self.lock().get(&peer)?.usual?;
        Some(usual.mean + usual.deviation * 4)
    }

    /// How long narinfos of `peer` take on average, if that is known.
    pub fn mean(&self, peer: PeerAddr) -> Option<Duration> {
        Some(self.lock().get(&peer)?.usual?.mean)
    }

    /// Forgets all bans and failures, because the owner says so. Returns how many bans.
    pub fn forgive(&self, now: Instant) -> usize {
        let bans = self.bans(now).len();
        self.lock().clear();
        bans
    }

    /// Whether a doubtful `peer` may be tried by one lookup now; others leave it out for a
    /// while, longer each time it fails.
    pub fn may_try(&self, now: Instant, peer: PeerAddr) -> bool {
        let mut records = self.lock();
        let Some(record) = records.get_mut(&peer) else {
            return true;
        };
        let may = record.next_try.is_none_or(|at| at <= now);
        if may {
            record.next_try = Some(now + FIRST_PAUSE);
        }
        may
    }

    /// `peer` did what it was asked for.
    pub fn served(&self, peer: PeerAddr) {
        let mut records = self.lock();
        let record = records.get_or_insert_mut(peer, Record::default);
        (record.failed_at, record.next_try, record.failures) = (None, None, 0);
        record.did_well = true;
    }

    /// `peer` alone sent bytes that do not have the hash that it promised. Returns for how
    /// long it is banned.
    pub fn lied(&self, now: Instant, peer: PeerAddr) -> Duration {
        let mut records = self.lock();
        let record = records.get_or_insert_mut(peer, Record::default);
        let ban = FIRST_BAN
            .saturating_mul(1 << record.bans.min(16))
            .min(LONGEST_BAN);
        record.bans = record.bans.saturating_add(1);
        record.banned_until = Some(now + ban);
        ban
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
        self.lock().iter().filter_map(ban).collect()
    }

    /// Takes over the bans of an earlier process.
    pub fn restore(&self, now: Instant, bans: &[Ban]) {
        let mut records = self.lock();
        for ban in bans {
            if let Ok(peer) = PeerAddr::new(ban.peer) {
                let left = Duration::from_secs(ban.seconds_left).min(LONGEST_BAN);
                let record = Record {
                    bans: ban.times,
                    banned_until: Some(now + left),
                    ..Record::default()
                };
                records.put(peer, record);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<PeerAddr, Record>> {
        // Every change is one assignment, so a panic elsewhere leaves nothing half-done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> PeerAddr {
        format!("127.0.0.1:{port}").parse().expect("peer")
    }

    #[test]
    fn a_failure_is_forgotten_after_a_minute_or_a_success() {
        let (standing, now) = (Standing::default(), Instant::now());
        assert_eq!(standing.expect(now, peer(1)), Expectation::Good);
        standing.failed(now, peer(1));
        assert_eq!(standing.expect(now, peer(1)), Expectation::Doubtful);
        assert_eq!(
            standing.expect(now + FAILURE_COUNTS_FOR, peer(1)),
            Expectation::Good
        );
        standing.served(peer(1));
        assert_eq!(standing.expect(now, peer(1)), Expectation::Good);
    }

    #[test]
    fn one_lookup_at_a_time_tries_a_doubtful_peer_and_ever_more_rarely() {
        let (standing, start) = (Standing::default(), Instant::now());
        standing.failed(start, peer(1));
        standing.failed(start, peer(1));
        let after = |ms| start + Duration::from_millis(ms);
        assert!(!standing.may_try(after(999), peer(1)));
        assert!(standing.may_try(after(1_000), peer(1)));
        assert!(!standing.may_try(after(1_001), peer(1)));
        standing.failed(after(1_500), peer(1));
        assert!(!standing.may_try(after(3_499), peer(1)));
        assert!(standing.may_try(after(3_500), peer(1)));
        standing.served(peer(1));
        assert!(standing.may_try(after(3_500), peer(1)));
        assert!(standing.may_try(start, peer(2)));
    }

    #[test]
    fn a_peer_that_did_well_is_excused_once() {
        let (standing, start) = (Standing::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        standing.served(peer(1));
        standing.failed(start, peer(1));
        standing.failed(after(400), peer(1));
        assert_eq!(standing.expect(after(400), peer(1)), Expectation::Good);
        standing.failed(after(600), peer(1));
        assert_eq!(standing.expect(after(600), peer(1)), Expectation::Doubtful);
        standing.served(peer(1));
        standing.failed(after(700), peer(1));
        assert_eq!(standing.expect(after(700), peer(1)), Expectation::Good);
    }

    #[test]
    fn an_unreachable_peer_is_left_out_for_a_minute_even_if_it_did_well() {
        let (standing, now) = (Standing::default(), Instant::now());
        standing.served(peer(1));
        standing.unreachable(now, peer(1));
        let late = now + FAILURE_COUNTS_FOR - Duration::from_millis(1);
        assert_eq!(standing.expect(late, peer(1)), Expectation::Doubtful);
        assert!(!standing.may_try(late, peer(1)));
        assert_eq!(
            standing.expect(now + FAILURE_COUNTS_FOR, peer(1)),
            Expectation::Good
        );
    }

    #[test]
    fn a_narinfo_is_late_by_the_usual_time_of_its_peer() {
        let standing = Standing::default();
        assert_eq!(standing.late_after(peer(1)), LONGEST_USUAL);
        for _ in 0..50 {
            standing.answered(peer(1), Duration::from_micros(300));
            standing.answered(peer(2), Duration::from_millis(20));
        }
        assert_eq!(standing.late_after(peer(1)), SHORTEST_USUAL);
        let steady = standing.late_after(peer(2));
        assert!(
            (20..22).contains(&steady.as_millis()),
            "20 ms each time: {steady:?}"
        );
        standing.answered(peer(2), Duration::from_millis(40));
        assert!(standing.late_after(peer(2)) > Duration::from_millis(40));
    }

    #[test]
    fn the_owner_can_have_all_forgotten() {
        let (standing, now) = (Standing::default(), Instant::now());
        standing.lied(now, peer(1));
        standing.failed(now, peer(2));
        assert_eq!(standing.forgive(now), 1);
        for port in [1, 2] {
            assert_eq!(standing.expect(now, peer(port)), Expectation::Good);
        }
        assert_eq!(standing.lied(now, peer(1)), FIRST_BAN);
    }

    #[test]
    fn bans_grow_to_a_day() {
        let (standing, now) = (Standing::default(), Instant::now());
        assert_eq!(standing.lied(now, peer(1)), FIRST_BAN);
        assert_eq!(standing.expect(now, peer(1)), Expectation::Banned);
        let ban = Ban {
            peer: peer(1).socket_addr(),
            seconds_left: FIRST_BAN.as_secs(),
            times: 1,
        };
        assert_eq!(standing.bans(now), std::slice::from_ref(&ban));
        let next = Standing::default();
        next.restore(now, std::slice::from_ref(&ban));
        assert_eq!(next.expect(now, peer(1)), Expectation::Banned);
        assert_eq!(
            ban.clone()
                .after(Duration::from_secs(1))
                .map(|ban| ban.seconds_left),
            Some(599)
        );
        assert_eq!(ban.after(FIRST_BAN + Duration::from_secs(1)), None);
        assert_eq!(standing.expect(now + FIRST_BAN, peer(1)), Expectation::Good);
        assert_eq!(standing.lied(now, peer(1)), 2 * FIRST_BAN);
        let longest = (0..40).map(|_| standing.lied(now, peer(1))).max();
        assert_eq!(longest, Some(LONGEST_BAN));
    }

    #[test]
    fn a_flood_of_liars_takes_bounded_memory() {
        let (standing, now) = (Standing::default(), Instant::now());
        for port in 1..=5_000 {
            standing.lied(now, peer(port));
        }
        assert_eq!(standing.bans(now).len(), CAPACITY.get());
    }
}
