//! Layer 2: the host. What systemd and the kernel hand to a daemon and expect of it:
//! descriptors, notifications, a user without privileges, the journal, keys and files.
//!
//! Everything here is synchronous and meant for the prologue of `main`, before any thread
//! exists, except [`notify`], [`interfaces`], [`nix_conf`] and [`state_file`], which the
//! running daemon uses too, and [`narinfo_cache`], which is for an operator's command. Nothing
//! here decides what is served or whom to ask.

pub mod config_file;
pub mod credentials;
pub mod descriptors;
mod host_name;
pub mod interfaces;
pub mod journal;
pub mod narinfo_cache;
pub mod nix_conf;
pub mod notify;
pub mod privileges;
mod regular_file;
pub mod sockets;
pub mod state_file;

pub use host_name::host_name;
pub use regular_file::ReadError;
