//! What a peer shares, in nine to ten bits a path: which of some thousand paths it probably has, without
//! asking it for each (docs/protocol.md, "Summaries").
//!
//! | offset | a whole summary, form 1 | what is new, form 2 |
//! |---|---|---|
//! | 0 | form | form |
//! | 1 | instance, 8 | instance, 8 |
//! | 9 | rule, 8 | rule, 8 |
//! | 17 | generation, 8 | generation, 8 |
//! | 25 | paths in the filter, 4 | since, 8 |
//! | 29 | seed, 8 | |
//! | 33 | | number of keys, 4 |
//! | 37 | length of a segment, 4 | keys, 8 each |
//! | 41 | segments, 4 | |
//! | 45 | number of keys beside the filter, 4 | |
//! | 49 | fingerprints, then keys, 8 each | |

mod filter;

use crate::format::{StorePathHash, base32};

pub use filter::{Filter, Unbuildable};

/// More paths than this are not summarized.
pub const MOST_PATHS: usize = 1_000_000;

/// Keys beside the filter, at most: an eighth of [`MOST_PATHS`], and some.
pub const MOST_KEYS: usize = 1 << 17;

/// The largest summary: a filter of 2 MiB, and the keys beside it.
pub const MOST_BYTES: u64 = (2 << 20) + 8 * MOST_KEYS as u64 + 49;

const WHOLE: u8 = 1;
const NEWS: u8 = 2;

/// Length of a key on the wire.
const KEY_BYTES: usize = 8;

/// Why bytes are not a summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SummaryError {
    /// Of a form that is not known.
    #[error("form {0} is not known")]
    Form(u8),
    /// They end early, or go on after the end.
    #[error("the length does not fit the content")]
    Length,
    /// No filter has these parameters.
    #[error("no filter has these parameters")]
    Filter,
    /// More than [`MOST_PATHS`] or [`MOST_KEYS`].
    #[error("too many paths")]
    TooMany,
    /// New keys of another summary, or with a gap before them.
    #[error("what is new does not follow what is known")]
    Gap,
}

/// Whose summary it is, and as of when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The peer's number, as in a here.
    pub instance: u64,
    /// A number of the rule by which it shares; another one is another summary.
    pub rule: u64,
    /// The generation of its store: every shared path up to it is in the summary.
    pub generation: u64,
}

impl Stamp {
    /// As an entity tag.
    pub fn etag(&self) -> String {
        format!(
            "\"{:016x}-{:016x}-{}\"",
            self.instance, self.rule, self.generation
        )
    }

    /// Whether it is of the same peer by the same rule.
    pub fn is_of_same(&self, other: &Self) -> bool {
        (self.instance, self.rule) == (other.instance, other.rule)
    }
}

/// What stands for a path: the first eight bytes of its hash, as a big-endian number.
#[expect(clippy::expect_used, reason = "32 digits are 20 bytes")]
pub fn key(hash: StorePathHash) -> u64 {
    let bytes: [u8; 20] = base32::decode(hash.as_bytes()).expect("a hash has 32 digits");
    u64::from_be_bytes(*bytes.first_chunk().expect("20 bytes"))
}

/// What a peer shares, but for some paths too many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    stamp: Stamp,
    paths: u32,
    filter: Filter,
    /// Sorted keys of paths that came later.
    added: Vec<u64>,
}

impl Summary {
    /// A summary of these keys, at most [`MOST_PATHS`].
    pub fn build(stamp: Stamp, mut keys: Vec<u64>) -> Result<Self, Unbuildable> {
        let filter = Filter::build(&mut keys)?;
        Ok(Self {
            stamp,
            paths: u32::try_from(keys.len()).map_err(|_| Unbuildable)?,
            filter,
            added: Vec::new(),
        })
    }

    /// Whose it is, and as of when.
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Paths in it, those that have gone since included.
    pub fn paths(&self) -> usize {
        self.paths as usize + self.added.len()
    }

    /// Paths that came after the filter was made.
    pub fn added(&self) -> usize {
        self.added.len()
    }

    /// Whether the peer probably has `hash`; if not, it had not at this generation.
    pub fn contains(&self, hash: StorePathHash) -> bool {
        let key = key(hash);
        self.filter.contains(key) || self.added.binary_search(&key).is_ok()
    }

    /// What it takes in memory.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.filter.fingerprints().len() + self.added.capacity() * KEY_BYTES
    }

    /// Takes in what is new; on an error nothing has changed, and the whole is to be fetched.
    pub fn apply(&mut self, news: &News) -> Result<(), SummaryError> {
        let follows = news.stamp.is_of_same(&self.stamp)
            && news.since <= self.stamp.generation
            && news.stamp.generation >= self.stamp.generation;
        if !follows {
            return Err(SummaryError::Gap);
        }
        if self.added.len() + news.keys.len() > MOST_KEYS {
            return Err(SummaryError::TooMany);
        }
        self.added.extend(&news.keys);
        self.added.sort_unstable();
        self.added.dedup();
        self.stamp.generation = news.stamp.generation;
        Ok(())
    }

    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let length = 49 + self.filter.fingerprints().len() + self.added.len() * KEY_BYTES;
        let mut bytes = Vec::with_capacity(length);
        head(&mut bytes, WHOLE, &self.stamp);
        bytes.extend(self.paths.to_be_bytes());
        bytes.extend(self.filter.seed().to_be_bytes());
        bytes.extend(self.filter.segment().to_be_bytes());
        bytes.extend(self.filter.segments().to_be_bytes());
        bytes.extend((self.added.len() as u32).to_be_bytes());
        bytes.extend(self.filter.fingerprints());
        bytes.extend(self.added.iter().flat_map(|key| key.to_be_bytes()));
        bytes
    }
}

