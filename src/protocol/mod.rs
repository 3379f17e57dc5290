//! Layer 1: how peers find each other, as bytes and as a state machine; docs/protocol.md
//! is the specification.
//!
//! Nothing here reads a clock, draws a random number, opens a socket or writes a log: the
//! time and random ids are arguments, and what is to be done comes back as
//! [`Action`](discovery::Action)s. The module `lan` carries them out.

pub mod datagram;
pub mod discovery;
mod interface;
mod path_state;
mod peer_addr;
pub mod pieces;
mod plain_cache;
mod wait_budget;

pub use discovery::Discovery;
pub use interface::{Interface, Network, networks};
pub use path_state::PathState;
pub(crate) use peer_addr::canonical;
pub use peer_addr::{PeerAddr, PeerAddrError};
pub use plain_cache::PlainCache;
pub use wait_budget::{BURST_WAIT, WaitBudget};
