//! How long a lookup waits for its requests.

use std::time::{Duration, Instant};

use crate::lan::{LanHandle, PaidWait};

/// How long a request is waited for.
pub(super) struct AllowedWait {
    /// Without the budget of the burst.
    pub(super) free: Duration,
    /// Also when the budget is used up: a peer that gave paths before may be slow for a moment, and
    /// when it is late it counts as unreachable for all lookups.
    pub(super) at_least: Duration,
}

impl AllowedWait {
    pub(super) fn free(free: Duration) -> Self {
        Self {
            free,
            at_least: free,
        }
    }
}

/// What a lookup waits for its requests.
#[derive(Debug, Default)]
pub(super) struct Wait {
    free_until: Option<Instant>,
    at_least_until: Option<Instant>,
    paid: Option<PaidWait>,
}

impl Wait {
    /// A request began at `now`.
    pub(super) fn extend(&mut self, now: Instant, allowed: AllowedWait) {
        self.free_until = self.free_until.max(Some(now + allowed.free));
        self.at_least_until = self.at_least_until.max(Some(now + allowed.at_least));
    }

    /// Waits until then, whatever the budget says.
    pub(super) fn extend_to(&mut self, until: Option<Instant>) {
        self.at_least_until = self.at_least_until.max(until);
    }

    /// When to look again, or to give up if that is now.
    pub(super) fn end(&mut self, lan: &LanHandle) -> Instant {
        let now = Instant::now();
        match self.free_until.filter(|until| now < *until) {
            Some(until) => {
                self.paid = None;
                until
            }
            None => {
                let paid = self.paid.get_or_insert_with(|| lan.begin_wait());
                self.at_least_until.max(paid.ends_at()).unwrap_or(now)
            }
        }
    }

    pub(super) fn is_used_up(&self, lan: &LanHandle) -> bool {
        match &self.paid {
            Some(paid) => paid.ends_at().is_none(),
            None => lan.begin_wait().ends_at().is_none(),
        }
    }

    /// The path has come.
    pub(super) fn refund(&mut self) {
        if let Some(paid) = self.paid.take() {
            paid.refund();
        }
    }
}
