//! The datagrams, byte for byte. Specification: docs/protocol.md.
//!
//! | type | bytes | layout; integers are big-endian |
//! |---|---|---|
//! | request | 37 | `00`, id u32, hash (32 nix-base32 characters) |
//! | response | 55 | `01`, id u32, HTTP port u32, `local/HASH.narinfo` |
//! | ask | 18 + 20 n | `02`, id u32, version u8, flags u8, HTTP port u16, instance u64, n u8, n hashes of 20 bytes |
//! | answer | 18 + n/4 | `03`, id u32, version u8, flags u8, HTTP port u16, instance u64, n u8, n states of 2 bits in whole bytes |
//!
//! The first two are those of the first peerix, whose receivers ignore other types. A datagram of
//! a known type may be longer: the tail is for later versions, and ignored. Only a response has
//! none: all that follows its port is the path.

use std::{fmt, ops::Deref};

use serde::{Deserialize, Serialize};

use super::PathState;
use crate::format::StorePathHash;

/// The version in our asks and answers.
pub const VERSION: u8 = 1;

/// Hashes in one ask: with the heads of IPv6 and UDP it stays below the least MTU, 1,280 bytes.
pub const MAX_HASHES: usize = 56;

/// An ask or answer before its hashes or states.
const HEAD_BYTES: usize = 18;

/// Bytes of a hash in an ask.
const HASH_BYTES: usize = 20;

/// States in one byte of an answer.
const STATES_PER_BYTE: usize = 4;

const REQUEST: u8 = 0x00;
const RESPONSE: u8 = 0x01;
const ASK: u8 = 0x02;
const ANSWER: u8 = 0x03;

const ONLY_IF_ANY: u8 = 0x01;

const PATH_PREFIX: &[u8] = b"local/";
const PATH_SUFFIX: &[u8] = b".narinfo";

/// One datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Datagram {
    /// Who has the path with this hash? Of the first peerix.
    Request {
        /// Drawn at random by the asker; the response carries it.
        id: u32,
        /// What is asked for.
        hash: StorePathHash,
    },
    /// I have it, and serve its narinfo at `local/HASH.narinfo`. Of the first peerix.
    Response {
        /// Of the request.
        id: u32,
        /// TCP port of the holder, never 0; four bytes on the wire.
        http_port: u16,
        /// What was asked for.
        hash: StorePathHash,
    },
    /// Which of these paths do you share?
    Ask(Ask),
    /// The states of the paths of an ask.
    Answer(Answer),
}

/// Which of these paths do you share? Without a path: are you there?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// Drawn at random by the asker; the answer carries it.
    pub id: u32,
    /// Who asks.
    pub sender: Sender,
    /// Answer only if one of the states is not [`PathState::Absent`].
    pub only_if_any: bool,
    /// The live peers that the asker knows.
    pub peers: Magnitude,
    /// At most [`MAX_HASHES`].
    pub hashes: Vec<StorePathHash>,
}

/// The answer to an ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Of the ask.
    pub id: u32,
    /// Who answers.
    pub sender: Sender,
    /// The NAR streams that it sends now.
    pub streams: Magnitude,
    /// One for each hash of the ask, in its order.
    pub states: Vec<PathState>,
}

/// What a peer says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sender {
    /// TCP port where it serves, never 0.
    pub http_port: u16,
    /// Random, drawn once per boot: the same peer at several addresses has one.
    pub instance: u64,
}

/// A count as the number of its binary digits, 15 at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Magnitude(u8);

impl Magnitude {
    /// The magnitude of `count`.
    pub fn of(count: usize) -> Self {
        Self((usize::BITS - count.leading_zeros()).min(15) as u8)
    }

    /// The largest count of this magnitude.
    pub const fn at_most(self) -> u32 {
        (1 << self.0) - 1
    }
}

/// The bytes of one datagram.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Packet(Vec<u8>);

impl Packet {
    fn put(&mut self, field: &[u8]) {
        self.0.extend_from_slice(field);
    }

    fn put_head(&mut self, kind: u8, id: u32, flags: u8, sender: Sender, count: usize) {
        self.put(&[kind]);
        self.put(&id.to_be_bytes());
        self.put(&[VERSION, flags]);
        self.put(&sender.http_port.to_be_bytes());
        self.put(&sender.instance.to_be_bytes());
        // At most MAX_HASHES, which the callers see to.
        self.put(&[count as u8]);
    }
}

impl Deref for Packet {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.iter() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Why bytes are not a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
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
    /// An ask for more than fits.
    #[error("{0} hashes are more than an ask may have")]
    Count(u8),
}

