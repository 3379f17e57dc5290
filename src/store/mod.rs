//! Layer 2: the local store. Owns the connection to the Nix database, the sharing rule, and the
//! reading of NARs. Never writes, never speaks to the network, and never touches a database or a
//! file on an async thread.
//!
//! What is found is read from the database at the very request: the store changes under us, and
//! garbage collection is no event that anyone tells.

mod asks;
mod database;
mod database_error;
mod database_files;
mod decisions;
mod directories;
mod health;
mod layouts;
mod nar;
mod nar_error;
mod not_shared;
mod pieces;
mod rows;
mod seen_rows;
mod sharing;
mod signed_by_others;
mod tree;
mod workers;

use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::unistd::{AccessFlags, eaccess};
use tokio::{sync::oneshot, task::spawn_blocking, time::timeout};

pub use database_error::DatabaseError;
pub use health::StoreStatus;
pub use nar::{CHUNK_BYTES, Nar, NarStream, STREAM_BYTES};
pub use nar_error::NarError;
pub use not_shared::NotSharedReason;
pub use pieces::{PieceStream, PiecesError};
pub use rows::LocalPath;
pub use sharing::{Decision, SharePolicy};
pub use signed_by_others::SignedByOthers;

use self::{
    database::Database,
    health::Health,
    layouts::Layouts,
    pieces::Pieces,
    workers::{Bounds, Job, Refused, Workers},
};
use crate::{
    config,
    format::{PathInfo, StoreDir, StorePath, StorePathHash},
};

const BOUNDS: Bounds = Bounds {
    name: "store",
    threads: 2,
    queue: 4_096,
    answer_within: Duration::from_secs(2),
    release_after: Duration::from_secs(5),
    stuck_after: Duration::from_secs(60),
};

const WALK_BOUNDS: Bounds = Bounds {
    name: "store-walk",
    threads: 1,
    queue: 64,
    ..BOUNDS
};

/// Damaged paths that are named in the journal, each once. Whoever has more knows it by then.
const MOST_DAMAGED: usize = 1_024;

