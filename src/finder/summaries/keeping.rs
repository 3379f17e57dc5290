//! The task that fetches summaries while Nix asks.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use tokio::time::sleep;

use super::{super::Memory, Errand};
use crate::{lan::LanHandle, peer::Client};

/// From one look at who is there, and what is new there, to the next.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Summaries that are fetched at the same time.
const AT_ONCE: usize = 4;

/// Keeps the summaries up to date while Nix asks, and tells discovery whom it need not ask.
pub async fn keep(lan: LanHandle, client: Client, memory: Memory) {
    let summaries = &memory.summaries;
    let tell = || lan.set_summaries(&summaries.stamps());
    loop {
        summaries.due.notified().await;
        while summaries.is_burst(Instant::now()) {
            let errands = summaries.plan(Instant::now(), &lan.peers(), &memory.standing);
            let fetch = |errand: Errand| {
                let fetched = client.summary(errand.peer, errand.known, errand.limit);
                async move { (errand, fetched.await) }
            };
            let mut fetches = stream::iter(errands).map(fetch).buffer_unordered(AT_ONCE);
            while let Some((errand, result)) = fetches.next().await {
                memory.counters.summary(&result);
                summaries.take(Instant::now(), &errand, result);
                tell();
            }
            tell();
            sleep(LOOK_EVERY).await;
        }
    }
}
