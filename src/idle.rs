//! When the daemon has nothing to do any more: a clock without a clock.
//!
//! Idle is: no request or stream open, and nothing that counts for the timeout. It counts
//! from the start, so a daemon that was woken for nothing exits soon: a discovery broadcast wakes
//! all peers, also those that are asked for nothing afterwards. A loopback connection that stays
//! open is Nix waiting to ask more; it delays the exit, but not for ever.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// An open loopback connection holds off the exit this long after its last request: Nix
/// uses idle connections again for up to 90 s.
const CONNECTION_HOLD: Duration = Duration::from_secs(95);

/// A daemon to which nothing has come that counts goes after this long.
const FOR_NOTHING: Duration = Duration::from_secs(30);

/// An open loopback connection.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Connection(u64);

/// Says when to exit.
#[derive(Debug)]
pub struct IdleClock {
    timeout: Option<Duration>,
    last: Instant,
    /// Something has come that counts.
    has_worked: bool,
    open: usize,
    /// When each loopback connection had its last request, or was opened.
    connections: BTreeMap<u64, Instant>,
    opened: u64,
}

impl IdleClock {
    /// Armed from `now` on; without a `timeout` it never expires.
    pub fn new(now: Instant, timeout: Option<Duration>) -> Self {
        Self {
            timeout,
            last: now,
            has_worked: false,
            open: 0,
            connections: BTreeMap::new(),
            opened: 0,
        }
    }

    /// Another timeout from now on.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// A lookup, or anything else that counts and takes no time.
    pub fn touch(&mut self, now: Instant) {
        self.last = self.last.max(now);
        self.has_worked = true;
    }

    /// A request or stream that counts has begun; [`Self::closed`] must follow.
    pub fn opened(&mut self, now: Instant) {
        self.open += 1;
        self.touch(now);
    }

    /// A request or stream has ended.
    pub fn closed(&mut self, now: Instant) {
        debug_assert!(self.open > 0, "closed more often than opened");
        self.open = self.open.saturating_sub(1);
        self.touch(now);
    }

    /// A loopback connection was accepted.
    pub fn loopback_connected(&mut self, now: Instant) -> Connection {
        self.opened += 1;
        self.connections.insert(self.opened, now);
        Connection(self.opened)
    }

    /// A request came in on it; whether that also counts as work is for [`Self::opened`].
    pub fn loopback_request(&mut self, now: Instant, connection: &Connection) {
        if let Some(last) = self.connections.get_mut(&connection.0) {
            *last = now.max(*last);
        }
    }

    /// It was closed.
    pub fn loopback_disconnected(&mut self, connection: Connection) {
        self.connections.remove(&connection.0);
    }

    /// When to exit if nothing happens until then; `None` if something must happen first.
    pub fn deadline(&self) -> Option<Instant> {
        let timeout = self.timeout?;
        if self.open > 0 {
            return None;
        }
        let held = self.connections.values().max();
        let held = held.and_then(|at| at.checked_add(CONNECTION_HOLD));
        let timeout = if self.has_worked {
            timeout
        } else {
            timeout.min(FOR_NOTHING)
        };
        let idle = self.last.checked_add(timeout)?;
        Some(held.map_or(idle, |held| held.max(idle)))
    }

