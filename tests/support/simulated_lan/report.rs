//! What a burst of lookups cost and found, and whether that is within the limits.

use std::{fmt, time::Duration};

use peerix::protocol::End;

use super::{
    Lan,
    gateway::{Asked, Gateway},
    host::Speech,
};

/// Of what is there, so much has to be found.
const LEAST_FOUND: f64 = 0.999;

const MOST_DATAGRAMS: f64 = 2.0;

/// For a miss that summaries cover, beside the longest round trip.
const MOST_FOR_COVERED: Duration = Duration::from_millis(1);

/// Times, sorted.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    fn of(times: impl Iterator<Item = Duration>) -> Self {
        let mut times: Vec<Duration> = times.collect();
        times.sort_unstable();
        Self(times)
    }

    /// What so many percent do not exceed; none if there are no times.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let last = self.0.len().saturating_sub(1);
        let place = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(place.min(last)).copied().unwrap_or_default()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |percent| self.percentile(percent).as_secs_f64() * 1e3;
        write!(
            f,
            "p50 {:8.3} ms   p99 {:8.3} ms   of {}",
            ms(50),
            ms(99),
            self.count()
        )
    }
}

/// The figures of one burst.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) lookups: usize,
    /// Paths that hosts held which were awake all the time, and how many of them were found.
    pub(crate) held_awake: usize,
    pub(crate) found_awake: usize,
    /// The same of all hosts.
    pub(crate) held: usize,
    pub(crate) found: usize,
    pub(crate) datagrams: u64,
    pub(crate) bytes: u64,
    by_type: Vec<(&'static str, u64)>,
    pub(crate) summaries: u64,
    pub(crate) summary_bytes: u64,
    pub(crate) hits: Times,
    pub(crate) misses: Times,
    /// Misses that ended because summaries said so.
    pub(crate) covered: Times,
    pub(crate) round_trip: Duration,
    pub(crate) sleepers: usize,
    pub(crate) woken: usize,
    /// From the first question to the last answer.
    pub(crate) took: Duration,
}

impl Report {
    pub(crate) fn of(lan: &Lan, gateway: &Gateway) -> Self {
        let asked = &gateway.asked;
        let times = |of: &dyn Fn(&Asked) -> bool| {
            Times::of(asked.iter().filter(|&it| of(it)).map(|it| it.took))
        };
        let count = |of: &dyn Fn(&Asked) -> bool| asked.iter().filter(|&it| of(it)).count();
        let sleepers = lan.hosts.iter().filter(|host| host.was_asleep);
        let woken = |host: &&super::host::Host| !matches!(host.speech, Speech::Asleep { .. });
        Self {
            lookups: asked.len(),
            held_awake: count(&|it| it.is_held_awake),
            found_awake: count(&|it| it.is_held_awake && it.from.is_some()),
            held: count(&|it| it.is_held),
            found: count(&|it| it.is_held && it.from.is_some()),
            datagrams: lan.traffic.datagrams,
            bytes: lan.traffic.bytes,
            by_type: lan.traffic.by_type(),
            summaries: gateway.summary_fetches,
            summary_bytes: gateway.summary_bytes,
            hits: times(&|it| it.from.is_some()),
            misses: times(&|it| it.from.is_none()),
            covered: times(&|it| it.from.is_none() && it.end == Some(End::Covered)),
            round_trip: lan.weather.longest_round_trip(),
            sleepers: sleepers.clone().count(),
            woken: sleepers.filter(woken).count(),
            took: lan.now - lan.start,
        }
    }

    pub(crate) fn datagrams_per_lookup(&self) -> f64 {
        self.datagrams as f64 / self.lookups.max(1) as f64
    }

    /// Of what was held by hosts that were awake.
    pub(crate) fn found_part(&self) -> f64 {
        self.found_awake as f64 / self.held_awake.max(1) as f64
    }

    /// What is not as it has to be.
    pub(crate) fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        if self.held_awake > 0 && self.found_part() < LEAST_FOUND {
            broken.push(format!("found {:.2} %", self.found_part() * 100.0));
        }
        if self.datagrams_per_lookup() > MOST_DATAGRAMS {
            let each = self.datagrams_per_lookup();
            broken.push(format!("{each:.2} datagrams per lookup"));
        }
        let most = MOST_FOR_COVERED + self.round_trip;
        if self.covered.percentile(99) > most {
            let p99 = self.covered.percentile(99);
            broken.push(format!("{p99:?} for misses that summaries cover"));
        }
        broken
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per_lookup = |count: u64| count as f64 / self.lookups.max(1) as f64;
        let percent = |part: usize, of: usize| 100.0 * part as f64 / of.max(1) as f64;
        writeln!(
            f,
            "datagrams  {:8.3} per lookup   {} in all",
            self.datagrams_per_lookup(),
            self.datagrams
        )?;
        write!(f, "          ")?;
        for (name, count) in self.by_type.iter().filter(|(_, count)| *count > 0) {
            write!(f, " {name} {count}")?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "bytes      {:8.1} per lookup   {} in all",
            per_lookup(self.bytes),
            self.bytes
        )?;
        writeln!(
            f,
            "summaries  {:8.1} bytes per lookup   {} fetched, {} bytes",
            per_lookup(self.summary_bytes),
            self.summaries,
            self.summary_bytes
        )?;
        writeln!(f, "hits       {}", self.hits)?;
        writeln!(f, "misses     {}", self.misses)?;
        writeln!(f, "  covered  {}", self.covered)?;
        writeln!(
            f,
            "found      {:8.3} % of what awake peers hold ({} of {}), {:.3} % of all ({} of {})",
            percent(self.found_awake, self.held_awake),
            self.found_awake,
            self.held_awake,
            percent(self.found, self.held),
            self.found,
            self.held
        )?;
        writeln!(
            f,
            "woken      {:8} of {} sleepers",
            self.woken, self.sleepers
        )?;
        write!(f, "took       {:8.3} s", self.took.as_secs_f64())
    }
}
