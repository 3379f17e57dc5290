mod batches;
mod crowd;
mod reach;
mod silence;

use proptest::prelude::*;

use super::*;
use crate::protocol::wire::Packet;

const TIMEOUT: Duration = Duration::from_millis(50);
const WAKE: Duration = Duration::from_millis(500);
const MILLISECOND: Duration = Duration::from_millis(1);
const PORT: u16 = 12_304;
const ME: u64 = 0x1111;
const SECRET: u64 = 0x2222;

const STRANGER: Origin = Origin {
    is_own: false,
    is_allowed: true,
};
const MYSELF: Origin = Origin {
    is_own: true,
    is_allowed: true,
};

fn settings(static_peers: &[&str]) -> Settings {
    Settings {
        timeout: TIMEOUT,
        wake_timeout: WAKE,
        port: PORT,
        http_port: PORT,
        static_peers: static_peers.iter().map(|text| address(text)).collect(),
        rate: 1_000,
        burst: 100,
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn peer(number: u8) -> SocketAddr {
    SocketAddr::new([192, 168, 1, number].into(), PORT)
}

fn hash(number: u32) -> StorePathHash {
    StorePathHash::parse(format!("{number:032}").as_bytes()).expect("a hash")
}

fn about(instance: u64) -> About {
    About {
        instance,
        version: VERSION,
        http_port: 4_000,
        generation: 7,
    }
}

/// A machine with a clock that is set by hand.
struct Machine {
    core: Discovery,
    now: Instant,
}

impl Machine {
    fn new(static_peers: &[&str]) -> Self {
        let core = Discovery::new(settings(static_peers), ME, SECRET);
        Self {
            core,
            now: Instant::now(),
        }
    }

    fn on_a_lan() -> Self {
        let mut machine = Self::new(&[]);
        machine.core.set_networks(true, true);
        machine
    }

    /// On a LAN, after the wake window, with these peers known to answer.
    fn with_peers(numbers: &[u8]) -> Self {
        let mut machine = Self::on_a_lan();
        machine.stir(1);
        for &number in numbers {
            let about = about(number.into());
            machine.hear(peer(number), Datagram::Here { id: 1, about });
        }
        machine.now += WAKE;
        machine
    }

    /// The same, and all of them have said of one path that they do not have it.
    fn with_proven_peers(numbers: &[u8]) -> Self {
        let mut machine = Self::with_peers(numbers);
        // Within the window, so that nothing is measured.
        machine.now -= WAKE;
        machine.prove(numbers);
        machine.now += WAKE;
        let now = machine.now;
        machine.core.expire(now, &mut Vec::new());
        machine
    }

    fn prove(&mut self, numbers: &[u8]) {
        self.lookup(900);
        for &number in numbers {
            self.absent(peer(number), 900);
        }
    }

    fn stir(&mut self, id: u32) -> Vec<Action> {
        let mut actions = Vec::new();
        self.core.stir(self.now, id, &mut actions);
        actions
    }

    fn lookup(&mut self, id: u32) -> Vec<Action> {
        let mut actions = Vec::new();
        let begun = self.core.lookup(self.now, id, hash(id), &mut actions);
        begun.expect("a fresh id");
        self.core.flush(self.now, &mut actions);
        actions
    }

    /// A lookup that waits for others to go out with, if there is reason to.
    fn begin(&mut self, id: u32) -> Vec<Action> {
        let mut actions = Vec::new();
        let begun = self.core.lookup(self.now, id, hash(id), &mut actions);
        begun.expect("a fresh id");
        actions
    }

    /// What time brings at the next deadline.
    fn go_on(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        self.now = self.core.deadline().expect("something to wait for");
        self.core.expire(self.now, &mut actions);
        actions
    }

    fn here(&mut self, from: SocketAddr, about: About) -> Vec<Action> {
        self.hear(from, Datagram::Here { id: 1, about })
    }

    fn hear(&mut self, from: SocketAddr, datagram: Datagram) -> Vec<Action> {
        self.hear_bytes(from, &datagram.encode(), STRANGER)
    }

    fn hear_bytes(&mut self, from: SocketAddr, bytes: &[u8], origin: Origin) -> Vec<Action> {
        let mut actions = Vec::new();
        self.core
            .receive(self.now, from, bytes, origin, &mut actions);
        actions
    }

    fn response(&mut self, from: SocketAddr, id: u32) -> Vec<Action> {
        let response = Datagram::Response {
            id,
            http_port: 80,
            hash: hash(id),
        };
        self.hear(from, response)
    }

    fn absent(&mut self, from: SocketAddr, id: u32) -> Vec<Action> {
        self.hear(from, Datagram::Absent { id })
    }

    /// Goes on until a lookup ends; how long that took.
    fn wait(&mut self) -> (Duration, Vec<Action>) {
        let before = self.now;
        let mut actions = Vec::new();
        while ends(&actions).is_empty() {
            self.now = self.core.deadline().expect("something to wait for");
            self.core.expire(self.now, &mut actions);
        }
        (self.now - before, actions)
    }

    fn rejected(&self, reject: Reject) -> u64 {
        let mut all = self.core.counters().rejected();
        all.find(|&(kind, _)| kind == reject).expect("a kind").1
    }
}

fn broadcasts(actions: &[Action]) -> Vec<Datagram> {
    let sent = |action: &Action| match action {
        Action::Broadcast { packet, .. } => Some(Datagram::parse(packet).expect("ours")),
        _ => None,
    };
    actions.iter().filter_map(sent).collect()
}

fn sends(actions: &[Action]) -> Vec<(SocketAddr, Datagram)> {
    let sent = |action: &Action| match action {
        Action::Send { to, packet } => Some((*to, Datagram::parse(packet).expect("ours"))),
        _ => None,
    };
    actions.iter().filter_map(sent).collect()
}

/// Id, known, to-many and paths, if it is a batch.
fn batch(datagram: &Datagram) -> Option<(u32, u16, bool, Vec<StorePathHash>)> {
    match datagram {
        Datagram::Batch {
            id,
            known,
            to_many,
            hashes,
        } => Some((*id, *known, *to_many, hashes.clone())),
        _ => None,
    }
}

fn hashes(numbers: &[u32]) -> Vec<StorePathHash> {
    numbers.iter().map(|&number| hash(number)).collect()
}

fn ends(actions: &[Action]) -> Vec<(u32, End)> {
    let ended = |action: &Action| match action {
        Action::Finished { lookup, outcome } => Some((*lookup, outcome.end)),
        _ => None,
    };
    actions.iter().filter_map(ended).collect()
}

fn candidates(actions: &[Action]) -> Vec<String> {
    let told = |action: &Action| match action {
        Action::Candidate { peer, .. } => Some(peer.to_string()),
        _ => None,
    };
    actions.iter().filter_map(told).collect()
}

#[test]
fn the_first_lookup_says_hello_and_asks() {
    let mut machine = Machine::on_a_lan();
    let actions = machine.lookup(9);
    let sent = broadcasts(&actions);
    let Datagram::Hello { about, .. } = sent[0] else {
        panic!("{actions:?}");
    };
    assert_eq!((about.instance, about.http_port), (ME, PORT));
    let request = Datagram::Request {
        id: 9,
        hash: hash(9),
    };
    assert_eq!((&sent[1], actions.len()), (&request, 2));
    assert_eq!(broadcasts(&machine.lookup(10)).len(), 1, "no second hello");
}

#[test]
fn a_burst_begins_after_a_quiet_minute() {
    let mut machine = Machine::on_a_lan();
    assert_eq!(machine.stir(1).len(), 1);
    for _ in 0..5 {
        machine.now += QUIET - MILLISECOND;
        assert!(machine.stir(2).is_empty());
    }
    machine.now += QUIET;
    assert_eq!(machine.stir(3).len(), 1);
    machine.now += MILLISECOND;
    machine.core.set_networks(true, true);
    assert_eq!(
        machine.stir(4).len(),
        1,
        "another network hears hello at once"
    );
    assert!(machine.stir(5).is_empty());
}

#[test]
fn the_wake_window_is_paid_once_by_all_lookups() {
    let mut machine = Machine::on_a_lan();
    machine.lookup(1);
    machine.now += 100 * MILLISECOND;
    machine.lookup(2);
    assert_eq!(machine.wait().0, 400 * MILLISECOND);
    let actions = machine.lookup(3);
    assert_eq!(ends(&actions), [(3, End::Alone)], "nobody was heard");
    assert_eq!(broadcasts(&actions).len(), 1, "but asked for all the same");
}

#[test]
fn a_lookup_late_in_the_window_has_its_own_timeout() {
    let mut machine = Machine::on_a_lan();
    machine.stir(1);
    machine.hear(
        peer(1),
        Datagram::Here {
            id: 1,
            about: about(2),
        },
    );
    machine.now += 480 * MILLISECOND;
    machine.lookup(2);
    machine.lookup(3);
    machine.absent(peer(1), 2);
    let (waited, actions) = machine.wait();
    assert_eq!(
        (waited, ends(&actions)),
        (20 * MILLISECOND, vec![(2, End::Answered)])
    );
    let (waited, actions) = machine.wait();
    assert_eq!(
        (waited, ends(&actions)),
        (30 * MILLISECOND, vec![(3, End::Timeout)])
    );
}

#[test]
fn nothing_ends_a_lookup_within_the_window() {
    let mut machine = Machine::on_a_lan();
    machine.lookup(1);
    machine.hear(
        peer(1),
        Datagram::Here {
            id: 1,
            about: about(2),
        },
    );
    assert!(machine.absent(peer(1), 1).is_empty());
    assert_eq!(
        candidates(&machine.response(peer(2), 1)),
        ["192.168.1.2:80"]
    );
    let (waited, actions) = machine.wait();
    assert_eq!((waited, ends(&actions)), (WAKE, vec![(1, End::Timeout)]));
}

#[test]
fn a_lookup_ends_when_all_have_answered() {
    let mut machine = Machine::with_peers(&[1, 2, 3]);
    machine.lookup(5);
    assert!(machine.absent(peer(1), 5).is_empty());
    assert!(
        machine.absent(peer(1), 5).is_empty(),
        "one peer counts once"
    );
    assert_eq!(ends(&machine.response(peer(2), 5)), []);
    let actions = machine.absent(peer(3), 5);
    let outcome = Outcome {
        end: End::Answered,
        present: 1,
        absent: 2,
        silent: 0,
    };
    assert_eq!(actions, [Action::Finished { lookup: 5, outcome }]);
    assert_eq!(machine.core.deadline(), None);
    assert_eq!(machine.core.counters().duplicates, 1);
}

#[test]
fn who_only_said_hello_is_not_waited_for() {
    let mut machine = Machine::with_peers(&[]);
    machine.hear(
        peer(1),
        Datagram::Hello {
            id: 8,
            about: about(2),
            known: 0,
        },
    );
    assert_eq!(ends(&machine.lookup(5)), [(5, End::Alone)]);
    machine.absent(peer(1), 5);
    assert_eq!(ends(&machine.lookup(6)), [], "it has answered a random id");
}

#[test]
fn a_peer_that_left_is_not_waited_for_long() {
    let mut machine = Machine::with_peers(&[1]);
    for id in 10..14 {
        machine.lookup(id);
        assert_eq!(machine.wait().0, TIMEOUT);
    }
    assert_eq!(ends(&machine.lookup(14)), [(14, End::Alone)]);
    machine.absent(peer(1), 14);
    assert_eq!(ends(&machine.lookup(15)), [], "it is back");
}

#[test]
fn a_new_burst_waits_for_nobody_unheard() {
    let mut machine = Machine::with_peers(&[1, 2]);
    machine.lookup(5);
    machine.core.cancel(5);
    machine.now += QUIET;
    machine.stir(6);
    machine.hear(
        peer(2),
        Datagram::Here {
            id: 6,
            about: about(2),
        },
    );
    machine.now += WAKE;
    machine.lookup(7);
    assert_eq!(ends(&machine.absent(peer(2), 7)), [(7, End::Answered)]);
}

#[test]
fn an_old_peer_brings_its_timeout_back() {
    let mut machine = Machine::with_peers(&[1]);
    machine.hear(
        peer(2),
        Datagram::Request {
            id: 77,
            hash: hash(0),
        },
    );
    machine.lookup(5);
    assert_eq!(ends(&machine.absent(peer(1), 5)), []);
    assert_eq!(machine.wait().0, TIMEOUT);
    machine.lookup(6);
    assert_eq!(
        candidates(&machine.response(peer(2), 6)),
        ["192.168.1.2:80"]
    );
    machine.core.cancel(6);
    machine.now += Duration::from_secs(600);
    machine.stir(7);
    machine.now += WAKE;
    assert_eq!(
        ends(&machine.lookup(8)),
        [(8, End::Alone)],
        "it was not heard for long"
    );
}

#[test]
fn an_old_peer_that_says_absent_is_new() {
    let mut machine = Machine::with_peers(&[]);
    machine.hear(
        peer(2),
        Datagram::Request {
            id: 77,
            hash: hash(0),
        },
    );
    machine.lookup(5);
    assert_eq!(ends(&machine.absent(peer(2), 5)), [(5, End::Answered)]);
}

#[test]
fn an_asker_that_does_not_hear_us_is_no_old_peer() {
    let mut machine = Machine::with_peers(&[]);
    let elsewhere = address("192.168.1.2:40000");
    machine.hear(
        elsewhere,
        Datagram::Request {
            id: 77,
            hash: hash(0),
        },
    );
    assert_eq!(ends(&machine.lookup(5)), [(5, End::Alone)]);
    assert!(machine.core.peers(machine.now).is_empty());
}

#[test]
fn without_anybody_to_ask_a_lookup_ends_at_once() {
    let mut machine = Machine::new(&[]);
    let actions = machine.lookup(1);
    assert_eq!((ends(&actions), actions.len()), (vec![(1, End::Alone)], 1));
    machine.core.set_networks(true, true);
    assert_eq!(
        broadcasts(&machine.lookup(2)).len(),
        2,
        "the burst begins on the first network"
    );
}

#[test]
fn a_static_peer_is_asked_directly() {
    let mut machine = Machine::new(&["10.0.0.1:12304"]);
    let peer = address("10.0.0.1:12304");
    let actions = machine.lookup(1);
    let to = |action: &Action| matches!(action, Action::Send { to, .. } if *to == peer);
    assert!(actions.len() == 2 && actions.iter().all(to), "{actions:?}");
    let packet = |action: &Action| match action {
        Action::Send { packet, .. } => Datagram::parse(packet).expect("ours"),
        other => panic!("{other:?}"),
    };
    assert!(matches!(packet(&actions[0]), Datagram::Hello { .. }));
    assert!(matches!(
        packet(&actions[1]),
        Datagram::Request { id: 1, .. }
    ));
}

#[test]
fn a_static_peer_that_may_be_old_is_waited_for_a_few_times() {
    let mut machine = Machine::new(&["10.0.0.1:12304"]);
    machine.stir(1);
    machine.now += WAKE;
    for id in 100..116 {
        machine.lookup(id);
        assert_eq!(machine.wait().0, TIMEOUT);
    }
    assert_eq!(ends(&machine.lookup(116)), [(116, End::Alone)]);
    machine.response(address("10.0.0.1:12304"), 116);
    assert_eq!(machine.core.counters().late, 1);
    machine.lookup(117);
    assert_eq!(machine.wait().0, TIMEOUT, "it is an old one");
}

#[test]
fn a_static_peer_that_broadcast_reaches_is_asked_once() {
    let mut machine = Machine::new(&["192.168.1.1:12304"]);
    machine.core.set_networks(true, true);
    let direct = |actions: &[Action]| {
        let is_direct = |action: &&Action| matches!(action, Action::Send { .. });
        actions.iter().filter(is_direct).count()
    };
    machine.stir(1);
    machine.hear(
        peer(1),
        Datagram::Here {
            id: 1,
            about: about(2),
        },
    );
    machine.now += WAKE;
    assert_eq!(direct(&machine.lookup(5)), 1);
    machine.lookup(6);
    machine.absent(peer(1), 5);
    assert_eq!(machine.absent(peer(1), 5), [], "late");
    machine.core.set_networks(true, true);
    machine.stir(7);
    let about = about(2);
    machine.hear(peer(1), Datagram::Here { id: 7, about });
    machine.lookup(8);
    machine.response(peer(1), 8);
    machine.response(peer(1), 8);
    assert_eq!(direct(&machine.lookup(9)), 0, "it answered twice");
    machine.now += QUIET;
    assert_eq!(direct(&machine.stir(10)), 1, "a new burst tries both");
}

#[test]
fn who_answers_like_an_old_peer_is_asked_by_a_batch_a_few_times() {
    let mut machine = Machine::with_peers(&[]);
    machine.lookup(5);
    machine.response(peer(1), 5);
    let batches = |actions: &[Action]| {
        let is_batch = |action: &&Action| {
            matches!(action, Action::Send { to, packet } if *to == peer(1)
                && matches!(Datagram::parse(packet), Ok(Datagram::Batch { to_many: false, .. })))
        };
        actions.iter().filter(is_batch).count()
    };
    let sent: Vec<usize> = (10..16).map(|id| batches(&machine.lookup(id))).collect();
    assert_eq!(sent, [1, 1, 1, 1, 0, 0]);
}

#[test]
fn a_new_peer_whose_here_was_lost_is_not_taken_for_an_old_one_for_long() {
    let mut machine = Machine::with_peers(&[]);
    machine.lookup(5);
    machine.response(peer(1), 5);
    let actions = machine.lookup(10);
    let id = actions.iter().find_map(|action| match action {
        Action::Send { packet, .. } => match Datagram::parse(packet) {
            Ok(Datagram::Batch { id, .. }) => Some(id),
            _ => None,
        },
        _ => None,
    });
    let (about, held) = (about(2), Held::of([false]));
    let id = id.expect("a batch of its own");
    machine.hear(peer(1), Datagram::Answer { id, about, held });
    machine.lookup(11);
    assert_eq!(ends(&machine.absent(peer(1), 11)), [(11, End::Answered)]);
}

#[test]
fn a_static_peer_that_is_this_machine_is_not_asked() {
    let mut machine = Machine::new(&["192.168.1.1:12304"]);
    machine.stir(1);
    let hello = Datagram::Hello {
        id: 1,
        about: about(ME),
        known: 0,
    };
    machine.hear_bytes(peer(1), &hello.encode(), MYSELF);
    machine.now += WAKE;
    let actions = machine.lookup(2);
    assert_eq!((ends(&actions), actions.len()), (vec![(2, End::Alone)], 1));
}

#[test]
fn own_datagrams_are_dropped() {
    let mut machine = Machine::with_peers(&[]);
    let packets: Vec<Packet> = [5, 6]
        .map(|id| match &machine.lookup(id)[0] {
            Action::Broadcast { packet, .. } => packet.clone(),
            other => panic!("{other:?}"),
        })
        .into();
    for packet in &packets {
        let actions = machine.hear_bytes(peer(99), packet, MYSELF);
        assert!(actions.is_empty(), "also when the lookup has ended");
    }
    assert_eq!(machine.core.counters().echoes, 2);
    let actions = machine.hear_bytes(peer(99), &packets[0], STRANGER);
    assert!(
        matches!(actions[..], [Action::Question(_)]),
        "the id alone proves nothing"
    );
    let other = Datagram::Request {
        id: 7,
        hash: hash(7),
    }
    .encode();
    let actions = machine.hear_bytes(peer(99), &other, MYSELF);
    assert!(
        matches!(actions[..], [Action::Question(_)]),
        "nor does the address"
    );
    let hello = Datagram::Hello {
        id: 1,
        about: about(ME),
        known: 0,
    };
    assert!(machine.hear(peer(98), hello).is_empty());
}

#[test]
fn a_request_is_asked_of_the_store_and_answered() {
    let mut machine = Machine::on_a_lan();
    let request = Datagram::Request {
        id: 7,
        hash: hash(7),
    };
    let actions = machine.hear(peer(1), request);
    let [Action::Question(question)] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(
        (question.from, &question.wanted),
        (peer(1), &Wanted::One(hash(7)))
    );
    let held = Datagram::Response {
        id: 7,
        http_port: 80,
        hash: hash(7),
    };
    assert_eq!(question.answer(true, 80), Some(held.encode()));
    let absent = Datagram::Absent { id: 7 };
    assert_eq!(question.answer(false, 80), Some(absent.encode()));
}

#[test]
fn a_hello_is_answered_once_and_a_here_never() {
    let mut machine = Machine::on_a_lan();
    machine.core.set_generation(42);
    let hello = Datagram::Hello {
        id: 3,
        about: about(2),
        known: 0,
    };
    let actions = machine.hear(peer(1), hello.clone());
    let [Action::Reply { to, ref packet }] = actions[..] else {
        panic!("{actions:?}");
    };
    let Ok(Datagram::Here { id: 3, about: mine }) = Datagram::parse(packet) else {
        panic!("{packet:?}");
    };
    assert_eq!((to, mine.instance, mine.generation), (peer(1), ME, 42));
    assert!(machine.hear(peer(1), hello).is_empty());
    machine.stir(5);
    let here = Datagram::Here {
        id: 5,
        about: about(2),
    };
    assert!(machine.hear(peer(1), here).is_empty());
    assert_eq!(machine.core.counters().heres, 1);
}

#[test]
fn answers_to_nothing_are_counted_and_teach_nothing() {
    let mut machine = Machine::on_a_lan();
    machine.lookup(1);
    machine.response(peer(1), 2);
    machine.absent(peer(1), 3);
    machine.hear(
        peer(1),
        Datagram::Here {
            id: 4,
            about: about(2),
        },
    );
    assert_eq!(machine.rejected(Reject::UnknownId), 3);
    let other = Datagram::Response {
        id: 1,
        http_port: 80,
        hash: hash(2),
    };
    assert!(machine.hear(peer(1), other).is_empty());
    assert_eq!(machine.rejected(Reject::OtherHash), 1);
    assert!(machine.core.peers(machine.now).is_empty());
    machine.now += HELLO_MEMORY;
    machine.hear(
        peer(1),
        Datagram::Here {
            id: 1,
            about: about(2),
        },
    );
    assert_eq!(
        machine.rejected(Reject::UnknownId),
        4,
        "too late for that hello"
    );
}

#[test]
fn networks_that_are_not_allowed_get_nothing() {
    let mut machine = Machine::on_a_lan();
    let outside = Origin {
        is_allowed: false,
        ..STRANGER
    };
    let request = Datagram::Request {
        id: 7,
        hash: hash(7),
    }
    .encode();
    assert!(machine.hear_bytes(peer(1), &request, outside).is_empty());
    assert_eq!(machine.rejected(Reject::NotAllowed), 1);
    for nobody in ["192.168.1.1:0", "224.0.0.1:12304", "0.0.0.0:12304"] {
        assert!(
            machine
                .hear_bytes(address(nobody), &request, STRANGER)
                .is_empty()
        );
    }
    assert_eq!(machine.rejected(Reject::Source), 3);
}

#[test]
fn a_candidate_keeps_the_scope_of_its_source() {
    let mut machine = Machine::on_a_lan();
    machine.lookup(1);
    let actions = machine.response(address("[fe80::7%3]:12304"), 1);
    assert_eq!(candidates(&actions), ["[fe80::7%3]:80"]);
    let actions = machine.response(address("[::ffff:192.168.1.9]:12304"), 1);
    assert_eq!(candidates(&actions), ["192.168.1.9:80"]);
}

#[test]
fn a_holder_is_told_of_once_and_only_so_many() {
    let mut machine = Machine::on_a_lan();
    machine.lookup(1);
    assert_eq!(machine.response(peer(1), 1).len(), 1);
    assert_eq!(machine.response(peer(1), 1).len(), 0);
    let told = (2..200)
        .filter(|&n| !machine.response(peer(n), 1).is_empty())
        .count();
    assert_eq!(told, 31);
}

#[test]
fn a_taken_id_is_refused() {
    let mut machine = Machine::on_a_lan();
    machine.lookup(1);
    let mut actions = Vec::new();
    let again = machine.core.lookup(machine.now, 1, hash(2), &mut actions);
    assert_eq!((again, actions), (Err(IdTaken(1)), Vec::new()));
    machine.core.cancel(1);
    assert!(
        machine
            .core
            .lookup(machine.now, 1, hash(2), &mut Vec::new())
            .is_err()
    );
    assert_eq!(machine.core.deadline(), None);
}

#[test]
fn lookups_beyond_the_bound_end_at_once() {
    let mut machine = Machine::on_a_lan();
    let bound = MAX_LOOKUPS as u32;
    for id in 0..bound {
        assert_eq!(ends(&machine.lookup(id)), []);
    }
    let actions = machine.lookup(bound);
    assert_eq!(
        (ends(&actions), actions.len()),
        (vec![(bound, End::Overload)], 1)
    );
    let (_, actions) = machine.wait();
    assert_eq!(ends(&actions).len(), MAX_LOOKUPS);
}

#[test]
fn a_source_that_floods_is_dropped_and_counted() {
    let mut machine = Machine::on_a_lan();
    let mut answered = 0;
    for id in 0..1_000 {
        let actions = machine.hear(peer(1), Datagram::Request { id, hash: hash(0) });
        answered += actions.len();
    }
    assert_eq!((answered, machine.core.counters().rate_limited), (100, 900));
    assert_eq!(
        machine
            .hear(
                peer(2),
                Datagram::Request {
                    id: 1,
                    hash: hash(0)
                }
            )
            .len(),
        1
    );
}

#[test]
fn ghosts_do_not_evict_who_answered() {
    let mut machine = Machine::with_peers(&[1, 2, 3]);
    let ghost =
        |number: u32| SocketAddr::new((0x0a00_0000 + number * 256).to_be_bytes().into(), PORT);
    for number in 0..3_000 {
        machine.now += MILLISECOND;
        machine.hear(
            ghost(number),
            Datagram::Hello {
                id: 1,
                about: about(9),
                known: 0,
            },
        );
    }
    let peers = machine.core.peers(machine.now);
    assert_eq!(peers.len(), slots::MAX_PEERS);
    for number in [1, 2, 3] {
        let kept = peers
            .iter()
            .any(|line| line.address == peer(number) && line.is_waited_for);
        assert!(kept, "{number}");
    }
    machine.now += Duration::from_secs(1);
    machine.lookup(5);
    machine.absent(peer(4), 5);
    let peers = machine.core.peers(machine.now);
    assert!(
        peers.iter().any(|line| line.address == peer(4)),
        "who answers finds a place"
    );
}

#[test]
fn a_network_introduces_only_so_many_peers() {
    let mut machine = Machine::on_a_lan();
    for number in 1..=100 {
        machine.hear(
            peer(number),
            Datagram::Hello {
                id: 1,
                about: about(number.into()),
                known: 0,
            },
        );
    }
    assert_eq!(machine.core.peers(machine.now).len(), 8);
    assert_eq!(machine.core.counters().peers_refused, 92);
}

#[test]
fn what_is_saved_is_restored() {
    let mut machine = Machine::with_peers(&[1, 2]);
    machine.hear(
        peer(3),
        Datagram::Request {
            id: 77,
            hash: hash(0),
        },
    );
    machine.now += Duration::from_secs(30);
    machine.hear(
        peer(1),
        Datagram::Hello {
            id: 2,
            about: about(1),
            known: 0,
        },
    );
    machine.hear(
        peer(2),
        Datagram::Hello {
            id: 2,
            about: about(2),
            known: 0,
        },
    );
    machine.now += Duration::from_secs(30);
    let saved = machine.core.save(machine.now);
    assert_eq!((saved.instance, saved.peers.len()), (ME, 3));
    let text = serde_json::to_string(&saved).expect("plain data");
    assert_eq!(
        serde_json::from_str::<Saved>(&text).expect("the same"),
        saved
    );

    let asleep = Duration::from_secs(1);
    machine.now += asleep;
    let mut core = Discovery::restore(machine.now, settings(&[]), &saved, asleep, SECRET);
    let mut before = machine.core.peers(machine.now);
    let after = core.peers(machine.now);
    for line in &mut before {
        line.is_waited_for = false;
    }
    assert_eq!(after, before);
    core.set_networks(true, true);
    machine.core = core;
    machine.stir(1);
    machine.now += WAKE;
    machine.lookup(2);
    assert_eq!(machine.wait().0, TIMEOUT, "the old peer is remembered");
}

#[test]
fn too_many_saved_peers_are_not_taken() {
    let line = |number: u32| SavedPeer {
        address: SocketAddr::new((0x0a00_0000 + number).to_be_bytes().into(), PORT),
        kind: Kind::New,
        about: None,
        has_answered: true,
        heard_seconds_ago: u64::from(number % 2) * u64::MAX,
    };
    let saved = Saved {
        instance: ME,
        peers: (0..10_000).map(line).collect(),
    };
    let now = Instant::now();
    let core = Discovery::restore(now, settings(&[]), &saved, Duration::MAX / 2, SECRET);
    assert!(core.peers(now).is_empty(), "not heard for a day");
    let core = Discovery::restore(now, settings(&[]), &saved, Duration::ZERO, SECRET);
    assert_eq!(core.peers(now).len(), slots::MAX_PEERS / 2);
}

#[test]
fn settings_change_while_it_runs() {
    let mut machine = Machine::new(&["10.0.0.1:12304"]);
    machine.core.configure(settings(&["10.0.0.2:12304"]));
    let actions = machine.lookup(1);
    let to = address("10.0.0.2:12304");
    assert!(
        actions
            .iter()
            .all(|action| matches!(action, Action::Send { to: its, .. } if *its == to))
    );
    assert_eq!(actions.len(), 2);
    machine.core.configure(settings(&[]));
    assert_eq!(ends(&machine.lookup(2)), [(2, End::Alone)]);
}

#[derive(Debug, Clone)]
enum Step {
    Pass(u16),
    Stir,
    Lookup,
    Cancel(u8),
    Network(bool),
    Hear(u8, Vec<u8>, bool, bool),
    Answer(u8, u8, u8),
}

impl Machine {
    fn perform(&mut self, step: Step, next: u32) -> Vec<Action> {
        match step {
            Step::Pass(_) | Step::Cancel(_) | Step::Network(_) => Vec::new(),
            Step::Stir => self.stir(next),
            Step::Lookup => self.lookup(next),
            Step::Hear(from, bytes, is_own, is_allowed) => {
                self.hear_bytes(peer(from), &bytes, Origin { is_own, is_allowed })
            }
            Step::Answer(from, kind, id) => {
                let id = 100 + u32::from(id);
                let about = about(from.into());
                match kind {
                    0 => self.response(peer(from), id),
                    1 => self.absent(peer(from), id),
                    2 => self.hear(peer(from), Datagram::Here { id, about }),
                    _ => self.hear(peer(from), Datagram::Request { id, hash: hash(1) }),
                }
            }
        }
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..700_u16).prop_map(Step::Pass),
        Just(Step::Stir),
        Just(Step::Lookup),
        (0..40_u8).prop_map(Step::Cancel),
        any::<bool>().prop_map(Step::Network),
        (
            0..6_u8,
            prop::collection::vec(0..5_u8, 0..60),
            any::<bool>(),
            any::<bool>()
        )
            .prop_map(|(from, bytes, own, allowed)| Step::Hear(from, bytes, own, allowed)),
        (0..6_u8, 0..4_u8, 0..40_u8).prop_map(|(from, kind, id)| Step::Answer(from, kind, id)),
    ]
}

proptest! {
    /// Whatever happens, a lookup ends once, in time, and nothing comes after its end.
    #[test]
    fn every_lookup_ends_once_and_in_time(steps in prop::collection::vec(any_step(), 0..80)) {
        let mut machine = Machine::new(&["192.168.1.5:12304"]);
        let mut open = std::collections::BTreeMap::new();
        let mut next = 100;
        let mut window = machine.now;
        for step in steps {
            let mut done = Vec::new();
            match step {
                Step::Pass(milliseconds) => {
                    let until = machine.now + u32::from(milliseconds) * MILLISECOND;
                    while let Some(at) = machine.core.deadline().filter(|&at| at <= until) {
                        prop_assert!(at >= machine.now, "a deadline was missed");
                        machine.now = at;
                        let mut actions = Vec::new();
                        machine.core.expire(at, &mut actions);
                        done.extend(actions.into_iter().map(|action| (at, action)));
                    }
                    machine.now = until;
                }
                Step::Cancel(number) => {
                    let id = 100 + u32::from(number);
                    machine.core.cancel(id);
                    open.remove(&id);
                }
                Step::Network(any) => machine.core.set_networks(any, any),
                _ => {
                    let begins = matches!(step, Step::Lookup);
                    next += u32::from(begins);
                    let bursts = machine.core.counters().bursts;
                    let actions = machine.perform(step, next);
                    if machine.core.counters().bursts > bursts {
                        window = machine.now + WAKE;
                    }
                    if begins {
                        open.insert(next, window.max(machine.now + TIMEOUT));
                    }
                    done.extend(actions.into_iter().map(|action| (machine.now, action)));
                }
            }
            for (at, action) in done {
                match action {
                    Action::Candidate { lookup, .. } => prop_assert!(open.contains_key(&lookup)),
                    Action::Finished { lookup, .. } => {
                        let limit = open.remove(&lookup);
                        prop_assert!(limit.is_some_and(|limit| at <= limit));
                    }
                    _ => {}
                }
            }
        }
        while let Some(at) = machine.core.deadline() {
            let mut actions = Vec::new();
            machine.core.expire(at, &mut actions);
            for (lookup, _) in ends(&actions) {
                prop_assert!(open.remove(&lookup).is_some_and(|limit| at <= limit));
            }
        }
        prop_assert!(open.is_empty(), "not ended: {open:?}");
    }
}
