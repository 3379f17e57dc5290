//! The burst of lookups in progress: when it began, and what is done once in it.

use std::time::{Duration, Instant};

use crate::protocol::{PeerAddr, WaitBudget};

/// A burst ends when nothing was looked up for this long.
pub(super) const QUIET: Duration = Duration::from_secs(60);

/// A change of our networks begins a burst this often at most.
const CHANGE_PAUSE: Duration = Duration::from_secs(10);

/// In between, a change of our networks is followed by one discovery broadcast, this often at most.
const CHANGE_LATENCY: Duration = Duration::from_millis(200);

/// While there is work, peers that are new are looked for this often.
const DISCOVERY_PAUSE: Duration = Duration::from_secs(10);

/// When the discovery broadcast of a new burst is repeated: one frame may be lost.
const DISCOVERY_COPIES: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(10),
    Duration::from_millis(40),
];

/// Requests to old peers in one burst, and then in a second, while none of them has answered
/// within the hour.
const OLD_REQUESTS_AT_ONCE: u32 = 1_000;
const OLD_REQUESTS_PER_SECOND: u32 = 50;

/// The first requests to old peers go to all networks, the others to those with peers. One frame
/// may be lost; where there are many interfaces only the first one does.
const OLD_REQUESTS_EVERYWHERE: u32 = 3;
const MANY_LINKS: usize = 16;

/// One burst after the other.
#[derive(Debug, Default)]
pub(super) struct Burst {
    /// How many there were.
    pub(super) number: u64,
    pub(super) began: Option<Instant>,
    pub(super) budget: WaitBudget,
    /// No lookup is a miss before: the answers to the first discovery broadcast are not in.
    pub(super) gate: Option<Instant>,
    /// When the next discovery broadcasts leave.
    discovery: Vec<Instant>,
    last_discovery: Option<Instant>,
    last_activity: Option<Instant>,
    is_network_new: bool,
    /// A change that has not been followed by a discovery broadcast.
    is_change_unasked: bool,
    /// When an announcement last counted as a change.
    announced: Option<Instant>,
    last_change: Option<Instant>,
    old_requests: u32,
    old_window: Option<(Instant, u32)>,
    /// The first requests to old peers of this burst are waited for until then.
    old_wait_ends: Option<Instant>,
    /// A wait for this peer came back when it said that it has a path, which it has not given yet.
    credited: Option<PeerAddr>,
}

impl Burst {
    /// Whether lookups are being made.
    pub(super) fn is_on(&self, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < QUIET;
        self.last_activity.is_some_and(is_recent)
    }

    /// A carrier, an address or a route has come: peers may be reached that were not before.
    pub(super) fn note_network_change(&mut self) {
        self.is_network_new = true;
        self.is_change_unasked = true;
    }

    /// A peer is announced that was not known. Anyone can announce: it counts once a minute.
    pub(super) fn note_announcement(&mut self, now: Instant) {
        let is_due = |at| now.saturating_duration_since(at) >= QUIET;
        if self.announced.is_none_or(is_due) {
            self.announced = Some(now);
            self.note_network_change();
        }
    }

    /// Notes that something is looked up. True if that begins a burst; `has_networks`: there is
    /// something to broadcast on.
    pub(super) fn note_activity(&mut self, now: Instant, has_networks: bool) -> bool {
        let is_change_due = self
            .last_change
            .is_none_or(|at| now.saturating_duration_since(at) >= CHANGE_PAUSE);
        let is_changed = self.is_network_new && is_change_due;
        let is_on = self.is_on(now);
        let begins = !is_on || is_changed;
        // A burst that begins anyway does not delay the next change.
        if is_on && is_changed {
            self.last_change = Some(now);
        }
        self.last_activity = Some(now);
        if begins {
            self.number += 1;
            self.began = Some(now);
            self.budget.refill(now);
            self.gate = None;
            self.credited = None;
            self.old_requests = 0;
            self.old_wait_ends = None;
            self.discovery = if has_networks {
                DISCOVERY_COPIES.iter().map(|&after| now + after).collect()
            } else {
                Vec::new()
            };
            self.is_network_new = false;
            self.is_change_unasked = false;
        } else if has_networks
            && self.is_change_unasked
            && self.is_discovery_older_than(now, CHANGE_LATENCY)
        {
            // Too early for another budget, and not for asking who is there.
            self.is_change_unasked = false;
            self.gate = None;
            self.discovery = vec![now];
        } else if has_networks
            && self.discovery.is_empty()
            && self.is_discovery_older_than(now, DISCOVERY_PAUSE)
        {
            self.discovery.push(now);
        }
        begins
    }

    fn is_discovery_older_than(&self, now: Instant, time: Duration) -> bool {
        let is_older = |at| now.saturating_duration_since(at) >= time;
        self.last_discovery.is_none_or(is_older)
    }

    /// When the next discovery broadcast leaves.
    pub(super) fn discovery_at(&self) -> Option<Instant> {
        self.discovery.first().copied()
    }

