//! The addresses of this host, as the kernel has them now. Only a listing: which networks
//! are asked is decided by who calls. Needs `AF_NETLINK` (getifaddrs(3)).

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    net::if_::{InterfaceFlags, if_nametoindex},
    sys::socket::SockaddrStorage,
};

/// The kernel did not list the interfaces.
#[derive(Debug, thiserror::Error)]
#[error("cannot list the network interfaces")]
pub struct ListError(#[source] Errno);

/// One address of one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface's name; of an alias like `eth0:1` the interface's own, `eth0`.
    pub name: String,
    /// Its index, as in `sin6_scope_id`.
    pub index: u32,
    /// Administratively up, with a carrier.
    pub up: bool,
    /// It reaches only this host.
    pub loopback: bool,
    /// One end of a line, like most VPNs: nothing can be broadcast on it.
    pub point_to_point: bool,
    /// The address.
    pub ip: IpAddr,
    /// Length of its network's prefix.
    pub prefix_length: u8,
    /// Where a datagram to the whole network goes, if the interface can broadcast.
    pub broadcast: Option<Ipv4Addr>,
}

/// Every IPv4 and IPv6 address of every interface.
pub fn list() -> Result<Vec<InterfaceAddress>, ListError> {
    let mut indexes = HashMap::new();
    let mut addresses = Vec::new();
    for entry in getifaddrs().map_err(ListError)? {
        let Some(ip) = entry.address.as_ref().and_then(ip_of) else {
            continue;
        };
        let (name, _alias) = entry
            .interface_name
            .split_once(':')
            .unwrap_or((&entry.interface_name, ""));
        let index = *indexes
            .entry(name.to_owned())
            .or_insert_with(|| if_nametoindex(name).ok());
        // An interface that vanished in between has no index any more.
        let Some(index) = index else { continue };
        let flags = entry.flags;
        addresses.push(InterfaceAddress {
            name: name.to_owned(),
            index,
            up: flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING),
            loopback: flags.contains(InterfaceFlags::IFF_LOOPBACK),
            point_to_point: flags.contains(InterfaceFlags::IFF_POINTOPOINT),
            ip,
            prefix_length: entry
                .netmask
                .as_ref()
                .and_then(ip_of)
                .map_or(host_prefix(ip), leading_ones),
            broadcast: entry
                .broadcast
                .as_ref()
                .and_then(|address| address.as_sockaddr_in())
                .map(|address| address.ip()),
        });
    }
    Ok(addresses)
}

fn ip_of(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = || {
        address
            .as_sockaddr_in()
            .map(|address| IpAddr::V4(address.ip()))
    };
    let v6 = || {
        address
            .as_sockaddr_in6()
            .map(|address| IpAddr::V6(address.ip()))
    };
    v4().or_else(v6)
}

fn host_prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn leading_ones(mask: IpAddr) -> u8 {
    let ones = match mask {
        IpAddr::V4(mask) => mask.to_bits().leading_ones(),
        IpAddr::V6(mask) => mask.to_bits().leading_ones(),
    };
    u8::try_from(ones).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn loopback_is_listed() {
        let addresses = list().unwrap();
        let loopback = addresses
            .iter()
            .find(|address| address.ip == IpAddr::V4(Ipv4Addr::LOCALHOST))
            .unwrap();
        assert_eq!(
            (&*loopback.name, loopback.prefix_length, loopback.broadcast),
            ("lo", 8, None)
        );
        assert!(loopback.loopback && loopback.up && !loopback.point_to_point);
        assert_eq!(loopback.index, 1);
    }

    #[test]
    fn masks_become_lengths() {
        for (mask, length) in [
            ("255.255.255.0", 24),
            ("0.0.0.0", 0),
            ("255.255.255.255", 32),
            ("255.255.240.0", 20),
        ] {
            assert_eq!(leading_ones(mask.parse().unwrap()), length);
        }
        assert_eq!(
            leading_ones(IpAddr::V6(Ipv6Addr::new(
                0xffff, 0xffff, 0xffff, 0xffff, 0, 0, 0, 0
            ))),
            64
        );
        assert_eq!(
            leading_ones(IpAddr::V6(Ipv6Addr::from_bits(u128::MAX))),
            128
        );
    }
}
