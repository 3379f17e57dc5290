//! Peers named in the config file.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{HostName, HostNameError, ZonedAddress, units};

/// What may stand in `discovery.peers`.
const RIGHT: &str = "an address or a host name in quotes, with or without a port, or http:// and where a binary cache is: \"192.168.1.5\", \"192.168.1.5:12304\", \"[fd00::5]:12304\", \"[fe80::1%eth0]:12304\", \"nas.lan\", \"nas.lan:12304\", \"http://nas.lan:5000\"";

/// Longest path of a cache.
const LONGEST_PREFIX_BYTES: usize = 512;

/// Port of `http://` without one.
const HTTP_PORT: u16 = 80;

/// Why a text is not a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StaticPeerError {
    /// There is no TLS in this program.
    #[error(
        "peerix speaks no TLS: what a cache offers counts by its signatures; right would be `http://`, or the cache as a substituter in nix.conf"
    )]
    Https,
    /// Another scheme.
    #[error("only caches at `http://` can be asked")]
    Scheme,
    /// `http://USER@HOST`.
    #[error("there is no logging in to a cache: nothing may stand before an `@`")]
    Userinfo,
    /// `?` or `#`.
    #[error("a cache has no `?` and no `#` in its URL")]
    QueryOrFragment,
    /// The path is not one that can be asked for.
    #[error(
        "the path of a cache is made of `/NAME`, in what a URL may hold, up to {LONGEST_PREFIX_BYTES} characters"
    )]
    Prefix,
    /// Nobody listens at port 0, nor beyond 65535.
    #[error("`{0}` is not a port: right would be 1 to 65535")]
    Port(String),
    /// Other addresses are the same on each link.
    #[error(
        "`{0}` is not a zone on this machine: right would be a link-local address (fe80::/10), `%`, and the name or number of an interface"
    )]
    Zone(String),
    /// Neither an address nor a name.
    #[error("`{0}` is neither an address nor a name")]
    Host(String, #[source] HostNameError),
}

/// A peer from the config file, or a plain binary cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StaticPeer {
    /// `192.168.1.5`, `192.168.1.5:12304`, `[fd00::5]:12304`.
    Address(PeerAddress),
    /// `nas.lan`, `nas.lan:12304`, `[fe80::1%eth0]:12304`.
    Name {
        /// Looked up when it is needed.
        name: PeerName,
        /// UDP and TCP; that of this network's peers if absent.
        port: Option<u16>,
    },
    /// `http://nas.lan:5000`.
    Cache(CacheUrl),
}

/// Where a peer is asked, with or without a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerAddress {
    ip: IpAddr,
    scope: u32,
    port: Option<u16>,
}

/// What stands for an address that may be another one at another time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PeerName {
    /// Known to the system or to DNS.
    Host(HostName),
    /// On the link of an interface.
    Zoned(ZonedAddress),
}

/// `http://HOST[:PORT]/[PREFIX]`: a binary cache that is no peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CacheUrl {
    /// Who serves it.
    pub host: CacheHost,
    /// TCP.
    pub port: u16,
    /// Empty, or a path that ends with `/` and begins with none.
    pub prefix: String,
}

/// The host of a [`CacheUrl`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CacheHost {
    /// An address, with the scope of a link-local one.
    Address(PeerAddress),
    /// Looked up when it is needed.
    Name(PeerName),
}

impl StaticPeer {
    /// Where it is asked, UDP and TCP, on a network whose peers listen on `default_port`;
    /// `None` if a name has to be looked up for that, or if it is no peer.
    pub fn address(&self, default_port: u16) -> Option<SocketAddr> {
        match self {
            Self::Address(address) => Some(address.with_port(default_port)),
            Self::Name { .. } | Self::Cache(_) => None,
        }
    }
}

