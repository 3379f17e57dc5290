//! The threads that read the database, and the bounded queue before them.

use std::{
    collections::VecDeque,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::database::Database;

/// What a thread does with its connection.
pub(super) type Job = Box<dyn FnOnce(&mut Database) + Send>;

/// Bounds of the queue and its threads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// What the threads are called, with their number.
    pub(super) name: &'static str,
    /// Threads, each with a connection.
    pub(super) threads: usize,
    /// Jobs that may wait.
    pub(super) queue: usize,
    /// Longest wait for an answer.
    pub(super) answer_within: Duration,
    /// A thread without a job for this long lets go of its connection.
    pub(super) release_after: Duration,
    /// A job that takes longer makes everything else be refused.
    pub(super) stuck_after: Duration,
}

/// Why a job was not taken.
#[derive(Debug)]
pub(super) enum Refused {
    Full { waiting: usize },
    Stuck(Duration),
    NoThread(io::Error),
}

/// Threads that are started when first needed: a thread that exists when the daemon
/// gives up its privileges would keep them. They end when this is dropped.
#[derive(Debug)]
pub(super) struct Workers {
    queue: Arc<Queue>,
    pub(super) bounds: Bounds,
    database: PathBuf,
}

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// One for each thread: since when it has been at its job.
    running: Vec<Option<Instant>>,
    idle: usize,
    closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State")
            .field("waiting", &self.jobs.len())
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

impl Workers {
    pub(super) fn new(database: PathBuf, bounds: Bounds) -> Self {
        let state = Mutex::new(State::default());
        Self {
            queue: Arc::new(Queue {
                state,
                changed: Condvar::new(),
            }),
            bounds,
            database,
        }
    }

    /// Queues a job; never waits.
    pub(super) fn submit(&self, job: Job) -> Result<(), Refused> {
        let mut state = self.queue.lock();
        if let Some(time) = self.longest(&state) {
            return Err(Refused::Stuck(time));
        }
        if state.jobs.len() >= self.bounds.queue {
            return Err(Refused::Full {
                waiting: state.jobs.len(),
            });
        }
        if state.idle <= state.jobs.len() && state.running.len() < self.bounds.threads {
            match self.start(state.running.len()) {
                Ok(()) => state.running.push(None),
                Err(error) if state.running.is_empty() => return Err(Refused::NoThread(error)),
                // The others will do.
                Err(error) => log::debug!(reason:% = error; "no further store thread"),
            }
        }
        state.jobs.push_back(job);
        drop(state);
        self.queue.changed.notify_one();
        Ok(())
    }

    /// For how long a job has been running that should have ended.
    pub(super) fn stuck(&self) -> Option<Duration> {
        self.longest(&self.queue.lock())
    }

    /// Counts the threads, also when this is gone.
    #[cfg(test)]
    pub(super) fn threads(&self) -> impl Fn() -> usize + use<> {
        let queue = Arc::downgrade(&self.queue);
        // Each thread has one reference.
        move || queue.strong_count()
    }

    fn longest(&self, state: &State) -> Option<Duration> {
        let longest = state.running.iter().flatten().min()?.elapsed();
        (longest >= self.bounds.stuck_after).then_some(longest)
    }

    fn start(&self, number: usize) -> io::Result<()> {
        let queue = Arc::clone(&self.queue);
        let database = Database::new(self.database.clone());
        let release_after = self.bounds.release_after;
        thread::Builder::new()
            .name(format!("{}-{number}", self.bounds.name))
            .spawn(move || queue.work(number, database, release_after))
            .map(drop)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.closed = true;
        // Whoever waits for an answer of these learns that there will be none.
        state.jobs.clear();
        drop(state);
        self.queue.changed.notify_all();
    }
}

impl Queue {
    fn work(&self, number: usize, mut database: Database, release_after: Duration) {
        while let Some(job) = self.next(number, &mut database, release_after) {
            // A bug in one request is not the end of the others; the connection may be in any state.
            if catch_unwind(AssertUnwindSafe(|| job(&mut database))).is_err() {
                database.release();
            }
        }
    }

    fn next(&self, number: usize, database: &mut Database, release_after: Duration) -> Option<Job> {
        let mut state = self.lock();
        state.running[number] = None;
        let mut released = false;
        loop {
            if state.closed {
                return None;
            }
            if let Some(job) = state.jobs.pop_front() {
                state.running[number] = Some(Instant::now());
                return Some(job);
            }
            state.idle += 1;
            let timed_out;
            (state, timed_out) = if released {
                let state = self.changed.wait(state);
                (state.unwrap_or_else(PoisonError::into_inner), false)
            } else {
                let waited = self.changed.wait_timeout(state, release_after);
                let (state, result) = waited.unwrap_or_else(PoisonError::into_inner);
                (state, result.timed_out())
            };
            state.idle -= 1;
            if timed_out && state.jobs.is_empty() {
                drop(state);
                database.release();
                released = true;
                state = self.lock();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code of ours can panic while it holds the lock and leave it half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
