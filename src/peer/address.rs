//! Socket addresses as URLs. A URL cannot carry the scope id of a link-local IPv6 address,
//! so such an address travels as a made-up host name that only our resolver understands,
//! and no other name is ever looked up.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// `.invalid` is reserved (RFC 6761): no resolver on the way could answer for it.
const SUFFIX: &str = ".scoped.invalid";

/// A name that is not one of ours: nothing may be resolved through this client.
#[derive(Debug, thiserror::Error)]
#[error("`{name}` is not the address of a peer")]
struct ForeignName {
    name: String,
}

/// The URL of `path` (without leading slash) at `peer`.
pub(super) fn url(peer: SocketAddr, path: &str) -> String {
    match peer {
        SocketAddr::V6(v6) if v6.scope_id() != 0 => {
            format!(
                "http://{:032x}-{}{SUFFIX}:{}/{path}",
                v6.ip().to_bits(),
                v6.scope_id(),
                v6.port()
            )
        }
        _ => format!("http://{}/{path}", without_scope(peer)),
    }
}

/// The `Host` header for `peer`: its address, without the scope that means nothing over there.
pub(super) fn host(peer: SocketAddr) -> String {
    without_scope(peer).to_string()
}

fn without_scope(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip(), peer.port())
}

/// Resolves the names made by [`url`] and no others.
pub(super) struct OnlyOurNames;

impl Resolve for OnlyOurNames {
    fn resolve(&self, name: Name) -> Resolving {
        let resolved =
            scoped(name.as_str()).map(|address| Box::new(std::iter::once(address)) as Addrs);
        let name = name.as_str().to_owned();
        Box::pin(std::future::ready(
            resolved.ok_or_else(|| ForeignName { name }.into()),
        ))
    }
}

fn scoped(name: &str) -> Option<SocketAddr> {
    let (bits, scope) = name.strip_suffix(SUFFIX)?.split_once('-')?;
    let ip = Ipv6Addr::from_bits(u128::from_str_radix(bits, 16).ok()?);
    Some(SocketAddrV6::new(ip, 0, 0, scope.parse().ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_id_survives_the_way_through_a_url() {
        let peer: SocketAddr = "[fe80::1:2%7]:12304".parse().expect("address");
        let url = url(peer, "local/x");
        let name = url
            .strip_prefix("http://")
            .and_then(|rest| rest.strip_suffix(":12304/local/x"))
            .expect("parts");
        assert_eq!(
            scoped(name),
            Some("[fe80::1:2%7]:0".parse().expect("address"))
        );
        assert_eq!(host(peer), "[fe80::1:2]:12304");
    }

    #[test]
    fn other_addresses_stand_in_the_url() {
        for (peer, expected) in [
            ("192.168.1.5:80", "http://192.168.1.5:80/x"),
            ("[fd00::5]:12304", "http://[fd00::5]:12304/x"),
        ] {
            assert_eq!(url(peer.parse().expect("address"), "x"), expected);
        }
    }

    #[test]
    fn no_name_of_the_world_is_resolved() {
        for name in [
            "localhost",
            "cache.nixos.org",
            "scoped.invalid",
            "x-1.scoped.invalid",
        ] {
            assert_eq!(scoped(name), None, "{name}");
        }
    }
}
