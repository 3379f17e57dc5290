//! The peers that are known, and what is on its way to each: its queue and its repeats.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use super::{
    LookupId, PersistedPeer,
    slots::{MAX_SLOTS, Slots},
};
use crate::protocol::{PeerAddr, datagram::Sender};

/// Copies of an ask beside the first.
pub(super) const REPEATS: u32 = 3;

/// The longest pause between two copies.
const LONGEST_GAP: Duration = Duration::from_millis(80);

/// The retransmission time before a round trip was measured, and the least there is: a busy
/// machine is late by that at times.
const FIRST_TIMEOUT: Duration = Duration::from_millis(20);
const LEAST_TIMEOUT: Duration = Duration::from_millis(5);

/// The longest that is believed: beyond it nothing is waited for.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(1);

/// A wait that every lookup may cost.
pub(super) const FREE_WAIT: Duration = Duration::from_millis(5);

/// The same while a peer answers that is not farther away than that: two of its datagrams may be
/// lost. It was heard within [`ANSWERS_NOW`].
const FREE_REPEATS: Duration = Duration::from_millis(20);
const ANSWERS_NOW: Duration = Duration::from_secs(1);

/// A peer that was heard within this time is awake.
const AWAKE: Duration = Duration::from_secs(60);

/// The round trip of a peer that is worth it is free, up to this.
const LONGEST_FREE_WAIT: Duration = Duration::from_millis(200);

/// A peer that gave a path within this time is worth waiting for.
const GIVEN_COUNTS_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// The next ask leaves when the last was answered, or after this.
const PAUSE: Duration = Duration::from_millis(1);

/// The same for a peer that does not answer: the kernel keeps what is sent to a host that is
/// not there for seconds, in the buffer that the asks to others need.
const SILENT_PAUSE: Duration = Duration::from_millis(100);

/// Peers that the table takes; there is room beyond for those that the configuration names.
const MAX_PEERS: usize = 1_024;

/// A peer that was heard within this time is known; an old one answers within it.
pub(super) const HOUR: Duration = Duration::from_secs(3600);

/// How long a round trip takes, as RFC 6298 estimates it.
#[derive(Debug, Clone, Copy)]
struct RoundTrip {
    mean: Duration,
    deviation: Duration,
}

/// A hash that a peer is to be asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) lookup: LookupId,
    /// 0 for the first copy.
    pub(super) copy: u32,
    /// When that copy left.
    pub(super) first_asked: Instant,
}

/// Lookups whose copy left in one datagram: at `due` those without an answer are repeated.
#[derive(Debug)]
pub(super) struct Wave {
    pub(super) due: Instant,
    pub(super) sent: Vec<Wanted>,
}

/// One peer, at one address.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) is_configured: bool,
    /// DNS-SD announces it.
    pub(super) is_announced: bool,
    /// The configuration names this machine itself.
    pub(super) is_myself: bool,
    /// What it says of itself; none of an old peer, and before it has answered.
    pub(super) sender: Option<Sender>,
    /// Index of the interface that its answers come in on; 0 if that is not known.
    pub(super) interface: u32,
    /// It has answered a unicast ask.
    pub(super) is_live: bool,
    /// It has let a whole lookup pass: asked, not waited for, until it answers.
    pub(super) is_silent: bool,
    /// When it last answered.
    pub(super) heard: Option<Instant>,
    /// When it last answered as an old peer does.
    pub(super) heard_old: Option<Instant>,
    /// When it was last asked as an old peer is.
    pub(super) old_requested: Option<Instant>,
    /// When it last gave a path.
    pub(super) given: Option<Instant>,
    /// What the budget has paid for lookups that it then said it has the path of. It comes back
    /// when it gives one.
    pub(super) owed: Duration,
    /// Paths it gave in this burst.
    pub(super) given_in_burst: u32,
    pub(super) queue: Vec<Wanted>,
    pub(super) waves: Vec<Wave>,
    /// The last ask that left: id, when, and whether it was answered.
    pub(super) last_ask: Option<(u32, Instant, bool)>,
    pub(super) present: u64,
    pub(super) absent: u64,
    round_trip: Option<RoundTrip>,
}

impl Peer {
    fn new(address: SocketAddr) -> Self {
        Self {
            address,
            is_configured: false,
            is_announced: false,
            is_myself: false,
            sender: None,
            interface: 0,
            is_live: false,
            is_silent: false,
            heard: None,
            heard_old: None,
            old_requested: None,
            given: None,
            owed: Duration::ZERO,
            given_in_burst: 0,
            queue: Vec::new(),
            waves: Vec::new(),
            last_ask: None,
            present: 0,
            absent: 0,
            round_trip: None,
        }
    }

    /// Takes in how long an answer took.
    pub(super) fn measure(&mut self, took: Duration) {
        self.round_trip = Some(match self.round_trip {
            Some(RoundTrip { mean, deviation }) => RoundTrip {
                deviation: (deviation * 3 + mean.abs_diff(took)) / 4,
                mean: (mean * 7 + took) / 8,
            },
            None => RoundTrip {
                mean: took,
                deviation: took / 2,
            },
        });
    }

    /// The retransmission time.
    pub(super) fn timeout(&self) -> Duration {
        let measured = |it: RoundTrip| it.mean + it.deviation * 4;
        let timeout = self.round_trip.map_or(FIRST_TIMEOUT, measured);
        timeout.clamp(LEAST_TIMEOUT, LONGEST_TIMEOUT)
    }

    /// The same, if a round trip was measured.
    pub(super) fn measured_timeout(&self) -> Option<Duration> {
        self.round_trip.map(|_| self.timeout())
    }

