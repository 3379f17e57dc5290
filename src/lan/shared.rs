//! What the handle and the task share: the sockets, and the state behind one lock. Carries out
//! what the state machine decides.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::{Notify, mpsc, oneshot};

use super::{
    counters::Atomics,
    errnos::Fault,
    lookup::Event,
    networks::{ListInterfaces, Networks},
    sockets::{self, Received, Socket},
    suspension::Suspension,
};
use crate::{
    config::Config,
    protocol::{
        self, Discovery, Network,
        datagram::Packet,
        discovery::{Action, Arrival, LookupId, PeerRequest, ReturnPath, Scope},
    },
};

/// Sockets and state, behind one lock that is held only for pure work and sends that do
/// not wait.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) sockets: Vec<Socket>,
    pub(super) io: Atomics,
    /// Tells the task that there is something to do, or that it was pinged.
    pub(super) wake: Notify,
    pub(super) http_port: u16,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) core: Discovery,
    pub(super) pings: Vec<oneshot::Sender<()>>,
    pub(super) config: Config,
    pub(super) networks: Networks,
    suspension: Suspension,
    pub(super) lookups: HashMap<LookupId, mpsc::Sender<Event>>,
    pub(super) actions: Vec<Action>,
    /// Why the last broadcast on an interface was not sent, by the interface's name and how it
    /// was sent: often a firewall refuses one way alone.
    unsent: BTreeMap<(String, &'static str), String>,
    pub(super) is_closed: bool,
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

    pub(super) fn reject_candidate(&self, id: LookupId) {
        let state = &mut *self.lock();
        state
            .core
            .reject_candidate(Instant::now(), id, &mut state.actions);
        self.perform(state, None);
        self.wake.notify_one();
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
    pub(super) fn perform(&self, state: &mut State, requests: Option<&mpsc::Sender<PeerRequest>>) {
        // The two lists change places, so that none is allocated for each datagram.
        let mut actions = std::mem::take(&mut state.actions);
        while !actions.is_empty() {
            for action in actions.drain(..) {
                self.perform_one(state, action, requests);
            }
            std::mem::swap(&mut actions, &mut state.actions);
        }
        state.actions = actions;
    }

    /// What follows from it is in the actions of the state.
    fn perform_one(
        &self,
        state: &mut State,
        action: Action,
        requests: Option<&mpsc::Sender<PeerRequest>>,
    ) {
        match action {
            Action::Broadcast { packet, scope } => self.broadcast(state, &packet, scope),
            Action::Send { to, packet } => {
                let socket = sockets::for_peer(&self.sockets, to);
                if self.send(socket, to, None, &packet) == Some(Fault::Network) {
                    let (now, actions) = (Instant::now(), &mut state.actions);
                    state.core.note_unreachable(now, to, actions);
                }
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
    ) -> Option<Fault> {
        match (socket, path.and_then(|path| path.local)) {
            (Some(socket), Some(local)) => {
                // An address that is gone, or that cannot be sent from: as the system likes.
                let sent = socket.send_from(local, to, packet);
                self.count(&sent.or_else(|_| socket.send(to, packet)))
            }
            (Some(socket), None) => self.count(&socket.send(to, packet)),
            (None, _) => {
                self.io.send_refused.add(1);
                Some(Fault::Network)
            }
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
            Err(error) if fault == Some(Fault::Refused) => {
                let before = state.unsent.insert((name.clone(), how), error.to_string());
                if before.is_none() {
                    log::warn!(
                        interface = name.as_str(), reason:% = error;
                        "cannot ask for paths on {name} by {how}: {error}; a firewall or VPN of this machine may refuse it"
                    );
                }
            }
            // No room for a moment, or the interface has just gone: the next listing shows it.
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
    pub(super) fn refresh(&mut self, suspect: bool) -> bool {
        let allowed = &self.config.interfaces;
        let broadcast = self.config.discovery.broadcast;
        self.networks.set_broadcasting(broadcast);
        let allow = |name: &str| allowed.allow(name);
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

    pub(super) fn warnings(&self) -> Vec<String> {
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
