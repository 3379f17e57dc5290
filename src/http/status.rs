//! `/status`: what this daemon does and knows, as JSON, for people and `peerix status`.

use std::{collections::BTreeMap, time::Instant};

use serde_json::{Value, json};

use super::{
    App, Service, State,
    answer::{Answer, content},
};
use crate::finder::Finder;

pub(super) fn answer(app: &App, service: &Service) -> Answer {
    let mut status = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "state": "ready",
        "uptime-seconds": app.started.elapsed().as_secs(),
        "store-dir": service.config.store.dir.as_str(),
        "served": app.counters.snapshot(),
    });
    if let Some(trouble) = app.trouble() {
        status["trouble"] = trouble.into();
    }
    match &service.state {
        State::Ready(finder) => describe(finder, &mut status),
        State::Degraded { why } => {
            status["state"] = "degraded".into();
            status["reason"] = why.as_str().into();
        }
    }
    content("application/json", format!("{status:#}\n"))
}

fn describe(finder: &Finder, status: &mut Value) {
    let memory = finder.memory();
    let peers = finder.peers().into_iter();
    status["holdings"] = finder.holdings().store.status().to_string().into();
    status["fetched"] = json!(memory.counters.snapshot());
    status["caches"] = json!(memory.caches.status(Instant::now()));
    status["banned"] = json!(memory.health.bans(Instant::now()));
    status["peers"] = peers
        .map(|peer| {
            json!({
                "address": peer.address.to_string(),
                "http": peer.http.map(|http| http.to_string()),
                "kind": peer.kind,
                "instance": peer.instance.map(|it| format!("{it:016x}")),
                "configured": peer.is_configured,
                "announced": peer.is_announced,
                "live": peer.is_live,
                "heard-seconds-ago": peer.heard.map(|heard| heard.as_secs()),
                "round-trip-ms": peer.round_trip.map(|it| it.as_secs_f64() * 1_000.0),
                "present": peer.present,
                "absent": peer.absent,
                "waited-for": peer.is_waited_for,
            })
        })
        .collect();
    let lan = finder.lan_counters();
    let warnings = finder.lan_warnings();
    if !warnings.is_empty() {
        status["warnings"] = json!(warnings);
    }
    status["discovery"] = json!({
        "bursts": lan.discovery.bursts,
        "lookups": lan.discovery.lookups,
        "lookups-ended": json!(BTreeMap::from_iter(lan.discovery.ended())),
        "asks-repeated": lan.discovery.repeated,
        "broadcasts": lan.discovery.discoveries + lan.discovery.broadcasts_sent,
        "datagrams-sent": lan.io.sent,
        "datagrams-received": lan.discovery.received,
        "answered-present": lan.io.answered_present,
        "answered-absent": lan.io.answered_absent,
        "rate-limited": lan.discovery.rate_limited,
        "requests-dropped": lan.io.requests_dropped,
    });
}