impl Datagram {
    /// Reads one datagram.
    pub fn parse(bytes: &[u8]) -> Result<Self, DatagramError> {
        let (&kind, body) = bytes.split_first().ok_or(DatagramError::Empty)?;
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
                let hash = hash.map_err(|_| DatagramError::Hash)?;
                Ok(Self::Request { id, hash })
            }
            RESPONSE => {
                fields.need(9)?;
                let id = fields.u32()?;
                let http_port = port(fields.u32()?)?;
                let hash = path_hash(fields.rest).ok_or(DatagramError::Path)?;
                Ok(Self::Response {
                    id,
                    http_port,
                    hash,
                })
            }
            ASK => fields.ask().map(Self::Ask),
            ANSWER => fields.answer().map(Self::Answer),
            unknown => Err(DatagramError::UnknownType(unknown)),
        }
    }

    /// The bytes to send; of an ask or answer the first [`MAX_HASHES`] hashes or states.
    pub fn encode(&self) -> Packet {
        let mut packet = Packet::default();
        match self {
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
                packet.put(&u32::from(*http_port).to_be_bytes());
                packet.put(PATH_PREFIX);
                packet.put(hash.as_bytes());
                packet.put(PATH_SUFFIX);
            }
            Self::Ask(ask) => {
                let flags = ask.peers.0 << 4 | if ask.only_if_any { ONLY_IF_ANY } else { 0 };
                let hashes = &ask.hashes[..ask.hashes.len().min(MAX_HASHES)];
                packet.put_head(ASK, ask.id, flags, ask.sender, hashes.len());
                for hash in hashes {
                    packet.put(&hash.to_raw());
                }
            }
            Self::Answer(answer) => {
                let states = &answer.states[..answer.states.len().min(MAX_HASHES)];
                let flags = answer.streams.0 << 4;
                packet.put_head(ANSWER, answer.id, flags, answer.sender, states.len());
                for group in states.chunks(STATES_PER_BYTE) {
                    let byte = group.iter().zip([6, 4, 2, 0]);
                    packet
                        .put(&[byte.fold(0, |byte, (state, shift)| byte | state.bits() << shift)]);
                }
            }
        }
        packet
    }
}

fn port(number: u32) -> Result<u16, DatagramError> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(DatagramError::Port(number)),
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

/// What asks and answers begin with.
struct Head {
    id: u32,
    flags: u8,
    sender: Sender,
    count: usize,
}

