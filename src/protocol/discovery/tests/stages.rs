//! When a lookup goes from one stage to the next.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::{
    format::StorePathHash,
    protocol::{
        Discovery, PathState,
        datagram::{Answer, Datagram, Magnitude, Sender},
        discovery::{Action, Arrival, Link, LookupId, ReturnPath, Settings},
    },
};

const PORT: u16 = 12_304;

fn ms(time: u64) -> Duration {
    Duration::from_millis(time)
}

fn peer(number: u8) -> SocketAddr {
    ([10, 0, 0, number], PORT).into()
}

fn discovery() -> Discovery {
    let settings = Settings {
        timeout: ms(50),
        wake_timeout: ms(300),
        port: PORT,
        http_port: PORT,
        configured: Vec::new(),
    };
    let mut discovery = Discovery::new(settings, 1, 2);
    let link = Link {
        interface: 2,
        is_wireless: false,
    };
    discovery.set_links(vec![link], false);
    discovery
}

/// Looks something up; what was sent, in its order.
fn begin(discovery: &mut Discovery, now: Instant) -> (LookupId, Vec<Datagram>) {
    let mut actions = Vec::new();
    let hash = StorePathHash::from_raw([7; 20]);
    let id = discovery.lookup(now, hash, &mut actions);
    discovery.expire(now, &mut actions);
    (id, sent(&actions))
}

fn sent(actions: &[Action]) -> Vec<Datagram> {
    let packets = actions.iter().filter_map(|action| match action {
        Action::Send { packet, .. } | Action::Broadcast { packet, .. } => Some(packet),
        _ => None,
    });
    packets
        .map(|packet| Datagram::parse(packet).expect("ours"))
        .collect()
}

fn receive(discovery: &mut Discovery, now: Instant, bytes: &[u8]) -> Vec<Action> {
    let arrival = Arrival {
        from: peer(2),
        path: ReturnPath {
            interface: 2,
            ..ReturnPath::default()
        },
        is_broadcast: false,
        is_own: false,
        is_allowed: true,
        is_on_link: true,
    };
    let mut actions = Vec::new();
    discovery.receive(now, &arrival, bytes, &mut actions);
    actions
}

fn answer(id: u32, state: PathState) -> Vec<u8> {
    answer_to(id, vec![state])
}

fn answer_to(id: u32, states: Vec<PathState>) -> Vec<u8> {
    let answer = Answer {
        id,
        sender: Sender {
            http_port: PORT,
            instance: 9,
        },
        streams: Magnitude::default(),
        states,
    };
    Datagram::Answer(answer).encode().to_vec()
}

/// The id of the only datagram, an ask.
fn only_ask(sent: &[Datagram]) -> u32 {
    match sent {
        [Datagram::Ask(ask)] => ask.id,
        _ => panic!("{sent:?}"),
    }
}

fn old_requests(discovery: &mut Discovery, now: Instant) -> usize {
    let mut actions = Vec::new();
    discovery.expire(now, &mut actions);
    let sent = sent(&actions);
    let is_old = |it: &&Datagram| matches!(it, Datagram::Request { .. });
    sent.iter().filter(is_old).count()
}

#[test]
fn old_peers_are_asked_only_when_new_ones_had_time_to_answer() {
    let (mut discovery, now) = (discovery(), Instant::now());
    let (_, sent) = begin(&mut discovery, now);
    only_ask(&sent);
    assert_eq!(old_requests(&mut discovery, now + ms(1)), 0);
    assert_eq!(old_requests(&mut discovery, now + ms(2)), 1);
}

#[test]
fn a_peer_that_has_the_path_may_give_it_before_others_are_asked() {
    let (mut discovery, now) = (discovery(), Instant::now());
    let (lookup, sent) = begin(&mut discovery, now);
    let bytes = answer(only_ask(&sent), PathState::Present);
    let actions = receive(&mut discovery, now + ms(1), &bytes);
    let is_named = |action: &Action| matches!(action, Action::Candidate { .. });
    assert!(actions.iter().any(is_named));
    assert_eq!(old_requests(&mut discovery, now + ms(4)), 0);
    // It did not give it: it may have lied.
    assert_eq!(old_requests(&mut discovery, now + ms(6)), 1);
    discovery.cancel(now + ms(6), lookup);
}

