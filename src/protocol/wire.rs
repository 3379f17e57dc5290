//! The datagrams, byte for byte. Specification: docs/protocol.md.
//!
//! | type | bytes | layout; integers are big-endian |
//! |---|---|---|
//! | request | 37 | `00`, id u32, hash (32 nix-base32 characters) |
//! | response | 55 | `01`, id u32, HTTP port u32, `local/HASH.narinfo` |
//! | absent | 5 | `02`, id u32 |
//! | hello | 25 | `03`, id u32, instance u64, version u16, HTTP port u16, generation u64 |
//! | here | 25 | `04`, as hello |
//!
//! The first two are those of the first peerix, whose receivers ignore the other types. A
//! datagram of a known type may be longer: the tail is for later versions, and ignored.
//! Only a response has none: all that follows its port is the path.

use std::{fmt, ops::Deref};

use serde::{Deserialize, Serialize};

use crate::format::StorePathHash;

/// The version in our hello and here.
pub const VERSION: u16 = 1;

/// Room for the longest datagram, a response of 55 bytes.
const PACKET_BYTES: usize = 56;

const REQUEST: u8 = 0x00;
const RESPONSE: u8 = 0x01;
const ABSENT: u8 = 0x02;
const HELLO: u8 = 0x03;
const HERE: u8 = 0x04;

const PATH_PREFIX: &[u8] = b"local/";
const PATH_SUFFIX: &[u8] = b".narinfo";

/// One datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    },
    /// I am here: the answer to a hello.
    Here {
        /// Of the hello.
        id: u32,
        /// The sender.
        about: About,
    },
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
}

impl Datagram {
    /// Reads one datagram; allocates nothing.
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
                    Self::Hello { id, about }
                } else {
                    Self::Here { id, about }
                })
            }
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
            Self::Hello { id, about } => packet.put_about(HELLO, id, about),
            Self::Here { id, about } => packet.put_about(HERE, id, about),
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

/// The bytes of one datagram, in place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    bytes: [u8; PACKET_BYTES],
    length: u8,
}

impl Packet {
    fn put(&mut self, field: &[u8]) {
        let start = usize::from(self.length);
        let end = start + field.len();
        debug_assert!(end <= PACKET_BYTES, "no datagram is longer than a response");
        if let Some(room) = self.bytes.get_mut(start..end) {
            room.copy_from_slice(field);
            self.length += field.len() as u8;
        }
    }

    fn put_about(&mut self, kind: u8, id: u32, about: About) {
        self.put(&[kind]);
        self.put(&id.to_be_bytes());
        self.put(&about.instance.to_be_bytes());
        self.put(&about.version.to_be_bytes());
        self.put(&about.http_port.to_be_bytes());
        self.put(&about.generation.to_be_bytes());
    }
}

impl Default for Packet {
    fn default() -> Self {
        Self {
            bytes: [0; PACKET_BYTES],
            length: 0,
        }
    }
}

impl Deref for Packet {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
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
            (any::<u32>(), any_about()).prop_map(|(id, about)| Datagram::Hello { id, about }),
            (any::<u32>(), any_about()).prop_map(|(id, about)| Datagram::Here { id, about }),
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
            prop_assert!(Datagram::parse(bytes).is_err());
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            if let Ok(datagram) = Datagram::parse(&bytes) {
                prop_assert!(bytes.starts_with(&datagram.encode()));
            }
        }

        #[test]
        fn no_bytes_of_a_known_type_panic(
            kind in 0_u8..6,
            bytes in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let bytes = [&[kind][..], &bytes].concat();
            if let Ok(datagram) = Datagram::parse(&bytes) {
                prop_assert!(bytes.starts_with(&datagram.encode()));
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
        assert_eq!(Datagram::parse(&response), Ok(parsed));
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
        assert_eq!(Datagram::parse(&[5; 40]), Err(WireError::UnknownType(5)));
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
    }
}
