//! The summary of what this machine shares (docs/protocol.md, "Summaries").
//!
//! It is made by walking through the database in the order of registration, some rows per job of
//! the store threads, each job queueing the next: questions of peers get their turn in between. It
//! goes on when nobody waits for it any more, and ends with the store. Later paths are added to
//! what is there; it is made anew when these have become many, when paths may have gone, or after
//! a day. What is kept are some nine bits a path; 8 bytes while the walk lasts.

use std::{
    collections::HashSet,
    pin::pin,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tokio::{
    sync::{Mutex as AsyncMutex, Notify},
    time::timeout,
};

use super::{
    Chain, DatabaseError, Inner, LocalStore, SharePolicy, StoreError, database::Database, lock,
    rows,
};
use crate::{
    format::{StoreDir, StorePathHash},
    protocol::summary::{MOST_KEYS, MOST_PATHS, News, Stamp, Summary, Unbuildable, key},
};

/// Rows that one job looks at.
const ROWS: usize = 48;

/// A job ends after this time, however few rows it has seen: questions wait behind it.
const JOB_TIME: Duration = Duration::from_millis(20);

/// How long a summary that is being made is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A path that was signed later, or collected, is seen after this time at the latest.
const MADE_ANEW_AFTER: Duration = Duration::from_secs(24 * 3_600);

/// So many paths beside the filter are never too many.
const FEW_ADDED: usize = 256;

/// Rows after a generation of which the shared ones are told by themselves.
const MOST_NEW_ROWS: usize = 4_096;

/// Refusals that are remembered during a walk, 16 bytes each.
const MOST_REFUSED: usize = 100_000;

/// Why there is no summary.
#[derive(Debug, thiserror::Error)]
pub enum SummaryError {
    /// It is being made, which takes longer than anybody should wait.
    #[error("the summary is still being made")]
    Unfinished,
    /// More than a million paths.
    #[error("more than {MOST_PATHS} paths are shared")]
    TooMany,
    /// Bad luck with the filter.
    #[error("there is no filter for these paths")]
    Filter(#[from] Unbuildable),
    /// The store did not answer.
    #[error("the store did not answer")]
    Store(#[from] StoreError),
    /// The walk broke off; why is in the journal.
    #[error("the walk through the store broke off")]
    BrokenOff,
}

/// What is known, and what is being found out.
#[derive(Debug, Default)]
pub(super) struct Summaries {
    desk: Mutex<Desk>,
    /// A walk has ended.
    ended: Notify,
    /// One asker at a time has what is new looked up.
    news: AsyncMutex<()>,
}

#[derive(Debug, Default)]
struct Desk {
    made: Option<Made>,
    is_walking: bool,
    /// Walks that have ended, whatever their outcome.
    walks: u64,
}

#[derive(Debug)]
struct Made {
    summary: Result<Arc<Summary>, Failure>,
    /// Instance and rule; the generation is that of the summary.
    stamp: Stamp,
    /// When its filter was made.
    at: Instant,
}

#[derive(Debug, Clone, Copy)]
enum Failure {
    TooMany,
    Filter(Unbuildable),
    BrokenOff,
}

impl From<Failure> for SummaryError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::TooMany => Self::TooMany,
            Failure::Filter(error) => Self::Filter(error),
            Failure::BrokenOff => Self::BrokenOff,
        }
    }
}

/// What has to be done before there is an answer.
enum Step {
    Give(Arc<Summary>),
    Fail(Failure),
    /// Through what came after that one, whose filter was made then; else through all.
    Walk(Option<(Arc<Summary>, Instant)>),
    Wait,
}

impl LocalStore {
    /// The summary of the paths that `policy` shares, up to date; `who` has the instance and the
    /// rule's number.
    pub async fn summary(
        &self,
        policy: &Arc<SharePolicy>,
        who: Stamp,
    ) -> Result<Arc<Summary>, SummaryError> {
        let latest = self.generation().await?;
        let summaries = &self.inner.summaries;
        let walks = lock(&summaries.desk).walks;
        let made = async {
            loop {
                let mut ended = pin!(summaries.ended.notified());
                ended.as_mut().enable();
                match summaries.step(who, latest, walks) {
                    Step::Give(summary) => return Ok(summary),
                    Step::Fail(failure) => return Err(failure.into()),
                    Step::Wait => {}
                    Step::Walk(from) => {
                        let walk = Walk::new(Arc::downgrade(&self.inner), policy, who, from);
                        walk.go_on(&self.inner)?;
                    }
                }
                ended.await;
            }
        };
        timeout(PATIENCE, made)
            .await
            .unwrap_or(Err(SummaryError::Unfinished))
    }

