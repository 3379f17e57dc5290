//! The account of one NAR given to a peer: counters, and one line in the journal when it ends.

use std::{
    net::SocketAddr,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use log::Level;

use super::counters::Counters;
use crate::{
    format::{PathInfo, StoreDir},
    system::journal::chain,
};

/// Writes its line when dropped, complete or not.
pub(super) struct Served {
    counters: Arc<Counters>,
    peer: SocketAddr,
    info: PathInfo,
    /// The path in full, as the journal has it.
    path: String,
    range: Range<u64>,
    started: Instant,
    sent: u64,
    broke: bool,
}

impl Served {
    pub(super) fn new(
        counters: Arc<Counters>,
        peer: SocketAddr,
        dir: &StoreDir,
        info: PathInfo,
        range: Range<u64>,
    ) -> Self {
        let path = info.path.display(dir).to_string();
        Self {
            counters,
            peer,
            info,
            path,
            range,
            started: Instant::now(),
            sent: 0,
            broke: false,
        }
    }

    pub(super) fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
        self.counters.sent(bytes);
    }

    /// Our store did not give what it holds.
    pub(super) fn broke(&mut self, error: &dyn std::error::Error) {
        self.broke = true;
        let path = self.path.as_str();
        log::log!(
            self.counters.lines.level(self.started), hash:% = self.info.path.hash(), store_path = path, peer:% = self.peer.ip(),
            reason = "store"; "cannot go on serving {path}: {}", chain(error)
        );
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.broke {
            return;
        }
        let complete = self.sent == self.range.end - self.range.start;
        let ends_nar = self.range.end == self.info.nar_size;
        if complete && ends_nar {
            self.counters.served();
        }
        let elapsed = self.started.elapsed();
        let path = self.path.as_str();
        // A stranger can ask for parts all day; what counts is a NAR that arrived.
        let level = if complete && ends_nar {
            self.counters.lines.level(self.started)
        } else {
            Level::Debug
        };
        log::log!(
            level, hash:% = self.info.path.hash(), store_path = path, peer:% = self.peer.ip(), bytes = self.sent,
            duration_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
            "{} {path} to {}: {} bytes in {} ms",
            if complete { "served" } else { "served a part of" }, self.peer, self.sent, elapsed.as_millis()
        );
    }
}

const LINES_BURST: f64 = 10_000.0;
const LINES_PER_SECOND: f64 = 20.0;

/// Lines at info level that peers can cause: a closure of thousands of paths is welcome, a
/// flood is not.
#[derive(Debug, Default)]
pub(super) struct Lines(Mutex<Option<(f64, Instant)>>);

impl Lines {
    fn level(&self, now: Instant) -> Level {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (left, since) = lines.unwrap_or((LINES_BURST, now));
        let passed = now.checked_duration_since(since).unwrap_or(Duration::ZERO);
        let left = (left + passed.as_secs_f64() * LINES_PER_SECOND).min(LINES_BURST);
        let level = if left >= 1.0 {
            Level::Info
        } else {
            Level::Debug
        };
        *lines = Some((if left >= 1.0 { left - 1.0 } else { left }, since.max(now)));
        level
    }
}