    /// How long after copy number `copy` the next one leaves, or the repeats are over.
    pub(super) fn gap(&self, copy: u32) -> Duration {
        let timeout = self.timeout();
        let gap = (timeout * (1 << copy)).min(LONGEST_GAP);
        if copy < REPEATS {
            gap
        } else {
            gap.max(timeout)
        }
    }

    /// Whether its round trip need not be paid.
    pub(super) fn is_trusted_to_answer(&self, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < GIVEN_COUNTS_FOR;
        self.is_configured || self.given.is_some_and(is_recent)
    }

    /// How long a lookup waits for it at no cost; `is_over`: nothing is left that may be paid.
    pub(super) fn free_wait(&self, now: Instant, is_over: bool) -> Duration {
        if self.is_silent {
            return FIRST_TIMEOUT;
        }
        let mean = self.round_trip.map(|it| it.mean);
        let is_near = self.is_live && mean.is_some_and(|mean| mean <= FREE_WAIT);
        let least = if is_near && self.was_heard_within(now, ANSWERS_NOW) {
            FREE_REPEATS
        } else {
            FREE_WAIT
        };
        if self.is_trusted_to_answer(now) {
            if self.was_heard_within(now, AWAKE) {
                (self.timeout() * 8).clamp(FREE_REPEATS, LONGEST_FREE_WAIT)
            } else {
                self.timeout().clamp(least, LONGEST_FREE_WAIT)
            }
        } else if !is_near && is_over {
            Duration::ZERO
        } else {
            least
        }
    }

    /// How long it is waited for when it is silent, and nobody else is there to wait for.
    pub(super) fn silent_wait(&self) -> Duration {
        self.timeout().max(FIRST_TIMEOUT)
    }

    /// Whether something waits to be sent to it, or to be repeated.
    pub(super) fn is_busy(&self) -> bool {
        !(self.queue.is_empty() && self.waves.is_empty())
    }

    /// When the next ask may leave.
    pub(super) fn ready_at(&self, now: Instant) -> Instant {
        let pause = if self.is_silent { SILENT_PAUSE } else { PAUSE };
        match self.last_ask {
            Some((_, at, false)) => (at + pause).max(now),
            _ => now,
        }
    }

    /// When there is something to do for it.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let ready = (!self.queue.is_empty()).then(|| self.ready_at(now));
        let repeat = self.waves.iter().map(|wave| wave.due).min();
        ready.into_iter().chain(repeat).min()
    }

    /// Where it serves, if it said so.
    pub(super) fn http(&self) -> Option<PeerAddr> {
        http_address(self.address, self.sender?.http_port)
    }

    pub(super) fn was_heard_within(&self, now: Instant, time: Duration) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < time;
        self.heard.is_some_and(is_recent)
    }
}

/// Where a peer that answers at `udp` serves.
pub(super) fn http_address(udp: SocketAddr, port: u16) -> Option<PeerAddr> {
    let mut http = udp;
    http.set_port(port);
    PeerAddr::new(http).ok()
}

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

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    fn address(number: u16) -> SocketAddr {
        SocketAddr::new([10, 0, (number >> 8) as u8, number as u8].into(), 12_304)
    }

    #[test]
    fn repeats_follow_the_round_trip() {
        let mut peer = Peer::new(address(1));
        let gaps = |peer: &Peer| [0, 1, 2, 3].map(|copy| peer.gap(copy).as_millis());
        assert_eq!(gaps(&peer), [20, 40, 80, 80], "before the first answer");
        for _ in 0..50 {
            peer.measure(Duration::from_micros(300));
        }
        assert_eq!(gaps(&peer), [5, 10, 20, 40]);
        for _ in 0..200 {
            peer.measure(ms(150));
        }
        let [first, second, third, last] = gaps(&peer);
        assert_eq!([first, second, third], [80, 80, 80]);
        assert!((150..180).contains(&last), "{last}");
    }

    #[test]
    fn the_round_trip_of_a_giver_is_free_up_to_a_limit() {
        let (mut peer, now) = (Peer::new(address(1)), Instant::now());
        for _ in 0..50 {
            peer.measure(ms(60));
        }
        assert_eq!(peer.free_wait(now, false), FREE_WAIT);
        peer.given = Some(now);
        assert_eq!(peer.free_wait(now, false).as_millis(), 60);
        for _ in 0..50 {
            peer.measure(ms(400));
        }
        assert_eq!(peer.free_wait(now, false), LONGEST_FREE_WAIT);
        assert_eq!(peer.free_wait(now + GIVEN_COUNTS_FOR, false), FREE_WAIT);
        assert!(peer.free_wait(now + GIVEN_COUNTS_FOR, true).is_zero());
        peer.is_silent = true;
        assert_eq!(peer.free_wait(now, false), FIRST_TIMEOUT);
    }

    #[test]
    fn two_lost_datagrams_of_a_near_peer_that_answers_cost_nothing() {
        let (mut peer, now) = (Peer::new(address(1)), Instant::now());
        peer.measure(ms(1));
        peer.heard = Some(now);
        assert_eq!(
            peer.free_wait(now, true),
            Duration::ZERO,
            "it may be forged"
        );
        peer.is_live = true;
        assert_eq!(peer.free_wait(now, true), FREE_REPEATS);
        assert!(FREE_REPEATS >= peer.gap(0) + peer.gap(1) + FREE_WAIT);
        assert_eq!(peer.free_wait(now + ANSWERS_NOW, true), FREE_WAIT);
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
