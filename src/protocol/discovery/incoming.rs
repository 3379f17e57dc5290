//! What each datagram does to the state.

use std::{net::SocketAddr, time::Instant};

use super::{
    Action, Discovery, HELLO_MEMORY, Origin, Question, Reject,
    lookups::Asked,
    peers::{Sign, http_addr},
};
use crate::{
    format::StorePathHash,
    protocol::{
        PeerAddr,
        peer_addr::canonical,
        wire::{About, Datagram},
    },
};

/// The datagram, if its sender may be listened to and it is one.
fn admit(from: SocketAddr, bytes: &[u8], origin: Origin) -> Result<Datagram, Reject> {
    if !origin.is_allowed {
        return Err(Reject::NotAllowed);
    }
    PeerAddr::new(from).map_err(|_| Reject::Source)?;
    Ok(Datagram::parse(bytes)?)
}

impl Discovery {
    /// Takes in one datagram.
    pub fn receive(
        &mut self,
        now: Instant,
        from: SocketAddr,
        bytes: &[u8],
        origin: Origin,
        actions: &mut Vec<Action>,
    ) {
        let from = canonical(from);
        self.counters.received += 1;
        match admit(from, bytes, origin) {
            Ok(datagram) => self.take(now, from, datagram, origin.is_own, actions),
            Err(reject) => self.counters.reject(reject),
        }
    }

    fn take(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagram: Datagram,
        is_own: bool,
        actions: &mut Vec<Action>,
    ) {
        match datagram {
            Datagram::Request { id, hash } => {
                if is_own && self.lookups.hash_of(id) == Some(hash) {
                    return self.note_echo(from, is_own);
                }
                self.take_request(now, Question { from, id, hash }, is_own, actions);
            }
            Datagram::Hello { about, .. } | Datagram::Here { about, .. }
                if about.instance == self.instance =>
            {
                self.note_echo(from, is_own);
            }
            Datagram::Hello { id, about } => self.take_hello(now, from, id, about, actions),
            _ if is_own => self.note_echo(from, is_own),
            Datagram::Response {
                id,
                http_port,
                hash,
            } => {
                self.take_response(now, from, id, http_port, hash, actions);
            }
            Datagram::Absent { id } => self.take_absent(now, from, id, actions),
            Datagram::Here { id, about } => self.take_here(now, from, id, about),
        }
    }

    /// Our own words. If they were sent to a configured peer, that is this machine.
    fn note_echo(&mut self, from: SocketAddr, is_own: bool) {
        self.counters.echoes += 1;
        if is_own {
            self.peers.note_myself(from);
        }
    }

    fn take_request(
        &mut self,
        now: Instant,
        question: Question,
        is_own: bool,
        actions: &mut Vec<Action>,
    ) {
        let from = question.from;
        if !self.sources.take(now, from.ip()) {
            self.counters.rate_limited += 1;
            return;
        }
        self.counters.requests += 1;
        let hears_us = from.port() == self.settings.port || self.peers.is_static(from);
        if hears_us && !is_own {
            self.learn(now, from, Sign::Request);
        }
        actions.push(Action::Question(question));
    }

    fn take_hello(
        &mut self,
        now: Instant,
        from: SocketAddr,
        id: u32,
        about: About,
        actions: &mut Vec<Action>,
    ) {
        if !self.sources.take(now, from.ip()) {
            self.counters.rate_limited += 1;
            return;
        }
        let slot = self.learn(now, from, Sign::Hello(about));
        if slot.is_some_and(|slot| !self.peers.answers_hello(slot, id)) {
            self.counters.duplicates += 1;
            return;
        }
        self.counters.hellos += 1;
        let about = self.about();
        let packet = Datagram::Here { id, about }.encode();
        actions.push(Action::Reply { to: from, packet });
    }

    fn take_here(&mut self, now: Instant, from: SocketAddr, id: u32, about: About) {
        let is_answer = self
            .hello
            .is_some_and(|(hello, at)| hello == id && now < at + HELLO_MEMORY);
        if !is_answer {
            self.counters.reject(Reject::UnknownId);
            return;
        }
        self.counters.heres += 1;
        self.learn(now, from, Sign::Here(about));
    }

    fn take_response(
        &mut self,
        now: Instant,
        from: SocketAddr,
        id: u32,
        http_port: u16,
        hash: StorePathHash,
        actions: &mut Vec<Action>,
    ) {
        if self.lookups.hash_of(id).is_some_and(|asked| asked != hash) {
            self.counters.reject(Reject::OtherHash);
            return;
        }
        let Some(slot) = self.learn_answer(now, from, id, Sign::Response) else {
            return;
        };
        let Asked::Now(lookup) = self.lookups.asked(id) else {
            return;
        };
        let Some(peer) = http_addr(from, http_port).filter(|_| lookup.add_candidate(from)) else {
            self.note_duplicate(slot);
            return;
        };
        if let Some(slot) = slot {
            lookup.answered.insert(slot);
            self.peers.note_answer(slot, Some(peer));
        }
        self.counters.responses += 1;
        actions.push(Action::Candidate { lookup: id, peer });
        self.finish_if_over(now, id, actions);
    }

    fn take_absent(&mut self, now: Instant, from: SocketAddr, id: u32, actions: &mut Vec<Action>) {
        let Some(slot) = self.learn_answer(now, from, id, Sign::Absent) else {
            return;
        };
        let Asked::Now(lookup) = self.lookups.asked(id) else {
            return;
        };
        if let Some(slot) = slot {
            if lookup.answered.contains(slot) {
                self.note_duplicate(Some(slot));
                return;
            }
            lookup.answered.insert(slot);
            self.peers.note_answer(slot, None);
        }
        lookup.absent = lookup.absent.saturating_add(1);
        self.counters.absents += 1;
        self.finish_if_over(now, id, actions);
    }

    /// Learns from an answer that its sender has our random id. `None` if it has not, or is
    /// late; otherwise its slot, if it has one.
    fn learn_answer(
        &mut self,
        now: Instant,
        from: SocketAddr,
        id: u32,
        sign: Sign,
    ) -> Option<Option<usize>> {
        match self.lookups.asked(id) {
            Asked::Now(_) => Some(self.learn(now, from, sign)),
            Asked::Before => {
                self.counters.late += 1;
                self.learn(now, from, sign);
                None
            }
            Asked::Never => {
                self.counters.reject(Reject::UnknownId);
                None
            }
        }
    }

    fn learn(&mut self, now: Instant, from: SocketAddr, sign: Sign) -> Option<usize> {
        let Some(learned) = self.peers.learn(now, from, sign) else {
            self.counters.peers_refused += 1;
            return None;
        };
        if learned.is_new {
            self.lookups.forget_slot(learned.slot);
        }
        Some(learned.slot)
    }

    fn note_duplicate(&mut self, slot: Option<usize>) {
        self.counters.duplicates += 1;
        if let Some(slot) = slot {
            self.peers.note_double(slot);
        }
    }
}
