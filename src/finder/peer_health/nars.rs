//! The marks about the NARs of a peer.

use std::time::Instant;

use super::{PeerHealth, record::Record};
use crate::protocol::PeerAddr;

impl PeerHealth {
    /// Whether the NARs of `peer` fail.
    pub fn nars_fail(&self, peer: PeerAddr) -> bool {
        let state = self.lock();
        let record = state.peers.peek(&peer);
        record.is_some_and(Record::nars_fail)
    }

    /// Whether the last NAR of `peer` failed.
    pub fn last_nar_failed(&self, peer: PeerAddr) -> bool {
        let state = self.lock();
        let record = state.peers.peek(&peer);
        record.is_some_and(|record| record.nar_failures > 0)
    }

    /// Whether a NAR may be asked of `peer` now. One whose NARs stall is asked when a probe has
    /// passed, or when one is due: then this is the probe. A failure of another kind costs next to
    /// nothing, and one that restarts has cut its NARs and is back in a moment.
    pub fn may_ask_nar(&self, now: Instant, peer: PeerAddr) -> bool {
        let mut state = self.lock();
        let Some(record) = state.peers.get_mut(&peer) else {
            return true;
        };
        if !record.nars_fail() || !record.nar_stalled || record.nar_probe_passed {
            return true;
        }
        let is_due = record.is_nar_probe_due(now);
        if is_due {
            record.nar_probed_at = Some(now);
        }
        is_due
    }

    /// Whether the first bytes of a NAR may be asked of `peer` at `now`, whose NARs fail.
    pub fn is_nar_probe_due(&self, now: Instant, peer: PeerAddr) -> bool {
        self.lock().record(peer).is_nar_probe_due(now)
    }

    /// The same, and then it is asked for them.
    pub fn may_probe_nar(&self, now: Instant, peer: PeerAddr) -> bool {
        let mut state = self.lock();
        let record = state.record(peer);
        let may = record.is_nar_probe_due(now);
        if may {
            record.nar_probed_at = Some(now);
        }
        may
    }
}
