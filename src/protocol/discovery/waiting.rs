//! When a lookup goes on to its next stage, and when it is over.

use std::time::{Duration, Instant};

use super::{
    Action, Discovery, LookupId,
    lookup::{Lookup, Stage},
    slots::Slots,
};

/// A peer that says it has a path has so long to give it before others are asked.
const CANDIDATE_WAIT: Duration = Duration::from_millis(5);

impl Discovery {
    /// Looks whether a lookup is over, or what it goes on with.
    pub(super) fn check(&mut self, now: Instant, id: LookupId, actions: &mut Vec<Action>) {
        let is_crowded = self.is_crowded(now) && !self.heard_links(now).is_empty();
        loop {
            let Some(lookup) = self.lookups.get_mut(&id) else {
                return;
            };
            if lookup.is_out_of_time {
                lookup.waiting = Slots::default();
            }
            let is_done = match lookup.stage {
                Stage::Unicast => lookup.waiting.is_empty(),
                Stage::Broadcast { over } => over.is_some_and(|over| {
                    let until = if lookup.is_out_of_time {
                        over.until.min(over.free_until)
                    } else {
                        over.until
                    };
                    until <= now
                }),
                // The table may have become too large since.
                Stage::Old { .. } => is_crowded && !lookup.was_broadcast,
            };
            if is_done && self.hold(now, id, is_crowded).is_none() {
                self.go_on(now, id, is_crowded, actions);
                continue;
            }
            let (free, paid) = self.obstacles(now, id);
            let Some(lookup) = self.lookups.get_mut(&id) else {
                return;
            };
            if free.is_some_and(|until| until > now) {
                lookup.check_at = free;
                if lookup.paid_since.take().is_some() {
                    self.burst.budget.end(now);
                }
                return;
            }
            let Some(until) = paid.filter(|&until| until > now && !lookup.is_out_of_time) else {
                let outcome = lookup.outcome();
                self.remove(now, id);
                self.finish(id, outcome, actions);
                return;
            };
            let left = self.burst.budget.left(now);
            if left.is_zero() {
                lookup.is_out_of_time = true;
                continue;
            }
            if lookup.paid_since.is_none() {
                self.burst.budget.begin(now);
                lookup.paid_since = Some(now);
                lookup.first_paid.get_or_insert(now);
            }
            lookup.check_at = Some(until.min(now + left));
            return;
        }
    }

    /// Until when a lookup must not go on to the next stage, if that is not over: answers to the
    /// discovery broadcast may still come, or a peer that says it has the path may give it.
    pub(super) fn hold(&self, now: Instant, id: LookupId, is_crowded: bool) -> Option<Instant> {
        let lookup = self.lookups.get(&id)?;
        let is_broadcast_next = is_crowded && !lookup.was_broadcast;
        let gate = self
            .burst
            .gate
            .filter(|_| !is_broadcast_next && !self.links.is_empty());
        let named = self.candidate_wait(now, lookup);
        gate.max(named).filter(|&until| until > now)
    }

    /// A candidate does not give the path: others are asked without waiting for it.
    pub fn reject_candidate(&mut self, now: Instant, id: LookupId, actions: &mut Vec<Action>) {
        if let Some(lookup) = self.lookups.get_mut(&id) {
            lookup.reject_candidate();
            self.check(now, id, actions);
        }
    }

    /// Until when a peer that says it has the path may give it before others are asked.
    pub(super) fn candidate_wait(&self, now: Instant, lookup: &Lookup) -> Option<Instant> {
        let named = lookup.named_at.map(|at| at + CANDIDATE_WAIT);
        named.filter(|_| !self.burst.budget.left(now).is_zero())
    }

    /// Until when a lookup is held open at no cost, and until when on the budget of the burst.
    pub(super) fn obstacles(
        &self,
        now: Instant,
        id: LookupId,
    ) -> (Option<Instant>, Option<Instant>) {
        let Some(lookup) = self.lookups.get(&id) else {
            return (None, None);
        };
        let wake_timeout = self.settings.wake_timeout;
        let has_links = !self.links.is_empty();
        let mut free = self.burst.gate.filter(|_| has_links);
        if !matches!(lookup.stage, Stage::Old { .. }) {
            free = free.max(self.candidate_wait(now, lookup));
        }
        let mut paid = self.burst.first_burst_until(wake_timeout);
        paid = paid.filter(|_| has_links);
        match lookup.stage {
            Stage::Unicast => {
                let waits = lookup
                    .waiting
                    .iter()
                    .filter_map(|slot| self.peers.get(slot));
                let is_over = self.burst.budget.left(now).is_zero();
                let wait = waits.map(|peer| peer.free_wait(now, is_over)).max();
                free = free.max(wait.map(|wait| lookup.began + wait));
                // The repeats of each say when it is given up.
                paid = paid.max(wait.map(|_| now + wake_timeout));
            }
            Stage::Broadcast { over: None } => free = free.max(Some(now + wake_timeout)),
            Stage::Broadcast { over: Some(over) } => {
                free = free.max(Some(over.until.min(over.free_until)));
                paid = paid.max(Some(over.until));
            }
            Stage::Old {
                until,
                is_free: true,
            } => free = free.max(Some(until)),
            Stage::Old { until, .. } => paid = paid.max(Some(until)),
        }
        (free, paid)
    }

    /// The next stage of a lookup that nobody has answered so far.
    pub(super) fn go_on(
        &mut self,
        now: Instant,
        id: LookupId,
        is_crowded: bool,
        actions: &mut Vec<Action>,
    ) {
        if let Some(lookup) = self.lookups.get_mut(&id)
            && is_crowded
            && !lookup.was_broadcast
        {
            self.broadcast_queue.push(id);
            lookup.was_broadcast = true;
            lookup.stage = Stage::Broadcast { over: None };
            return;
        }
        let is_requested = |lookup: &Lookup| lookup.old_requested.is_some();
        if !self.lookups.get(&id).is_some_and(is_requested) {
            self.request_of_old_peers(now, id, actions);
        }
        let is_free = self.peers.has_old_peer(now);
        let timeout = self.settings.timeout;
        if let Some(lookup) = self.lookups.get_mut(&id) {
            let until = match lookup.old_requested {
                Some(at) if is_free => at + timeout,
                Some(_) => self.burst.old_wait(now, timeout),
                None => now,
            };
            lookup.stage = Stage::Old { until, is_free };
        }
    }
}
