//! The table of peers: who was heard, who is waited for, and for whom there is no need to.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    limits::NewPeerLimit,
    peer_info::PeerInfo,
    saved::SavedPeer,
    slots::{MAX_PEERS, Slots},
};
use crate::protocol::{PeerAddr, wire::About};

/// Configured peers that are taken; the others are not asked.
pub(super) const MAX_STATIC_PEERS: usize = 512;

/// After this many lookups in a row without a word from it a peer is not waited for, until
/// it is heard again: one that left without a goodbye costs this many timeouts.
const SILENT_LOOKUPS: u8 = 4;

/// So many lookups of a burst wait for a configured peer of which nothing is known: it may
/// be an old one, which never says that it has nothing.
const UNKNOWN_LOOKUPS: u8 = 16;

/// From one question to a silent configured peer to the next.
const SILENT_PAUSE: Duration = Duration::from_secs(1);

/// For so long after an old peer was heard every lookup gives it its timeout.
const OLD_PEER_MEMORY: Duration = Duration::from_secs(600);

/// For so long after an answer whose sender found no place in the table every lookup waits
/// for its timeout: there are more peers than are known, as when a large LAN wakes up.
const CROWD_MEMORY: Duration = Duration::from_secs(2);

/// A saved peer that was not heard for longer is not taken back.
const SAVED_PEER_MEMORY: Duration = Duration::from_secs(24 * 3_600);

/// What is known of how a peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Nothing yet, or nothing since the burst began.
    Unknown,
    /// It asks and answers, and never said hello, here or absent: it answers only what it has.
    Old,
    /// It answers every request.
    New,
}

/// What a datagram says about its sender.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sign {
    Request,
    Response,
    Absent,
    Hello(About),
    Here(About),
}

impl Sign {
    /// Whether only who received our random id can have sent it.
    fn answers(self) -> bool {
        matches!(self, Self::Response | Self::Absent | Self::Here(_))
    }
}

#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    is_static: bool,
    /// The configuration named this machine itself.
    is_myself: bool,
    /// Broadcast reaches this static peer too: it answered the same request twice.
    is_doubled: bool,
    kind: Kind,
    about: Option<About>,
    has_answered: bool,
    heard: Option<Instant>,
    silent_lookups: u8,
    /// When it was last asked directly.
    asked: Option<Instant>,
    answered_hello: Option<u32>,
    http: Option<PeerAddr>,
    present: u64,
    absent: u64,
}

