//! The peers that are known, each in a slot.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::{
    PersistedPeer,
    peer::Peer,
    slots::{MAX_SLOTS, Slots},
};

/// Peers that the table takes; there is room beyond for those that the configuration names.
const MAX_PEERS: usize = 1_024;

/// A peer that was heard within this time is known; an old one answers within it.
pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// The table.
#[derive(Debug, Default)]
pub(super) struct PeerTable {
    peers: Vec<Option<Peer>>,
    live: usize,
    by_address: HashMap<SocketAddr, usize>,
}

impl PeerTable {
    pub(super) fn get(&self, slot: usize) -> Option<&Peer> {
        self.peers.get(slot)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut Peer> {
        self.peers.get_mut(slot)?.as_mut()
    }

    pub(super) fn find(&self, address: SocketAddr) -> Option<usize> {
        self.by_address.get(&address).copied()
    }

    /// All of them with their slots.
    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Peer)> {
        let all = self.peers.iter().enumerate();
        all.filter_map(|(slot, peer)| Some((slot, peer.as_ref()?)))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Peer)> {
        let all = self.peers.iter_mut().enumerate();
        all.filter_map(|(slot, peer)| Some((slot, peer.as_mut()?)))
    }

    /// The number of live peers.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// `slot` has answered a unicast ask. True if it had not before.
    pub(super) fn set_live(&mut self, slot: usize) -> bool {
        let is_new = self.get_mut(slot).is_some_and(|peer| {
            let was_live = std::mem::replace(&mut peer.is_live, true);
            !was_live
        });
        self.live += usize::from(is_new);
        is_new
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// The slot of `address`, a new one if need be; none if the table is full.
    pub(super) fn insert(&mut self, address: SocketAddr) -> Option<usize> {
        let has_room = self.by_address.len() < MAX_PEERS;
        let known = self.find(address);
        known.or_else(|| has_room.then(|| self.insert_named(address))?)
    }

    /// The same for one that is named by configuration or DNS-SD.
    fn insert_named(&mut self, address: SocketAddr) -> Option<usize> {
        if let Some(slot) = self.find(address) {
            return Some(slot);
        }
        let free = self.peers.iter().position(Option::is_none);
        let slot = free.unwrap_or(self.peers.len());
        if slot >= MAX_SLOTS {
            return None;
        }
        if slot == self.peers.len() {
            self.peers.push(None);
        }
        self.peers[slot] = Some(Peer::new(address));
        self.by_address.insert(address, slot);
        Some(slot)
    }

    /// Forgets peers that have not answered for long or never did; returns their slots.
    pub(super) fn prune(&mut self, now: Instant) -> Slots {
        let mut gone = Slots::default();
        for slot in 0..self.peers.len() {
            let is_gone = self.get(slot).is_some_and(|peer| {
                let is_named = peer.is_configured || peer.is_announced;
                let is_lost = peer.is_silent && !peer.was_heard_within(now, HOUR);
                !is_named && (is_lost || peer.is_silent && !peer.is_live)
            });
            if is_gone && let Some(peer) = self.peers[slot].take() {
                self.by_address.remove(&peer.address);
                self.live -= usize::from(peer.is_live);
                gone.insert(slot);
            }
        }
        gone
    }

    /// Makes exactly these the configured and the announced peers; the others stay as what
    /// they are otherwise.
    pub(super) fn set_named(&mut self, configured: &[SocketAddr], announced: &[SocketAddr]) {
        for (_, peer) in self.iter_mut() {
            peer.is_configured = false;
            peer.is_announced = false;
        }
        for &address in configured {
            let slot = self.insert_named(address);
            if let Some(peer) = slot.and_then(|slot| self.get_mut(slot)) {
                peer.is_configured = true;
            }
        }
        for &address in announced {
            let slot = self.insert_named(address);
            if let Some(peer) = slot.and_then(|slot| self.get_mut(slot)) {
                peer.is_announced = true;
            }
        }
    }

    /// Whether an old peer has answered within the hour.
    pub(super) fn has_old_peer(&self, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < HOUR;
        self.iter()
            .any(|(_, peer)| peer.sender.is_none() && peer.heard_old.is_some_and(is_recent))
    }

    /// The peers at `ip`.
    pub(super) fn at(&self, ip: IpAddr) -> impl Iterator<Item = &Peer> {
        self.iter()
            .map(|(_, peer)| peer)
            .filter(move |peer| peer.address.ip() == ip)
    }

    /// IPv6 addresses of peers that are live at an IPv4 address of the same link: asking at
    /// one of the two is enough.
    pub(super) fn twins(&self) -> Slots {
        let identity = |peer: &Peer| Some((peer.sender?.instance, peer.interface));
        let by_ipv4: Vec<_> = self
            .iter()
            .filter(|(_, peer)| peer.address.is_ipv4() && peer.is_live && !peer.is_silent)
            .filter_map(|(_, peer)| identity(peer))
            .collect();
        let mut twins = Slots::default();
        for (slot, peer) in self.iter() {
            let is_twin = peer.address.is_ipv6()
                && !peer.is_configured
                && identity(peer).is_some_and(|it| by_ipv4.contains(&it));
            if is_twin {
                twins.insert(slot);
            }
        }
        twins
    }

    /// What the next process should know.
    pub(super) fn save(&self, now: Instant) -> Vec<PersistedPeer> {
        let seconds = |at: Instant| now.saturating_duration_since(at).as_secs();
        let saved = |peer: &Peer| {
            let is_worth_it = peer.is_live || peer.heard_old.is_some();
            Some(PersistedPeer {
                address: peer.address,
                sender: peer.sender,
                heard_seconds_ago: seconds(peer.heard.filter(|_| is_worth_it)?),
                given_seconds_ago: peer.given.map(seconds),
            })
        };
        self.iter().filter_map(|(_, peer)| saved(peer)).collect()
    }

    /// Takes back what an earlier process saved, `asleep` ago.
    pub(super) fn restore(&mut self, now: Instant, saved: &[PersistedPeer], asleep: Duration) {
        for saved in saved.iter().take(MAX_PEERS) {
            let before = |seconds| now.checked_sub(Duration::from_secs(seconds) + asleep);
            let Some(slot) = self.insert(saved.address) else {
                return;
            };
            if saved.sender.is_some() {
                self.set_live(slot);
            }
            let Some(peer) = self.get_mut(slot) else {
                continue;
            };
            peer.heard = before(saved.heard_seconds_ago);
            peer.given = saved.given_seconds_ago.and_then(before);
            peer.sender = saved.sender;
            if saved.sender.is_none() {
                peer.heard_old = peer.heard;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::datagram::Sender;

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    fn address(number: u16) -> SocketAddr {
        SocketAddr::new([10, 0, (number >> 8) as u8, number as u8].into(), 12_304)
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_does_not_answer() {
        let (mut table, now) = (PeerTable::default(), Instant::now());
        let slots: Vec<_> = (0..2_000)
            .filter_map(|n| table.insert(address(n)))
            .collect();
        assert_eq!(slots.len(), MAX_PEERS);
        table.set_named(&[address(0)], &[address(1)]);
        table.set_live(3);
        for (slot, peer) in table.iter_mut() {
            peer.is_silent = slot != 2;
            peer.heard = Some(now);
        }
        assert_eq!(table.prune(now).len(), MAX_PEERS - 4);
        assert!(table.insert(address(1_999)).is_some());
        assert!(table.prune(now + HOUR).contains(3));
        assert_eq!(table.live(), 0);
    }

    #[test]
    fn what_is_saved_is_restored() {
        let (mut table, now) = (PeerTable::default(), Instant::now() + HOUR);
        let sender = Sender {
            http_port: 80,
            instance: 7,
        };
        for (number, sender) in [(1, Some(sender)), (2, None), (3, Some(sender))] {
            let slot = table.insert(address(number)).expect("room");
            if number == 1 {
                table.set_live(slot);
            }
            let peer = table.get_mut(slot).expect("a peer");
            peer.sender = sender;
            peer.heard = Some(now);
            peer.given = (number == 1).then_some(now);
            peer.heard_old = sender.is_none().then_some(now);
        }
        let saved = table.save(now + ms(5_000));
        assert_eq!(saved.len(), 2, "one was never live");
        let mut restored = PeerTable::default();
        restored.restore(now + ms(5_000), &saved, ms(1_000));
        let live = restored.get(restored.find(address(1)).expect("there"));
        let live = live.expect("a peer");
        assert!(live.is_live && live.sender == Some(sender));
        assert_eq!(
            (live.heard, live.given),
            (Some(now - ms(1_000)), Some(now - ms(1_000)))
        );
        assert!(restored.has_old_peer(now));
        assert!(!restored.has_old_peer(now + HOUR));
    }
}
