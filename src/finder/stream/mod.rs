//! One NAR, or a range of one, from whichever holders can give it.
//!
//! A NAR is the same bytes everywhere, so when a holder fails the stream goes on from another
//! one at the exact byte ([`line`]). From two holders on, a large NAR comes in pieces from all
//! of them at once, each compared before it is passed on ([`window`]). Bytes are hashed on the
//! way; the last are held back until the hash of the whole is right, and a NAR of up to
//! [`CHECKED_FIRST_BYTES`] is held back whole if the budget allows it.

mod holders;
mod line;
mod sources;
mod testimony;
mod window;

use std::{
    collections::VecDeque,
    ops::Range,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};

use super::{
    Finder, Found, Holder,
    acceptance::Proof,
    budget::{LOOPBACK_PATIENCE, Loan, STREAM_BYTES, Slot},
    inquiry::{Evidence, Examination, Mark},
    nar_sources::Incompletable,
};
use crate::{
    format::{NarHash, StorePathHash},
    protocol::{PeerAddr, pieces::PIECE_BYTES},
};

use holders::Holders;
use line::Line;
use window::Window;

/// NARs up to this size are checked before their first byte is passed on, if there is memory
/// for them: a liar costs nothing.
pub const CHECKED_FIRST_BYTES: u64 = 8 << 20;

/// NARs above this size come from one holder after the other: the digests of their pieces
/// would take too much memory.
const COMPARED_BYTES: u64 = 64 << 30;

/// What a stream may hold back beside its pieces on their way, within its own slot.
const HELD_IN_SLOT_BYTES: u64 = STREAM_BYTES / 2;

/// Pieces in memory at once, as many as there are holders at work, or the least that is of use.
const PIECES_AT_ONCE: [u64; 3] = [4, 3, 2];

/// How long a stream waits for the memory to check its NAR first: many at once take turns, and
/// the link is busy all the time.
const LOAN_WITHIN: Duration = Duration::from_millis(1_500);

/// Pieces are put together up to this size.
const SMALL_PIECE_BYTES: usize = 16 << 10;

/// Why a NAR, or the rest of it, cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Everybody who had it failed.
    #[error("no holder of {hash} is left, at byte {position}")]
    NoHolder {
        /// The path.
        hash: StorePathHash,
        /// How far the stream came.
        position: u64,
    },
    /// The bytes are not those of the promised NAR.
    #[error("the NAR of {hash} has the wrong hash: {found:?} instead of {expected:?}")]
    Corrupt {
        /// The path.
        hash: StorePathHash,
        /// What was promised.
        expected: NarHash,
        /// What came.
        found: NarHash,
    },
    /// Holders differ, and none has the NAR that was promised.
    #[error("the holders of {hash} differ at byte {position}, and none has the right NAR")]
    Disputed {
        /// The path.
        hash: StorePathHash,
        /// Where they differ.
        position: u64,
    },
    /// It must be checked before its first byte, and there is no memory for that now.
    #[error("no memory to check {hash} before its first byte")]
    NoMemory {
        /// The path.
        hash: StorePathHash,
    },
}

/// What the source of a stream has done.
enum Step {
    /// The next bytes, and who sent them.
    Bytes(Bytes, Holder),
    /// A holder was lost; another one is about to go on.
    Lost,
    /// Nothing that matters.
    Nothing,
    /// All has come.
    End,
}

/// Where the bytes come from.
enum Source {
    Line(Line),
    Window(Box<Window>),
}

/// The stream. Pull it with [`NarStream::next`]; dropping it ends all work for it.
pub struct NarStream {
    holders: Holders,
    source: Source,
    range: Range<u64>,
    started: Instant,
    /// Where the next byte from the source belongs.
    position: u64,
    /// Who sent bytes since the start of the range, each once; and who sent the last.
    senders: Vec<Holder>,
    sender: Option<Holder>,
    evidence: Evidence,
    hasher: Sha256,
    held: VecDeque<Bytes>,
    /// Nothing is passed on before the whole is verified.
    hold_all: bool,
    /// The whole must come from one holder: what several sent together was wrong, which is the
    /// suspicion.
    alone: Option<Evidence>,
    passed_on: bool,
    verified: bool,
    /// What is held back has its place.
    _loan: Option<Loan>,
    slot: Slot,
}

