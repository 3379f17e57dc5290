//! What is told of a peer, in /status and on the command line.

use std::{net::SocketAddr, time::Duration};

use super::peer::Kind;
use crate::protocol::{PeerAddr, wire::About};

/// One line of the table, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// Where it is heard and asked, UDP.
    pub address: SocketAddr,
    /// Where it serves, if it said so.
    pub http: Option<PeerAddr>,
    /// How it speaks.
    pub kind: Kind,
    /// What it last said of itself: instance, version, generation.
    pub about: Option<About>,
    /// Whether it is named in the configuration.
    pub is_static: bool,
    /// Whether the same peer is heard, and asked, at another address.
    pub is_alias: bool,
    /// Whether it has ever answered a random id of ours.
    pub has_answered: bool,
    /// Whether lookups wait for it at present.
    pub is_waited_for: bool,
    /// How long ago it was heard; `None` for a configured peer that never was.
    pub heard: Option<Duration>,
    /// Whether its summary says all that it has, so that it need not be asked.
    pub is_covered: bool,
    /// Asks in a row that waited for it in vain; each is one lookup or several.
    pub silent_asks: u32,
    /// Requests of ours it has answered with a path.
    pub present: u64,
    /// Requests of ours it has answered with no.
    pub absent: u64,
}
