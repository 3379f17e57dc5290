//! Whether this machine was suspended: then every peer may be another one by now.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Clocks are read one after the other, so they differ a little without a suspension.
const LEAST: Duration = Duration::from_secs(1);

/// How much CLOCK_BOOTTIME was ahead of CLOCK_MONOTONIC, which does not run in a suspension.
#[derive(Debug, Default)]
pub(super) struct Suspension(Option<Duration>);

impl Suspension {
    /// Whether there was a suspension since this was last asked.
    pub(super) fn is_over(&mut self) -> bool {
        let read = |clock| clock_gettime(clock).map(Duration::from);
        let (Ok(boot), Ok(monotonic)) = (
            read(ClockId::CLOCK_BOOTTIME),
            read(ClockId::CLOCK_MONOTONIC),
        ) else {
            return false;
        };
        self.note(boot.saturating_sub(monotonic))
    }

    fn note(&mut self, ahead: Duration) -> bool {
        let before = self.0.replace(ahead);
        before.is_some_and(|before| ahead >= before + LEAST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suspension_is_told_once() {
        let mut suspension = Suspension::default();
        let seconds = Duration::from_secs;
        let told = [0, 0, 3600, 3600, 3600].map(|it| suspension.note(seconds(it)));
        assert_eq!(told, [false, false, true, false, false]);
        assert!(!Suspension::default().is_over());
    }
}