impl NarStream {
    /// Opens `range`, which is not empty and within the NAR, in the memory of `slot`: when this
    /// returns, a holder has agreed to give it (and what is checked first has been verified).
    pub async fn open(
        finder: &Finder,
        found: Found,
        range: Range<u64>,
        slot: Slot,
    ) -> Result<Self, StreamError> {
        let size = found.info.nar_size;
        let whole = range == (0..size);
        let must_hold = whole && matches!(found.proof, Proof::FlatFile(_));
        let (mut hold_all, mut loan) = (whole && size <= HELD_IN_SLOT_BYTES, None);
        if !hold_all && whole && size <= CHECKED_FIRST_BYTES {
            let patience = if must_hold {
                LOOPBACK_PATIENCE
            } else {
                LOAN_WITHIN
            };
            loan = slot.budget().lend_within(patience, size).await;
            hold_all = loan.is_some();
        }
        if must_hold && !hold_all {
            let hash = found.info.path.hash();
            return Err(StreamError::NoMemory { hash });
        }
        let mut stream = Self {
            holders: Holders::new(finder.clone(), found, range.start > 0),
            source: Source::Line(Line::new(range.clone())),
            position: range.start,
            range,
            started: Instant::now(),
            senders: Vec::new(),
            sender: None,
            evidence: Evidence::default(),
            hasher: Sha256::new(),
            held: VecDeque::new(),
            hold_all,
            alone: None,
            passed_on: false,
            verified: false,
            _loan: loan,
            slot,
        };
        if (CHECKED_FIRST_BYTES..=COMPARED_BYTES).contains(&size) && !hold_all {
            stream.widen().await;
        }
        // With the first bytes there is a holder that gives them: until then a failure is a 404.
        while stream.held.is_empty() && !stream.verified {
            stream.advance().await?;
        }
        while stream.hold_all && !stream.verified {
            stream.advance().await?;
        }
        Ok(stream)
    }

    /// Takes several holders at once, if there are several and there is memory for it.
    async fn widen(&mut self) {
        self.holders.look_for_second().await;
        if self.holders.with_ranges() < 2 {
            return;
        }
        let budget = self.slot.budget();
        let lent = PIECES_AT_ONCE
            .into_iter()
            .find_map(|pieces| Some((pieces, budget.lend(pieces * PIECE_BYTES)?)));
        if let Some((pieces, loan)) = lent {
            let window = Window::new(&self.holders, self.range.clone(), pieces as usize, loan);
            self.source = Source::Window(Box::new(window));
        }
    }

    /// The holder that gave the first bytes.
    pub fn holder(&self) -> Option<&Holder> {
        self.senders.first()
    }

    /// The next bytes; `None` after the last. After an error the stream is over.
    pub async fn next(&mut self) -> Option<Result<Bytes, StreamError>> {
        while !self.verified {
            if !self.hold_all && self.held.len() > 1 {
                break;
            }
            if let Err(error) = self.advance().await {
                if matches!(error, StreamError::Disputed { .. }) {
                    self.give_up();
                }
                self.held.clear();
                self.verified = true;
                return Some(Err(error));
            }
        }
        let piece = self.held.pop_front()?;
        self.passed_on = true;
        Some(Ok(piece))
    }

    /// Takes one more piece from a holder, or verifies the whole after the last.
    async fn advance(&mut self) -> Result<(), StreamError> {
        let step = match &mut self.source {
            Source::Line(line) => line.step(&mut self.holders).await?,
            Source::Window(window) => match window.step(&mut self.holders).await? {
                Some(step) => step,
                None => {
                    self.narrow();
                    Step::Nothing
                }
            },
        };
        match step {
            Step::Bytes(bytes, holder) => self.take(bytes, holder),
            Step::Lost if self.alone.is_some() => self.begin_anew(),
            Step::Lost | Step::Nothing => {}
            Step::End => self.verify()?,
        }
        Ok(())
    }

    /// Too few holders are left for several at once: one after the other goes on.
    fn narrow(&mut self) {
        self.collect_evidence();
        self.mark(None);
        self.source = Source::Line(Line::new(self.position..self.range.end));
    }

    fn take(&mut self, bytes: Bytes, holder: Holder) {
        if holder.address().is_some() {
            let counters = &self.holders.finder().memory().counters;
            counters.received(bytes.len() as u64);
        }
        if self.sender.as_ref() != Some(&holder) {
            if let (Source::Line(_), Some(before)) = (&self.source, &self.sender) {
                self.mark(before.address());
            }
            if !self.senders.contains(&holder) {
                self.senders.push(holder.clone());
            }
            self.sender = Some(holder);
        }
        self.position += bytes.len() as u64;
        self.hasher.update(&bytes);
        self.hold(bytes);
    }

    /// Notes the hash of what has come since the start of the NAR, for an inquiry.
    fn mark(&mut self, sender: Option<PeerAddr>) {
        if self.range.start > 0 {
            return;
        }
        self.evidence.marks.push(Mark {
            end: self.position,
            sender,
            digest: self.hasher.clone().finalize().into(),
        });
    }

    /// Keeps a piece back. Small ones are put together: a peer chooses how it cuts its bytes,
    /// not how much memory they take.
    fn hold(&mut self, piece: Bytes) {
        let small = |held: &Bytes| held.len() + piece.len() <= SMALL_PIECE_BYTES;
        let piece = match self.held.pop_back_if(|last| small(last)) {
            Some(last) => {
                let mut joined = last
                    .try_into_mut()
                    .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
                joined.extend_from_slice(&piece);
                joined.freeze()
            }
            None => piece,
        };
        self.held.push_back(piece);
    }