/// The paths that came after a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Of the summary with them.
    pub stamp: Stamp,
    /// The generation after which they came.
    pub since: u64,
    /// Their keys.
    pub keys: Vec<u64>,
}

impl News {
    /// As they are sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(37 + self.keys.len() * KEY_BYTES);
        head(&mut bytes, NEWS, &self.stamp);
        bytes.extend(self.since.to_be_bytes());
        bytes.extend((self.keys.len() as u32).to_be_bytes());
        bytes.extend(self.keys.iter().flat_map(|key| key.to_be_bytes()));
        bytes
    }
}

/// What a peer sends when it is asked for its summary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// All of it.
    Whole(Summary),
    /// What is new.
    News(News),
}

impl Content {
    /// Parses what a peer sent.
    pub fn parse(bytes: &[u8]) -> Result<Self, SummaryError> {
        let mut rest = Rest(bytes);
        let [form] = rest.take()?;
        let stamp = |rest: &mut Rest<'_>| {
            Ok(Stamp {
                instance: rest.number()?,
                rule: rest.number()?,
                generation: rest.number()?,
            })
        };
        match form {
            WHOLE => {
                let stamp = stamp(&mut rest)?;
                let paths = u32::from_be_bytes(rest.take()?);
                let seed = rest.number()?;
                let segment = u32::from_be_bytes(rest.take()?);
                let segments = u32::from_be_bytes(rest.take()?);
                let count = u32::from_be_bytes(rest.take()?);
                if paths as usize > MOST_PATHS {
                    return Err(SummaryError::TooMany);
                }
                let length =
                    filter::fingerprints_of(segment, segments).ok_or(SummaryError::Filter)?;
                let fingerprints = rest.slice(length)?;
                let filter = Filter::new(seed, segment, segments, fingerprints)
                    .filter(|_| (paths == 0) == (segment == 0))
                    .ok_or(SummaryError::Filter)?;
                let mut added = rest.keys(count)?;
                added.sort_unstable();
                added.dedup();
                Ok(Self::Whole(Summary {
                    stamp,
                    paths,
                    filter,
                    added,
                }))
            }
            NEWS => {
                let stamp = stamp(&mut rest)?;
                let since = rest.number()?;
                let count = u32::from_be_bytes(rest.take()?);
                let keys = rest.keys(count)?;
                Ok(Self::News(News { stamp, since, keys }))
            }
            other => Err(SummaryError::Form(other)),
        }
    }
}

fn head(bytes: &mut Vec<u8>, form: u8, stamp: &Stamp) {
    bytes.push(form);
    bytes.extend(stamp.instance.to_be_bytes());
    bytes.extend(stamp.rule.to_be_bytes());
    bytes.extend(stamp.generation.to_be_bytes());
}

