//! The table of peers: who was heard, who is waited for, and for whom there is no need to.

mod direct;

pub(super) use direct::Way;

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    limits::NewPeerLimit,
    peer::{Kind, Peer, SILENT_ASKS, Sign, UNKNOWN_ASKS},
    peer_info::PeerInfo,
    saved::SavedPeer,
    slots::{MAX_PEERS, Slots},
};
use crate::protocol::{PeerAddr, wire::About};

/// Configured peers that are taken; the others are not asked.
pub(super) const MAX_STATIC_PEERS: usize = 512;

/// For so long after an old peer was heard every lookup gives it its timeout.
const OLD_PEER_MEMORY: Duration = Duration::from_secs(600);

/// For so long after an answer whose sender found no place in the table every lookup waits
/// for its timeout: there are more peers than are known, as when a large LAN wakes up.
const CROWD_MEMORY: Duration = Duration::from_secs(2);

/// A saved peer that was not heard for longer is not taken back.
const SAVED_PEER_MEMORY: Duration = Duration::from_secs(24 * 3_600);

/// Where a sender is in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Learned {
    pub(super) slot: usize,
    /// The slot was another peer's until now, or nobody's.
    pub(super) is_new: bool,
    /// Its sender has come, or has something that it did not have.
    pub(super) is_news: bool,
}

/// All peers, in slots that lookups can keep sets of.
#[derive(Debug, Default)]
pub(super) struct Peers {
    slots: Vec<Peer>,
    by_address: HashMap<SocketAddr, usize>,
    /// Slots of the configured peers.
    statics: Vec<usize>,
    /// Those that lookups wait for: new, have answered a random id, and not been silent.
    waited: Slots,
    /// Those whose summary is here and says all that they have: they need not be asked.
    covered: Slots,
    /// Those that are waited for and do not understand batches.
    plain: Slots,
    /// Those that do.
    batchers: Slots,
    /// Those that have shown since the burst began that they are there, and are new.
    present: Slots,
    /// Those of them that have answered questions, too.
    proven: Slots,
    /// Generations of the summaries that are here, by instance.
    summaries: HashMap<u64, u64>,
    new_peers: NewPeerLimit,
    /// Until then whoever answers us is taken in: all of a large network answers one hello.
    welcome_until: Option<Instant>,
    /// When one of kind old was last heard.
    old_heard: Option<Instant>,
    /// The same of old peers that have answered nothing yet: anybody can ask in the name of
    /// one, so not many lookups of a burst pay for them.
    unproven_heard: Option<Instant>,
    unproven_asks: u8,
    /// When somebody answered a random id and found no place.
    crowded: Option<Instant>,
}

impl Peers {
    /// The configured peers are in the table from the start, and never leave it.
    pub(super) fn set_static(&mut self, addresses: &[SocketAddr]) {
        for slot in std::mem::take(&mut self.statics) {
            self.slots[slot].is_static = false;
        }
        for &address in addresses.iter().take(MAX_STATIC_PEERS) {
            let known = self.by_address.get(&address).copied();
            if let Some(slot) = known.or_else(|| self.place(address, true))
                && !self.slots[slot].is_static
            {
                self.slots[slot].is_static = true;
                self.statics.push(slot);
            }
        }
    }

    /// Those of the configured peers that are so by an announcement alone.
    pub(super) fn set_announced(&mut self, addresses: &[SocketAddr]) {
        for &slot in &self.statics {
            let peer = &mut self.slots[slot];
            peer.is_announced = addresses.contains(&peer.address);
        }
    }

    /// What a burst has to find out anew: who is there, how it speaks, and what it shares.
    pub(super) fn begin_burst(&mut self, welcome_until: Instant) {
        self.welcome_until = Some(welcome_until);
        self.waited = Slots::default();
        self.covered = Slots::default();
        self.summaries.clear();
        self.plain = Slots::default();
        self.batchers = Slots::default();
        self.present = Slots::default();
        self.proven = Slots::default();
        self.unproven_asks = 0;
        for peer in &mut self.slots {
            peer.begin_burst();
        }
    }

    /// Notes a datagram of `from`. `None` if it is not in the table, and there is no room
    /// or its network has introduced too many.
    pub(super) fn learn(&mut self, now: Instant, from: SocketAddr, sign: Sign) -> Option<Learned> {
        let known = self.by_address.get(&from).copied();
        let Some(slot) = known.or_else(|| self.admit(now, from, sign)) else {
            if sign.answers() {
                self.crowded = Some(now);
            }
            return None;
        };
        let peer = &mut self.slots[slot];
        let was_old = peer.kind == Kind::Old;
        let was_confirmed = peer.is_confirmed;
        let before = peer.about;
        peer.learn(now, sign);
        let is_news = known.is_none() || peer.about != before;
        match peer.kind {
            Kind::Old if peer.has_answered => self.old_heard = Some(now),
            Kind::Old => self.unproven_heard = Some(now),
            Kind::New if was_old => self.recall_old(),
            _ => {}
        }
        let instance = |about: Option<About>| about.map(|about| about.instance);
        if instance(self.slots[slot].about) != instance(before) {
            self.release_aliases(slot);
        }
        if self.slots[slot].is_confirmed && !was_confirmed {
            self.find_twins(slot);
        }
        self.judge(slot);
        Some(Learned {
            slot,
            is_new: known.is_none(),
            is_news,
        })
    }

