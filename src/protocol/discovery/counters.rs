//! What happened, in numbers. Nothing that a stranger sends is logged; it is counted here.

use crate::protocol::datagram::DatagramError;

/// Counts since the process began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Datagrams that came in, all of them.
    pub received: u64,
    /// Asks of peers that were taken.
    pub asks: u64,
    /// Requests of old peers that were taken.
    pub old_requests: u64,
    /// Asks that were not answered because there was nothing to say.
    pub left_out: u64,
    /// Answers to our asks.
    pub answers: u64,
    /// Responses of old peers.
    pub responses: u64,
    /// Paths in answers that came when their lookup had ended.
    pub late: u64,
    /// Our own datagrams, heard again.
    pub echoes: u64,
    /// Questions dropped because too many are asked.
    pub rate_limited: u64,
    /// Peers not taken into the table: it is full, or their network introduces too many.
    pub peers_refused: u64,
    /// Asks sent to one peer.
    pub asks_sent: u64,
    /// Hashes asked again because no answer had come.
    pub repeated: u64,
    /// Asks broadcast for what a sample of a large LAN does not have.
    pub broadcasts_sent: u64,
    /// Broadcasts that ask who is there.
    pub discoveries: u64,
    /// Requests sent for old peers.
    pub old_requests_sent: u64,
    /// Times that a peer let a whole lookup pass.
    pub gone_silent: u64,
    /// Bursts of lookups begun.
    pub bursts: u64,
    /// Lookups begun.
    pub lookups: u64,
    /// Lookups ended because there was nobody to ask.
    pub ended_alone: u64,
    /// Lookups ended because all that were waited for had answered.
    pub ended_answered: u64,
    /// Lookups ended by time.
    pub ended_timed_out: u64,
    /// Lookups refused because too many were in progress.
    pub ended_overload: u64,
    /// Lookups ended by whoever began them.
    pub cancelled: u64,
    rejected: [u64; Reject::ALL.len()],
}

impl Counters {
    /// Lookups that ended, by how.
    pub fn ended(&self) -> [(&'static str, u64); 5] {
        [
            ("alone", self.ended_alone),
            ("answered", self.ended_answered),
            ("cancelled", self.cancelled),
            ("overload", self.ended_overload),
            ("timed-out", self.ended_timed_out),
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
    /// A broadcast from another network, or from another port than ours.
    Broadcast,
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
    /// More hashes than fit, or another number of states than of hashes asked for.
    Count,
    /// An answer to nothing that was asked.
    UnknownId,
}

impl Reject {
    /// All of them, in order.
    pub const ALL: [Self; 13] = [
        Self::NotAllowed,
        Self::Source,
        Self::Broadcast,
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
            Self::Broadcast => "broadcast",
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

impl From<DatagramError> for Reject {
    fn from(error: DatagramError) -> Self {
        match error {
            DatagramError::Empty => Self::Empty,
            DatagramError::UnknownType(_) => Self::UnknownType,
            DatagramError::Truncated { .. } => Self::Truncated,
            DatagramError::Hash => Self::Hash,
            DatagramError::Path => Self::Path,
            DatagramError::Port(_) => Self::Port,
            DatagramError::Version => Self::Version,
            DatagramError::Count(_) => Self::Count,
        }
    }
}
