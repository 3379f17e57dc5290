//! The summary of what one peer shares (docs/protocol.md, "Summaries").

use std::time::Duration;

use reqwest::{
    Response, StatusCode,
    header::{HOST, IF_NONE_MATCH},
};

use super::{Client, PeerError, address, sort, whole};
use crate::protocol::{
    PeerAddr,
    summary::{Content, MOST_BYTES, News, Stamp, Summary},
};

/// A peer makes its summary for up to 5 s before it says that this takes longer.
const SUMMARY_TIMEOUT: Duration = Duration::from_secs(6);

/// What a peer says of its summary.
#[derive(Debug)]
pub enum SummaryAnswer {
    /// The one that is known is up to date.
    NotModified,
    /// This came since.
    News(News),
    /// All of it.
    Whole(Summary),
}

impl Client {
    /// The summary of `peer`, or what has changed since the `known` one; at most `limit` bytes.
    pub async fn summary(
        &self,
        peer: PeerAddr,
        known: Option<Stamp>,
        limit: u64,
    ) -> Result<SummaryAnswer, PeerError> {
        let fetch = async {
            match self.fetch_summary(peer, known, limit).await {
                // By another rule than what is known: then that is of no use.
                Ok(SummaryAnswer::News(news))
                    if !known.is_some_and(|known| news.stamp.is_of_same(&known)) =>
                {
                    self.fetch_summary(peer, None, limit).await
                }
                answer => answer,
            }
        };
        tokio::time::timeout(SUMMARY_TIMEOUT, fetch)
            .await
            .unwrap_or(Err(PeerError::Late {
                peer,
                limit: SUMMARY_TIMEOUT,
            }))
    }

    async fn fetch_summary(
        &self,
        peer: PeerAddr,
        known: Option<Stamp>,
        limit: u64,
    ) -> Result<SummaryAnswer, PeerError> {
        // A connection that was kept open may have ended meanwhile.
        let response = match self.ask_for_summary(peer, known).await {
            Err(PeerError::Broken { .. }) => self.ask_for_summary(peer, known).await,
            answer => answer,
        }?;
        match response.status() {
            StatusCode::NOT_MODIFIED if known.is_some() => return Ok(SummaryAnswer::NotModified),
            StatusCode::OK => {}
            status => return Err(PeerError::Status { peer, status }),
        }
        let body = whole(peer, response, limit.min(MOST_BYTES)).await?;
        match Content::parse(&body) {
            Ok(Content::Whole(summary)) => Ok(SummaryAnswer::Whole(summary)),
            Ok(Content::News(news)) if known.is_some() => Ok(SummaryAnswer::News(news)),
            Ok(Content::News(_)) => Err(PeerError::OtherBytes { peer }),
            Err(error) => {
                log::debug!(peer:% = peer.ip(); "what {peer} sent is no summary: {error}");
                Err(PeerError::OtherBytes { peer })
            }
        }
    }

    async fn ask_for_summary(
        &self,
        peer: PeerAddr,
        known: Option<Stamp>,
    ) -> Result<Response, PeerError> {
        let path = match known {
            Some(known) => format!("local/summary?since={}", known.generation),
            None => "local/summary".to_owned(),
        };
        let mut request = self
            .http
            .get(address::url(peer.socket_addr(), &path))
            .header(HOST, address::host(peer.socket_addr()));
        if let Some(known) = known {
            request = request.header(IF_NONE_MATCH, known.etag());
        }
        request.send().await.map_err(|source| sort(peer, source))
    }
}