    /// The shared paths that came after the generation `since`, and the stamp of a summary with
    /// them; nothing if these are too many to tell by themselves, or `since` is to come.
    pub async fn news(
        &self,
        policy: &Arc<SharePolicy>,
        who: Stamp,
        since: u64,
    ) -> Result<Option<News>, SummaryError> {
        let turn = timeout(PATIENCE, self.inner.summaries.news.lock());
        let _turn = turn.await.map_err(|_| SummaryError::Unfinished)?;
        if self.generation().await? < since {
            return Ok(None);
        }
        let mut part = Part::after(since);
        while !part.is_last {
            let (dir, policy) = (self.inner.dir.clone(), Arc::clone(policy));
            let read = self.run(move |database| {
                part.read_on(database, &dir, &policy)?;
                Ok(part)
            });
            part = read.await?;
            if part.rows > MOST_NEW_ROWS {
                return Ok(None);
            }
        }
        Ok(Some(News {
            stamp: Stamp {
                generation: part.after,
                ..who
            },
            since,
            keys: part.keys,
        }))
    }
}

impl Summaries {
    /// What to do for somebody who came when the store was at `latest`, and `walks` had ended.
    fn step(&self, who: Stamp, latest: u64, walks: u64) -> Step {
        let mut desk = lock(&self.desk);
        if desk.is_walking {
            return Step::Wait;
        }
        let came_since = desk.walks > walks;
        let from = match &desk.made {
            Some(made) if made.stamp.is_of_same(&who) => match &made.summary {
                Ok(summary) if came_since => return Step::Give(Arc::clone(summary)),
                Ok(summary) if made.is_worn_out(latest, summary) => None,
                Ok(summary) if summary.stamp().generation == latest => {
                    return Step::Give(Arc::clone(summary));
                }
                Ok(summary) => Some((Arc::clone(summary), made.at)),
                Err(failure) if came_since || made.is_final() => return Step::Fail(*failure),
                Err(_) => None,
            },
            _ => None,
        };
        desk.is_walking = true;
        Step::Walk(from)
    }

    /// A walk for `who` has ended, with nothing made if it broke off: what was there stays.
    fn finish(&self, who: Stamp, made: Option<Made>) {
        let mut desk = lock(&self.desk);
        let before = desk.made.take().filter(|made| made.stamp.is_of_same(&who));
        desk.made = made.or(before).or_else(|| {
            Some(Made {
                summary: Err(Failure::BrokenOff),
                stamp: who,
                at: Instant::now(),
            })
        });
        desk.is_walking = false;
        desk.walks += 1;
        drop(desk);
        self.ended.notify_waiters();
    }
}

impl Made {
    /// Whether a new one is better than one with more paths beside the filter.
    fn is_worn_out(&self, latest: u64, summary: &Summary) -> bool {
        let generation = summary.stamp().generation;
        let many = FEW_ADDED.max(summary.paths() / 8).min(MOST_KEYS / 2);
        latest < generation || summary.added() > many || self.at.elapsed() > MADE_ANEW_AFTER
    }

    /// Whether another try would end the same way.
    fn is_final(&self) -> bool {
        matches!(self.summary, Err(Failure::TooMany)) && self.at.elapsed() < MADE_ANEW_AFTER
    }
}

/// A walk through the store. However it ends, those who wait for it learn that.
struct Walk {
    store: Weak<Inner>,
    policy: Arc<SharePolicy>,
    who: Stamp,
    /// What is added to, and when its filter was made; without it all is walked through.
    from: Option<(Arc<Summary>, Instant)>,
    found: Part,
    made: Option<Made>,
}

