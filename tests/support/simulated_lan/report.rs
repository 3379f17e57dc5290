//! What lookups cost and found, and whether that is within the limits.

use std::{fmt, time::Duration};

use super::{Lan, gateway::Gateway};

/// Times, sorted when they are looked at.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    /// The time that this part of 1,000 does not exceed; zero if there are no times.
    pub(crate) fn quantile(&self, thousandths: usize) -> Duration {
        let mut times = self.0.clone();
        times.sort_unstable();
        let place = (times.len() * thousandths).div_ceil(1_000);
        let time = times.get(place.saturating_sub(1));
        time.copied().unwrap_or_default()
    }

    pub(crate) fn longest(&self) -> Duration {
        self.0.iter().copied().max().unwrap_or_default()
    }
}

/// The figures of one run, or of several.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) lookups: usize,
    /// Paths that a host held from the question to the end, and how many of them were found.
    pub(crate) held: usize,
    pub(crate) found: usize,
    pub(crate) datagrams: u64,
    pub(crate) bytes: u64,
    pub(crate) by_type: Vec<(&'static str, u64)>,
    /// The most answers that one broadcast got.
    pub(crate) most_answers: u64,
    pub(crate) hits: Times,
    pub(crate) misses: Times,
    /// From the first question to the last answer.
    pub(crate) took: Duration,
}

/// What must hold; what is `None` is not limited.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// Of 1,000 paths that are held, so many are found at least.
    pub(crate) found: Option<f64>,
    pub(crate) datagrams: Option<f64>,
    pub(crate) answers: Option<u64>,
    pub(crate) longest_hit: Option<Duration>,
    pub(crate) miss_p99: Option<Duration>,
    pub(crate) took: Option<Duration>,
}

impl Report {
    pub(crate) fn of(lan: &Lan, gateway: &Gateway) -> Self {
        let mut report = Self::default();
        report.add(lan, gateway);
        report
    }

    /// Adds what another run cost and found.
    pub(crate) fn add(&mut self, lan: &Lan, gateway: &Gateway) {
        for asked in &gateway.asked {
            self.lookups += 1;
            self.held += usize::from(asked.is_held);
            self.found += usize::from(asked.is_held && asked.from.is_some());
            let times = match asked.from {
                Some(_) => &mut self.hits,
                None => &mut self.misses,
            };
            times.0.push(asked.took);
        }
        self.datagrams += lan.traffic.datagrams;
        self.bytes += lan.traffic.bytes;
        self.most_answers = self.most_answers.max(lan.traffic.most_answers());
        self.by_type = lan.traffic.by_type();
        self.took += lan.now - lan.start;
    }

    pub(crate) fn per_lookup(&self, count: u64) -> f64 {
        count as f64 / self.lookups.max(1) as f64
    }

    /// Percent of what was held.
    pub(crate) fn found_percent(&self) -> f64 {
        100.0 * self.found as f64 / self.held.max(1) as f64
    }

    /// What is not as it has to be.
    pub(crate) fn broken(&self, limits: &Limits) -> Vec<String> {
        let mut broken = Vec::new();
        let mut check = |name: &str, found: f64, most: Option<f64>, unit: &str| {
            if let Some(most) = most.filter(|&most| found > most) {
                broken.push(format!("{name}: {found:.3} {unit}, at most {most:.3}"));
            }
        };
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let lost = 1_000.0 * (self.held - self.found) as f64 / self.held.max(1) as f64;
        let lost_at_most = limits.found.map(|found| 1_000.0 - found);
        check("not found", lost, lost_at_most, "of 1,000");
        let datagrams = self.per_lookup(self.datagrams);
        check("datagrams", datagrams, limits.datagrams, "per lookup");
        let answers = limits.answers.map(|most| most as f64);
        check(
            "answers to one broadcast",
            self.most_answers as f64,
            answers,
            "",
        );
        let longest = self.hits.longest();
        check("longest hit", ms(longest), limits.longest_hit.map(ms), "ms");
        let p99 = self.misses.quantile(990);
        check("99 % of the misses", ms(p99), limits.miss_p99.map(ms), "ms");
        check("all", ms(self.took), limits.took.map(ms), "ms");
        broken
    }

    /// What the columns of [`Self::fmt`] are.
    pub(crate) const HEAD: &'static str = "   found %  datagr.  bytes  answers  hit p50    p99    max  miss p50    p99    max   took s";
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        write!(
            f,
            "{:10.3} {:8.3} {:6.0} {:8}",
            self.found_percent(),
            self.per_lookup(self.datagrams),
            self.per_lookup(self.bytes),
            self.most_answers,
        )?;
        for (times, width) in [(&self.hits, 8), (&self.misses, 9)] {
            let (half, most) = (times.quantile(500), times.quantile(990));
            let longest = times.longest();
            write!(f, " {:width$.2}", ms(half))?;
            write!(f, " {:6.2} {:6.1}", ms(most), ms(longest))?;
        }
        write!(f, " {:8.3}", self.took.as_secs_f64())
    }
}
