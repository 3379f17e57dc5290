//! One connection to the Nix database, whatever state the database is in.
//!
//! Read by a user who may write nothing there, an SQLite database is right in one of two ways
//! or in none (docs/rationale.md has the table):
//!
//! * *live* (`mode=ro`): takes part in locking and reads the write-ahead log. Fails where the
//!   log's files would have to be created (a quiescent database), or a hot journal rolled back.
//! * *immutable* (`immutable=1`): the bytes of the file alone. Right only while nobody writes:
//!   neither a log nor a non-empty journal, before and after the query, and the file unchanged.
//!
//! So live is tried first, immutable only if those conditions hold, and otherwise nothing is held
//! until the next request. The database file is never opened here except through SQLite: closing
//! any other descriptor of it would drop SQLite's POSIX locks.

use std::{
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::unistd::{AccessFlags, eaccess};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::{database_error::DatabaseError, database_files::Files, rows, seen_rows::SeenRows};

/// How long a writer of a database without a write-ahead log is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_millis(250);

/// How often a query is started again at once because the database changed under it.
pub(super) const ATTEMPTS: usize = 4;

/// For how long it is tried again, every millisecond, what fails while a writer comes or goes: Nix
/// remembers for an hour that a path is not there.
const SETTLES_WITHIN: Duration = Duration::from_millis(20);

/// What has failed for this long is not waited for any more.
pub(super) const LASTS_AFTER: Duration = Duration::from_millis(500);

/// Starts a transaction's view, and tells whether another connection has committed since the last.
const DATA_VERSION: &str = "PRAGMA data_version";

/// The database, and the connection that worked last.
#[derive(Debug)]
pub(super) struct Database {
    /// As configured.
    path: PathBuf,
    open: Option<Open>,
    failing_since: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    access: Access,
    files: Files,
    seen: SeenRows,
}

/// One state of the database, in which a query sees all that it reads.
pub(super) struct Snapshot<'a> {
    pub(super) connection: &'a Connection,
    /// What was read before in this very state.
    pub(super) seen: &'a mut SeenRows,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Live,
    Immutable,
}