impl PeerAddress {
    /// The socket address; `default_port` if it names none itself.
    pub fn with_port(self, default_port: u16) -> SocketAddr {
        let mut address = SocketAddr::new(self.ip, self.port.unwrap_or(default_port));
        if let SocketAddr::V6(v6) = &mut address {
            v6.set_scope_id(self.scope);
        }
        address
    }

    /// `192.168.1.5`, `192.168.1.5:12304`, `fd00::5`, `[fd00::5]:12304`, `fe80::5%2`,
    /// `[fe80::5%2]:12304`.
    fn parse(text: &str) -> Option<Self> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Some(Self {
                ip,
                scope: 0,
                port: None,
            });
        }
        // Only a socket address is read with its zone.
        if let Ok(zoned) = format!("[{text}]:{HTTP_PORT}").parse() {
            return Some(Self::of_host(zoned));
        }
        let address = text.parse::<SocketAddr>().ok();
        address
            .filter(|address| address.port() != 0)
            .map(|address| Self {
                port: Some(address.port()),
                ..Self::of_host(address)
            })
    }

    fn of_host(address: SocketAddr) -> Self {
        let scope = match address {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => v6.scope_id(),
        };
        Self {
            ip: address.ip(),
            scope,
            port: None,
        }
    }
}

impl FromStr for StaticPeer {
    type Err = StaticPeerError;

    fn from_str(text: &str) -> Result<Self, StaticPeerError> {
        if let Some((scheme, rest)) = text.split_once("://") {
            return match scheme.to_ascii_lowercase().as_str() {
                "http" => CacheUrl::parse(rest).map(Self::Cache),
                "https" => Err(StaticPeerError::Https),
                _ => Err(StaticPeerError::Scheme),
            };
        }
        if let Some(address) = PeerAddress::parse(text) {
            return Ok(Self::Address(address));
        }
        let (host, port) = match text.parse().map(PeerName::Zoned) {
            Ok(name) => return Ok(Self::Name { name, port: None }),
            Err(_) if text.contains('%') && !text.starts_with('[') => (text, None),
            Err(_) => split_port(text)?,
        };
        let name = peer_name(host)?;
        Ok(Self::Name { name, port })
    }
}

impl CacheUrl {
    /// What comes after `http://`.
    fn parse(rest: &str) -> Result<Self, StaticPeerError> {
        if rest.contains(['?', '#']) {
            return Err(StaticPeerError::QueryOrFragment);
        }
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.contains('@') {
            return Err(StaticPeerError::Userinfo);
        }
        let (host, port) = split_port(authority)?;
        // A bracketed address is read with a port, whichever that is.
        let address = format!("{host}:{HTTP_PORT}").parse().ok();
        let host = match address {
            Some(address) => CacheHost::Address(PeerAddress::of_host(address)),
            None => CacheHost::Name(peer_name(host)?),
        };
        Ok(Self {
            host,
            port: port.unwrap_or(HTTP_PORT),
            prefix: Self::parse_prefix(path)?,
        })
    }

    /// What comes after the first `/` of a path, as a [`Self::prefix`] to which names of files
    /// can be appended.
    pub fn parse_prefix(path: &str) -> Result<String, StaticPeerError> {
        let path = path.strip_suffix('/').unwrap_or(path);
        if path.is_empty() {
            return Ok(String::new());
        }
        let is_fine = |c: char| c.is_ascii_alphanumeric() || "-._~%!$&'()*+,;=:@".contains(c);
        let are_fine = path
            .split('/')
            .all(|name| !matches!(name, "" | "." | "..") && name.chars().all(is_fine));
        if !are_fine || path.len() >= LONGEST_PREFIX_BYTES {
            return Err(StaticPeerError::Prefix);
        }
        Ok(format!("{path}/"))
    }

