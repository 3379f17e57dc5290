//! What is told of a peer, in /status and on the command line.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::peer::Peer;
use crate::protocol::PeerAddr;

/// Which protocol a peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It has not answered yet.
    Unknown,
    /// The first peerix: it answers only with what it has.
    Old,
    /// It answers every ask.
    New,
}

/// One peer, for users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Where it is asked, UDP.
    pub address: SocketAddr,
    /// Where it serves, if it said so.
    pub http: Option<PeerAddr>,
    /// Which protocol it speaks.
    pub kind: Kind,
    /// Its random number.
    pub instance: Option<u64>,
    /// Whether it is named in the configuration.
    pub is_configured: bool,
    /// Whether DNS-SD announces it.
    pub is_announced: bool,
    /// Whether it has answered a unicast ask.
    pub is_live: bool,
    /// Whether lookups wait for it.
    pub is_waited_for: bool,
    /// How long ago it answered; `None` if it never did.
    pub heard: Option<Duration>,
    /// Its retransmission time, if a round trip was measured.
    pub round_trip: Option<Duration>,
    /// Hashes that it answered with yes.
    pub present: u64,
    /// Hashes that it answered with no.
    pub absent: u64,
}

impl PeerInfo {
    pub(super) fn of(peer: &Peer, now: Instant) -> Self {
        let kind = match (peer.sender, peer.heard_old) {
            (Some(_), _) => Kind::New,
            (None, Some(_)) => Kind::Old,
            (None, None) => Kind::Unknown,
        };
        Self {
            address: peer.address,
            http: peer.http(),
            kind,
            instance: peer.sender.map(|sender| sender.instance),
            is_configured: peer.is_configured,
            is_announced: peer.is_announced,
            is_live: peer.is_live,
            is_waited_for: !peer.is_silent && peer.takes_asks(),
            heard: peer.heard.map(|at| now.saturating_duration_since(at)),
            round_trip: peer.measured_timeout(),
            present: peer.present,
            absent: peer.absent,
        }
    }
}
