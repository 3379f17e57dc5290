//! What each datagram does to the state.

use std::{net::SocketAddr, time::Instant};

use super::{
    Action, Discovery, HELLO_MEMORY, Origin, Question, Reject, Wanted,
    asks::Asked,
    peer::{Sign, http_addr},
    slots::MAX_PEERS,
};
use crate::{
    format::StorePathHash,
    protocol::{
        PeerAddr,
        peer_addr::canonical,
        wire::{About, Datagram, Held},
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
            Ok(datagram) => {
                self.take(now, from, datagram, origin.is_own, actions);
                self.flush_if_answered(now, actions);
            }
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
                if is_own && self.asks.hash_of(id) == Some(hash) {
                    return self.note_echo(from, is_own);
                }
                if self.heard.knows(now, from, hash) {
                    self.counters.asked_in_batch += 1;
                    return;
                }
                let wanted = Wanted::One(hash);
                self.take_question(now, Question { from, id, wanted }, is_own, actions);
            }
            Datagram::Batch { id, .. } if is_own && self.asks.knows(id) => {
                self.note_echo(from, is_own);
            }
            Datagram::Batch {
                id,
                known,
                to_many,
                hashes,
            } => {
                let wanted = Wanted::Batch {
                    known,
                    to_many,
                    hashes,
                };
                self.take_question(now, Question { from, id, wanted }, is_own, actions);
            }
            Datagram::Hello { about, .. }
            | Datagram::Here { about, .. }
            | Datagram::Answer { about, .. }
                if about.instance == self.instance =>
            {
                self.note_echo(from, is_own);
            }
            Datagram::Hello { id, about, known } => {
                self.take_hello(now, from, id, about, known, actions);
            }
            _ if is_own => self.note_echo(from, is_own),
            Datagram::Response {
                id,
                http_port,
                hash,
            } => {
                self.take_response(now, from, id, http_port, hash, actions);
            }
            Datagram::Absent { id } => self.take_absent(now, from, id, actions),
            Datagram::Answer { id, about, held } => {
                self.take_answer(now, from, id, about, held, actions);
            }
            Datagram::Here { id, about } => self.take_here(now, from, id, about, actions),
        }
    }

    /// Our own words. If they were sent to a configured peer, that is this machine.
    fn note_echo(&mut self, from: SocketAddr, is_own: bool) {
        self.counters.echoes += 1;
        if is_own {
            self.peers.note_myself(from);
        }
    }

    fn take_question(
        &mut self,
        now: Instant,
        question: Question,
        is_own: bool,
        actions: &mut Vec<Action>,
    ) {
        let from = question.from;
        let count = question.wanted.hashes().len();
        if !self.sources.take(now, from.ip(), count as u32) {
            self.counters.rate_limited += 1;
            return;
        }
        self.counters.requests += 1;
        let hears_us = from.port() == self.settings.port || self.peers.is_static(from);
        let sign = match &question.wanted {
            Wanted::One(_) => Sign::Request,
            Wanted::Batch { hashes, .. } => {
                self.counters.batches += 1;
                self.heard.note(now, from, hashes);
                Sign::Batch
            }
        };
        if hears_us && !is_own {
            self.learn(now, from, sign);
        }
        actions.push(Action::Question(question));
    }

    fn take_hello(
        &mut self,
        now: Instant,
        from: SocketAddr,
        id: u32,
        about: About,
        known: u16,
        actions: &mut Vec<Action>,
    ) {
        if !self.sources.take(now, from.ip(), 1) {
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
        actions.extend(self.reply_within(now, known, from, id, packet));
    }

    fn take_here(
        &mut self,
        now: Instant,
        from: SocketAddr,
        id: u32,
        about: About,
        actions: &mut Vec<Action>,
    ) {
        let is_answer = self
            .hello
            .is_some_and(|(hello, at)| hello == id && now < at + HELLO_MEMORY);
        if !is_answer {
            self.counters.reject(Reject::UnknownId);
            return;
        }
        self.counters.heres += 1;
        match self.learn(now, from, Sign::Here(about)) {
            Some(slot) => self.catch_up(now, slot, actions),
            None if self.unplaced.len() < MAX_PEERS => {
                self.unplaced.insert(from.ip());
            }
            None => {}
        }
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
        if self.asks.hash_of(id).is_some_and(|asked| asked != hash) {
            self.counters.reject(Reject::OtherHash);
            return;
        }
        let Some(slot) = self.learn_answer(now, from, id, Sign::Response) else {
            return;
        };
        if self.note_present(now, from, id, http_port, slot, actions) {
            self.counters.responses += 1;
            self.finish_if_over(now, id, actions);
        } else {
            self.note_duplicate(slot, &[id]);
        }
    }

    /// Takes note of a holder; false if it is known already, or there are enough.
    fn note_present(
        &mut self,
        now: Instant,
        from: SocketAddr,
        id: u32,
        http_port: u16,
        slot: Option<usize>,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Asked::Now(lookup) = self.asks.asked(id) else {
            return false;
        };
        let Some(peer) = http_addr(from, http_port).filter(|_| lookup.add_candidate(from)) else {
            return false;
        };
        if let Some(slot) = slot {
            lookup.answered.insert(slot);
            self.peers.note_answer(slot, Some(peer));
            self.note_round_trip(now, id, slot);
        }
        actions.push(Action::Candidate { lookup: id, peer });
        true
    }

    fn take_absent(&mut self, now: Instant, from: SocketAddr, id: u32, actions: &mut Vec<Action>) {
        let Some(slot) = self.learn_answer(now, from, id, Sign::Absent) else {
            return;
        };
        if self.note_absent(now, id, slot) {
            self.counters.absents += 1;
            self.finish_if_over(now, id, actions);
        } else {
            self.note_duplicate(slot, &[id]);
        }
    }

    /// Takes note of one that has nothing; false if that is known.
    fn note_absent(&mut self, now: Instant, id: u32, slot: Option<usize>) -> bool {
        let Asked::Now(lookup) = self.asks.asked(id) else {
            return false;
        };
        if slot.is_some_and(|slot| lookup.answered.contains(slot)) {
            return false;
        }
        lookup.absent = lookup.absent.saturating_add(1);
        if let Some(slot) = slot {
            lookup.answered.insert(slot);
            self.peers.note_answer(slot, None);
            self.note_round_trip(now, id, slot);
        }
        true
    }

    fn take_answer(
        &mut self,
        now: Instant,
        from: SocketAddr,
        id: u32,
        about: About,
        held: Held,
        actions: &mut Vec<Action>,
    ) {
        let sign = Sign::Answer(about);
        let lookups = match self.asks.framed(id) {
            Asked::Now(lookups) if lookups.len() == held.count() => lookups,
            Asked::Now(_) => {
                self.counters.reject(Reject::Count);
                return;
            }
            Asked::Before(sent) => {
                self.learn_late(now, from, sign, sent);
                return;
            }
            Asked::Never => {
                self.counters.reject(Reject::UnknownId);
                return;
            }
        };
        let slot = self.learn(now, from, sign);
        self.counters.answers += 1;
        let mut is_new = false;
        let mut numbers = held.numbers().peekable();
        for (number, &lookup) in lookups.iter().enumerate() {
            let is_held = numbers.next_if_eq(&number).is_some();
            is_new |= if is_held {
                self.note_present(now, from, lookup, about.http_port, slot, actions)
            } else {
                self.note_absent(now, lookup, slot)
            };
        }
        if !is_new {
            self.note_duplicate(slot, &lookups);
        }
        for lookup in lookups {
            self.finish_if_over(now, lookup, actions);
        }
    }

    /// How long the peer in `slot` took, if it was awake.
    fn note_round_trip(&mut self, now: Instant, id: u32, slot: usize) {
        let Some(number) = self.asks.get(id).map(|lookup| lookup.ask) else {
            return;
        };
        let Some(ask) = self.asks.ask_mut(number) else {
            return;
        };
        let is_first = !ask.answered.contains(slot);
        ask.answered.insert(slot);
        if is_first && ask.counts_silence {
            let since_first = now.saturating_duration_since(ask.sent);
            let since_last = now.saturating_duration_since(ask.last_sent);
            self.peers.note_round_trip(slot, since_first, since_last);
        }
    }

    /// An answer to what has ended: its sender takes longer than it was given.
    fn learn_late(&mut self, now: Instant, from: SocketAddr, sign: Sign, sent: Instant) {
        self.counters.late += 1;
        let slot = self.learn(now, from, sign);
        let is_awake = self.window_ends.is_some_and(|end| end <= sent);
        if let Some(slot) = slot.filter(|_| is_awake) {
            let took = now
                .saturating_duration_since(sent)
                .min(self.settings.timeout);
            self.peers.note_round_trip(slot, took, took);
        }
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
        match self.asks.asked(id) {
            Asked::Now(_) => Some(self.learn(now, from, sign)),
            Asked::Before(sent) => {
                self.learn_late(now, from, sign, sent);
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
        if learned.is_news {
            self.probe_soon();
        }
        if learned.is_new {
            self.asks.forget_slot(learned.slot);
            self.unplaced.remove(&from.ip());
        }
        Some(learned.slot)
    }

    /// A second answer to one of `lookups`: what was asked once came by two ways.
    fn note_duplicate(&mut self, slot: Option<usize>, lookups: &[u32]) {
        self.counters.duplicates += 1;
        let lookup = lookups.iter().find_map(|&id| self.asks.get(id));
        let ask = lookup.and_then(|lookup| self.asks.ask(lookup.ask));
        let once = ask.filter(|ask| ask.sent == ask.last_sent);
        if let (Some(slot), Some(ask)) = (slot, once) {
            self.peers.note_double(slot, ask.sent);
        }
    }
}
