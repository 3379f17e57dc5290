//! The handle: asks the LAN and answers it.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot};

use super::{Counters, Lookup, lookup::EVENTS, settings, shared::Shared};
use crate::{
    config::Config,
    format::StorePathHash,
    protocol::{
        self, PathState, PeerAddr,
        discovery::{PeerInfo, PeerRequest, PersistedState},
    },
};

/// Asks the LAN and answers it. Cheap to clone; nothing here waits for the network.
#[derive(Debug, Clone)]
pub struct LanHandle {
    shared: Arc<Shared>,
}

impl LanHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Loopback has asked for something other than a path: peers may wake up already.
    pub fn wake_peers(&self) {
        let state = &mut *self.shared.lock();
        if state.is_closed {
            return;
        }
        state.refresh(false);
        state.core.wake_peers(Instant::now());
        self.shared.wake.notify_one();
    }

    /// Asks all peers for `hash`. What is looked up in the same moment goes out together.
    pub fn lookup(&self, hash: StorePathHash) -> Lookup {
        let (sender, events) = mpsc::channel(EVENTS);
        let state = &mut *self.shared.lock();
        if state.is_closed {
            return Lookup::new(events, None);
        }
        state.refresh(false);
        let id = state.core.lookup(Instant::now(), hash, &mut state.actions);
        state.lookups.insert(id, sender);
        self.shared.perform(state, None);
        self.shared.wake.notify_one();
        let active = state.lookups.contains_key(&id);
        let active = active.then(|| (id, Arc::downgrade(&self.shared)));
        Lookup::new(events, active)
    }

    /// Answers a peer, soon or not at all; `states`: one for each of its hashes. `streams`: the
    /// NARs that are being sent to peers.
    pub fn answer(&self, request: &PeerRequest, states: &[PathState], streams: usize) {
        let io = &self.shared.io;
        let count = |state| states.iter().filter(|&&it| it == state).count();
        io.answered_present.add(count(PathState::Present));
        io.answered_absent.add(count(PathState::Absent));
        let state = &mut *self.shared.lock();
        let now = Instant::now();
        state
            .core
            .answer(now, request, states, streams, &mut state.actions);
        let is_delayed = state.actions.is_empty();
        self.shared.perform(state, None);
        if is_delayed {
            self.shared.wake.notify_one();
        }
    }

    /// A lookup waits for something that does not answer, from now until the guard is dropped.
    pub fn begin_wait(&self) -> PaidWait {
        let now = Instant::now();
        self.shared.lock().core.budget().begin(now);
        PaidWait {
            shared: Arc::clone(&self.shared),
            since: now,
        }
    }

    /// `peer` has given a path that was asked for.
    pub fn record_given(&self, peer: PeerAddr) {
        self.shared.lock().core.record_given(Instant::now(), peer);
    }

    /// How long an answer of `peer` over UDP takes: the retransmission time of RFC 6298; `None`
    /// if it was not measured.
    pub fn round_trip(&self, peer: PeerAddr) -> Option<Duration> {
        self.shared.lock().core.round_trip(peer)
    }

    /// The instance that `peer` says it is: one machine may answer at two addresses.
    pub fn instance_of(&self, peer: PeerAddr) -> Option<u64> {
        self.shared.lock().core.instance_of(peer)
    }

    /// When the host of `peer` last answered over UDP.
    pub fn last_answer(&self, peer: PeerAddr) -> Option<Instant> {
        self.shared.lock().core.last_answer(peer)
    }

    /// Whether `peer` is configured, or gave a path within a week: its round trip is not paid.
    pub fn is_trusted_to_answer(&self, peer: PeerAddr) -> bool {
        let core = &self.shared.lock().core;
        core.is_trusted_to_answer(Instant::now(), peer)
    }

    /// Takes over new settings; sockets stay as they are.
    pub fn configure(&self, config: &Config) {
        let mut state = self.shared.lock();
        let settings = settings(config, &self.shared.sockets, self.shared.http_port);
        state.core.configure(settings);
        state.config = config.clone();
        state.networks.invalidate();
    }

    /// Peers that names and SRV records, or announcements, stand for at present.
    pub fn set_named(&self, named: &[SocketAddr], announced: &[SocketAddr]) {
        let [named, announced] = [named, announced].map(|peers| -> Vec<SocketAddr> {
            peers.iter().copied().map(protocol::canonical).collect()
        });
        let now = Instant::now();
        self.shared.lock().core.set_named(now, &named, &announced);
    }

    /// The random number that tells peers who we are.
    pub fn instance(&self) -> u64 {
        self.shared.lock().core.instance()
    }

    /// Who is known.
    pub fn peers(&self) -> Vec<PeerInfo> {
        self.shared.lock().core.peers(Instant::now())
    }

    /// Why this machine cannot ask for paths, in part or at all; empty if it can.
    pub fn warnings(&self) -> Vec<String> {
        self.shared.lock().warnings()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        Counters {
            discovery: *self.shared.lock().core.counters(),
            io: self.shared.io.read(),
        }
    }

    /// How often networks that we are on were interrupted, or an address of ours has gone: what
    /// is connected from before may lead nowhere.
    pub fn interruptions(&self) -> u64 {
        let mut state = self.shared.lock();
        state.refresh(false);
        state.networks.interruptions()
    }

    /// What the next process should know.
    pub fn save(&self) -> PersistedState {
        self.shared.lock().core.save(Instant::now())
    }

    /// Returns once the task has gone round its loop; false if it has ended.
    pub async fn ping(&self) -> bool {
        let (sender, answer) = oneshot::channel();
        {
            let mut state = self.shared.lock();
            if state.is_closed {
                return false;
            }
            state.pings.push(sender);
        }
        self.shared.wake.notify_one();
        answer.await.is_ok()
    }
}

/// A wait that the budget of the burst pays for; see [`protocol::WaitBudget`].
#[derive(Debug)]
pub struct PaidWait {
    shared: Arc<Shared>,
    since: Instant,
}

impl PaidWait {
    /// When the budget is used up, if nothing comes back meanwhile; none if it is. Look again then.
    pub fn ends_at(&self) -> Option<Instant> {
        let now = Instant::now();
        let left = self.shared.lock().core.budget().left(now);
        (!left.is_zero()).then(|| now + left)
    }

    /// The wait ended with the path: its time comes back.
    pub fn refund(self) {
        let now = Instant::now();
        self.shared
            .lock()
            .core
            .budget()
            .refund(now, self.since..now);
    }
}

impl Drop for PaidWait {
    fn drop(&mut self) {
        self.shared.lock().core.budget().end(Instant::now());
    }
}
