//! A binary cache that is no peer: harmonia, nix-serve, or a web server over a directory.

use std::fmt;

use super::PeerAddr;

/// Where a plain binary cache serves: `http://HOST/PREFIX`, with the address that HOST stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PlainCache {
    /// Where to connect to.
    pub address: PeerAddr,
    /// The `Host` header: name or address, with the port unless that is 80.
    pub host: String,
    /// What goes before the names of its files: empty, or a path that ends with `/` and begins
    /// with no `/`.
    pub prefix: String,
    /// Announced on the network, not named in the settings.
    pub announced: bool,
}

impl fmt::Display for PlainCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}/{}", self.host, self.prefix)
    }
}
