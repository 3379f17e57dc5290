//! Many peers: who is taken into the table, who answers, and when.

use super::*;

fn crowd(count: u8) -> Vec<u8> {
    (1..=count).collect()
}

fn question(known: u16, to_many: bool) -> Question {
    let wanted = Wanted::Batch {
        known,
        to_many,
        hashes: hashes(&[5, 6]),
    };
    let (from, id) = (peer(1), 9);
    Question { from, id, wanted }
}

fn batches_of(actions: &[Action]) -> Vec<Vec<StorePathHash>> {
    let sent = broadcasts(actions);
    let paths = sent.iter().map(|datagram| {
        let (_, _, to_many, paths) = batch(datagram).expect("batches alone");
        assert!(to_many);
        paths
    });
    paths.collect()
}

#[test]
fn who_has_nothing_leaves_out_its_answer_to_many_among_many() {
    let mut machine = Machine::on_a_lan();
    let now = machine.now;
    let (nothing, some) = (Held::of([false, false]), Held::of([false, true]));
    let mut answers = |known, to_many, held| {
        let question = question(known, to_many);
        machine.core.answer(now, &question, held).is_some()
    };
    assert!(!answers(33, true, nothing));
    assert!(answers(33, true, some));
    assert!(answers(33, false, nothing), "we alone were asked");
    assert!(answers(32, true, nothing), "the asker counts answers");
    assert_eq!(machine.core.counters().left_out, 1);
}

#[test]
fn with_many_peers_an_ask_takes_its_time_and_counts_no_silence() {
    let mut machine = Machine::with_proven_peers(&crowd(33));
    let actions = machine.begin(5);
    assert_eq!(batches_of(&actions), [hashes(&[5])], "even one is a batch");
    let (waited, actions) = machine.wait();
    assert_eq!(waited, TIMEOUT);
    let outcome = Outcome {
        end: End::Timeout,
        present: 0,
        absent: 0,
        silent: 33,
    };
    assert_eq!(
        actions.last(),
        Some(&Action::Finished { lookup: 5, outcome })
    );
    assert_eq!(batches_of(&actions), vec![hashes(&[5]); 3]);
    assert!(sends(&actions).is_empty());
    let peers = machine.core.peers(machine.now);
    assert!(
        peers
            .iter()
            .all(|it| it.is_waited_for && it.silent_asks == 0)
    );
}

#[test]
fn with_many_peers_only_what_nobody_has_named_is_asked_again() {
    let mut machine = Machine::with_proven_peers(&crowd(33));
    machine.begin(6);
    assert!(machine.begin(7).is_empty());
    assert!(machine.begin(8).is_empty());
    let sent = broadcasts(&machine.go_on());
    machine.core.cancel(6);
    let (id, known, _, paths) = batch(&sent[0]).expect("a batch");
    assert_eq!((known, paths), (33, hashes(&[7, 8])));
    let held = Held::of([true, false]);
    let about = about(9);
    let actions = machine.hear(peer(9), Datagram::Answer { id, about, held });
    assert_eq!(candidates(&actions), ["192.168.1.9:4000"]);
    assert_eq!(ends(&actions), [], "others may have it as well");
    let (_, actions) = machine.wait();
    assert_eq!(batches_of(&actions), vec![hashes(&[8]); 3]);
    let late = [7, 8].map(|id| (id, End::Timeout));
    assert_eq!(ends(&actions), late);
}

#[test]
fn all_who_answer_a_hello_are_taken_in_while_the_lan_wakes() {
    let machine = Machine::with_peers(&crowd(100));
    let peers = machine.core.peers(machine.now);
    assert_eq!(peers.len(), 100);
    assert!(peers.iter().all(|peer| peer.is_waited_for));
    assert_eq!(machine.core.counters().peers_refused, 0);
}

#[test]
fn after_that_eight_a_second_are_and_lookups_take_their_time() {
    let mut machine = Machine::with_peers(&[]);
    let crowd_comes = |machine: &mut Machine| {
        for number in crowd(16) {
            machine.here(peer(number), about(number.into()));
        }
        machine.core.peers(machine.now).len()
    };
    assert_eq!(crowd_comes(&mut machine), 8);
    machine.lookup(5);
    for number in crowd(16) {
        assert_eq!(ends(&machine.absent(peer(number), 5)), []);
    }
    assert_eq!(machine.wait().0, TIMEOUT, "not all of them are known");
    machine.now += Duration::from_secs(1);
    assert_eq!(crowd_comes(&mut machine), 16);
    machine.now += Duration::from_secs(2);
    machine.lookup(6);
    for number in crowd(15) {
        assert_eq!(ends(&machine.absent(peer(number), 6)), []);
    }
    assert_eq!(
        ends(&machine.absent(peer(16), 6)),
        [(6, End::Answered)],
        "the crowd is forgotten"
    );
}

