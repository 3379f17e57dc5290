//! The addresses of this host, as the kernel has them now. Only a listing: which networks
//! are asked is decided by who calls. Needs `AF_NETLINK` (getifaddrs(3)).

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use nix::{
    errno::Errno,
    ifaddrs::getifaddrs,
    net::if_::{InterfaceFlags, if_nametoindex},
    sys::socket::SockaddrStorage,
};

/// Every IPv6 address with its flags, one a line: `ADDRESS INDEX PREFIX SCOPE FLAGS NAME`, numbers
/// in hexadecimal. getifaddrs(3) has the addresses and not their flags.
const IPV6_ADDRESSES: &str = "/proc/self/net/if_inet6";

// Flags of addresses, from linux/if_addr.h.
const OPTIMISTIC: u8 = 0x04;
const DUPLICATE: u8 = 0x08;
const TENTATIVE: u8 = 0x40;

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
    /// IPv4 can be broadcast on it, whether or not a broadcast address is set.
    pub broadcasts: bool,
    /// IPv6 can be multicast on it.
    pub multicast: bool,
    /// A port of a bridge or a part of a bond, which has the addresses that count.
    pub port: bool,
    /// It is a radio: an access point may hold broadcasts back.
    pub wireless: bool,
    /// The address.
    pub ip: IpAddr,
    /// Another host may have this IPv6 address, which is being found out, or has it: nothing can
    /// be sent from it. False where the kernel does not say.
    pub tentative: bool,
    /// Length of its network's prefix.
    pub prefix_length: u8,
    /// Where a datagram to the whole network goes, if that is set.
    pub broadcast: Option<Ipv4Addr>,
}

/// Every IPv4 and IPv6 address of every interface.
pub fn list() -> Result<Vec<InterfaceAddress>, ListError> {
    let tentative = tentative(&fs::read_to_string(IPV6_ADDRESSES).unwrap_or_default());
    let mut interfaces = HashMap::new();
    let mut addresses = Vec::new();
    for entry in getifaddrs().map_err(ListError)? {
        let Some(ip) = entry.address.as_ref().and_then(ip_of) else {
            continue;
        };
        let (name, _alias) = entry
            .interface_name
            .split_once(':')
            .unwrap_or((&entry.interface_name, ""));
        let (index, port, wireless) = *interfaces.entry(name.to_owned()).or_insert_with(|| {
            let index = if_nametoindex(name).ok();
            (index, is_port(name), is_wireless(name))
        });
        // An interface that vanished in between has no index any more.
        let Some(index) = index else { continue };
        let flags = entry.flags;
        addresses.push(InterfaceAddress {
            name: name.to_owned(),
            index,
            up: flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING),
            loopback: flags.contains(InterfaceFlags::IFF_LOOPBACK),
            point_to_point: flags.contains(InterfaceFlags::IFF_POINTOPOINT),
            broadcasts: flags.contains(InterfaceFlags::IFF_BROADCAST),
            multicast: flags.contains(InterfaceFlags::IFF_MULTICAST),
            port,
            wireless,
            ip,
            tentative: matches!(ip, IpAddr::V6(v6) if tentative.contains(&(v6, index))),
            prefix_length: entry
                .netmask
                .as_ref()
                .and_then(ip_of)
                .map_or(host_prefix(ip), leading_ones),
            broadcast: entry
                .broadcast
                .as_ref()
                .and_then(|address| address.as_sockaddr_in())
                .map(|address| address.ip())
                // Where none is set, the C library gives the address itself.
                .filter(|&broadcast| ip != broadcast),
        });
    }
    Ok(addresses)
}

/// Whether it is a radio. Without sysfs none is known to be.
fn is_wireless(name: &str) -> bool {
    Path::new("/sys/class/net")
        .join(name)
        .join("phy80211")
        .exists()
}

/// Whether another interface speaks for this one. Without sysfs none is known to.
fn is_port(name: &str) -> bool {
    let interface = Path::new("/sys/class/net").join(name);
    interface.join("master").exists()
}

/// The addresses in a listing like [`IPV6_ADDRESSES`] that nothing can be sent from, with the
/// indexes of their interfaces.
fn tentative(listing: &str) -> HashSet<(Ipv6Addr, u32)> {
    let unusable = |line: &str| {
        let mut fields = line.split_whitespace();
        let bits = u128::from_str_radix(fields.next()?, 16).ok()?;
        let index = u32::from_str_radix(fields.next()?, 16).ok()?;
        let flags = u8::from_str_radix(fields.nth(2)?, 16).ok()?;
        // An optimistic address is used while it is tentative.
        let waits = flags & TENTATIVE != 0 && flags & OPTIMISTIC == 0;
        (waits || flags & DUPLICATE != 0).then_some((Ipv6Addr::from_bits(bits), index))
    };
    listing.lines().filter_map(unusable).collect()
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
        assert!(!loopback.broadcasts && !loopback.multicast);
        assert!(!loopback.port && !loopback.tentative);
    }

    #[test]
    fn addresses_that_may_be_another_s_are_told_apart() {
        let listing = "\
            00000000000000000000000000000001 01 80 10 80       lo\n\
            fe80000000000000000000000000000a 02 40 20 80     eth0\n\
            fe80000000000000000000000000000b 02 40 20 c0     eth0\n\
            fe80000000000000000000000000000c 1f 40 20 44    wlan0\n\
            fe80000000000000000000000000000d 1f 40 20 88    wlan0\n\
            nonsense\n";
        let expected = [("fe80::b", 2), ("fe80::d", 31)];
        let expected = expected.map(|(ip, index)| (ip.parse().unwrap(), index));
        assert_eq!(tentative(listing), HashSet::from(expected));
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