    /// Whether to exit now.
    pub fn expired(&self, now: Instant) -> bool {
        self.deadline().is_some_and(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn clock(timeout: u32) -> (Instant, IdleClock) {
        let start = Instant::now();
        (start, IdleClock::new(start, Some(timeout * SECOND)))
    }

    #[test]
    fn a_daemon_woken_for_nothing_goes_soon() {
        let (start, mut clock) = clock(300);
        assert_eq!(clock.deadline(), Some(start + FOR_NOTHING));
        let connection = clock.loopback_connected(start);
        assert!(!clock.expired(start + FOR_NOTHING), "Nix may ask");
        clock.loopback_disconnected(connection);
        clock.touch(start + SECOND);
        assert_eq!(clock.deadline(), Some(start + 301 * SECOND));
    }

    #[test]
    fn is_armed_at_start() {
        let (start, clock) = clock(5);
        assert!(!clock.expired(start + 4 * SECOND));
        assert!(clock.expired(start + 5 * SECOND));
    }

    #[test]
    fn without_a_timeout_it_never_expires() {
        let start = Instant::now();
        let clock = IdleClock::new(start, None);
        assert_eq!(clock.deadline(), None);
        assert!(!clock.expired(start + 1_000_000 * SECOND));
        let mut endless = IdleClock::new(start, Some(Duration::MAX));
        endless.touch(start);
        assert_eq!(endless.deadline(), None);
    }

    #[test]
    fn work_starts_it_again() {
        let (start, mut clock) = clock(5);
        clock.touch(start + 3 * SECOND);
        assert_eq!(clock.deadline(), Some(start + 8 * SECOND));
        clock.touch(start);
        assert_eq!(clock.deadline(), Some(start + 8 * SECOND));
    }

    #[test]
    fn an_open_stream_stops_it() {
        let (start, mut clock) = clock(5);
        clock.opened(start);
        clock.opened(start);
        clock.closed(start + SECOND);
        assert_eq!(clock.deadline(), None);
        clock.closed(start + 100 * SECOND);
        assert_eq!(clock.deadline(), Some(start + 105 * SECOND));
    }

    #[test]
    fn a_connection_holds_it_for_95_seconds_after_its_last_request() {
        let (start, mut clock) = clock(5);
        let first = clock.loopback_connected(start);
        assert_eq!(clock.deadline(), Some(start + 95 * SECOND));
        clock.loopback_request(start + 10 * SECOND, &first);
        assert_eq!(clock.deadline(), Some(start + 105 * SECOND));
        let second = clock.loopback_connected(start + 20 * SECOND);
        assert_eq!(clock.deadline(), Some(start + 115 * SECOND));
        clock.loopback_disconnected(second);
        assert_eq!(clock.deadline(), Some(start + 105 * SECOND));
        clock.loopback_disconnected(first);
        assert_eq!(clock.deadline(), Some(start + 5 * SECOND));
    }

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Touch,
        Open,
        Close,
        Connect,
        Request(usize),
        Disconnect(usize),
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Touch),
            Just(Event::Open),
            Just(Event::Close),
            Just(Event::Connect),
            (0..4_usize).prop_map(Event::Request),
            (0..4_usize).prop_map(Event::Disconnect),
        ]
    }

    proptest! {
        /// Against the definition, evaluated from the whole history.
        #[test]
        fn expires_exactly_when_the_definition_says(
            timeout in 1..200_u32,
            history in proptest::collection::vec((0..50_u32, any_event()), 0..60),
            wait in 0..300_u32,
        ) {
            let (start, mut clock) = clock(timeout);
            let mut now = start;
            let mut work = start;
            let mut worked = false;
            let mut open = 0_usize;
            let mut connections: Vec<(Connection, Instant)> = Vec::new();
            for (pause, event) in history {
                now += pause * SECOND;
                match event {
                    Event::Touch => { clock.touch(now); work = now; worked = true; }
                    Event::Open => { clock.opened(now); open += 1; work = now; worked = true; }
                    Event::Close if open > 0 => { clock.closed(now); open -= 1; work = now; }
                    Event::Close => {}
                    Event::Connect => connections.push((clock.loopback_connected(now), now)),
                    Event::Request(index) => if let Some((connection, at)) = connections.get_mut(index) {
                        clock.loopback_request(now, connection);
                        *at = now;
                    },
                    Event::Disconnect(index) => if index < connections.len() {
                        clock.loopback_disconnected(connections.swap_remove(index).0);
                    },
                }
            }
            now += wait * SECOND;
            let most = if worked { SECOND * timeout } else { FOR_NOTHING };
            let quiet = now >= work + most.min(timeout * SECOND);
            let released = connections.iter().all(|&(_, at)| now >= at + CONNECTION_HOLD);
            prop_assert_eq!(clock.expired(now), open == 0 && quiet && released);
        }
    }
}
