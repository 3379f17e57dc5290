//! What was announced on the network, as far as it is of use. Pure. All of it was written by
//! strangers: a name is a key here and nothing else, and an address is one of this network.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use crate::{
    config::{CacheUrl, Config, HostName},
    protocol::{Interface, PeerAddr, PlainCache},
};

/// Services that are remembered; further ones are dropped.
pub(super) const MOST_SERVICES: usize = 256;

/// Services of one address: nobody has more, unless to keep others out.
const MOST_AT_ADDRESS: usize = 4;

/// What is browsed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Peer,
    Cache,
}

/// A service as the network describes it.
#[derive(Debug, Clone)]
pub(super) struct Announcement {
    /// Which instance of which service.
    pub(super) full_name: String,
    /// Target of its SRV record.
    pub(super) host: String,
    pub(super) port: u16,
    /// With the interface as the scope of link-local ones.
    pub(super) addresses: Vec<(IpAddr, u32)>,
    /// TXT `id`.
    pub(super) id: Option<String>,
    /// TXT `path`.
    pub(super) path: Option<String>,
}

/// Who we are, and where.
#[derive(Debug, Clone)]
pub(in crate::lan) struct Surroundings {
    pub(super) instance: u64,
    pub(super) config: Config,
    pub(super) own: HashSet<IpAddr>,
}