/// Where a sender is in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Learned {
    pub(super) slot: usize,
    /// The slot was another peer's until now, or nobody's.
    pub(super) is_new: bool,
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
    new_peers: NewPeerLimit,
    /// When one of kind old was last heard.
    old_heard: Option<Instant>,
    /// The same of old peers that have answered nothing yet: anybody can ask in the name of
    /// one, so not many lookups of a burst pay for them.
    unproven_heard: Option<Instant>,
    unproven_lookups: u8,
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

    /// What a burst has to find out anew: who is there, and how it speaks. Old peers stay
    /// old, they do not answer a hello.
    pub(super) fn begin_burst(&mut self) {
        self.waited = Slots::default();
        self.unproven_lookups = 0;
        for peer in &mut self.slots {
            peer.is_myself = false;
            peer.is_doubled = false;
            peer.silent_lookups = 0;
            if peer.kind == Kind::New {
                peer.kind = Kind::Unknown;
            }
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
        peer.heard = Some(now);
        peer.has_answered |= sign.answers();
        // Anybody can send the other signs in its name.
        if matches!(sign, Sign::Response | Sign::Absent) {
            peer.silent_lookups = 0;
        }
        match sign {
            Sign::Request | Sign::Response if peer.kind == Kind::Unknown => peer.kind = Kind::Old,
            Sign::Request | Sign::Response => {}
            Sign::Absent => peer.kind = Kind::New,
            Sign::Hello(about) | Sign::Here(about) => {
                peer.kind = Kind::New;
                peer.introduce(about);
            }
        }
        match peer.kind {
            Kind::Old if peer.has_answered => self.old_heard = Some(now),
            Kind::Old => self.unproven_heard = Some(now),
            Kind::New if was_old => self.recall_old(),
            _ => {}
        }
        self.judge(slot);
        Some(Learned {
            slot,
            is_new: known.is_none(),
        })
    }

    /// Whether the hello `id` of the peer in `slot` is to be answered: once.
    pub(super) fn answers_hello(&mut self, slot: usize, id: u32) -> bool {
        self.slots[slot].answered_hello.replace(id) != Some(id)
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

    /// Notes a second answer to the same request.
    pub(super) fn note_double(&mut self, slot: usize) {
        self.slots[slot].is_doubled = self.slots[slot].is_static;
    }

    /// Notes that a lookup ended at its deadline, having heard those in `answered`.
    pub(super) fn note_silence(&mut self, answered: &Slots) {
        self.unproven_lookups = self.unproven_lookups.saturating_add(1);
        let silent: Vec<usize> = self.waited.without(answered).collect();
        for slot in silent {
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
        peer.silent_lookups = peer.silent_lookups.saturating_add(1);
        peer.is_doubled = false;
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
            || lately(self.unproven_heard) && self.unproven_lookups < UNKNOWN_LOOKUPS
            || self.crowded.is_some_and(|at| now < at + CROWD_MEMORY)
            || self.static_peers().any(Peer::keeps_window)
    }

    /// Configured peers that are to be asked directly at `now`. Who is silent is asked once a
    /// second: what is sent to a machine that is off takes room in our socket until the system
    /// gives up looking for it, seconds later, and the others are not asked for want of it.
    pub(super) fn ask_directly(&mut self, now: Instant) -> Vec<SocketAddr> {
        let mut asked = Vec::new();
        for &slot in &self.statics {
            let peer = &mut self.slots[slot];
            let silent = peer.silent_lookups >= SILENT_LOOKUPS;
            let waits = silent && peer.asked.is_some_and(|at| now < at + SILENT_PAUSE);
            if !(waits || peer.is_myself || peer.is_doubled) {
                peer.asked = Some(now);
                asked.push(peer.address);
            }
        }
        asked
    }

    /// Whether there is a configured peer that is another machine.
    pub(super) fn has_others_configured(&self) -> bool {
        let other = |peer: &Peer| !peer.is_myself && !peer.is_doubled;
        self.static_peers().any(other)
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
            has_answered: peer.has_answered,
            is_waited_for: self.waited.contains(slot),
            heard: peer.heard.map(|at| now.saturating_duration_since(at)),
            silent_lookups: peer.silent_lookups.into(),
            present: peer.present,
            absent: peer.absent,
        };
        self.slots.iter().enumerate().map(line).collect()
    }

    /// What is worth keeping while the daemon sleeps.
    pub(super) fn save(&self, now: Instant) -> Vec<SavedPeer> {
        let saved = |peer: &Peer| {
            Some(SavedPeer {
                address: peer.address,
                kind: peer.kind,
                about: peer.about,
                has_answered: peer.has_answered,
                heard_seconds_ago: now.saturating_duration_since(peer.heard?).as_secs(),
            })
        };
        self.slots.iter().filter_map(saved).collect()
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
        let admitted = self.new_peers.take(now, from.ip());
        admitted.then(|| self.place(from, sign.answers())).flatten()
    }

    /// A slot for a peer that has none; one that proved itself may take the place of one
    /// that did not, or of the one that was not heard for longest.
    fn place(&mut self, address: SocketAddr, proven: bool) -> Option<usize> {
        let peer = Peer {
            address,
            is_static: false,
            is_myself: false,
            is_doubled: false,
            kind: Kind::Unknown,
            about: None,
            has_answered: false,
            heard: None,
            silent_lookups: 0,
            asked: None,
            answered_hello: None,
            http: None,
            present: 0,
            absent: 0,
        };
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
        self.waited.remove(slot);
        self.recall_old();
        Some(slot)
    }

    /// Whether the peer in `slot` is waited for from now on.
    fn judge(&mut self, slot: usize) {
        if self.slots[slot].deserves_waiting() {
            self.waited.insert(slot);
        } else {
            self.waited.remove(slot);
        }
    }

    fn recall_old(&mut self) {
        let old = self.slots.iter().filter(|peer| peer.kind == Kind::Old);
        let (proven, unproven): (Vec<&Peer>, Vec<&Peer>) = old.partition(|peer| peer.has_answered);
        self.old_heard = proven.iter().filter_map(|peer| peer.heard).max();
        self.unproven_heard = unproven.iter().filter_map(|peer| peer.heard).max();
    }
}

impl Peer {
    fn introduce(&mut self, about: About) {
        self.about = Some(about);
        self.http = http_addr(self.address, about.http_port);
    }

    fn deserves_waiting(&self) -> bool {
        self.kind == Kind::New
            && self.has_answered
            && !self.is_myself
            && self.silent_lookups < SILENT_LOOKUPS
    }

    fn keeps_window(&self) -> bool {
        self.is_static
            && self.kind == Kind::Unknown
            && !self.is_myself
            && self.silent_lookups < UNKNOWN_LOOKUPS
    }
}

/// Where a peer that is heard at `udp` serves.
pub(super) fn http_addr(udp: SocketAddr, port: u16) -> Option<PeerAddr> {
    let mut http = udp;
    http.set_port(port);
    PeerAddr::new(http).ok()
}
