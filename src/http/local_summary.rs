//! `/summary`, also under `/local`: which paths are shared, in nine to ten bits each
//! (docs/protocol.md, "Summaries").

use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use hyper::{
    HeaderMap, Request,
    header::{HeaderValue, IF_NONE_MATCH},
};

use super::{
    Service,
    answer::{Answer, Refusal, not_modified, octets, tagged},
};
use crate::{
    protocol::summary::{Stamp, Summary},
    store::SummaryError,
    system::journal::chain,
};

/// The bytes of the latest summary, which all who ask for it share: it may have a megabyte.
#[derive(Debug, Default)]
pub(super) struct Encoded(Mutex<(Weak<Summary>, Bytes)>);

impl Encoded {
    fn of(&self, summary: &Arc<Summary>) -> Bytes {
        let mut latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::ptr::eq(latest.0.as_ptr(), Arc::as_ptr(summary)) {
            *latest = (Arc::downgrade(summary), summary.encode().into());
        }
        latest.1.clone()
    }
}

pub(super) async fn answer<B>(
    service: &Service,
    encoded: &Encoded,
    request: &Request<B>,
) -> Result<Answer, Refusal> {
    let finder = service.finder().ok_or(Refusal::NotFound)?;
    let holdings = finder.holdings();
    let generation = holdings.store.generation().await;
    let generation = generation.map_err(|error| refuse(error.into()))?;
    let stamp = Stamp {
        generation,
        ..finder.stamp()
    };
    if is_known(request.headers(), &stamp) {
        return Ok(tagged(not_modified(), stamp.etag()));
    }
    if let Some(since) = since(request.uri().query()) {
        let news = holdings.store.news(&holdings.share, stamp, since).await;
        if let Some(news) = news.map_err(refuse)? {
            return Ok(tagged(octets(news.encode().into()), news.stamp.etag()));
        }
    }
    let summary = holdings.store.summary(&holdings.share, stamp).await;
    let summary = summary.map_err(refuse)?;
    Ok(tagged(octets(encoded.of(&summary)), summary.stamp().etag()))
}

fn refuse(error: SummaryError) -> Refusal {
    log::debug!("no summary for a peer: {}", chain(&error));
    match error {
        SummaryError::TooMany | SummaryError::Filter(_) => Refusal::NotFound,
        SummaryError::Unfinished | SummaryError::Store(_) | SummaryError::BrokenOff => {
            Refusal::Busy
        }
    }
}

/// Whether the asker has what we have now.
fn is_known(headers: &HeaderMap, now: &Stamp) -> bool {
    let etag = now.etag();
    let is_now = |tag: &str| {
        let tag = tag.trim();
        tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag
    };
    let known = headers.get_all(IF_NONE_MATCH).iter();
    known
        .filter_map(|header: &HeaderValue| header.to_str().ok())
        .any(|tags| tags.split(',').any(is_now))
}

/// The generation after which the new paths alone are asked for.
fn since(query: Option<&str>) -> Option<u64> {
    let mut fields = query?.split('&');
    fields.find_map(|field| field.strip_prefix("since=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_encoded_once_for_all() {
        let stamp = Stamp {
            instance: 1,
            rule: 2,
            generation: 3,
        };
        let summary = |keys: std::ops::Range<u64>| {
            Arc::new(Summary::build(stamp, keys.collect()).expect("a summary"))
        };
        let (encoded, first, second) = (Encoded::default(), summary(0..10), summary(0..20));
        let bytes = encoded.of(&first);
        assert_eq!(bytes, first.encode());
        assert_eq!(encoded.of(&first).as_ptr(), bytes.as_ptr());
        assert_eq!(encoded.of(&second), second.encode());
    }

    #[test]
    fn a_tag_is_known_in_every_form() {
        let now = Stamp {
            instance: 1,
            rule: 2,
            generation: 3,
        };
        let etag = now.etag();
        for (header, known) in [
            (etag.clone(), true),
            (format!("W/{etag}"), true),
            (format!("\"x\", {etag}"), true),
            ("*".to_owned(), true),
            ("\"x\"".to_owned(), false),
            (etag.replace('3', "4"), false),
        ] {
            let value = header.parse().expect("header");
            let headers = HeaderMap::from_iter([(IF_NONE_MATCH, value)]);
            assert_eq!(is_known(&headers, &now), known, "{header}");
        }
        assert!(!is_known(&HeaderMap::new(), &now));
    }

    #[test]
    fn a_generation_is_a_number() {
        for (query, generation) in [
            (Some("since=7"), Some(7)),
            (Some("a=b&since=7&c"), Some(7)),
            (Some("since=-7"), None),
            (Some("since="), None),
            (Some("since=99999999999999999999"), None),
            (Some(""), None),
            (None, None),
        ] {
            assert_eq!(since(query), generation, "{query:?}");
        }
    }
}
