//! The datagrams, byte for byte. Specification: docs/protocol.md.
//!
//! | type | bytes | layout; integers are big-endian |
//! |---|---|---|
//! | request | 37 | `00`, id u32, hash (32 nix-base32 characters) |
//! | response | 55 | `01`, id u32, HTTP port u32, `local/HASH.narinfo` |
//! | absent | 5 | `02`, id u32 |
//! | hello | 27 | `03`, id u32, instance u64, version u16, HTTP port u16, generation u64, known u16 |
//! | here | 25 | `04`, as hello without the last |
//! | batch | 9 + 20 n | `05`, id u32, known u16, `01` if sent to many, n u8, n hashes of 20 bytes |
//! | answer | 27 to 34 | `06`, id u32, instance to generation as hello, n u8, n bits in whole bytes |
//!
//! The first two are those of the first peerix, whose receivers ignore the other types. Peers
//! of version 1 know those up to here. A datagram of a known type may be longer: the tail is
//! for later versions, and ignored. Only a response has none: all that follows its port is
//! the path.

use serde::{Deserialize, Serialize};

pub use super::packet::Packet;
use crate::format::StorePathHash;

/// The version in our hello, here and answer.
pub const VERSION: u16 = 2;

/// The first version that understands batches, and has a summary.
pub const BATCHES_SINCE: u16 = 2;

/// Hashes in one batch: the least MTU of IPv6 is 1,280 bytes, 48 of them for its own head and
/// that of UDP.
pub const MAX_BATCH: usize = 60;

/// Before the hashes of a batch.
const BATCH_HEAD_BYTES: usize = 9;

/// Bytes of a hash in a batch.
const HASH_BYTES: usize = 20;

const REQUEST: u8 = 0x00;
const RESPONSE: u8 = 0x01;
const ABSENT: u8 = 0x02;
const HELLO: u8 = 0x03;
const HERE: u8 = 0x04;
const BATCH: u8 = 0x05;
const ANSWER: u8 = 0x06;

const PATH_PREFIX: &[u8] = b"local/";
const PATH_SUFFIX: &[u8] = b".narinfo";

/// One datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datagram {
    /// Who has the path with this hash?
    Request {
        /// Drawn at random by the asker; the answer carries it.
        id: u32,
        /// What is asked for.
        hash: StorePathHash,
    },
    /// I have it, and serve its narinfo at `local/HASH.narinfo`.
    Response {
        /// Of the request.
        id: u32,
        /// TCP port of the holder, never 0; four bytes on the wire.
        http_port: u16,
        /// What was asked for.
        hash: StorePathHash,
    },
    /// I do not share it.
    Absent {
        /// Of the request.
        id: u32,
    },
    /// Who is there? I am.
    Hello {
        /// Drawn at random by the asker; the answer carries it.
        id: u32,
        /// The sender.
        about: About,
        /// How many peers it knows to be there; 0 from a peer of version 1.
        known: u16,
    },
    /// I am here: the answer to a hello.
    Here {
        /// Of the hello.
        id: u32,
        /// The sender.
        about: About,
    },
    /// Who has which of these paths?
    Batch {
        /// Drawn at random by the asker; the answer carries it.
        id: u32,
        /// How many peers the asker knows to be there.
        known: u16,
        /// Others are asked by the same datagram.
        to_many: bool,
        /// What is asked for: 1 to [`MAX_BATCH`].
        hashes: Vec<StorePathHash>,
    },
    /// The answer to a batch.
    Answer {
        /// Of the batch.
        id: u32,
        /// The sender.
        about: About,
        /// For each hash of the batch whether the sender has the path and shares it.
        held: Held,
    },
}

/// One bit for each hash of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    count: u8,
    bits: u64,
}

impl Held {
    /// The bits of `held`, of which [`MAX_BATCH`] at most are taken.
    pub fn of(held: impl IntoIterator<Item = bool>) -> Self {
        let none = Self { count: 0, bits: 0 };
        let add = |sum: Self, held| Self {
            count: sum.count + 1,
            bits: sum.bits | u64::from(held) << sum.count,
        };
        held.into_iter().take(MAX_BATCH).fold(none, add)
    }

