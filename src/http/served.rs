//! The account of one NAR given to a peer, or of a part of it: counters, and a line in the journal
//! when it ends.

use std::{
    net::SocketAddr,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use log::Level;

use super::{counters::Counters, parts::Part};
use crate::{
    format::{PathInfo, StoreDir},
    system::journal::chain,
};

/// Accounts for what was sent when dropped, complete or not.
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
        if complete && self.range.end == self.info.nar_size {
            self.counters.served();
        }
        if complete && self.range == (0..self.info.nar_size) {
            let level = self.counters.lines.level(self.started);
            self.tell(level, ("", ""), self.sent, self.started);
        } else {
            self.account_for_part();
        }
    }
}

impl Served {
    /// A stranger can ask for parts all day, and must not get a path unseen by asking for parts.
    fn account_for_part(&self) {
        let pair = (self.peer.ip(), self.info.path.hash());
        let (parts, lines) = (&self.counters.parts, &self.counters.lines);
        let first = ("a part of ", "; further parts are not told");
        if self.sent == 0 {
            return self.tell(Level::Debug, first, 0, self.started);
        }
        let when = (self.started, Instant::now());
        match parts.add(pair, when, self.sent, self.info.nar_size) {
            Part::First => {
                let level = lines.level(self.started);
                if level != Level::Info {
                    parts.forget(pair);
                }
                self.tell(level, first, self.sent, self.started);
            }
            Part::Whole { bytes, since } => {
                let level = lines.level(self.started);
                self.tell(level, ("all parts of ", ""), bytes, since);
            }
            Part::Further => self.tell(Level::Debug, ("a part of ", ""), self.sent, self.started),
        }
    }

    fn tell(&self, level: Level, (what, more): (&str, &str), bytes: u64, since: Instant) {
        let elapsed = since.elapsed();
        let path = self.path.as_str();
        log::log!(
            level, hash:% = self.info.path.hash(), store_path = path, peer:% = self.peer.ip(), bytes = bytes,
            duration_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
            "served {what}{path} to {}: {bytes} bytes in {} ms{more}", self.peer, elapsed.as_millis()
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
