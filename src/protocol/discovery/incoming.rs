//! What comes in: answers to our asks, and asks of others.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    Action, Arrival, Discovery, LookupId, PeerRequest, Reject,
    asks::Target,
    events::RequestForm,
    peer::{FREE_WAIT, http_address},
    state_machine::{ASK_SPREAD, DISCOVERY_SPREAD, MAX_UNICAST, spread},
};
use crate::{
    format::StorePathHash,
    protocol::{
        PathState,
        datagram::{Answer, Ask, Datagram, Magnitude},
    },
};

/// A shorter delay is not worth a timer.
const LEAST_DELAY: Duration = Duration::from_millis(1);

/// On a large LAN about so many peers answer a broadcast that only asks who is there.
const DISCOVERY_ANSWERS: u32 = 384;

impl Discovery {
    /// Takes in a datagram.
    pub fn receive(
        &mut self,
        now: Instant,
        arrival: &Arrival,
        bytes: &[u8],
        actions: &mut Vec<Action>,
    ) {
        self.counters.received += 1;
        if !arrival.is_allowed {
            return self.counters.reject(Reject::NotAllowed);
        }
        if http_address(arrival.from, arrival.from.port()).is_none() {
            return self.counters.reject(Reject::Source);
        }
        match Datagram::parse(bytes) {
            Ok(Datagram::Ask(ask)) => self.take_ask(now, arrival, ask, actions),
            Ok(Datagram::Answer(answer)) => self.take_answer(now, arrival, &answer, actions),
            Ok(Datagram::Request { id, hash }) => {
                if self.is_taken(now, arrival, 1) {
                    self.counters.old_requests += 1;
                    actions.push(Action::Request(PeerRequest {
                        from: arrival.from,
                        hashes: vec![hash],
                        path: arrival.path,
                        id,
                        form: RequestForm::Old,
                    }));
                }
            }
            Ok(Datagram::Response {
                id,
                http_port,
                hash,
            }) => self.take_response(now, arrival, (id, http_port, hash), actions),
            Err(error) => self.counters.reject(error.into()),
        }
    }

    /// Whether a question is answered: not our own, from this link if it was broadcast, and not
    /// more than there is time for.
    fn is_taken(&mut self, now: Instant, arrival: &Arrival, count: u32) -> bool {
        if arrival.is_own {
            self.counters.echoes += 1;
            return false;
        }
        let is_near = arrival.is_on_link && arrival.from.port() == self.settings.port;
        if arrival.is_broadcast && !is_near {
            self.counters.reject(Reject::Broadcast);
            return false;
        }
        let is_live = self.is_live(arrival.from.ip());
        let is_admitted = self.ask_limit.admit(now, arrival.from.ip(), is_live, count);
        self.counters.rate_limited += u64::from(!is_admitted);
        is_admitted
    }

    fn take_ask(&mut self, now: Instant, arrival: &Arrival, ask: Ask, actions: &mut Vec<Action>) {
        if ask.sender.instance == self.instance {
            return self.note_echo(now, ask.id, actions);
        }
        if !self.is_taken(now, arrival, ask.hashes.len() as u32) {
            return;
        }
        self.counters.asks += 1;
        let ip = arrival.from.ip();
        let is_for_all = arrival.is_broadcast && !ask.only_if_any;
        if is_for_all && !self.broadcasts_answered.admit(now, ip) {
            // Someone may ask in this peer's name to keep it from being answered.
            self.counters.rate_limited += 1;
            self.greet(now, arrival.from, false, actions);
            return;
        }
        self.note_asker(now, arrival.from, actions);
        let request = PeerRequest {
            from: arrival.from,
            path: arrival.path,
            id: ask.id,
            form: RequestForm::Ask {
                is_broadcast: arrival.is_broadcast,
                only_if_any: ask.only_if_any,
                peers: ask.peers,
            },
            hashes: ask.hashes,
        };
        if request.hashes.is_empty() {
            self.answer(now, &request, &[], 0, actions);
        } else {
            actions.push(Action::Request(request));
        }
    }

