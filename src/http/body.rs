//! Bodies of answers: fixed bytes, or a NAR under way. A body keeps its request open, for
//! the idle clock, until the last byte has gone or the client has.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::Stream;
use hyper::body::{Frame, SizeHint};

use super::{activity::OpenRequest, connection::NarUnderWay};

/// Why a NAR ended early; the connection is cut, and Nix resumes.
pub(super) type Cut = Box<dyn std::error::Error + Send + Sync>;

/// The bytes of a NAR as they come; whatever they need lives in the stream.
pub(super) type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, Cut>> + Send>>;

/// The body of an answer.
pub struct Body {
    content: Content,
    _open: Option<OpenRequest>,
    _pace: Option<NarUnderWay>,
}

enum Content {
    Bytes(Bytes),
    /// The pieces, and how many bytes are still to come.
    Nar(Pieces, u64),
}

/// A source of pieces that does not keep to the announced length.
#[derive(Debug, thiserror::Error)]
#[error("the NAR does not have the announced length")]
struct OtherLength;

impl Body {
    pub(super) fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self {
            content: Content::Bytes(bytes.into()),
            _open: None,
            _pace: None,
        }
    }

    /// Exactly `length` bytes from `pieces`.
    pub(super) fn nar(pieces: Pieces, length: u64) -> Self {
        Self {
            content: Content::Nar(pieces, length),
            _open: None,
            _pace: None,
        }
    }

    /// The same body, keeping `open` open.
    pub(super) fn of(mut self, open: OpenRequest) -> Self {
        self._open = Some(open);
        self
    }

    /// The same body, subject to the minimum rate.
    pub(super) fn at_pace(mut self, pace: Option<NarUnderWay>) -> Self {
        self._pace = pace;
        self
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let piece = match &mut self.content {
            Content::Bytes(bytes) if bytes.is_empty() => None,
            Content::Bytes(bytes) => Some(Ok(std::mem::take(bytes))),
            Content::Nar(pieces, left) => {
                match std::task::ready!(pieces.as_mut().poll_next(context)) {
                    Some(Ok(bytes)) => match left.checked_sub(bytes.len() as u64) {
                        Some(rest) => {
                            *left = rest;
                            Some(Ok(bytes))
                        }
                        None => Some(Err(OtherLength.into())),
                    },
                    None if *left > 0 => Some(Err(OtherLength.into())),
                    end => end,
                }
            }
        };
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.content, Content::Bytes(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Nar(_, left) => *left,
        })
    }
}
