//! The bytes of a NAR at one holder: exactly those that were asked for, whatever it sends.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};

use super::PeerError;
use crate::protocol::PeerAddr;

/// After so many bytes that were dropped comes an empty piece, so that a holder that is read from
/// its start is not taken for one that is silent; one that is slower than this in the time
/// of `limits.stall` is.
const DROPPED_BYTES: u64 = 1 << 20;

/// What a holder sends, as it is.
pub(super) type Sent = Pin<Box<dyn Stream<Item = Result<Bytes, PeerError>> + Send + Sync>>;

/// The rest of a NAR at one holder: exactly as many bytes as were asked for, or an error. A piece
/// is empty when nothing but bytes before the wanted ones has come.
pub struct NarBody {
    peer: PeerAddr,
    sent: Sent,
    /// Bytes before the wanted ones, still to be dropped.
    skip: u64,
    /// Dropped since the last piece.
    dropped: u64,
    /// Wanted bytes still to come.
    left: u64,
    /// Bytes that a holder without ranges sends after the wanted ones; not read.
    beyond: u64,
}

impl NarBody {
    /// `wanted` bytes after the first `skip` ones of `sent`, which sends `beyond` more after them.
    pub(super) fn new(peer: PeerAddr, sent: Sent, skip: u64, wanted: u64, beyond: u64) -> Self {
        Self {
            peer,
            sent,
            skip,
            dropped: 0,
            left: wanted,
            beyond,
        }
    }

    /// Whether the holder sends more than was asked for, because it knows no ranges.
    pub fn is_without_ranges(&self) -> bool {
        self.skip > 0 || self.beyond > 0
    }
}

impl Stream for NarBody {
    type Item = Result<Bytes, PeerError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let peer = self.peer;
        if self.left == 0 && self.beyond > 0 {
            return Poll::Ready(None);
        }
        loop {
            let Some(piece) = std::task::ready!(self.sent.poll_next_unpin(context)) else {
                let missing = std::mem::take(&mut self.left);
                let short = PeerError::Length {
                    peer,
                    expected: missing,
                    found: 0,
                };
                return Poll::Ready((missing > 0).then_some(Err(short)));
            };
            let mut piece = match piece {
                Ok(piece) => piece,
                Err(error) => return Poll::Ready(Some(Err(error))),
            };
            let dropped = self.skip.min(piece.len() as u64);
            self.skip -= dropped;
            self.dropped += dropped;
            piece.advance(dropped as usize);
            if piece.is_empty() {
                if self.dropped >= DROPPED_BYTES {
                    self.dropped = 0;
                    return Poll::Ready(Some(Ok(piece)));
                }
                continue;
            }
            if self.beyond > 0 {
                piece.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            }
            let found = piece.len() as u64;
            let Some(left) = self.left.checked_sub(found) else {
                return Poll::Ready(Some(Err(PeerError::Length {
                    peer,
                    expected: self.left,
                    found,
                })));
            };
            self.left = left;
            return Poll::Ready(Some(Ok(piece)));
        }
    }
}
