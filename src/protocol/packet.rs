//! The bytes of a datagram.

use std::{fmt, ops::Deref};

use smallvec::SmallVec;

use super::wire::About;

/// Room, in place, for all datagrams but a batch.
const PACKET_BYTES: usize = 56;

/// The bytes of one datagram; in place, except those of a batch.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Packet(SmallVec<[u8; PACKET_BYTES]>);

impl Packet {
    pub(super) fn put(&mut self, field: &[u8]) {
        self.0.extend_from_slice(field);
    }

    pub(super) fn extend(&mut self, bytes: impl IntoIterator<Item = u8>) {
        self.0.extend(bytes);
    }

    pub(super) fn put_about(&mut self, kind: u8, id: u32, about: About) {
        self.put(&[kind]);
        self.put(&id.to_be_bytes());
        self.put(&about.instance.to_be_bytes());
        self.put(&about.version.to_be_bytes());
        self.put(&about.http_port.to_be_bytes());
        self.put(&about.generation.to_be_bytes());
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
