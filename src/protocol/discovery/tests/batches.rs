//! Lookups that come together, and what answers to a batch do.

use super::*;

fn request(id: u32) -> Datagram {
    let hash = hash(id);
    Datagram::Request { id, hash }
}

fn answer(id: u32, instance: u64, held: &[bool]) -> Datagram {
    Datagram::Answer {
        id,
        about: about(instance),
        held: Held::of(held.iter().copied()),
    }
}

/// The one batch among these broadcasts: its id and paths.
fn only_batch(actions: &[Action]) -> (u32, Vec<StorePathHash>) {
    let sent = broadcasts(actions);
    assert_eq!(sent.len(), 1, "{sent:?}");
    let (id, _, to_many, paths) = batch(&sent[0]).expect("a batch");
    assert!(to_many);
    (id, paths)
}

/// Lookups 5, which is open, and 6 to 8, which have gone out as the batch with this id.
fn with_a_batch(peers: &[u8]) -> (Machine, u32) {
    let mut machine = Machine::with_peers(peers);
    machine.begin(5);
    for id in 6..=8 {
        assert!(machine.begin(id).is_empty());
    }
    let (id, paths) = only_batch(&machine.go_on());
    assert_eq!(paths, hashes(&[6, 7, 8]));
    (machine, id)
}

#[test]
fn a_lookup_without_others_goes_out_at_once() {
    let mut machine = Machine::with_peers(&[1]);
    assert_eq!(broadcasts(&machine.begin(5)), [request(5)]);
    machine.now += MILLISECOND * 2;
    assert_eq!(
        broadcasts(&machine.begin(6)),
        [request(6)],
        "the open one is not of the last millisecond"
    );
}

#[test]
fn lookups_wait_for_the_end_of_an_ask() {
    let mut machine = Machine::with_peers(&[1]);
    machine.begin(5);
    assert!(machine.begin(6).is_empty());
    machine.now += MILLISECOND / 2;
    assert!(machine.begin(7).is_empty());
    let actions = machine.absent(peer(1), 5);
    assert_eq!(ends(&actions), [(5, End::Answered)]);
    assert_eq!(only_batch(&actions).1, hashes(&[6, 7]));
}

#[test]
fn lookups_wait_a_millisecond_for_each_other_at_most() {
    let mut machine = Machine::with_peers(&[1]);
    machine.begin(5);
    machine.now += MILLISECOND / 4;
    let first = machine.now;
    assert!(machine.begin(6).is_empty());
    machine.now += MILLISECOND / 2;
    assert!(machine.begin(7).is_empty());
    let actions = machine.go_on();
    assert_eq!(machine.now - first, MILLISECOND);
    assert_eq!(only_batch(&actions).1, hashes(&[6, 7]));
}

#[test]
fn a_batch_that_is_full_does_not_wait() {
    let mut machine = Machine::with_peers(&[1]);
    machine.begin(5);
    for id in 100..159 {
        assert!(machine.begin(id).is_empty());
    }
    let (_, paths) = only_batch(&machine.begin(159));
    assert_eq!(paths.len(), MAX_BATCH);
}

#[test]
fn a_lookup_that_was_cancelled_while_it_waited_is_not_sent() {
    let mut machine = Machine::with_peers(&[1]);
    machine.begin(5);
    machine.begin(6);
    machine.begin(7);
    machine.core.cancel(6);
    assert_eq!(broadcasts(&machine.go_on()), [request(7)]);
}

#[test]
fn within_the_window_requests_follow_the_batch() {
    let mut machine = Machine::on_a_lan();
    machine.begin(5);
    machine.begin(6);
    machine.begin(7);
    let sent = broadcasts(&machine.go_on());
    let (.., paths) = batch(&sent[0]).expect("the batch is first");
    assert_eq!(paths, hashes(&[6, 7]));
    assert_eq!(sent[1..], [request(6), request(7)]);
}

