//! What is recorded of one peer.

use std::time::{Duration, Instant};

/// The first backoff of a peer that does not answer over TCP, and the longest.
pub(super) const FIRST_BACKOFF: Duration = Duration::from_secs(1);
pub(super) const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// The first ban; each further one doubles, up to the longest.
pub(super) const FIRST_BAN: Duration = Duration::from_secs(600);
pub(super) const LONGEST_BAN: Duration = Duration::from_secs(24 * 3600);

/// So many NARs in a row must fail before a peer comes last for NARs.
const NAR_FAILURES_COUNT_AT: u32 = 2;

/// From one probe of a peer whose NARs fail to the next; doubled each time that a NAR fails although
/// its probe had passed, up to the longest.
const PROBED_EVERY: Duration = Duration::from_secs(1);
const PROBED_LEAST_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Record {
    pub(super) transport: Option<Backoff>,
    /// When it last answered over HTTP.
    pub(super) answered: Option<Instant>,
    /// When a lookup last wanted it while it backed off.
    pub(super) wanted: Option<Instant>,
    pub(super) is_reconnecting: bool,
    pub(super) waited_for: Option<Instant>,
    pub(super) narinfos_stall: bool,
    pub(super) bans: u32,
    pub(super) banned_until: Option<Instant>,
    pub(super) wrong_paths: u32,
    pub(super) nar_failures: u32,
    pub(super) nar_failed_at: Option<Instant>,
    /// The last NAR that failed had stalled.
    pub(super) nar_stalled: bool,
    pub(super) nar_probed_at: Option<Instant>,
    pub(super) nar_probe_passed: bool,
    /// How often a NAR failed although its probe had passed.
    pub(super) nar_probes_wrong: u32,
    pub(super) latency: Option<Latency>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Backoff {
    pub(super) failed_at: Instant,
    pub(super) pause: Duration,
}

impl Backoff {
    pub(super) fn until(self, last_answer: Option<Instant>) -> Instant {
        if last_answer.is_some_and(|answered| answered > self.failed_at) {
            self.failed_at + FIRST_BACKOFF
        } else {
            self.failed_at + self.pause
        }
    }
}

/// A mean and how far from it the times are, both moving (as in RFC 6298, section 2).
#[derive(Debug, Clone, Copy)]
pub(super) struct Latency {
    pub(super) mean: Duration,
    pub(super) deviation: Duration,
}

impl Latency {
    pub(super) fn with(this: Option<Self>, took: Duration) -> Self {
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

impl Record {
    pub(super) fn is_banned(&self, now: Instant) -> bool {
        self.banned_until.is_some_and(|until| now < until)
    }

    pub(super) fn is_backing_off(&self, now: Instant, last_answer: Option<Instant>) -> bool {
        let backoff = self.transport;
        backoff.is_some_and(|backoff| now < backoff.until(last_answer))
    }

    pub(super) fn nars_fail(&self) -> bool {
        self.nar_failures >= NAR_FAILURES_COUNT_AT
    }

    pub(super) fn is_nar_probe_due(&self, now: Instant) -> bool {
        let pause = PROBED_EVERY
            .saturating_mul(1 << self.nar_probes_wrong.min(6))
            .min(PROBED_LEAST_EVERY);
        let probed_at = self.nar_probed_at;
        probed_at.is_none_or(|at| now.duration_since(at) >= pause)
    }

    pub(super) fn ban(&mut self, now: Instant) -> Duration {
        let ban = FIRST_BAN
            .saturating_mul(1 << self.bans.min(16))
            .min(LONGEST_BAN);
        self.bans = self.bans.saturating_add(1);
        self.banned_until = Some(now + ban);
        ban
    }
}
