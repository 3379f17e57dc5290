//! How long the lookups of one burst may wait, all together, for what does not answer.
//!
//! Wall-clock time counts, not the sum over lookups: while at least one lookup waits, the budget
//! runs. Once it is used up, lookups ask as before and wait for nothing more. Time that ended
//! with the path comes back.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

/// What a burst may wait: with what Nix itself does, a command stays within half a second.
pub const BURST_WAIT: Duration = Duration::from_millis(350);

/// Periods of use that can come back. Older ones cannot: they were waited in vain.
const MOST_PERIODS: usize = 256;

/// The budget of the current burst.
#[derive(Debug, Clone)]
pub struct WaitBudget {
    left: Duration,
    waiting: usize,
    /// Since when `waiting` is above 0.
    since: Option<Instant>,
    /// When it was used, without what came back: [`BURST_WAIT`] in all, the oldest first.
    used: Vec<Range<Instant>>,
}

impl Default for WaitBudget {
    fn default() -> Self {
        Self {
            left: BURST_WAIT,
            waiting: 0,
            since: None,
            used: Vec::new(),
        }
    }
}

impl WaitBudget {
    /// A burst begins: all of the budget is there. Waits under way count from now.
    pub fn refill(&mut self, now: Instant) {
        self.left = BURST_WAIT;
        self.since = (self.waiting > 0).then_some(now);
        self.used.clear();
    }

    /// One more lookup begins to wait.
    pub fn begin(&mut self, now: Instant) {
        self.waiting += 1;
        self.since.get_or_insert(now);
    }

    /// A lookup that called [`Self::begin`] has stopped waiting.
    pub fn end(&mut self, now: Instant) {
        self.settle(now);
        self.waiting = self.waiting.saturating_sub(1);
        if self.waiting == 0 {
            self.since = None;
        }
    }

    /// Gives back what was used in `period`, which is not in the future; the same time only once.
    pub fn refund(&mut self, now: Instant, period: Range<Instant>) {
        self.settle(now);
        for used in std::mem::take(&mut self.used) {
            let back = used.start.max(period.start)..used.end.min(period.end);
            if back.is_empty() {
                self.used.push(used);
                continue;
            }
            self.left += back.end - back.start;
            let kept = [used.start..back.start, back.end..used.end];
            self.used
                .extend(kept.into_iter().filter(|it| !it.is_empty()));
        }
        self.left = self.left.min(BURST_WAIT);
    }

    /// Takes what was waited at no cost, and turned out to be in vain.
    pub fn charge(&mut self, now: Instant, time: Duration) {
        self.settle(now);
        self.left = self.left.saturating_sub(time);
    }

    /// What is left at `now`.
    pub fn left(&self, now: Instant) -> Duration {
        let running = self
            .since
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        self.left.saturating_sub(running)
    }

    fn settle(&mut self, now: Instant) {
        let Some(since) = self.since else { return };
        let left = self.left(now);
        let used = since..since + (self.left - left);
        self.left = left;
        self.since = Some(now);
        match self.used.last_mut() {
            Some(last) if last.end == used.start => last.end = used.end,
            _ if !used.is_empty() => self.used.push(used),
            _ => {}
        }
        if self.used.len() > MOST_PERIODS {
            self.used.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    #[test]
    fn lookups_that_wait_together_pay_once() {
        let (mut budget, start) = (WaitBudget::default(), Instant::now());
        budget.begin(start);
        budget.begin(start + ms(10));
        assert_eq!(budget.left(start + ms(100)), ms(250));
        budget.end(start + ms(100));
        budget.end(start + ms(150));
        assert_eq!(budget.left(start + ms(10_000)), ms(200));
        budget.begin(start + ms(20_000));
        assert_eq!(budget.left(start + ms(20_500)), Duration::ZERO);
    }

    #[test]
    fn time_that_ended_with_the_path_comes_back_once() {
        let (mut budget, start) = (WaitBudget::default(), Instant::now());
        budget.begin(start);
        budget.begin(start);
        budget.refund(start + ms(100), start..start + ms(100));
        budget.end(start + ms(100));
        assert_eq!(budget.left(start + ms(100)), BURST_WAIT);
        budget.refund(start + ms(150), start..start + ms(150));
        budget.end(start + ms(150));
        assert_eq!(budget.left(start + ms(150)), BURST_WAIT);
        budget.refund(start + ms(150), start..start + ms(150));
        assert_eq!(budget.left(start + ms(150)), BURST_WAIT);
    }

    #[test]
    fn what_comes_back_to_one_does_not_take_from_another() {
        let (mut budget, start) = (WaitBudget::default(), Instant::now());
        budget.begin(start);
        budget.begin(start + ms(90));
        budget.refund(start + ms(100), start + ms(90)..start + ms(100));
        budget.end(start + ms(100));
        assert_eq!(budget.left(start + ms(100)), ms(260));
        budget.refund(start + ms(120), start..start + ms(120));
        budget.end(start + ms(120));
        assert_eq!(budget.left(start + ms(120)), BURST_WAIT);
        // What is used up runs no further.
        budget.begin(start + ms(1_000));
        budget.refund(start + ms(2_000), start + ms(1_900)..start + ms(2_000));
        assert_eq!(budget.left(start + ms(2_000)), Duration::ZERO);
        budget.refund(start + ms(2_000), start + ms(1_100)..start + ms(1_200));
        assert_eq!(budget.left(start + ms(2_000)), ms(100));
    }

    #[test]
    fn the_periods_are_bounded() {
        let (mut budget, start) = (WaitBudget::default(), Instant::now());
        for period in 0..2 * MOST_PERIODS as u64 {
            let at = |us| start + Duration::from_micros(period * 200 + us);
            budget.begin(at(0));
            budget.end(at(100));
        }
        assert_eq!(budget.used.len(), MOST_PERIODS);
        let end = start + ms(1_000);
        budget.refund(end, start..end);
        let lost = Duration::from_micros(100) * MOST_PERIODS as u32;
        assert_eq!(budget.left(end), BURST_WAIT - lost);
    }

    #[test]
    fn a_new_burst_has_all_of_it() {
        let (mut budget, start) = (WaitBudget::default(), Instant::now());
        budget.begin(start);
        budget.refill(start + ms(1_000));
        assert_eq!(budget.left(start + ms(1_050)), ms(300));
        budget.refund(start + ms(1_050), start..start + ms(1_050));
        assert_eq!(budget.left(start + ms(1_050)), BURST_WAIT);
    }
}
