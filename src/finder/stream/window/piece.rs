//! One piece, between its first request and its delivery.

use std::time::Instant;

use bytes::Bytes;
use futures_util::future::AbortHandle;

use super::super::testimony::{SourceId, Vote};
use crate::protocol::pieces::PieceDigest;

/// What came of a piece, and who is sending it.
#[derive(Default)]
pub(super) struct Piece {
    /// Each digest's bytes are kept once, by the first vote for it.
    copies: Vec<(Vote, Option<Bytes>)>,
    fetching: Vec<(SourceId, Instant, AbortHandle)>,
}

impl Piece {
    pub(super) fn begins(&mut self, source: SourceId, now: Instant, handle: AbortHandle) {
        self.fetching.push((source, now, handle));
    }

    pub(super) fn ends(&mut self, source: SourceId) {
        self.fetching.retain(|(other, ..)| *other != source);
    }

    pub(super) fn is_fetched(&self) -> bool {
        !self.fetching.is_empty()
    }

    pub(super) fn is_fetched_from(&self, source: SourceId) -> bool {
        self.fetching.iter().any(|(other, ..)| *other == source)
    }

    /// When the last of those that are sending it began.
    pub(super) fn fetched_since(&self) -> Option<Instant> {
        self.fetching.last().map(|(_, since, _)| *since)
    }

    /// Whoever is still sending it need not go on.
    pub(super) fn abandon(&self) {
        for (.., handle) in &self.fetching {
            handle.abort();
        }
    }

    pub(super) fn has_copy(&self) -> bool {
        !self.copies.is_empty()
    }

    pub(super) fn has_copy_from(&self, source: SourceId) -> bool {
        self.copies.iter().any(|(vote, _)| vote.source == source)
    }

    pub(super) fn votes(&self) -> Vec<Vote> {
        self.copies.iter().map(|(vote, _)| *vote).collect()
    }

    pub(super) fn add(&mut self, vote: Vote, bytes: Bytes) {
        let digest_is_known = |(other, _): &(Vote, _)| other.digest == vote.digest;
        let known = self.copies.iter().any(digest_is_known);
        self.copies.push((vote, (!known).then_some(bytes)));
    }

    /// Drops what those sent that are not `kept`; bytes that another one sent as well stay.
    pub(super) fn keep(&mut self, kept: impl Fn(SourceId) -> bool) {
        let mut dropped = Vec::new();
        self.copies.retain_mut(|(vote, bytes)| {
            let stays = kept(vote.source);
            if !stays {
                dropped.extend(bytes.take().map(|bytes| (vote.digest, bytes)));
            }
            stays
        });
        for (digest, orphaned) in dropped {
            let heir = self
                .copies
                .iter_mut()
                .find(|(vote, _)| vote.digest == digest);
            if let Some((_, bytes)) = heir {
                *bytes = Some(orphaned);
            }
        }
    }

    /// The bytes with this digest, and who sent them first.
    pub(super) fn take(self, digest: PieceDigest) -> Option<(SourceId, Bytes)> {
        let mut copies = self.copies.into_iter();
        let (vote, bytes) = copies.find(|(vote, _)| vote.digest == digest)?;
        Some((vote.source, bytes?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(source: SourceId, byte: u8) -> Vote {
        Vote {
            source,
            digest: [byte; 32],
        }
    }

    #[test]
    fn bytes_are_kept_once_and_outlive_whoever_sent_them_first() {
        let mut piece = Piece::default();
        piece.add(vote(0, 1), Bytes::from_static(b"right"));
        piece.add(vote(1, 2), Bytes::from_static(b"wrong"));
        piece.add(vote(2, 1), Bytes::from_static(b"right"));
        piece.keep(|source| source != 0);
        assert_eq!(piece.votes(), [vote(1, 2), vote(2, 1)]);
        assert_eq!(piece.take([1; 32]), Some((2, Bytes::from_static(b"right"))));
    }
}
