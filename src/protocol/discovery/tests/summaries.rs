//! Lookups that nobody is asked for, as summaries say what everybody has.

use super::*;

const GENERATION: u64 = 7;

fn grown(instance: u64, generation: u64) -> About {
    About {
        generation,
        ..about(instance)
    }
}

fn hello(id: u32, about: About) -> Datagram {
    let known = 0;
    Datagram::Hello { id, about, known }
}

/// These peers, with something broadcast just now: no probe is due for a second.
fn probed(numbers: &[u8]) -> Machine {
    let mut machine = Machine::with_peers(numbers);
    machine.lookup(90);
    machine.core.cancel(90);
    machine
}

fn covers(actions: &[Action], id: u32) -> bool {
    let outcome = Outcome::without_asking(End::Covered);
    *actions
        == [Action::Finished {
            lookup: id,
            outcome,
        }]
}

/// Somebody is asked, and waited for.
fn is_asked(actions: &[Action]) -> bool {
    let sent = broadcasts(actions).len() + sends(actions).len();
    sent > 0 && ends(actions).is_empty()
}

#[test]
fn a_lookup_that_summaries_decide_ends_at_once_and_nothing_is_sent() {
    let mut machine = probed(&[1, 2]);
    machine.core.set_summaries(&[(1, GENERATION)]);
    assert!(is_asked(&machine.lookup(5)), "one of two");
    machine.core.cancel(5);
    let both = [(1, GENERATION), (2, GENERATION + 1)];
    machine.core.set_summaries(&both);
    assert!(covers(&machine.lookup(6), 6));
    assert_eq!(machine.core.counters().ended_covered, 1);
    machine.core.set_summaries(&[(2, GENERATION)]);
    assert!(is_asked(&machine.lookup(7)), "one was dropped");
}

#[test]
fn a_summary_that_is_older_than_its_peer_decides_nothing() {
    let mut machine = probed(&[1]);
    machine.core.set_summaries(&[(1, GENERATION - 1)]);
    assert!(is_asked(&machine.lookup(5)));
    machine.core.cancel(5);
    machine.hear(peer(1), hello(3, grown(1, GENERATION - 1)));
    assert!(
        is_asked(&machine.lookup(6)),
        "anybody can say hello in its name"
    );
}

#[test]
fn nothing_is_covered_while_the_lan_wakes() {
    let mut machine = Machine::on_a_lan();
    machine.stir(1);
    machine.here(peer(1), about(1));
    machine.core.set_summaries(&[(1, GENERATION)]);
    machine.lookup(5);
    assert_eq!(machine.wait().0, WAKE);
    assert!(covers(&machine.lookup(6), 6));
}

#[test]
fn what_was_confirmed_in_the_last_burst_does_not_count() {
    let mut machine = probed(&[1]);
    machine.core.set_summaries(&[(1, GENERATION)]);
    assert!(covers(&machine.lookup(5), 5));
    machine.now += QUIET;
    machine.stir(2);
    machine.hear(peer(1), hello(3, about(1)));
    machine.now += WAKE;
    machine.core.set_summaries(&[(1, GENERATION)]);
    assert!(is_asked(&machine.lookup(6)), "a hello confirms nothing");
    machine.core.cancel(6);
    let about = about(1);
    machine.hear(peer(1), Datagram::Here { id: 2, about });
    assert!(covers(&machine.lookup(7), 7));
}

#[test]
fn summaries_that_were_told_of_in_the_last_burst_do_not_count() {
    let mut machine = probed(&[1]);
    machine.core.set_summaries(&[(1, GENERATION)]);
    machine.now += QUIET;
    machine.stir(2);
    let about = about(1);
    machine.hear(peer(1), Datagram::Here { id: 2, about });
    machine.now += WAKE;
    assert!(is_asked(&machine.lookup(5)));
    machine.core.cancel(5);
    machine.core.set_summaries(&[(1, GENERATION)]);
    assert!(covers(&machine.lookup(6), 6));
}

#[test]
fn a_new_generation_uncovers_a_peer_until_its_summary_is_here() {
    let mut machine = probed(&[1]);
    machine.core.set_summaries(&[(1, GENERATION)]);
    machine.hear(peer(1), hello(3, grown(1, GENERATION + 1)));
    assert!(is_asked(&machine.lookup(5)), "by its hello");
    machine.core.cancel(5);
    machine.core.set_summaries(&[(1, GENERATION + 1)]);
    assert!(covers(&machine.lookup(6), 6));
    machine.now += FIRST_PROBE;
    let probe = broadcasts(&machine.lookup(7));
    let (id, ..) = batch(&probe[0]).expect("a batch");
    let answer = Datagram::Answer {
        id,
        about: grown(1, GENERATION + 2),
        held: Held::of([false]),
    };
    assert!(machine.hear(peer(1), answer).is_empty());
    assert!(is_asked(&machine.lookup(8)), "by its answer to a probe");
}

#[test]
fn a_hello_in_the_name_of_a_peer_does_not_put_another_in_its_place() {
    let mut machine = probed(&[1, 2]);
    machine.core.set_summaries(&[(1, GENERATION)]);
    machine.hear(peer(2), hello(3, about(1)));
    assert!(is_asked(&machine.lookup(5)), "nobody knows what 2 has");
}