    /// The `Host` header: name or address, with the port unless that is 80.
    pub fn host_header(&self) -> String {
        let host = match &self.host {
            CacheHost::Address(address) => match address.ip {
                IpAddr::V4(ip) => ip.to_string(),
                IpAddr::V6(ip) => format!("[{ip}]"),
            },
            CacheHost::Name(PeerName::Host(name)) => name.without_dot().to_owned(),
            CacheHost::Name(PeerName::Zoned(address)) => format!("[{}]", address.ip()),
        };
        if self.port == HTTP_PORT {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

/// `HOST:PORT` or `HOST`, which may be an IPv6 address in brackets.
fn split_port(text: &str) -> Result<(&str, Option<u16>), StaticPeerError> {
    let Some((host, port)) = text
        .rsplit_once(':')
        .filter(|(_, port)| !port.contains(']'))
    else {
        return Ok((text, None));
    };
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse() {
        Ok(number) if digits && number != 0 => Ok((host, Some(number))),
        _ => Err(StaticPeerError::Port(port.into())),
    }
}

/// The name of a host, or an address with a zone in brackets.
fn peer_name(text: &str) -> Result<PeerName, StaticPeerError> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    if let Some(Ok(address)) = bare.map(str::parse) {
        return Ok(PeerName::Zoned(address));
    }
    if text.contains('%') {
        return Err(StaticPeerError::Zone(text.into()));
    }
    text.parse()
        .map(PeerName::Host)
        .map_err(|error| StaticPeerError::Host(text.into(), error))
}

impl fmt::Display for StaticPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => match address.port {
                Some(port) => address.with_port(port).fmt(f),
                None if address.scope == 0 => address.ip.fmt(f),
                None => write!(f, "{}%{}", address.ip, address.scope),
            },
            Self::Name { name, port: None } => match name {
                PeerName::Host(name) => name.fmt(f),
                PeerName::Zoned(address) => address.fmt(f),
            },
            Self::Name {
                name,
                port: Some(port),
            } => write!(f, "{name}:{port}"),
            Self::Cache(url) => url.fmt(f),
        }
    }
}

/// As it stands before a port.
impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => name.fmt(f),
            Self::Zoned(address) => write!(f, "[{address}]"),
        }
    }
}

impl fmt::Display for CacheUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("http://")?;
        match &self.host {
            CacheHost::Address(address) => write!(f, "{}", address.with_port(self.port))?,
            CacheHost::Name(name) if self.port == HTTP_PORT => write!(f, "{name}")?,
            CacheHost::Name(name) => write!(f, "{name}:{}", self.port)?,
        }
        write!(f, "/{}", self.prefix)
    }
}

