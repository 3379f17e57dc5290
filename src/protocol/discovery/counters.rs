//! What happened, in numbers. Nothing that a stranger sends is logged; it is counted here.

use crate::protocol::wire::WireError;

/// Counts since the process began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that came in, all of them.
    pub received: u64,
    /// Requests that were taken: allowed, within the rate, not our own.
    pub requests: u64,
    /// Batches among them.
    pub batches: u64,
    /// Requests that came after a batch which asked the same.
    pub asked_in_batch: u64,
    /// Answers left out because a large LAN was asked for what is not here.
    pub left_out: u64,
    /// Answers to our batches, of asks in progress.
    pub answers: u64,
    /// Asks sent again to those who were silent.
    pub repeated: u64,
    /// Questions broadcast while summaries decided, to hear of what is new.
    pub probes: u64,
    /// Responses to a lookup in progress.
    pub responses: u64,
    /// Absents to a lookup in progress.
    pub absents: u64,
    /// Hellos of others.
    pub hellos: u64,
    /// Answers to our hello.
    pub heres: u64,
    /// Answers that came when their lookup had ended.
    pub late: u64,
    /// Second answers to the same request, and second hellos.
    pub duplicates: u64,
    /// Our own datagrams, heard again.
    pub echoes: u64,
    /// Requests and hellos dropped because their source sends too many.
    pub rate_limited: u64,
    /// Peers not taken into the table: it is full, or their network introduces too many.
    pub peers_refused: u64,
    /// Hellos broadcast: bursts begun.
    pub bursts: u64,
    /// Lookups begun.
    pub lookups: u64,
    /// Lookups ended because there was nobody to ask or to wait for.
    pub ended_alone: u64,
    /// Lookups ended because all that were waited for had answered.
    pub ended_answered: u64,
    /// Lookups ended because summaries said what all have.
    pub ended_covered: u64,
    /// Lookups ended by time.
    pub ended_timeout: u64,
    /// Lookups refused because too many were in progress.
    pub ended_overload: u64,
    /// Lookups ended by who began them.
    pub cancelled: u64,
    rejected: [u64; Reject::ALL.len()],
}

impl Counters {
    /// Lookups that ended, by how.
    pub fn ended(&self) -> [(&'static str, u64); 6] {
        [
            ("alone", self.ended_alone),
            ("answered", self.ended_answered),
            ("cancelled", self.cancelled),
            ("covered", self.ended_covered),
            ("overload", self.ended_overload),
            ("timeout", self.ended_timeout),
        ]
    }

    /// Datagrams that were dropped, by what was wrong with them.
    pub fn rejected(&self) -> impl Iterator<Item = (Reject, u64)> + '_ {
        Reject::ALL
            .iter()
            .map(|&reject| (reject, self.rejected[reject as usize]))
    }

    pub(super) fn reject(&mut self, reject: Reject) {
        self.rejected[reject as usize] += 1;
    }
}

/// Why a datagram was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reject {
    /// From outside the allowed networks.
    NotAllowed,
    /// From port 0, or an address that is not one machine's.
    Source,
    /// No bytes.
    Empty,
    /// A type that is not known.
    UnknownType,
    /// Ends within a field.
    Truncated,
    /// The hash is not one.
    Hash,
    /// The path is not `local/HASH.narinfo`.
    Path,
    /// The path is for another hash than the one asked for.
    OtherHash,
    /// Not a TCP port.
    Port,
    /// A version that does not exist.
    Version,
    /// A batch of nothing, or of more than fits.
    Count,
    /// An answer to nothing that was asked.
    UnknownId,
}

impl Reject {
    /// All of them, in order.
    pub const ALL: [Self; 12] = [
        Self::NotAllowed,
        Self::Source,
        Self::Empty,
        Self::UnknownType,
        Self::Truncated,
        Self::Hash,
        Self::Path,
        Self::OtherHash,
        Self::Port,
        Self::Version,
        Self::Count,
        Self::UnknownId,
    ];

    /// A name for metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotAllowed => "not-allowed",
            Self::Source => "source",
            Self::Empty => "empty",
            Self::UnknownType => "unknown-type",
            Self::Truncated => "truncated",
            Self::Hash => "hash",
            Self::Path => "path",
            Self::OtherHash => "other-hash",
            Self::Port => "port",
            Self::Version => "version",
            Self::Count => "count",
            Self::UnknownId => "unknown-id",
        }
    }
}

impl From<WireError> for Reject {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Empty => Self::Empty,
            WireError::UnknownType(_) => Self::UnknownType,
            WireError::Truncated { .. } => Self::Truncated,
            WireError::Hash => Self::Hash,
            WireError::Path => Self::Path,
            WireError::Port(_) => Self::Port,
            WireError::Version => Self::Version,
            WireError::Count(_) => Self::Count,
        }
    }
}
