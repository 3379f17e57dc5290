//! Datagrams that go to everyone: discovery, the asks of a large LAN, and requests for old peers.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use super::{
    Action, Discovery, LookupId, Scope,
    asks::Target,
    lookup::{BroadcastWait, FREE_BROADCAST_WAIT, Stage},
    peer_table::HOUR,
    state_machine::{ASK_SPREAD, DISCOVERY_SPREAD, spread},
};
use crate::protocol::datagram::{Datagram, MAX_HASHES};

/// Copies of a broadcast ask, and the pause between two.
const BROADCAST_COPIES: u32 = 4;
const BROADCAST_PAUSE: Duration = Duration::from_millis(2);

/// After the spread, answers to a broadcast are waited for at least this long and at most so long.
const LEAST_BROADCAST_WAIT: Duration = Duration::from_millis(2);
const LONGEST_BROADCAST_WAIT: Duration = Duration::from_millis(300);

/// Times from broadcast to answer that are remembered for each interface.
const BROADCAST_SAMPLES: usize = 128;

/// A broadcast ask of which copies are still to leave.
#[derive(Debug)]
pub(super) struct BroadcastAsk {
    lookups: Vec<LookupId>,
    copies: u32,
    pub(super) next: Instant,
}

impl Discovery {
    /// Asks everyone who is there, and for what is looked up at the moment.
    pub(super) fn send_discovery(&mut self, now: Instant, actions: &mut Vec<Action>) {
        for address in std::mem::take(&mut self.noted) {
            self.greet(now, address, false, actions);
        }
        let id = self.ids.draw();
        let live = self.live_peers();
        // All peers answer: on a large LAN those that have nothing need not say for what.
        let open = self.lookups.keys().copied().take(MAX_HASHES);
        let lookups: Vec<LookupId> = if self.is_crowded(now) {
            Vec::new()
        } else {
            open.collect()
        };
        let packet = self.encode(id, self.sender(), live, false, &lookups);
        self.asks.insert(now, id, Target::Discovery, lookups);
        self.counters.discoveries += 1;
        let scope = Scope::Everywhere;
        actions.push(Action::Broadcast { packet, scope });
        if self.burst.gate.is_none() {
            let wait = spread(DISCOVERY_SPREAD, live) + LEAST_BROADCAST_WAIT;
            self.burst.gate = Some(now + wait);
        }
    }

    pub(super) fn heard_links(&self, now: Instant) -> Vec<u32> {
        let is_recent = |interface: &u32| {
            let at = self.heard_on.get(interface);
            at.is_some_and(|&at| now.saturating_duration_since(at) < HOUR)
        };
        let all: HashSet<u32> = self.links.iter().map(|link| link.interface).collect();
        let mut heard: Vec<u32> = all.into_iter().filter(is_recent).collect();
        heard.sort_unstable();
        heard
    }

    /// An answer came in on this interface; `took`: so long after a broadcast.
    pub(super) fn note_heard_on(&mut self, now: Instant, interface: u32, took: Option<Duration>) {
        if !self.is_broadcast_to(interface) {
            return;
        }
        self.heard_on.insert(interface, now);
        if let Some(took) = took {
            let times = self.broadcast_times.entry(interface).or_default();
            if times.len() >= BROADCAST_SAMPLES {
                times.pop_front();
            }
            times.push_back(took);
        }
    }

    /// The time within which 99 of 100 answers to a broadcast come, of the slowest interface.
    pub(super) fn slowest_broadcast(&self, interfaces: &[u32]) -> Duration {
        let slow = |interface| {
            let times = self.broadcast_times.get(interface)?;
            let mut times: Vec<Duration> = times.iter().copied().collect();
            times.sort_unstable();
            times
                .get((times.len() * 99).div_ceil(100).saturating_sub(1))
                .copied()
        };
        let slowest = interfaces.iter().filter_map(slow).max();
        slowest.unwrap_or_default().min(LONGEST_BROADCAST_WAIT)
    }

