//! How neighbours are found.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{HostName, StaticPeer, units};

/// `[discovery]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Discovery {
    /// Longest wait for peers that are awake.
    #[serde(with = "units::duration")]
    pub timeout: Duration,
    /// Wait of the first lookups after a quiet minute, while neighbours wake up.
    #[serde(with = "units::duration")]
    pub wake_timeout: Duration,
    /// Whether to send anything to all of a network at all.
    pub broadcast: bool,
    /// Whether to announce ourselves and to look for others by DNS-SD; not without
    /// [`Self::broadcast`].
    pub dns_sd: bool,
    /// Peers and plain caches that are asked directly, wherever they are.
    pub peers: Vec<StaticPeer>,
    /// Domain whose SRV records name peers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<HostName>,
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            timeout: Duration::from_millis(50),
            wake_timeout: Duration::from_millis(500),
            broadcast: true,
            dns_sd: true,
            peers: Vec::new(),
            domain: None,
        }
    }
}
