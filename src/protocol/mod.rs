//! Layer 1: how peers find each other, as bytes and as a state machine; docs/protocol.md
//! is the specification.
//!
//! Nothing here reads a clock, draws a random number, opens a socket or writes a log: the
//! time and random ids are arguments, and what is to be done comes back as [`Action`]s.
//! The module `lan` carries them out.

pub mod discovery;
mod interface;
mod packet;
mod peer_addr;
pub mod pieces;
mod plain_cache;
pub mod wait_budget;
pub mod wire;

pub use discovery::{Action, Discovery, End, Origin, Outcome, Question, Settings};
pub use interface::{Interface, Network, networks};
pub(crate) use peer_addr::canonical;
pub use peer_addr::{PeerAddr, PeerAddrError};
pub use plain_cache::PlainCache;
pub use wait_budget::WaitBudget;
pub use wire::{Datagram, Held, Packet, WireError};
