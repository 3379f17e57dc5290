//! Who is asked by datagrams of its own, and at which of its addresses.

use std::{
    cmp::Reverse,
    collections::HashSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    super::peer::{Peer, SILENT_ASKS},
    Peers,
};
use crate::protocol::wire::MAX_BATCH;

/// From one question to a silent configured peer to the next.
const SILENT_PAUSE: Duration = Duration::from_secs(1);

/// Peers that broadcast does not reach, and nobody configured, that are asked at one time.
const MOST_OUT_OF_REACH: usize = 64;

/// Requests that one of them is sent at one time, if it understands no batches, and one that was
/// only announced. Nobody need be there.
const MOST_REQUESTS: usize = 8;

/// How one peer is asked by datagrams of its own.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Way {
    pub(in super::super) slot: usize,
    pub(in super::super) to: SocketAddr,
    pub(in super::super) takes_batches: bool,
    /// Lookups of an ask that it is asked for.
    pub(in super::super) most: usize,
}

impl Peers {
    /// Peers that are to be asked by datagrams of their own at `now`. Who is silent is asked once a
    /// second: what is sent to a machine that is off takes room in our socket until the system
    /// gives up looking for it, seconds later, and the others are not asked for want of it.
    /// Of those that nobody configured some are, those that were heard last, each at one port.
    pub(in super::super) fn ask_directly(&mut self, now: Instant) -> Vec<Way> {
        let is_due = |peer: &Peer| {
            let silent = peer.silent_asks >= SILENT_ASKS;
            let waits = silent && peer.asked.is_some_and(|at| now < at + SILENT_PAUSE);
            peer.is_direct() && !waits
        };
        let slots = 0..self.slots.len();
        let due = slots.filter(|&slot| is_due(&self.slots[slot]));
        let (mut chosen, mut others): (Vec<usize>, Vec<usize>) =
            due.partition(|&slot| self.slots[slot].is_static);
        others.sort_by_key(|&slot| Reverse(self.slots[slot].heard));
        let mut machines = HashSet::new();
        others.retain(|&slot| machines.insert(self.slots[slot].address.ip()));
        chosen.extend(others.into_iter().take(MOST_OUT_OF_REACH));
        for &slot in &chosen {
            self.slots[slot].asked = Some(now);
        }
        chosen.into_iter().map(|slot| self.way_to(slot)).collect()
    }

    /// How the peer in `slot` is asked.
    pub(in super::super) fn way_to(&self, slot: usize) -> Way {
        let peer = &self.slots[slot];
        let takes_batches = peer.takes_batches();
        let is_trusted = if peer.is_static {
            peer.has_answered || !peer.is_announced
        } else {
            peer.address.is_ipv4()
        };
        Way {
            slot,
            to: peer.address,
            takes_batches,
            most: if takes_batches || is_trusted {
                MAX_BATCH
            } else {
                MOST_REQUESTS
            },
        }
    }

    /// Whether there is another machine that is asked also without a network to broadcast on. Who was
    /// found through one is not: that network may have been excluded since.
    pub(in super::super) fn has_direct(&self) -> bool {
        self.static_peers().any(Peer::is_direct)
    }

    /// Whether the peer in `slot` is one that broadcast does not reach, and nobody configured.
    fn is_out_of_reach(&self, slot: usize) -> bool {
        let peer = &self.slots[slot];
        peer.is_direct() && !peer.is_static
    }

    /// Whether what is open is to be sent to the peer in `slot`, that has just shown itself and that
    /// broadcast does not reach: once in a burst, and to one port of a machine.
    pub(in super::super) fn catches_up(&mut self, now: Instant, slot: usize) -> bool {
        let ip = self.slots[slot].address.ip();
        let before = |peer: &Peer| peer.is_caught_up && peer.address.ip() == ip;
        let does = self.is_out_of_reach(slot) && !self.slots.iter().any(before);
        if does {
            self.slots[slot].is_caught_up = true;
            self.slots[slot].asked_alone = Some(now);
        }
        does
    }

    /// Peers that answer and have not said who they are, each a few times in a burst. Old ones
    /// ignore a batch; a new one whose here was lost shows by its answer what it is.
    pub(in super::super) fn unclear(&mut self, now: Instant) -> Vec<SocketAddr> {
        let unclear = self.slots.iter_mut().filter(|peer| peer.is_unclear());
        unclear
            .take(MOST_OUT_OF_REACH)
            .map(|peer| {
                peer.trials += 1;
                peer.asked_alone = Some(now);
                peer.address
            })
            .collect()
    }

    /// Notes a second answer to what was sent at `sent`, once. It tells nothing of one that was asked
    /// by itself since, to find out who it is or for what it missed.
    pub(in super::super) fn note_double(&mut self, slot: usize, sent: Instant) {
        let peer = &mut self.slots[slot];
        if peer.asked_alone.is_none_or(|at| at < sent) {
            peer.is_doubled = peer.is_direct();
        }
    }

    /// A peer that is heard over IPv4 and IPv6 is asked over IPv4, which broadcast reaches.
    pub(super) fn find_twins(&mut self, slot: usize) {
        let instance = |peer: &Peer| peer.about.map(|about| about.instance);
        let (mine, is_ipv6) = (
            instance(&self.slots[slot]),
            self.slots[slot].address.is_ipv6(),
        );
        let is_twin = |peer: &Peer| {
            peer.is_confirmed && peer.address.is_ipv6() != is_ipv6 && instance(peer) == mine
        };
        for twin in 0..self.slots.len() {
            if twin != slot && is_twin(&self.slots[twin]) {
                let (alias, other) = if is_ipv6 { (slot, twin) } else { (twin, slot) };
                self.slots[alias].twin = Some(other).filter(|_| !self.slots[alias].is_static);
                self.judge(alias);
            }
        }
    }

    /// The peer in `slot` answers no more for the same peer at another address: it is silent,
    /// has lost its place, or says that it is another one.
    pub(super) fn release_aliases(&mut self, slot: usize) {
        for alias in 0..self.slots.len() {
            if self.slots[alias].twin == Some(slot) {
                self.slots[alias].twin = None;
                self.judge(alias);
            }
        }
    }
}
