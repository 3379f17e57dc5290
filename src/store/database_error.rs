//! Why the Nix database holds nothing at the moment.

use std::{io, path::PathBuf};

use super::database::ATTEMPTS;

/// Why the database holds nothing at the moment.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// There is none.
    #[error("there is no Nix database {}", path.display())]
    Missing {
        /// The database.
        path: PathBuf,
    },
    /// The file system does not even say what is there.
    #[error("cannot look at {}", path.display())]
    Look {
        /// The database, or one of the files beside it.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// This user may not read it.
    #[error("may not read {}", path.display())]
    Unreadable {
        /// The database.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Not an SQLite database, or a damaged one.
    #[error("{} is not a sound SQLite database", path.display())]
    NotSqlite {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// An SQLite database without the tables of Nix.
    #[error("{} is not a database of Nix", path.display())]
    NotNix {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// A writer died and left a journal that must be rolled back first.
    #[error("{} has a journal that a writer left behind; the next Nix command repairs it", path.display())]
    HotJournal {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// A write-ahead log is there and this user cannot read through it.
    #[error("cannot read {} through its write-ahead log; the next Nix command repairs it", path.display())]
    Wal {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// Another process held its lock for too long.
    #[error("{} is locked", path.display())]
    Locked {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// It changed during every attempt to read it.
    #[error("{} changed while it was read, {ATTEMPTS} times in a row", path.display())]
    Unsettled {
        /// The database.
        path: PathBuf,
    },
    /// SQLite failed in another way.
    #[error("cannot read {}", path.display())]
    Read {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
}

impl DatabaseError {
    /// Whether it comes from a writer at work and says nothing about the next request.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Locked { .. } | Self::Unsettled { .. })
    }

    /// Whether there is certainly nothing to be read until somebody does something.
    pub(super) fn is_lasting(&self) -> bool {
        self.needs_operator() || matches!(self, Self::Missing { .. })
    }

    /// Whether it may be over within milliseconds, as when a writer comes or goes.
    pub(super) fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::HotJournal { .. } | Self::Wal { .. } | Self::Unsettled { .. } | Self::Read { .. }
        )
    }

    /// Whether it stays until somebody repairs it, while other states come and go with Nix's own work.
    pub fn needs_operator(&self) -> bool {
        matches!(
            self,
            Self::Look { .. }
                | Self::Unreadable { .. }
                | Self::NotSqlite { .. }
                | Self::NotNix { .. }
        )
    }
}
