//! The answer to a whole ask of a peer: the state of up to 56 paths, exact when it is sent.
//!
//! The database is read for each ask. A row that was read before counts only in the very state of
//! the database in which it was read (`seen_rows`), and a decision only for the row that it was made
//! about (`decisions`). What is not decided in time is `Undecided`; the work on it goes on, so that
//! the peer's next ask finds it done.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::oneshot, time::timeout};

use super::{
    DatabaseError, Inner, LocalStore, SharePolicy,
    database::{Database, Snapshot},
    lock, lookup, rows,
    seen_rows::{Digest, SeenRow},
};
use crate::{
    format::{StorePath, StorePathHash},
    protocol::PathState,
    store::{Decision, LocalPath},
};

/// An ask is answered after this time at the latest.
const ANSWER_WITHIN: Duration = Duration::from_millis(5);

impl LocalStore {
    /// The state of each of `hashes`, in their order: [`PathState::Present`] if the path may leave
    /// this machine. Takes 5 ms at most.
    pub async fn which_shared(
        &self,
        hashes: Vec<StorePathHash>,
        policy: &Arc<SharePolicy>,
    ) -> Vec<PathState> {
        let ask = Arc::new(Ask::new(hashes));
        let (working, done) = oneshot::channel();
        let inner = Arc::clone(&self.inner);
        let (asked, policy) = (Arc::clone(&ask), Arc::clone(policy));
        let submitted = self.inner.submit(Box::new(move |database: &mut Database| {
            // One that has waited for longer than its asker does is asked again.
            if !working.is_closed() {
                let all = (0..asked.hashes.len()).collect();
                inner.answer(database, &asked, all, &policy, Some(working));
            }
        }));
        match submitted {
            // The sender is dropped when all is done.
            Ok(()) => drop(timeout(ANSWER_WITHIN, done).await),
            Err(error) => log::debug!("an ask is not decided: {error}"),
        }
        ask.states(if self.inner.health.is_lasting() {
            PathState::Absent
        } else {
            PathState::Undecided
        })
    }
}

/// What is asked, and what is known by now.
#[derive(Debug)]
struct Ask {
    hashes: Vec<StorePathHash>,
    states: Mutex<Vec<Option<PathState>>>,
}

impl Ask {
    fn new(hashes: Vec<StorePathHash>) -> Self {
        Self {
            states: Mutex::new(vec![None; hashes.len()]),
            hashes,
        }
    }

    fn states(&self, otherwise: PathState) -> Vec<PathState> {
        let states = lock(&self.states);
        states
            .iter()
            .map(|state| state.unwrap_or(otherwise))
            .collect()
    }

    fn set(&self, index: usize, state: PathState) {
        if let Some(slot) = lock(&self.states).get_mut(index) {
            *slot = Some(state);
        }
    }
}

/// What one look at the database gives for a hash.
enum Found {
    Nothing,
    /// Decided before about this very row.
    Known(StorePath, bool),
    /// Still to be decided about.
    Row(Box<LocalPath>, Digest),
}

impl Inner {
    /// Finds the states of those of the ask's hashes that are `wanted`. With `working`, what takes a
    /// walk through a closure is left to the thread for walks, which drops it when it is done.
    fn answer(
        self: &Arc<Self>,
        database: &mut Database,
        ask: &Arc<Ask>,
        wanted: Vec<usize>,
        policy: &Arc<SharePolicy>,
        working: Option<oneshot::Sender<()>>,
    ) {
        let read = database.read_snapshot(|mut snapshot| {
            let find = |&index: &usize| self.find(&mut snapshot, ask.hashes[index], policy);
            let found: rusqlite::Result<Vec<_>> = wanted.iter().map(find).collect();
            Ok((found?, snapshot.seen.stamp().clone()))
        });
        let (found, now) = match read {
            Ok(read) => read,
            Err(error) => return self.note_failure(error),
        };
        self.health.worked();

        // What costs nothing first: the time may be over before the rest is decided.
        let mut rows = Vec::new();
        for (index, found) in wanted.into_iter().zip(found) {
            match found {
                Found::Nothing => ask.set(index, PathState::Absent),
                Found::Known(path, shared) => ask.set(index, self.state(&path, shared)),
                Found::Row(row, digest) => rows.push((index, row, digest)),
            }
        }
        let mut walks = Vec::new();
        for (index, row, digest) in rows {
            let path = row.info.path.clone();
            if let Some(shared) = policy.decide_alone(&row, digest) {
                ask.set(index, self.state(&path, shared));
            } else if working.is_some() {
                walks.push(index);
            } else {
                let now = now.clone();
                let below = |hash| lookup(database, &self.dir, hash);
                match policy.decide(*row, now, below) {
                    Ok(decision) => {
                        let shared = matches!(decision, Decision::Shared(_));
                        ask.set(index, self.state(&path, shared));
                    }
                    Err(error) => return self.note_failure(error),
                }
            }
        }
        if !walks.is_empty() {
            let (inner, ask, policy) = (Arc::clone(self), Arc::clone(ask), Arc::clone(policy));
            let walk = self.walks.submit(Box::new(move |database| {
                inner.answer(database, &ask, walks, &policy, None);
                drop(working);
            }));
            if let Err(refused) = walk {
                log::debug!("no walk for an ask: {refused:?}");
            }
        }
    }

    fn find(
        &self,
        snapshot: &mut Snapshot<'_>,
        hash: StorePathHash,
        policy: &SharePolicy,
    ) -> rusqlite::Result<Found> {
        let now = snapshot.seen.stamp().clone();
        match snapshot.seen.find(hash) {
            Some(None) => return Ok(Found::Nothing),
            Some(Some(row)) => {
                if let Some(shared) = policy.is_shared(&row.digest, &now) {
                    return Ok(Found::Known(row.path.clone(), shared));
                }
            }
            None => {}
        }
        let Some(row) = rows::path(snapshot.connection, &self.dir, hash)? else {
            snapshot.seen.insert(hash, None);
            return Ok(Found::Nothing);
        };
        let digest = row.digest(&self.dir);
        let path = row.info.path.clone();
        snapshot.seen.insert(
            hash,
            Some(SeenRow {
                path: path.clone(),
                digest,
            }),
        );
        Ok(match policy.is_shared(&digest, &now) {
            Some(shared) => Found::Known(path, shared),
            None => Found::Row(Box::new(row), digest),
        })
    }

    fn state(&self, path: &StorePath, shared: bool) -> PathState {
        if shared && self.has_files(path) {
            PathState::Present
        } else {
            PathState::Absent
        }
    }

    fn note_failure(&self, error: DatabaseError) {
        // What the ask does not know by now it learns from the state of the store.
        drop(self.health.failed(error));
    }
}
