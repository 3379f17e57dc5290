//! A set of slots of the peer table, in place.

/// Peers that the table holds at most.
pub(super) const MAX_PEERS: usize = 1_024;

/// A set of numbers below [`MAX_PEERS`], in 128 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slots([u64; MAX_PEERS / 64]);

impl Default for Slots {
    fn default() -> Self {
        Self([0; MAX_PEERS / 64])
    }
}

impl Slots {
    pub(super) fn insert(&mut self, slot: usize) {
        self.0[slot / 64] |= 1 << (slot % 64);
    }

    pub(super) fn remove(&mut self, slot: usize) {
        self.0[slot / 64] &= !(1 << (slot % 64));
    }

    /// Puts `slot` in or takes it out.
    pub(super) fn set(&mut self, slot: usize, is_in: bool) {
        if is_in {
            self.insert(slot);
        } else {
            self.remove(slot);
        }
    }

    pub(super) fn contains(&self, slot: usize) -> bool {
        self.0[slot / 64] & (1 << (slot % 64)) != 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|&word| word == 0)
    }

    pub(super) fn is_subset(&self, of: &Self) -> bool {
        self.0.iter().zip(&of.0).all(|(mine, its)| mine & !its == 0)
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// What is in `self` and not in `other`.
    pub(super) fn minus(&self, other: &Self) -> Self {
        let mut rest = self.clone();
        for (word, out) in rest.0.iter_mut().zip(&other.0) {
            *word &= !out;
        }
        rest
    }

    /// All of them, ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..MAX_PEERS).filter(|&slot| self.contains(slot))
    }

    /// The slots that are in `self` and not in `other`, ascending.
    pub(super) fn without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = usize> + 'a {
        (0..MAX_PEERS).filter(|&slot| self.contains(slot) && !other.contains(slot))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_a_set(numbers in proptest::collection::vec((0..MAX_PEERS, any::<bool>()), 0..200)) {
            let mut slots = Slots::default();
            let mut set = BTreeSet::new();
            for (number, insert) in numbers {
                if insert {
                    slots.insert(number);
                    set.insert(number);
                } else {
                    slots.remove(number);
                    set.remove(&number);
                }
                prop_assert_eq!(slots.contains(number), insert);
            }
            prop_assert_eq!(slots.is_empty(), set.is_empty());
            prop_assert!(slots.without(&Slots::default()).eq(set.iter().copied()));
            let mut less = slots.clone();
            if let Some(&first) = set.first() {
                less.remove(first);
                prop_assert!(less.is_subset(&slots) && !slots.is_subset(&less));
            }
        }
    }
}
