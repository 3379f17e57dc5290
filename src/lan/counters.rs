//! What the sockets did, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::protocol::discovery;

/// Counts since the process began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Of the state machine.
    pub discovery: discovery::Counters,
    /// Of the sockets.
    pub io: IoCounters,
}

/// Counts of the sockets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoCounters {
    /// Datagrams sent, broadcasts once per network.
    pub sent: u64,
    /// Not sent: the socket had no room.
    pub send_full: u64,
    /// Not sent: the network is not there.
    pub send_network: u64,
    /// Not sent: a firewall or a router refused, or no socket reaches that address.
    pub send_refused: u64,
    /// Receives that failed, as when a peer's port was closed.
    pub receive_errors: u64,
    /// Asks of peers that were dropped because the store is behind.
    pub requests_dropped: u64,
    /// Paths that were asked for and are here.
    pub answered_present: u64,
    /// Paths that were asked for and are not, or not shared.
    pub answered_absent: u64,
}

#[derive(Debug, Default)]
pub(super) struct Atomics {
    pub(super) sent: Count,
    pub(super) send_full: Count,
    pub(super) send_network: Count,
    pub(super) send_refused: Count,
    pub(super) receive_errors: Count,
    pub(super) requests_dropped: Count,
    pub(super) answered_present: Count,
    pub(super) answered_absent: Count,
}

impl Atomics {
    pub(super) fn read(&self) -> IoCounters {
        IoCounters {
            sent: self.sent.read(),
            send_full: self.send_full.read(),
            send_network: self.send_network.read(),
            send_refused: self.send_refused.read(),
            receive_errors: self.receive_errors.read(),
            requests_dropped: self.requests_dropped.read(),
            answered_present: self.answered_present.read(),
            answered_absent: self.answered_absent.read(),
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Count(AtomicU64);

impl Count {
    pub(super) fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
