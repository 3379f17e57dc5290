//! HTTP to a binary cache that is no peer: below its own host name and prefix, and its NARs may be
//! packed with zstd.

use std::{ops::Range, time::Duration};

use bytes::Bytes;
use reqwest::{Response, StatusCode, header::CONTENT_ENCODING};

use super::{Client, NAR_HEAD_TIMEOUT, NarBody, PeerError, Target, unpacked::Unpacked, whole};
use crate::{format::narinfo::NarUrl, protocol::PlainCache};

/// How a plain cache keeps a NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// As it is.
    None,
    /// In a zstd file, of a size that the cache may have told.
    Zstd {
        /// Bytes of the file.
        file_size: Option<u64>,
    },
}

impl Client {
    /// The body of the file `name` of `cache`, at most `limit` bytes, if it comes `within` that
    /// time.
    pub async fn cache_file(
        &self,
        cache: &PlainCache,
        name: &str,
        limit: u64,
        within: Duration,
    ) -> Result<Bytes, PeerError> {
        let peer = cache.address;
        let fetch = async {
            let response = self.send_to(&target(cache, name), None).await?;
            match response.status() {
                StatusCode::OK => whole(peer, response, limit).await,
                status => {
                    let error = PeerError::Status { peer, status };
                    // The connection is of use again once the body has been read.
                    whole(peer, response, limit).await.ok();
                    Err(error)
                }
            }
        };
        tokio::time::timeout(within, fetch)
            .await
            .unwrap_or(Err(PeerError::Late {
                peer,
                limit: within,
            }))
    }

    /// Opens `range`, not empty, of the NAR of `size` bytes that `cache` keeps at `url`. One that
    /// is packed is read from its start.
    pub async fn cache_nar(
        &self,
        cache: &PlainCache,
        url: &NarUrl,
        packing: Packing,
        range: Range<u64>,
        size: u64,
    ) -> Result<NarBody, PeerError> {
        let target = target(cache, url.as_str());
        match packing {
            Packing::None => self.nar_at(&target, range, size).await,
            Packing::Zstd { file_size } => {
                let opened = async {
                    let response = self.send_to(&target, None).await?;
                    self.unpack(&target, response, file_size, size).await
                };
                let peer = target.peer;
                let unpacked = tokio::time::timeout(NAR_HEAD_TIMEOUT, opened)
                    .await
                    .unwrap_or(Err(PeerError::Late {
                        peer,
                        limit: NAR_HEAD_TIMEOUT,
                    }))?;
                let (skip, wanted) = (range.start, range.end - range.start);
                let beyond = size - range.end;
                let sent = Box::pin(unpacked);
                Ok(NarBody::new(peer, sent, skip, wanted, beyond))
            }
        }
    }

    async fn unpack(
        &self,
        target: &Target<'_>,
        response: Response,
        file_size: Option<u64>,
        size: u64,
    ) -> Result<Unpacked, PeerError> {
        let peer = target.peer;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::PARTIAL_CONTENT => return Err(PeerError::OtherBytes { peer }),
            status => return Err(PeerError::Status { peer, status }),
        }
        if response.headers().contains_key(CONTENT_ENCODING) {
            return Err(PeerError::OtherBytes { peer });
        }
        if let (Some(found), Some(expected)) = (response.content_length(), file_size)
            && found != expected
        {
            return Err(PeerError::Length {
                peer,
                expected,
                found,
            });
        }
        let raw = Box::pin(response.bytes_stream());
        Unpacked::open(peer, raw, file_size, size, &self.memory).await
    }
}

fn target<'a>(cache: &'a PlainCache, name: &str) -> Target<'a> {
    Target {
        peer: cache.address,
        host: Some(&cache.host),
        path: format!("{}{name}", cache.prefix).into(),
    }
}
