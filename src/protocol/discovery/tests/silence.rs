//! Who does not answer: asked again, waited for so long, and no longer.

use super::*;

/// `count` peers, of which the first `answering` answer lookup 5; what is sent after that.
fn silent(count: u8, answering: u8) -> (Machine, Duration, Vec<Action>) {
    let numbers: Vec<u8> = (1..=count).collect();
    let mut machine = Machine::with_peers(&numbers);
    machine.lookup(5);
    for &number in &numbers[..usize::from(answering)] {
        machine.absent(peer(number), 5);
    }
    let (waited, actions) = machine.wait();
    (machine, waited, actions)
}

/// Has the peer answer lookups, each after `took`.
fn train(machine: &mut Machine, ids: std::ops::Range<u32>, took: Duration) {
    for id in ids {
        machine.lookup(id);
        machine.now += took;
        assert_eq!(ends(&machine.absent(peer(1), id)), [(id, End::Answered)]);
    }
}

#[test]
fn only_who_is_silent_is_asked_again_directly_and_twice_at_most() {
    let (machine, waited, actions) = silent(3, 2);
    assert_eq!(waited, TIMEOUT);
    let again = sends(&actions);
    assert_eq!(again.len(), 2, "{again:?}");
    for (to, datagram) in &again {
        let (_, known, to_many, paths) = batch(datagram).expect("a batch");
        // The third has not answered any question so far.
        assert_eq!((*to, known, to_many), (peer(3), 2, false));
        assert_eq!(paths, hashes(&[5]));
    }
    assert!(broadcasts(&actions).is_empty());
    let outcome = Outcome {
        end: End::Timeout,
        present: 0,
        absent: 2,
        silent: 1,
    };
    assert_eq!(
        actions.last(),
        Some(&Action::Finished { lookup: 5, outcome })
    );
    assert_eq!(machine.core.counters().repeated, 2);
}

#[test]
fn an_answer_to_what_was_sent_again_ends_the_lookup() {
    let mut machine = Machine::with_peers(&[1, 2]);
    machine.lookup(5);
    machine.absent(peer(2), 5);
    let begun = machine.now;
    let actions = machine.go_on();
    assert_eq!((machine.now - begun).as_millis(), 16, "a third of its time");
    let (_, datagram) = &sends(&actions)[0];
    let (id, ..) = batch(datagram).expect("a batch");
    let answer = Datagram::Answer {
        id,
        about: about(1),
        held: Held::of([true]),
    };
    let actions = machine.hear(peer(1), answer);
    assert_eq!(candidates(&actions), ["192.168.1.1:4000"]);
    assert_eq!(ends(&actions), [(5, End::Answered)]);
}

#[test]
fn sixteen_are_asked_again_and_seventeen_are_not() {
    let (_, _, actions) = silent(18, 2);
    assert_eq!(sends(&actions).len(), 32);
    let (machine, waited, actions) = silent(19, 2);
    assert!(sends(&actions).is_empty() && broadcasts(&actions).is_empty());
    assert_eq!((waited, machine.core.counters().repeated), (TIMEOUT, 0));
}

#[test]
fn who_has_been_measured_is_asked_again_after_its_window() {
    let mut machine = Machine::with_peers(&[1]);
    train(&mut machine, 100..160, MILLISECOND);
    machine.lookup(5);
    let begun = machine.now;
    for again in 1..=2 {
        assert_eq!(sends(&machine.go_on()).len(), 1);
        assert_eq!(machine.now - begun, 2 * MILLISECOND * again);
    }
    let (_, actions) = machine.wait();
    assert!(sends(&actions).is_empty());
    assert_eq!(machine.now - begun, 20 * MILLISECOND);
}

#[test]
fn a_silent_peer_costs_the_more_the_longer_its_answers_take() {
    let mut machine = Machine::with_peers(&[1]);
    train(&mut machine, 100..200, 9 * MILLISECOND);
    machine.lookup(5);
    let (waited, _) = machine.wait();
    assert_eq!(waited.as_millis(), 27, "three times its window");
}

#[test]
fn a_late_answer_widens_the_window() {
    let mut machine = Machine::with_peers(&[1]);
    train(&mut machine, 100..160, MILLISECOND);
    machine.lookup(5);
    assert_eq!(machine.wait().0, 20 * MILLISECOND);
    machine.now += 10 * MILLISECOND;
    assert!(machine.absent(peer(1), 5).is_empty());
    assert_eq!(machine.core.counters().late, 1);
    machine.lookup(6);
    assert_eq!(machine.wait().0, TIMEOUT, "30 ms have been seen");
}

#[test]
fn who_may_be_starting_is_not_measured() {
    let mut machine = Machine::on_a_lan();
    machine.stir(1);
    machine.lookup(5);
    machine.here(peer(1), about(1));
    machine.now += 40 * MILLISECOND;
    machine.absent(peer(1), 5);
    machine.wait();
    machine.lookup(6);
    machine.now += MILLISECOND;
    machine.absent(peer(1), 6);
    machine.lookup(7);
    assert_eq!(machine.wait().0, 20 * MILLISECOND);
}

#[test]
fn within_the_window_who_is_there_and_silent_is_asked_once_more() {
    let mut machine = Machine::on_a_lan();
    machine.stir(1);
    machine.lookup(5);
    machine.here(peer(1), about(1));
    machine.here(peer(2), about(2));
    machine.absent(peer(1), 5);
    let begun = machine.now;
    let actions = machine.go_on();
    assert_eq!(machine.now - begun, WAKE / 2);
    let to: Vec<SocketAddr> = sends(&actions).iter().map(|&(to, _)| to).collect();
    assert_eq!(to, [peer(2)]);
}
