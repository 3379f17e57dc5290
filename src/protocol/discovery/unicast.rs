//! Asks that go to one peer: whom a lookup asks, the queues, repeats, and who is given up.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    Action, Discovery, LookupId,
    asks::Target,
    lookup::Lookup,
    peer::{FREE_WAIT, Peer, REPEATS, Wanted, Wave},
    slots::Slots,
    state_machine::MAX_UNICAST,
};
use crate::protocol::datagram::{Ask, Datagram, MAX_HASHES, Magnitude, Packet, Sender};

/// Peers of a large LAN that are asked one by one before the others, and how many on a wireless
/// network, where an access point holds broadcasts back.
const SAMPLE: usize = 16;
const SAMPLE_WIRELESS: usize = MAX_UNICAST;

/// Those that gave most in this burst have so many places of the sample.
const SAMPLE_OF_GIVERS: usize = SAMPLE / 2;

/// The sample is drawn anew this often.
const SAMPLE_PAUSE: Duration = Duration::from_millis(100);

/// Peers that asked while nothing was looked up, to be asked with the next burst.
const MAX_NOTED: usize = 64;

/// Open lookups that a peer is asked for which has just shown itself.
const MAX_CATCH_UP: usize = 2 * MAX_HASHES;

impl Discovery {
    /// The peers that a new lookup asks one by one.
    pub(super) fn choose(&mut self, now: Instant) -> Slots {
        let twins = self.peers.twins();
        let takes_asks = |slot: usize, peer: &Peer| peer.takes_asks() && !twins.contains(slot);
        let mut chosen = Slots::default();
        if self.is_crowded(now) {
            self.draw_sample(now, &twins);
            for (slot, peer) in self.peers.iter() {
                // Those that are not live may be forged, as many as the table holds.
                let is_reached = self.is_broadcast_to(peer.interface) || !peer.is_live;
                let is_chosen = peer.is_configured || !is_reached || self.sample.contains(slot);
                if takes_asks(slot, peer) && is_chosen {
                    chosen.insert(slot);
                }
            }
            return chosen;
        }
        // All that have answered; of those that only broadcasts told of, as many as there is room.
        let mut others = Vec::new();
        for (slot, peer) in self.peers.iter() {
            if !takes_asks(slot, peer) {
                continue;
            }
            if peer.is_live || peer.is_configured {
                chosen.insert(slot);
            } else {
                others.push((peer.heard, slot));
            }
        }
        others.sort_unstable_by(|one, other| other.cmp(one));
        for (_, slot) in others
            .into_iter()
            .take(MAX_UNICAST.saturating_sub(chosen.len()))
        {
            chosen.insert(slot);
        }
        chosen
    }

    /// Draws the sample of a large LAN anew, if that is due: who gave most, and random others.
    pub(super) fn draw_sample(&mut self, now: Instant, twins: &Slots) {
        let is_fresh = |at| now.saturating_duration_since(at) < SAMPLE_PAUSE;
        if self.sampled.is_some_and(is_fresh) {
            return;
        }
        self.sampled = Some(now);
        let is_wireless = |interface| {
            let mut links = self.links.iter();
            links.any(|link| link.interface == interface && link.is_wireless)
        };
        let able = |(slot, peer): &(usize, &Peer)| {
            peer.takes_asks() && peer.is_live && !peer.is_silent && !twins.contains(*slot)
        };
        let able: Vec<_> = self.peers.iter().filter(able).collect();
        let size = if able.iter().any(|(_, peer)| is_wireless(peer.interface)) {
            SAMPLE_WIRELESS
        } else {
            SAMPLE
        };
        let mut givers: Vec<_> = able
            .iter()
            .filter(|(_, peer)| peer.given_in_burst > 0)
            .map(|(slot, peer)| (peer.given_in_burst, *slot))
            .collect();
        givers.sort_unstable_by(|one, other| other.cmp(one));
        let mut sample = Slots::default();
        for (_, slot) in givers.into_iter().take(SAMPLE_OF_GIVERS) {
            sample.insert(slot);
        }
        let mut rest: Vec<usize> = able.iter().map(|(slot, _)| *slot).collect();
        rest.retain(|&slot| !sample.contains(slot));
        while sample.len() < size && !rest.is_empty() {
            let drawn = self.ids.draw() as usize % rest.len();
            sample.insert(rest.swap_remove(drawn));
        }
        self.sample = sample;
    }

