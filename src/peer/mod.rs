//! HTTP to one peer, or to a plain binary cache: fetch a narinfo, open a NAR at any byte. Owns the connections and their
//! clocks; decides nothing about trust and never follows where an answer points.
//!
//! Everything a peer sends is bounded here: connect time, head time, body size, stalls.

mod address;
mod connections;
mod digests;
mod nar_body;
mod plain_cache;
mod unpacked;

use std::{borrow::Cow, ops::Range, pin::pin, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use reqwest::{
    Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_RANGE, HOST, RANGE},
};

use tokio::time::{interval, timeout};

pub use digests::PieceDigests;
pub use nar_body::NarBody;
pub use plain_cache::Packing;

use crate::protocol::PeerAddr;
use connections::{Connection, Connections};

/// A peer of the same network accepts within one round trip; a host that is gone says nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// A narinfo is one database query away, and the daemon over there may have to start first.
const NARINFO_HEAD_TIMEOUT: Duration = Duration::from_millis(500);

/// The body of a narinfo, up to `limits.narinfo`, on a slow link.
const NARINFO_BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// A request without an answer for so long gets another one beside it on a fresh connection: the
/// kernel repeats a lost SYN only after 1 s, and a pooled connection may lead nowhere. With two of
/// them 195 of 200 paths were found on a link with 5 % loss and 20 ms.
const ANOTHER_CONNECTION_AFTER: Duration = Duration::from_millis(100);
const MOST_CONNECTIONS: usize = 3;

/// The head of a NAR answer comes after the holder has listed the path's files.
const NAR_HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Idle connections end before the holder's own limit ends them.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a peer did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// No connection.
    #[error("cannot connect to {peer}")]
    Connect {
        /// The peer.
        peer: PeerAddr,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
    /// No answer in time.
    #[error("{peer} did not answer within {}ms", limit.as_millis())]
    Late {
        /// The peer.
        peer: PeerAddr,
        /// What it was given.
        limit: Duration,
    },
    /// An answer other than 200 or 206.
    #[error("{peer} answered {status}")]
    Status {
        /// The peer.
        peer: PeerAddr,
        /// Its answer.
        status: StatusCode,
    },
    /// A body that is longer than it may be, or of another length than the NAR.
    #[error("{peer} announced {found} bytes where {expected} are right")]
    Length {
        /// The peer.
        peer: PeerAddr,
        /// The upper bound, or the exact length.
        expected: u64,
        /// What it announced or sent.
        found: u64,
    },
    /// A range answer for other bytes than asked, or an encoded body.
    #[error("{peer} answered with other bytes than it was asked for")]
    OtherBytes {
        /// The peer.
        peer: PeerAddr,
    },
    /// A zstd file that is none, or that takes more memory than it may.
    #[error("{peer} sent what cannot be unpacked")]
    Packed {
        /// The cache.
        peer: PeerAddr,
        /// What is wrong with it.
        #[source]
        source: std::io::Error,
    },
    /// A body that broke off, or did not come to its end in time.
    #[error("{peer} began an answer and did not end it")]
    Incomplete {
        /// The peer.
        peer: PeerAddr,
    },
    /// The connection broke.
    #[error("the connection to {peer} broke")]
    Broken {
        /// The peer.
        peer: PeerAddr,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
}

impl PeerError {
    /// Whether the same request may succeed in a moment: the daemon over there restarts, or
    /// has no room. Wrong bytes do not become right.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Late { .. } | Self::Broken { .. } => true,
            Self::Incomplete { .. } => true,
            Self::Status { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
            Self::Length { .. } | Self::OtherBytes { .. } | Self::Packed { .. } => false,
        }
    }

    /// Whether there was no connection, or none that led to an answer.
    pub fn is_transport(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. } | Self::Late { .. } | Self::Broken { .. }
        )
    }

    /// A word for metrics and the journal.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "unreachable",
            Self::Late { .. } => "late",
            Self::Status { .. } => "refused",
            Self::Length { .. } => "wrong-length",
            Self::OtherBytes { .. } => "other-bytes",
            Self::Packed { .. } => "not-unpacked",
            Self::Broken { .. } | Self::Incomplete { .. } => "broken",
        }
    }
}

/// The client. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    http: Connections,
    /// For what comes packed.
    memory: unpacked::Memory,
}

/// A narinfo whose headers have come.
#[derive(Debug)]
pub struct NarinfoBody {
    peer: PeerAddr,
    response: Response,
}

