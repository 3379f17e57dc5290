//! What the finder has done, for /status, /metrics and STATUS=.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use serde::Serialize;

/// Running totals since the start.
#[derive(Debug, Default)]
pub struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    nars: AtomicU64,
    nar_bytes: AtomicU64,
    corrupt: AtomicU64,
    failovers: AtomicU64,
    hedged: AtomicU64,
    prefetched: AtomicU64,
    prefetch_used: AtomicU64,
    prefetch_dropped: AtomicU64,
    /// Keyed by our own words (`Rejection::KINDS`, `PeerError::kind`), so bounded.
    refused: Mutex<BTreeMap<&'static str, u64>>,
}

/// The totals at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CountersSnapshot {
    /// Narinfo lookups that found the path.
    pub hits: u64,
    /// Narinfo lookups that did not.
    pub misses: u64,
    /// NARs fetched from peers to their end.
    pub nars: u64,
    /// Bytes of NARs received from peers.
    pub nar_bytes: u64,
    /// NARs whose bytes were wrong.
    pub corrupt: u64,
    /// Times that a NAR stream went on from another holder.
    pub failovers: u64,
    /// Narinfos asked of one more peer because the one before was later than usual.
    pub hedged: u64,
    /// Narinfos fetched before Nix asked for them.
    pub prefetched: u64,
    /// Those of them that it has asked for.
    pub prefetch_used: u64,
    /// References that were not asked for ahead: too many, or Nix had gone.
    pub prefetch_dropped: u64,
    /// Narinfos and peers refused, by reason.
    pub refused: BTreeMap<&'static str, u64>,
}

impl Counters {
    pub(super) fn lookup(&self, hit: bool) {
        if hit { &self.hits } else { &self.misses }.fetch_add(1, Relaxed);
    }

    pub(super) fn refused(&self, kind: &'static str) {
        *self
            .refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(kind)
            .or_default() += 1;
    }

    pub(super) fn corrupt(&self) {
        self.corrupt.fetch_add(1, Relaxed);
    }

    pub(super) fn failover(&self) {
        self.failovers.fetch_add(1, Relaxed);
    }

    pub(super) fn hedged(&self) {
        self.hedged.fetch_add(1, Relaxed);
    }

    pub(super) fn prefetched(&self) {
        self.prefetched.fetch_add(1, Relaxed);
    }

    pub(super) fn prefetch_used(&self) {
        self.prefetch_used.fetch_add(1, Relaxed);
    }

    pub(super) fn prefetch_dropped(&self) {
        self.prefetch_dropped.fetch_add(1, Relaxed);
    }

    pub(super) fn received(&self, bytes: u64) {
        self.nar_bytes.fetch_add(bytes, Relaxed);
    }

    pub(super) fn fetched(&self) {
        self.nars.fetch_add(1, Relaxed);
    }

    /// The totals now.
    pub fn snapshot(&self) -> CountersSnapshot {
        CountersSnapshot {
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            nars: self.nars.load(Relaxed),
            nar_bytes: self.nar_bytes.load(Relaxed),
            corrupt: self.corrupt.load(Relaxed),
            failovers: self.failovers.load(Relaxed),
            hedged: self.hedged.load(Relaxed),
            prefetched: self.prefetched.load(Relaxed),
            prefetch_used: self.prefetch_used.load(Relaxed),
            prefetch_dropped: self.prefetch_dropped.load(Relaxed),
            refused: self
                .refused
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }
}
