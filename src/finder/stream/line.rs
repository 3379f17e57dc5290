//! The bytes of a NAR from one holder after the other: when one fails, the next goes on at the
//! exact byte.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use futures_util::StreamExt;

use super::{Step, StreamError, holders::Holders};
use crate::finder::{
    Holder,
    nar_sources::{Body, HolderError},
};

/// A holder that gives less than this while it is waited for so long is left.
const SLOW_WINDOW: Duration = Duration::from_secs(10);
const SLOW_BYTES: usize = 64 << 10;

/// The same where another holder is at hand.
const SLOW_BESIDE_OTHERS_WINDOW: Duration = Duration::from_secs(2);
const SLOW_BESIDE_OTHERS_BYTES: usize = 128 << 10;

/// The end of a body of known length is there with its last byte.
const END_WITHIN: Duration = Duration::from_millis(50);

/// The rate of one holder, over time that was spent waiting for it: while Nix is slow,
/// nobody else is.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    bytes: usize,
}

impl Pace {
    /// Whether a holder that took `waited` for the next `bytes` is below the minimum rate, and
    /// over which time.
    fn too_slow_for(
        &mut self,
        waited: Duration,
        bytes: usize,
        others_at_hand: bool,
    ) -> Option<Duration> {
        self.waited += waited;
        self.bytes += bytes;
        let (window, least) = if others_at_hand {
            (SLOW_BESIDE_OTHERS_WINDOW, SLOW_BESIDE_OTHERS_BYTES)
        } else {
            (SLOW_WINDOW, SLOW_BYTES)
        };
        if self.waited < window {
            return None;
        }
        let slow = self.bytes < least;
        *self = Self::default();
        slow.then_some(window)
    }
}

/// One holder at a time.
pub(super) struct Line {
    /// Where the next byte from a holder belongs, and the end.
    left: Range<u64>,
    current: Option<(Holder, Body)>,
    /// The current holder has given bytes.
    has_begun: bool,
    /// How long it has been silent by now.
    silent: Duration,
    pace: Pace,
    /// The LAN was asked because the holder is slow, once in a stream.
    asked_for_a_quicker_one: bool,
}

impl Line {
    pub(super) fn new(range: Range<u64>) -> Self {
        Self {
            left: range,
            current: None,
            has_begun: false,
            silent: Duration::ZERO,
            pace: Pace::default(),
            asked_for_a_quicker_one: false,
        }
    }

    /// One piece more, or the news that a holder was lost, or the end.
    pub(super) async fn step(&mut self, holders: &mut Holders) -> Result<Step, StreamError> {
        if self.left.is_empty() {
            self.finish(holders).await;
            return Ok(Step::End);
        }
        let Some((holder, body)) = &mut self.current else {
            self.current = Some(holders.open(self.left.clone()).await?);
            self.has_begun = false;
            self.silent = Duration::ZERO;
            return Ok(Step::Nothing);
        };
        let [stall, stall_alone] = holders.stall_limits(holder, self.has_begun);
        let is_alone = !holders.may_be_others();
        let limit = if is_alone { stall_alone } else { stall };
        let after = limit.saturating_sub(self.silent);
        let asked = Instant::now();
        let error = match tokio::time::timeout(after, body.next()).await {
            // It is read from its start, and on its way to where it goes on.
            Ok(Some(Ok(piece))) if piece.is_empty() => return Ok(Step::Nothing),
            Ok(Some(Ok(piece))) => {
                let others = holders.at_hand() > 0 || !self.asked_for_a_quicker_one;
                let slow = self.pace.too_slow_for(asked.elapsed(), piece.len(), others);
                let holder = holder.clone();
                if slow.is_some() && holders.at_hand() == 0 && !self.asked_for_a_quicker_one {
                    self.asked_for_a_quicker_one = true;
                    holders.ask_again().await;
                }
                match slow {
                    // The piece that was so slow is fetched again: it is a small one.
                    Some(after) if after == SLOW_WINDOW || holders.at_hand() > 0 => {
                        let alone = holders.at_hand() == 0;
                        HolderError::Slow { after, alone }
                    }
                    _ => {
                        self.left.start += piece.len() as u64;
                        self.has_begun = true;
                        self.silent = Duration::ZERO;
                        holders.progress();
                        return Ok(Step::Bytes(piece, holder));
                    }
                }
            }
            // A body gives all that was asked for, or an error.
            Ok(None) => return Ok(Step::End),
            Ok(Some(Err(error))) => error,
            Err(_) => {
                self.silent += after;
                // A silent holder is left only for another one, until patience ends.
                if holders.at_hand() == 0 && holders.may_be_others() {
                    holders.ask_again().await;
                }
                match (holders.at_hand(), is_alone) {
                    (0, false) => return Ok(Step::Nothing),
                    (0, true) => HolderError::Silent { after: limit },
                    _ => HolderError::Stalled { after: limit },
                }
            }
        };
        self.pace = Pace::default();
        if let Some((holder, _)) = self.current.take() {
            holders.failed(holder, &error, self.left.start);
            holders.finder().memory().counters.failover();
        }
        Ok(Step::Lost)
    }

    /// Reads the end after the last byte, so that the connection can be used again; what comes
    /// instead of it is noted and harms nobody.
    async fn finish(&mut self, holders: &mut Holders) {
        let Some((holder, mut body)) = self.current.take() else {
            return;
        };
        let end = tokio::time::timeout(END_WITHIN, body.next()).await;
        let error = match end {
            Ok(None) => return,
            Ok(Some(Err(error))) => error,
            Ok(Some(Ok(_))) | Err(_) => HolderError::NoEnd,
        };
        holders.failed(holder, &error, self.left.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_slow_by_what_it_gives_while_it_is_waited_for() {
        let mut pace = Pace::default();
        let second = Duration::from_secs(1);
        for _ in 0..9 {
            assert_eq!(pace.too_slow_for(second, 1, false), None);
        }
        assert_eq!(pace.too_slow_for(second, 1, false), Some(SLOW_WINDOW));
        assert_eq!(pace.too_slow_for(second, 1, true), None);
        assert_eq!(pace.too_slow_for(second, 1, true), Some(2 * second));
        assert_eq!(pace.too_slow_for(2 * second, 1 << 20, true), None);
    }
}
