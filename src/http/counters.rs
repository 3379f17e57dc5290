//! What was served, for /status, /metrics and STATUS=.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use serde::Serialize;

use super::{parts::Parts, served::Lines};

/// Running totals since the start.
#[derive(Debug, Default)]
pub struct Counters {
    nars: AtomicU64,
    nar_bytes: AtomicU64,
    shed: AtomicU64,
    /// Keyed by route name and status: both are ours, so bounded.
    answers: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Lines left in the journal for what peers fetch.
    pub(super) lines: Lines,
    /// What peers fetch in parts.
    pub(super) parts: Parts,
}

/// The totals at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CountersSnapshot {
    /// NARs (or their last part) served to peers from our store.
    pub nars: u64,
    /// Bytes of them.
    pub nar_bytes: u64,
    /// LAN connections closed at once because there were too many.
    pub shed: u64,
    /// Answers, by route and status.
    #[serde(skip)]
    pub answers: BTreeMap<(&'static str, u16), u64>,
}

impl Counters {
    pub(super) fn answered(&self, route: &'static str, status: u16) {
        *self
            .answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry((route, status))
            .or_default() += 1;
    }

    pub(super) fn shed(&self) {
        self.shed.fetch_add(1, Relaxed);
    }

    pub(super) fn sent(&self, bytes: u64) {
        self.nar_bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn served(&self) {
        self.nars.fetch_add(1, Relaxed);
    }

    /// The totals now.
    pub fn snapshot(&self) -> CountersSnapshot {
        CountersSnapshot {
            nars: self.nars.load(Relaxed),
            nar_bytes: self.nar_bytes.load(Relaxed),
            shed: self.shed.load(Relaxed),
            answers: self
                .answers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }
}
