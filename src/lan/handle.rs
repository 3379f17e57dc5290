//! What the handle and the task share, and the handle.

use std::{
    collections::HashMap,
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
    sockets::{self, Socket},
};
use crate::{
    config::Config,
    format::StorePathHash,
    protocol::{
        self, Action, Discovery, Held, Origin, Packet, PeerAddr, WaitBudget,
        discovery::{PeerInfo, Saved},
    },
};

/// A peer asks which of some paths we have; [`LanHandle::answer`] answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    inner: protocol::Question,
    socket: usize,
}

impl Question {
    /// The paths it asks for, at least one.
    pub fn hashes(&self) -> &[StorePathHash] {
        self.inner.wanted.hashes()
    }

    /// Who asks.
    pub fn from(&self) -> SocketAddr {
        self.inner.from
    }
}

/// Asks the LAN and answers it. Cheap to clone; nothing here waits for the network.
#[derive(Debug, Clone)]
pub struct LanHandle {
    shared: Arc<Shared>,
}

impl LanHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Loopback has asked for something other than a path: neighbours may wake up already.
    pub fn stir(&self) {
        let state = &mut *self.shared.lock();
        state.refresh(false);
        if let Ok(id) = getrandom::u32() {
            state.core.stir(Instant::now(), id, &mut state.actions);
            self.shared.perform(state, None);
        }
    }

    /// A lookup waits for something that does not answer, from now until the guard is dropped.
    pub fn begin_wait(&self) -> PaidWait {
        let now = Instant::now();
        self.shared.lock().budget.begin(now);
        PaidWait {
            shared: Arc::clone(&self.shared),
            since: now,
        }
    }

    /// `peer` has given a path that was asked for.
    pub fn record_given(&self, peer: PeerAddr) {
        let _ = peer;
    }

    /// How long an answer of `peer` over UDP takes: the retransmission time of RFC 6298; `None`
    /// if it was not measured.
    pub fn round_trip(&self, peer: PeerAddr) -> Option<Duration> {
        let _ = peer;
        None
    }

    /// When the host of `peer` last answered over UDP.
    pub fn last_answer(&self, peer: PeerAddr) -> Option<Instant> {
        let _ = peer;
        None
    }

    /// Whether `peer` is configured, or gave a path within a week: its round trip is not paid.
    pub fn is_trusted_to_answer(&self, peer: PeerAddr) -> bool {
        let _ = peer;
        false
    }

    /// Asks all peers for `hash`.
    pub fn lookup(&self, hash: StorePathHash) -> Lookup {
        let (sender, events) = mpsc::channel(EVENTS);
        let state = &mut *self.shared.lock();
        if state.is_closed {
            return Lookup::new(events, None);
        }
        state.refresh(false);
        let before = state.core.deadline();
        // Without random ids anybody could answer: then nobody is asked.
        while let Ok(id) = getrandom::u32() {
            let now = Instant::now();
            if state
                .core
                .lookup(now, id, hash, &mut state.actions)
                .is_err()
            {
                continue;
            }
            state.lookups.insert(id, sender);
            self.shared.perform(state, None);
            let after = state.core.deadline();
            if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
                self.shared.wake.notify_one();
            }
            let active = state.lookups.contains_key(&id);
            let active = active.then(|| (id, Arc::downgrade(&self.shared)));
            return Lookup::new(events, active);
        }
        Lookup::new(events, None)
    }

    /// Answers a peer, soon or not at all; `held`: for each path whether it is here and shared.
    pub fn answer(&self, question: &Question, held: Held) {
        let io = &self.shared.io;
        let present = held.numbers().count();
        io.answered_present.add(present);
        io.answered_absent.add(held.count() - present);
        let inner = &question.inner;
        let (to, packet) = match inner.answer(!held.is_empty(), self.shared.http_port) {
            Some(packet) => (inner.from, packet),
            None => {
                let mut state = self.shared.lock();
                let reply = state.core.answer(Instant::now(), inner, held);
                drop(state);
                self.shared.wake.notify_one();
                match reply {
                    Some(Action::Reply { to, packet }) => (to, packet),
                    _ => return,
                }
            }
        };
        let socket = self.shared.sockets.get(question.socket);
        self.shared.answer_through(socket, to, &packet);
    }

    /// The summaries that are here: instance and generation of each.
    pub fn set_summaries(&self, summaries: &[(u64, u64)]) {
        self.shared.lock().core.set_summaries(summaries);
    }

    /// Takes over new settings; sockets stay as they are.
    pub fn configure(&self, config: &Config) {
        let mut state = self.shared.lock();
        let settings = settings(config, &self.shared.sockets, self.shared.http_port);
        state.core.configure(settings);
        state.config = config.clone();
        state.networks.invalidate();
    }

    /// Peers that names and SRV records, or announcements, stand for at present: asked directly.
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

    /// The generation of our store, told to peers.
    pub fn set_generation(&self, generation: u64) {
        self.shared.lock().core.set_generation(generation);
    }

    /// Who is known.
    pub fn peers(&self) -> Vec<PeerInfo> {
        self.shared.lock().core.peers(Instant::now())
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
    pub fn save(&self) -> Saved {
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

/// A wait that the budget of the burst pays for; see [`WaitBudget`].
#[derive(Debug)]
pub struct PaidWait {
    shared: Arc<Shared>,
    since: Instant,
}

impl PaidWait {
    /// When the budget is used up, if nothing comes back meanwhile. Look again then.
    pub fn ends_at(&self) -> Instant {
        let now = Instant::now();
        now + self.shared.lock().budget.left(now)
    }

    /// The wait ended with the path: its time comes back.
    pub fn refund(self) {
        let now = Instant::now();
        self.shared.lock().budget.refund(self.since, now);
    }
}

impl Drop for PaidWait {
    fn drop(&mut self) {
        self.shared.lock().budget.end(Instant::now());
    }
}

/// Sockets and state, behind one lock that is held only for pure work and sends that do
/// not wait.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) sockets: Vec<Socket>,
    pub(super) io: Atomics,
    /// Tells the task that a deadline came nearer or that it was pinged.
    pub(super) wake: Notify,
    http_port: u16,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) core: Discovery,
    budget: WaitBudget,
    pub(super) pings: Vec<oneshot::Sender<()>>,
    config: Config,
    networks: Networks,
    lookups: HashMap<u32, mpsc::Sender<Event>>,
    actions: Vec<Action>,
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
            budget: WaitBudget::default(),
            pings: Vec::new(),
            config,
            networks: Networks::new(interfaces, sockets::reach(&sockets)),
            lookups: HashMap::new(),
            actions: Vec::new(),
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

    pub(super) fn cancel(&self, id: u32) {
        let mut state = self.lock();
        state.core.cancel(id);
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

    /// Takes in a datagram that came in on `socket`.
    pub(super) fn receive(
        &self,
        state: &mut State,
        socket: usize,
        from: SocketAddr,
        bytes: &[u8],
        questions: &mpsc::Sender<Question>,
    ) {
        let from = protocol::canonical(from);
        let is_ours = |ip| state.networks.is_ours(ip);
        let origin = Origin {
            is_own: self
                .sockets
                .iter()
                .any(|one| one.may_have_sent(from, is_ours)),
            is_allowed: state.config.allows(from.ip()),
        };
        state
            .core
            .receive(Instant::now(), from, bytes, origin, &mut state.actions);
        self.perform(state, Some((socket, questions)));
    }

    /// Carries out what the core has decided; `incoming`: on what a datagram came in.
    fn perform(&self, state: &mut State, incoming: Option<(usize, &mpsc::Sender<Question>)>) {
        let mut actions = std::mem::take(&mut state.actions);
        for action in actions.drain(..) {
            match action {
                Action::Broadcast { packet, everywhere } => {
                    self.broadcast(state, &packet, everywhere);
                }
                Action::Send { to, packet } => {
                    self.send(sockets::for_peer(&self.sockets, to), to, &packet);
                }
                Action::Reply { to, packet } => {
                    let socket = match incoming {
                        Some((socket, _)) => self.sockets.get(socket),
                        None => sockets::for_peer(&self.sockets, to),
                    };
                    self.answer_through(socket, to, &packet);
                }
                Action::Question(inner) => {
                    let sent = incoming.is_some_and(|(socket, questions)| {
                        questions.try_send(Question { inner, socket }).is_ok()
                    });
                    if !sent {
                        self.io.questions_dropped.add(1);
                    }
                }
                Action::Candidate { lookup, peer } => {
                    state.tell(lookup, Event::Candidate(peer));
                }
                Action::Finished { lookup, outcome } => {
                    state.tell(lookup, Event::Finished(outcome));
                    state.lookups.remove(&lookup);
                }
            }
        }
        state.actions = actions;
    }

    /// As [`Self::send`], if there is room beside our own questions.
    fn answer_through(&self, socket: Option<&Socket>, to: SocketAddr, packet: &Packet) {
        if socket.is_some_and(|socket| !socket.has_room_for_answers()) {
            self.io.send_full.add(1);
        } else {
            self.send(socket, to, packet);
        }
    }

    fn send(&self, socket: Option<&Socket>, to: SocketAddr, packet: &Packet) {
        match socket {
            Some(socket) => {
                self.count(socket.send(to, packet));
            }
            None => self.io.send_refused.add(1),
        }
    }

    /// Sends to every network; when one is gone, also to those that came meanwhile.
    fn broadcast(&self, state: &mut State, packet: &Packet, everywhere: bool) {
        let tried: Vec<_> = state.networks.targets(everywhere).copied().collect();
        let port = state.core.settings().port;
        let send = |network| match sockets::for_network(&self.sockets, network) {
            Some(socket) => self.count(socket.broadcast(network, port, packet)),
            None => None,
        };
        let faults: Vec<_> = tried.iter().filter_map(send).collect();
        if faults.contains(&Fault::Network) && state.refresh(true) {
            let fresh = state.networks.targets(everywhere);
            fresh
                .filter(|network| !tried.contains(network))
                .filter_map(send)
                .count();
        }
    }

    fn count(&self, sent: io::Result<()>) -> Option<Fault> {
        let fault = sent.err().map(|error| Fault::of(&error));
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
        let change = self.networks.refresh(Instant::now(), suspect, allow);
        if let Some(change) = change {
            self.core.set_networks(change.any, change.new);
        }
        change.is_some()
    }

    /// A receiver that is gone misses the event; there is room for all that one gets.
    fn tell(&self, lookup: u32, event: Event) {
        if let Some(sender) = self.lookups.get(&lookup) {
            sender.try_send(event).ok();
        }
    }
}
