//! What goes into the state machine beside bytes, and what comes out of it.

use std::net::SocketAddr;

use crate::{
    format::StorePathHash,
    protocol::{
        PeerAddr,
        wire::{Datagram, Packet},
    },
};

/// Where a datagram came from, as far as the state machine cannot know by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The source is an address of this machine and a port of our sockets.
    pub is_own: bool,
    /// The source is in an allowed network.
    pub is_allowed: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send to every chosen network.
    Broadcast {
        /// What to send.
        packet: Packet,
        /// By IPv6 too where IPv4 reaches the same network: to find those who speak that alone.
        everywhere: bool,
    },
    /// Send to one peer.
    Send {
        /// The peer.
        to: SocketAddr,
        /// What to send.
        packet: Packet,
    },
    /// Send back to where a datagram came from, through the socket it came in if that is at hand.
    Reply {
        /// Its source.
        to: SocketAddr,
        /// What to send.
        packet: Packet,
    },
    /// Ask the store, then send [`Question::answer`], or for a batch what
    /// [`Discovery::answer`](super::Discovery::answer) says.
    Question(Question),
    /// A peer says that it has what a lookup looks for.
    Candidate {
        /// Id of the lookup.
        lookup: u32,
        /// Where it is served.
        peer: PeerAddr,
    },
    /// A lookup has ended; its id may be forgotten.
    Finished {
        /// Id of the lookup.
        lookup: u32,
        /// How it ended.
        outcome: Outcome,
    },
}

/// A peer asks whether we have a path, or which of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Who asks, UDP.
    pub from: SocketAddr,
    /// Its id for the question.
    pub id: u32,
    /// What it asks for.
    pub wanted: Wanted,
}

/// What a question is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// One path.
    One(StorePathHash),
    /// Several, by one datagram.
    Batch {
        /// How many peers the asker knows to be there.
        known: u16,
        /// Whether others were asked by the same datagram.
        to_many: bool,
        /// The paths, at least one.
        hashes: Vec<StorePathHash>,
    },
}

impl Wanted {
    /// The paths.
    pub fn hashes(&self) -> &[StorePathHash] {
        match self {
            Self::One(hash) => std::slice::from_ref(hash),
            Self::Batch { hashes, .. } => hashes,
        }
    }
}

impl Question {
    /// The answer to a question for one path; `held`: the path is here and shared.
    pub fn answer(&self, held: bool, http_port: u16) -> Option<Packet> {
        let Wanted::One(hash) = self.wanted else {
            return None;
        };
        let id = self.id;
        let answer = if held {
            Datagram::Response {
                id,
                http_port,
                hash,
            }
        } else {
            Datagram::Absent { id }
        };
        Some(answer.encode())
    }
}

/// Why a lookup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// All that were waited for have answered.
    Answered,
    /// The time was up.
    Timeout,
    /// There was nobody to ask, or nobody that answers when it has nothing.
    Alone,
    /// Summaries say what everybody has: nobody was asked.
    Covered,
    /// Too many lookups were in progress; nothing was sent.
    Overload,
}

/// How a lookup ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Why.
    pub end: End,
    /// Peers that said they have it.
    pub present: u32,
    /// Peers that said they do not.
    pub absent: u32,
    /// Peers that were waited for and said nothing.
    pub silent: u32,
}

impl Outcome {
    pub(super) fn without_asking(end: End) -> Self {
        Self {
            end,
            present: 0,
            absent: 0,
            silent: 0,
        }
    }
}
