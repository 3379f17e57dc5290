//! Memory for NAR streams: so many slots, half of them for the LAN at most, so that serving
//! others never keeps this machine's own Nix waiting.

use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What one NAR stream takes: pieces read ahead, held back, and on their way out.
pub const STREAM_BYTES: u64 = 512 << 10;

/// Nix has 25 connections; a 26th stream of this machine waits this long for a slot before
/// Nix is sent to its next substituter.
const LOOPBACK_PATIENCE: Duration = Duration::from_secs(5);

/// The slots of `limits.buffer`.
#[derive(Debug)]
pub struct Budget {
    lan: Arc<Semaphore>,
    loopback: Arc<Semaphore>,
}

/// A slot, free again when dropped.
pub(super) type Slot = OwnedSemaphorePermit;

impl Budget {
    /// Slots in `bytes` of memory.
    pub fn new(bytes: u64) -> Self {
        let slots = usize::try_from(bytes / STREAM_BYTES)
            .unwrap_or(usize::MAX)
            .clamp(2, Semaphore::MAX_PERMITS);
        let lan = slots / 2;
        Self {
            lan: Arc::new(Semaphore::new(lan)),
            loopback: Arc::new(Semaphore::new(slots - lan)),
        }
    }

    /// A slot for a machine of the LAN, now or not at all: it has others to ask.
    pub(super) fn for_lan(&self) -> Option<Slot> {
        Arc::clone(&self.lan).try_acquire_owned().ok()
    }

    /// A slot for this machine.
    pub(super) async fn for_loopback(&self) -> Option<Slot> {
        let slot = Arc::clone(&self.loopback).acquire_owned();
        tokio::time::timeout(LOOPBACK_PATIENCE, slot)
            .await
            .ok()?
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_lan_never_takes_the_slots_of_this_machine() {
        let budget = Budget::new(8 * STREAM_BYTES);
        let lan: Vec<_> = std::iter::from_fn(|| budget.for_lan()).collect();
        assert_eq!(lan.len(), 4);
        let mut own = Vec::new();
        while let Some(slot) = budget.for_loopback().await {
            own.push(slot);
        }
        assert_eq!(own.len(), 4);
        drop(lan);
        assert!(budget.for_lan().is_some());
    }
}