    /// How many hashes it is about.
    pub const fn count(self) -> usize {
        self.count as usize
    }

    /// Whether nothing is held.
    pub const fn is_empty(self) -> bool {
        self.bits == 0
    }

    /// The numbers of the hashes that are held.
    pub fn numbers(self) -> impl Iterator<Item = usize> {
        (0..self.count()).filter(move |number| self.bits >> number & 1 == 1)
    }

    /// The least significant bit of the first byte is the first hash.
    fn bytes(self) -> impl Iterator<Item = u8> {
        self.bits
            .to_le_bytes()
            .into_iter()
            .take(Self::len(self.count))
    }

    const fn len(count: u8) -> usize {
        count.div_ceil(8) as usize
    }
}

/// What a peer says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct About {
    /// Random, drawn once per boot: the same peer at several addresses has one.
    pub instance: u64,
    /// Version of the protocol that it speaks, at least 1.
    pub version: u16,
    /// TCP port where it serves, never 0.
    pub http_port: u16,
    /// Highest id in its store's table of valid paths: grows when a path is added.
    pub generation: u64,
}

/// Why bytes are not a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// No byte at all.
    #[error("the datagram is empty")]
    Empty,
    /// A type of a later version, or of no version.
    #[error("type {0:#04x} is not known")]
    UnknownType(u8),
    /// It ends within a field.
    #[error("type {kind:#04x} needs {needed} bytes, found {found}")]
    Truncated {
        /// The type byte.
        kind: u8,
        /// Where its fields of fixed length end.
        needed: usize,
        /// Length of this one.
        found: usize,
    },
    /// The hash of a request is not 32 nix-base32 characters.
    #[error("the hash asked for is not 32 nix-base32 characters")]
    Hash,
    /// The path of a response is not `local/HASH.narinfo`.
    #[error("the path is not local/HASH.narinfo")]
    Path,
    /// A port that cannot be connected to.
    #[error("{0} is not a TCP port")]
    Port(u32),
    /// A version that was never used.
    #[error("version 0 does not exist")]
    Version,
    /// A batch of nothing, or of more than fits.
    #[error("{0} is no number of hashes of a batch")]
    Count(u8),
}

impl Datagram {
    /// Reads one datagram; allocates nothing, except for a batch.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        let (&kind, body) = bytes.split_first().ok_or(WireError::Empty)?;
        let mut fields = Fields {
            kind,
            whole: bytes.len(),
            rest: body,
        };
        match kind {
            REQUEST => {
                fields.need(37)?;
                let id = fields.u32()?;
                let hash = StorePathHash::parse(&fields.array::<32>()?);
                let hash = hash.map_err(|_| WireError::Hash)?;
                Ok(Self::Request { id, hash })
            }
            RESPONSE => {
                fields.need(9)?;
                let id = fields.u32()?;
                let http_port = port(fields.u32()?)?;
                let hash = path_hash(fields.rest).ok_or(WireError::Path)?;
                Ok(Self::Response {
                    id,
                    http_port,
                    hash,
                })
            }
            ABSENT => {
                fields.need(5)?;
                Ok(Self::Absent { id: fields.u32()? })
            }
            HELLO | HERE => {
                fields.need(25)?;
                let id = fields.u32()?;
                let about = fields.about()?;
                Ok(if kind == HELLO {
                    // Peers of version 1 do not say it.
                    let known = fields.u16().unwrap_or(0);
                    Self::Hello { id, about, known }
                } else {
                    Self::Here { id, about }
                })
            }
            BATCH => fields.batch(),
            ANSWER => fields.answer(),
            unknown => Err(WireError::UnknownType(unknown)),
        }
    }

    /// The bytes to send.
    pub fn encode(&self) -> Packet {
        let mut packet = Packet::default();
        match *self {
            Self::Request { id, hash } => {
                packet.put(&[REQUEST]);
                packet.put(&id.to_be_bytes());
                packet.put(hash.as_bytes());
            }
            Self::Response {
                id,
                http_port,
                hash,
            } => {
                packet.put(&[RESPONSE]);
                packet.put(&id.to_be_bytes());
                packet.put(&u32::from(http_port).to_be_bytes());
                packet.put(PATH_PREFIX);
                packet.put(hash.as_bytes());
                packet.put(PATH_SUFFIX);
            }
            Self::Absent { id } => {
                packet.put(&[ABSENT]);
                packet.put(&id.to_be_bytes());
            }
            Self::Hello { id, about, known } => {
                packet.put_about(HELLO, id, about);
                packet.put(&known.to_be_bytes());
            }
            Self::Here { id, about } => packet.put_about(HERE, id, about),
            Self::Batch {
                id,
                known,
                to_many,
                ref hashes,
            } => {
                let count = hashes.len().min(MAX_BATCH);
                packet.put(&[BATCH]);
                packet.put(&id.to_be_bytes());
                packet.put(&known.to_be_bytes());
                packet.put(&[u8::from(to_many), count as u8]);
                for hash in hashes.iter().take(MAX_BATCH) {
                    packet.put(&hash.to_raw());
                }
            }
            Self::Answer { id, about, held } => {
                packet.put_about(ANSWER, id, about);
                packet.put(&[held.count]);
                packet.extend(held.bytes());
            }
        }
        packet
    }
}

