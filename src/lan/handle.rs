//! What the handle and the task share, and the handle.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc, oneshot};

use super::{
    Counters, Lookup,
    counters::Atomics,
    errnos::Fault,
    lookup::{EVENTS, Event},
    networks::{ListInterfaces, Networks},
    settings,
    sockets::{self, Received, Socket},
    suspension::Suspension,
};
use crate::{
    config::Config,
    format::StorePathHash,
    protocol::{
        self, Discovery, Network, PathState, PeerAddr,
        datagram::Packet,
        discovery::{
            Action, Arrival, LookupId, PeerInfo, PeerRequest, PersistedState, ReturnPath, Scope,
        },
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
        self.shared.lock().core.set_named(&named, &announced);
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
    /// When the budget is used up, if nothing comes back meanwhile. Look again then.
    pub fn ends_at(&self) -> Instant {
        let now = Instant::now();
        now + self.shared.lock().core.budget().left(now)
    }

    /// The wait ended with the path: its time comes back.
    pub fn refund(self) {
        let now = Instant::now();
        self.shared.lock().core.budget().refund(self.since, now);
    }
}

impl Drop for PaidWait {
    fn drop(&mut self) {
        self.shared.lock().core.budget().end(Instant::now());
    }
}

/// Sockets and state, behind one lock that is held only for pure work and sends that do
/// not wait.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) sockets: Vec<Socket>,
    pub(super) io: Atomics,
    /// Tells the task that there is something to do, or that it was pinged.
    pub(super) wake: Notify,
    http_port: u16,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) core: Discovery,
    pub(super) pings: Vec<oneshot::Sender<()>>,
    config: Config,
    networks: Networks,
    suspension: Suspension,
    lookups: HashMap<LookupId, mpsc::Sender<Event>>,
    actions: Vec<Action>,
    /// Why the last broadcast on an interface was not sent, by the interface's name and how it
    /// was sent: often a firewall refuses one way alone.
    unsent: BTreeMap<(String, &'static str), String>,
    is_closed: bool,
}

impl Shared {
    pub(super) fn new(
        sockets: Vec<Socket>,
        config: Config,
        core: Discovery,
        interfaces: ListInterfaces,
        http_port: u16,
    ) -> Self {
        let state = State {
            core,
            pings: Vec::new(),
            config,
            networks: Networks::new(interfaces, sockets::reach(&sockets)),
            suspension: Suspension::default(),
            lookups: HashMap::new(),
            actions: Vec::new(),
            unsent: BTreeMap::new(),
            is_closed: false,
        };
        Self {
            sockets,
            io: Atomics::default(),
            wake: Notify::new(),
            http_port,
            state: Mutex::new(state),
        }
    }

