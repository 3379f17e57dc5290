//! How neighbours are found.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{HostName, StaticPeer, units};

/// `[discovery]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Discovery {
    /// Wait for old peers, which do not say what they do not have.
    #[serde(with = "units::duration")]
    pub timeout: Duration,
    /// Longest wait for a peer that may be asleep.
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
            wake_timeout: Duration::from_millis(300),
            broadcast: true,
            dns_sd: true,
            peers: Vec::new(),
            domain: None,
        }
    }
}