impl Walk {
    fn new(
        store: Weak<Inner>,
        policy: &Arc<SharePolicy>,
        who: Stamp,
        from: Option<(Arc<Summary>, Instant)>,
    ) -> Self {
        let after = from.as_ref().map_or(0, |(from, _)| from.stamp().generation);
        Self {
            store,
            policy: Arc::clone(policy),
            who,
            from,
            found: Part::after(after),
            made: None,
        }
    }

    /// Queues the next job.
    fn go_on(mut self, inner: &Inner) -> Result<(), StoreError> {
        inner.submit(Box::new(move |database| {
            let Some(inner) = self.store.upgrade() else {
                return;
            };
            if let Err(error) = self.found.read_on(database, &inner.dir, &self.policy) {
                log::debug!("no summary for now: {}", Chain(&error));
                return;
            }
            if self.found.is_last || self.found.keys.len() > MOST_PATHS {
                self.made = self.end();
            }
            if self.made.is_none()
                && let Err(error) = self.go_on(&inner)
            {
                log::debug!("no summary for now: {}", Chain(&error));
            }
        }))
    }

    /// Makes the summary of what was found; nothing if all has to be walked through for it.
    fn end(&mut self) -> Option<Made> {
        let found = std::mem::replace(&mut self.found, Part::after(0));
        let stamp = Stamp {
            generation: found.after,
            ..self.who
        };
        let (summary, at) = match self.from.take() {
            Some((from, at)) => {
                let mut summary = Arc::unwrap_or_clone(from);
                let news = News {
                    stamp,
                    since: summary.stamp().generation,
                    keys: found.keys,
                };
                summary.apply(&news).ok()?;
                (Ok(summary), at)
            }
            None if found.keys.len() > MOST_PATHS => (Err(Failure::TooMany), Instant::now()),
            None => {
                let summary = Summary::build(stamp, found.keys).map_err(Failure::Filter);
                (summary, Instant::now())
            }
        };
        Some(Made {
            summary: summary.map(Arc::new),
            stamp: self.who,
            at,
        })
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        if let Some(inner) = self.store.upgrade() {
            inner.summaries.finish(self.who, self.made.take());
        }
    }
}

/// What a walk has found so far.
#[derive(Debug)]
struct Part {
    /// The last id that was looked at.
    after: u64,
    /// Of the shared paths.
    keys: Vec<u64>,
    /// Keys of paths that are not shared, so that nothing above them is.
    refused: HashSet<u64>,
    /// Rows that were looked at.
    rows: usize,
    /// Whether there were no more.
    is_last: bool,
}

impl Part {
    fn after(generation: u64) -> Self {
        Self {
            after: generation,
            keys: Vec::new(),
            refused: HashSet::new(),
            rows: 0,
            is_last: false,
        }
    }

    /// Looks at the next rows.
    fn read_on(
        &mut self,
        database: &mut Database,
        dir: &StoreDir,
        policy: &SharePolicy,
    ) -> Result<(), DatabaseError> {
        let next = database.read(|connection| self.next(connection, dir, policy))?;
        self.after = next.after;
        self.keys.extend(next.keys);
        if self.refused.len() < MOST_REFUSED {
            self.refused.extend(next.refused);
        }
        self.rows += next.rows;
        self.is_last = next.is_last;
        Ok(())
    }

    fn next(
        &self,
        connection: &Connection,
        dir: &StoreDir,
        policy: &SharePolicy,
    ) -> rusqlite::Result<Self> {
        let began = Instant::now();
        let mut next = Self::after(self.after);
        let rows = rows::after(connection, dir, self.after, ROWS)?;
        next.is_last = rows.len() < ROWS;
        for (id, hash) in rows {
            if began.elapsed() > JOB_TIME {
                next.is_last = false;
                break;
            }
            next.after = id;
            next.rows += 1;
            let path = match hash {
                Some(hash) => rows::path(connection, dir, hash)?,
                None => None,
            };
            let Some(path) = path else { continue };
            let lookup = |hash: StorePathHash| match self.refused.contains(&key(hash)) {
                true => Ok(None),
                false => rows::path(connection, dir, hash),
            };
            if policy.allows(&path, lookup)? {
                next.keys.push(key(path.info.path.hash()));
            } else {
                next.refused.insert(key(path.info.path.hash()));
            }
        }
        Ok(next)
    }
}