impl Surroundings {
    pub(in crate::lan) fn new(instance: u64, config: Config, interfaces: &[Interface]) -> Self {
        let own = interfaces.iter().map(|one| one.address.to_canonical());
        Self {
            instance,
            config,
            own: own.collect(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Service {
    Peer(PeerAddr),
    Cache(PlainCache),
}

impl Service {
    fn address(&self) -> PeerAddr {
        match self {
            Self::Peer(address) => *address,
            Self::Cache(cache) => cache.address,
        }
    }
}

/// The services of the network that are of use.
#[derive(Debug, Default)]
pub(super) struct Services {
    known: HashMap<String, Service>,
    /// Announcements that were of no use.
    pub(super) dropped: u64,
}

impl Services {
    /// Takes an announcement in, instead of an earlier one of the same name; true if anything
    /// is different now.
    pub(super) fn announced(
        &mut self,
        kind: Kind,
        announcement: Announcement,
        around: &Surroundings,
    ) -> bool {
        let service = match kind {
            Kind::Peer => peer(&announcement, around).map(Service::Peer),
            Kind::Cache => cache(&announcement, around).map(Service::Cache),
        };
        let Some(service) = service else {
            self.dropped += 1;
            return self.known.remove(&announcement.full_name).is_some();
        };
        let old = self.known.get(&announcement.full_name);
        if old == Some(&service) {
            return false;
        }
        let ip = service.address().ip();
        let others = self
            .known
            .iter()
            .filter(|(name, other)| **name != announcement.full_name && other.address().ip() == ip);
        let is_crowded = old.is_none() && self.known.len() >= MOST_SERVICES;
        if is_crowded || others.count() >= MOST_AT_ADDRESS {
            self.dropped += 1;
            return false;
        }
        self.known.insert(announcement.full_name, service);
        true
    }

    /// A service has said goodbye, or was not heard of in time.
    pub(super) fn gone(&mut self, full_name: &str) -> bool {
        self.known.remove(full_name).is_some()
    }

    /// Where the peers are, in order.
    pub(super) fn peers(&self) -> Vec<SocketAddr> {
        let peers = self.known.values().filter_map(|service| match service {
            Service::Peer(address) => Some(*address),
            Service::Cache(_) => None,
        });
        let mut peers: Vec<PeerAddr> = peers.collect();
        peers.sort_unstable();
        peers.dedup();
        peers.into_iter().map(PeerAddr::socket_addr).collect()
    }

    /// The plain caches, in order.
    pub(super) fn caches(&self) -> Vec<PlainCache> {
        let caches = self.known.values().filter_map(|service| match service {
            Service::Cache(cache) => Some(cache.clone()),
            Service::Peer(_) => None,
        });
        let mut caches: Vec<PlainCache> = caches.collect();
        let place = |cache: &PlainCache| (cache.address, cache.prefix.clone(), cache.host.clone());
        caches.sort_unstable_by_key(place);
        caches.dedup();
        caches
    }
}

/// Where a peer is, unless it is ourselves.
fn peer(announcement: &Announcement, around: &Surroundings) -> Option<PeerAddr> {
    let id = announcement.id.as_deref();
    let id = id.and_then(|id| u64::from_str_radix(id, 16).ok());
    if id == Some(around.instance) {
        return None;
    }
    address(announcement, around)
}

fn cache(announcement: &Announcement, around: &Surroundings) -> Option<PlainCache> {
    let address = address(announcement, around)?;
    let prefix = announcement.path.as_deref().unwrap_or("");
    let prefix = prefix.strip_prefix('/').unwrap_or(prefix);
    let prefix = CacheUrl::parse_prefix(prefix).ok()?;
    // What goes into a header of HTTP is a name, or our own spelling of the address.
    let host = match announcement.host.parse::<HostName>() {
        Ok(name) => name.without_dot().to_owned(),
        Err(_) => match address.ip() {
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        },
    };
    let host = if announcement.port == 80 {
        host
    } else {
        format!("{host}:{}", announcement.port)
    };
    Some(PlainCache {
        address,
        host,
        prefix,
        announced: true,
    })
}

/// The announced address to use: of this network, not ours, allowed; IPv4 if there is one. A
/// machine is asked once, however many addresses it has.
fn address(announcement: &Announcement, around: &Surroundings) -> Option<PeerAddr> {
    let of_all = &announcement.addresses;
    // An announcement that names one of our addresses is ours, or a lie.
    let of_all = of_all.iter().map(|&(ip, scope)| (ip.to_canonical(), scope));
    if of_all.clone().any(|(ip, _)| around.own.contains(&ip)) {
        return None;
    }
    let allowed = of_all.filter(|&(ip, _)| is_local(ip) && around.config.allows(ip));
    let (ip, scope) = allowed.min_by_key(|&(ip, scope)| (!ip.is_ipv4(), ip, scope))?;
    let mut address = SocketAddr::new(ip, announcement.port);
    if let SocketAddr::V6(v6) = &mut address
        && v6.ip().is_unicast_link_local()
    {
        if scope == 0 {
            return None;
        }
        v6.set_scope_id(scope);
    }
    PeerAddr::new(address).ok()
}

/// Private or link-local: mDNS is about the network we are on.
fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let is_shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            ip.is_private() || ip.is_link_local() || is_shared
        }
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ME: u64 = 0x1234_5678_9abc_def0;

    fn around() -> Surroundings {
        Surroundings {
            instance: ME,
            config: Config::default(),
            own: HashSet::from(["192.168.1.1".parse().expect("an address")]),
        }
    }

    fn announcement(name: &str, addresses: &[&str], port: u16) -> Announcement {
        let address = |text: &&str| (text.parse().expect("an address"), 2);
        Announcement {
            full_name: name.into(),
            host: "nas.local.".into(),
            port,
            addresses: addresses.iter().map(address).collect(),
            id: None,
            path: None,
        }
    }

    #[test]
    fn a_peer_comes_moves_and_goes() {
        let mut services = Services::default();
        let at = |ips: &[&str]| announcement("a", ips, 12_304);
        let all = ["fd00::5", "fe80::5", "192.168.1.5", "2001:db8::5"];
        assert!(services.announced(Kind::Peer, at(&all), &around()));
        assert!(!services.announced(Kind::Peer, at(&all), &around()));
        let printed = |services: &Services| {
            let peers = services.peers();
            peers.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(printed(&services), ["192.168.1.5:12304"]);
        assert!(services.announced(Kind::Peer, at(&["fe80::5"]), &around()));
        assert_eq!(printed(&services), ["[fe80::5%2]:12304"]);
        assert!(services.gone("a") && !services.gone("a"));
        assert_eq!(services.peers(), []);
    }

    #[test]
    fn what_is_ours_strange_or_far_is_dropped() {
        let mut services = Services::default();
        let ours = Announcement {
            id: Some(format!("{ME:016x}")),
            ..announcement("ours", &["192.168.1.9"], 12_304)
        };
        assert!(!services.announced(Kind::Peer, ours, &around()));
        for addresses in [
            &["192.168.1.1"][..],
            &["192.168.1.9", "192.168.1.1"],
            &["127.0.0.1"],
            &["8.8.8.8"],
            &["2001:db8::1"],
            &["224.0.0.251"],
            &["0.0.0.0"],
            &["ff02::fb"],
            &["::1"],
            &[],
        ] {
            for kind in [Kind::Peer, Kind::Cache] {
                let one = announcement("x", addresses, 12_304);
                assert!(!services.announced(kind, one, &around()), "{addresses:?}");
            }
        }
        assert!(!services.announced(Kind::Peer, announcement("x", &["10.0.0.1"], 0), &around()));
        let mut narrow = around();
        narrow.config = Config::parse("allowed-networks = [\"192.168.1.0/24\"]").expect("settings");
        assert!(!services.announced(Kind::Peer, announcement("x", &["10.0.0.1"], 1), &narrow));
        assert_eq!(services.dropped, 23);
    }

    #[test]
    fn a_cache_has_the_path_and_the_name_that_it_announces() {
        let mut services = Services::default();
        let mut one = announcement("a", &["10.0.0.1"], 5_000);
        one.path = Some("/cache".into());
        assert!(services.announced(Kind::Cache, one, &around()));
        assert!(services.announced(Kind::Cache, announcement("b", &["10.0.0.2"], 80), &around()));
        let mut hostile = announcement("c", &["10.0.0.3"], 80);
        hostile.host = "x\r\nEvil: y".into();
        assert!(services.announced(Kind::Cache, hostile, &around()));
        let mut climbing = announcement("d", &["10.0.0.4"], 80);
        climbing.path = Some("/../secret".into());
        assert!(!services.announced(Kind::Cache, climbing, &around()));
        let caches = services.caches();
        let printed: Vec<String> = caches.iter().map(ToString::to_string).collect();
        assert_eq!(
            printed,
            [
                "http://nas.local:5000/cache/",
                "http://nas.local/",
                "http://10.0.0.3/"
            ]
        );
    }

    #[test]
    fn there_is_room_for_so_many_and_few_of_one_address() {
        let mut services = Services::default();
        for number in 0..10 {
            let one = announcement(&format!("crowd {number}"), &["10.0.0.1"], 1 + number);
            services.announced(Kind::Peer, one, &around());
        }
        assert_eq!(services.peers().len(), MOST_AT_ADDRESS);
        for number in 0..1_000_u32 {
            let ip = format!("10.1.{}.{}", number / 250, 1 + number % 250);
            services.announced(Kind::Peer, announcement(&ip, &[&ip], 1), &around());
        }
        assert_eq!(services.peers().len(), MOST_SERVICES);
        assert!(services.gone("crowd 0"));
        assert!(services.announced(Kind::Peer, announcement("z", &["10.9.9.9"], 1), &around()));
    }

    proptest! {
        #[test]
        fn no_announcement_panics(
            host: String, port: u16, ip: IpAddr, scope: u32, id: Option<String>, path: Option<String>
        ) {
            let mut services = Services::default();
            for kind in [Kind::Peer, Kind::Cache] {
                let one = Announcement {
                    full_name: host.clone(),
                    host: host.clone(),
                    port,
                    addresses: vec![(ip, scope)],
                    id: id.clone(),
                    path: path.clone(),
                };
                services.announced(kind, one, &around());
            }
            for cache in services.caches() {
                prop_assert!(cache.host.chars().all(|c| c.is_ascii_graphic()));
            }
        }
    }
}
