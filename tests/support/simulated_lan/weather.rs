//! What the network does to datagrams, and the one generator that everything is drawn from.

use std::time::Duration;

/// A small generator (SplitMix64): the same seed gives the same run.
#[derive(Debug)]
pub(crate) struct Draws(pub(crate) u64);

impl Draws {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// What the network does to datagrams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// Percent of the datagrams that do not arrive; of a broadcast at each host by itself.
    pub(crate) loss: u64,
    /// Percent that arrive twice.
    pub(crate) duplicates: u64,
    /// The least time that a datagram takes, the answer of the store included.
    pub(crate) delay: Duration,
    /// How much longer a datagram may take; each draws its own.
    pub(crate) jitter: Duration,
    /// Percent that may overtake datagrams which the same host sent to the same host before.
    pub(crate) reordered: u64,
}

/// A switched network.
pub(crate) const WIRED: Weather = Weather {
    loss: 0,
    duplicates: 0,
    delay: Duration::from_micros(100),
    jitter: Duration::from_micros(100),
    reordered: 0,
};

impl Weather {
    /// How long a datagram is on its way.
    pub(crate) fn one_way(&self, draws: &mut Draws) -> Duration {
        let jitter = self.jitter.as_micros() as u64;
        self.delay + Duration::from_micros(draws.below(jitter + 1))
    }

    pub(crate) fn longest_round_trip(&self) -> Duration {
        (self.delay + self.jitter) * 2
    }
}