#[test]
fn one_of_several_without_a_summary_is_asked_alone() {
    let mut machine = probed(&[1, 2, 3]);
    let others = [(1, GENERATION), (3, GENERATION)];
    machine.core.set_summaries(&others);
    let actions = machine.lookup(5);
    let (to, datagram) = &sends(&actions)[0];
    let (id, _, to_many, paths) = batch(datagram).expect("a batch");
    assert_eq!((*to, to_many, paths), (peer(2), false, hashes(&[5])));
    assert_eq!(actions.len(), 1, "{actions:?}");
    let answer = Datagram::Answer {
        id,
        about: about(2),
        held: Held::of([false]),
    };
    assert_eq!(ends(&machine.hear(peer(2), answer)), [(5, End::Answered)]);
}

#[test]
fn who_is_covered_is_heard_of_while_others_are_asked_alone() {
    let mut machine = probed(&[1, 2]);
    machine.core.set_summaries(&[(1, GENERATION)]);
    let start = machine.now;
    let mut at = Vec::new();
    for id in 100..240 {
        machine.now += Duration::from_millis(500);
        let actions = machine.lookup(id);
        let sent = broadcasts(&actions);
        if sent.is_empty() {
            assert_eq!(sends(&actions).len(), 1, "{actions:?}");
        } else {
            let (.., to_many, paths) = batch(&sent[0]).expect("a batch: it tells the generation");
            assert!(to_many && paths == hashes(&[id]));
            let hash = hash(id);
            assert_eq!(sent[1..], [Datagram::Request { id, hash }], "for old ones");
            assert!(sends(&actions).is_empty(), "{actions:?}");
            at.push((machine.now - start).as_secs());
        }
        assert_eq!(ends(&machine.absent(peer(2), id)), [(id, End::Answered)]);
    }
    assert_eq!(at, [1, 3, 7, 15, 31, 63]);
    machine.now += Duration::from_secs(59);
    let probe = broadcasts(&machine.lookup(5));
    let (id, ..) = batch(&probe[0]).expect("a batch");
    let answer = Datagram::Answer {
        id,
        about: grown(1, GENERATION + 1),
        held: Held::of([false]),
    };
    machine.hear(peer(1), answer);
    let actions = machine.lookup(6);
    assert!(!broadcasts(&actions).is_empty(), "it has something new");
}

#[test]
fn who_is_covered_is_not_asked_again_either() {
    let mut machine = probed(&[1, 2]);
    machine.core.set_summaries(&[(1, GENERATION)]);
    machine.lookup(5);
    let (waited, actions) = machine.wait();
    assert_eq!(waited, TIMEOUT);
    let again = sends(&actions);
    assert_eq!(again.len(), 2);
    assert!(again.iter().all(|&(to, _)| to == peer(2)));
}

#[test]
fn an_old_peer_is_asked_whatever_summaries_say() {
    let mut machine = probed(&[1]);
    machine.core.set_summaries(&[(1, GENERATION)]);
    assert!(covers(&machine.lookup(5), 5));
    let (id, hash) = (77, hash(0));
    machine.hear(peer(2), Datagram::Request { id, hash });
    assert!(is_asked(&machine.lookup(6)));
}

/// A lookup each half second; after how many seconds there was something sent.
fn probes(machine: &mut Machine, first: u32, count: u32) -> Vec<u64> {
    let start = machine.now;
    let mut at = Vec::new();
    for id in first..first + count {
        machine.now += Duration::from_millis(500);
        let actions = machine.lookup(id);
        assert_eq!(ends(&actions), [(id, End::Covered)]);
        let sent = broadcasts(&actions);
        if !sent.is_empty() {
            let (.., to_many, paths) = batch(&sent[0]).expect("a batch");
            assert!(to_many && paths == hashes(&[id]));
            let hash = hash(id);
            assert_eq!(sent[1..], [Datagram::Request { id, hash }]);
            at.push((machine.now - start).as_secs());
        }
    }
    at
}

#[test]
fn a_probe_a_second_becomes_one_a_minute_until_there_is_news() {
    let mut machine = probed(&[1]);
    machine.core.set_summaries(&[(1, GENERATION)]);
    let at = probes(&mut machine, 1_000, 500);
    assert_eq!(at, [1, 3, 7, 15, 31, 63, 123, 183, 243]);
    machine.hear(peer(2), hello(3, about(2)));
    let at = probes(&mut machine, 2_000, 20);
    assert_eq!(at, [0, 2, 6], "a peer has come");
    machine.hear(peer(1), hello(4, grown(1, GENERATION + 1)));
    machine.core.set_summaries(&[(1, GENERATION + 1)]);
    assert_eq!(probes(&mut machine, 3_000, 10), [0, 2], "a path was added");
    machine.hear(peer(1), hello(5, grown(1, GENERATION + 1)));
    assert_eq!(probes(&mut machine, 4_000, 2), [0; 0], "nothing new");
}

#[test]
fn who_is_asked_directly_is_probed_where_nothing_is_broadcast() {
    let mut machine = Machine::new(&["10.0.0.1:12304"]);
    let far = address("10.0.0.1:12304");
    machine.stir(1);
    machine.here(far, about(1));
    machine.now += WAKE;
    machine.lookup(90);
    machine.absent(far, 90);
    machine.core.set_summaries(&[(1, GENERATION)]);
    assert!(covers(&machine.lookup(5), 5));
    machine.now += Duration::from_secs(1);
    let actions = machine.lookup(6);
    assert_eq!(ends(&actions), [(6, End::Covered)]);
    let to_far = |action: &&Action| matches!(action, Action::Send { to, .. } if *to == far);
    assert_eq!(actions.iter().filter(to_far).count(), 1);
    assert!(covers(&machine.lookup(7), 7), "a second has not passed");
}
