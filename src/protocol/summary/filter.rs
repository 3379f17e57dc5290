//! A binary fuse filter over 64-bit keys with fingerprints of 8 bits: nine to ten bits a key, and one
//! in 256 keys that are not in it seems to be. Built by `xorf`; looked up here, because parameters that
//! come from a peer must not lead anywhere (docs/protocol.md, "Summaries", has the arithmetic).

use xorf::BinaryFuse8;

/// Largest segment, in fingerprints: what the construction uses for any number of keys.
const LONGEST_SEGMENT: u32 = 1 << 18;

/// Largest filter: one for a million keys has 1.1 MiB.
const MOST_FINGERPRINTS: usize = 2 << 20;

/// A set of keys that says yes to all of them, and to few others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    seed: u64,
    /// A power of two, or 0 for the filter without keys.
    segment: u32,
    /// A multiple of `segment`, at least three times that.
    fingerprints: Box<[u8]>,
}

/// No filter came about: unheard of with distinct keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no filter can be made of these keys")]
pub struct Unbuildable;

impl Filter {
    /// The filter of `keys`, which are sorted and freed of duplicates.
    pub fn build(keys: &mut Vec<u64>) -> Result<Self, Unbuildable> {
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() {
            return Ok(Self::empty());
        }
        let built = BinaryFuse8::try_from(&*keys).map_err(|_| Unbuildable)?;
        let BinaryFuse8 {
            descriptor,
            fingerprints,
        } = built;
        Self::new(
            descriptor.seed,
            descriptor.segment_length,
            descriptor.segment_count_length / descriptor.segment_length.max(1),
            &fingerprints,
        )
        .ok_or(Unbuildable)
    }

    fn empty() -> Self {
        Self {
            seed: 0,
            segment: 0,
            fingerprints: Box::default(),
        }
    }

    /// A filter of these parts, if they fit together: then every lookup stays within them.
    pub(super) fn new(seed: u64, segment: u32, segments: u32, fingerprints: &[u8]) -> Option<Self> {
        if fingerprints.len() != fingerprints_of(segment, segments)? {
            return None;
        }
        Some(Self {
            seed,
            segment,
            fingerprints: fingerprints.into(),
        })
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed
    }

    pub(super) fn segment(&self) -> u32 {
        self.segment
    }

    /// Segments in which a key's first fingerprint may be.
    pub(super) fn segments(&self) -> u32 {
        let all = (self.fingerprints.len() as u32).checked_div(self.segment);
        all.map_or(0, |all| all - 2)
    }

    pub(super) fn fingerprints(&self) -> &[u8] {
        &self.fingerprints
    }

    /// Whether `key` is in the set, as far as the filter can tell.
    pub fn contains(&self, key: u64) -> bool {
        let hash = mix(key.wrapping_add(self.seed));
        let (segment, mask) = (
            u64::from(self.segment),
            u64::from(self.segment).wrapping_sub(1),
        );
        let range = u128::from(self.segments()) * u128::from(self.segment);
        let first = ((u128::from(hash) * range) >> 64) as u64;
        let second = (first + segment) ^ ((hash >> 18) & mask);
        let third = (first + 2 * segment) ^ (hash & mask);
        let at = |index: u64| self.fingerprints.get(usize::try_from(index).ok()?).copied();
        let (Some(first), Some(second), Some(third)) = (at(first), at(second), at(third)) else {
            return false;
        };
        first ^ second ^ third == (hash ^ (hash >> 32)) as u8
    }
}

/// The number of fingerprints of a filter with these parameters, if there is such a filter.
pub(super) fn fingerprints_of(segment: u32, segments: u32) -> Option<usize> {
    if (segment, segments) == (0, 0) {
        return Some(0);
    }
    if !segment.is_power_of_two() || segment > LONGEST_SEGMENT || segments == 0 {
        return None;
    }
    let all = usize::try_from(segments.checked_add(2)?.checked_mul(segment)?).ok()?;
    (all <= MOST_FINGERPRINTS).then_some(all)
}