impl Fields<'_> {
    fn need(&self, needed: usize) -> Result<(), DatagramError> {
        if self.whole < needed {
            return Err(DatagramError::Truncated {
                kind: self.kind,
                needed,
                found: self.whole,
            });
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DatagramError> {
        let needed = self.whole - self.rest.len() + N;
        self.need(needed)?;
        match self.rest.split_first_chunk() {
            Some((field, rest)) => {
                self.rest = rest;
                Ok(*field)
            }
            // `need` has said that it is there.
            None => Err(DatagramError::Empty),
        }
    }

    fn u32(&mut self) -> Result<u32, DatagramError> {
        self.array().map(u32::from_be_bytes)
    }

    fn head(&mut self) -> Result<Head, DatagramError> {
        self.need(HEAD_BYTES)?;
        let id = self.u32()?;
        let [version, flags] = self.array()?;
        if version == 0 {
            return Err(DatagramError::Version);
        }
        let http_port = port(self.array().map(u16::from_be_bytes)?.into())?;
        let instance = self.array().map(u64::from_be_bytes)?;
        let [count] = self.array()?;
        if usize::from(count) > MAX_HASHES {
            return Err(DatagramError::Count(count));
        }
        Ok(Head {
            id,
            flags,
            sender: Sender {
                http_port,
                instance,
            },
            count: count.into(),
        })
    }

    fn ask(&mut self) -> Result<Ask, DatagramError> {
        let head = self.head()?;
        self.need(HEAD_BYTES + HASH_BYTES * head.count)?;
        let hashes = (0..head.count).map(|_| self.array().map(StorePathHash::from_raw));
        Ok(Ask {
            id: head.id,
            sender: head.sender,
            only_if_any: head.flags & ONLY_IF_ANY != 0,
            peers: Magnitude(head.flags >> 4),
            hashes: hashes.collect::<Result<_, _>>()?,
        })
    }

    fn answer(&mut self) -> Result<Answer, DatagramError> {
        let head = self.head()?;
        let bytes = head.count.div_ceil(STATES_PER_BYTE);
        self.need(HEAD_BYTES + bytes)?;
        let states = self.rest[..bytes]
            .iter()
            .flat_map(|byte| [6, 4, 2, 0].map(|shift| PathState::from_bits(byte >> shift)));
        Ok(Answer {
            id: head.id,
            sender: head.sender,
            streams: Magnitude(head.flags >> 4),
            states: states.take(head.count).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HASH: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

    fn any_hash() -> impl Strategy<Value = StorePathHash> {
        any::<[u8; 20]>().prop_map(StorePathHash::from_raw)
    }

    fn any_sender() -> impl Strategy<Value = Sender> {
        (1..=u16::MAX, any::<u64>()).prop_map(|(http_port, instance)| Sender {
            http_port,
            instance,
        })
    }

    fn any_datagram() -> impl Strategy<Value = Datagram> {
        let hashes = proptest::collection::vec(any_hash(), 0..=MAX_HASHES);
        let states = proptest::collection::vec(0..4_u8, 0..=MAX_HASHES);
        prop_oneof![
            (any::<u32>(), any_hash()).prop_map(|(id, hash)| Datagram::Request { id, hash }),
            (any::<u32>(), 1..=u16::MAX, any_hash()).prop_map(|(id, http_port, hash)| {
                Datagram::Response {
                    id,
                    http_port,
                    hash,
                }
            }),
            (
                any::<u32>(),
                any_sender(),
                any::<bool>(),
                0..2_000_usize,
                hashes
            )
                .prop_map(|(id, sender, only_if_any, peers, hashes)| Datagram::Ask(
                    Ask {
                        id,
                        sender,
                        only_if_any,
                        peers: Magnitude::of(peers),
                        hashes,
                    }
                )),
            (any::<u32>(), any_sender(), 0..200_usize, states).prop_map(
                |(id, sender, streams, states)| Datagram::Answer(Answer {
                    id,
                    sender,
                    streams: Magnitude::of(streams),
                    states: states.into_iter().map(PathState::from_bits).collect(),
                })
            ),
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
                prop_assert_eq!(parsed, Err(DatagramError::Path));
            } else {
                prop_assert_eq!(parsed, Ok(datagram));
            }
        }

        #[test]
        fn a_cut_datagram_is_refused(datagram in any_datagram(), cut in any::<prop::sample::Index>()) {
            let whole = datagram.encode();
            let bytes = &whole[..cut.index(whole.len())];
            prop_assert!(Datagram::parse(bytes).is_err());
        }

        #[test]
        fn no_bytes_panic(
            kind in 0_u8..6,
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = [&[kind][..], &bytes].concat();
            if let Ok(datagram) = Datagram::parse(&bytes) {
                prop_assert_eq!(Datagram::parse(&datagram.encode()), Ok(datagram));
            }
        }

        #[test]
        fn no_answer_is_longer_than_its_ask(sender in any_sender(), count in 0..=MAX_HASHES) {
            let hash = StorePathHash::from_raw([7; 20]);
            let ask = Ask {
                id: 0,
                sender,
                only_if_any: false,
                peers: Magnitude::of(5),
                hashes: vec![hash; count],
            };
            let answer = Answer {
                id: 0,
                sender,
                streams: Magnitude::of(5),
                states: vec![PathState::Present; count],
            };
            let (ask, answer) = (Datagram::Ask(ask).encode(), Datagram::Answer(answer).encode());
            prop_assert!(answer.len() <= ask.len());
            prop_assert!(ask.len() <= 1_280 - 48, "below the least MTU");
            let request = Datagram::Request { id: 0, hash }.encode();
            let response = Datagram::Response { id: 0, http_port: 1, hash }.encode();
            prop_assert!(2 * response.len() <= 3 * request.len());
        }
    }

    #[test]
    fn an_old_request_and_its_response() {
        let hash = StorePathHash::parse(HASH).expect("a hash");
        let id = 0x0102_0304;
        let request = [&[0, 1, 2, 3, 4][..], HASH].concat();
        assert_eq!(
            Datagram::parse(&request),
            Ok(Datagram::Request { id, hash })
        );
        let head = [1, 1, 2, 3, 4, 0, 0, 0x30, 0x10];
        let response = [&head[..], b"local/", HASH, b".narinfo"].concat();
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
        assert_eq!(response([0; 4], good), Err(DatagramError::Port(0)));
        assert_eq!(
            response([0, 1, 0, 0], good),
            Err(DatagramError::Port(0x1_0000))
        );
        for path in [
            "",
            "/local/0123456789abcdfghijklmnpqrsvwxyz.narinfo",
            "local/0123456789abcdfghijklmnpqrsvwxyz.narinfo?x",
            "local/0123456789abcdfghijklmnpqrsvwxye.narinfo",
            "local/../../etc/passwd",
            "local/.narinfo",
        ] {
            assert_eq!(
                response([0, 0, 0, 1], path),
                Err(DatagramError::Path),
                "{path}"
            );
        }
        assert_eq!(Datagram::parse(&[]), Err(DatagramError::Empty));
        assert_eq!(
            Datagram::parse(&[7; 40]),
            Err(DatagramError::UnknownType(7))
        );
        assert_eq!(Datagram::parse(&[0; 37]), Err(DatagramError::Hash));
        let mut ask = [2; HEAD_BYTES + 2 * HASH_BYTES];
        assert!(Datagram::parse(&ask).is_ok());
        ask[5] = 0;
        assert_eq!(Datagram::parse(&ask), Err(DatagramError::Version));
        (ask[5], ask[7], ask[8]) = (9, 0, 0);
        assert_eq!(Datagram::parse(&ask), Err(DatagramError::Port(0)));
        (ask[8], ask[17]) = (1, 57);
        assert_eq!(Datagram::parse(&ask), Err(DatagramError::Count(57)));
    }

    #[test]
    fn a_magnitude_is_the_number_of_binary_digits() {
        for (count, digits, at_most) in [
            (0, 0, 0),
            (1, 1, 1),
            (2, 2, 3),
            (3, 2, 3),
            (64, 7, 127),
            (1_000, 10, 1_023),
            (1 << 20, 15, 32_767),
        ] {
            let magnitude = Magnitude::of(count);
            assert_eq!((magnitude.0, magnitude.at_most()), (digits, at_most));
        }
    }
}
