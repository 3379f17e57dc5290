//! One NAR, or a range of one, from whichever holders can give it.
//!
//! A NAR is the same bytes everywhere, so when a holder fails the stream goes on from another
//! one at the exact byte. Bytes are hashed on the way; the last piece is held back until the
//! hash of the whole is right, and a small NAR is held back whole.
//!
//! Memory: one piece in flight and one held back, both at most what one read of a connection
//! gives (about 400 KiB); up to [`SMALL_NAR_BYTES`] for a small NAR; up to
//! [`FLAT_LIMIT_BYTES`](super::acceptance::FLAT_LIMIT_BYTES) for an unsigned flat file.

use std::{
    collections::VecDeque,
    ops::Range,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use log::{debug, info};
use sha2::{Digest, Sha256};

use super::{
    Finder, Found, Holder,
    acceptance::Proof,
    opening::{Body, HolderError},
};
use crate::{
    format::{NarHash, StorePathHash},
    protocol::PeerAddr,
    system::journal::chain,
};

/// NARs up to this size are checked before their first byte is passed on: a liar costs nothing.
pub const SMALL_NAR_BYTES: u64 = 256 << 10;

/// How long a holder may be silent while Nix waits: short if another one can go on.
const STALL_WITH_OTHERS: Duration = Duration::from_secs(1);
const STALL_ALONE: Duration = Duration::from_secs(20);

/// A holder that gives less than this while it is waited for so long is left.
const SLOW_WINDOW: Duration = Duration::from_secs(10);
const SLOW_BYTES: usize = 64 << 10;

/// Pieces are put together up to this size.
const SMALL_PIECE_BYTES: usize = 16 << 10;

/// A stream that had to look for holders this often will not get far.
const MOST_RECONNECTS: u32 = 32;

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
}

/// The rate of one holder, over time that was spent waiting for it: while Nix is slow,
/// nobody else is.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    bytes: usize,
}

impl Pace {
    /// Whether a holder that took `waited` for the next `bytes` is below the minimum rate.
    fn is_too_slow(&mut self, waited: Duration, bytes: usize) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        let slow = self.waited >= SLOW_WINDOW && self.bytes < SLOW_BYTES;
        if self.waited >= SLOW_WINDOW {
            *self = Self::default();
        }
        slow
    }
}

/// What is left to try when the holders at hand have failed. Each piece that arrives begins
/// anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resort {
    /// Ask the LAN again.
    AskAgain,
    /// Try those again that may have recovered.
    TryAgain,
    /// Give up.
    Nothing,
}

/// The stream. Pull it with [`NarStream::next`]; dropping it ends all work for it.
pub struct NarStream {
    finder: Finder,
    found: Found,
    range: Range<u64>,
    started: Instant,
    /// Where the next byte from a holder belongs.
    position: u64,
    current: Option<(Holder, Body)>,
    /// Who sent bytes since the start of the range.
    senders: Vec<Holder>,
    tried: Vec<PeerAddr>,
    /// Holders that failed in a way that may pass, such as a restart.
    again: VecDeque<Holder>,
    /// What is left to try when the holders at hand have failed.
    resort: Resort,
    /// Connections after the first.
    reconnects: u32,
    /// How the present holder does.
    pace: Pace,
    hasher: Sha256,
    held: VecDeque<Bytes>,
    /// Nothing is passed on before the whole is verified.
    hold_all: bool,
    passed_on: bool,
    verified: bool,
}

impl NarStream {
    /// Opens `range`, which is not empty and within the NAR: when this returns, a holder has
    /// agreed to give it (and a small NAR has been verified).
    pub async fn open(
        finder: &Finder,
        found: Found,
        range: Range<u64>,
    ) -> Result<Self, StreamError> {
        let whole = range == (0..found.info.nar_size);
        let small = found.info.nar_size <= SMALL_NAR_BYTES;
        let hold_all = whole && (small || matches!(found.proof, Proof::FlatFile(_)));
        let mut stream = Self {
            finder: finder.clone(),
            position: range.start,
            range,
            started: Instant::now(),
            current: None,
            senders: Vec::new(),
            tried: Vec::new(),
            again: VecDeque::new(),
            resort: Resort::AskAgain,
            reconnects: 0,
            pace: Pace::default(),
            hasher: Sha256::new(),
            held: VecDeque::new(),
            hold_all,
            passed_on: false,
            verified: false,
            found,
        };
        stream.connect().await?;
        if stream.hold_all {
            stream.fill().await?;
        }
        Ok(stream)
    }

