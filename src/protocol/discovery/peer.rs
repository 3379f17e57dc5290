//! One peer: what is known of it, what is on its way to it, and how long it is waited for.

use std::{
    net::SocketAddr,
    ops::Range,
    time::{Duration, Instant},
};

use super::LookupId;
use crate::protocol::{PeerAddr, datagram::Sender};

/// Copies of an ask beside the first.
pub(super) const REPEATS: u32 = 3;

/// The longest pause between two copies.
const LONGEST_GAP: Duration = Duration::from_millis(80);

/// The retransmission time before a round trip was measured, and the least there is: a busy
/// machine is late by that at times.
const FIRST_TIMEOUT: Duration = Duration::from_millis(20);
const LEAST_TIMEOUT: Duration = Duration::from_millis(5);

/// The longest that is believed: beyond it nothing is waited for.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(1);

/// A wait that every lookup may cost.
pub(super) const FREE_WAIT: Duration = Duration::from_millis(5);

/// The same while a peer answers that is not farther away than that: two of its datagrams may be
/// lost. It was heard within [`ANSWERS_NOW`].
const FREE_REPEATS: Duration = Duration::from_millis(20);
const ANSWERS_NOW: Duration = Duration::from_secs(1);

/// A peer that was heard within this time is awake.
const AWAKE: Duration = Duration::from_secs(60);

/// The round trip of a peer that is worth it is free, up to this.
const LONGEST_FREE_WAIT: Duration = Duration::from_millis(200);

/// A peer that gave a path within this time is worth waiting for.
const GIVEN_COUNTS_FOR: Duration = Duration::from_secs(7 * 24 * 3600);

/// The next ask leaves when the last was answered, or after this.
const PAUSE: Duration = Duration::from_millis(1);

/// The same for a peer that does not answer: the kernel keeps what is sent to a host that is
/// not there for seconds, in the buffer that the asks to others need.
const SILENT_PAUSE: Duration = Duration::from_millis(100);

/// From one old request to the next to a peer that never answered one.
const OLD_REQUEST_PAUSE: Duration = Duration::from_millis(100);

/// How long a round trip takes, as RFC 6298 estimates it.
#[derive(Debug, Clone, Copy)]
struct RoundTrip {
    mean: Duration,
    deviation: Duration,
}

/// A hash that a peer is to be asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) lookup: LookupId,
    /// 0 for the first copy.
    pub(super) copy: u32,
    /// When that copy left.
    pub(super) first_asked: Instant,
}

/// Lookups whose copy left in one datagram: at `due` those without an answer are repeated.
#[derive(Debug)]
pub(super) struct Wave {
    pub(super) due: Instant,
    pub(super) sent: Vec<Wanted>,
}

/// One peer, at one address.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    pub(super) is_configured: bool,
    /// DNS-SD announces it.
    pub(super) is_announced: bool,
    /// The configuration names this machine itself.
    pub(super) is_myself: bool,
    /// What it says of itself; none of an old peer, and before it has answered.
    pub(super) sender: Option<Sender>,
    /// Index of the interface that its answers come in on; 0 if that is not known.
    pub(super) interface: u32,
    /// It has answered a unicast ask.
    pub(super) is_live: bool,
    /// It has let a whole lookup pass: asked, not waited for, until it answers.
    pub(super) is_silent: bool,
    /// When it last answered.
    pub(super) heard: Option<Instant>,
    /// When it last answered as an old peer does.
    pub(super) heard_old: Option<Instant>,
    /// When it was last asked as an old peer is.
    pub(super) old_requested: Option<Instant>,
    /// When it last gave a path.
    pub(super) given: Option<Instant>,
    /// When the budget paid for lookups that it then said it has the path of. It comes back when it
    /// gives one.
    pub(super) owed: Option<Range<Instant>>,
    /// Paths it gave in this burst.
    pub(super) given_in_burst: u32,
    pub(super) queue: Vec<Wanted>,
    pub(super) waves: Vec<Wave>,
    /// The last ask that left: id, when, and whether it was answered.
    pub(super) last_ask: Option<(u32, Instant, bool)>,
    pub(super) present: u64,
    pub(super) absent: u64,
    round_trip: Option<RoundTrip>,
}