impl Database {
    /// Opens nothing yet.
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            open: None,
            failing_since: None,
        }
    }

    /// Runs `query`, which must leave no statement unfinished, on a connection that is right now.
    /// It may run more than once; its last result is the one that counts.
    pub(super) fn read<T>(
        &mut self,
        mut query: impl FnMut(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, DatabaseError> {
        self.run(|open| query(&open.connection))
    }

    /// The same for a query of several statements, which all see one state.
    pub(super) fn read_snapshot<T>(
        &mut self,
        mut query: impl FnMut(Snapshot<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, DatabaseError> {
        self.run(|open| {
            let Open {
                connection, seen, ..
            } = open;
            let transaction = connection.unchecked_transaction()?;
            if open.access == Access::Live {
                let mut statement = connection.prepare_cached(DATA_VERSION)?;
                seen.set_version(statement.query_row([], |row| row.get(0))?);
            }
            let value = query(Snapshot { connection, seen })?;
            transaction.commit()?;
            Ok(value)
        })
    }

    fn run<T>(
        &mut self,
        mut query: impl FnMut(&mut Open) -> rusqlite::Result<T>,
    ) -> Result<T, DatabaseError> {
        let began = Instant::now();
        let mut attempts = 0;
        loop {
            attempts += 1;
            let error = match self.attempt(&mut query) {
                Ok(Some(value)) => {
                    self.failing_since = None;
                    return Ok(value);
                }
                Ok(None) if attempts < ATTEMPTS => continue,
                Ok(None) => DatabaseError::Unsettled {
                    path: self.path.clone(),
                },
                Err(error) => error,
            };
            let lasts = self.failing_since.get_or_insert(began).elapsed() >= LASTS_AFTER;
            if lasts || !error.may_pass() || began.elapsed() >= SETTLES_WITHIN {
                return Err(error);
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Runs `query` once; nothing if the database changed meanwhile.
    fn attempt<T>(
        &mut self,
        query: &mut impl FnMut(&mut Open) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, DatabaseError> {
        let kept = self.open.take();
        let files = self.look(kept.as_ref().map(|open| &open.files))?;
        let kept = kept.filter(|open| open.is_right_for(&files));
        let was_kept = kept.is_some();
        let mut open = match kept {
            Some(open) => open,
            None => match self.connect(files, Access::Live) {
                Ok(open) => open,
                Err(Failed::Changed) => return Ok(None),
                Err(Failed::For(error)) => return Err(error),
            },
        };
        match query(&mut open) {
            Ok(value) => {
                if open.access == Access::Immutable && self.look(Some(&open.files))? != open.files {
                    return Ok(None);
                }
                self.open = Some(open);
                Ok(Some(value))
            }
            // Perhaps of a state that is gone: decided by a new connection.
            Err(_) if was_kept => Ok(None),
            Err(source) if self.look(None)? == open.files => Err(self.sort(source)),
            Err(_) => Ok(None),
        }
    }

    /// Like a query that reads nothing, and without any trace in the file system: root would
    /// create the files of a write-ahead log by reading, and leave them behind.
    pub(super) fn probe(&mut self) -> Result<(), DatabaseError> {
        for _ in 0..ATTEMPTS {
            let files = self.look(None)?;
            let first = if files.is_quiescent() {
                Access::Immutable
            } else {
                Access::Live
            };
            match self.connect(files, first) {
                Ok(_) => return Ok(()),
                Err(Failed::Changed) => {}
                Err(Failed::For(error)) => return Err(error),
            }
        }
        Err(DatabaseError::Unsettled {
            path: self.path.clone(),
        })
    }

    /// Lets go of the connection: while one is open, Nix cannot fold its write-ahead log back
    /// into the database.
    pub(super) fn release(&mut self) {
        self.open = None;
    }

    /// A new connection that has read the schema, by `first` or the other way.
    fn connect(&self, files: Files, first: Access) -> Result<Open, Failed> {
        let attempt = |access| connect_as(&files.real, access);
        let connected = match first {
            Access::Immutable => attempt(Access::Immutable).map(|it| (it, Access::Immutable)),
            Access::Live => match attempt(Access::Live) {
                Ok(connection) => Ok((connection, Access::Live)),
                Err(source) if !files.is_quiescent() || !may_differ_immutable(&source) => {
                    Err(source)
                }
                Err(_) => {
                    files.wait_for_tick();
                    attempt(Access::Immutable).map(|it| (it, Access::Immutable))
                }
            },
        };

        // What was opened is what was looked at only if it is still there.
        let now = self.look(None)?;
        match connected {
            Ok((connection, Access::Live)) if now.database.is_same_file(&files.database) => {
                Ok(Open {
                    connection,
                    access: Access::Live,
                    files: now,
                    seen: SeenRows::new(),
                })
            }
            Ok((connection, Access::Immutable)) if now == files && now.is_quiescent() => Ok(Open {
                connection,
                access: Access::Immutable,
                files,
                seen: SeenRows::new(),
            }),
            Err(source) if now == files => Err(Failed::For(self.sort_failed(source, &files))),
            _ => Err(Failed::Changed),
        }
    }

    fn look(&self, before: Option<&Files>) -> Result<Files, DatabaseError> {
        Files::look(&self.path, before)
    }

    fn sort_failed(&self, source: rusqlite::Error, files: &Files) -> DatabaseError {
        let path = || self.path.clone();
        if !may_differ_immutable(&source) {
            return self.sort(source);
        }
        if let Err(errno) = eaccess(&files.real, AccessFlags::R_OK) {
            return DatabaseError::Unreadable {
                path: path(),
                source: errno.into(),
            };
        }
        if files.journal_bytes > 0 {
            return DatabaseError::HotJournal {
                path: path(),
                source,
            };
        }
        if files.wal.is_some() {
            return DatabaseError::Wal {
                path: path(),
                source,
            };
        }
        self.sort(source)
    }

    fn sort(&self, source: rusqlite::Error) -> DatabaseError {
        let path = self.path.clone();
        match source.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                DatabaseError::NotSqlite { path, source }
            }
            // SQLITE_ERROR: a table or column that is not there.
            Some(ErrorCode::Unknown) => DatabaseError::NotNix { path, source },
            Some(
                ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::FileLockingProtocolFailed,
            ) => DatabaseError::Locked { path, source },
            _ => DatabaseError::Read { path, source },
        }
    }
}

/// Why there is no connection.
enum Failed {
    /// The files changed meanwhile: start again.
    Changed,
    For(DatabaseError),
}

impl From<DatabaseError> for Failed {
    fn from(error: DatabaseError) -> Self {
        Self::For(error)
    }
}

impl Open {
    /// Whether a query on this connection sees the database that is on disk.
    fn is_right_for(&self, now: &Files) -> bool {
        match self.access {
            Access::Live => {
                now.database.is_same_file(&self.files.database) && now.wal == self.files.wal
            }
            Access::Immutable => *now == self.files && now.is_quiescent(),
        }
    }
}

/// A connection whose schema has been read, so that it is known to work.
fn connect_as(path: &Path, access: Access) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri(path, access), flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    rows::prepare(&connection)?;
    Ok(connection)
}

/// `file:///PATH?mode=ro`, everything percent-encoded that is not plainly part of a name.
fn uri(path: &Path, access: Access) -> String {
    let mut uri = String::from("file://");
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' => {
                uri.push(char::from(byte));
            }
            _ => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str(match access {
        Access::Live => "?mode=ro",
        Access::Immutable => "?mode=ro&immutable=1",
    });
    uri
}

/// Whether it may fail for want of write permission alone. Not when the content was read and
/// found wrong, nor when a writer was in the way.
fn may_differ_immutable(error: &rusqlite::Error) -> bool {
    !matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::NotADatabase
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::Unknown
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::FileLockingProtocolFailed
        )
    )
}

#[cfg(test)]
mod tests {
    use std::{fs, time::SystemTime};

    use super::{super::database_files::TICK, *};

    /// A database of Nix's kind with one path, whose size is told by [`size`].
    fn database(dir: &tempfile::TempDir) -> Database {
        let path = dir.path().join("db.sqlite");
        let connection = Connection::open(&path).expect("create");
        let schema = "\
            CREATE TABLE ValidPaths (id integer primary key, path text unique, hash text, \
                deriver text, narSize integer, ultimate integer, sigs text, ca text); \
            CREATE TABLE Refs (referrer integer, reference integer); \
            INSERT INTO ValidPaths (id, path, narSize) VALUES (1, 'path', 0)";
        connection.execute_batch(schema).expect("schema");
        Database::new(path)
    }

    fn resize(path: &Path, size: i64) {
        let connection = Connection::open(path).expect("open");
        connection
            .execute("UPDATE ValidPaths SET narSize = ?1", [size])
            .expect("update");
    }

    fn size(connection: &Connection) -> rusqlite::Result<i64> {
        connection.query_row("SELECT narSize FROM ValidPaths", [], |row| row.get(0))
    }

    #[test]
    fn an_immutable_answer_is_dropped_when_the_file_changes_during_the_query() {
        let dir = tempfile::tempdir().expect("directory");
        let mut database = database(&dir);
        let files = database.look(None).expect("look");
        files.wait_for_tick();
        let open = database.connect(files, Access::Immutable);
        database.open = Some(open.unwrap_or_else(|_| panic!("connect")));

        let path = database.path.clone();
        let mut answers = Vec::new();
        let answer = database.read(|connection| {
            answers.push(size(connection)?);
            if answers.len() == 1 {
                resize(&path, 42);
            }
            size(connection)
        });
        assert_eq!(answer.expect("an answer"), 42);
        assert_eq!(answers, [0, 42]);
    }

    #[test]
    fn a_database_that_never_rests_gives_no_immutable_answer() {
        let dir = tempfile::tempdir().expect("directory");
        let mut database = database(&dir);
        let path = database.path.clone();
        let mut count = 0;
        let answer = database.read(|connection| {
            count += 1;
            resize(&path, count);
            fs::rename(&path, path.with_extension("old")).expect("rename");
            fs::copy(path.with_extension("old"), &path).expect("copy");
            connection.query_row("SELECT no_such_column FROM ValidPaths", [], |_| Ok(()))
        });
        let error = answer.expect_err("nothing is certain");
        assert!(
            matches!(error, DatabaseError::Unsettled { .. }),
            "{error:?}"
        );
        assert!(error.is_transient());
        assert!(count >= ATTEMPTS as i64);
    }

    #[test]
    fn a_file_that_was_just_written_is_let_rest_for_a_tick() {
        let dir = tempfile::tempdir().expect("directory");
        let mut database = database(&dir);
        resize(&database.path, 1);
        let files = database.look(None).expect("look");
        files.wait_for_tick();
        let (seconds, nanoseconds) = files.database.changed;
        let changed = Duration::new(seconds.unsigned_abs(), nanoseconds.unsigned_abs() as u32);
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock");
        assert!(now - changed >= TICK, "{:?}", now - changed);
        assert_eq!(database.read(size).expect("read"), 1);
    }

    #[test]
    fn a_uri_names_any_path() {
        let path = Path::new("/a b/c?d#e%f&g/h-i_j.k");
        assert_eq!(
            uri(path, Access::Live),
            "file:///a%20b/c%3Fd%23e%25f%26g/h-i_j.k?mode=ro"
        );
        let odd = Path::new(std::ffi::OsStr::from_bytes(b"//\xff"));
        assert_eq!(
            uri(odd, Access::Immutable),
            "file:////%FF?mode=ro&immutable=1"
        );
    }
}
