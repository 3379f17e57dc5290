//! The files of the Nix database on disk, and whether they have changed. They are looked at, never
//! opened: closing a descriptor of the database would drop SQLite's POSIX locks.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

use super::database_error::DatabaseError;

/// Two writes closer than a tick of the kernel's clock leave the same time on a file; 10 ms is
/// the longest tick. A file this old shows every further change.
pub(super) const TICK: Duration = Duration::from_millis(20);

/// The database's files as they were found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Files {
    /// The database without symbolic links: its log and journal are beside that.
    pub(super) real: PathBuf,
    pub(super) database: Stamp,
    /// Device and inode of the write-ahead log.
    pub(super) wal: Option<(u64, u64)>,
    pub(super) journal_bytes: u64,
}

impl Files {
    /// What is on disk at this moment, where `before` was, of the database at `path`.
    pub(super) fn look(path: &Path, before: Option<&Self>) -> Result<Self, DatabaseError> {
        let database = metadata(path)?.ok_or_else(|| DatabaseError::Missing {
            path: path.to_owned(),
        })?;
        let real = match before {
            // Only a symbolic link makes the two differ, then it may point elsewhere by now.
            Some(before) if before.real == path => path.to_owned(),
            _ => fs::canonicalize(path).map_err(|source| DatabaseError::Look {
                path: path.to_owned(),
                source,
            })?,
        };
        let wal = metadata(&beside(&real, "-wal"))?;
        let journal = metadata(&beside(&real, "-journal"))?;
        Ok(Self {
            real,
            database: Stamp::of(&database),
            wal: wal.map(|wal| (wal.dev(), wal.ino())),
            journal_bytes: journal.map_or(0, |journal| journal.size()),
        })
    }

    /// Whether all that there is is in the database file itself.
    pub(super) fn is_quiescent(&self) -> bool {
        self.wal.is_none() && self.journal_bytes == 0
    }

    /// Waits until a further change of the database shows in its times. Times ahead of our clock
    /// are not waited for.
    pub(super) fn wait_for_tick(&self) {
        let (seconds, nanoseconds) = self.database.changed;
        let changed = u64::try_from(seconds)
            .ok()
            .zip(u32::try_from(nanoseconds).ok())
            .map(|(seconds, nanoseconds)| Duration::new(seconds, nanoseconds));
        let age = SystemTime::UNIX_EPOCH
            .elapsed()
            .ok()
            .zip(changed)
            .and_then(|(now, changed)| now.checked_sub(changed));
        if let Some(rest) = age.and_then(|age| TICK.checked_sub(age)) {
            thread::sleep(rest);
        }
    }
}

/// What of a file changes when it is written or replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds, as all times here.
    modified: (i64, i64),
    pub(super) changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

fn metadata(path: &Path) -> Result<Option<fs::Metadata>, DatabaseError> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(source) => Err(DatabaseError::Look {
            path: path.to_owned(),
            source,
        }),
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
