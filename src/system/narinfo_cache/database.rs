//! One database of Nix's memory, and the transaction that takes misses out of it.

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{SigSet, SigmaskHow},
    unistd::{AccessFlags, eaccess, geteuid},
};
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior, params};

use super::{Gateway, NarinfoCacheError, directories::is_absent};

/// How long a writer is waited for; Nix holds its lock for milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tables that can hold misses: a column that says whether a row is one, and how. In the order
/// of the versions of Nix that brought them; the first has always been there.
const MISSES: [Misses; 3] = [
    Misses {
        table: "NARs",
        column: "present",
        delete: "delete from NARs where cache = ? and present = 0",
    },
    Misses {
        table: "Realisations",
        column: "content",
        delete: "delete from Realisations where cache = ? and content is null",
    },
    Misses {
        table: "BuildTrace",
        column: "outputPath",
        delete: "delete from BuildTrace where cache = ? and outputPath is null",
    },
];

struct Misses {
    table: &'static str,
    column: &'static str,
    delete: &'static str,
}

/// How Nix locks its databases. Locks of different kinds do not see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Locks {
    /// By POSIX locks: SQLite's default.
    Posix,
    /// By directories beside the databases, as with `use-sqlite-wal = false`.
    Dotfile,
}

/// Deletes the misses of a gateway from a database, and says how many there were; none if the
/// file is gone. Waits up to 10 s for whoever writes to it.
///
/// The path must be one of [`super::databases`], and the file this user's own.
pub fn forget_misses(
    path: &Path,
    gateway: Gateway,
    locks: Locks,
) -> Result<u64, NarinfoCacheError> {
    forget_within(PATIENCE, path, gateway, locks)
}

pub(super) fn forget_within(
    patience: Duration,
    path: &Path,
    gateway: Gateway,
    locks: Locks,
) -> Result<u64, NarinfoCacheError> {
    if !check_file(path)? {
        return Ok(0);
    }
    let failed = |attempt| {
        move |source| {
            Failed {
                path,
                patience,
                locks,
                attempt,
            }
            .sort(source)
        }
    };
    let _unfinished = (locks == Locks::Dotfile).then(Uninterrupted::begin);
    let mut connection = connect(path, locks).map_err(failed("open"))?;
    connection
        .busy_timeout(patience)
        .map_err(failed("set up"))?;
    keep_journal(&connection, path).map_err(failed("open"))?;
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failed("begin to write"))?;
    // What fails from here on is rolled back when the transaction goes out of scope.
    let forgotten = delete(&transaction, gateway)
        .map_err(failed("delete from"))?
        .map_err(|UnknownTable(table)| NarinfoCacheError::Layout {
            path: path.to_owned(),
            table,
        })?;
    // Even an empty commit would lay out a file that is still empty.
    if forgotten > 0 {
        transaction.commit().map_err(failed("write"))?;
    } else {
        transaction.rollback().map_err(failed("leave"))?;
    }
    connection
        .close()
        .map_err(|(_, source)| failed("close")(source))?;
    Ok(forgotten)
}

/// Whether there is a file; an error if it is none that we should write to.
fn check_file(path: &Path) -> Result<bool, NarinfoCacheError> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if is_absent(&error) => return Ok(false),
        Err(source) => {
            return Err(NarinfoCacheError::Look {
                path: path.to_owned(),
                source,
            });
        }
    };
    if let Some(kind) = other_kind(metadata.file_type()) {
        return Err(NarinfoCacheError::NotRegular {
            path: path.to_owned(),
            kind,
        });
    }
    let user = geteuid().as_raw();
    if metadata.uid() != user {
        return Err(NarinfoCacheError::Foreign {
            path: path.to_owned(),
            owner: metadata.uid(),
            user,
        });
    }
    // SQLite would silently open it for reading, and needs the directory for its journal.
    for written in [Some(path), path.parent()].into_iter().flatten() {
        eaccess(written, AccessFlags::W_OK).map_err(|source| NarinfoCacheError::NotWritable {
            path: written.to_owned(),
            source,
        })?;
    }
    Ok(true)
}

fn other_kind(kind: fs::FileType) -> Option<&'static str> {
    match () {
        () if kind.is_file() => None,
        () if kind.is_symlink() => Some("a symbolic link"),
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_fifo() => Some("a pipe"),
        () if kind.is_socket() => Some("a socket"),
        () => Some("a device"),
    }
}