    /// Sends the copies of broadcast asks that are due.
    pub(super) fn send_broadcasts(&mut self, now: Instant, actions: &mut Vec<Action>) {
        while !self.broadcast_queue.is_empty() {
            let count = self.broadcast_queue.len().min(MAX_HASHES);
            let lookups = self.broadcast_queue.drain(..count).collect();
            self.broadcasts.push(BroadcastAsk {
                lookups,
                copies: 0,
                next: now,
            });
        }
        let interfaces = self.heard_links(now);
        let live = self.live_peers();
        for mut ask in std::mem::take(&mut self.broadcasts) {
            ask.lookups.retain(|id| self.lookups.contains_key(id));
            if ask.lookups.is_empty() {
                continue;
            }
            if ask.next > now {
                self.broadcasts.push(ask);
                continue;
            }
            let id = self.ids.draw();
            let packet = self.encode(id, self.sender(), live, true, &ask.lookups);
            self.asks
                .insert(now, id, Target::Broadcast, ask.lookups.clone());
            for &interface in &interfaces {
                self.counters.broadcasts_sent += 1;
                let (packet, scope) = (packet.clone(), Scope::Interface(interface));
                actions.push(Action::Broadcast { packet, scope });
            }
            ask.copies += 1;
            ask.next = now + BROADCAST_PAUSE;
            if ask.copies < BROADCAST_COPIES {
                self.broadcasts.push(ask);
                continue;
            }
            let least = spread(ASK_SPREAD, live) + LEAST_BROADCAST_WAIT;
            let over = BroadcastWait {
                free_until: now + FREE_BROADCAST_WAIT,
                until: now + least.max(self.slowest_broadcast(&interfaces)),
            };
            for id in ask.lookups {
                if let Some(lookup) = self.lookups.get_mut(&id) {
                    lookup.stage = Stage::Broadcast { over: Some(over) };
                    lookup.check_at = Some(now);
                }
            }
        }
    }

    /// Asks old peers, if one more request to them is allowed.
    pub(super) fn request_of_old_peers(
        &mut self,
        now: Instant,
        id: LookupId,
        actions: &mut Vec<Action>,
    ) {
        let has_old_peer = self.peers.has_old_peer(now);
        let Some(is_everywhere) = self
            .burst
            .take_old_request(now, has_old_peer, self.links.len())
        else {
            return;
        };
        let sent = actions.len();
        self.ask_old_peers(now, id, is_everywhere, actions);
        if let Some(lookup) = self.lookups.get_mut(&id) {
            lookup.old_requested = (actions.len() > sent).then_some(now);
        }
    }

    /// Sends a request as old peers understand it: to the networks, and to those that no
    /// broadcast reaches.
    pub(super) fn ask_old_peers(
        &mut self,
        now: Instant,
        id: LookupId,
        is_everywhere: bool,
        actions: &mut Vec<Action>,
    ) {
        let Some(lookup) = self.lookups.get(&id) else {
            return;
        };
        let request = self.ids.draw();
        let (packet, hash) = (request, lookup.hash);
        let packet = Datagram::Request { id: packet, hash }.encode();
        self.asks.insert(now, request, Target::Old, vec![id]);
        let scopes = if self.links.is_empty() {
            Vec::new()
        } else if is_everywhere {
            vec![Scope::Ipv4]
        } else {
            let heard = self.heard_links(now).into_iter();
            heard.map(Scope::Ipv4On).collect()
        };
        for scope in scopes {
            self.counters.old_requests_sent += 1;
            let packet = packet.clone();
            actions.push(Action::Broadcast { packet, scope });
        }
        let links: Vec<u32> = self.links.iter().map(|link| link.interface).collect();
        for (_, peer) in self.peers.iter_mut() {
            let may_be_old = peer.sender.is_none() && !peer.is_myself;
            let is_reached = links.contains(&peer.interface) && !peer.is_configured;
            // To new asks an old peer is silent.
            let may_answer = peer.is_configured || peer.heard_old.is_some() || !peer.is_silent;
            if may_be_old && !is_reached && may_answer && peer.take_old_request(now) {
                let (to, packet) = (peer.address, packet.clone());
                self.counters.old_requests_sent += 1;
                actions.push(Action::Send { to, packet });
            }
        }
    }
}