/// Bytes that are still to be parsed.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], SummaryError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(SummaryError::Length)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn number(&mut self) -> Result<u64, SummaryError> {
        self.take().map(u64::from_be_bytes)
    }

    fn slice(&mut self, length: usize) -> Result<&'a [u8], SummaryError> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(SummaryError::Length)?;
        self.0 = rest;
        Ok(taken)
    }

    /// `count` keys, which are all that is left.
    fn keys(&mut self, count: u32) -> Result<Vec<u64>, SummaryError> {
        let count = count as usize;
        if count > MOST_KEYS {
            return Err(SummaryError::TooMany);
        }
        if self.0.len() != count * KEY_BYTES {
            return Err(SummaryError::Length);
        }
        let (keys, _) = self.0.as_chunks::<KEY_BYTES>();
        Ok(keys.iter().copied().map(u64::from_be_bytes).collect())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STAMP: Stamp = Stamp {
        instance: 0x17ac_05e9_2b6d_48f3,
        rule: 9,
        generation: 100,
    };

    fn hash(number: u8) -> StorePathHash {
        let text = base32::encode(&[number; 20]);
        StorePathHash::parse(text.as_bytes()).expect("hash")
    }

    fn summary(numbers: std::ops::Range<u8>) -> Summary {
        let keys = numbers.map(|number| key(hash(number))).collect();
        Summary::build(STAMP, keys).expect("a summary")
    }

    fn news(generation: u64, since: u64, numbers: &[u8]) -> News {
        let keys = numbers.iter().map(|number| key(hash(*number))).collect();
        News {
            stamp: Stamp {
                generation,
                ..STAMP
            },
            since,
            keys,
        }
    }

    #[test]
    fn a_key_is_the_first_eight_bytes_of_the_hash() {
        let bytes: Vec<u8> = (1..=20).collect();
        let hash = StorePathHash::parse(base32::encode(&bytes).as_bytes()).expect("hash");
        assert_eq!(key(hash), 0x0102_0304_0506_0708);
    }

    #[test]
    fn what_is_new_is_added_and_only_if_it_follows() {
        let mut summary = summary(0..50);
        assert!(summary.contains(hash(49)) && !summary.contains(hash(50)));
        summary.apply(&news(103, 100, &[50, 51, 49])).expect("news");
        assert_eq!(summary.stamp().generation, 103);
        assert_eq!((summary.paths(), summary.added()), (53, 3));
        // Told again from before, as after an answer that was lost.
        summary.apply(&news(104, 99, &[50, 52])).expect("news");
        assert!((0..53).all(|number| summary.contains(hash(number))));
        assert_eq!(summary.added(), 4);

        let before = summary.clone();
        let other = |change: fn(&mut News)| {
            let mut news = news(110, 104, &[60]);
            change(&mut news);
            news
        };
        for (wrong, expected) in [
            (other(|it| it.since = 105), SummaryError::Gap),
            (other(|it| it.stamp.generation = 103), SummaryError::Gap),
            (other(|it| it.stamp.instance += 1), SummaryError::Gap),
            (other(|it| it.stamp.rule += 1), SummaryError::Gap),
            (
                other(|it| it.keys = (0..MOST_KEYS as u64).collect()),
                SummaryError::TooMany,
            ),
        ] {
            assert_eq!(summary.apply(&wrong), Err(expected));
            assert_eq!(summary, before);
        }
    }

    #[test]
    fn an_empty_store_has_a_summary() {
        let empty = summary(0..0);
        assert_eq!(empty.encode().len(), 49);
        assert_eq!(
            Content::parse(&empty.encode()),
            Ok(Content::Whole(empty.clone()))
        );
        assert!((0..=255).all(|number| !empty.contains(hash(number))));
        assert!(empty.memory_bytes() < 200);
    }

    #[test]
    fn nine_bits_a_path_are_sent_and_kept() {
        let keys: Vec<u64> = (0..20_000_u64)
            .map(|number| number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .collect();
        let summary = Summary::build(STAMP, keys).expect("a summary");
        assert!(
            summary.encode().len() < 20_000 * 10 / 8,
            "{}",
            summary.encode().len()
        );
        assert!(summary.memory_bytes() < 20_000 * 10 / 8);
    }

    #[test]
    fn every_defect_is_refused() {
        let mut with_keys = summary(0..50);
        with_keys.apply(&news(101, 100, &[60, 61])).expect("news");
        for good in [with_keys.encode(), news(9, 8, &[1, 2]).encode()] {
            assert!(Content::parse(&good).is_ok());
            for end in 0..good.len() {
                assert_eq!(
                    Content::parse(&good[..end]),
                    Err(SummaryError::Length),
                    "{end}"
                );
            }
            let longer = [&good[..], &[0]].concat();
            assert_eq!(Content::parse(&longer), Err(SummaryError::Length));
        }
        let good = with_keys.encode();
        let changed = |at: usize, value: u32| {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
            Content::parse(&bytes).expect_err("refused")
        };
        assert_eq!(changed(25, MOST_PATHS as u32 + 1), SummaryError::TooMany);
        assert_eq!(changed(25, 0), SummaryError::Filter);
        assert_eq!(changed(37, 3), SummaryError::Filter);
        assert_eq!(changed(37, 0), SummaryError::Filter);
        assert_eq!(changed(41, 0), SummaryError::Filter);
        assert_eq!(changed(41, u32::MAX), SummaryError::Filter);
        assert_eq!(changed(45, MOST_KEYS as u32 + 1), SummaryError::TooMany);
        assert_eq!(changed(45, 1), SummaryError::Length);
        assert_eq!(Content::parse(&[3; 100]), Err(SummaryError::Form(3)));
    }

    proptest! {
        #[test]
        fn what_is_printed_is_parsed(
            keys in proptest::collection::vec(any::<u64>(), 0..300),
            added in proptest::collection::vec(any::<u64>(), 0..30),
        ) {
            let mut summary = Summary::build(STAMP, keys).expect("a summary");
            let stamp = Stamp { generation: 200, ..STAMP };
            let news = News { stamp, since: 100, keys: added };
            prop_assert_eq!(Content::parse(&news.encode()), Ok(Content::News(news.clone())));
            summary.apply(&news).expect("news");
            prop_assert_eq!(Content::parse(&summary.encode()), Ok(Content::Whole(summary)));
        }

        #[test]
        fn no_bytes_are_beyond_it(
            form in 1_u8..3,
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            change in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            // Junk, and the truth with one byte changed.
            let mut nearly = summary(0..20).encode();
            let at = change.index(nearly.len());
            nearly[at] = byte;
            for bytes in [nearly, [&[form], &bytes[..]].concat()] {
                if let Ok(Content::Whole(summary)) = Content::parse(&bytes) {
                    for number in 0..=255 {
                        summary.contains(hash(number));
                    }
                }
            }
        }
    }
}