/// Creates nothing, and follows no link that has taken the file's place meanwhile.
fn connect(path: &Path, locks: Locks) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    match locks {
        Locks::Posix => Connection::open_with_flags(path, flags),
        Locks::Dotfile => Connection::open_with_flags_and_vfs(path, flags, "unix-dotfile"),
    }
}

/// Older versions of Nix leave an empty journal in place where SQLite would remove it; so do we.
/// This is a matter of each connection, while a write-ahead log is one of the file and stays.
fn keep_journal(connection: &Connection, path: &Path) -> rusqlite::Result<()> {
    if !beside(path, "-journal").exists() {
        return Ok(());
    }
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    if mode != "delete" {
        return Ok(());
    }
    connection.pragma_update(None, "journal_mode", "truncate")
}

/// A table that is missing, or without a column that it should have.
struct UnknownTable(&'static str);

fn delete(
    transaction: &Transaction<'_>,
    gateway: Gateway,
) -> rusqlite::Result<Result<u64, UnknownTable>> {
    let tables: i64 =
        transaction.query_row("select count(*) from sqlite_schema", (), |row| row.get(0))?;
    if tables == 0 {
        // Nix has created the file and is about to lay it out.
        return Ok(Ok(0));
    }
    let has = |table: &str, columns: [&str; 2]| -> rusqlite::Result<Option<bool>> {
        let mut statement = transaction.prepare("select name from pragma_table_info(?)")?;
        let names: Vec<String> = statement
            .query_map([table], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let known = columns
            .iter()
            .all(|column| names.iter().any(|it| it == column));
        Ok((!names.is_empty()).then_some(known))
    };

    if has("BinaryCaches", ["id", "url"])? != Some(true) {
        return Ok(Err(UnknownTable("BinaryCaches")));
    }
    let caches = caches(transaction, gateway)?;
    let mut there = Vec::new();
    for misses in &MISSES {
        match has(misses.table, ["cache", misses.column])? {
            Some(true) => there.push(misses),
            // Also of the first one nothing is there while Nix lays the file out.
            None if misses.table != MISSES[0].table || caches.is_empty() => {}
            _ => return Ok(Err(UnknownTable(misses.table))),
        }
    }

    let mut forgotten = 0;
    for cache in caches {
        for misses in &there {
            forgotten += transaction.execute(misses.delete, params![cache])? as u64;
        }
    }
    Ok(Ok(forgotten))
}

/// The ids of the substituters that are the gateway: it may be known by several names.
fn caches(transaction: &Transaction<'_>, gateway: Gateway) -> rusqlite::Result<Vec<i64>> {
    let mut statement = transaction.prepare("select id, url from BinaryCaches")?;
    let mut rows = statement.query(())?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        // A URL that is not text, or not UTF-8, is not ours.
        if row.get_ref(1)?.as_str().is_ok_and(|url| gateway.is_at(url)) {
            found.push(row.get(0)?);
        }
    }
    Ok(found)
}

/// What is known where SQLite fails.
struct Failed<'a> {
    path: &'a Path,
    patience: Duration,
    locks: Locks,
    attempt: &'static str,
}

impl Failed<'_> {
    fn sort(self, source: rusqlite::Error) -> NarinfoCacheError {
        let path = self.path.to_owned();
        let seconds = self.patience.as_secs();
        match source.sqlite_error_code() {
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::FileLockingProtocolFailed,
            ) => match self.locks {
                Locks::Posix => NarinfoCacheError::Locked {
                    path,
                    seconds,
                    source,
                },
                Locks::Dotfile => NarinfoCacheError::LockedByDotfile {
                    lock: beside(&path, ".lock"),
                    path,
                    seconds,
                    source,
                },
            },
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                NarinfoCacheError::NotSqlite { path, source }
            }
            _ => NarinfoCacheError::Sqlite {
                path,
                attempt: self.attempt,
                source,
            },
        }
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Signals wait while this lives. A process that ends with a dotfile lock leaves it behind, and
/// Nix would wait for it for an hour, command after command; POSIX locks end with the process.
struct Uninterrupted {
    before: Result<SigSet, Errno>,
}

impl Uninterrupted {
    fn begin() -> Self {
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
        Self { before }
    }
}

impl Drop for Uninterrupted {
    fn drop(&mut self) {
        if let Ok(before) = &self.before {
            // The kernel accepts any mask of its own.
            before.thread_set_mask().unwrap_or_default();
        }
    }
}
