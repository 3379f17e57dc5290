//! Which networks a request is sent to all of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

/// All hosts of a link: the one group that each of them is in without having joined it, and that
/// no switch keeps from a port.
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

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
    /// A link of its own on which IPv6 can be multicast: neither loopback nor point-to-point, and
    /// not a port of a bridge, which speaks for its ports.
    pub can_multicast: bool,
    /// The address.
    pub address: IpAddr,
    /// An access point may hold broadcasts on it back.
    pub is_wireless: bool,
    /// It cannot be sent from: not yet, or never, because another host has it.
    pub is_tentative: bool,
    /// Bits of its network.
    pub prefix: u8,
    /// Its broadcast address, if one is set.
    pub broadcast: Option<Ipv4Addr>,
}

/// Where one datagram reaches everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Network {
    /// An IPv4 network, by broadcast.
    Broadcast {
        /// Index of the interface.
        interface: u32,
        /// Our address there.
        address: Ipv4Addr,
        /// Everybody's address there.
        broadcast: Ipv4Addr,
    },
    /// The link of an interface, by IPv6 multicast.
    Link {
        /// Index of the interface.
        interface: u32,
        /// Our link-local address there.
        address: Ipv6Addr,
        /// The interface has an IPv4 network too, whose broadcasts most hosts of the link hear.
        has_broadcast: bool,
    },
}

/// The networks on interfaces that are up and that `allow` lets by name.
///
/// IPv4: private and link-local ones. A network on two interfaces is taken once, except
/// link-local ones, which have the same addresses everywhere and are different all the same.
///
/// IPv6: the link of each interface with a link-local address. Not of one with a public IPv4
/// address: its neighbours are strangers.
pub fn networks(interfaces: &[Interface], allow: impl Fn(&str) -> bool) -> Vec<Network> {
    let allowed: Vec<&Interface> = interfaces
        .iter()
        .filter(|interface| allow(&interface.name))
        .collect();
    let mut networks: Vec<Network> = Vec::new();
    for interface in &allowed {
        let Some(network) = interface.broadcast_network() else {
            continue;
        };
        if !networks.iter().any(|other| other.is_same_as(&network)) {
            networks.push(network);
        }
    }
    for interface in &allowed {
        let Some(network) = interface.link(&allowed) else {
            continue;
        };
        if !networks.iter().any(|other| other.is_same_as(&network)) {
            networks.push(network);
        }
    }
    networks
}

impl Network {
    /// Index of the interface.
    pub fn interface(&self) -> u32 {
        match *self {
            Self::Broadcast { interface, .. } | Self::Link { interface, .. } => interface,
        }
    }

    /// Our address there.
    pub fn address(&self) -> IpAddr {
        match *self {
            Self::Broadcast { address, .. } => address.into(),
            Self::Link { address, .. } => address.into(),
        }
    }

    /// Everybody there, at `port`.
    pub fn everybody(&self, port: u16) -> SocketAddr {
        match *self {
            Self::Broadcast { broadcast, .. } => SocketAddr::new(broadcast.into(), port),
            Self::Link { interface, .. } => SocketAddrV6::new(ALL_NODES, port, 0, interface).into(),
        }
    }

    /// Whether a datagram to one reaches all that a datagram to the other does, as far as
    /// addresses tell.
    fn is_same_as(&self, other: &Self) -> bool {
        let one_interface = self.interface() == other.interface();
        match (self, other) {
            (
                Self::Broadcast { broadcast, .. },
                Self::Broadcast {
                    address,
                    broadcast: theirs,
                    ..
                },
            ) => broadcast == theirs && (one_interface || !address.is_link_local()),
            (Self::Link { .. }, Self::Link { .. }) => one_interface,
            _ => false,
        }
    }
}

impl Interface {
    /// Whether other machines may be reached from this address, and it is one that stays: global
    /// IPv6 addresses come and go where privacy is wanted.
    pub fn leads_elsewhere(&self) -> bool {
        let is_lasting = match self.address {
            IpAddr::V4(_) => true,
            IpAddr::V6(ip) => ip.is_unicast_link_local(),
        };
        self.is_up && is_lasting && !self.is_tentative && !self.address.is_loopback()
    }

