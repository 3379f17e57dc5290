//! Answers that wait a little, each as long as it happens, so that those of a large LAN do not
//! all arrive in one moment.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::protocol::wire::Packet;

/// The longest wait, however many peers there are.
const LONGEST: Duration = Duration::from_millis(20);

/// For each peer that the asker knows: what it takes to receive an answer.
const EACH: Duration = Duration::from_micros(20);

/// A shorter wait is not worth a timer.
const SHORTEST: Duration = Duration::from_millis(1);

/// Answers that wait at once; further ones do not wait.
const MOST: usize = 1_024;

/// The time over which the answers of `known` peers are spread.
pub(super) fn spread(known: u16) -> Duration {
    let spread = (EACH * u32::from(known)).min(LONGEST);
    if spread < SHORTEST {
        Duration::ZERO
    } else {
        spread
    }
}

/// The answers that wait.
#[derive(Debug, Default)]
pub(super) struct Deferred {
    waiting: BTreeMap<(Instant, u64), (SocketAddr, Packet)>,
    counter: u64,
}

impl Deferred {
    /// Keeps an answer until `at`; gives it back if too many wait.
    pub(super) fn push(&mut self, at: Instant, to: SocketAddr, packet: Packet) -> Option<Packet> {
        if self.waiting.len() >= MOST {
            return Some(packet);
        }
        self.counter += 1;
        self.waiting.insert((at, self.counter), (to, packet));
        None
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|(&(at, _), _)| at)
    }

    /// The next answer whose time has come.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<(SocketAddr, Packet)> {
        let entry = self.waiting.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }
}