#[test]
fn peers_are_counted_and_not_their_answers() {
    let mut machine = Machine::on_a_lan();
    machine.stir(1);
    for number in crowd(17) {
        let about = about(number.into());
        machine.here(peer(number), about);
        machine.here(address(&format!("[fe80::{number:x}%2]:12304")), about);
    }
    for _ in 0..40 {
        machine.here(peer(1), about(1));
    }
    machine.now += WAKE;
    assert_eq!(machine.core.known(), 0, "a here is not enough");
    machine.prove(&crowd(17));
    assert_eq!(machine.core.known(), 17);
    let (id, hash) = (5, hash(5));
    let request = Datagram::Request { id, hash };
    assert_eq!(broadcasts(&machine.begin(id)), [request], "all answer");
}

#[test]
fn those_without_a_place_are_counted_once_each_beside_many() {
    for (proven, others) in [(32, 0), (33, 32)] {
        let mut machine = Machine::with_proven_peers(&crowd(proven));
        let greet = |machine: &mut Machine| {
            for number in 41..=80 {
                machine.here(peer(number), about(number.into()));
            }
            let places = machine.core.peers(machine.now).len();
            (
                places - usize::from(proven),
                usize::from(machine.core.known() - u16::from(proven)),
            )
        };
        greet(&mut machine);
        assert_eq!(greet(&mut machine), (8, others));
        machine.now += Duration::from_secs(1);
        assert_eq!(greet(&mut machine), (16, others.saturating_sub(8)));
        machine.now += QUIET;
        machine.stir(2);
        assert_eq!(machine.core.known(), 0);
    }
}

#[test]
fn answers_are_spread_by_the_number_of_peers() {
    assert_eq!(deferred::spread(49), Duration::ZERO);
    assert_eq!(deferred::spread(50), MILLISECOND);
    assert_eq!(deferred::spread(500), 10 * MILLISECOND);
    for known in [1_000, 1_001, u16::MAX] {
        assert_eq!(deferred::spread(known), 20 * MILLISECOND);
    }
}

#[test]
fn each_answer_waits_for_its_own_part_of_the_time() {
    let mut waits = Vec::new();
    for id in 0..50_u32 {
        let mut machine = Machine::on_a_lan();
        let id = id.wrapping_mul(0x9e37_79b9);
        let hello = Datagram::Hello {
            id,
            about: about(2),
            known: 1_000,
        };
        assert!(machine.hear(peer(1), hello).is_empty());
        let before = machine.now;
        let [Action::Reply { to, packet }] = &machine.go_on()[..] else {
            panic!("no here");
        };
        let here = Datagram::parse(packet).expect("ours");
        assert!(matches!(here, Datagram::Here { id: its, .. } if its == id));
        assert_eq!(*to, peer(1));
        waits.push(machine.now - before);
        assert_eq!(machine.core.deadline(), None);
    }
    let (least, most) = (waits.iter().min(), waits.iter().max());
    assert!(least < Some(&(5 * MILLISECOND)), "{waits:?}");
    assert!(most > Some(&(15 * MILLISECOND)), "{waits:?}");
    assert!(most <= Some(&(20 * MILLISECOND)), "{waits:?}");
}

#[test]
fn answers_to_a_batch_are_spread_if_it_was_sent_to_many() {
    let mut machine = Machine::on_a_lan();
    let now = machine.now;
    let held = Held::of([true, false]);
    let alone = machine.core.answer(now, &question(1_000, false), held);
    assert!(matches!(alone, Some(Action::Reply { .. })));
    assert_eq!(machine.core.answer(now, &question(1_000, true), held), None);
    let actions = machine.go_on();
    assert!(matches!(actions[..], [Action::Reply { .. }]));
    assert!(machine.now - now <= 20 * MILLISECOND);
}

#[test]
fn only_so_many_answers_wait_and_they_leave_in_order() {
    let now = Instant::now();
    let packet = Datagram::Absent { id: 1 }.encode();
    let mut waiting = Deferred::default();
    for number in 0..1_024_u32 {
        let at = now + MILLISECOND * (number % 7);
        assert!(waiting.push(at, peer(1), packet.clone()).is_none());
    }
    assert!(
        waiting.push(now, peer(1), packet).is_some(),
        "one too many is given back"
    );
    assert_eq!(waiting.deadline(), Some(now));
    let due = |waiting: &mut Deferred, at| std::iter::from_fn(|| waiting.pop_due(at)).count();
    assert_eq!(due(&mut waiting, now), 147);
    assert_eq!(waiting.deadline(), Some(now + MILLISECOND));
    assert_eq!(due(&mut waiting, now + 6 * MILLISECOND), 1_024 - 147);
    assert_eq!(waiting.deadline(), None);
}