fn port(number: u32) -> Result<u16, WireError> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(WireError::Port(number)),
    }
}

fn path_hash(path: &[u8]) -> Option<StorePathHash> {
    let hash = path.strip_prefix(PATH_PREFIX)?.strip_suffix(PATH_SUFFIX)?;
    StorePathHash::parse(hash).ok()
}

/// What is left of a datagram.
struct Fields<'a> {
    kind: u8,
    whole: usize,
    rest: &'a [u8],
}

impl Fields<'_> {
    fn need(&self, needed: usize) -> Result<(), WireError> {
        if self.whole < needed {
            return Err(self.truncated(needed));
        }
        Ok(())
    }

    fn truncated(&self, needed: usize) -> WireError {
        WireError::Truncated {
            kind: self.kind,
            needed,
            found: self.whole,
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (field, rest) = self
            .rest
            .split_first_chunk()
            .ok_or_else(|| self.truncated(self.whole - self.rest.len() + N))?;
        self.rest = rest;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        self.array().map(|[byte]| byte)
    }

    fn batch(&mut self) -> Result<Datagram, WireError> {
        self.need(BATCH_HEAD_BYTES)?;
        let id = self.u32()?;
        let known = self.u16()?;
        let to_many = self.u8()? & 1 == 1;
        let count = self.count()?;
        self.need(BATCH_HEAD_BYTES + HASH_BYTES * usize::from(count))?;
        let hashes = (0..count).map(|_| self.array().map(StorePathHash::from_raw));
        Ok(Datagram::Batch {
            id,
            known,
            to_many,
            hashes: hashes.collect::<Result<_, _>>()?,
        })
    }

    fn answer(&mut self) -> Result<Datagram, WireError> {
        let id = self.u32()?;
        let about = self.about()?;
        let count = self.count()?;
        let mut bits = [0; 8];
        for byte in bits.iter_mut().take(Held::len(count)) {
            *byte = self.u8()?;
        }
        let bits = u64::from_le_bytes(bits) & (u64::MAX >> (64 - count));
        Ok(Datagram::Answer {
            id,
            about,
            held: Held { count, bits },
        })
    }

    /// The number of hashes of a batch.
    fn count(&mut self) -> Result<u8, WireError> {
        let count = self.u8()?;
        let fits = count > 0 && usize::from(count) <= MAX_BATCH;
        fits.then_some(count).ok_or(WireError::Count(count))
    }

    fn about(&mut self) -> Result<About, WireError> {
        let instance = self.u64()?;
        let version = self.u16()?;
        if version == 0 {
            return Err(WireError::Version);
        }
        Ok(About {
            instance,
            version,
            http_port: port(self.u16()?.into())?,
            generation: self.u64()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

    fn any_hash() -> impl Strategy<Value = StorePathHash> {
        "[0-9abcdfghijklmnpqrsvwxyz]{32}"
            .prop_map(|text| StorePathHash::parse(text.as_bytes()).expect("a hash"))
    }

    fn any_about() -> impl Strategy<Value = About> {
        (any::<u64>(), 1..=u16::MAX, 1..=u16::MAX, any::<u64>()).prop_map(
            |(instance, version, http_port, generation)| About {
                instance,
                version,
                http_port,
                generation,
            },
        )
    }

    fn any_datagram() -> impl Strategy<Value = Datagram> {
        let hashes = proptest::collection::vec(any_hash(), 1..=MAX_BATCH);
        let held = proptest::collection::vec(any::<bool>(), 1..=MAX_BATCH);
        prop_oneof![
            (any::<u32>(), any_hash()).prop_map(|(id, hash)| Datagram::Request { id, hash }),
            (any::<u32>(), 1..=u16::MAX, any_hash()).prop_map(|(id, http_port, hash)| {
                Datagram::Response {
                    id,
                    http_port,
                    hash,
                }
            }),
            any::<u32>().prop_map(|id| Datagram::Absent { id }),
            (any::<u32>(), any_about(), any::<u16>())
                .prop_map(|(id, about, known)| Datagram::Hello { id, about, known }),
            (any::<u32>(), any_about()).prop_map(|(id, about)| Datagram::Here { id, about }),
            (any::<u32>(), any::<u16>(), any::<bool>(), hashes).prop_map(
                |(id, known, to_many, hashes)| Datagram::Batch {
                    id,
                    known,
                    to_many,
                    hashes
                }
            ),
            (any::<u32>(), any_about(), held).prop_map(|(id, about, held)| Datagram::Answer {
                id,
                about,
                held: Held::of(held)
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_printed_is_parsed(datagram in any_datagram()) {
            prop_assert_eq!(Datagram::parse(&datagram.encode()), Ok(datagram));
        }

        #[test]
        fn a_tail_is_ignored_except_after_a_path(
            datagram in any_datagram(),
            tail in proptest::collection::vec(any::<u8>(), 1..64),
        ) {
            let bytes = [&datagram.encode()[..], &tail].concat();
            let parsed = Datagram::parse(&bytes);
            if matches!(datagram, Datagram::Response { .. }) {
                prop_assert_eq!(parsed, Err(WireError::Path));
            } else {
                prop_assert_eq!(parsed, Ok(datagram));
            }
        }

        #[test]
        fn a_cut_datagram_is_refused(datagram in any_datagram(), cut in any::<prop::sample::Index>()) {
            let whole = datagram.encode();
            let bytes = &whole[..cut.index(whole.len())];
            match Datagram::parse(bytes) {
                Ok(Datagram::Hello { known, .. }) => {
                    prop_assert!((25..27).contains(&bytes.len()) && known == 0);
                }
                other => prop_assert!(other.is_err()),
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            if let Ok(datagram) = Datagram::parse(&bytes) {
                prop_assert_eq!(Datagram::parse(&datagram.encode()), Ok(datagram));
            }
        }

        #[test]
        fn no_bytes_of_a_known_type_panic(
            kind in 0_u8..8,
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = [&[kind][..], &bytes].concat();
            if let Ok(datagram) = Datagram::parse(&bytes) {
                prop_assert_eq!(Datagram::parse(&datagram.encode()), Ok(datagram));
            }
        }
    }

    #[test]
    fn an_old_request_and_its_response() {
        let hash = StorePathHash::parse(HASH).expect("a hash");
        let request = [&[0, 1, 2, 3, 4][..], HASH].concat();
        let id = 0x0102_0304;
        assert_eq!(
            Datagram::parse(&request),
            Ok(Datagram::Request { id, hash })
        );
        let response = [
            &[1, 1, 2, 3, 4, 0, 0, 0x30, 0x10][..],
            b"local/",
            HASH,
            b".narinfo",
        ]
        .concat();
        let parsed = Datagram::Response {
            id,
            http_port: 12_304,
            hash,
        };
        assert_eq!(Datagram::parse(&response), Ok(parsed.clone()));
        assert_eq!(parsed.encode()[..], response[..]);
    }

    #[test]
    fn each_refusal_says_what_is_wrong() {
        let response = |port: [u8; 4], path: &str| {
            Datagram::parse(&[&[1, 0, 0, 0, 0][..], &port, path.as_bytes()].concat())
        };
        let good = "local/0123456789abcdfghijklmnpqrsvwxyz.narinfo";
        assert!(response([0, 0, 0, 1], good).is_ok());
        assert_eq!(response([0, 0, 0, 0], good), Err(WireError::Port(0)));
        assert_eq!(response([0, 1, 0, 0], good), Err(WireError::Port(0x1_0000)));
        for path in [
            "",
            "/local/0123456789abcdfghijklmnpqrsvwxyz.narinfo",
            "local/0123456789abcdfghijklmnpqrsvwxyz.narinfo?x",
            "local/0123456789abcdfghijklmnpqrsvwxye.narinfo",
            "local/../../etc/passwd",
            "local/.narinfo",
        ] {
            assert_eq!(response([0, 0, 0, 1], path), Err(WireError::Path), "{path}");
        }
        assert_eq!(Datagram::parse(&[]), Err(WireError::Empty));
        assert_eq!(Datagram::parse(&[7; 40]), Err(WireError::UnknownType(7)));
        assert_eq!(Datagram::parse(&[0; 37]), Err(WireError::Hash));
        let mut hello = [3; 25];
        hello[13] = 0;
        hello[14] = 0;
        assert_eq!(Datagram::parse(&hello), Err(WireError::Version));
        hello[14] = 1;
        assert!(Datagram::parse(&hello).is_ok());
        hello[15] = 0;
        hello[16] = 0;
        assert_eq!(Datagram::parse(&hello), Err(WireError::Port(0)));
    }

    #[test]
    fn no_answer_is_larger_than_twice_its_question() {
        let hash = StorePathHash::parse(HASH).expect("a hash");
        let request = Datagram::Request { id: 0, hash }.encode().len();
        let response = Datagram::Response {
            id: 0,
            http_port: 1,
            hash,
        };
        assert!(response.encode().len() <= 2 * request);
        assert_eq!(response.encode().len(), 55);
        for count in 1..=MAX_BATCH {
            let batch = Datagram::Batch {
                id: 0,
                known: 1,
                to_many: true,
                hashes: vec![hash; count],
            };
            let answer = Datagram::Answer {
                id: 0,
                about: About {
                    instance: 1,
                    version: VERSION,
                    http_port: 1,
                    generation: 1,
                },
                held: Held::of(vec![true; count]),
            };
            assert!(answer.encode().len() <= batch.encode().len());
            assert!(batch.encode().len() <= 1_280 - 48, "below the least MTU");
        }
    }

    #[test]
    fn bits_beyond_the_last_hash_mean_nothing() {
        let mut answer = [1; 28];
        (answer[0], answer[25], answer[26]) = (ANSWER, 2, 0xfe);
        let Ok(Datagram::Answer { held, .. }) = Datagram::parse(&answer) else {
            panic!("not an answer");
        };
        assert_eq!(held, Held::of([false, true]));
        assert!(held.numbers().eq([1]));
    }

    #[test]
    fn a_batch_of_nothing_or_of_too_much_is_refused() {
        for count in [0, MAX_BATCH as u8 + 1, u8::MAX] {
            let mut batch = [BATCH; 1_400];
            batch[8] = count;
            assert_eq!(Datagram::parse(&batch), Err(WireError::Count(count)));
            let mut answer = [ANSWER; 64];
            answer[25] = count;
            assert_eq!(Datagram::parse(&answer), Err(WireError::Count(count)));
        }
    }
}
