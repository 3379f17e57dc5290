//! `/metrics`: the same totals for Prometheus, in the OpenMetrics text format.

use std::{fmt, time::Instant};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use super::{
    App, Service,
    answer::{Answer, content},
    counters,
};
use crate::{
    finder::{
        self,
        caches::{CacheState, CacheStatus},
    },
    lan,
};

pub(super) fn answer(app: &App, service: &Service) -> Answer {
    let totals = Totals {
        served: app.counters.snapshot(),
        ready: service.finder().is_some(),
        found: service
            .finder()
            .map(|finder| finder.memory().counters.snapshot()),
        caches: service.finder().map_or_else(Vec::new, |finder| {
            finder.memory().caches.status(Instant::now())
        }),
        lan: service.finder().map(|finder| finder.lan_counters()),
        peers: service.finder().map_or(0, |finder| finder.peers().len()),
    };
    let mut registry = Registry::with_prefix("peerix");
    registry.register_collector(Box::new(totals));
    let mut body = String::new();
    if let Err(error) = text::encode(&mut body, &registry) {
        // Writing to a String cannot fail; a name that the format refuses would be ours.
        log::warn!("metrics are incomplete: {error}");
    }
    content(
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
        body,
    )
}

/// One scrape.
#[derive(Debug)]
struct Totals {
    served: counters::CountersSnapshot,
    ready: bool,
    found: Option<finder::CountersSnapshot>,
    caches: Vec<CacheStatus>,
    lan: Option<lan::Counters>,
    peers: usize,
}

impl Collector for Totals {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        gauge(
            encoder,
            "ready",
            "1 if the configuration is in order",
            i64::from(self.ready),
        )?;
        gauge(
            encoder,
            "peers",
            "Peers known",
            i64::try_from(self.peers).unwrap_or(i64::MAX),
        )?;
        let served = &self.served;
        counter(encoder, "served_nars", "NARs served to peers", served.nars)?;
        counter(
            encoder,
            "served_nar_bytes",
            "Bytes of NARs served to peers",
            served.nar_bytes,
        )?;
        counter(
            encoder,
            "shed_connections",
            "LAN connections closed for want of room",
            served.shed,
        )?;
        let answers = served.answers.iter();
        family(
            encoder,
            "answers",
            "Answers over HTTP, by route and status",
            answers.map(|((route, status), count)| {
                (
                    [("route", (*route).into()), ("status", status.to_string())],
                    *count,
                )
            }),
        )?;
        if let Some(found) = &self.found {
            counter(
                encoder,
                "lookup_hits",
                "Narinfo lookups that found the path",
                found.hits,
            )?;
            counter(
                encoder,
                "lookup_misses",
                "Narinfo lookups that did not",
                found.misses,
            )?;
            counter(
                encoder,
                "fetched_nars",
                "NARs fetched from peers",
                found.nars,
            )?;
            counter(
                encoder,
                "fetched_nar_bytes",
                "Bytes of NARs received from peers",
                found.nar_bytes,
            )?;
            counter(
                encoder,
                "corrupt_nars",
                "NARs with wrong bytes",
                found.corrupt,
            )?;
            counter(
                encoder,
                "failovers",
                "Times that a NAR went on from another holder",
                found.failovers,
            )?;
            counter(
                encoder,
                "hedged_narinfos",
                "Narinfos asked of one more peer because one was late",
                found.hedged,
            )?;
            for (name, help, value) in [
                (
                    "prefetched_narinfos",
                    "Narinfos fetched before Nix asked for them",
                    found.prefetched,
                ),
                (
                    "prefetched_narinfos_used",
                    "Narinfos fetched before Nix asked, which it then did",
                    found.prefetch_used,
                ),
                (
                    "prefetches_dropped",
                    "References not asked for ahead: too many, or Nix had gone",
                    found.prefetch_dropped,
                ),
            ] {
                counter(encoder, name, help, value)?;
            }
            let refused = found.refused.iter();
            family(
                encoder,
                "refused",
                "Narinfos and peers refused, by reason",
                refused.map(|(reason, count)| ([("reason", (*reason).to_owned())], *count)),
            )?;
        }
        self.encode_caches(encoder)?;
        if let Some(lan) = &self.lan {
            counter(encoder, "datagrams_sent", "UDP datagrams sent", lan.io.sent)?;
            counter(
                encoder,
                "datagrams_received",
                "UDP datagrams received",
                lan.discovery.received,
            )?;
            let ended = lan.discovery.ended().into_iter();
            family(
                encoder,
                "lookups_ended",
                "Lookups that ended, by how",
                ended.map(|(how, count)| ([("how", how.to_owned())], count)),
            )?;
            counter(
                encoder,
                "asks_repeated",
                "Hashes asked again because no answer had come",
                lan.discovery.repeated,
            )?;
            counter(
                encoder,
                "broadcasts",
                "Broadcasts that ask who is there, or for what a sample of a large LAN lacks",
                lan.discovery.discoveries + lan.discovery.broadcasts_sent,
            )?;
            counter(
                encoder,
                "rate_limited",
                "Datagrams over the limit of their source",
                lan.discovery.rate_limited,
            )?;
            counter(
                encoder,
                "requests_dropped",
                "Asks of peers that the store had no time for",
                lan.io.requests_dropped,
            )?;
            let rejected = lan.discovery.rejected();
            family(
                encoder,
                "datagrams_rejected",
                "Datagrams rejected, by reason",
                rejected.map(|(reason, count)| ([("reason", reason.as_str().to_owned())], count)),
            )?;
        }
        Ok(())
    }
}

impl Totals {
    fn encode_caches(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut states = encoder.encode_descriptor(
            "caches",
            "Plain binary caches known, by state",
            None,
            MetricType::Gauge,
        )?;
        for state in CacheState::ALL {
            let count = self.caches.iter().filter(|cache| cache.state == state);
            let count = i64::try_from(count.count()).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(states.encode_family(&[("state", state.as_str())])?)?;
        }
        let answers = self.caches.iter().flat_map(|cache| {
            let kinds = cache.answers.by_kind().into_iter();
            kinds.map(|(answer, count)| {
                (
                    [("cache", cache.url.clone()), ("answer", answer.to_owned())],
                    count,
                )
            })
        });
        family(
            encoder,
            "cache_answers",
            "Narinfo lookups at plain binary caches, by cache and what came of them",
            answers,
        )
    }
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    let encoder = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    ConstCounter::new(value).encode(encoder)
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: i64) -> fmt::Result {
    let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(encoder)
}

fn family<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    members: impl Iterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut encoder = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in members {
        ConstCounter::new(value).encode(encoder.encode_family(&labels)?)?;
    }
    Ok(())
}