    /// Drops all that came and was not passed on.
    fn begin_anew(&mut self) {
        self.held.clear();
        self.hasher = Sha256::new();
        self.position = self.range.start;
        self.senders.clear();
        self.sender = None;
        self.evidence = Evidence::default();
        self.source = Source::Line(Line::new(self.range.clone()));
    }

    fn collect_evidence(&mut self) {
        if let Source::Window(window) = &mut self.source {
            window.testify(&mut self.evidence);
        }
    }

    /// After the last byte: is it the NAR that was promised? Only the whole has a known hash;
    /// a range is checked by whoever puts the parts together.
    fn verify(&mut self) -> Result<(), StreamError> {
        let found = self.holders.found();
        let info = &found.info;
        if self.range == (0..info.nar_size) {
            let hash = NarHash::from_digest(self.hasher.clone().finalize().into());
            // Only the content of a flat file is looked into; what is held is copied for nobody else.
            let flat = self.hold_all && matches!(found.proof, Proof::FlatFile(_));
            let whole = flat.then(|| Vec::from(std::mem::take(&mut self.held)).concat());
            if !found.proof.holds(&info.nar_hash, &hash, whole.as_deref()) {
                return self.caught(hash);
            }
            if let Some(whole) = whole {
                self.held.push_back(whole.into());
            }
            let info = self.holders.info();
            for liar in self.proven_liars() {
                self.holders.finder().convict(info, liar);
            }
        }
        self.verified = true;
        self.report();
        Ok(())
    }

    /// The whole has its hash: who said something else?
    fn proven_liars(&self) -> Vec<PeerAddr> {
        if let Source::Window(window) = &self.source {
            return window.liars();
        }
        let Some(suspicion) = &self.alone else {
            return Vec::new();
        };
        let mut examination = Examination::new(&suspicion.beginnings());
        for bytes in &self.held {
            examination.take(bytes);
        }
        let truth = examination.finish(self.holders.info());
        truth.map_or_else(Vec::new, |truth| suspicion.liars(&truth))
    }

    /// Wrong bytes: nothing is lost as long as none was passed on. Otherwise the stream is cut,
    /// and Nix, which cannot take bytes back, is sent to its next substituter.
    fn caught(&mut self, hash: NarHash) -> Result<(), StreamError> {
        self.collect_evidence();
        if let (Source::Line(_), Some(sender)) = (&self.source, &self.sender) {
            self.mark(sender.address());
        }
        let finder = self.holders.finder().clone();
        let found = self.holders.found().clone();
        let path = found.info.path.hash();
        finder.memory().counters.corrupt();
        let mut peers: Vec<PeerAddr> = self.senders.iter().filter_map(Holder::address).collect();
        peers.sort_unstable();
        peers.dedup();
        match peers[..] {
            // Our own store: nobody else had a part in it.
            [] => {
                self.holders.own_is_damaged();
                log::warn!(hash:% = path, reason = "wrong-bytes"; "our own copy of {path} is damaged")
            }
            // What one peer alone sent has not the hash that a trusted key signed: that is proof.
            [peer] => finder.convict(&found.info, peer),
            _ if !self.passed_on => {
                // The last of them first, which went on where others failed.
                for holder in self.senders.iter().rev() {
                    self.holders.put_back(holder.clone());
                }
                self.alone = Some(std::mem::take(&mut self.evidence));
            }
            _ => {
                log::info!(
                    hash:% = path, reason = "wrong-bytes";
                    "the bytes of {path} from {} peers together are wrong; who sent them is being found out", peers.len()
                );
                finder.inquire(found.clone(), std::mem::take(&mut self.evidence));
            }
        }
        if self.passed_on {
            self.give_up();
            return Err(StreamError::Corrupt {
                hash: path,
                expected: found.info.nar_hash,
                found: hash,
            });
        }
        self.begin_anew();
        Ok(())
    }

    /// Nix has bytes that nobody can complete to the right NAR: it had better ask elsewhere.
    fn give_up(&self) {
        let info = self.holders.info();
        let (path, nar_hash) = (info.path.hash(), info.nar_hash);
        let sources = &self.holders.finder().memory().nar_sources;
        sources.forget(path);
        sources.give_up(Instant::now(), path, nar_hash, Incompletable::Wrong);
    }

    fn report(&self) {
        let mut peers: Vec<PeerAddr> = self.senders.iter().filter_map(Holder::address).collect();
        let Some(first) = peers.first().copied() else {
            return;
        };
        if let Some(last) = &self.sender {
            self.holders.record_success(last);
        }
        peers.sort_unstable();
        peers.dedup();
        let bytes = self.range.end - self.range.start;
        let elapsed = self.started.elapsed();
        self.holders.report(first, peers.len() - 1, bytes, elapsed);
    }
}