    /// Whether the hello `id` of the peer in `slot` is to be answered: once.
    pub(super) fn answers_hello(&mut self, slot: usize, id: u32) -> bool {
        self.slots[slot].answered_hello.replace(id) != Some(id)
    }

    /// Notes how long after an ask was first and last sent the peer in `slot` answered.
    pub(super) fn note_round_trip(&mut self, slot: usize, first: Duration, last: Duration) {
        self.slots[slot].measure(first, last);
    }

    /// The summaries that are here: instance and generation of each.
    pub(super) fn set_summaries(&mut self, summaries: &[(u64, u64)]) {
        let summaries = summaries.iter().copied().collect();
        if self.summaries == summaries {
            return;
        }
        self.summaries = summaries;
        for slot in 0..self.slots.len() {
            self.judge(slot);
        }
    }

    /// Those whose summary says all that they have.
    pub(super) fn covered(&self) -> &Slots {
        &self.covered
    }

    /// How long to wait for those in `slots` before they are asked again.
    pub(super) fn window(&self, slots: impl Iterator<Item = usize>, longest: Duration) -> Duration {
        let windows = slots.map(|slot| self.slots[slot].window(longest));
        windows.max().unwrap_or(longest)
    }

    /// New peers that have shown since the burst began that they are there.
    pub(super) fn present(&self) -> &Slots {
        &self.present
    }

    /// Those of them that have answered a question at any time.
    pub(super) fn proven(&self) -> &Slots {
        &self.proven
    }

    /// Whether `address` is that of one of them.
    pub(super) fn is_present(&self, address: SocketAddr) -> bool {
        let slot = self.by_address.get(&address).copied();
        slot.is_some_and(|slot| self.present.contains(slot))
    }

    /// Whether there is somebody who understands batches.
    pub(super) fn has_batchers(&self) -> bool {
        !self.batchers.is_empty()
    }

    /// Whether somebody that is waited for understands requests alone, or may do so; `surely`: has
    /// said so, or has not answered a batch that it was sent.
    pub(super) fn has_plain(&self, surely: bool) -> bool {
        let mut plain = self.plain.iter();
        plain.any(|slot| !(surely && self.slots[slot].is_unclear()))
    }

    /// Notes that `address`, if it is configured, is this machine itself.
    pub(super) fn note_myself(&mut self, address: SocketAddr) {
        if let Some(&slot) = self.by_address.get(&address) {
            self.slots[slot].is_myself = self.slots[slot].is_static;
            self.judge(slot);
        }
    }

    /// Notes a first answer to a request.
    pub(super) fn note_answer(&mut self, slot: usize, http: Option<PeerAddr>) {
        let peer = &mut self.slots[slot];
        match http {
            Some(http) => {
                peer.present += 1;
                peer.http = Some(http);
            }
            None => peer.absent += 1,
        }
    }

    /// Notes that an ask ended at its deadline, having heard those in `answered`.
    pub(super) fn note_silence(&mut self, answered: &Slots) {
        self.unproven_asks = self.unproven_asks.saturating_add(1);
        let silent = self.waited.minus(&self.covered);
        for slot in silent.without(answered) {
            self.add_silence(slot);
        }
        for place in 0..self.statics.len() {
            let slot = self.statics[place];
            if self.slots[slot].keeps_window() && !answered.contains(slot) {
                self.add_silence(slot);
            }
        }
    }

    fn add_silence(&mut self, slot: usize) {
        let peer = &mut self.slots[slot];
        peer.silent_asks = peer.silent_asks.saturating_add(1);
        peer.is_doubled = false;
        if peer.silent_asks >= SILENT_ASKS {
            self.release_aliases(slot);
        }
        self.judge(slot);
    }

    /// Those that lookups wait for.
    pub(super) fn waited(&self) -> &Slots {
        &self.waited
    }

    /// Whether somebody may hold a path that is not waited for: lookups then take their time.
    pub(super) fn may_miss_someone(&self, now: Instant) -> bool {
        let lately = |heard: Option<Instant>| heard.is_some_and(|at| now < at + OLD_PEER_MEMORY);
        lately(self.old_heard)
            || lately(self.unproven_heard) && self.unproven_asks < UNKNOWN_ASKS
            || self.crowded.is_some_and(|at| now < at + CROWD_MEMORY)
            || self.static_peers().any(Peer::keeps_window)
    }

