//! Digests of the pieces of local NARs, for peers that compare holders (docs/protocol.md,
//! "Digests of pieces").
//!
//! One path is hashed at a time, on one blocking thread, whoever asks for how many. Who asks for
//! a path that is being hashed joins in; when the last asker of it has gone, so does the work.
//! What is complete is right: the NAR's own hash was checked on the way.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, Weak},
};

use bytes::Bytes;
use lru::LruCache;
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use super::{
    layouts::Key,
    lock,
    nar::{CHUNK_BYTES, Nar},
    nar_error::NarError,
};
use crate::{
    format::{NarHash, PathInfo, StorePath},
    protocol::pieces::{DIGEST_BYTES, PIECE_BYTES, PieceDigest},
};

/// Memory for digests that are kept: those of 128 GiB of NARs.
const MOST_BYTES: usize = 1 << 20;

/// Paths that wait while another one is hashed.
const MOST_WAITING: usize = 8;

// A chunk is never part of two pieces.
const _: () = assert!(PIECE_BYTES.is_multiple_of(CHUNK_BYTES as u64));

/// Why there are no digests.
#[derive(Debug, thiserror::Error)]
pub enum PiecesError {
    /// Too many paths wait already.
    #[error("{waiting} paths wait to be hashed already")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// The path has no NAR.
    #[error(transparent)]
    Nar(#[from] NarError),
}

/// The digests of one NAR, in order, as they become known.
#[derive(Debug)]
pub struct PieceStream {
    path: StorePath,
    source: Source,
    /// Digests given so far.
    given: usize,
}

#[derive(Debug)]
enum Source {
    Kept(Arc<[PieceDigest]>),
    Coming(Arc<Progress>),
}

impl PieceStream {
    /// The next digests, one or more; nothing after the last. An error ends the stream.
    pub async fn next(&mut self) -> Option<Result<Bytes, NarError>> {
        let given = self.given;
        let more = match &self.source {
            Source::Kept(digests) => Ok(join(&digests[given..])),
            Source::Coming(progress) => progress.after(given).await,
        };
        match more {
            Ok(more) if more.is_empty() => None,
            Ok(more) => {
                self.given += more.len() / DIGEST_BYTES;
                Some(Ok(more))
            }
            Err(Broken) => Some(Err(NarError::Interrupted {
                path: self.path.clone(),
            })),
        }
    }
}

fn join(digests: &[PieceDigest]) -> Bytes {
    Bytes::from(digests.concat())
}

/// What is known of the digests of one NAR.
#[derive(Debug, Default)]
struct Progress {
    known: Mutex<Known>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Known {
    digests: Vec<PieceDigest>,
    /// Whether those are all that there will be, for which reason.
    ended: Option<Result<(), Broken>>,
}

/// The hashing ended before its end.
#[derive(Debug, Clone, Copy)]
struct Broken;

impl Progress {
    /// The digests beyond the first `given`, as soon as there are any; none at the end.
    async fn after(&self, given: usize) -> Result<Bytes, Broken> {
        loop {
            let changed = self.changed.notified();
            {
                let known = lock(&self.known);
                if known.digests.len() > given {
                    return Ok(join(&known.digests[given..]));
                }
                match known.ended {
                    Some(Ok(())) => return Ok(Bytes::new()),
                    Some(Err(broken)) => return Err(broken),
                    None => {}
                }
            }
            changed.await;
        }
    }

    fn add(&self, digest: PieceDigest) {
        lock(&self.known).digests.push(digest);
        self.changed.notify_waiters();
    }

    fn end(&self, how: Result<(), Broken>) {
        lock(&self.known).ended.get_or_insert(how);
        self.changed.notify_waiters();
    }
}

/// A NAR to be hashed for as long as somebody waits for it.
#[derive(Debug)]
struct Job {
    key: Key,
    info: PathInfo,
    nar: Option<Nar>,
    progress: Weak<Progress>,
}

impl Drop for Job {
    fn drop(&mut self) {
        if let Some(progress) = self.progress.upgrade() {
            progress.end(Err(Broken));
        }
    }
}

/// What is kept, what is being hashed, and what waits for it.
#[derive(Debug)]
pub(super) struct Pieces(Mutex<Desk>);

#[derive(Debug)]
struct Desk {
    kept: LruCache<Key, Arc<[PieceDigest]>>,
    kept_bytes: usize,
    waiting: VecDeque<Job>,
    current: Option<(Key, Weak<Progress>)>,
    /// Whether a thread works, or is about to.
    working: bool,
}

impl Default for Pieces {
    fn default() -> Self {
        Self(Mutex::new(Desk {
            kept: LruCache::unbounded(),
            kept_bytes: 0,
            waiting: VecDeque::new(),
            current: None,
            working: false,
        }))
    }
}

impl Pieces {
    /// The digests, if they are kept or on their way.
    pub(super) fn find(&self, info: &PathInfo) -> Option<PieceStream> {
        lock(&self.0).find(info)
    }

