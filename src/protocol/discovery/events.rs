//! What goes into the state machine beside bytes, and what comes out of it.

use std::net::{IpAddr, SocketAddr};

use crate::{
    format::StorePathHash,
    protocol::{
        PeerAddr,
        datagram::{Magnitude, Packet},
    },
};

/// A lookup of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LookupId(pub(super) u64);

/// The way that a datagram came, which its answer takes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReturnPath {
    /// Number of the socket that received it.
    pub socket: usize,
    /// Index of the interface that it came in on; 0 if that is not known.
    pub interface: u32,
    /// Our address that it was sent to, or one of ours on that interface.
    pub local: Option<IpAddr>,
}

/// How a datagram came, as far as the state machine cannot know by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// Its source, canonical.
    pub from: SocketAddr,
    /// The way back.
    pub path: ReturnPath,
    /// It was sent to all of a network.
    pub is_broadcast: bool,
    /// The source is an address of this machine and a port of our sockets.
    pub is_own: bool,
    /// The source is in an allowed network.
    pub is_allowed: bool,
    /// The source is on a network of the interface that it came in on.
    pub is_on_link: bool,
}

/// A network interface that can be broadcast on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Link {
    /// Its index.
    pub interface: u32,
    /// Broadcasts on it may be held back by an access point.
    pub is_wireless: bool,
}

/// Which networks a broadcast goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Every network, by IPv6 also where IPv4 reaches the same hosts.
    Everywhere,
    /// The networks of one interface; by IPv6 only if it has no IPv4 network.
    Interface(u32),
    /// The IPv4 networks of one interface: old peers speak nothing else.
    Ipv4On(u32),
    /// All IPv4 networks.
    Ipv4,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send to everyone on some networks.
    Broadcast {
        /// What to send.
        packet: Packet,
        /// Where.
        scope: Scope,
    },
    /// Send to one peer.
    Send {
        /// The peer.
        to: SocketAddr,
        /// What to send.
        packet: Packet,
    },
    /// Answer a datagram.
    Reply {
        /// Its source.
        to: SocketAddr,
        /// The way that it came.
        path: ReturnPath,
        /// What to send.
        packet: Packet,
    },
    /// Ask the store, then call [`Discovery::answer`](super::Discovery::answer).
    Request(PeerRequest),
    /// A peer says that it shares the path of a lookup.
    Candidate {
        /// The lookup.
        lookup: LookupId,
        /// Where the path is served.
        peer: PeerAddr,
    },
    /// A lookup has ended.
    Finished {
        /// The lookup.
        lookup: LookupId,
        /// How it ended.
        outcome: Outcome,
    },
}

/// A peer asks which of some paths we share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRequest {
    /// Who asks, UDP.
    pub from: SocketAddr,
    /// The paths.
    pub hashes: Vec<StorePathHash>,
    pub(super) path: ReturnPath,
    pub(super) id: u32,
    pub(super) form: RequestForm,
}

impl PeerRequest {
    /// Whether all peers of a network were asked by the same datagram.
    pub fn is_broadcast(&self) -> bool {
        matches!(
            self.form,
            RequestForm::Ask {
                is_broadcast: true,
                ..
            }
        )
    }

    /// Whether it is repeated when we cannot say yet; an old peer asks once.
    pub fn is_repeated(&self) -> bool {
        self.form != RequestForm::Old
    }
}

/// Which datagram a request came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestForm {
    /// `00`, for one path.
    Old,
    /// `02`.
    Ask {
        is_broadcast: bool,
        only_if_any: bool,
        /// Live peers that the asker knows.
        peers: Magnitude,
    },
}

/// Why a lookup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// All peers that were waited for have answered.
    Answered,
    /// At least one peer did not answer in time.
    TimedOut,
    /// There was no peer and no network to ask.
    Alone,
    /// Too many lookups were in progress; nothing was sent.
    Overload,
}

/// How a lookup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Why.
    pub end: End,
    /// Peers that share the path.
    pub present: u32,
    /// Peers that do not.
    pub absent: u32,
    /// Peers that were waited for and did not answer.
    pub silent: u32,
}
