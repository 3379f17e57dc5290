//! One lookup, as its owner sees it.

use std::sync::Weak;

use tokio::sync::mpsc;

use super::shared::Shared;
use crate::protocol::{
    PeerAddr,
    discovery::{LookupId, MAX_CANDIDATES, Outcome},
};

/// Room for all candidates of a lookup, and its end.
pub(super) const EVENTS: usize = MAX_CANDIDATES + 1;

#[derive(Debug)]
pub(super) enum Event {
    Candidate(PeerAddr),
    Finished(Outcome),
}

/// The holders of a path, as they answer. Dropping it ends the lookup.
#[derive(Debug)]
pub struct Lookup {
    events: mpsc::Receiver<Event>,
    outcome: Option<Outcome>,
    /// What to cancel when dropped, while the lookup may be in progress.
    active: Option<(LookupId, Weak<Shared>)>,
}

impl Lookup {
    pub(super) fn new(
        events: mpsc::Receiver<Event>,
        active: Option<(LookupId, Weak<Shared>)>,
    ) -> Self {
        Self {
            events,
            outcome: None,
            active,
        }
    }

    /// The next peer that says it shares the path, or `None` when no more will. Cancel safe.
    pub async fn next(&mut self) -> Option<PeerAddr> {
        match self.events.recv().await {
            Some(Event::Candidate(peer)) => Some(peer),
            Some(Event::Finished(outcome)) => {
                self.outcome = Some(outcome);
                self.active = None;
                None
            }
            None => None,
        }
    }

    /// One of the peers that were named does not give the path: nothing waits for it.
    pub fn reject_candidate(&self) {
        if let Some((id, shared)) = &self.active
            && let Some(shared) = shared.upgrade()
        {
            shared.reject_candidate(*id);
        }
    }

    /// How it ended, once [`Self::next`] has returned `None`; `None` also if the daemon stops.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome
    }
}

impl Drop for Lookup {
    fn drop(&mut self) {
        if let Some((id, shared)) = self.active.take()
            && let Some(shared) = shared.upgrade()
        {
            shared.cancel(id);
        }
    }
}
