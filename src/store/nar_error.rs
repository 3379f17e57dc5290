//! Why a NAR, or the rest of it, cannot be given.

use std::{io, path::PathBuf};

use crate::format::{NarHash, StorePath, nar::LayoutError};

/// Why a path's NAR cannot be given, or ends early. Files are named below the path.
#[derive(Debug, thiserror::Error)]
pub enum NarError {
    /// The path has no file in the store directory.
    #[error("{} has no file in the store", path.basename())]
    Missing {
        /// The path.
        path: StorePath,
    },
    /// A file, directory or link could not be read; or is gone, or has become something else.
    #[error("cannot read \"{}\" of {}", file.display(), path.basename())]
    Read {
        /// The path.
        path: StorePath,
        /// The file, empty for the path itself.
        file: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file does not have the size any more that it had when the tree was walked.
    #[error("\"{}\" of {} has {found} bytes where it had {expected}", file.display(), path.basename())]
    Changed {
        /// The path.
        path: StorePath,
        /// The file, empty for the path itself.
        file: PathBuf,
        /// Bytes it had.
        expected: u64,
        /// Bytes it has.
        found: u64,
    },
    /// Neither a regular file, nor a directory, nor a symbolic link.
    #[error("\"{}\" of {} is of a kind that a NAR cannot have", file.display(), path.basename())]
    Kind {
        /// The path.
        path: StorePath,
        /// The file, empty for the path itself.
        file: PathBuf,
    },
    /// The tree has no NAR.
    #[error("{} has no NAR", path.basename())]
    Layout {
        /// The path.
        path: StorePath,
        /// What is wrong with it.
        #[source]
        source: LayoutError,
    },
    /// The tree is not what was registered: the store is damaged.
    #[error("the NAR of {} has {found} bytes, registered are {registered}", path.basename())]
    SizeMismatch {
        /// The path.
        path: StorePath,
        /// Bytes that the database says.
        registered: u64,
        /// Bytes that the tree gives.
        found: u64,
    },
    /// The NAR has the registered size and another hash: the store is damaged.
    #[error("the NAR of {} is sha256:{found}, registered is sha256:{registered}", path.basename())]
    HashMismatch {
        /// The path.
        path: StorePath,
        /// What the database says.
        registered: NarHash,
        /// What the tree gives.
        found: NarHash,
    },
    /// The runtime is shutting down, or the reader has a bug.
    #[error("reading {} was interrupted", path.basename())]
    Interrupted {
        /// The path.
        path: StorePath,
    },
}
