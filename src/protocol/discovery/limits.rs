//! How much one source may ask for, and how many peers one network may introduce.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

/// Sources that are remembered one by one; the rest share one allowance.
const MAX_SOURCES: usize = 4_096;

/// Networks that are remembered one by one.
const MAX_NETWORKS: usize = 1_024;

/// Peers that a network may introduce in any second.
const NEW_PEERS_PER_SECOND: usize = 8;

const SECOND: Duration = Duration::from_secs(1);

/// A token bucket, kept as the time at which it will be full again.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    full_at: Instant,
}

/// Token buckets, one per source.
#[derive(Debug)]
pub(super) struct SourceLimit {
    per_token: Duration,
    depth: Duration,
    sources: HashMap<IpAddr, Bucket>,
    /// For sources beyond [`MAX_SOURCES`], so that those already known keep theirs.
    overflow: Option<Bucket>,
    forgotten: Option<Instant>,
}

impl SourceLimit {
    /// `rate` requests a second, and `burst` at once.
    pub(super) fn new(rate: u32, burst: u32) -> Self {
        let per_token = SECOND / rate.max(1);
        Self {
            per_token,
            depth: per_token * burst.max(1),
            sources: HashMap::new(),
            overflow: None,
            forgotten: None,
        }
    }

    /// Takes `count` tokens of `source`; false, and takes none, if it has fewer.
    pub(super) fn take(&mut self, now: Instant, source: IpAddr, count: u32) -> bool {
        if !self.sources.contains_key(&source) && self.sources.len() >= MAX_SOURCES {
            self.forget_idle(now);
        }
        let room = self.sources.len() < MAX_SOURCES;
        let bucket = if room || self.sources.contains_key(&source) {
            self.sources
                .entry(source)
                .or_insert(Bucket { full_at: now })
        } else {
            self.overflow.get_or_insert(Bucket { full_at: now })
        };
        let full_at = bucket.full_at.max(now) + self.per_token * count;
        if full_at - now > self.depth {
            return false;
        }
        bucket.full_at = full_at;
        true
    }

    /// Drops the buckets that are full, at most once a second: it looks at all of them.
    fn forget_idle(&mut self, now: Instant) {
        if self.forgotten.is_some_and(|at| now < at + SECOND) {
            return;
        }
        self.forgotten = Some(now);
        self.sources.retain(|_, bucket| bucket.full_at > now);
    }
}

/// A /24 of IPv4 or a /64 of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Network(IpAddr);

impl Network {
    fn of(ip: IpAddr) -> Self {
        Self(match ip {
            IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from(u32::from(v4) & (u32::MAX << 8))),
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & (u128::MAX << 64))),
        })
    }
}

/// When a network's last new peers came.
#[derive(Debug, Default)]
pub(super) struct NewPeerLimit {
    networks: HashMap<Network, [Option<Instant>; NEW_PEERS_PER_SECOND]>,
    forgotten: Option<Instant>,
}

impl NewPeerLimit {
    /// Whether the network of `ip` may introduce one more; if so it is counted.
    pub(super) fn take(&mut self, now: Instant, ip: IpAddr) -> bool {
        let network = Network::of(ip);
        let recent = |at: &Option<Instant>| at.is_some_and(|at| now < at + SECOND);
        if !self.networks.contains_key(&network) && self.networks.len() >= MAX_NETWORKS {
            if !recent(&self.forgotten) {
                self.forgotten = Some(now);
                self.networks.retain(|_, times| times.iter().any(recent));
            }
            if self.networks.len() >= MAX_NETWORKS {
                return false;
            }
        }
        let times = self.networks.entry(network).or_default();
        match times.iter_mut().find(|at| !recent(at)) {
            Some(place) => {
                *place = Some(now);
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + number))
    }

    #[test]
    fn a_source_has_its_burst_and_then_its_rate() {
        let mut limit = SourceLimit::new(100, 10);
        let start = Instant::now();
        let granted =
            |limit: &mut SourceLimit, now| (0..50).filter(|_| limit.take(now, ip(1), 1)).count();
        assert_eq!(granted(&mut limit, start), 10);
        assert!(limit.take(start, ip(2), 1), "another source has its own");
        assert_eq!(granted(&mut limit, start + Duration::from_millis(50)), 5);
        assert_eq!(granted(&mut limit, start + Duration::from_secs(9)), 10);
    }

    #[test]
    fn a_flood_of_sources_shares_one_allowance() {
        let mut limit = SourceLimit::new(100, 10);
        let start = Instant::now();
        assert!(limit.take(start, ip(0), 1));
        let granted = (1..100_000)
            .filter(|&n| limit.take(start, ip(n), 1))
            .count();
        assert_eq!(granted, MAX_SOURCES - 1 + 10);
        assert_eq!(limit.sources.len(), MAX_SOURCES);
        assert!(limit.take(start, ip(0), 1), "a known source keeps its own");
        assert!(limit.take(start + 2 * SECOND, ip(200_000), 1));
        assert_eq!(limit.sources.len(), 1, "idle ones are forgotten");
    }

    #[test]
    fn a_network_introduces_eight_in_any_second() {
        let mut limit = NewPeerLimit::default();
        let start = Instant::now();
        let granted =
            |limit: &mut NewPeerLimit, now| (0..50).filter(|&n| limit.take(now, ip(n))).count();
        assert_eq!(granted(&mut limit, start), 8);
        assert!(limit.take(start, ip(256)), "another /24");
        assert_eq!(granted(&mut limit, start + SECOND / 2), 0);
        assert_eq!(granted(&mut limit, start + SECOND), 8);
    }

    #[test]
    fn networks_are_bounded() {
        let mut limit = NewPeerLimit::default();
        let start = Instant::now();
        let granted = (0..5_000)
            .filter(|&n| limit.take(start, ip(n << 8)))
            .count();
        assert_eq!(granted, MAX_NETWORKS);
        assert!(limit.take(start + SECOND, ip(6_000 << 8)));
        assert_eq!(limit.networks.len(), 1);
    }

    #[test]
    fn ipv6_counts_by_64_bits() {
        let mut limit = NewPeerLimit::default();
        let now = Instant::now();
        let granted = (0..50_u128)
            .filter(|&n| limit.take(now, IpAddr::V6(Ipv6Addr::from((0xfe80_u128 << 112) + n))))
            .count();
        assert_eq!(granted, 8);
    }
}