impl Peer {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            is_configured: false,
            is_announced: false,
            is_myself: false,
            sender: None,
            interface: 0,
            is_live: false,
            is_silent: false,
            heard: None,
            heard_old: None,
            old_requested: None,
            given: None,
            owed: None,
            given_in_burst: 0,
            queue: Vec::new(),
            waves: Vec::new(),
            last_ask: None,
            present: 0,
            absent: 0,
            round_trip: None,
        }
    }

    /// Takes in how long an answer took.
    pub(super) fn measure(&mut self, took: Duration) {
        self.round_trip = Some(match self.round_trip {
            Some(RoundTrip { mean, deviation }) => RoundTrip {
                deviation: (deviation * 3 + mean.abs_diff(took)) / 4,
                mean: (mean * 7 + took) / 8,
            },
            None => RoundTrip {
                mean: took,
                deviation: took / 2,
            },
        });
    }

    /// The retransmission time.
    pub(super) fn timeout(&self) -> Duration {
        let measured = |it: RoundTrip| it.mean + it.deviation * 4;
        let timeout = self.round_trip.map_or(FIRST_TIMEOUT, measured);
        timeout.clamp(LEAST_TIMEOUT, LONGEST_TIMEOUT)
    }

    /// The same, if a round trip was measured.
    pub(super) fn measured_timeout(&self) -> Option<Duration> {
        self.round_trip.map(|_| self.timeout())
    }

    /// How long after copy number `copy` the next one leaves, or the repeats are over.
    pub(super) fn gap(&self, copy: u32) -> Duration {
        let timeout = self.timeout();
        let gap = (timeout * (1 << copy)).min(LONGEST_GAP);
        if copy < REPEATS {
            gap
        } else {
            gap.max(timeout)
        }
    }

    /// The budget has paid for a lookup of a path that it has, in this period.
    pub(super) fn owe(&mut self, period: Range<Instant>) {
        self.owed = Some(match self.owed.take() {
            Some(before) if before.end >= period.start => {
                before.start.min(period.start)..period.end
            }
            _ => period,
        });
    }

    /// Whether its round trip need not be paid.
    pub(super) fn is_trusted_to_answer(&self, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < GIVEN_COUNTS_FOR;
        self.is_configured || self.given.is_some_and(is_recent)
    }

    /// How long a lookup waits for it at no cost; `is_over`: nothing is left that may be paid.
    pub(super) fn free_wait(&self, now: Instant, is_over: bool) -> Duration {
        if self.is_silent {
            return FIRST_TIMEOUT;
        }
        let mean = self.round_trip.map(|it| it.mean);
        let is_near = self.is_live && mean.is_some_and(|mean| mean <= FREE_WAIT);
        let least = if is_near && self.was_heard_within(now, ANSWERS_NOW) {
            FREE_REPEATS
        } else {
            FREE_WAIT
        };
        if self.is_trusted_to_answer(now) {
            if self.was_heard_within(now, AWAKE) {
                (self.timeout() * 8).clamp(FREE_REPEATS, LONGEST_FREE_WAIT)
            } else {
                self.timeout().clamp(least, LONGEST_FREE_WAIT)
            }
        } else if !is_near && is_over {
            Duration::ZERO
        } else {
            least
        }
    }

    /// How long a lookup waits for this peer if it does not answer and no other peer is waited for.
    pub(super) fn silent_wait(&self) -> Duration {
        self.timeout().max(FIRST_TIMEOUT)
    }

    /// Whether something waits to be sent to it, or to be repeated.
    pub(super) fn is_busy(&self) -> bool {
        !(self.queue.is_empty() && self.waves.is_empty())
    }

    /// When the next ask may leave.
    pub(super) fn ready_at(&self, now: Instant) -> Instant {
        let pause = if self.is_silent { SILENT_PAUSE } else { PAUSE };
        match self.last_ask {
            Some((_, at, false)) => (at + pause).max(now),
            _ => now,
        }
    }

    /// When there is something to do for it.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let ready = (!self.queue.is_empty()).then(|| self.ready_at(now));
        let repeat = self.waves.iter().map(|wave| wave.due).min();
        ready.into_iter().chain(repeat).min()
    }

    /// Where it serves, if it said so.
    pub(super) fn http(&self) -> Option<PeerAddr> {
        http_address(self.address, self.sender?.http_port)
    }

    pub(super) fn was_heard_within(&self, now: Instant, time: Duration) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < time;
        self.heard.is_some_and(is_recent)
    }

    /// Whether it is asked with new datagrams: not an old peer, not ourselves.
    pub(super) fn takes_asks(&self) -> bool {
        !self.is_myself && (self.heard_old.is_none() || self.sender.is_some())
    }

    /// Whether it is asked as an old peer is; if so it is noted. What fits no known host waits for
    /// its hardware address in the socket's buffer, so one that never answered gets few.
    pub(super) fn take_old_request(&mut self, now: Instant) -> bool {
        let is_recent = |at: Instant| now.saturating_duration_since(at) < OLD_REQUEST_PAUSE;
        let was_answered = self.heard_old.is_some() || !self.is_silent;
        let may = was_answered || !self.old_requested.is_some_and(is_recent);
        if may {
            self.old_requested = Some(now);
        }
        may
    }
}

