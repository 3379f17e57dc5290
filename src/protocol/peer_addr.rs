//! Where a peer serves HTTP.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// Why an address is not that of a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerAddrError {
    /// Nobody can be reached there.
    #[error("{0} is not the address of one machine")]
    NotUnicast(IpAddr),
    /// Port 0 cannot be connected to.
    #[error("port 0 of {0} cannot be connected to")]
    Port(IpAddr),
    /// Not the text of a socket address.
    #[error("`{text}` is not ADDRESS:PORT")]
    Text {
        /// What was given.
        text: String,
        /// What is wrong with it.
        #[source]
        source: std::net::AddrParseError,
    },
}

/// The address and TCP port at which a peer serves HTTP.
///
/// Canonical (never an IPv4-mapped IPv6 address), of one machine, with a port; a link-local
/// IPv6 address keeps its scope id. Displays as `192.168.1.5:12304` or `[fe80::1%2]:12304`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerAddr(SocketAddr);

impl PeerAddr {
    /// Checks and canonicalizes `address`.
    pub fn new(address: SocketAddr) -> Result<Self, PeerAddrError> {
        let address = canonical(address);
        let ip = address.ip();
        let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
        if ip.is_unspecified() || ip.is_multicast() || broadcast {
            return Err(PeerAddrError::NotUnicast(ip));
        }
        if address.port() == 0 {
            return Err(PeerAddrError::Port(ip));
        }
        Ok(Self(address))
    }

    /// The socket address to connect to.
    pub const fn socket_addr(self) -> SocketAddr {
        self.0
    }

    /// The IP address, without port and scope.
    pub const fn ip(self) -> IpAddr {
        self.0.ip()
    }
}

/// `address` with an IPv4-mapped IPv6 address as the IPv4 address it stands for; a real
/// IPv6 address keeps its scope id, and loses the flow label.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(v6) => match v6.ip().to_canonical() {
            ip @ IpAddr::V4(_) => SocketAddr::new(ip, v6.port()),
            IpAddr::V6(_) => {
                let mut v6 = v6;
                v6.set_flowinfo(0);
                SocketAddr::V6(v6)
            }
        },
    }
}

impl FromStr for PeerAddr {
    type Err = PeerAddrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = text.parse().map_err(|source| PeerAddrError::Text {
            text: text.to_owned(),
            source,
        })?;
        Self::new(address)
    }
}

impl fmt::Display for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PeerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_become_ipv4_and_scopes_stay() {
        let mapped: PeerAddr = "[::ffff:192.168.1.5]:12304".parse().expect("a peer");
        assert_eq!(mapped.to_string(), "192.168.1.5:12304");
        let scoped: PeerAddr = "[fe80::1%3]:80".parse().expect("a peer");
        assert_eq!(scoped.to_string(), "[fe80::1%3]:80");
        assert!(matches!(scoped.socket_addr(), SocketAddr::V6(v6) if v6.scope_id() == 3));
    }

    #[test]
    fn an_address_of_nobody_is_refused() {
        for text in [
            "0.0.0.0:1",
            "255.255.255.255:1",
            "224.0.0.1:1",
            "[::]:1",
            "[ff02::1]:1",
            "[::ffff:224.0.0.1]:1",
            "10.0.0.1:0",
            "10.0.0.1",
            "host:1",
        ] {
            assert!(text.parse::<PeerAddr>().is_err(), "{text}");
        }
    }
}