impl NarinfoBody {
    /// All of it, at most `limit` bytes.
    pub async fn read(self, limit: u64) -> Result<Bytes, PeerError> {
        let Self { peer, response } = self;
        match timeout(NARINFO_BODY_TIMEOUT, whole(peer, response, limit)).await {
            Ok(Err(PeerError::Broken { .. })) | Err(_) => Err(PeerError::Incomplete { peer }),
            Ok(body) => body,
        }
    }
}

/// What is asked, and where.
struct Target<'a> {
    peer: PeerAddr,
    /// The `Host` header, if it is not the address.
    host: Option<&'a str>,
    /// Without the leading slash.
    path: Cow<'a, str>,
}

impl Client {
    /// A client that ignores proxies of the environment, follows no redirect, decodes
    /// nothing and speaks HTTP/1.1.
    pub fn new() -> Result<Self, reqwest::Error> {
        Ok(Self {
            http: Connections::new()?,
            memory: unpacked::Memory::default(),
        })
    }

    /// Says how often our networks have been interrupted so far. Connections from before the
    /// last time are not used any more.
    pub fn renew(&self, interruptions: u64) {
        self.http.renew(interruptions);
    }

    /// Asks `peer` for the narinfo behind `path`; its body comes with [`NarinfoBody::read`].
    pub async fn narinfo(&self, peer: PeerAddr, path: &str) -> Result<NarinfoBody, PeerError> {
        let target = Target::of_peer(peer, path);
        let sent = self.send(&target, None);
        let response = within(peer, NARINFO_HEAD_TIMEOUT, sent).await?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            return Err(PeerError::Status { peer, status });
        }
        Ok(NarinfoBody { peer, response })
    }

    /// Whether `peer`, which did not answer, answers a request on a fresh connection.
    pub async fn is_reachable(&self, peer: PeerAddr) -> bool {
        let target = Target::of_peer(peer, "nix-cache-info");
        let sent = self.send_once(&target, None, Connection::Fresh);
        let is_reachable = within(peer, NARINFO_HEAD_TIMEOUT, sent).await.is_ok();
        if is_reachable {
            // Connections from before it was out of reach may hang until the kernel tries again.
            self.http.give_up_pooled();
        }
        is_reachable
    }

    /// Opens `range`, not empty, of the NAR of `size` bytes behind `path`. A holder without
    /// ranges is read from its start; what comes before the range is dropped in [`NarBody`].
    pub async fn nar(
        &self,
        peer: PeerAddr,
        path: &str,
        range: Range<u64>,
        size: u64,
    ) -> Result<NarBody, PeerError> {
        self.nar_at(&Target::of_peer(peer, path), range, size).await
    }

    async fn nar_at(
        &self,
        target: &Target<'_>,
        range: Range<u64>,
        size: u64,
    ) -> Result<NarBody, PeerError> {
        let peer = target.peer;
        let partial = range != (0..size);
        let range_sent = partial.then_some(&range);
        // The head of a NAR may take its holder some time. A second request would double that work,
        // and caches have few connections.
        let is_slow = target.host.is_some() || self.http.has_just_answered(peer);
        let response = if is_slow {
            within(peer, NAR_HEAD_TIMEOUT, self.send_to(target, range_sent)).await?
        } else {
            within(peer, NAR_HEAD_TIMEOUT, self.send(target, range_sent)).await?
        };
        if response.headers().contains_key(CONTENT_ENCODING) {
            return Err(PeerError::OtherBytes { peer });
        }
        let wanted = range.end - range.start;
        let (skip, expected) = match response.status() {
            StatusCode::OK => (range.start, size),
            StatusCode::PARTIAL_CONTENT if partial && is_range(&response, &range, size) => {
                (0, wanted)
            }
            StatusCode::PARTIAL_CONTENT => return Err(PeerError::OtherBytes { peer }),
            status => return Err(PeerError::Status { peer, status }),
        };
        match response.content_length() {
            Some(found) if found != expected => Err(PeerError::Length {
                peer,
                expected,
                found,
            }),
            _ => {
                let sent = response
                    .bytes_stream()
                    .map(move |piece| piece.map_err(|source| PeerError::Broken { peer, source }));
                let beyond = expected - skip - wanted;
                Ok(NarBody::new(peer, Box::pin(sent), skip, wanted, beyond))
            }
        }
    }

    /// Sends a request to a peer. One that has no answer after [`ANOTHER_CONNECTION_AFTER`] is sent
    /// again on a fresh connection, and once more; whichever is answered first counts.
    async fn send(
        &self,
        target: &Target<'_>,
        range: Option<&Range<u64>>,
    ) -> Result<Response, PeerError> {
        let mut first = pin!(self.send_to(target, range));
        if let Ok(sent) = timeout(ANOTHER_CONNECTION_AFTER, first.as_mut()).await {
            return sent;
        }
        let mut sent = FuturesUnordered::new();
        sent.push(first.map(|sent| (Connection::Pooled, sent)).boxed());
        let mut count = 1;
        // The first tick is at once.
        let mut again = interval(ANOTHER_CONNECTION_AFTER);
        loop {
            tokio::select! {
                biased;
                _ = again.tick(), if count < MOST_CONNECTIONS => {
                    let next = self.send_once(target, range, Connection::Fresh);
                    sent.push(next.map(|sent| (Connection::Fresh, sent)).boxed());
                    count += 1;
                }
                Some((connection, result)) = sent.next() => match result {
                    Ok(response) => {
                        if connection == Connection::Fresh {
                            self.http.record_fresh_was_first();
                        }
                        return Ok(response);
                    }
                    Err(error) if sent.is_empty() => return Err(error),
                    Err(_) => {}
                },
            }
        }
    }

    /// Sends a request; once more if the connection broke before an answer, as one that was
    /// kept open does when the daemon over there has gone to sleep in between.
    async fn send_to(
        &self,
        target: &Target<'_>,
        range: Option<&Range<u64>>,
    ) -> Result<Response, PeerError> {
        match self.send_once(target, range, Connection::Pooled).await {
            Err(PeerError::Broken { .. }) => self.send_once(target, range, Connection::Fresh).await,
            sent => sent,
        }
    }

    async fn send_once(
        &self,
        target: &Target<'_>,
        range: Option<&Range<u64>>,
        connection: Connection,
    ) -> Result<Response, PeerError> {
        let peer = target.peer;
        let url = address::url(peer.socket_addr(), &target.path);
        let request = self.http.get(connection, url);
        let mut request = match target.host {
            Some(host) => request.header(HOST, host),
            None => request.header(HOST, address::host(peer.socket_addr())),
        };
        if let Some(range) = range {
            request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        }
        let sent = request.send().await;
        if sent.is_ok() {
            self.http.record_answer(peer, connection);
        }
        sent.map_err(|source| sort(peer, source))
    }
}

