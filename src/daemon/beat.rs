//! A sign of life: a task that goes round its loop beats, one that hangs does not.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A task that is watched beats this often.
pub(super) const EVERY: Duration = Duration::from_secs(2);

/// When a task last went round its loop.
#[derive(Debug)]
pub(super) struct Beat(Mutex<Instant>);

impl Default for Beat {
    fn default() -> Self {
        Self(Mutex::new(Instant::now()))
    }
}

impl Beat {
    /// The task is alive.
    pub(super) fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Whether it has beaten lately.
    pub(super) fn is_alive(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
            < 3 * EVERY
    }
}