    /// A panic elsewhere leaves the state as it was between two steps, which is usable.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn cancel(&self, id: LookupId) {
        let mut state = self.lock();
        state.core.cancel(Instant::now(), id);
        state.lookups.remove(&id);
    }

    /// Ends all lookups, and those that come.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.lookups.clear();
        state.pings.clear();
    }

    pub(super) fn expire(&self, state: &mut State) {
        state.core.expire(Instant::now(), &mut state.actions);
        self.perform(state, None);
    }

    /// Takes in a datagram that came in on socket number `socket`.
    pub(super) fn receive(
        &self,
        state: &mut State,
        socket: usize,
        received: &Received,
        bytes: &[u8],
        requests: &mpsc::Sender<PeerRequest>,
    ) {
        let from = protocol::canonical(received.from);
        let (to, local) = (received.to, received.local);
        if to != local {
            // Whether it is from its link is asked of the networks, which nothing has listed yet
            // on a host that only answers.
            state.refresh(false);
        }
        let is_ours = |ip| state.networks.is_ours(ip);
        let arrival = Arrival {
            from,
            path: ReturnPath {
                socket,
                interface: received.interface,
                local: local.or(to.filter(|&to| is_ours(to))),
            },
            is_broadcast: to.is_some_and(|to| local != Some(to) && !is_ours(to)),
            is_own: self
                .sockets
                .iter()
                .any(|one| one.may_have_sent(from, is_ours)),
            is_allowed: state.config.allows(from.ip()),
            is_on_link: state.networks.is_on_link(from.ip(), received.interface),
        };
        state
            .core
            .receive(Instant::now(), &arrival, bytes, &mut state.actions);
        self.perform(state, Some(requests));
    }

    /// Carries out what the core has decided.
    fn perform(&self, state: &mut State, requests: Option<&mpsc::Sender<PeerRequest>>) {
        let mut actions = std::mem::take(&mut state.actions);
        for action in actions.drain(..) {
            match action {
                Action::Broadcast { packet, scope } => self.broadcast(state, &packet, scope),
                Action::Send { to, packet } => {
                    self.send(sockets::for_peer(&self.sockets, to), to, None, &packet);
                }
                Action::Reply { to, path, packet } => self.reply(to, &path, &packet),
                Action::Request(request) => {
                    let sent = requests.is_some_and(|it| it.try_send(request).is_ok());
                    if !sent {
                        self.io.requests_dropped.add(1);
                    }
                }
                Action::Candidate { lookup, peer } => {
                    state.tell(lookup, Event::Candidate(peer));
                }
                Action::Finished { lookup, outcome } => {
                    // The core may end a lookup before its owner is known here.
                    state.tell(lookup, Event::Finished(outcome));
                    state.lookups.remove(&lookup);
                }
            }
        }
        state.actions = actions;
    }

    /// Answers from the address that was asked, if there is room beside our own asks.
    fn reply(&self, to: SocketAddr, path: &ReturnPath, packet: &Packet) {
        let socket = self.sockets.get(path.socket);
        if socket.is_some_and(|socket| !socket.has_room_for_answers()) {
            self.io.send_full.add(1);
        } else {
            self.send(socket, to, Some(path), packet);
        }
    }

    fn send(
        &self,
        socket: Option<&Socket>,
        to: SocketAddr,
        path: Option<&ReturnPath>,
        packet: &Packet,
    ) {
        match (socket, path.and_then(|path| path.local)) {
            (Some(socket), Some(local)) => {
                // An address that is gone, or that cannot be sent from: as the system likes.
                let sent = socket.send_from(local, to, packet);
                self.count(&sent.or_else(|_| socket.send(to, packet)));
            }
            (Some(socket), None) => {
                self.count(&socket.send(to, packet));
            }
            (None, _) => self.io.send_refused.add(1),
        }
    }

    /// Sends to the networks of `scope`; when one is gone, also to those that came meanwhile.
    fn broadcast(&self, state: &mut State, packet: &Packet, scope: Scope) {
        let tried: Vec<Network> = state.networks.targets(scope).copied().collect();
        let mut is_gone = false;
        for network in &tried {
            is_gone |= self.broadcast_on(state, network, packet) == Some(Fault::Network);
        }
        if is_gone && state.refresh(true) {
            let fresh: Vec<Network> = state.networks.targets(scope).copied().collect();
            for network in fresh.iter().filter(|network| !tried.contains(network)) {
                self.broadcast_on(state, network, packet);
            }
        }
    }

    fn broadcast_on(&self, state: &mut State, network: &Network, packet: &Packet) -> Option<Fault> {
        let socket = sockets::for_network(&self.sockets, network)?;
        let port = state.core.settings().port;
        let sent = socket.broadcast(network, port, packet);
        let fault = self.count(&sent);
        let name = state.networks.name_of(network.interface());
        let how = match network {
            Network::Broadcast { .. } => "IPv4 broadcast",
            Network::Link { .. } => "IPv6 multicast",
        };
        match sent {
            Ok(()) => {
                state.unsent.remove(&(name, how));
            }
            Err(error) if fault != Some(Fault::Full) => {
                let before = state.unsent.insert((name.clone(), how), error.to_string());
                if before.is_none() {
                    log::warn!(
                        interface = name.as_str(), reason:% = error;
                        "cannot ask for paths on {name} by {how}: {error}; a firewall or VPN of this machine may refuse it"
                    );
                }
            }
            Err(_) => {}
        }
        fault
    }

    fn count(&self, sent: &io::Result<()>) -> Option<Fault> {
        let fault = sent.as_ref().err().map(Fault::of);
        let count = match fault {
            None => &self.io.sent,
            Some(Fault::Full) => &self.io.send_full,
            Some(Fault::Network) => &self.io.send_network,
            Some(Fault::Refused | Fault::Broken) => &self.io.send_refused,
        };
        count.add(1);
        fault
    }
}

impl State {
    /// Brings the list of networks up to date; true if it was made anew.
    fn refresh(&mut self, suspect: bool) -> bool {
        let allowed = &self.config.interfaces;
        let broadcast = self.config.discovery.broadcast;
        let allow = |name: &str| broadcast && allowed.allow(name);
        let was_suspended = self.suspension.is_over();
        if was_suspended {
            self.networks.note_suspension();
        }
        let is_new = self.networks.refresh(Instant::now(), suspect, allow);
        if let Some(is_new) = is_new {
            let names = self.networks.names();
            self.unsent.retain(|(name, _), _| names.contains(name));
            self.core.set_links(self.networks.links(), is_new);
        }
        is_new.is_some()
    }

    fn warnings(&self) -> Vec<String> {
        let unsent = self.unsent.iter();
        let unsent = unsent
            .map(|((name, how), why)| format!("cannot ask for paths on {name} by {how}: {why}"));
        let broadcast = self.config.discovery.broadcast;
        let no_network = self.networks.warning().filter(|_| broadcast);
        no_network.into_iter().chain(unsent).collect()
    }

    /// A receiver that is gone misses the event; there is room for all that one gets.
    fn tell(&self, lookup: LookupId, event: Event) {
        if let Some(sender) = self.lookups.get(&lookup) {
            sender.try_send(event).ok();
        }
    }
}
