//! Which networks a request is broadcast on.

use std::net::{IpAddr, Ipv4Addr};

/// One address of one network interface, as the host lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Name, as `eth0`.
    pub name: String,
    /// Index, as in `if_nametoindex(3)`.
    pub index: u32,
    /// Up and running.
    pub is_up: bool,
    /// Broadcast-capable: neither loopback nor point-to-point.
    pub can_broadcast: bool,
    /// The address.
    pub address: IpAddr,
    /// Bits of its network.
    pub prefix: u8,
    /// Its broadcast address, if one is set.
    pub broadcast: Option<Ipv4Addr>,
}

/// A network to broadcast on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    /// Index of the interface.
    pub interface: u32,
    /// Our address there.
    pub address: Ipv4Addr,
    /// Everybody's address there.
    pub broadcast: Ipv4Addr,
}

/// The private and link-local IPv4 networks on interfaces that are up and that `allow` lets
/// by name. A network on two interfaces is taken once, except link-local ones, which have
/// the same addresses everywhere and are different all the same.
pub fn networks(interfaces: &[Interface], allow: impl Fn(&str) -> bool) -> Vec<Network> {
    let mut networks: Vec<Network> = Vec::new();
    for interface in interfaces {
        let Some(network) = interface.network() else {
            continue;
        };
        let same = |other: &Network| {
            other.broadcast == network.broadcast
                && (other.interface == network.interface || !network.address.is_link_local())
        };
        if allow(&interface.name) && !networks.iter().any(same) {
            networks.push(network);
        }
    }
    networks
}

impl Interface {
    fn network(&self) -> Option<Network> {
        let IpAddr::V4(address) = self.address else {
            return None;
        };
        let is_local = address.is_private() || address.is_link_local();
        if !self.is_up || !self.can_broadcast || !is_local || self.prefix > 30 {
            return None;
        }
        let set = self.broadcast.filter(|address| !address.is_unspecified());
        let broadcast = set.unwrap_or_else(|| last_address(address, self.prefix));
        Some(Network {
            interface: self.index,
            address,
            broadcast,
        })
    }
}

/// The last address of a network of at most 31 bits.
fn last_address(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(address) | (u32::MAX >> prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, index: u32, address: &str, prefix: u8) -> Interface {
        Interface {
            name: name.into(),
            index,
            is_up: true,
            can_broadcast: true,
            address: address.parse().expect("an address"),
            prefix,
            broadcast: None,
        }
    }

    fn broadcasts(interfaces: &[Interface]) -> Vec<String> {
        let networks = networks(interfaces, |name| !name.starts_with("docker"));
        let text = |network: &Network| format!("{}@{}", network.broadcast, network.interface);
        networks.iter().map(text).collect()
    }

    #[test]
    fn private_and_link_local_networks_are_taken() {
        let list = [
            interface("a", 2, "192.168.1.5", 24),
            interface("b", 3, "10.1.2.3", 8),
            interface("c", 4, "172.16.5.4", 30),
            interface("d", 5, "169.254.7.7", 16),
            interface("e", 6, "8.8.8.8", 24),
            interface("f", 7, "100.64.0.1", 10),
            interface("g", 8, "fe80::1", 64),
            interface("h", 9, "192.168.7.1", 31),
            interface("i", 9, "192.168.7.1", 32),
            interface("docker0", 10, "172.17.0.1", 16),
        ];
        assert_eq!(
            broadcasts(&list),
            [
                "192.168.1.255@2",
                "10.255.255.255@3",
                "172.16.5.7@4",
                "169.254.255.255@5"
            ]
        );
    }

    #[test]
    fn down_and_point_to_point_are_not() {
        let up = interface("a", 2, "192.168.1.5", 24);
        let down = Interface {
            is_up: false,
            ..up.clone()
        };
        let tunnel = Interface {
            can_broadcast: false,
            ..up.clone()
        };
        assert_eq!(broadcasts(&[down, tunnel]), [] as [&str; 0]);
        let set = Interface {
            broadcast: Some(Ipv4Addr::new(192, 168, 255, 255)),
            ..up.clone()
        };
        assert_eq!(broadcasts(&[set]), ["192.168.255.255@2"]);
        let unset = Interface {
            broadcast: Some(Ipv4Addr::UNSPECIFIED),
            ..up
        };
        assert_eq!(broadcasts(&[unset]), ["192.168.1.255@2"]);
    }

    #[test]
    fn a_network_is_taken_once() {
        let wired_and_wireless = [
            interface("eth0", 2, "192.168.1.5", 24),
            interface("wlan0", 3, "192.168.1.6", 24),
            interface("eth0", 2, "192.168.1.7", 24),
            interface("eth0", 2, "169.254.1.1", 16),
            interface("wlan0", 3, "169.254.1.2", 16),
        ];
        assert_eq!(
            broadcasts(&wired_and_wireless),
            ["192.168.1.255@2", "169.254.255.255@2", "169.254.255.255@3"]
        );
    }
}
