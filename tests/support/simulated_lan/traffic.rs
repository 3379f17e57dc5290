//! What was sent, and what arrived.

use std::collections::{BTreeMap, HashMap};

use peerix::protocol::datagram::Packet;

/// Heads of IPv4 and UDP.
const HEAD_BYTES: usize = 28;

/// The types, as they are called in docs/protocol.md; a number is its type byte.
const TYPES: [&str; 4] = ["request", "response", "ask", "answer"];

/// Type byte of a response, and of an answer.
pub(crate) const RESPONSE: u8 = 1;
pub(crate) const ANSWER: u8 = 3;

/// Counts of datagrams, broadcasts once.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Of each host: by type byte, broadcast or not.
    sent: Vec<BTreeMap<(u8, bool), u64>>,
    received: Vec<BTreeMap<u8, u64>>,
    /// Answers to each broadcast ask, by its id.
    answers: HashMap<[u8; 4], u64>,
    /// All that was sent, with the heads of IP and UDP.
    pub(crate) bytes: u64,
    pub(crate) datagrams: u64,
}

impl Traffic {
    pub(super) fn add_host(&mut self) {
        self.sent.push(BTreeMap::new());
        self.received.push(BTreeMap::new());
    }

    pub(super) fn note_sent(&mut self, host: usize, packet: &Packet, is_broadcast: bool) {
        let (kind, id) = (packet[0], [packet[1], packet[2], packet[3], packet[4]]);
        *self.sent[host].entry((kind, is_broadcast)).or_default() += 1;
        self.datagrams += 1;
        self.bytes += (packet.len() + HEAD_BYTES) as u64;
        if is_broadcast {
            self.answers.insert(id, 0);
        } else if matches!(kind, RESPONSE | ANSWER)
            && let Some(count) = self.answers.get_mut(&id)
        {
            *count += 1;
        }
    }

    pub(super) fn note_received(&mut self, host: usize, bytes: &[u8]) {
        if let Some(&kind) = bytes.first() {
            *self.received[host].entry(kind).or_default() += 1;
        }
    }

    pub(crate) fn sent(&self, host: usize, kind: u8, is_broadcast: bool) -> u64 {
        let count = self.sent[host].get(&(kind, is_broadcast));
        count.copied().unwrap_or_default()
    }

    pub(crate) fn received(&self, host: usize, kind: u8) -> u64 {
        self.received[host].get(&kind).copied().unwrap_or_default()
    }

    /// The most answers that one broadcast got.
    pub(crate) fn most_answers(&self) -> u64 {
        self.answers.values().copied().max().unwrap_or_default()
    }

    /// What all hosts sent, by type.
    pub(crate) fn by_type(&self) -> Vec<(&'static str, u64)> {
        let of = |kind: usize| {
            let counts = self.sent.iter().flatten();
            let mine = counts.filter(|((sent, _), _)| usize::from(*sent) == kind);
            mine.map(|(_, &count)| count).sum()
        };
        let types = TYPES.iter().enumerate();
        types.map(|(kind, &name)| (name, of(kind))).collect()
    }
}