/// Why a start should not go on as if the store were in order.
#[derive(Debug, thiserror::Error)]
#[error("the Nix database cannot be used")]
pub struct OpenError(#[source] DatabaseError);

/// Why there is no answer about a path.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing is held at the moment.
    #[error("the Nix database is unavailable")]
    Unavailable(#[source] Arc<DatabaseError>),
    /// A request has been running for so long that nothing more is asked: a dead disk.
    #[error("the store has not answered for {} s", since.as_secs())]
    Stuck {
        /// For how long.
        since: Duration,
    },
    /// No answer came in time.
    #[error("no answer of the store within {after:?}")]
    TimedOut {
        /// How long it was waited for.
        after: Duration,
    },
    /// Too many requests wait already.
    #[error("{waiting} requests wait for the store already")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// There is no thread to ask with.
    #[error("cannot start a thread to read the store")]
    Thread(#[source] io::Error),
    /// The answer was lost to a bug.
    #[error("the request to the store was lost")]
    Lost,
}

/// The store of this machine. Cheap to clone; the last clone ends its threads.
#[derive(Debug, Clone)]
pub struct LocalStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: StoreDir,
    real_dir: PathBuf,
    workers: Workers,
    /// Walks through closures, so that nothing else waits behind them.
    walks: Workers,
    health: Arc<Health>,
    layouts: Arc<Layouts>,
    pieces: Pieces,
    /// Paths whose damage is in the journal already.
    damaged: Mutex<HashSet<StorePathHash>>,
}

impl LocalStore {
    /// Looks whether the database can be read. Without one this is no error, only a warning: it is
    /// tried again at each request. Starts no thread, so it may come before privileges are dropped.
    pub fn open(settings: &config::Store) -> Result<Self, OpenError> {
        let store = Self::unchecked(settings);
        match Database::new(settings.database.clone()).probe() {
            Err(error) if error.needs_operator() => Err(OpenError(error)),
            Err(error) => {
                store.inner.health.failed(error);
                Ok(store)
            }
            Ok(()) => Ok(store),
        }
    }

    /// The same without looking: what is wrong shows at each request.
    pub fn unchecked(settings: &config::Store) -> Self {
        Self::with_bounds(settings, BOUNDS)
    }

    fn with_bounds(settings: &config::Store, bounds: Bounds) -> Self {
        Self {
            inner: Arc::new(Inner {
                dir: settings.dir.clone(),
                real_dir: settings.real_dir().to_owned(),
                workers: Workers::new(settings.database.clone(), bounds),
                walks: Workers::new(settings.database.clone(), WALK_BOUNDS),
                health: Arc::default(),
                layouts: Arc::default(),
                pieces: Pieces::default(),
                damaged: Mutex::default(),
            }),
        }
    }

    /// What the database says of the valid path with that hash.
    pub async fn query(&self, hash: StorePathHash) -> Result<Option<LocalPath>, StoreError> {
        let dir = self.inner.dir.clone();
        self.run(move |database| lookup(database, &dir, hash)).await
    }

    /// The path if it may leave this machine, with the signatures to send.
    pub async fn shared(
        &self,
        hash: StorePathHash,
        policy: &Arc<SharePolicy>,
    ) -> Result<Option<PathInfo>, StoreError> {
        Ok(match self.decide(hash, policy).await? {
            Some(Decision::Shared(info)) => Some(info),
            Some(Decision::NotShared(_)) | None => None,
        })
    }

    /// Whether the path may leave this machine, or why not; nothing if it is not held.
    pub async fn decide(
        &self,
        hash: StorePathHash,
        policy: &Arc<SharePolicy>,
    ) -> Result<Option<Decision>, StoreError> {
        let inner = Arc::clone(&self.inner);
        let policy = Arc::clone(policy);
        self.run(move |database| inner.decide(database, hash, &policy))
            .await
    }

    /// Walks the path's tree, unless that was done lately, and checks that its NAR has the
    /// registered size. What the files contain is not checked.
    pub async fn nar(&self, info: &PathInfo) -> Result<Nar, NarError> {
        let inner = Arc::clone(&self.inner);
        let info = info.clone();
        let path = info.path.clone();
        let opened = spawn_blocking(move || {
            let opened = Nar::open(&inner.real_dir, &info, &inner.layouts);
            if let Err(error @ NarError::SizeMismatch { .. }) = &opened {
                inner.note_damage(&info, error);
            }
            opened
        });
        opened.await.unwrap_or(Err(NarError::Interrupted { path }))
    }

    /// The digests of the pieces of the path's NAR, as they become known. They are computed once
    /// for all who ask, one path at a time.
    pub async fn pieces(&self, info: &PathInfo) -> Result<PieceStream, PiecesError> {
        if let Some(known) = self.inner.pieces.find(info) {
            return Ok(known);
        }
        let nar = self.nar(info).await?;
        let (stream, is_first) = self.inner.pieces.enter(info, nar)?;
        if is_first {
            let inner = Arc::clone(&self.inner);
            // Ends when nobody waits for a digest any more.
            spawn_blocking(move || {
                inner
                    .pieces
                    .work(|info, error| inner.note_damage(info, error));
            });
        }
        Ok(stream)
    }

    /// How the store was last seen.
    pub fn status(&self) -> StoreStatus {
        match self.inner.workers.stuck() {
            Some(time) => StoreStatus::Stuck(time),
            None => self.inner.health.status(),
        }
    }

    /// The logical store directory.
    pub fn dir(&self) -> &StoreDir {
        &self.inner.dir
    }

    /// Where its files are.
    pub fn real_dir(&self) -> &Path {
        &self.inner.real_dir
    }

    /// Has `work` done by a store thread.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Database) -> Result<T, DatabaseError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        let health = Arc::clone(&self.inner.health);
        let job = move |database: &mut Database| {
            if reply.is_closed() {
                return;
            }
            let answer = match work(database) {
                Ok(value) => {
                    health.worked();
                    Ok(value)
                }
                Err(error) => Err(StoreError::Unavailable(health.failed(error))),
            };
            // Whoever asked may have gone.
            reply.send(answer).ok();
        };
        self.inner.submit(Box::new(job))?;
        let after = self.inner.workers.bounds.answer_within;
        match timeout(after, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(StoreError::Lost),
            Err(_) => Err(StoreError::TimedOut { after }),
        }
    }
}

