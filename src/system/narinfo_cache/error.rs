//! Why Nix still remembers.

use std::{io, path::PathBuf};

use nix::errno::Errno;

/// Why a database, or a directory of them, was left as it is.
#[derive(Debug, thiserror::Error)]
pub enum NarinfoCacheError {
    /// The file system does not say what is there.
    #[error("cannot look at {}", path.display())]
    Look {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// Root would work in a directory that others can change.
    #[error(
        "{} is left alone: others than root can change {}; right would be a directory that belongs to root, with all above it, and that nobody else may write to",
        directory.display(),
        part.display()
    )]
    Shared {
        /// The directory of the databases.
        directory: PathBuf,
        /// It, or the directory above it, that others can change.
        part: PathBuf,
    },
    /// There is something else at its path.
    #[error("{} is {kind}, not a regular file; it is left alone", path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
        /// What is there, with its article.
        kind: &'static str,
    },
    /// It is somebody else's.
    #[error(
        "{} belongs to user {owner}, not to user {user} whose Nix reads it; right would be `chown {user}`, or to remove it",
        path.display()
    )]
    Foreign {
        /// The database.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Whom we run as.
        user: u32,
    },
    /// This user may not write there.
    #[error("may not write {}", path.display())]
    NotWritable {
        /// The database, or its directory.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: Errno,
    },
    /// Another process held its lock for too long.
    #[error(
        "{} was locked for {seconds} s; right would be to try again when Nix is done with it",
        path.display()
    )]
    Locked {
        /// The database.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The same without POSIX locks, where also a process that died can hold it.
    #[error(
        "{} was locked for {seconds} s; right would be to try again when Nix is done with it, or, if no Nix is running, to remove the directory {}",
        path.display(),
        lock.display()
    )]
    LockedByDotfile {
        /// The database.
        path: PathBuf,
        /// The lock.
        lock: PathBuf,
        /// How long was waited.
        seconds: u64,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// Not an SQLite database, or a damaged one.
    #[error(
        "{} is not a sound SQLite database; right would be to remove it, Nix makes a new one",
        path.display()
    )]
    NotSqlite {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// A database of a Nix that this program does not know.
    #[error(
        "{} is left alone: its table {table} is not as in any Nix that this program knows",
        path.display(),
    )]
    Layout {
        /// The database.
        path: PathBuf,
        /// The table that is missing, or different.
        table: &'static str,
    },
    /// SQLite failed in another way.
    #[error("cannot {attempt} {}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// What was attempted.
        attempt: &'static str,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
}

impl NarinfoCacheError {
    /// Whether another user could do it.
    pub fn is_permission(&self) -> bool {
        match self {
            Self::Look { source, .. } => source.kind() == io::ErrorKind::PermissionDenied,
            Self::Shared { .. } | Self::Foreign { .. } | Self::NotWritable { .. } => true,
            _ => false,
        }
    }
}