impl Serialize for StaticPeer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for StaticPeer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = deserializer.deserialize_any(units::Quoted(RIGHT))?;
        text.parse().map_err(|error: StaticPeerError| {
            let cause = match &error {
                StaticPeerError::Host(_, cause) => format!(": {cause}"),
                _ => String::new(),
            };
            de::Error::custom(format_args!(
                "`{text}` is not a peer: {error}{cause}; right would be {RIGHT}"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> StaticPeer {
        text.parse().expect(text)
    }

    #[test]
    fn addresses_names_and_caches_are_told_apart() {
        for text in [
            "192.168.1.5",
            "192.168.1.5:12304",
            "fd00::5",
            "[fd00::5]:12304",
            "fe80::5%2",
            "[fe80::5%2]:12304",
        ] {
            let peer = parse(text);
            assert!(matches!(peer, StaticPeer::Address(_)), "{text}");
            assert_eq!(peer.to_string(), text);
            assert!(peer.address(1).is_some());
        }
        for text in [
            "nas",
            "nas.lan",
            "nas.lan.",
            "nas.lan:12304",
            "fe80::5%eth0",
            "[fe80::5%eth0]:12304",
            "[fe80::5%wlp0s20f3.7]:1",
        ] {
            let peer = parse(text);
            assert!(matches!(peer, StaticPeer::Name { .. }), "{text}");
            assert_eq!(peer.to_string(), text);
            assert_eq!(peer.address(1), None);
        }
        for (text, printed, header, prefix) in [
            ("http://nas", "http://nas/", "nas", ""),
            ("HTTP://NAS:80/", "http://nas/", "nas", ""),
            ("http://nas:5000", "http://nas:5000/", "nas:5000", ""),
            (
                "http://nas.lan./a/b",
                "http://nas.lan./a/b/",
                "nas.lan",
                "a/b/",
            ),
            (
                "http://10.0.0.1/x/",
                "http://10.0.0.1:80/x/",
                "10.0.0.1",
                "x/",
            ),
            (
                "http://[fd00::5]:8080",
                "http://[fd00::5]:8080/",
                "[fd00::5]:8080",
                "",
            ),
            (
                "http://[fe80::5%2]",
                "http://[fe80::5%2]:80/",
                "[fe80::5]",
                "",
            ),
            (
                "http://[fe80::5%eth0]/x",
                "http://[fe80::5%eth0]/x/",
                "[fe80::5]",
                "x/",
            ),
            (
                "http://[fe80::5%eth0]:5000",
                "http://[fe80::5%eth0]:5000/",
                "[fe80::5]:5000",
                "",
            ),
        ] {
            let peer = parse(text);
            assert_eq!(peer.to_string(), printed);
            let StaticPeer::Cache(url) = peer else {
                panic!("{text} is a cache")
            };
            assert_eq!(url.host_header(), header);
            assert_eq!(url.prefix, prefix);
        }
    }

    #[test]
    fn what_is_no_peer_is_refused_with_the_reason() {
        for (text, part) in [
            ("https://cache.lan", "TLS"),
            ("ftp://cache.lan", "http://"),
            ("http://user:secret@cache.lan", "@"),
            ("http://cache.lan/?priority=1", "`?`"),
            ("http://cache.lan/#x", "`#`"),
            ("http://cache.lan/a//b", "the path"),
            ("http://cache.lan/../b", "the path"),
            ("http://cache.lan/a b", "the path"),
            ("http://", "neither an address nor a name"),
            ("http://cache.lan:0", "is not a port"),
            ("nas.lan:0", "is not a port"),
            ("nas.lan:+5", "is not a port"),
            ("nas.lan:99999", "is not a port"),
            ("nas.lan:", "is not a port"),
            ("10.0.0.1:0", "is not a port"),
            ("[fd00::5]", "neither an address nor a name"),
            ("10.0.0.256", "neither an address nor a name"),
            ("", "neither an address nor a name"),
            ("fd00::5%eth0", "is not a zone"),
            ("10.0.0.1%eth0", "is not a zone"),
            ("[10.0.0.1%eth0]:12304", "is not a zone"),
            ("nas%eth0", "is not a zone"),
            ("fe80::5%", "is not a zone"),
            ("fe80::5%eth 0", "is not a zone"),
            ("[fe80::5%a/b]:12304", "is not a zone"),
            ("fe80::5%sixteencharacter", "is not a zone"),
            ("[fe80::5%eth0]:0", "is not a port"),
            ("http://[fd00::5%eth0]", "is not a zone"),
        ] {
            let error = text.parse::<StaticPeer>().expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_to_the_same(
            text in "(http://)?([a-z]{1,3}(\\.[a-z]{1,3})?\\.?|[0-9]\\.0\\.0\\.[0-9]|\\[?fe80::[1-9](%[1-9a])?\\]?)(:[1-9][0-9]{0,3})?(/[a-z~]{1,3})?/?"
        ) {
            if let Ok(peer) = text.parse::<StaticPeer>() {
                prop_assert_eq!(peer.to_string().parse::<StaticPeer>(), Ok(peer));
            }
        }

        #[test]
        fn no_text_panics(text: String) {
            text.parse::<StaticPeer>().ok();
            format!("http://{text}").parse::<StaticPeer>().ok();
        }
    }
}
