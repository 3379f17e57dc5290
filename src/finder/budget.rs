//! Memory for NAR streams, `limits.buffer`, in slots. Each stream has one; what is left is lent
//! to streams that verify before they pass on, or fetch ahead.
//!
//! Half of the slots at most serve the LAN, so that serving others never keeps this machine's
//! own Nix waiting. What is lent never takes the slots that Nix and the LAN may ask for next.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

/// What one NAR stream takes: pieces read ahead, held back, and on their way out.
pub const STREAM_BYTES: u64 = 512 << 10;

/// Nix has 25 connections; a further stream of this machine waits this long for a slot before
/// Nix is sent to its next substituter.
pub(super) const LOOPBACK_PATIENCE: Duration = Duration::from_secs(5);

/// Slots that are not lent, nor given to the LAN, because Nix has so many connections.
const KEPT_FOR_NIX: usize = 25;

/// Slots that are not lent because a neighbour may ask.
const KEPT_FOR_LAN: usize = 10;

/// The slots of `limits.buffer`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    slots: usize,
    used: Mutex<Used>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct Used {
    lan: usize,
    loopback: usize,
    lent: usize,
}

/// Whom a slot serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum For {
    Lan,
    Loopback,
}

/// The slot of one stream, free again when dropped.
#[derive(Debug)]
pub struct Slot {
    budget: Budget,
    whom: For,
}

/// Slots lent beside those of the streams, free again when dropped.
#[derive(Debug)]
pub struct Loan {
    budget: Budget,
    slots: usize,
}

impl Budget {
    /// Slots in `bytes` of memory.
    pub fn new(bytes: u64) -> Self {
        let slots = usize::try_from(bytes / STREAM_BYTES).unwrap_or(usize::MAX);
        Self(Arc::new(Shared {
            slots: slots.max(2),
            used: Mutex::default(),
            freed: Notify::new(),
        }))
    }

    /// A slot for a machine of the LAN, now or not at all: it has others to ask.
    pub fn for_lan(&self) -> Option<Slot> {
        let half = self.0.slots / 2;
        let mut used = self.used();
        let kept = used.loopback.max(KEPT_FOR_NIX.min(self.0.slots - half));
        let room = used.lan < half && used.lan + used.lent + kept < self.0.slots;
        room.then(|| {
            used.lan += 1;
            self.slot(For::Lan)
        })
    }

    /// A slot for this machine.
    pub async fn for_loopback(&self) -> Option<Slot> {
        let slot = async {
            loop {
                let mut freed = std::pin::pin!(self.0.freed.notified());
                freed.as_mut().enable();
                if let Some(slot) = self.take_for_loopback() {
                    return slot;
                }
                freed.await;
            }
        };
        tokio::time::timeout(LOOPBACK_PATIENCE, slot).await.ok()
    }

    fn take_for_loopback(&self) -> Option<Slot> {
        let mut used = self.used();
        let room = used.lan + used.loopback + used.lent < self.0.slots;
        room.then(|| {
            used.loopback += 1;
            self.slot(For::Loopback)
        })
    }

    fn slot(&self, whom: For) -> Slot {
        Slot {
            budget: self.clone(),
            whom,
        }
    }

    /// `bytes` more than the slot of a stream, if there is room for them now.
    pub(super) fn lend(&self, bytes: u64) -> Option<Loan> {
        let slots = usize::try_from(bytes.div_ceil(STREAM_BYTES)).ok()?;
        let half = self.0.slots / 2;
        let mut used = self.used();
        let kept = used.loopback.max(KEPT_FOR_NIX.min(half)) + used.lan.max(KEPT_FOR_LAN.min(half));
        let free = self.0.slots.saturating_sub(kept + used.lent);
        (slots <= free).then(|| {
            used.lent += slots;
            Loan {
                budget: self.clone(),
                slots,
            }
        })
    }

    /// The same, for a stream that waits for it; other streams use the link meanwhile.
    pub(super) async fn lend_within(&self, patience: Duration, bytes: u64) -> Option<Loan> {
        let loan = async {
            loop {
                let mut freed = std::pin::pin!(self.0.freed.notified());
                freed.as_mut().enable();
                if let Some(loan) = self.lend(bytes) {
                    return loan;
                }
                freed.await;
            }
        };
        tokio::time::timeout(patience, loan).await.ok()
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        // Every change is one addition, so a panic elsewhere leaves nothing half-done.
        self.0.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        {
            let mut used = self.budget.used();
            match self.whom {
                For::Lan => used.lan -= 1,
                For::Loopback => used.loopback -= 1,
            }
        }
        self.budget.0.freed.notify_waiters();
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        self.budget.used().lent -= self.slots;
        self.budget.0.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULT: u64 = 40 << 20;

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

    #[tokio::test(start_paused = true)]
    async fn what_is_lent_keeps_neither_nix_nor_the_lan_waiting() {
        let budget = Budget::new(DEFAULT);
        let lent: Vec<_> = std::iter::from_fn(|| budget.lend(1 << 20)).collect();
        assert_eq!(lent.len(), 22, "of 80 slots 25 and 10 are kept");
        let lan: Vec<_> = std::iter::from_fn(|| budget.for_lan()).collect();
        assert_eq!(lan.len(), 11);
        let began = tokio::time::Instant::now();
        for _ in 0..KEPT_FOR_NIX {
            std::mem::forget(budget.for_loopback().await.expect("a slot"));
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_stream_gets_what_is_given_back() {
        let budget = Budget::new(2 * STREAM_BYTES);
        let first = budget.for_loopback().await;
        let second = budget.for_loopback().await;
        assert!(first.is_some() && second.is_some());
        let waiting = tokio::spawn({
            let budget = budget.clone();
            async move { budget.for_loopback().await.is_some() }
        });
        tokio::task::yield_now().await;
        drop(first);
        assert!(waiting.await.expect("no panic"));
    }
}