/// Requests of old peers within 3 ms of a yes that is `rejected`, or not.
fn old_requests_soon(is_rejected: bool) -> usize {
    let (mut discovery, now) = (discovery(), Instant::now());
    let (id, asked) = begin(&mut discovery, now);
    let bytes = answer(only_ask(&asked), PathState::Present);
    receive(&mut discovery, now, &bytes);
    let mut actions = Vec::new();
    if is_rejected {
        discovery.reject_candidate(now + ms(2), id, &mut actions);
    }
    discovery.expire(now + ms(3), &mut actions);
    let is_old = |it: &&Datagram| matches!(it, Datagram::Request { .. });
    sent(&actions).iter().filter(is_old).count()
}

#[test]
fn a_peer_that_does_not_give_what_it_said_it_has_is_not_waited_for() {
    assert_eq!(old_requests_soon(false), 0);
    assert_eq!(old_requests_soon(true), 1);
}

/// Half a minute after the first lookup of a burst. Peer 2 is known to hear us; no datagram is due
/// and there is no network to broadcast on.
fn with_a_live_peer() -> (Discovery, Instant) {
    let (mut discovery, now) = (discovery(), Instant::now());
    let (lookup, sent_first) = begin(&mut discovery, now);
    let bytes = answer(only_ask(&sent_first), PathState::Absent);
    let actions = receive(&mut discovery, now + ms(1), &bytes);
    let bytes = answer_to(only_ask(&sent(&actions)), Vec::new());
    receive(&mut discovery, now + ms(2), &bytes);
    discovery.cancel(now + ms(1), lookup);
    // The copies of the first discovery broadcast.
    for after in [10, 40] {
        discovery.expire(now + ms(after), &mut Vec::new());
    }
    discovery.set_links(Vec::new(), false);
    (discovery, now + Duration::from_secs(30))
}

#[test]
fn what_cannot_be_sent_is_not_waited_for() {
    let (mut discovery, later) = with_a_live_peer();
    let (second, sent_second) = begin(&mut discovery, later);
    only_ask(&sent_second);
    let mut actions = Vec::new();
    discovery.note_unreachable(later, peer(2), &mut actions);
    discovery.expire(later, &mut actions);
    let is_over = |it: &Action| matches!(it, Action::Finished { lookup, .. } if *lookup == second);
    assert!(actions.iter().any(is_over), "{actions:?}");
    assert_eq!(discovery.budget().left(later), ms(350));
}

#[test]
fn all_that_was_waited_comes_back_when_the_peer_gives_a_path() {
    let (mut discovery, later) = with_a_live_peer();
    let (first, sent_first) = begin(&mut discovery, later);
    discovery.expire(later + ms(5), &mut Vec::new());
    let (second, sent_second) = begin(&mut discovery, later + ms(10));
    discovery.expire(later + ms(15), &mut Vec::new());
    let bytes = answer(only_ask(&sent_first), PathState::Present);
    receive(&mut discovery, later + ms(40), &bytes);
    let second_ask = sent_second.last().cloned();
    let bytes = answer(only_ask(second_ask.as_slice()), PathState::Present);
    receive(&mut discovery, later + ms(60), &bytes);
    discovery.cancel(later + ms(60), first);
    discovery.cancel(later + ms(60), second);
    assert!(discovery.budget().left(later + ms(60)) < ms(350));
    let given = peer(2).to_string().parse().expect("an address");
    discovery.record_given(later + ms(100), given);
    assert_eq!(discovery.budget().left(later + ms(100)), ms(350));
}

#[test]
fn a_peer_that_responds_as_old_ones_do_is_asked_whether_it_is_new() {
    let (mut discovery, now) = (discovery(), Instant::now());
    let hash = StorePathHash::from_raw([7; 20]);
    begin(&mut discovery, now);
    let mut actions = Vec::new();
    discovery.expire(now + ms(2), &mut actions);
    let sent_before = sent(&actions);
    let [Datagram::Request { id, .. }] = sent_before[..] else {
        panic!("{sent_before:?}");
    };
    let response = Datagram::Response {
        id,
        http_port: PORT,
        hash,
    };
    let actions = receive(&mut discovery, now + ms(3), &response.encode());
    only_ask(&sent(&actions));
}
