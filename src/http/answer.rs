//! Answers: the few shapes that there are, and the one place where a failure becomes a status.

use hyper::{
    Response, StatusCode,
    header::{
        ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName,
        HeaderValue, RETRY_AFTER,
    },
};

use super::{body::Body, range::Part};
use crate::format::NarHash;

/// Who gave the bytes of a NAR: an address, or `self`.
pub(super) const PEER: HeaderName = HeaderName::from_static("x-peerix-peer");

/// A NAR slot or a turn frees up within about this many seconds.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("1");

pub(super) type Answer = Response<Body>;

/// Why a request gets no content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// No such route, or nobody has it.
    NotFound,
    /// Not for this client.
    Forbidden,
    /// Something other than GET or HEAD.
    Method,
    /// A range beyond the end of `size` bytes.
    Range {
        /// Size of the NAR.
        size: u64,
    },
    /// What the LAN may have at a time is taken: NAR slots, or turns for digests.
    Busy,
}

impl Refusal {
    fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Range { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl From<Refusal> for Answer {
    /// The body is the status phrase, so it cannot tell anything about this machine.
    fn from(refusal: Refusal) -> Self {
        let status = refusal.status();
        let mut answer = content("text/plain", status.canonical_reason().unwrap_or_default());
        *answer.status_mut() = status;
        match refusal {
            Refusal::Method => header(&mut answer, ALLOW, HeaderValue::from_static("GET, HEAD")),
            Refusal::Busy => header(&mut answer, RETRY_AFTER, RETRY_AFTER_SECONDS),
            Refusal::Range { size } => {
                header(&mut answer, CONTENT_RANGE, text(format!("bytes */{size}")))
            }
            Refusal::NotFound | Refusal::Forbidden => {}
        }
        answer
    }
}

/// 200 with a short body.
pub(super) fn content(kind: &'static str, body: impl Into<bytes::Bytes>) -> Answer {
    let body = body.into();
    let length = body.len();
    let mut answer = Response::new(Body::bytes(body));
    header(&mut answer, CONTENT_TYPE, HeaderValue::from_static(kind));
    header(&mut answer, CONTENT_LENGTH, length.into());
    answer
}

/// The head for a part of a NAR of `size` bytes; the body is added by the caller.
pub(super) fn nar_head(
    nar_hash: &NarHash,
    part: &std::ops::Range<u64>,
    size: u64,
    source: &str,
) -> Answer {
    let mut answer = Response::new(Body::bytes(bytes::Bytes::new()));
    header(
        &mut answer,
        CONTENT_TYPE,
        HeaderValue::from_static("application/x-nix-nar"),
    );
    header(&mut answer, CONTENT_LENGTH, (part.end - part.start).into());
    header(
        &mut answer,
        ACCEPT_RANGES,
        HeaderValue::from_static("bytes"),
    );
    header(&mut answer, ETAG, text(etag(nar_hash)));
    header(&mut answer, PEER, text(source.to_owned()));
    if *part != (0..size) {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        header(
            &mut answer,
            CONTENT_RANGE,
            text(format!("bytes {}-{}/{size}", part.start, part.end - 1)),
        );
    }
    answer
}

/// The head for `length` bytes that are not text; the body is added by the caller.
pub(super) fn octets_head(length: u64) -> Answer {
    let mut answer = content("application/octet-stream", bytes::Bytes::new());
    header(&mut answer, CONTENT_LENGTH, length.into());
    answer
}

/// The part of a NAR that a request's headers ask for, or why there is none.
pub(super) fn part(
    headers: &hyper::HeaderMap,
    nar_hash: &NarHash,
    size: u64,
) -> Result<std::ops::Range<u64>, Refusal> {
    use hyper::header::{IF_RANGE, RANGE};
    let same = headers
        .get(IF_RANGE)
        .is_none_or(|known| known.as_bytes() == etag(nar_hash).as_bytes());
    let range = headers.get(RANGE).filter(|_| same);
    match range.map_or(Part::Whole, |header| Part::parse(header.as_bytes(), size)) {
        Part::Whole => Ok(0..size),
        Part::Bytes(range) => Ok(range),
        Part::Unsatisfiable => Err(Refusal::Range { size }),
    }
}

/// A NAR never changes under its hash.
fn etag(nar_hash: &NarHash) -> String {
    format!("\"{nar_hash}\"")
}

fn header(answer: &mut Answer, name: HeaderName, value: HeaderValue) {
    answer.headers_mut().insert(name, value);
}

#[expect(
    clippy::expect_used,
    reason = "made of digits, nix-base32 and addresses"
)]
fn text(value: String) -> HeaderValue {
    value.try_into().expect("visible ASCII")
}