#[test]
fn one_answer_ends_several_lookups() {
    let (mut machine, id) = with_a_batch(&[1, 2]);
    let actions = machine.hear(peer(1), answer(id, 1, &[false, true, false]));
    assert_eq!(candidates(&actions), ["192.168.1.1:4000"]);
    assert!(matches!(actions[0], Action::Candidate { lookup: 7, .. }));
    assert_eq!(ends(&actions), [], "the other one has not answered");
    let actions = machine.hear(peer(2), answer(id, 2, &[true, false, false]));
    assert!(matches!(actions[0], Action::Candidate { lookup: 6, .. }));
    assert_eq!(candidates(&actions), ["192.168.1.2:4000"]);
    let answered = [6, 7, 8].map(|lookup| (lookup, End::Answered));
    assert_eq!(ends(&actions), answered);
}

#[test]
fn an_answer_that_cannot_be_one_ends_nothing() {
    let (mut machine, id) = with_a_batch(&[1]);
    for held in [&[true; 2][..], &[true; 4]] {
        assert!(machine.hear(peer(1), answer(id, 1, held)).is_empty());
    }
    assert_eq!(machine.rejected(Reject::Count), 2);
    for unknown in [id.wrapping_add(1), 6] {
        let actions = machine.hear(peer(1), answer(unknown, 1, &[true; 3]));
        assert!(actions.is_empty(), "{actions:?}");
    }
    assert_eq!(machine.rejected(Reject::UnknownId), 2);
    let actions = machine.hear(peer(1), answer(id, 1, &[true; 3]));
    assert_eq!(ends(&actions).len(), 3, "the right one still counts");
}

#[test]
fn a_second_answer_tells_nothing_new() {
    let (mut machine, id) = with_a_batch(&[1, 2]);
    let first = answer(id, 1, &[true, false, false]);
    assert_eq!(candidates(&machine.hear(peer(1), first.clone())).len(), 1);
    assert!(machine.hear(peer(1), first).is_empty());
    assert_eq!(machine.core.counters().duplicates, 1);
}

#[test]
fn requests_that_follow_their_batch_are_not_answered_again() {
    let mut machine = Machine::on_a_lan();
    let asked = Datagram::Batch {
        id: 1,
        known: 1,
        to_many: true,
        hashes: hashes(&[5, 6]),
    };
    let is_question = |actions: &[Action]| matches!(actions, [Action::Question(_)]);
    assert!(is_question(&machine.hear(peer(1), asked)));
    assert!(machine.hear(peer(1), request(5)).is_empty());
    assert!(machine.hear(peer(1), request(6)).is_empty());
    assert_eq!(machine.core.counters().asked_in_batch, 2);
    assert!(is_question(&machine.hear(peer(1), request(7))));
    assert!(is_question(&machine.hear(peer(2), request(5))));
    machine.now += 99 * MILLISECOND;
    assert!(machine.hear(peer(1), request(5)).is_empty());
    machine.now += MILLISECOND;
    assert!(is_question(&machine.hear(peer(1), request(5))));
}

#[test]
fn what_was_just_in_a_batch_is_asked_in_a_batch_again() {
    let (mut machine, id) = with_a_batch(&[1]);
    machine.hear(peer(1), answer(id, 1, &[false; 3]));
    machine.core.cancel(5);
    let mut ask = |id, path| {
        let mut actions = Vec::new();
        let begun = machine
            .core
            .lookup(machine.now, id, hash(path), &mut actions);
        begun.expect("a fresh id");
        machine.core.flush(machine.now, &mut actions);
        machine.core.cancel(id);
        machine.now += 199 * MILLISECOND;
        actions
    };
    assert_eq!(
        only_batch(&ask(20, 6)).1,
        hashes(&[6]),
        "else nobody would answer"
    );
    assert_eq!(broadcasts(&ask(9, 9)), [request(9)]);
    let (id, hash) = (21, hash(7));
    let alone = [Datagram::Request { id, hash }];
    assert_eq!(broadcasts(&ask(id, 7)), alone, "that was long ago");
}
