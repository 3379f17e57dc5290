//! What of discovery outlives the process, as plain data; the daemon keeps it in its state
//! file, and a defect in it discards the file.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::peer::Kind;
use crate::protocol::wire::About;

/// Identity and peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Saved {
    /// Random, drawn once per boot.
    pub instance: u64,
    /// At most 1,024 are taken back.
    pub peers: Vec<SavedPeer>,
}

/// A peer that was heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SavedPeer {
    /// Where it is heard and asked, UDP.
    pub address: SocketAddr,
    /// How it speaks.
    pub kind: Kind,
    /// What it last said of itself.
    pub about: Option<About>,
    /// Whether it has ever answered a random id of ours.
    pub has_answered: bool,
    /// How long before the state was saved it was heard.
    pub heard_seconds_ago: u64,
}
