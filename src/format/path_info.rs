//! What Nix knows of a valid path: the facts that a narinfo and the database share.

use super::{ContentAddress, NarHash, Signature, StorePath};

/// The facts of one valid store path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The path itself.
    pub path: StorePath,
    /// sha256 of its NAR.
    pub nar_hash: NarHash,
    /// Length of its NAR in bytes, never 0.
    pub nar_size: u64,
    /// What it refers to, sorted, without duplicates; may contain the path itself.
    pub references: Vec<StorePath>,
    /// The derivation that made it, if known.
    pub deriver: Option<StorePath>,
    /// Signatures of its fingerprint, unverified.
    pub signatures: Vec<Signature>,
    /// Its content address, unchecked.
    pub ca: Option<ContentAddress>,
}
