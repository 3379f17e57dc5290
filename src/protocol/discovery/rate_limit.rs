//! How much is answered to whom, how many peers one network may introduce, and how many hosts are
//! greeted.
//!
//! Nothing is limited as long as all sources together ask for fewer hashes than a daemon can look
//! up. Beyond that live peers come first, each with the same share, and long asks of one source
//! end before its short ones: a forger who asks in a peer's name takes little from that peer.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

/// Over this time asks are added up.
const WINDOW: Duration = Duration::from_millis(100);

/// Hashes in a window: 40,000 a second.
const HASHES_PER_WINDOW: u32 = 4_000;

/// Of these, what sources may take that are no live peers.
const OTHERS_PER_WINDOW: u32 = HASHES_PER_WINDOW / 2;

/// An ask of so many hashes is a short one: what the 25 connections of a Nix want at once.
const SHORT_ASK: u32 = 28;

/// Sources that are counted one by one.
const MAX_SOURCES: usize = 4_096;

const SECOND: Duration = Duration::from_secs(1);

/// The asks of one window.
#[derive(Debug, Default)]
pub(super) struct AskLimit {
    began: Option<Instant>,
    total: u32,
    others: u32,
    live: HashMap<IpAddr, u32>,
    /// Live peers that asked in the window before.
    live_before: usize,
    /// There were too many asks in this window, and in the one before.
    is_full: bool,
    was_full: bool,
}

impl AskLimit {
    /// Whether an ask of `count` hashes is answered; if so it is counted.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        source: IpAddr,
        is_live: bool,
        count: u32,
    ) -> bool {
        let age = self.began.map(|at| now.saturating_duration_since(at));
        if age.is_none_or(|age| age >= WINDOW) {
            self.began = Some(now);
            (self.total, self.others) = (0, 0);
            self.live_before = self.live.len();
            self.live.clear();
            self.was_full = self.is_full && age.is_some_and(|age| age < 2 * WINDOW);
            self.is_full = false;
        }
        let count = count.max(1);
        let fits_all = self.total + count <= HASHES_PER_WINDOW;
        self.is_full |= !fits_all;
        let is_free = fits_all && !self.was_full;
        let is_counted = self.live.len() < MAX_SOURCES || self.live.contains_key(&source);
        let fits = if is_live && is_counted {
            let sources = self.live_before.max(self.live.len()).max(1) as u32;
            let taken = self.live.entry(source).or_default();
            let share = (HASHES_PER_WINDOW - OTHERS_PER_WINDOW) / sources;
            let share = if count <= SHORT_ASK { share } else { share / 2 };
            let fits = is_free || *taken + count <= share;
            *taken += if fits { count } else { 0 };
            fits
        } else {
            let fits = is_free || self.others + count <= OTHERS_PER_WINDOW;
            self.others += if fits { count } else { 0 };
            fits
        };
        self.is_full |= !fits;
        self.total += if fits { count } else { 0 };
        fits
    }
}

/// At most so many events of one source in a second; sources beyond [`MAX_SOURCES`] have none.
#[derive(Debug)]
pub(super) struct PerSecond {
    most: u32,
    began: Option<Instant>,
    sources: HashMap<IpAddr, u32>,
}

impl PerSecond {
    pub(super) fn new(most: u32) -> Self {
        Self {
            most,
            began: None,
            sources: HashMap::new(),
        }
    }

    /// Whether one more event of `source` is allowed; if so it is counted.
    pub(super) fn admit(&mut self, now: Instant, source: IpAddr) -> bool {
        let is_over = |began: Instant| now.saturating_duration_since(began) >= SECOND;
        if self.began.is_none_or(is_over) {
            self.began = Some(now);
            self.sources.clear();
        }
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            return false;
        }
        let count = self.sources.entry(source).or_default();
        *count += 1;
        *count <= self.most
    }
}

/// Peers that a /24 of IPv4 or a /64 of IPv6 may introduce in a second.
const NEW_PEERS_PER_SECOND: u32 = 8;

/// The peers that networks introduce.
#[derive(Debug)]
pub(super) struct NewPeerLimit(PerSecond);

impl Default for NewPeerLimit {
    fn default() -> Self {
        Self(PerSecond::new(NEW_PEERS_PER_SECOND))
    }
}

impl NewPeerLimit {
    /// Whether the network of `ip` may introduce one more; if so it is counted.
    pub(super) fn admit(&mut self, now: Instant, ip: IpAddr) -> bool {
        let network = match ip {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from(u32::from(v4) & (u32::MAX << 8))),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & (u128::MAX << 64))),
        };
        self.0.admit(now, network)
    }
}

/// For so long the kernel keeps a datagram to a host that does not exist in the send buffer, which
/// holds some 270 small datagrams by default.
const HOST_TIMEOUT: Duration = Duration::from_secs(3);
const MAX_UNANSWERED: usize = 96;

/// Limits asks that only check whether a peer is there: one per address and second. Forged asks may
/// name hosts that do not exist, so above [`MAX_UNANSWERED`] an asker is not checked.
#[derive(Debug)]
pub(super) struct GreetingLimit {
    each: PerSecond,
    unanswered: VecDeque<(Instant, IpAddr)>,
}

