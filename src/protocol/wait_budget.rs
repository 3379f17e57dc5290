//! How long the lookups of one burst may wait, all together, for what does not answer.
//!
//! Wall-clock time counts, not the sum over lookups: while at least one lookup waits, the budget
//! runs. Once it is used up, lookups ask as before and wait for nothing more. Time that ended
//! with the path comes back.

use std::time::{Duration, Instant};

/// What a burst may wait: with what Nix itself does, a command stays within half a second.
pub const BURST_WAIT: Duration = Duration::from_millis(350);

/// The budget of the current burst.
#[derive(Debug, Clone)]
pub struct WaitBudget {
    left: Duration,
    waiting: usize,
    /// Since when `waiting` is above 0.
    since: Option<Instant>,
    /// From when to when it was used and nothing came back so far: [`BURST_WAIT`] in all.
    used: Vec<(Instant, Instant)>,
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

    /// Gives back what was waited from `since` until `now`; the same time only once.
    pub fn refund(&mut self, since: Instant, now: Instant) {
        self.settle(now);
        let mut kept = Vec::with_capacity(self.used.len());
        for (from, until) in self.used.drain(..) {
            let back = from.max(since)..until.min(now);
            if back.start >= back.end {
                kept.push((from, until));
                continue;
            }
            self.left += back.end - back.start;
            let rest = [(from, back.start), (back.end, until)];
            kept.extend(rest.into_iter().filter(|(from, until)| from < until));
        }
        self.used = kept;
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
        let left = self.left(now);
        let Some(since) = self.since.as_mut() else {
            return;
        };
        let until = *since + (self.left - left);
        match self.used.last_mut() {
            Some((_, end)) if *end == *since => *end = until,
            _ if *since < until => self.used.push((*since, until)),
            _ => {}
        }
        self.left = left;
        *since = now;
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
        budget.refund(start, start + ms(100));
        budget.end(start + ms(100));
        assert_eq!(budget.left(start + ms(100)), BURST_WAIT);
        budget.refund(start, start + ms(150));
        budget.end(start + ms(150));
        assert_eq!(budget.left(start + ms(150)), BURST_WAIT);
        budget.refund(start, start + ms(150));
        assert_eq!(budget.left(start + ms(150)), BURST_WAIT);
    }

    #[test]
    fn what_comes_back_to_one_does_not_take_from_another() {
        let (mut budget, start) = (WaitBudget::default(), Instant::now());
        budget.begin(start);
        budget.begin(start + ms(90));
        budget.refund(start + ms(90), start + ms(100));
        budget.end(start + ms(100));
        assert_eq!(budget.left(start + ms(100)), ms(260));
        budget.refund(start, start + ms(120));
        budget.end(start + ms(120));
        assert_eq!(budget.left(start + ms(120)), BURST_WAIT);
        // What is used up runs no further.
        budget.begin(start + ms(1_000));
        budget.refund(start + ms(1_900), start + ms(2_000));
        assert_eq!(budget.left(start + ms(2_000)), Duration::ZERO);
    }

    #[test]
    fn a_new_burst_has_all_of_it() {
        let (mut budget, start) = (WaitBudget::default(), Instant::now());
        budget.begin(start);
        budget.refill(start + ms(1_000));
        assert_eq!(budget.left(start + ms(1_050)), ms(300));
        budget.refund(start, start + ms(1_050));
        assert_eq!(budget.left(start + ms(1_050)), BURST_WAIT);
    }
}