/// Where a peer that answers at `udp` serves.
pub(super) fn http_address(udp: SocketAddr, port: u16) -> Option<PeerAddr> {
    let mut http = udp;
    http.set_port(port);
    PeerAddr::new(http).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    #[test]
    fn repeats_follow_the_round_trip() {
        let mut peer = Peer::new(([10, 0, 0, 1], 12_304).into());
        let gaps = |peer: &Peer| [0, 1, 2, 3].map(|copy| peer.gap(copy).as_millis());
        assert_eq!(gaps(&peer), [20, 40, 80, 80], "before the first answer");
        for _ in 0..50 {
            peer.measure(Duration::from_micros(300));
        }
        assert_eq!(gaps(&peer), [5, 10, 20, 40]);
        for _ in 0..200 {
            peer.measure(ms(150));
        }
        let [first, second, third, last] = gaps(&peer);
        assert_eq!([first, second, third], [80, 80, 80]);
        assert!((150..180).contains(&last), "{last}");
    }

    #[test]
    fn the_round_trip_of_a_giver_is_free_up_to_a_limit() {
        let (mut peer, now) = (Peer::new(([10, 0, 0, 1], 12_304).into()), Instant::now());
        for _ in 0..50 {
            peer.measure(ms(60));
        }
        assert_eq!(peer.free_wait(now, false), FREE_WAIT);
        peer.given = Some(now);
        assert_eq!(peer.free_wait(now, false).as_millis(), 60);
        for _ in 0..50 {
            peer.measure(ms(400));
        }
        assert_eq!(peer.free_wait(now, false), LONGEST_FREE_WAIT);
        assert_eq!(peer.free_wait(now + GIVEN_COUNTS_FOR, false), FREE_WAIT);
        assert!(peer.free_wait(now + GIVEN_COUNTS_FOR, true).is_zero());
        peer.is_silent = true;
        assert_eq!(peer.free_wait(now, false), FIRST_TIMEOUT);
    }

    #[test]
    fn two_lost_datagrams_of_a_near_peer_that_answers_cost_nothing() {
        let (mut peer, now) = (Peer::new(([10, 0, 0, 1], 12_304).into()), Instant::now());
        peer.measure(ms(1));
        peer.heard = Some(now);
        assert_eq!(
            peer.free_wait(now, true),
            Duration::ZERO,
            "it may be forged"
        );
        peer.is_live = true;
        assert_eq!(peer.free_wait(now, true), FREE_REPEATS);
        assert!(FREE_REPEATS >= peer.gap(0) + peer.gap(1) + FREE_WAIT);
        assert_eq!(peer.free_wait(now + ANSWERS_NOW, true), FREE_WAIT);
    }
}