    /// Answers a peer; `states`: one for each of its hashes. `streams`: the NARs that are sent
    /// to peers now.
    pub fn answer(
        &mut self,
        now: Instant,
        request: &PeerRequest,
        states: &[PathState],
        streams: usize,
        actions: &mut Vec<Action>,
    ) {
        let has_any = states.iter().any(|&state| state != PathState::Absent);
        let (id, sender) = (request.id, self.sender());
        let (packet, delay) = match request.form {
            RequestForm::Old => {
                let (Some(&hash), Some(PathState::Present)) =
                    (request.hashes.first(), states.first())
                else {
                    return;
                };
                let http_port = sender.http_port;
                let response = Datagram::Response {
                    id,
                    http_port,
                    hash,
                };
                (response.encode(), Duration::ZERO)
            }
            RequestForm::Ask {
                is_broadcast,
                only_if_any,
                peers,
            } => {
                let is_thinned = is_broadcast && !only_if_any && !self.is_chosen(id, peers);
                if only_if_any && !has_any || is_thinned {
                    self.counters.left_out += 1;
                    return;
                }
                let answer = Answer {
                    id,
                    sender,
                    streams: Magnitude::of(streams),
                    states: states.to_vec(),
                };
                let delay = match (is_broadcast, only_if_any) {
                    (false, _) => Duration::ZERO,
                    (true, true) => spread(ASK_SPREAD, peers),
                    (true, false) => spread(DISCOVERY_SPREAD, peers),
                };
                (Datagram::Answer(answer).encode(), delay)
            }
        };
        let reply = Action::Reply {
            to: request.from,
            path: request.path,
            packet,
        };
        let delay = delay.mul_f64(self.part(id));
        let reply = if delay < LEAST_DELAY {
            Some(reply)
        } else {
            self.delayed.push(now + delay, reply)
        };
        actions.extend(reply);
    }