    /// A peer has shown itself that is not waited for: it is asked for what others were asked.
    pub(super) fn catch_up(&mut self, now: Instant, slot: usize) {
        if self.is_crowded(now) || self.peers.twins().contains(slot) {
            return;
        }
        let Some(peer) = self.peers.get_mut(slot).filter(|peer| peer.takes_asks()) else {
            return;
        };
        self.busy.insert(slot);
        let open = self.lookups.iter_mut();
        let open = open.filter(|(_, lookup)| !lookup.asked.contains(slot));
        for (&id, lookup) in open.take(MAX_CATCH_UP) {
            peer.queue.push(Wanted {
                lookup: id,
                copy: 0,
                first_asked: now,
            });
            lookup.ask(slot, true);
        }
    }

    /// Repeats what `slot` has not answered in time, or gives it up.
    pub(super) fn repeat(&mut self, now: Instant, slot: usize, actions: &mut Vec<Action>) {
        let Some(peer) = self.peers.get_mut(slot) else {
            return;
        };
        let due: Vec<Wave>;
        (due, peer.waves) = std::mem::take(&mut peer.waves)
            .into_iter()
            .partition(|wave| wave.due <= now);
        let is_silent = peer.is_silent;
        let may_be_old = peer.is_configured && peer.sender.is_none();
        let mut first_copies = Vec::new();
        let mut is_lost = false;
        for wanted in due.into_iter().flat_map(|wave| wave.sent) {
            let Some(peer) = self.peers.get_mut(slot) else {
                return;
            };
            // One that sleeps, or restarts, has the asks in its socket and answers when it is up.
            let patient_until = wanted.first_asked + self.settings.wake_timeout;
            if wanted.copy >= REPEATS && now >= patient_until {
                // Also when the lookup had no time to wait for that.
                is_lost |= peer.heard.is_none_or(|at| at < wanted.first_asked);
            }
            let lookup = self.lookups.get_mut(&wanted.lookup);
            let Some(lookup) = lookup.filter(|lookup| lookup.unanswered.contains(slot)) else {
                continue;
            };
            if wanted.copy == 0 {
                first_copies.push(wanted.lookup);
            }
            if is_silent {
                lookup.give_up(slot);
                lookup.check_at = Some(now);
            } else if wanted.copy < REPEATS {
                self.counters.repeated += 1;
                let copy = wanted.copy + 1;
                peer.queue.push(Wanted { copy, ..wanted });
            } else if now < patient_until && lookup.is_undecided {
                peer.queue.push(wanted);
            } else if now < patient_until {
                peer.waves.push(Wave {
                    due: patient_until,
                    sent: vec![wanted],
                });
            } else {
                lookup.give_up(slot);
                lookup.check_at = Some(now);
            }
        }
        if may_be_old {
            for id in first_copies {
                self.ask_old_peer(now, id, slot, actions);
            }
        }
        if is_lost {
            self.give_up(now, slot, actions);
        }
    }

    /// Sends a request as old peers understand it to one peer, which may be one.
    pub(super) fn ask_old_peer(
        &mut self,
        now: Instant,
        id: LookupId,
        slot: usize,
        actions: &mut Vec<Action>,
    ) {
        let lookup = self.lookups.get(&id);
        let (Some(lookup), Some(peer)) = (lookup, self.peers.get_mut(slot)) else {
            return;
        };
        if !peer.take_old_request(now) {
            return;
        }
        let (to, hash) = (peer.address, lookup.hash);
        let request = self.ids.draw();
        let packet = Datagram::Request { id: request, hash }.encode();
        self.asks.insert(now, request, Target::Old, vec![id]);
        self.counters.old_requests_sent += 1;
        actions.push(Action::Send { to, packet });
    }

    /// `slot` has let a whole lookup pass: no lookup waits for it until it answers.
    pub(super) fn give_up(&mut self, now: Instant, slot: usize, actions: &mut Vec<Action>) {
        if let Some(peer) = self.peers.get_mut(slot) {
            // What was waited at no cost for its round trip was not for one.
            let free = peer.free_wait(now, false).saturating_sub(FREE_WAIT);
            self.burst.budget.charge(now, free);
            peer.is_silent = true;
            self.counters.gone_silent += 1;
        }
        self.end_waits(now, slot, actions);
    }

