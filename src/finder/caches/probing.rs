//! The task that probes plain caches.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use log::debug;

use super::{CacheState, Caches, Entry, Known, Probe};
use crate::{
    finder::{Memory, peer_health::Success},
    format::cache_info,
    peer::{Client, PeerError},
    protocol::PlainCache,
    system::{interfaces, journal::chain},
};

/// A cache that is awake answers within that.
const PROBE_WITHIN: Duration = Duration::from_secs(1);

/// Nix itself writes three lines.
const CACHE_INFO_BYTES: u64 = 4 << 10;

/// Probes what is due, until it is dropped.
pub async fn run(memory: Memory, client: Client) {
    let mut probes = FuturesUnordered::new();
    loop {
        tokio::select! {
            () = memory.caches.due.notified() => {
                let due = memory.caches.take_due();
                probes.extend(due.into_iter().map(|cache| probe(&memory, &client, cache)));
            }
            Some(()) = probes.next() => {}
        }
    }
}

async fn probe(memory: &Memory, client: &Client, cache: Arc<PlainCache>) {
    let caches = &memory.caches;
    let state = if caches.is_ours(&cache) {
        CacheState::Ourselves
    } else {
        let fetched = client.cache_file(&cache, "nix-cache-info", CACHE_INFO_BYTES, PROBE_WITHIN);
        match fetched.await {
            Ok(body) => caches.judge(&body),
            Err(error) => {
                debug!("{cache} does not answer as a cache: {}", chain(&error));
                match error {
                    PeerError::Status { status, .. } if !status.is_server_error() => {
                        CacheState::NoCache
                    }
                    PeerError::Length { .. } => CacheState::NoCache,
                    _ => CacheState::Off,
                }
            }
        }
    };
    if state == CacheState::Good {
        // What failed before it went off does not count against it.
        memory
            .health
            .record_success(cache.address, Success::Transport { at: Instant::now() });
    }
    caches.probe_ended(Instant::now(), &cache, state);
}

impl Caches {
    pub(super) fn take_due(&self) -> Vec<Arc<PlainCache>> {
        let mut known = self.lock();
        let due = known
            .entries
            .iter_mut()
            .filter(|entry| entry.probe == Probe::Due);
        due.map(|entry| {
            entry.probe = Probe::UnderWay;
            Arc::clone(&entry.cache)
        })
        .collect()
    }

    /// Whether that is this very daemon. Unsure, it is not: it would answer with 403 or 404.
    fn is_ours(&self, cache: &PlainCache) -> bool {
        let address = cache.address.socket_addr();
        if address.port() != self.lock().own_port {
            return false;
        }
        let ip = address.ip();
        let is_listed = || {
            let listed = interfaces::list().unwrap_or_default();
            listed.iter().any(|interface| interface.ip == ip)
        };
        ip.is_loopback() || is_listed()
    }

    fn judge(&self, cache_info: &[u8]) -> CacheState {
        let Ok(text) = str::from_utf8(cache_info) else {
            return CacheState::NoCache;
        };
        match cache_info::store_dir(text) {
            Some(dir) if dir == self.lock().store_dir.as_str() => CacheState::Good,
            Some(_) => CacheState::OtherStore,
            // A web page for everything that it has not got.
            None if text.contains('<') => CacheState::NoCache,
            None => CacheState::Good,
        }
    }

    pub(super) fn probe_ended(&self, now: Instant, cache: &PlainCache, state: CacheState) {
        let mut known = self.lock();
        if let Some(entry) = known.find(cache) {
            // Announced by strangers, perhaps: nothing for the journal.
            debug!("{cache} at {} is {}", cache.address, state.as_str());
            if state == CacheState::Good {
                entry.heard = Some(now);
            }
            (entry.state, entry.probe) = (state, Probe::Over);
        }
        known.make_room(now, cache);
        drop(known);
        self.probed.send_replace(());
    }
}

impl Known {
    /// A cache that is announced and turned out to be none gives its place to one that there was no
    /// room for. That one is probed in its turn, so a crowd of them costs no more probes.
    fn make_room(&mut self, now: Instant, cache: &PlainCache) {
        let mut entries = self.entries.iter();
        let Some(at) = entries.position(|entry| *entry.cache == *cache && entry.rank() == 4) else {
            return;
        };
        if let Some(next) = self.spare.pop_front() {
            let mut entry = Entry::new(next);
            entry.probed_at = Some(now);
            let gone = std::mem::replace(&mut self.entries[at], entry);
            self.spare.push_back(gone.cache);
        }
    }
}