    /// Whether `address` is configured.
    pub(super) fn is_static(&self, address: SocketAddr) -> bool {
        let slot = self.by_address.get(&address);
        slot.is_some_and(|&slot| self.slots[slot].is_static)
    }

    /// The table.
    pub(super) fn snapshot(&self, now: Instant) -> Vec<PeerInfo> {
        let line = |(slot, peer): (usize, &Peer)| PeerInfo {
            address: peer.address,
            http: peer.http,
            kind: peer.kind,
            about: peer.about,
            is_static: peer.is_static,
            is_alias: peer.twin.is_some(),
            has_answered: peer.has_answered,
            is_waited_for: self.waited.contains(slot),
            heard: peer.heard.map(|at| now.saturating_duration_since(at)),
            silent_asks: peer.silent_asks.into(),
            is_covered: self.covered.contains(slot),
            present: peer.present,
            absent: peer.absent,
        };
        self.slots.iter().enumerate().map(line).collect()
    }

    /// What is worth keeping while the daemon sleeps.
    pub(super) fn save(&self, now: Instant) -> Vec<SavedPeer> {
        self.slots
            .iter()
            .filter_map(|peer| peer.save(now))
            .collect()
    }

    /// Puts back what [`Self::save`] gave, `asleep` ago.
    pub(super) fn restore(&mut self, now: Instant, saved: &[SavedPeer], asleep: Duration) {
        for line in saved.iter().take(MAX_PEERS) {
            let age = Duration::from_secs(line.heard_seconds_ago).saturating_add(asleep);
            if age > SAVED_PEER_MEMORY {
                continue;
            }
            let Some(heard) = now.checked_sub(age) else {
                continue;
            };
            let known = self.by_address.get(&line.address).copied();
            let Some(slot) = known.or_else(|| self.place(line.address, line.has_answered)) else {
                continue;
            };
            let peer = &mut self.slots[slot];
            peer.kind = line.kind;
            if let Some(about) = line.about {
                peer.introduce(about);
            }
            peer.has_answered = line.has_answered;
            peer.heard = Some(heard);
        }
        self.recall_old();
    }

    fn static_peers(&self) -> impl Iterator<Item = &Peer> {
        self.statics.iter().map(|&slot| &self.slots[slot])
    }

    fn admit(&mut self, now: Instant, from: SocketAddr, sign: Sign) -> Option<usize> {
        let is_welcome = sign.answers() && self.welcome_until.is_some_and(|until| now < until);
        let admitted = is_welcome || self.new_peers.take(now, from.ip());
        admitted.then(|| self.place(from, sign.answers())).flatten()
    }

    /// A slot for a peer that has none; one that proved itself may take the place of one
    /// that did not, or of the one that was not heard for longest.
    fn place(&mut self, address: SocketAddr, proven: bool) -> Option<usize> {
        let peer = Peer::new(address);
        if self.slots.len() < MAX_PEERS {
            self.slots.push(peer);
            let slot = self.slots.len() - 1;
            self.by_address.insert(address, slot);
            return Some(slot);
        }
        let least = |(_, peer): &(usize, &Peer)| (peer.has_answered, peer.heard);
        let others = self.slots.iter().enumerate();
        let (slot, evicted) = others
            .filter(|(_, peer)| !peer.is_static)
            .min_by_key(least)?;
        if evicted.has_answered && !proven {
            return None;
        }
        self.by_address.remove(&evicted.address);
        self.by_address.insert(address, slot);
        self.slots[slot] = peer;
        self.release_aliases(slot);
        self.judge(slot);
        self.recall_old();
        Some(slot)
    }

    /// Whether the peer in `slot` is waited for from now on, and whether it need be asked.
    fn judge(&mut self, slot: usize) {
        let peer = &self.slots[slot];
        let summary = peer
            .about
            .filter(|_| peer.is_confirmed)
            .is_some_and(|about| {
                let known = self.summaries.get(&about.instance);
                known.is_some_and(|&generation| generation >= about.generation)
            });
        let (waited, plain) = (peer.deserves_waiting(), !peer.takes_batches());
        let is_present = peer.kind == Kind::New && !peer.is_myself && peer.twin.is_none();
        self.covered.set(slot, summary && waited);
        self.waited.set(slot, waited);
        self.plain.set(slot, waited && plain);
        self.batchers.set(slot, is_present && !plain);
        self.present.set(slot, is_present);
        self.proven.set(slot, is_present && peer.takes_questions);
    }

    fn recall_old(&mut self) {
        let old = self.slots.iter().filter(|peer| peer.kind == Kind::Old);
        let (proven, unproven): (Vec<&Peer>, Vec<&Peer>) = old.partition(|peer| peer.has_answered);
        self.old_heard = proven.iter().filter_map(|peer| peer.heard).max();
        self.unproven_heard = unproven.iter().filter_map(|peer| peer.heard).max();
    }
}