    /// A number from 0 to 1 that differs from peer to peer and from ask to ask.
    fn part(&self, id: u32) -> f64 {
        let mixed = (self.instance ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        f64::from((mixed >> 32) as u32) / f64::from(u32::MAX)
    }

    /// Whether this peer is one of those that answer a broadcast which only asks who is there.
    fn is_chosen(&self, id: u32, peers: Magnitude) -> bool {
        let known = peers.at_most().max(self.live_peers().at_most());
        let share = f64::from(DISCOVERY_ANSWERS) / f64::from(known.max(1));
        known as usize <= 2 * MAX_UNICAST || self.part(!id) < share
    }

    fn take_answer(
        &mut self,
        now: Instant,
        arrival: &Arrival,
        answer: &Answer,
        actions: &mut Vec<Action>,
    ) {
        let Some(sent) = self.asks.get(answer.id).cloned() else {
            return self.counters.reject(Reject::UnknownId);
        };
        if answer.states.len() != sent.lookups.len() {
            return self.counters.reject(Reject::Count);
        }
        self.counters.answers += 1;
        self.greetings.note_answer(arrival.from.ip());
        let took = now.saturating_duration_since(sent.at);
        let is_at = |slot: &usize| {
            let peer = self.peers.get(*slot);
            peer.is_some_and(|peer| peer.address == arrival.from)
        };
        let by_asked = match sent.target {
            Target::Peer(slot) => Some(slot).filter(is_at),
            _ => None,
        };
        let is_broadcast = sent.target == Target::Broadcast;
        let interface = arrival.path.interface;
        self.note_heard_on(now, interface, is_broadcast.then_some(took));
        let slot = by_asked.or_else(|| self.place(now, arrival.from));
        let mut returned = false;
        if let Some(peer) = slot.and_then(|slot| self.peers.get_mut(slot)) {
            returned = peer.is_silent || peer.sender.is_none();
            peer.is_silent = false;
            peer.heard = Some(now);
            peer.sender = Some(answer.sender);
            peer.interface = interface;
            // A broadcast tells it roughly, which is better than nothing.
            if by_asked.is_some() || peer.measured_timeout().is_none() {
                peer.measure(took);
            }
            if let Some((last, _, is_answered)) = &mut peer.last_ask
                && *last == answer.id
            {
                *is_answered = true;
            }
        }
        let is_unicast = by_asked.is_some() || sent.target == Target::Address;
        if let Some(slot) = slot.filter(|_| is_unicast) {
            let is_new = self.peers.set_live(slot);
            returned |= is_new;
            if is_new && self.peers.live() == MAX_UNICAST + 1 {
                // What is looked up goes out to everyone now.
                for lookup in self.lookups.values_mut() {
                    lookup.check_at = Some(now);
                }
            }
        }
        if by_asked.is_some() && took <= FREE_WAIT {
            self.refund_lost(now, slot, &sent.lookups);
        }
        let http = http_address(arrival.from, answer.sender.http_port);
        for (&id, &state) in sent.lookups.iter().zip(&answer.states) {
            self.take_state(now, (id, slot, http), state, actions);
        }
        if let Some(slot) = slot {
            if returned {
                self.catch_up(now, slot);
            }
            self.confirm(now, slot, actions);
            self.flush(now, slot, actions);
        }
    }

    /// A near peer has answered: if lookups waited for it alone, datagrams were lost, which is
    /// not its fault. The time comes back.
    fn refund_lost(&mut self, now: Instant, slot: Option<usize>, lookups: &[LookupId]) {
        for lookup in lookups.iter().filter_map(|id| self.lookups.get(id)) {
            let is_only_one = lookup.waiting.iter().all(|other| Some(other) == slot);
            if let Some(since) = lookup.paid_since.filter(|_| is_only_one) {
                self.burst.budget.refund(now, since..now);
            }
        }
    }

    /// What one peer says of one path.
    fn take_state(
        &mut self,
        now: Instant,
        (id, slot, http): (LookupId, Option<usize>, Option<crate::protocol::PeerAddr>),
        state: PathState,
        actions: &mut Vec<Action>,
    ) {
        let Some(lookup) = self.lookups.get_mut(&id) else {
            self.counters.late += 1;
            return;
        };
        if state == PathState::Undecided {
            lookup.is_undecided = true;
            return;
        }
        let is_present = state == PathState::Present;
        if let Some(peer) = http.filter(|_| is_present)
            && lookup.add_candidate(now, peer)
        {
            self.burst.credit(now, peer, lookup.paid_since);
            let lookup = id;
            actions.push(Action::Candidate { lookup, peer });
        }
        let Some(lookup) = self.lookups.get_mut(&id) else {
            return;
        };
        if let Some(slot) = slot {
            let first_paid = lookup.first_paid;
            let is_first = lookup.take_answer(slot, is_present);
            if let Some(peer) = self.peers.get_mut(slot).filter(|_| is_first) {
                if let Some(since) = first_paid.filter(|_| is_present) {
                    peer.owe(since..now);
                }
                let count = if is_present {
                    &mut peer.present
                } else {
                    &mut peer.absent
                };
                *count += 1;
            }
            self.check(now, id, actions);
        }
    }

    /// A peer that broadcasts alone have reached so far is asked by unicast: only then it is known
    /// that it hears us.
    fn confirm(&mut self, now: Instant, slot: usize, actions: &mut Vec<Action>) {
        let Some(peer) = self.peers.get(slot) else {
            return;
        };
        if !peer.is_live && peer.queue.is_empty() && peer.waves.is_empty() {
            let address = peer.address;
            self.greet(now, address, true, actions);
        }
    }

    fn take_response(
        &mut self,
        now: Instant,
        arrival: &Arrival,
        (id, http_port, hash): (u32, u16, StorePathHash),
        actions: &mut Vec<Action>,
    ) {
        let Some(sent) = self.asks.get(id).cloned() else {
            return self.counters.reject(Reject::UnknownId);
        };
        if arrival.is_own {
            self.counters.echoes += 1;
            return;
        }
        let &[lookup] = &sent.lookups[..] else {
            return self.counters.reject(Reject::UnknownId);
        };
        let is_right = |asked: StorePathHash| asked == hash;
        let asked = self.lookups.get(&lookup).map(|lookup| lookup.hash);
        if asked.is_some_and(|asked| !is_right(asked)) {
            return self.counters.reject(Reject::OtherHash);
        }
        self.counters.responses += 1;
        self.note_heard_on(now, arrival.path.interface, None);
        let slot = self.place(now, arrival.from);
        if let Some(peer) = slot.and_then(|slot| self.peers.get_mut(slot)) {
            peer.heard_old = Some(now);
            peer.interface = arrival.path.interface;
            if peer.sender.is_none() {
                peer.heard = Some(now);
                peer.is_silent = false;
            }
        }
        let is_old = |slot| {
            self.peers
                .get(slot)
                .is_some_and(|peer| peer.sender.is_none())
        };
        if slot.is_some_and(is_old) {
            // A new peer whose answers were lost so far responds as well.
            self.greet(now, arrival.from, true, actions);
        }
        let http = http_address(arrival.from, http_port);
        self.take_state(now, (lookup, slot, http), PathState::Present, actions);
    }

    /// The slot of a peer that has answered; none if no more are taken.
    fn place(&mut self, now: Instant, address: SocketAddr) -> Option<usize> {
        if let Some(slot) = self.peers.find(address) {
            return Some(slot);
        }
        let is_admitted = self.burst.is_discovering(now) || self.new_peers.admit(now, address.ip());
        let slot = is_admitted.then(|| self.peers.insert(address)).flatten();
        if slot.is_none() {
            self.turned_away = Some(now);
            self.counters.peers_refused += 1;
        }
        slot
    }

    /// We hear an ask of our own: a broadcast, or the address that it went to is ours.
    fn note_echo(&mut self, now: Instant, id: u32, actions: &mut Vec<Action>) {
        self.counters.echoes += 1;
        let Some(Target::Peer(slot)) = self.asks.get(id).map(|sent| sent.target) else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.is_myself = true;
            peer.queue.clear();
            peer.waves.clear();
        }
        let waits = self.lookups.iter_mut();
        let waited: Vec<LookupId> = waits
            .filter_map(|(&id, lookup)| lookup.give_up_on_myself(slot).then_some(id))
            .collect();
        for id in waited {
            self.check(now, id, actions);
        }
    }
}
