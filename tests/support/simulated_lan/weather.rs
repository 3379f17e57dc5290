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

/// The shortest time a datagram takes, the answer of the store included.
const LEAST_DELAY: Duration = Duration::from_micros(100);

/// What the network does to datagrams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// Percent of the datagrams that do not arrive; of a broadcast at each host by itself.
    pub(crate) loss: u64,
    /// Percent that arrive twice.
    pub(crate) duplicates: u64,
    /// How much longer than the least delay a datagram may take; each draws its own.
    pub(crate) delay: Duration,
    /// Percent that may overtake what the same host sent to the same host before.
    pub(crate) reordered: u64,
}

pub(crate) const FAIR: Weather = Weather {
    loss: 0,
    duplicates: 0,
    delay: Duration::from_micros(900),
    reordered: 0,
};

impl Weather {
    /// How long a datagram is on its way.
    pub(crate) fn delay(&self, draws: &mut Draws) -> Duration {
        let longest = self.delay.as_micros() as u64;
        LEAST_DELAY + Duration::from_micros(draws.below(longest.max(1)))
    }

    /// There and back.
    pub(crate) fn round_trip(&self, draws: &mut Draws) -> Duration {
        self.delay(draws) + self.delay(draws)
    }

    pub(crate) fn longest_round_trip(&self) -> Duration {
        (LEAST_DELAY + self.delay) * 2
    }
}