    /// Takes a discovery broadcast that is due.
    pub(super) fn take_discovery(&mut self, now: Instant) -> bool {
        let is_due = self.discovery_at().is_some_and(|at| at <= now);
        if is_due {
            self.discovery.remove(0);
            self.last_discovery = Some(now);
        }
        is_due
    }

    /// Whether answers to a discovery broadcast of ours may be coming in.
    pub(super) fn is_discovering(&self, now: Instant) -> bool {
        let is_recent = |at| now.saturating_duration_since(at) < Duration::from_secs(1);
        self.last_discovery.is_some_and(is_recent)
    }

    /// In the first burst of a process nothing is known: until then any peer may answer, also
    /// one that has to wake up.
    pub(super) fn first_burst_until(&self, wake_timeout: Duration) -> Option<Instant> {
        (self.number == 1).then_some(self.began? + wake_timeout)
    }

    /// Takes one request to old peers, if one more is allowed: `Some(true)` for one that goes
    /// to all networks.
    pub(super) fn take_old_request(
        &mut self,
        now: Instant,
        has_old_peer: bool,
        links: usize,
    ) -> Option<bool> {
        self.old_requests = self.old_requests.saturating_add(1);
        if !has_old_peer && self.old_requests > OLD_REQUESTS_AT_ONCE {
            let is_over = |at| now.saturating_duration_since(at) >= Duration::from_secs(1);
            let (_, count) = match &mut self.old_window {
                Some(window) if !is_over(window.0) => window,
                other => other.insert((now, 0)),
            };
            *count += 1;
            if *count > OLD_REQUESTS_PER_SECOND {
                return None;
            }
        }
        let everywhere = if links > MANY_LINKS {
            1
        } else {
            OLD_REQUESTS_EVERYWHERE
        };
        Some(self.old_requests <= everywhere)
    }

    /// `peer` says that it has a path, for which a lookup paid since then. The time comes back at
    /// once, for one peer at a time until it gives the path: its narinfo has to be waited for, too.
    pub(super) fn credit(&mut self, now: Instant, peer: PeerAddr, paid_since: Option<Instant>) {
        if let Some(since) = paid_since
            && self.credited.is_none()
        {
            self.credited = Some(peer);
            self.budget.refund(now, since..now);
        }
    }

    /// `peer` has given a path.
    pub(super) fn note_given(&mut self, peer: PeerAddr) {
        if self.credited == Some(peer) {
            self.credited = None;
        }
    }

    /// Until when a request to old peers, none of which is known, is waited for: once a burst.
    pub(super) fn old_wait(&mut self, now: Instant, timeout: Duration) -> Instant {
        *self.old_wait_ends.get_or_insert(now + timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_begins_after_a_quiet_minute_or_a_change_of_networks() {
        let (mut burst, start) = (Burst::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        burst.note_network_change();
        assert!(burst.note_activity(start, true));
        burst.note_network_change();
        assert!(burst.note_activity(after(1), true), "the first change");
        assert!(!burst.note_activity(after(59), true));
        assert!(!burst.note_activity(after(118), true));
        assert!(burst.note_activity(after(178), true));
        burst.note_network_change();
        assert!(burst.note_activity(after(187), true));
        burst.note_network_change();
        assert!(!burst.note_activity(after(196), true), "10 s at most");
        assert!(burst.note_activity(after(197), true));
        assert!(!burst.note_activity(after(220), true));
    }

    #[test]
    fn peers_are_looked_for_three_times_and_then_every_ten_seconds_of_work() {
        let (mut burst, start) = (Burst::default(), Instant::now());
        let after = |ms| start + Duration::from_millis(ms);
        burst.note_activity(start, true);
        let mut sent = Vec::new();
        for ms in 0..25_000 {
            if ms % 100 == 0 {
                burst.note_activity(after(ms), true);
            }
            if burst.take_discovery(after(ms)) {
                sent.push(ms);
            }
        }
        assert_eq!(sent, [0, 10, 40, 10_100, 20_100]);
        let mut alone = Burst::default();
        assert!(alone.note_activity(start, false));
        assert!(!alone.take_discovery(after(1_000)));
    }

    #[test]
    fn requests_to_old_peers_are_bounded_until_one_answers() {
        let (mut burst, now) = (Burst::default(), Instant::now());
        burst.note_activity(now, true);
        let count = |burst: &mut Burst, now, has_old| {
            let sent = (0..5_000).filter_map(|_| burst.take_old_request(now, has_old, 2));
            let sent: Vec<bool> = sent.collect();
            (sent.len(), sent.into_iter().filter(|&it| it).count())
        };
        assert_eq!(count(&mut burst, now, false), (1_050, 3));
        assert_eq!(
            count(&mut burst, now + Duration::from_secs(1), false),
            (50, 0)
        );
        assert_eq!(count(&mut burst, now, true), (5_000, 0));
        let mut many = Burst::default();
        assert!(many.note_activity(now, true));
        let sent = [0, 1].map(|_| many.take_old_request(now, false, MANY_LINKS + 1));
        assert_eq!(sent, [Some(true), Some(false)], "on many interfaces");
    }
}