impl Default for GreetingLimit {
    fn default() -> Self {
        Self {
            each: PerSecond::new(1),
            unanswered: VecDeque::new(),
        }
    }
}

impl GreetingLimit {
    /// Whether `ip` may be asked; if so it is counted. `has_answered`: it answered a broadcast of
    /// ours; otherwise it only asked.
    pub(super) fn admit(&mut self, now: Instant, ip: IpAddr, has_answered: bool) -> bool {
        let is_over = |at: Instant| now.saturating_duration_since(at) >= HOST_TIMEOUT;
        while self.unanswered.front().is_some_and(|&(at, _)| is_over(at)) {
            self.unanswered.pop_front();
        }
        let fits = has_answered || self.unanswered.len() < MAX_UNANSWERED;
        let is_admitted = fits && self.each.admit(now, ip);
        if is_admitted && self.unanswered.len() < MAX_UNANSWERED {
            self.unanswered.push_back((now, ip));
        }
        is_admitted
    }

    /// `ip` has answered.
    pub(super) fn note_answer(&mut self, ip: IpAddr) {
        self.unanswered.retain(|&(_, greeted)| greeted != ip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number))
    }

    fn admitted(limit: &mut AskLimit, asks: u32, ask: (Instant, IpAddr, bool, u32)) -> usize {
        let (now, source, is_live, count) = ask;
        (0..asks)
            .filter(|_| limit.admit(now, source, is_live, count))
            .count()
    }

    #[test]
    fn a_flood_in_other_names_leaves_half_to_live_peers() {
        let (mut limit, now) = (AskLimit::default(), Instant::now());
        for (window, most) in [HASHES_PER_WINDOW, OTHERS_PER_WINDOW]
            .into_iter()
            .enumerate()
        {
            let now = now + WINDOW * window as u32;
            let flood = (0..1_000).filter(|&n| limit.admit(now, ip(n), false, 56));
            assert_eq!(flood.count() as u32, most / 56);
            assert_eq!(admitted(&mut limit, 40, (now, ip(1), true, 25)), 40);
        }
    }

    #[test]
    fn nothing_is_limited_below_forty_thousand_hashes_a_second() {
        for is_live in [false, true] {
            let (mut limit, now) = (AskLimit::default(), Instant::now());
            for window in 0..3 {
                let now = now + WINDOW * window;
                assert_eq!(admitted(&mut limit, 160, (now, ip(1), is_live, 25)), 160);
            }
        }
    }

    #[test]
    fn ten_thousand_short_asks_a_second_cost_a_live_peer_nothing() {
        let (mut limit, now) = (AskLimit::default(), Instant::now());
        assert_eq!(admitted(&mut limit, 1_000, (now, ip(1), true, 1)), 1_000);
        assert_eq!(admitted(&mut limit, 40, (now, ip(1), true, 25)), 40);
    }

    #[test]
    fn a_flood_of_long_asks_in_a_peers_name_leaves_room_for_its_short_ones() {
        let (mut limit, now) = (AskLimit::default(), Instant::now());
        admitted(&mut limit, 1_000, (now, ip(1), true, 56));
        assert!(limit.admit(now + WINDOW, ip(2), true, 1));
        admitted(&mut limit, 1_000, (now + WINDOW, ip(1), true, 56));
        let late = now + WINDOW + WINDOW / 2;
        assert!(admitted(&mut limit, 100, (late, ip(2), true, 8)) >= 100);
    }

    #[test]
    fn a_network_introduces_eight_in_a_second() {
        let (mut limit, now) = (NewPeerLimit::default(), Instant::now());
        let mut introduced = |now, from: u32| {
            let all = (from..from + 50).filter(|&n| limit.admit(now, ip(n)));
            all.count()
        };
        assert_eq!(introduced(now, 0), 8);
        assert_eq!(introduced(now, 256), 8, "another /24");
        assert_eq!(introduced(now + SECOND / 2, 100), 0);
        assert_eq!(introduced(now + SECOND, 100), 8);
    }

    #[test]
    fn askers_are_greeted_as_long_as_few_have_not_answered() {
        let (mut limit, now) = (GreetingLimit::default(), Instant::now());
        let there = (0..1_000).filter(|&n| {
            let is_greeted = limit.admit(now, ip(n), false);
            limit.note_answer(ip(n));
            is_greeted
        });
        assert_eq!(there.count(), 1_000);
        assert!(!limit.admit(now, ip(1), true), "once a second");
        let gone = (1_000..2_000).filter(|&n| limit.admit(now, ip(n), false));
        assert_eq!(gone.count(), MAX_UNANSWERED);
        assert!(limit.admit(now, ip(2_000), true), "it has answered");
        assert!(!limit.admit(now + HOST_TIMEOUT - SECOND, ip(2_001), false));
        assert!(limit.admit(now + HOST_TIMEOUT, ip(2_001), false));
    }

    #[test]
    fn sources_are_bounded() {
        let (mut limit, now) = (PerSecond::new(1), Instant::now());
        let count = (0..10_000).filter(|&n| limit.admit(now, ip(n))).count();
        assert_eq!(count, MAX_SOURCES);
        assert!(limit.admit(now + SECOND, ip(20_000)));
    }
}
