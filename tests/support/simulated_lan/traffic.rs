//! What was sent, and what arrived.

use std::collections::BTreeMap;

/// Heads of IPv4 and UDP.
const HEAD_BYTES: usize = 28;

/// The types, as they are called in docs/protocol.md; a number is its type byte.
pub(crate) const TYPES: [&str; 7] = [
    "request", "response", "absent", "hello", "here", "batch", "answer",
];

/// Counts of datagrams, broadcasts once.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Of each host: by type byte, broadcast or not.
    sent: Vec<BTreeMap<(u8, bool), usize>>,
    received: Vec<BTreeMap<u8, usize>>,
    /// All that was sent, with the heads of IP and UDP.
    pub(crate) bytes: u64,
    pub(crate) datagrams: u64,
}

impl Traffic {
    pub(super) fn add_host(&mut self) {
        self.sent.push(BTreeMap::new());
        self.received.push(BTreeMap::new());
    }

    pub(super) fn note_sent(&mut self, host: usize, packet: &[u8], broadcast: bool) {
        *self.sent[host].entry((packet[0], broadcast)).or_default() += 1;
        self.datagrams += 1;
        self.bytes += (packet.len() + HEAD_BYTES) as u64;
    }

    pub(super) fn note_received(&mut self, host: usize, packet: &[u8]) {
        *self.received[host].entry(packet[0]).or_default() += 1;
    }

    pub(crate) fn sent(&self, host: usize, kind: u8, broadcast: bool) -> usize {
        let count = self.sent[host].get(&(kind, broadcast));
        count.copied().unwrap_or_default()
    }

    pub(crate) fn received(&self, host: usize, kind: u8) -> usize {
        self.received[host].get(&kind).copied().unwrap_or_default()
    }

    /// All that one host sent.
    pub(crate) fn all_sent(&self, host: usize) -> usize {
        self.sent[host].values().sum()
    }

    /// What all hosts sent, by type.
    pub(crate) fn by_type(&self) -> Vec<(&'static str, u64)> {
        let of = |kind: usize| {
            let counts = self.sent.iter().flatten();
            let mine = counts.filter(|((sent, _), _)| usize::from(*sent) == kind);
            mine.map(|(_, &count)| count as u64).sum()
        };
        let types = TYPES.iter().enumerate();
        types.map(|(kind, &name)| (name, of(kind))).collect()
    }
}
