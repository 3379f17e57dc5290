//! A large NAR from several holders at once: pieces of 4 MiB, fetched ahead, each compared with
//! what another holder says of it, and delivered in order.
//!
//! Nothing here tries a failed holder again or looks for new ones: when too few are left, the
//! window is at its end and the stream goes on from one holder after the other.
//!
//! Memory: so many pieces as were lent, and up to three more while holders differ; 32 bytes for
//! each digest.

mod fetching;
mod judgement;
mod piece;

use std::{
    collections::VecDeque,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{
    FutureExt, StreamExt,
    future::{AbortHandle, Abortable, BoxFuture},
    stream::FuturesUnordered,
};
use log::debug;

use super::{
    Step, StreamError,
    holders::Holders,
    sources::Sources,
    testimony::{SourceId, Verdict, Vote},
};
use crate::{
    finder::{Finder, Holder, budget::Loan, inquiry::Truth, nar_sources::HolderError},
    format::PathInfo,
    peer::PieceDigests,
    protocol::pieces::{self, PIECE_BYTES, PieceDigest},
};

use fetching::{fetch, next_digests};
use piece::Piece;

/// What is handed on at once.
const DELIVERY_BYTES: usize = 256 << 10;

/// Of so many holders the digests are asked for at once; of all, when these differ.
const WITNESSES: usize = 2;

/// A piece that takes its holder this much longer than another holder usually takes is
/// fetched from that one as well.
const LATE_FACTOR: u32 = 2;
const LATE_BY: Duration = Duration::from_millis(20);

/// Holders that differ are heard one after the other, the whole NAR each; Nix gives up on a
/// silent stream after five minutes.
const TRIAL_WITHIN: Duration = Duration::from_secs(200);

/// Something that was waited for.
enum Event {
    Proved(SourceId, Result<Holder, HolderError>),
    Fetched {
        source: SourceId,
        piece: u64,
        took: Duration,
        copy: Result<(Bytes, PieceDigest), HolderError>,
    },
    Abandoned(SourceId, u64),
    Digests(SourceId, Option<(Vec<PieceDigest>, PieceDigests)>),
    Tried(SourceId, Result<Option<Truth>, HolderError>),
}

/// The pieces under way, and who sends them.
pub(super) struct Window {
    finder: Finder,
    info: Arc<PathInfo>,
    range: Range<u64>,
    /// Pieces in memory at most.
    places: usize,
    /// The piece that is delivered next, the first one of `pieces`.
    next: u64,
    pieces: VecDeque<Piece>,
    sources: Sources,
    work: FuturesUnordered<BoxFuture<'static, Event>>,
    /// The rest of a piece that is being delivered.
    delivering: Option<(Bytes, Holder)>,
    /// What was delivered, by piece; and the votes that differed from it.
    delivered: Vec<PieceDigest>,
    sent: Vec<(u64, Vote)>,
    /// Since when the next piece waits for a digest, and how long those before it did.
    waiting_since: Option<Instant>,
    waited: Duration,
    truth: Option<Truth>,
    /// A moment ago this NAR was wrong: nothing is passed on before the truth is known, if
    /// anybody has it.
    careful: bool,
    trial: Option<Instant>,
    tried: Vec<SourceId>,
    _loan: Loan,
}

impl Window {
    /// Over `range` with so many `places`, whose memory is `loan`.
    pub(super) fn new(holders: &Holders, range: Range<u64>, places: usize, loan: Loan) -> Self {
        Self {
            finder: holders.finder().clone(),
            info: Arc::clone(holders.info()),
            next: range.start / PIECE_BYTES,
            range,
            places,
            pieces: VecDeque::new(),
            sources: Sources::default(),
            work: FuturesUnordered::new(),
            delivering: None,
            delivered: Vec::new(),
            sent: Vec::new(),
            waiting_since: None,
            waited: Duration::ZERO,
            truth: None,
            careful: holders.was_wrong(),
            trial: None,
            tried: Vec::new(),
            _loan: loan,
        }
    }

    /// The next bytes, or the end; `None` if the holders at hand cannot go on.
    pub(super) async fn step(
        &mut self,
        holders: &mut Holders,
    ) -> Result<Option<Step>, StreamError> {
        loop {
            if let Some(step) = self.deliver() {
                holders.progress();
                return Ok(Some(step));
            }
            if self.next >= self.end() {
                return Ok(Some(Step::End));
            }
            self.begin_work(holders);
            let verdict = self.verdict();
            if verdict == Verdict::Wait {
                self.waiting_since.get_or_insert_with(Instant::now);
            } else if let Some(since) = self.waiting_since.take() {
                self.waited += since.elapsed();
            }
            match verdict {
                Verdict::Pass(digest) => {
                    self.pass(digest);
                    continue;
                }
                Verdict::Tie if self.trial.is_none() => {
                    if !self.begin_trial() {
                        return Err(self.disputed());
                    }
                }
                Verdict::Wait | Verdict::Ask | Verdict::Tie => {}
            }
            if self.work.is_empty() {
                debug!(hash:% = self.info.path.hash(); "no holder at hand goes on");
                return Ok(None);
            }
            let wake = tokio::time::Instant::from_std(self.wake_at());
            match tokio::time::timeout_at(wake, self.work.next()).await {
                Ok(Some(event)) => self.handle(event, holders),
                Ok(None) | Err(_) => self.late(),
            }
            if self
                .trial
                .is_some_and(|since| since.elapsed() > TRIAL_WITHIN)
            {
                return Err(self.disputed());
            }
        }
    }

    /// One past the last piece.
    fn end(&self) -> u64 {
        self.range.end.div_ceil(PIECE_BYTES)
    }

    fn bytes_of(&self, piece: u64) -> Range<u64> {
        let start = piece * PIECE_BYTES;
        start..(start + PIECE_BYTES).min(self.info.nar_size)
    }

    fn disputed(&self) -> StreamError {
        StreamError::Disputed {
            hash: self.info.path.hash(),
            position: self.next * PIECE_BYTES,
        }
    }

    /// The next part of the piece that is being delivered.
    fn deliver(&mut self) -> Option<Step> {
        let (rest, holder) = self.delivering.as_mut()?;
        let bytes = rest.split_to(rest.len().min(DELIVERY_BYTES));
        let holder = holder.clone();
        if rest.is_empty() {
            self.delivering = None;
        }
        Some(Step::Bytes(bytes, holder))
    }

    /// Gives every holder something to do.
    fn begin_work(&mut self, holders: &mut Holders) {
        while self.sources.has_room() {
            let Some(holder) = holders.take() else { break };
            let source = self.sources.add(holder.clone());
            let (finder, info) = (self.finder.clone(), Arc::clone(&self.info));
            self.work.push(Box::pin(async move {
                let proved = finder.prove(holder, &info).await;
                Event::Proved(source, proved.map_err(|(_, error)| error))
            }));
        }
        self.ask_witnesses();
        if self.trial.is_none() {
            while let Some((source, piece)) = self.next_fetch() {
                self.fetch(source, piece);
            }
        }
    }

    /// Asks for digests until enough holders give them; all of them, if they differ.
    fn ask_witnesses(&mut self) {
        let head_has_copy = self.pieces.front().is_some_and(Piece::has_copy);
        let differ = head_has_copy && matches!(self.verdict(), Verdict::Ask | Verdict::Tie);
        let wanted = if differ { usize::MAX } else { WITNESSES };
        while let Some((source, peer, path)) = self.sources.next_witness(wanted) {
            let finder = self.finder.clone();
            let count = pieces::count(self.info.nar_size);
            self.work.push(Box::pin(async move {
                match finder.client().piece_digests(peer, &path, count).await {
                    Ok(digests) => next_digests(source, digests).await,
                    Err(error) => {
                        debug!(peer:% = peer.ip(); "no digests from {peer}: {error}");
                        Event::Digests(source, None)
                    }
                }
            }));
        }
    }

    /// Who should fetch what next: the piece that is waited for before those after it.
    fn next_fetch(&self) -> Option<(SourceId, u64)> {
        let mut idle = self.sources.idle();
        if let Some(head) = self.pieces.front() {
            let source = match self.verdict() {
                Verdict::Ask if !head.is_fetched() => {
                    let claimed = |source| self.sources.claim(source, self.next).is_some();
                    let new: Vec<SourceId> =
                        idle.filter(|source| !head.has_copy_from(*source)).collect();
                    // One that has not voted yet, rather than one that would repeat itself.
                    let fresh = new.iter().find(|source| !claimed(**source));
                    fresh.or(new.first()).copied()
                }
                Verdict::Ask if !head.has_copy() => {
                    let overtakes = |source| {
                        let late = self.late_at(head, source);
                        late.is_some_and(|at| at <= Instant::now())
                    };
                    idle.find(|source| !head.is_fetched_from(*source) && overtakes(*source))
                }
                _ => None,
            };
            if let Some(source) = source {
                return Some((source, self.next));
            }
        }
        let delivering = usize::from(self.delivering.is_some());
        let piece = self.next + self.pieces.len() as u64;
        let room = self.pieces.len() + delivering < self.places && piece < self.end();
        let source = self.sources.idle().next().filter(|_| room)?;
        Some((source, piece))
    }

    /// When `source` takes over a piece that others are slow to send.
    fn late_at(&self, head: &Piece, source: SourceId) -> Option<Instant> {
        let usual = self.sources.usual(source)?;
        Some(head.fetched_since()? + usual * LATE_FACTOR + LATE_BY)
    }

    /// When there is something to do even if nothing happens.
    fn wake_at(&self) -> Instant {
        let stall = self.finder.limits().stall;
        let wake = Instant::now() + stall;
        let since = self.waiting_since;
        let digests_by = since.map(|since| since + stall.saturating_sub(self.waited));
        let head = self.pieces.front().filter(|head| !head.has_copy());
        let head = head.filter(|_| self.trial.is_none());
        let late = |source| self.late_at(head?, source);
        // What was due by now has been done.
        let overtaking = self.sources.idle().filter_map(late);
        let overtaking = overtaking.filter(|at| *at > Instant::now());
        overtaking.chain(digests_by).fold(wake, Instant::min)
    }

    fn fetch(&mut self, source: SourceId, piece: u64) {
        let index = (piece - self.next) as usize;
        if index == self.pieces.len() {
            self.pieces.push_back(Piece::default());
        }
        let (handle, registration) = AbortHandle::new_pair();
        let holder = self.sources.begin(source);
        let began = Instant::now();
        self.pieces[index].begins(source, began, handle);
        let bytes = self.bytes_of(piece);
        let fetching = fetch(self.finder.clone(), Arc::clone(&self.info), holder, bytes);
        let fetching = Abortable::new(fetching, registration);
        self.work
            .push(Box::pin(fetching.map(move |done| match done {
                Ok(copy) => Event::Fetched {
                    source,
                    piece,
                    took: began.elapsed(),
                    copy,
                },
                Err(_) => Event::Abandoned(source, piece),
            })));
    }

    fn handle(&mut self, event: Event, holders: &mut Holders) {
        match event {
            Event::Proved(source, Ok(holder)) => self.sources.proved(source, holder),
            Event::Proved(source, Err(error)) => self.lose(source, &error, holders),
            Event::Fetched {
                source,
                piece,
                took,
                copy,
            } => {
                self.sources.end(source);
                match copy {
                    // Convicted meanwhile, or left: what it says does not count any more.
                    _ if !self.sources.is_alive(source) => self.ends(source, piece),
                    Ok((bytes, digest)) => {
                        self.sources.took(source, took);
                        holders.record_success(&self.sources.holder(source));
                        self.arrived(Vote { source, digest }, piece, bytes, holders);
                    }
                    Err(error) => {
                        self.ends(source, piece);
                        self.finder.memory().counters.failover();
                        self.lose(source, &error, holders);
                    }
                }
            }
            Event::Abandoned(source, piece) => {
                self.sources.end(source);
                self.ends(source, piece);
                if self.sources.lost_race(source) {
                    self.lose(source, &HolderError::Overtaken, holders);
                }
            }
            Event::Digests(source, Some((digests, rest))) => {
                self.sources.claimed(source, digests);
                self.work.push(next_digests(source, rest).boxed());
                self.expose(source, holders);
            }
            Event::Digests(source, None) => self.sources.claims_end(source),
            Event::Tried(source, tried) => self.tried(source, tried),
        }
    }

    fn piece(&mut self, piece: u64) -> Option<&mut Piece> {
        let index = piece.checked_sub(self.next)?;
        self.pieces.get_mut(index as usize)
    }

    fn ends(&mut self, source: SourceId, piece: u64) {
        if let Some(piece) = self.piece(piece) {
            piece.ends(source);
        }
    }

    fn lose(&mut self, source: SourceId, error: &HolderError, holders: &mut Holders) {
        let position = self.next * PIECE_BYTES;
        if let Some(holder) = self.sources.lose(source) {
            if matches!(error, HolderError::WithoutRanges) {
                let counters = &self.finder.memory().counters;
                counters.refused(error.kind());
                holders.put_aside(holder);
            } else {
                holders.failed(holder, error, position);
            }
        }
    }

    fn arrived(&mut self, vote: Vote, number: u64, bytes: Bytes, holders: &mut Holders) {
        self.sent.push((number, vote));
        if let Some(piece) = self.piece(number) {
            piece.ends(vote.source);
            piece.add(vote, bytes);
            // Whoever was slower need not go on.
            piece.abandon();
        }
        self.expose(vote.source, holders);
    }

    /// Drops a holder whose bytes are not what it gives the digest of.
    fn expose(&mut self, source: SourceId, holders: &mut Holders) {
        let contradicts = |(piece, vote): &(u64, Vote)| {
            let claim = self.sources.claim(source, *piece);
            vote.source == source && claim.is_some_and(|claim| claim != vote.digest)
        };
        if self.sent.iter().any(contradicts) {
            self.lose(source, &HolderError::Contradiction, holders);
            self.sources.discredit(source);
            for piece in &mut self.pieces {
                piece.keep(|other| other != source);
            }
        }
    }

    /// Delivers the piece with this digest.
    fn pass(&mut self, digest: PieceDigest) {
        let Some(head) = self.pieces.pop_front() else {
            return;
        };
        head.abandon();
        let Some((source, mut bytes)) = head.take(digest) else {
            // Not possible: what is passed has bytes. Fetched anew, nothing is lost.
            self.pieces.push_front(Piece::default());
            return;
        };
        let start = self.next * PIECE_BYTES;
        let wanted = self.range.start.max(start)..self.range.end;
        bytes.truncate((wanted.end - start).min(bytes.len() as u64) as usize);
        bytes::Buf::advance(&mut bytes, (wanted.start - start) as usize);
        self.delivering = Some((bytes, self.sources.holder(source)));
        self.delivered.push(digest);
        self.next += 1;
    }

    /// Too long without an event: a digest is a favour, and not waited for any longer.
    fn late(&mut self) {
        let since = self.waiting_since.unwrap_or_else(Instant::now);
        if self.waited + since.elapsed() >= self.finder.limits().stall {
            self.sources.all_claims_end();
        }
    }
}
