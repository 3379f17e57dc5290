//! Peerix: a peer-to-peer binary cache for Nix on the local network.
//!
//! One daemon does both halves: it answers other machines from this machine's store (*holder*),
//! and it asks them for the paths that the local Nix wants (*gateway*).
//!
//! The modules are layers; each may import only layers below it, never a sibling
//! (`tests/layers.rs` holds them to it):
//!
//! | layer | modules |
//! |---|---|
//! | 0 | [`format`]: what Nix fixed, parse and print |
//! | 1 | [`protocol`], [`config`], [`idle`]: our wire format and its state machines, the settings, the idle deadline |
//! | 2 | [`store`], [`lan`], [`peer`], [`system`]: the local store, the UDP sockets, HTTP to one peer, the host |
//! | 3 | [`finder`]: lookups, peer health, NAR sources and NAR streams |
//! | 4 | [`http`]: what is served |
//! | 5 | [`daemon`]: wires the above, owns every task |
//! | 6 | [`cli`]: arguments, the operator's commands; and `main`, the synchronous start |
//!
//! Data flows one way: bytes are parsed once, at the
//! edge, into typed values; decisions are pure; I/O carries them out.

// Not in Cargo.toml, where they would hold for the helpers of integration tests as well.
#![cfg_attr(
    not(test),
    warn(
        clippy::expect_used,
        clippy::print_stderr,
        clippy::print_stdout,
        clippy::unwrap_used
    )
)]

pub mod cli;
pub mod config;
pub mod daemon;
pub mod finder;
pub mod format;
pub mod http;
pub mod idle;
pub mod lan;
pub mod peer;
pub mod protocol;
pub mod store;
pub mod system;
