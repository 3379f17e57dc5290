//! Peers named in the config file.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::units;

/// A peer from the config file: `192.168.1.5`, `192.168.1.5:12304`, `[fd00::5]:12304`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StaticPeer {
    ip: IpAddr,
    scope: u32,
    port: Option<u16>,
}

impl StaticPeer {
    /// Where it is asked, UDP and TCP, on a network whose peers listen on `default_port`.
    pub fn address(self, default_port: u16) -> SocketAddr {
        let mut address = SocketAddr::new(self.ip, self.port.unwrap_or(default_port));
        if let SocketAddr::V6(v6) = &mut address {
            v6.set_scope_id(self.scope);
        }
        address
    }

    fn parse(text: &str) -> Option<Self> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Some(Self {
                ip,
                scope: 0,
                port: None,
            });
        }
        let address = text
            .parse::<SocketAddr>()
            .ok()
            .filter(|address| address.port() != 0)?;
        let scope = if let SocketAddr::V6(v6) = address {
            v6.scope_id()
        } else {
            0
        };
        Some(Self {
            ip: address.ip(),
            scope,
            port: Some(address.port()),
        })
    }
}

impl fmt::Display for StaticPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => self.address(port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

impl Serialize for StaticPeer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StaticPeer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const RIGHT: &str = "an address in quotes, with or without a port: \"192.168.1.5\", \"192.168.1.5:12304\", \"[fd00::5]:12304\"";
        let text = deserializer.deserialize_any(units::Quoted(RIGHT))?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom(format_args!(
                "`{text}` is not a peer; right would be {RIGHT}"
            ))
        })
    }
}
