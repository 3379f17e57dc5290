//! Which caches are worth waiting for when nobody else has the path.
//!
//! One of the settings is: the owner says so. One that is announced on the network may be anybody's
//! and answer as slowly as it likes. It has to have been of use lately; those that have not share
//! what lookups may lose in a burst, which each find gives back in part. Beyond that they are asked
//! only as far as that takes next to nothing, except by one lookup in some, so that they can still
//! show what they have.

use std::time::{Duration, Instant};

/// What announced caches that are of no use may cost a burst together, and each of the others from
/// one find to the next.
const MOST_LOST: Duration = Duration::from_secs(2);

/// What a find makes good: about what a small download takes.
const WORTH_OF_A_FIND: Duration = Duration::from_secs(1);

/// When all is lost, one lookup in so many waits all the same.
const ONE_IN: u32 = 16;

/// A cache has been of use lately if one of so many answers was a find.
const LATELY: u32 = 64;

/// How long a lookup waits for a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::finder) enum Patience {
    /// As long as is usual for it.
    Full,
    /// Next to nothing.
    Brief,
}

/// Time that lookups have lost. What several lose at the same time counts once, as it does for Nix.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Meter {
    lost: Duration,
    until: Option<Instant>,
}

impl Meter {
    /// A lookup waited from `since` to `now`.
    pub(super) fn waited(&mut self, since: Instant, now: Instant) {
        let from = self.until.map_or(since, |until| until.max(since));
        self.lost += now.saturating_duration_since(from);
        self.until = Some(from.max(now));
    }

    pub(super) fn earn(&mut self) {
        self.lost = self.lost.min(MOST_LOST).saturating_sub(WORTH_OF_A_FIND);
    }

    fn is_spent(&self) -> bool {
        self.lost >= MOST_LOST
    }
}

/// Whose turn it is to wait.
#[derive(Debug, Default)]
pub(super) struct Turn(u32);

impl Turn {
    /// The patience of one lookup with those that have not been of use lately.
    pub(super) fn of_a_lookup(&mut self, credit: &Meter) -> Patience {
        if credit.is_spent() {
            self.0 = (self.0 + 1) % ONE_IN;
        } else {
            self.0 = 0;
        }
        if self.0 == 0 {
            Patience::Full
        } else {
            Patience::Brief
        }
    }
}

/// How much use a cache has been.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Use {
    /// Answers since its last find, if it ever had one.
    since_find: Option<u32>,
    /// What was lost by it since.
    lost: Meter,
}

impl Use {
    pub(super) fn is_recent(&self) -> bool {
        let is_near = self.since_find.is_some_and(|answers| answers < LATELY);
        is_near && !self.lost.is_spent()
    }

    pub(super) fn note(&mut self, is_find: bool) {
        if is_find {
            (self.since_find, self.lost) = (Some(0), Meter::default());
        } else {
            self.since_find = self.since_find.map(|answers| answers.saturating_add(1));
        }
    }

    pub(super) fn waited(&mut self, since: Instant, now: Instant) {
        self.lost.waited(since, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds from a beginning.
    fn at(seconds: u64) -> Instant {
        thread_local!(static BEGINNING: Instant = Instant::now());
        BEGINNING.with(|beginning| *beginning + Duration::from_secs(seconds))
    }

    #[test]
    fn what_is_lost_at_the_same_time_is_lost_once() {
        let mut meter = Meter::default();
        for _ in 0..25 {
            meter.waited(at(10), at(11));
        }
        assert_eq!(meter.lost, Duration::from_secs(1));
        meter.waited(at(10), at(12));
        assert_eq!(meter.lost, Duration::from_secs(2));
        meter.waited(at(20), at(21));
        assert_eq!(meter.lost, Duration::from_secs(3));
    }

    #[test]
    fn when_all_is_lost_one_lookup_in_some_waits() {
        let (mut lost, mut turn) = (Meter::default(), Turn::default());
        lost.waited(at(0), at(1));
        assert_eq!(turn.of_a_lookup(&lost), Patience::Full);
        lost.waited(at(1), at(100));
        let patient = (0..10 * ONE_IN).filter(|_| turn.of_a_lookup(&lost) == Patience::Full);
        assert_eq!(patient.count(), 10);
        lost.earn();
        assert_eq!(turn.of_a_lookup(&lost), Patience::Full, "a find makes good");
    }

    #[test]
    fn a_find_is_of_use_for_so_many_answers_and_so_long() {
        let mut of_use = Use::default();
        of_use.note(false);
        assert!(!of_use.is_recent());
        of_use.note(true);
        for _ in 0..LATELY {
            assert!(of_use.is_recent());
            of_use.note(false);
        }
        assert!(!of_use.is_recent());
        of_use.note(true);
        of_use.waited(at(0), at(1));
        assert!(of_use.is_recent());
        of_use.waited(at(1), at(2));
        assert!(!of_use.is_recent(), "it took more than it gave");
    }
}