    /// Whether `ip` is on the network of this address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let prefix = u32::from(self.prefix);
        match (self.address, ip) {
            (IpAddr::V4(own), IpAddr::V4(ip)) => {
                let mask = u32::MAX.checked_shl(32 - prefix.min(32)).unwrap_or(0);
                u32::from(own) & mask == u32::from(ip) & mask
            }
            (IpAddr::V6(own), IpAddr::V6(ip)) => {
                let mask = u128::MAX.checked_shl(128 - prefix.min(128)).unwrap_or(0);
                u128::from(own) & mask == u128::from(ip) & mask
            }
            _ => false,
        }
    }

    fn broadcast_network(&self) -> Option<Network> {
        let IpAddr::V4(address) = self.address else {
            return None;
        };
        if !self.is_up || !self.can_broadcast || !is_local(address) || self.prefix > 30 {
            return None;
        }
        let set = self.broadcast.filter(|address| !address.is_unspecified());
        let broadcast = set.unwrap_or_else(|| last_address(address, self.prefix));
        Some(Network::Broadcast {
            interface: self.index,
            address,
            broadcast,
        })
    }

    /// `all`: this and the other addresses of the host.
    fn link(&self, all: &[&Self]) -> Option<Network> {
        let IpAddr::V6(address) = self.address else {
            return None;
        };
        let usable = self.is_up && self.can_multicast && !self.is_tentative;
        if !usable || !address.is_unicast_link_local() {
            return None;
        }
        let here = || all.iter().filter(|other| other.index == self.index);
        let is_public = |other: &&Self| matches!(other.address, IpAddr::V4(v4) if !is_local(v4));
        if here().copied().any(|other| is_public(&other)) {
            return None;
        }
        Some(Network::Link {
            interface: self.index,
            address,
            has_broadcast: here().any(|other| other.broadcast_network().is_some()),
        })
    }
}

fn is_local(address: Ipv4Addr) -> bool {
    address.is_private() || address.is_link_local()
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
            can_multicast: true,
            is_tentative: false,
            is_wireless: false,
            address: address.parse().expect("an address"),
            prefix,
            broadcast: None,
        }
    }

    fn broadcasts(interfaces: &[Interface]) -> Vec<String> {
        let networks = networks(interfaces, |name| !name.starts_with("docker"));
        let text = |network: &Network| {
            let SocketAddr::V4(everybody) = network.everybody(1) else {
                return None;
            };
            Some(format!("{}@{}", everybody.ip(), network.interface()))
        };
        networks.iter().filter_map(text).collect()
    }

    /// The links, those that have no broadcast network marked.
    fn links(interfaces: &[Interface]) -> Vec<String> {
        let networks = networks(interfaces, |name| !name.starts_with("docker"));
        let text = |network: &Network| {
            let Network::Link { has_broadcast, .. } = network else {
                return None;
            };
            let mark = if *has_broadcast { "" } else { " alone" };
            Some(format!("{}{mark}", network.everybody(7)))
        };
        networks.iter().filter_map(text).collect()
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

    #[test]
    fn a_link_is_an_interface_with_a_link_local_address() {
        let list = [
            interface("a", 2, "192.168.1.5", 24),
            interface("a", 2, "fe80::a", 64),
            interface("a", 2, "fe80::aa", 64),
            interface("a", 2, "fd00::a", 64),
            interface("b", 3, "2001:db8::b", 64),
            interface("c", 4, "fe80::c", 64),
            interface("d", 5, "10.0.0.1", 32),
            interface("d", 5, "fe80::d", 64),
            interface("docker0", 6, "fe80::e", 64),
        ];
        assert_eq!(
            links(&list),
            [
                "[ff02::1%2]:7",
                "[ff02::1%4]:7 alone",
                "[ff02::1%5]:7 alone"
            ]
        );
    }

    #[test]
    fn a_link_that_cannot_be_sent_on_is_none() {
        let good = interface("a", 2, "fe80::a", 64);
        assert_eq!(links(std::slice::from_ref(&good)).len(), 1);
        let spoilers: [fn(&mut Interface); 3] = [
            |one| one.is_up = false,
            |one| one.can_multicast = false,
            |one| one.is_tentative = true,
        ];
        for spoil in spoilers {
            let mut bad = good.clone();
            spoil(&mut bad);
            assert_eq!(
                links(std::slice::from_ref(&bad)),
                [] as [&str; 0],
                "{bad:?}"
            );
            let second = interface("a", 2, "fe80::b", 64);
            let expected = usize::from(bad.is_tentative);
            let both = Interface {
                is_up: bad.is_up,
                can_multicast: bad.can_multicast,
                ..second
            };
            assert_eq!(
                links(&[bad, both]).len(),
                expected,
                "another address will do"
            );
        }
    }

    #[test]
    fn neighbours_at_a_public_address_are_not_asked() {
        for (address, count) in [("8.8.8.8", 0), ("100.64.0.1", 0), ("169.254.1.1", 1)] {
            let list = [
                interface("a", 2, "fe80::a", 64),
                interface("a", 2, address, 24),
            ];
            assert_eq!(links(&list).len(), count, "{address}");
        }
        let elsewhere = [
            interface("a", 2, "fe80::a", 64),
            interface("b", 3, "8.8.8.8", 24),
        ];
        assert_eq!(links(&elsewhere).len(), 1);
    }

    #[test]
    fn a_link_knows_of_a_broadcast_network_that_another_interface_stands_for() {
        let wired_and_wireless = [
            interface("eth0", 2, "192.168.1.5", 24),
            interface("eth0", 2, "fe80::a", 64),
            interface("wlan0", 3, "192.168.1.6", 24),
            interface("wlan0", 3, "fe80::b", 64),
        ];
        assert_eq!(broadcasts(&wired_and_wireless), ["192.168.1.255@2"]);
        assert_eq!(
            links(&wired_and_wireless),
            ["[ff02::1%2]:7", "[ff02::1%3]:7"]
        );
    }
}