impl Inner {
    fn decide(
        &self,
        database: &mut Database,
        hash: StorePathHash,
        policy: &SharePolicy,
    ) -> Result<Option<Decision>, DatabaseError> {
        let (path, now) = database.read_snapshot(|snapshot| {
            let path = rows::path(snapshot.connection, &self.dir, hash)?;
            Ok((path, snapshot.seen.stamp().clone()))
        })?;
        let Some(path) = path.filter(|path| self.has_files(&path.info.path)) else {
            return Ok(None);
        };
        policy
            .decide(path, now, |hash| lookup(database, &self.dir, hash))
            .map(Some)
    }

    /// Whether the files of a valid path can be read. The collector deletes rows first, but a damaged
    /// store has rows without files.
    fn has_files(&self, path: &StorePath) -> bool {
        let file = self.real_dir.join(path.basename());
        let found = fs::symlink_metadata(&file).and_then(|metadata| {
            if metadata.is_symlink() {
                return Ok(());
            }
            Ok(eaccess(&file, AccessFlags::R_OK)?)
        });
        if let Err(error) = &found {
            log::debug!(hash:% = path.hash(), reason:% = error; "valid, but its files cannot be read");
        }
        found.is_ok()
    }

    fn submit(&self, job: Job) -> Result<(), StoreError> {
        self.workers.submit(job).map_err(|refused| match refused {
            Refused::Full { waiting } => StoreError::Busy { waiting },
            Refused::NoThread(error) => StoreError::Thread(error),
            Refused::Stuck(since) => {
                self.health.stuck(since);
                StoreError::Stuck { since }
            }
        })
    }

    /// Says once for each path that it is not what was registered.
    fn note_damage(&self, info: &PathInfo, error: &NarError) {
        let mut damaged = lock(&self.damaged);
        if damaged.len() < MOST_DAMAGED && damaged.insert(info.path.hash()) {
            log::warn!(
                hash:% = info.path.hash(),
                store_path:% = info.path.display(&self.dir),
                reason:% = error;
                "the store is damaged: {error}; `nix-store --repair-path` may help"
            );
        }
    }
}

