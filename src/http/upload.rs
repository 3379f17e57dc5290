//! `limits.upload`: bytes a second served to the LAN, over all its streams.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A virtual clock of the line: each piece is sent when those before it have had their time.
#[derive(Debug)]
pub struct Upload {
    bytes_per_second: u64,
    /// When the line is free again.
    free_at: Mutex<Instant>,
}

/// After a pause this much may go out at once.
const BURST: Duration = Duration::from_millis(250);

impl Upload {
    /// A line of this rate, not 0.
    pub fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            free_at: Mutex::new(Instant::now()),
        }
    }

    /// Waits until `bytes` may go out.
    pub(super) async fn pay(&self, bytes: usize) {
        tokio::time::sleep_until(self.due(Instant::now(), bytes)).await;
    }

    fn due(&self, now: Instant, bytes: usize) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        let due = (*free_at).max(now.checked_sub(BURST).unwrap_or(now));
        *free_at = due + takes;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_streams_share_one_rate() {
        let upload = Upload::new(1 << 20);
        let started = Instant::now();
        let streams = (0..8).map(|_| async {
            for _ in 0..16 {
                upload.pay(64 << 10).await;
            }
        });
        futures_util::future::join_all(streams).await;
        let seconds = started.elapsed().as_secs_f64();
        assert!(
            (7.5..=8.0).contains(&seconds),
            "8 MiB at 1 MiB/s took {seconds} s"
        );
    }
}
