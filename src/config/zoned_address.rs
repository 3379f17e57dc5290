//! Link-local addresses whose zone is the name of an interface: RFC 4007, section 11.

use std::{fmt, net::Ipv6Addr, str::FromStr};

/// Longest name of an interface (`IFNAMSIZ`, without the final zero).
const LONGEST_NAME_BYTES: usize = 15;

/// Not `fe80::/10`, then `%` and the name of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a link-local IPv6 address with the name of an interface")]
pub struct ZonedAddressError;

/// `fe80::1%eth0`: an address on the link of the interface that has this name at present.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ZonedAddress {
    ip: Ipv6Addr,
    interface: String,
}

impl ZonedAddress {
    /// The address.
    pub fn ip(&self) -> Ipv6Addr {
        self.ip
    }

    /// The name of the interface, which need not exist.
    pub fn interface(&self) -> &str {
        &self.interface
    }
}

impl FromStr for ZonedAddress {
    type Err = ZonedAddressError;

    fn from_str(text: &str) -> Result<Self, ZonedAddressError> {
        let (ip, interface) = text.split_once('%').ok_or(ZonedAddressError)?;
        let ip: Ipv6Addr = ip.parse().map_err(|_| ZonedAddressError)?;
        // What the kernel takes for a name, without what would be ambiguous here. Digits alone are an index.
        let is_wrong = |c: char| c.is_whitespace() || c.is_control() || "/:%[]".contains(c);
        let is_name = !matches!(interface, "" | "." | "..")
            && interface.len() <= LONGEST_NAME_BYTES
            && !interface.contains(is_wrong)
            && !interface.bytes().all(|byte| byte.is_ascii_digit());
        if !ip.is_unicast_link_local() || !is_name {
            return Err(ZonedAddressError);
        }
        Ok(Self {
            ip,
            interface: interface.to_owned(),
        })
    }
}

impl fmt::Display for ZonedAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%{}", self.ip, self.interface)
    }
}
