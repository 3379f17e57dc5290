//! Rows of the database that were read lately, for as long as they are right.

use std::{num::NonZeroUsize, sync::Arc};

use lru::LruCache;

use crate::format::{StorePath, StorePathHash};

/// Rows kept for each connection, about 200 bytes each.
const MOST_ROWS: NonZeroUsize = NonZeroUsize::new(4_096).unwrap();

/// Of everything in a row that a decision about sharing depends on.
pub(super) type Digest = [u8; 32];

/// A state of the database, as one connection sees it. It never comes again once it has passed.
#[derive(Debug, Clone)]
pub(super) struct Stamp {
    connection: Arc<()>,
    /// `PRAGMA data_version`: changes with each commit of another connection. It says nothing to an
    /// immutable connection, which is dropped when the file changes.
    version: i64,
}

impl PartialEq for Stamp {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.connection, &other.connection) && self.version == other.version
    }
}

/// What was read on one connection in one state of the database; nothing of another state.
#[derive(Debug)]
pub(super) struct SeenRows {
    stamp: Stamp,
    /// Absent paths are remembered too.
    rows: LruCache<StorePathHash, Option<SeenRow>>,
}

/// What has to be known of a row to answer an ask.
#[derive(Debug, Clone)]
pub(super) struct SeenRow {
    pub(super) path: StorePath,
    pub(super) digest: Digest,
}

impl SeenRows {
    /// Of a new connection.
    pub(super) fn new() -> Self {
        Self {
            stamp: Stamp {
                connection: Arc::new(()),
                version: 0,
            },
            rows: LruCache::new(MOST_ROWS),
        }
    }

    /// The state that the rows are of.
    pub(super) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// Forgets all if the database has changed.
    pub(super) fn set_version(&mut self, version: i64) {
        if self.stamp.version != version {
            self.rows.clear();
            self.stamp.version = version;
        }
    }

    /// What was read for `hash`, if it was.
    pub(super) fn find(&mut self, hash: StorePathHash) -> Option<&Option<SeenRow>> {
        self.rows.get(&hash)
    }

    /// Remembers what was read for `hash`.
    pub(super) fn insert(&mut self, hash: StorePathHash, row: Option<SeenRow>) {
        self.rows.put(hash, row);
    }
}