    /// The holder that gives the bytes at present, or gave the last.
    pub fn holder(&self) -> Option<&Holder> {
        self.current
            .as_ref()
            .map(|(holder, _)| holder)
            .or(self.senders.last())
    }

    /// The next bytes; `None` after the last. After an error the stream is over.
    pub async fn next(&mut self) -> Option<Result<Bytes, StreamError>> {
        while !self.verified {
            if !self.hold_all && self.held.len() > 1 {
                break;
            }
            if let Err(error) = self.advance().await {
                self.held.clear();
                self.verified = true;
                return Some(Err(error));
            }
        }
        let piece = self.held.pop_front()?;
        self.passed_on = true;
        Some(Ok(piece))
    }

    async fn fill(&mut self) -> Result<(), StreamError> {
        while !self.verified {
            self.advance().await?;
        }
        Ok(())
    }

    /// Takes one more piece from a holder, or verifies the whole after the last.
    async fn advance(&mut self) -> Result<(), StreamError> {
        let after = self.patience();
        let Some((holder, body)) = &mut self.current else {
            return self.connect().await;
        };
        let asked = Instant::now();
        match tokio::time::timeout(after, body.next()).await {
            Ok(Some(Ok(piece))) => {
                if self.pace.is_too_slow(asked.elapsed(), piece.len()) {
                    self.give_up_on_current(&HolderError::Stalled { after: SLOW_WINDOW });
                    return Ok(());
                }
                if self.senders.last() != Some(holder) {
                    self.senders.push(holder.clone());
                }
                if holder.address().is_some() {
                    self.finder.memory().counters.received(piece.len() as u64);
                }
                self.position += piece.len() as u64;
                self.resort = Resort::AskAgain;
                self.hasher.update(&piece);
                self.hold(piece);
            }
            Ok(None) => return self.verify(),
            Ok(Some(Err(error))) => self.give_up_on_current(&error),
            Err(_) => self.stalled(after).await,
        }
        Ok(())
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

    /// How long the present holder may be silent: not long if another one can go on, or
    /// might be found.
    fn patience(&self) -> Duration {
        if self.found.holders.is_empty() && self.resort != Resort::AskAgain {
            STALL_ALONE
        } else {
            STALL_WITH_OTHERS
        }
    }

    /// The present holder is silent; it is left only for another one.
    async fn stalled(&mut self, after: Duration) {
        if self.found.holders.is_empty() && self.resort == Resort::AskAgain {
            self.ask_again().await;
        }
        if !self.found.holders.is_empty() || after == STALL_ALONE {
            self.give_up_on_current(&HolderError::Stalled { after });
        }
    }

    fn give_up_on_current(&mut self, error: &HolderError) {
        self.pace = Pace::default();
        if let Some((holder, _)) = self.current.take() {
            self.account_failure(holder, error);
            self.finder.memory().counters.failover();
        }
        if self.hold_all {
            // Nothing is lost yet, and what it sent before it failed may have been wrong too.
            self.begin_anew();
        }
    }

    /// Drops all that came and was not passed on.
    fn begin_anew(&mut self) {
        self.held.clear();
        self.hasher = Sha256::new();
        self.position = self.range.start;
        self.senders.clear();
    }

    fn account_failure(&mut self, holder: Holder, error: &HolderError) {
        let hash = self.found.info.path.hash();
        // Another build of the path is nobody's failure.
        let blamed = !matches!(error, HolderError::OtherNar);
        if let Some(address) = holder.address().filter(|_| blamed) {
            self.finder
                .memory()
                .standing
                .failed(Instant::now(), address);
        }
        debug!(
            hash:% = hash;
            "{holder} cannot give {hash} from byte {}: {}", self.position, chain(error)
        );
        if error.may_pass() && !self.again.contains(&holder) {
            self.again.push_back(holder);
        }
    }

    /// Finds a holder for the bytes from `position` on. When those at hand have failed, the
    /// LAN is asked once more, then those that may have recovered are tried once more: a
    /// holder that restarts answers a second later, its socket is open all the time.
    async fn connect(&mut self) -> Result<(), StreamError> {
        loop {
            while let Some(holder) = self.found.holders.pop_front() {
                self.tried.extend(holder.address());
                match self
                    .finder
                    .open(&holder, &self.found.info, self.position..self.range.end)
                    .await
                {
                    Ok(body) => {
                        self.current = Some((holder, body));
                        return Ok(());
                    }
                    Err(error) => self.account_failure(holder, &error),
                }
            }
            self.reconnects += 1;
            match self.resort {
                Resort::AskAgain if self.reconnects <= MOST_RECONNECTS => self.ask_again().await,
                Resort::TryAgain => {
                    self.resort = Resort::Nothing;
                    self.found.holders = std::mem::take(&mut self.again);
                }
                Resort::AskAgain | Resort::Nothing => {
                    let hash = self.found.info.path.hash();
                    self.finder.memory().known.forget(hash);
                    return Err(StreamError::NoHolder {
                        hash,
                        position: self.position,
                    });
                }
            }
        }
    }

    /// Asks the LAN, then our own store, for holders that have not failed.
    async fn ask_again(&mut self) {
        self.resort = Resort::TryAgain;
        let info = &self.found.info;
        let (hash, nar_hash) = (info.path.hash(), Some(info.nar_hash));
        let again = match self.finder.ask(hash, nar_hash, &self.tried).await {
            Ok(found) => Some(found),
            Err(_) => self.finder.own(hash, nar_hash).await,
        };
        if let Some(found) = again.filter(|found| found.info.nar_size == info.nar_size) {
            self.found.holders = found.holders;
        }
    }

    /// After the last byte: is it the NAR that was promised? Only the whole has a known hash;
    /// a range is checked by whoever puts the parts together.
    fn verify(&mut self) -> Result<(), StreamError> {
        self.current = None;
        let info = &self.found.info;
        if self.range == (0..info.nar_size) {
            let found = NarHash::from_digest(std::mem::take(&mut self.hasher).finalize().into());
            let whole = self
                .hold_all
                .then(|| self.held.iter().flatten().copied().collect::<Vec<u8>>());
            if !self
                .found
                .proof
                .holds(&info.nar_hash, &found, whole.as_deref())
            {
                return self.start_over(found);
            }
        }
        self.verified = true;
        self.report();
        Ok(())
    }

    /// Wrong bytes: nothing is lost as long as none was passed on.
    fn start_over(&mut self, found: NarHash) -> Result<(), StreamError> {
        let info = self.found.info.clone();
        let hash = info.path.hash();
        let senders: Vec<PeerAddr> = self
            .senders
            .drain(..)
            .filter_map(|holder| holder.address())
            .collect();
        self.finder.lied(&self.found, &senders);
        if self.passed_on {
            self.finder.memory().known.forget(hash);
            return Err(StreamError::Corrupt {
                hash,
                expected: info.nar_hash,
                found,
            });
        }
        self.begin_anew();
        Ok(())
    }

    fn report(&self) {
        let Some(peer) = self.senders.iter().find_map(Holder::address) else {
            return;
        };
        let info = &self.found.info;
        self.finder.memory().counters.fetched();
        self.finder.memory().standing.served(peer);
        let bytes = self.range.end - self.range.start;
        let elapsed = self.started.elapsed();
        let duration_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let path = info.path.display(&self.finder.0.trust.store_dir);
        info!(
            hash:% = info.path.hash(), store_path:% = path, peer:% = peer.ip(), bytes = bytes, duration_us = duration_us;
            "fetched {path} from {peer}: {bytes} bytes in {} ms", elapsed.as_millis()
        );
    }
}