/// What comes of `sent` within `limit`.
async fn within(
    peer: PeerAddr,
    limit: Duration,
    sent: impl Future<Output = Result<Response, PeerError>>,
) -> Result<Response, PeerError> {
    let sent = timeout(limit, sent).await;
    sent.unwrap_or(Err(PeerError::Late { peer, limit }))
}

/// Why there is no answer.
fn sort(peer: PeerAddr, source: reqwest::Error) -> PeerError {
    if source.is_connect() {
        PeerError::Connect { peer, source }
    } else {
        PeerError::Broken { peer, source }
    }
}

impl<'a> Target<'a> {
    fn of_peer(peer: PeerAddr, path: &'a str) -> Self {
        Self {
            peer,
            host: None,
            path: path.into(),
        }
    }
}

/// Collects a body of at most `limit` bytes, whatever length it announced.
async fn whole(peer: PeerAddr, response: Response, limit: u64) -> Result<Bytes, PeerError> {
    let too_long = |found| PeerError::Length {
        peer,
        expected: limit,
        found,
    };
    if let Some(found) = response.content_length().filter(|length| *length > limit) {
        return Err(too_long(found));
    }
    let mut collected = BytesMut::new();
    let mut body = response.bytes_stream();
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|source| PeerError::Broken { peer, source })?;
        let found = collected.len() as u64 + piece.len() as u64;
        if found > limit {
            return Err(too_long(found));
        }
        collected.extend_from_slice(&piece);
    }
    Ok(collected.freeze())
}

/// Whether the answer's `Content-Range` is `bytes FIRST-LAST/SIZE` with our numbers.
fn is_range(response: &Response, range: &Range<u64>, size: u64) -> bool {
    let expected = format!("bytes {}-{}/{size}", range.start, range.end - 1);
    response
        .headers()
        .get(CONTENT_RANGE)
        .is_some_and(|value| value.as_bytes() == expected.as_bytes())
}

#[cfg(test)]
mod tests;