/// The finalizer of MurmurHash3, 64 bits.
fn mix(mut value: u64) -> u64 {
    value ^= value >> 33;
    value = value.wrapping_mul(0xff51_afd7_ed55_8ccd);
    value ^= value >> 33;
    value = value.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use xorf::Filter as _;

    use super::*;

    /// Keys without a pattern.
    fn keys(range: std::ops::Range<u64>) -> Vec<u64> {
        range.map(|number| mix(number + 1)).collect()
    }

    #[test]
    fn all_keys_are_in_it_and_few_others() {
        for count in [1, 2, 3, 10, 100, 1_000, 100_000] {
            let filter = Filter::build(&mut keys(0..count)).expect("a filter");
            for key in keys(0..count) {
                assert!(filter.contains(key), "{count}");
            }
            let others = keys(1 << 40..(1 << 40) + 200_000);
            let wrong = others.iter().filter(|key| filter.contains(**key)).count();
            assert!(
                wrong * 200 <= others.len(),
                "{wrong} of {} keys",
                others.len()
            );
        }
        let large = Filter::build(&mut keys(0..100_000)).expect("a filter");
        let bits = large.fingerprints().len() * 8;
        assert!(bits < 100_000 * 39 / 4, "{bits} bits for 100,000 keys");
    }

    #[test]
    fn a_filter_of_nothing_has_nothing() {
        let filter = Filter::build(&mut Vec::new()).expect("a filter");
        assert!(keys(0..10_000).into_iter().all(|key| !filter.contains(key)));
        assert_eq!(filter, Filter::new(0, 0, 0, &[]).expect("the same"));
    }

    #[test]
    fn keys_may_come_twice() {
        let filter = Filter::build(&mut vec![5, 7, 5, 5, 7]).expect("a filter");
        assert!(filter.contains(5) && filter.contains(7));
    }

    #[test]
    fn parameters_that_do_not_fit_are_refused() {
        for (segment, segments, fingerprints) in [
            (0, 1, 0),
            (1, 0, 2),
            (3, 1, 9),
            (4, 1, 11),
            (4, 1, 13),
            (1 << 19, 1, 3 << 19),
            (1 << 18, 7, 9 << 18),
            (1 << 18, u32::MAX, 0),
            (4, u32::MAX - 1, 0),
        ] {
            let bytes = vec![0; fingerprints];
            let filter = Filter::new(1, segment, segments, &bytes);
            assert_eq!(filter, None, "{segment} x {segments}");
        }
        assert!(Filter::new(1, 4, 1, &[0; 12]).is_some());
    }

    proptest! {
        #[test]
        fn lookups_agree_with_those_of_the_library(
            set in proptest::collection::hash_set(any::<u64>(), 1..500),
            others in proptest::collection::vec(any::<u64>(), 100),
        ) {
            let mut set: Vec<u64> = set.into_iter().collect();
            let theirs = BinaryFuse8::try_from(&set).expect("a filter");
            let ours = Filter::build(&mut set).expect("a filter");
            for key in set.iter().chain(&others) {
                prop_assert_eq!(ours.contains(*key), theirs.contains(key));
            }
        }

        #[test]
        fn no_lookup_leaves_a_filter_of_any_parameters(
            seed in any::<u64>(),
            exponent in 0_u32..8,
            segments in 1_u32..20,
            keys in proptest::collection::vec(any::<u64>(), 100),
        ) {
            let segment = 1 << exponent;
            let length = fingerprints_of(segment, segments).expect("it fits");
            // Fingerprints of which none is left out of the comparison.
            let filter = Filter::new(seed, segment, segments, &vec![0; length]).expect("it fits");
            for key in keys {
                let hash = mix(key.wrapping_add(seed));
                prop_assert_eq!(filter.contains(key), (hash ^ (hash >> 32)) as u8 == 0);
            }
        }
    }
}