    /// There is no way to this address: what was asked there is not waited for.
    pub fn note_unreachable(&mut self, now: Instant, to: SocketAddr, actions: &mut Vec<Action>) {
        let Some(slot) = self.peers.find(to) else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.waves.clear();
            peer.queue.clear();
        }
        self.end_waits(now, slot, actions);
    }

    /// No lookup waits for `slot`.
    fn end_waits(&mut self, now: Instant, slot: usize, actions: &mut Vec<Action>) {
        let waits = self.lookups.iter_mut();
        let given_up: Vec<LookupId> = waits
            .filter_map(|(&id, lookup)| lookup.give_up(slot).then_some(id))
            .collect();
        for id in given_up {
            self.check(now, id, actions);
        }
    }

    /// Sends what waits for `slot`, if its turn has come.
    pub(super) fn flush(&mut self, now: Instant, slot: usize, actions: &mut Vec<Action>) {
        let (sender, live) = (self.sender(), self.live_peers());
        let Some(peer) = self.peers.get_mut(slot) else {
            return;
        };
        let lookups = &self.lookups;
        peer.queue.retain(|wanted| {
            let lookup = lookups.get(&wanted.lookup);
            lookup.is_some_and(|lookup| lookup.unanswered.contains(slot))
        });
        if peer.queue.is_empty() || peer.ready_at(now) > now {
            return;
        }
        let count = peer.queue.len().min(MAX_HASHES);
        let sent: Vec<Wanted> = peer.queue.drain(..count).collect();
        let ids: Vec<LookupId> = sent.iter().map(|wanted| wanted.lookup).collect();
        for copy in 0..=REPEATS {
            let same = sent.iter().filter(|wanted| wanted.copy == copy).copied();
            let same: Vec<Wanted> = same.collect();
            if !same.is_empty() {
                let gap = if peer.is_silent {
                    peer.silent_wait()
                } else {
                    peer.gap(copy)
                };
                let due = now + gap;
                peer.waves.push(Wave { due, sent: same });
            }
        }
        let id = self.ids.draw();
        peer.last_ask = Some((id, now, false));
        let to = peer.address;
        let packet = self.encode(id, sender, live, false, &ids);
        self.asks.insert(now, id, Target::Peer(slot), ids);
        self.counters.asks_sent += 1;
        actions.push(Action::Send { to, packet });
    }

    pub(super) fn encode(
        &self,
        id: u32,
        sender: Sender,
        peers: Magnitude,
        only_if_any: bool,
        lookups: &[LookupId],
    ) -> Packet {
        let hash = |id| self.lookups.get(id).map(|lookup: &Lookup| lookup.hash);
        let ask = Ask {
            id,
            sender,
            only_if_any,
            peers,
            hashes: lookups.iter().filter_map(hash).collect(),
        };
        Datagram::Ask(ask).encode()
    }

    /// Asks one address whether there is a peer: it has answered a broadcast, or just asked.
    pub(super) fn greet(
        &mut self,
        now: Instant,
        to: SocketAddr,
        has_answered: bool,
        actions: &mut Vec<Action>,
    ) {
        if !self.greetings.admit(now, to.ip(), has_answered) {
            return;
        }
        let id = self.ids.draw();
        let packet = self.encode(id, self.sender(), self.live_peers(), false, &[]);
        let target = self.peers.find(to).map_or(Target::Address, Target::Peer);
        self.asks.insert(now, id, target, Vec::new());
        self.counters.asks_sent += 1;
        actions.push(Action::Send { to, packet });
    }

    /// A peer that is not known, or does not answer, has asked: so it is there.
    pub(super) fn note_asker(&mut self, now: Instant, from: SocketAddr, actions: &mut Vec<Action>) {
        let known = self.peers.find(from).and_then(|slot| self.peers.get(slot));
        let is_known = known.is_some_and(|peer| peer.is_live && !peer.is_silent);
        // Without a network to broadcast on, those that are named are asked and nobody else.
        if is_known || from.port() != self.settings.port || self.links.is_empty() {
            return;
        }
        if self.burst.is_on(now) {
            self.greet(now, from, false, actions);
        } else if self.noted.len() < MAX_NOTED && !self.noted.contains(&from) {
            self.noted.push(from);
        }
    }
}
