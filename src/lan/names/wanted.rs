//! What of the settings stands for addresses that have to be looked up.

use std::fmt;

use crate::{
    config::{CacheHost, CacheUrl, Discovery, HostName, PeerName, StaticPeer, ZonedAddress},
    protocol::{PeerAddr, PlainCache},
};

/// One thing to look up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Wanted {
    /// Peers: the addresses of a host, at this port.
    Host { name: PeerName, port: u16 },
    /// A plain cache.
    Cache { url: CacheUrl, name: PeerName },
    /// Peers: what the SRV records of a domain say.
    Domain(HostName),
}

impl Wanted {
    /// All that `discovery` wants; peers without a port are at `port`.
    pub(super) fn of(discovery: &Discovery, port: u16) -> Vec<Self> {
        let mut wanted: Vec<Self> = Vec::new();
        let named = discovery.peers.iter().filter_map(|peer| match peer {
            StaticPeer::Name { name, port: own } => Some(Self::Host {
                name: name.clone(),
                port: own.unwrap_or(port),
            }),
            StaticPeer::Cache(url) => match &url.host {
                CacheHost::Name(name) => Some(Self::Cache {
                    url: url.clone(),
                    name: name.clone(),
                }),
                CacheHost::Address(_) => None,
            },
            StaticPeer::Address(_) => None,
        });
        for one in named.chain(discovery.domain.clone().map(Self::Domain)) {
            if !wanted.contains(&one) {
                wanted.push(one);
            }
        }
        wanted
    }
}

impl Wanted {
    /// The address and the port, if only the index of an interface is missing.
    pub(super) fn zoned(&self) -> Option<(&ZonedAddress, u16)> {
        match self {
            Self::Host {
                name: PeerName::Zoned(address),
                port,
            } => Some((address, *port)),
            Self::Cache {
                url,
                name: PeerName::Zoned(address),
            } => Some((address, url.port)),
            Self::Host { .. } | Self::Cache { .. } | Self::Domain(_) => None,
        }
    }
}

/// The caches of `discovery` whose addresses stand in the settings.
pub(super) fn caches_by_address(discovery: &Discovery) -> Vec<PlainCache> {
    let caches = discovery.peers.iter().filter_map(|peer| match peer {
        StaticPeer::Cache(url) => match url.host {
            CacheHost::Address(address) => {
                let address = PeerAddr::new(address.with_port(url.port)).ok()?;
                Some(cache(url, address))
            }
            CacheHost::Name(_) => None,
        },
        StaticPeer::Address(_) | StaticPeer::Name { .. } => None,
    });
    caches.collect()
}

/// The cache of `url`, whose host is at `address`.
pub(super) fn cache(url: &CacheUrl, address: PeerAddr) -> PlainCache {
    PlainCache {
        address,
        host: url.host_header(),
        prefix: url.prefix.clone(),
        announced: false,
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { name, port } => write!(f, "the peer {name}:{port}"),
            Self::Cache { url, .. } => write!(f, "the cache {url}"),
            Self::Domain(domain) => write!(f, "the domain {domain}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn only_names_are_looked_up_and_each_once() {
        let text = r#"
            [discovery]
            peers = ["10.0.0.1", "nas.lan", "nas.lan:12304", "nas.lan:1", "http://nas.lan/x",
                     "http://10.0.0.2:5000/y", "fe80::1%eth0", "fe80::1%2"]
            domain = "fleet.test"
        "#;
        let config = Config::parse(text).expect("settings");
        let wanted = Wanted::of(&config.discovery, 12_304);
        let printed: Vec<String> = wanted.iter().map(ToString::to_string).collect();
        assert_eq!(
            printed,
            [
                "the peer nas.lan:12304",
                "the peer nas.lan:1",
                "the cache http://nas.lan/x/",
                "the peer [fe80::1%eth0]:12304",
                "the domain fleet.test",
            ]
        );
        let caches = caches_by_address(&config.discovery);
        let [cache] = caches.as_slice() else {
            panic!("{caches:?}")
        };
        assert_eq!(cache.address.to_string(), "10.0.0.2:5000");
        assert_eq!(cache.to_string(), "http://10.0.0.2:5000/y/");
    }
}
