//! Layer 0: the formats that Nix fixed. Parsing and printing only; no I/O, no clock.

pub mod base32;
pub mod cache_info;
pub mod content_address;
pub mod nar;
pub mod narinfo;
pub mod nix_conf;
pub mod path_info;
#[cfg(test)]
mod samples;
pub mod signature;
pub mod store_path;

pub use content_address::ContentAddress;
pub use narinfo::Narinfo;
pub use path_info::PathInfo;
pub use signature::{PublicKey, SecretKey, Signature, TrustedKeys};
pub use store_path::{NarHash, StoreDir, StorePath, StorePathHash};
