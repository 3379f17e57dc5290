//! What Nix remembers of substituters on disk, and how to make it forget that a gateway did not
//! have a path. Hits, other substituters and the substituters themselves stay as they are: a
//! running Nix holds the ids of the latter.
//!
//! The files are Nix's, and it may be using them: nothing is created, every change is one
//! transaction under Nix's own lock, and the journal mode stays. The layout is that of
//! `libstore/nar-info-disk-cache.cc` of Nix; misses are kept for `narinfo-cache-negative-ttl`,
//! an hour unless set. None of the files is ever opened here except through SQLite: closing
//! any other descriptor of one would drop SQLite's POSIX locks.

mod database;
mod directories;
mod error;
mod gateway;

pub use database::{Locks, forget_misses};
pub use directories::{cache_directory, databases};
pub use error::NarinfoCacheError;
pub use gateway::Gateway;

#[cfg(test)]
mod tests;
