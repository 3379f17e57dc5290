//! How long a NAR request may wait for a holder that restarts: once a minute, for all
//! requests together, so that a holder that is gone for good costs no more than that.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A daemon drains for up to a second and starts in a tenth of one.
const RESTART_TAKES: Duration = Duration::from_millis(1_800);

/// From one such wait to the next.
const PAUSE: Duration = Duration::from_secs(60);

/// The wait that is allowed at present.
#[derive(Debug, Default)]
pub(super) struct Patience(Mutex<Option<Instant>>);

impl Patience {
    /// Until when somebody who began at `now` may wait; `None` if there was a wait lately.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        let mut began = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *began {
            Some(at) if now < at + RESTART_TAKES => Some(at + RESTART_TAKES),
            Some(at) if now < at + PAUSE => None,
            _ => {
                *began = Some(now);
                Some(now + RESTART_TAKES)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wait_a_minute_is_shared_by_all() {
        let (patience, start) = (Patience::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        assert_eq!(patience.until(start), Some(after(1_800)));
        assert_eq!(patience.until(after(1_000)), Some(after(1_800)));
        assert_eq!(patience.until(after(1_900)), None);
        assert_eq!(patience.until(after(59_999)), None);
        assert_eq!(patience.until(after(60_000)), Some(after(61_800)));
    }
}
