//! The digests of a NAR's pieces at one peer, as they come (docs/protocol.md): 32 bytes each.

use std::{ops::ControlFlow, pin::Pin};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use reqwest::StatusCode;

use super::{Client, PeerError, Target};
use crate::protocol::{
    PeerAddr,
    pieces::{DIGEST_BYTES, PieceDigest},
};

/// What a peer says of the pieces of a NAR: as many digests as were asked for, or fewer and an
/// error.
pub struct PieceDigests {
    peer: PeerAddr,
    body: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send + Sync>>,
    /// The beginning of a digest.
    part: Vec<u8>,
    /// Digests still to come.
    left: u64,
}

impl Client {
    /// Asks `peer` for the `count` digests behind `path`. They come as the peer computes them.
    pub async fn piece_digests(
        &self,
        peer: PeerAddr,
        path: &str,
        count: u64,
    ) -> Result<PieceDigests, PeerError> {
        let response = self.send_to(&Target::of_peer(peer, path), None).await?;
        if response.status() != StatusCode::OK {
            return Err(PeerError::Status {
                peer,
                status: response.status(),
            });
        }
        let expected = count * DIGEST_BYTES as u64;
        match response.content_length() {
            Some(found) if found != expected => Err(PeerError::Length {
                peer,
                expected,
                found,
            }),
            _ => Ok(PieceDigests {
                peer,
                body: Box::pin(response.bytes_stream()),
                part: Vec::new(),
                left: count,
            }),
        }
    }
}

impl PieceDigests {
    /// The next digests, at least one; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<Vec<PieceDigest>, PeerError>> {
        while self.left > 0 {
            let Some(bytes) = self.body.next().await else {
                let missing = std::mem::take(&mut self.left);
                return Some(Err(PeerError::Length {
                    peer: self.peer,
                    expected: missing * DIGEST_BYTES as u64,
                    found: 0,
                }));
            };
            let taken = match bytes {
                Ok(bytes) => self.take(&bytes),
                Err(source) => {
                    self.left = 0;
                    let peer = self.peer;
                    return Some(Err(PeerError::Broken { peer, source }));
                }
            };
            if let ControlFlow::Break(taken) = taken {
                return Some(taken);
            }
        }
        None
    }

    /// Cuts what came into digests; goes on if it was less than one.
    fn take(&mut self, bytes: &[u8]) -> ControlFlow<Result<Vec<PieceDigest>, PeerError>> {
        self.part.extend_from_slice(bytes);
        let (whole, rest) = self.part.as_chunks::<DIGEST_BYTES>();
        let digests = whole.to_vec();
        self.part = rest.to_vec();
        let Some(left) = self.left.checked_sub(digests.len() as u64) else {
            let expected = std::mem::take(&mut self.left);
            return ControlFlow::Break(Err(PeerError::Length {
                peer: self.peer,
                expected,
                found: digests.len() as u64,
            }));
        };
        self.left = left;
        if digests.is_empty() {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(Ok(digests))
        }
    }
}
