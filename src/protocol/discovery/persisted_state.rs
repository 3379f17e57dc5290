//! What of discovery outlives the process, as plain data; the daemon keeps it in its state
//! file, and a defect in it discards the file.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::protocol::datagram::Sender;

/// Identity and peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PersistedState {
    /// Random, drawn once per boot.
    pub instance: u64,
    /// At most 1,024 are taken back.
    pub peers: Vec<PersistedPeer>,
}

/// A peer that answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PersistedPeer {
    /// Where it answers, UDP.
    pub address: SocketAddr,
    /// What it last said of itself; none from an old peer.
    pub sender: Option<Sender>,
    /// How many seconds before the state was saved it answered.
    pub heard_seconds_ago: u64,
    /// And gave a path that was accepted, if it did.
    pub given_seconds_ago: Option<u64>,
}
