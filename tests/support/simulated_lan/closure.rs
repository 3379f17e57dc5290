//! What is asked for, and who has it.

use std::collections::BTreeSet;

use super::{Lan, weather::Draws};

/// How a closure is spread over the hosts, in percent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mix {
    /// Paths that nobody has.
    pub(crate) missing: u64,
    /// Paths that exactly one host has.
    pub(crate) rare: u64,
    /// How much of the other paths a host has, on average; each between half and one and a half
    /// of this.
    pub(crate) share: u64,
}

impl Mix {
    pub(crate) const USUAL: Self = Self {
        missing: 20,
        rare: 30,
        share: 60,
    };
    /// Nobody has anything.
    pub(crate) const NONE: Self = Self {
        missing: 100,
        rare: 0,
        share: 0,
    };
    /// Exactly one host has each path.
    pub(crate) const ONE: Self = Self {
        missing: 0,
        rare: 100,
        share: 0,
    };
    /// Every host has everything.
    pub(crate) const ALL: Self = Self {
        missing: 0,
        rare: 0,
        share: 200,
    };

    /// What each of `hosts` hosts has of the paths 0 to `paths`.
    pub(crate) fn deal(self, draws: &mut Draws, hosts: usize, paths: u32) -> Vec<Vec<u32>> {
        let mut hands = vec![Vec::new(); hosts];
        let shares: Vec<u64> = (0..hosts)
            .map(|_| (self.share / 2 + draws.below(self.share + 1)).min(100))
            .collect();
        for path in 0..paths {
            let kind = draws.below(100);
            if hosts == 0 || kind < self.missing {
                continue;
            }
            if kind < self.missing + self.rare {
                hands[draws.below(hosts as u64) as usize].push(path);
                continue;
            }
            for (hand, &share) in hands.iter_mut().zip(&shares) {
                if draws.percent(share) {
                    hand.push(path);
                }
            }
        }
        hands
    }
}

/// The paths 0 to `paths`, in the order in which they are asked for.
pub(crate) fn order(draws: &mut Draws, paths: u32) -> Vec<u32> {
    let mut order: Vec<u32> = (0..paths).collect();
    for place in (1..order.len()).rev() {
        order.swap(place, draws.below(place as u64 + 1) as usize);
    }
    order
}

/// Hosts beside `asker` that hold `path` and serve it, asleep or not.
pub(crate) fn holders(lan: &Lan, asker: usize, path: u32) -> BTreeSet<usize> {
    let hosts = lan.hosts.iter().enumerate();
    hosts
        .filter(|(number, host)| {
            let serves = !host.is_off() && !host.is_http_stuck && host.known_from <= lan.now;
            *number != asker && serves && host.holds.contains(path)
        })
        .map(|(number, _)| number)
        .collect()
}
