//! Who has a path, and the verified answer for Nix: the meeting point of the LAN, the peers'
//! HTTP and the local store. Owns what was found lately and how peers behaved; never speaks
//! HTTP to a client.
//!
//! A lookup asks the LAN, takes the first answer that [`acceptance`] lets through, and
//! remembers the holder for the NAR request that follows. A [`stream::NarStream`] is one NAR
//! (or a range of it) from whichever holders can give it.

pub mod acceptance;
pub mod background;
pub mod budget;
mod cache_asking;
pub mod caches;
mod counters;
pub mod inquiry;
mod lookup;
pub mod nar_sources;
pub mod peer_health;
pub mod prefetch;
pub mod stream;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use log::debug;
use tokio::{sync::mpsc, time::sleep};

use crate::{
    config::Limits,
    format::{NarHash, PathInfo, StorePathHash},
    lan::{self, LanHandle},
    peer::Client,
    protocol::discovery::PeerInfo,
    store::{LocalStore, SharePolicy},
};

use acceptance::Trust;
use caches::Caches;
pub use counters::{Counters, CountersSnapshot};
use nar_sources::{Found, Holder, NarSources};
use peer_health::PeerHealth;
use prefetch::Prefetched;
pub use stream::{NarStream, StreamError};

/// Pause before a NAR that Nix was promised is looked for again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Where this machine's part begins: its store, and what of it may be shared.
#[derive(Debug, Clone)]
pub struct Holdings {
    /// The store.
    pub store: LocalStore,
    /// What leaves the machine.
    pub share: Arc<SharePolicy>,
}

/// What survives a reload of the settings.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    nar_sources: Arc<NarSources>,
    /// The plain caches.
    pub caches: Arc<Caches>,
    prefetched: Arc<Prefetched>,
    /// How peers behave.
    pub health: Arc<PeerHealth>,
    /// What was done so far.
    pub counters: Arc<Counters>,
}

/// The ways to the tasks that work for the finder.
#[derive(Debug, Clone)]
pub struct Background {
    /// Where it is found out who sent wrong bytes.
    pub inquiries: mpsc::Sender<inquiry::Case>,
    /// Where the references of what Nix was given are asked for.
    pub prefetches: mpsc::Sender<prefetch::Errand>,
    /// What goes on when the lookup that began it has ended.
    pub tasks: mpsc::Sender<BoxFuture<'static, ()>>,
}

/// Finds paths. Cheap to clone; a reload makes a new one with the same [`Memory`].
#[derive(Debug, Clone)]
pub struct Finder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lan: LanHandle,
    client: Client,
    holdings: Holdings,
    trust: Trust,
    limits: Limits,
    memory: Memory,
    background: Background,
}

impl Finder {
    /// A finder over these parts.
    pub fn new(
        lan: LanHandle,
        client: Client,
        holdings: Holdings,
        trust: Trust,
        limits: Limits,
        memory: Memory,
        background: Background,
    ) -> Self {
        Self(Arc::new(Inner {
            lan,
            client,
            holdings,
            trust,
            limits,
            memory,
            background,
        }))
    }

    /// The local store and the sharing rule.
    pub fn holdings(&self) -> &Holdings {
        &self.0.holdings
    }

    /// How peers behave, and what was done so far.
    pub fn memory(&self) -> &Memory {
        &self.0.memory
    }

    /// The client, with no connection from before our networks were interrupted.
    fn client(&self) -> &Client {
        self.0.client.renew(self.0.lan.interruptions());
        &self.0.client
    }

    fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The peers of the LAN.
    pub fn peers(&self) -> Vec<PeerInfo> {
        self.0.lan.peers()
    }

    /// What discovery did so far.
    pub fn lan_counters(&self) -> lan::Counters {
        self.0.lan.counters()
    }

    /// Why this machine cannot ask its neighbours, in part or at all.
    pub fn lan_warnings(&self) -> Vec<String> {
        self.0.lan.warnings()
    }

    /// Nix is about to ask: wakes the neighbours.
    pub fn stir(&self) {
        self.0.lan.wake_peers();
        self.0.memory.caches.stir(Instant::now());
    }

    /// The facts of a path that Nix will accept: from the LAN, else from our own store.
    pub async fn narinfo(&self, hash: StorePathHash) -> Option<Arc<PathInfo>> {
        let (memory, now) = (&self.0.memory, Instant::now());
        memory.prefetched.asked(now);
        let found = self.find(hash).await;
        memory.counters.lookup(found.is_some());
        let found = found?;
        self.prefetch(&found);
        Some(found.info)
    }

    /// A path whose NAR can be opened, known from its narinfo or asked for again; with
    /// `nar_hash` only if that is its NAR.
    /// While a peer may be restarting it is asked again: without this NAR, which Nix was promised,
    /// a build fails.
    pub async fn nar(&self, hash: StorePathHash, nar_hash: Option<NarHash>) -> Option<Found> {
        let until = Instant::now() + self.limits().stall_alone;
        loop {
            let found = self.nar_now(hash, nar_hash).await;
            let now = Instant::now();
            let may_come = now < until && self.memory().health.may_restart(now);
            if found.is_some() || !may_come {
                return found;
            }
            sleep(ASK_AGAIN_AFTER).await;
        }
    }

    async fn nar_now(&self, hash: StorePathHash, nar_hash: Option<NarHash>) -> Option<Found> {
        let sources = &self.0.memory.nar_sources;
        if let Some(found) = sources.fresh(Instant::now(), hash, nar_hash) {
            return Some(found);
        }
        if let Some(found) = self.ask(hash, nar_hash, &[]).await {
            return Some(found);
        }
        if let Some(found) = self.own(hash, nar_hash).await {
            return Some(found);
        }
        sources.stale(hash, nar_hash)
    }

    /// Whether Nix, which asks for the rest of this NAR, had better ask somebody else.
    pub fn is_incompletable(&self, hash: StorePathHash, nar_hash: NarHash) -> bool {
        let sources = &self.0.memory.nar_sources;
        let why = sources.incompletable(Instant::now(), hash, nar_hash);
        why.is_some()
    }

    /// What our own store has of it, if it may be shared and Nix would accept it.
    async fn own(&self, hash: StorePathHash, nar_hash: Option<NarHash>) -> Option<Found> {
        let Holdings { store, share, .. } = &self.0.holdings;
        let info = match store.shared(hash, share).await {
            Ok(info) => info?,
            Err(error) => {
                debug!(hash:% = hash; "our own store did not answer: {error}");
                return None;
            }
        };
        let proof = self.0.trust.proof(&info).ok()?;
        let right = nar_hash.is_none_or(|wanted| wanted == info.nar_hash);
        right.then(|| Found {
            info: Arc::new(info),
            proof,
            holders: VecDeque::from([Holder::Own]),
        })
    }
}