fn lookup(
    database: &mut Database,
    dir: &StoreDir,
    hash: StorePathHash,
) -> Result<Option<LocalPath>, DatabaseError> {
    database.read(|connection| rows::path(connection, dir, hash))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change under these locks is whole even if something panics after it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Instant};

    use super::*;
    use crate::config::Config;

    fn store(bounds: Bounds) -> LocalStore {
        let text = "[store]\ndatabase = \"/nonexistent/db.sqlite\"";
        LocalStore::with_bounds(&Config::parse(text).expect("settings").store, bounds)
    }

    /// Begins a job on each thread that ends when its sender is dropped.
    fn occupy(store: &LocalStore) -> Vec<mpsc::Sender<()>> {
        let threads = 0..BOUNDS.threads;
        let (started, has_started) = mpsc::channel();
        threads
            .map(|_| {
                let (end, ended) = mpsc::channel::<()>();
                let started = started.clone();
                let job: Job = Box::new(move |_| {
                    started.send(()).expect("the test waits");
                    ended.recv().expect_err("nothing is sent");
                });
                store.inner.submit(job).expect("submit");
                has_started.recv().expect("started");
                end
            })
            .collect()
    }

    async fn answers(store: &LocalStore) -> Result<&'static str, StoreError> {
        store.run(|_| Ok("answer")).await
    }

    fn until(condition: impl Fn() -> bool) {
        let begin = Instant::now();
        while !condition() {
            assert!(begin.elapsed() < Duration::from_secs(20), "in vain");
            thread::yield_now();
        }
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once() {
        let store = store(Bounds { queue: 3, ..BOUNDS });
        let ends = occupy(&store);
        for _ in 0..3 {
            store.inner.submit(Box::new(|_| {})).expect("there is room");
        }
        let error = answers(&store).await.expect_err("full");
        assert!(
            matches!(error, StoreError::Busy { waiting: 3 }),
            "{error:?}"
        );
        drop(ends);
        until(|| store.inner.submit(Box::new(|_| {})).is_ok());
        assert_eq!(answers(&store).await.expect("an answer"), "answer");
    }

    #[tokio::test]
    async fn nobody_waits_long_for_a_dead_disk() {
        let store = store(Bounds {
            answer_within: Duration::from_millis(1),
            ..BOUNDS
        });
        let ends = occupy(&store);
        let error = answers(&store).await.expect_err("too late");
        assert!(matches!(error, StoreError::TimedOut { .. }), "{error:?}");
        assert!(matches!(store.status(), StoreStatus::Available));
        drop(ends);
    }

    #[tokio::test]
    async fn a_stuck_thread_makes_the_store_unavailable_until_it_is_back() {
        let store = store(Bounds {
            stuck_after: Duration::ZERO,
            ..BOUNDS
        });
        let (end, ended) = mpsc::channel::<()>();
        let (started, has_started) = mpsc::channel();
        let job: Job = Box::new(move |_| {
            started.send(()).expect("the test waits");
            ended.recv().expect_err("nothing is sent");
        });
        store.inner.submit(job).expect("submit");
        has_started.recv().expect("started");

        let error = answers(&store).await.expect_err("stuck");
        assert!(matches!(error, StoreError::Stuck { .. }), "{error:?}");
        assert!(matches!(store.status(), StoreStatus::Stuck(_)));
        drop(end);
        until(|| matches!(store.status(), StoreStatus::Available));
        assert_eq!(answers(&store).await.expect("an answer"), "answer");
    }

    #[tokio::test]
    async fn a_bug_in_one_request_is_not_the_end_of_the_others() {
        let store = store(BOUNDS);
        for _ in 0..5 {
            let lost = store.run(|_| -> Result<(), _> { panic!("a bug") }).await;
            assert!(matches!(lost, Err(StoreError::Lost)), "{lost:?}");
        }
        assert_eq!(answers(&store).await.expect("an answer"), "answer");
    }

    #[tokio::test]
    async fn threads_are_named_and_few_and_end_with_the_store() {
        let store = store(BOUNDS);
        let (send, names) = mpsc::channel();
        for _ in 0..50 {
            let send = send.clone();
            let job: Job = Box::new(move |_| {
                let name = thread::current().name().map(str::to_owned);
                send.send((name, thread::current().id()))
                    .expect("the test listens");
            });
            store.inner.submit(job).expect("submit");
        }
        let mut threads: HashSet<_> = names.iter().take(50).collect();
        assert!(threads.len() <= 2, "{threads:?}");
        assert!(
            threads
                .drain()
                .all(|(name, _)| name.is_some_and(|it| it.starts_with("store-")))
        );

        let (alive, ended) = mpsc::channel::<()>();
        store
            .inner
            .submit(Box::new(move |_| drop(alive)))
            .expect("submit");
        ended.recv().expect_err("the job is done");
        let queue = store.inner.workers.threads();
        drop(store);
        until(|| queue() == 0);
    }

    #[tokio::test]
    async fn a_request_whose_asker_has_gone_is_not_made() {
        let store = store(BOUNDS);
        let ends = occupy(&store);
        let (asked, was_asked) = mpsc::channel();
        let request = store.run(move |_| {
            asked.send(()).expect("the test listens");
            Ok(())
        });
        let gone = timeout(Duration::ZERO, request).await;
        assert!(gone.is_err());
        drop(ends);
        was_asked
            .recv()
            .expect_err("dropped without having been run");
    }
}
