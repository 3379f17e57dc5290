//! A set of slots of the peer table, in place.

/// Slots of the table.
pub(super) const MAX_SLOTS: usize = 1_536;

/// A set of numbers below [`MAX_SLOTS`], in 192 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slots([u64; MAX_SLOTS / 64]);

impl Default for Slots {
    fn default() -> Self {
        Self([0; MAX_SLOTS / 64])
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

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// What is in one of the two.
    pub(super) fn union(&self, other: &Self) -> Self {
        let mut both = self.clone();
        for (word, more) in both.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
        both
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
        let words = self.0.iter().enumerate().filter(|&(_, &word)| word != 0);
        words.flat_map(|(number, &word)| {
            let bits = (0..64).filter(move |bit| word >> bit & 1 == 1);
            bits.map(move |bit| number * 64 + bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_a_set(numbers in proptest::collection::vec((0..MAX_SLOTS, any::<bool>()), 0..200)) {
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
            prop_assert!(slots.iter().eq(set.iter().copied()));
            prop_assert_eq!(slots.len(), set.len());
            let mut first = Slots::default();
            if let Some(&number) = set.first() {
                first.insert(number);
                let rest = slots.minus(&first);
                prop_assert!(rest.len() + 1 == slots.len() && rest.union(&first) == slots);
            }
        }
    }
}
