//! Who a client is, and whether it may use a route. Pure; decided before a path is parsed.

use std::net::{IpAddr, SocketAddr};

use hyper::{
    HeaderMap, Uri,
    header::{HOST, HeaderValue, ORIGIN},
};

use super::route::Audience;
use crate::config::Config;

/// A connection's other end, by canonical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// Its address; an IPv4 address is one, however it reached us.
    pub address: SocketAddr,
}

impl Client {
    /// The client at `address`.
    pub fn new(address: SocketAddr) -> Self {
        let ip = address.ip().to_canonical();
        let address = if ip.is_ipv4() {
            SocketAddr::new(ip, address.port())
        } else {
            address
        };
        Self { address }
    }

    /// Whether it runs on this machine.
    pub fn is_loopback(&self) -> bool {
        self.address.ip().is_loopback()
    }

    /// Whether it may use a route for `audience` with a request of this head.
    ///
    /// What is for this machine alone is also kept from its browsers: a page must not be able
    /// to reach it by a name of its own (DNS rebinding) or from another origin.
    pub fn may_use(
        &self,
        config: &Config,
        audience: Audience,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> bool {
        match audience {
            Audience::Lan => {
                (self.is_loopback() || config.allows(self.address.ip())) && !is_of_web_page(headers)
            }
            Audience::Loopback => {
                self.is_loopback()
                    && !is_of_web_page(headers)
                    && uri.host().is_none_or(is_loopback_name)
                    && headers.get_all(HOST).iter().all(is_loopback_host)
            }
        }
    }
}

/// Whether a browser sends this for a page, rather than for an address that was typed in.
fn is_of_web_page(headers: &HeaderMap) -> bool {
    let mut sites = headers.get_all("sec-fetch-site").iter();
    headers.contains_key(ORIGIN) || sites.any(|site| site != "none")
}

fn is_loopback_host(host: &HeaderValue) -> bool {
    let Ok(authority) = host
        .to_str()
        .unwrap_or("?")
        .parse::<hyper::http::uri::Authority>()
    else {
        return false;
    };
    is_loopback_name(authority.host())
}

fn is_loopback_name(host: &str) -> bool {
    let bare = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(host);
    match bare.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback(),
        Err(_) => {
            let name = bare.strip_suffix('.').unwrap_or(bare).to_ascii_lowercase();
            name == "localhost"
                || name.ends_with(".localhost")
                || name == "ip6-localhost"
                || name == "localhost.localdomain"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may_use(address: &str, audience: Audience, headers: &[(&'static str, &str)]) -> bool {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().expect("header"));
        }
        let client = Client::new(address.parse().expect("address"));
        client.may_use(&Config::default(), audience, &Uri::from_static("/x"), &map)
    }

    #[test]
    fn the_lan_may_use_what_is_for_it() {
        for (address, allowed) in [
            ("192.168.1.7:1", true),
            ("[::ffff:192.168.1.7]:1", true),
            ("[fe80::1%3]:1", true),
            ("127.0.0.1:1", true),
            ("8.8.8.8:1", false),
            ("[::ffff:8.8.8.8]:1", false),
        ] {
            assert_eq!(
                may_use(address, Audience::Lan, &[("host", "whatever.example")]),
                allowed,
                "{address}"
            );
        }
    }

    #[test]
    fn only_this_machine_may_use_the_gateway() {
        for (address, allowed) in [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("192.168.1.7:1", false),
            ("[fe80::1]:1", false),
        ] {
            assert_eq!(
                may_use(address, Audience::Loopback, &[("host", "localhost")]),
                allowed,
                "{address}"
            );
        }
    }

    #[test]
    fn no_web_page_may_use_the_gateway() {
        for (headers, allowed) in [
            (&[][..], true),
            (&[("host", "127.0.0.1:12304")], true),
            (&[("host", "[::1]:12304")], true),
            (&[("host", "LOCALHOST:12304")], true),
            (&[("host", "localhost.")], true),
            (&[("host", "cache.localhost")], true),
            (&[("host", "localhost"), ("sec-fetch-site", "none")], true),
            (&[("host", "evil.example")], false),
            (&[("host", "127.0.0.1.evil.example")], false),
            (&[("host", "localhost.evil.example:12304")], false),
            (&[("host", "192.168.1.7")], false),
            (&[("host", "")], false),
            (&[("host", "localhost"), ("host", "evil.example")], false),
            (&[("host", "localhost"), ("origin", "null")], false),
            (
                &[("host", "localhost"), ("origin", "http://localhost")],
                false,
            ),
            (
                &[("host", "localhost"), ("sec-fetch-site", "cross-site")],
                false,
            ),
            (
                &[("host", "localhost"), ("sec-fetch-site", "same-origin")],
                false,
            ),
        ] {
            assert_eq!(
                may_use("127.0.0.1:1", Audience::Loopback, headers),
                allowed,
                "{headers:?}"
            );
        }
    }

    #[test]
    fn the_authority_of_an_absolute_uri_counts_like_a_host() {
        let client = Client::new("127.0.0.1:1".parse().expect("address"));
        let may = |uri| {
            client.may_use(
                &Config::default(),
                Audience::Loopback,
                &Uri::from_static(uri),
                &HeaderMap::new(),
            )
        };
        assert!(may("http://localhost:12304/x"));
        assert!(!may("http://evil.example/x"));
    }
}