    /// The digests of `nar`, in its turn; and whether [`Pieces::work`] is to be called.
    pub(super) fn enter(
        &self,
        info: &PathInfo,
        nar: Nar,
    ) -> Result<(PieceStream, bool), PiecesError> {
        let mut desk = lock(&self.0);
        if let Some(known) = desk.find(info) {
            return Ok((known, false));
        }
        desk.waiting.retain(|job| job.progress.strong_count() > 0);
        let waiting = desk.waiting.len();
        if waiting >= MOST_WAITING {
            return Err(PiecesError::Busy { waiting });
        }
        let progress = Arc::default();
        desk.waiting.push_back(Job {
            key: Key::of(info),
            info: info.clone(),
            nar: Some(nar),
            progress: Arc::downgrade(&progress),
        });
        let is_first = !std::mem::replace(&mut desk.working, true);
        let stream = PieceStream {
            path: info.path.clone(),
            source: Source::Coming(progress),
            given: 0,
        };
        Ok((stream, is_first))
    }

    /// Hashes what waits until nothing does. Blocks. `damaged` is told of NARs that are not what
    /// was registered.
    pub(super) fn work(&self, damaged: impl Fn(&PathInfo, &NarError)) {
        let working = Working(self);
        while let Some(mut job) = working.next() {
            match hash(&mut job) {
                Ok(Some(digests)) => working.keep(job.key, digests),
                Ok(None) => {}
                Err(error @ NarError::HashMismatch { .. }) => damaged(&job.info, &error),
                Err(error) => {
                    log::debug!(hash:% = job.info.path.hash(); "cannot hash the NAR: {error}");
                }
            }
        }
    }
}

impl Desk {
    fn find(&mut self, info: &PathInfo) -> Option<PieceStream> {
        let key = Key::of(info);
        let source = match self.kept.get(&key) {
            Some(kept) => Source::Kept(Arc::clone(kept)),
            None => {
                let waiting = self.waiting.iter().map(|job| (job.key, &job.progress));
                let current = self.current.iter().map(|(key, progress)| (*key, progress));
                let of_key = current.chain(waiting).filter(|(of, _)| *of == key);
                // What nobody waits for any more will not be finished.
                Source::Coming(
                    of_key
                        .filter_map(|(_, progress)| progress.upgrade())
                        .next()?,
                )
            }
        };
        Some(PieceStream {
            path: info.path.clone(),
            source,
            given: 0,
        })
    }
}

/// The one thread that hashes; whatever ends it, another one can begin.
struct Working<'a>(&'a Pieces);

impl Working<'_> {
    /// The next job; without one, this was the last look.
    fn next(&self) -> Option<Job> {
        let mut desk = lock(&self.0.0);
        let job = desk.waiting.pop_front();
        desk.current = job.as_ref().map(|job| (job.key, job.progress.clone()));
        desk.working = job.is_some();
        job
    }

    fn keep(&self, key: Key, digests: Arc<[PieceDigest]>) {
        let mut desk = lock(&self.0.0);
        desk.kept_bytes += size_of_val(&*digests);
        if let Some(before) = desk.kept.put(key, digests) {
            desk.kept_bytes -= size_of_val(&*before);
        }
        while desk.kept_bytes > MOST_BYTES {
            let Some((_, oldest)) = desk.kept.pop_lru() else {
                break;
            };
            desk.kept_bytes -= size_of_val(&*oldest);
        }
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        // Only a panic leaves something behind; those who wait for it are told by the jobs.
        if std::thread::panicking() {
            let left = {
                let mut desk = lock(&self.0.0);
                desk.current = None;
                desk.working = false;
                std::mem::take(&mut desk.waiting)
            };
            drop(left);
        }
    }
}

/// Hashes one NAR, telling each digest when it is known; the last one only if the whole is right.
/// Nothing if everybody has gone.
fn hash(job: &mut Job) -> Result<Option<Arc<[PieceDigest]>>, NarError> {
    let Some(nar) = job.nar.take() else {
        return Ok(None);
    };
    let size = nar.size();
    let (mut whole, mut piece) = (Sha256::new(), Sha256::new());
    let mut at = 0;
    for chunk in nar.chunks() {
        let Some(progress) = job.progress.upgrade() else {
            return Ok(None);
        };
        let chunk = chunk?;
        whole.update(&chunk);
        piece.update(&chunk);
        at += chunk.len() as u64;
        if at == size {
            let found = NarHash::from_digest(whole.finalize_reset().into());
            if found != job.info.nar_hash {
                return Err(NarError::HashMismatch {
                    path: job.info.path.clone(),
                    registered: job.info.nar_hash,
                    found,
                });
            }
        }
        if at == size || at.is_multiple_of(PIECE_BYTES) {
            progress.add(piece.finalize_reset().into());
        }
        if at == size {
            progress.end(Ok(()));
            let digests = Arc::from(lock(&progress.known).digests.as_slice());
            return Ok(Some(digests));
        }
    }
    Ok(None)
}
