//! Answers to broadcasts that wait a little, each for its own time, so that those of a large LAN
//! do not all arrive in one moment.

use std::{collections::BTreeMap, time::Instant};

use super::Action;

/// Answers that wait at once; further ones do not wait.
const MOST: usize = 1_024;

/// The answers that wait.
#[derive(Debug, Default)]
pub(super) struct DelayedAnswers {
    waiting: BTreeMap<(Instant, u64), Action>,
    counter: u64,
}

impl DelayedAnswers {
    /// Keeps an answer until `at`; gives it back if too many wait.
    pub(super) fn push(&mut self, at: Instant, reply: Action) -> Option<Action> {
        if self.waiting.len() >= MOST {
            return Some(reply);
        }
        self.counter += 1;
        self.waiting.insert((at, self.counter), reply);
        None
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(&(at, _), _)| at)
    }

    /// The next answer whose time has come.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Action> {
        let entry = self.waiting.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }
}
