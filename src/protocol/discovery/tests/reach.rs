//! Peers that broadcast does not reach: by IPv6 alone, or named.

use super::*;

const V6: &str = "[fe80::1%2]:12304";

fn is_waited_for(machine: &Machine, of: SocketAddr) -> bool {
    let peers = machine.core.peers(machine.now);
    peers.iter().any(|it| it.address == of && it.is_waited_for)
}

fn to(actions: &[Action]) -> Vec<SocketAddr> {
    sends(actions).iter().map(|&(to, _)| to).collect()
}

#[test]
fn one_that_is_heard_by_both_is_waited_for_once_by_ipv4() {
    for ipv6_first in [false, true] {
        let mut machine = Machine::on_a_lan();
        machine.stir(1);
        let mut addresses = [peer(1), address(V6)];
        if ipv6_first {
            addresses.reverse();
        }
        for from in addresses {
            machine.here(from, about(1));
        }
        machine.now += WAKE;
        assert!(is_waited_for(&machine, peer(1)));
        assert!(!is_waited_for(&machine, address(V6)));
        assert!(sends(&machine.lookup(5)).is_empty());
        assert_eq!(ends(&machine.absent(peer(1), 5)), [(5, End::Answered)]);
    }
}

#[test]
fn two_that_are_heard_by_one_each_are_both_waited_for() {
    let mut machine = Machine::on_a_lan();
    machine.stir(1);
    machine.here(peer(1), about(1));
    machine.here(address(V6), about(2));
    machine.now += WAKE;
    machine.lookup(5);
    assert_eq!(ends(&machine.absent(peer(1), 5)), []);
    assert_eq!(ends(&machine.absent(address(V6), 5)), [(5, End::Answered)]);
}

#[test]
fn one_that_is_heard_by_ipv6_alone_is_asked_directly() {
    let mut machine = Machine::on_a_lan();
    machine.stir(1);
    machine.here(address(V6), about(1));
    machine.now += WAKE;
    let actions = machine.lookup(5);
    assert_eq!(broadcasts(&actions).len(), 1);
    assert_eq!(to(&actions), [address(V6)]);
    assert_eq!(ends(&machine.absent(address(V6), 5)), [(5, End::Answered)]);
}

#[test]
fn what_is_open_is_sent_to_one_by_ipv6_that_shows_itself() {
    let mut machine = Machine::on_a_lan();
    machine.stir(1);
    machine.lookup(5);
    machine.lookup(6);
    machine.core.cancel(6);
    assert!(machine.here(peer(1), about(2)).is_empty());
    let actions = machine.here(address(V6), about(1));
    let sent = sends(&actions);
    let (id, _, to_many, paths) = batch(&sent[0].1).expect("a batch");
    assert_eq!((sent.len(), sent[0].0), (1, address(V6)));
    assert_eq!((to_many, paths), (false, hashes(&[5])));
    let answer = Datagram::Answer {
        id,
        about: about(1),
        held: Held::of([true]),
    };
    let actions = machine.hear(address(V6), answer);
    assert_eq!(candidates(&actions), ["[fe80::1%2]:4000"]);
}

#[test]
fn a_named_peer_is_asked_directly_until_its_name_is_gone() {
    let mut machine = Machine::new(&[]);
    let named = address("10.0.0.3:12304");
    machine.core.set_named(machine.now, &[named], &[]);
    let actions = machine.lookup(1);
    assert!(matches!(sends(&actions)[0].1, Datagram::Hello { .. }));
    assert_eq!(to(&actions), [named, named]);
    machine.core.set_named(machine.now, &[], &[]);
    assert_eq!(ends(&machine.lookup(2)), [(2, End::Alone)]);
}

#[test]
fn only_a_new_name_begins_a_burst() {
    let mut machine = Machine::with_peers(&[1]);
    let named = address("10.0.0.3:12304");
    let bursts = |machine: &Machine| machine.core.counters().bursts;
    machine.core.set_named(machine.now, &[named], &[]);
    assert_eq!(bursts(&machine), 1, "nobody has asked anything");
    let actions = machine.lookup(5);
    assert_eq!(bursts(&machine), 2);
    assert!(matches!(broadcasts(&actions)[0], Datagram::Hello { .. }));
    assert_eq!(to(&actions), [named, named]);
    machine.now += WAKE;
    machine.core.set_named(machine.now, &[named], &[]);
    machine.lookup(6);
    machine.core.set_named(machine.now, &[], &[]);
    machine.lookup(7);
    assert_eq!(bursts(&machine), 2);
}

#[test]
fn who_was_reached_by_broadcast_is_not_named() {
    let mut machine = Machine::with_peers(&[1]);
    machine.core.set_named(machine.now, &[peer(1)], &[]);
    let actions = machine.lookup(5);
    assert!(sends(&actions).is_empty(), "{actions:?}");
    assert_eq!(machine.core.counters().bursts, 1);
}

#[test]
fn what_is_open_is_sent_once_to_one_by_ipv6_that_shows_itself_twice() {
    let mut machine = Machine::on_a_lan();
    machine.stir(1);
    machine.lookup(5);
    assert_eq!(to(&machine.here(address(V6), about(1))), [address(V6)]);
    assert!(machine.here(address(V6), about(1)).is_empty());
    assert!(machine.here(address(V6), about(2)).is_empty());
}

#[test]
fn one_that_shows_itself_and_knows_no_batches_is_sent_few_requests() {
    let mut machine = Machine::on_a_lan();
    machine.stir(1);
    for id in 100..120 {
        machine.lookup(id);
    }
    let before = About {
        version: 1,
        ..about(1)
    };
    assert_eq!(machine.here(address(V6), before).len(), 8);
}

#[test]
fn a_second_answer_to_what_was_sent_twice_says_nothing_of_the_way_it_came() {
    let far = address("10.0.0.1:12304");
    let mut machine = Machine::new(&["10.0.0.1:12304"]);
    machine.core.set_networks(true, true);
    machine.stir(1);
    machine.here(far, about(1));
    machine.here(peer(2), about(2));
    machine.now += WAKE;
    assert_eq!(to(&machine.lookup(5)), [far]);
    assert!(to(&machine.go_on()).contains(&far), "it was silent");
    machine.absent(far, 5);
    machine.absent(far, 5);
    assert_eq!(to(&machine.lookup(6)), [far], "there is no other way to it");
    machine.absent(far, 6);
    machine.absent(far, 6);
    assert!(to(&machine.lookup(7)).is_empty(), "it was sent once");
}

#[test]
fn announcements_begin_a_burst_a_minute_and_names_of_the_settings_always() {
    let mut machine = Machine::with_peers(&[1]);
    let far = |number: u8| SocketAddr::new([10, 0, 0, number].into(), PORT);
    let bursts = |machine: &Machine| machine.core.counters().bursts;
    machine.core.set_named(machine.now, &[], &[far(1)]);
    machine.lookup(5);
    assert_eq!(bursts(&machine), 2, "it may be asleep");
    machine.now += WAKE;
    machine.lookup(6);
    let mut announced = vec![far(1)];
    for number in 2..60 {
        machine.now += Duration::from_secs(1);
        announced.push(far(number));
        machine.core.set_named(machine.now, &[], &announced);
        let hellos = |actions: &[Action]| {
            let sent = sends(actions).into_iter();
            let hellos = sent.filter(|(_, it)| matches!(it, Datagram::Hello { .. }));
            hellos.map(|(to, _)| to).collect::<Vec<_>>()
        };
        let actions = machine.stir(100);
        assert_eq!((hellos(&actions), actions.len()), (vec![far(number)], 1));
        assert!(machine.stir(101).is_empty(), "once");
    }
    assert_eq!(bursts(&machine), 2);
    machine.core.set_named(machine.now, &[far(100)], &announced);
    machine.stir(102);
    assert_eq!(bursts(&machine), 3, "it is named by the owner");
    machine.now += 2 * MILLISECOND * 1_000;
    machine
        .core
        .set_named(machine.now, &[far(100)], &[far(200)]);
    machine.stir(103);
    assert_eq!(bursts(&machine), 4, "a minute has passed");
}

#[test]
fn two_asks_of_a_burst_wait_for_one_that_was_only_announced() {
    let mut machine = Machine::with_peers(&[]);
    let far = SocketAddr::new([10, 0, 0, 1].into(), PORT);
    machine.core.set_named(machine.now, &[], &[far]);
    machine.stir(1);
    machine.now += WAKE;
    for id in [100, 101] {
        machine.lookup(id);
        assert_eq!(machine.wait().0, TIMEOUT);
    }
    assert_eq!(ends(&machine.lookup(102)), [(102, End::Alone)]);
}

#[test]
fn announcements_that_come_and_go_are_not_kept() {
    let mut machine = Machine::with_peers(&[1]);
    for number in 0..=250 {
        let far = SocketAddr::new([10, 0, 0, number].into(), PORT);
        machine.core.set_named(machine.now, &[], &[far]);
        machine.core.set_named(machine.now, &[], &[far]);
    }
    assert!(machine.core.strangers.len() <= 1);
}

#[test]
fn one_that_was_announced_within_a_minute_is_known_by_its_here() {
    let mut machine = Machine::with_peers(&[1]);
    let [first, second] = [2, 3].map(|number| SocketAddr::new([10, 0, 0, number].into(), PORT));
    machine.core.set_named(machine.now, &[], &[first]);
    machine.stir(2);
    machine.now += QUIET - MILLISECOND;
    machine.stir(3);
    machine.core.set_named(machine.now, &[], &[first, second]);
    machine.now += MILLISECOND;
    let actions = machine.stir(4);
    let Some((_, Datagram::Hello { id, .. })) = sends(&actions).pop() else {
        panic!("{actions:?}");
    };
    let about = about(3);
    machine.hear(second, Datagram::Here { id, about });
    assert!(is_waited_for(&machine, second));
}

fn v6(machine: u16, port: u16) -> SocketAddr {
    let mut at = address(&format!("[fe80::{machine:x}%2]:0"));
    at.set_port(port);
    at
}

#[test]
fn one_machine_by_ipv6_is_asked_at_one_port_and_not_too_many_are() {
    let mut machine = Machine::on_a_lan();
    machine.stir(1);
    for port in 1..=300 {
        machine.here(v6(1, port), about(port.into()));
    }
    machine.now += WAKE;
    assert_eq!(to(&machine.lookup(5)).len(), 1);
    machine.now += QUIET;
    machine.stir(1);
    for number in 1..=100 {
        machine.now += MILLISECOND;
        machine.here(v6(number, PORT), about(number.into()));
    }
    machine.now += WAKE;
    let asked = to(&machine.lookup(6));
    let last: Vec<SocketAddr> = (37..=100).rev().map(|number| v6(number, PORT)).collect();
    assert_eq!(asked, last, "those heard last");
}

/// How many datagrams go to `far` for 20 lookups at once.
fn sent_for_twenty(machine: &mut Machine, far: SocketAddr) -> usize {
    machine.begin(5);
    for id in 100..120 {
        machine.begin(id);
    }
    to(&machine.go_on()).iter().filter(|&&to| to == far).count()
}

#[test]
fn who_knows_no_batches_is_sent_few_requests_unless_somebody_configured_it() {
    let far = address("10.0.0.3:12304");
    let mut machine = Machine::on_a_lan();
    machine.core.set_named(machine.now, &[far], &[]);
    assert_eq!(sent_for_twenty(&mut machine, far), 20);
    let mut machine = Machine::on_a_lan();
    machine.core.set_named(machine.now, &[], &[far]);
    assert_eq!(sent_for_twenty(&mut machine, far), 8);
    let mut machine = Machine::on_a_lan();
    let before = About {
        version: 1,
        ..about(1)
    };
    machine.stir(1);
    machine.here(address(V6), before);
    assert_eq!(sent_for_twenty(&mut machine, address(V6)), 8);
}

#[test]
fn one_that_is_reached_by_multicast_too_is_found_to_be() {
    let mut machine = Machine::on_a_lan();
    machine.lookup(1);
    assert_eq!(to(&machine.here(address(V6), about(1))), [address(V6)]);
    machine.here(peer(2), about(2));
    machine.now += WAKE;
    machine.lookup(5);
    machine.absent(address(V6), 5);
    machine.absent(address(V6), 5);
    assert!(to(&machine.lookup(6)).is_empty(), "it was sent twice");
}

/// A peer at [`V6`] whose instance peer 1 claims as well, and peer 2, after the wake window.
fn with_an_alias() -> Machine {
    let mut machine = Machine::on_a_lan();
    machine.stir(1);
    machine.here(peer(1), about(1));
    machine.here(address(V6), about(1));
    machine.here(peer(2), about(2));
    machine.now += WAKE;
    assert!(!is_waited_for(&machine, address(V6)));
    machine
}

#[test]
fn one_that_falls_silent_by_ipv4_is_asked_by_ipv6() {
    let mut machine = with_an_alias();
    for id in 5..9 {
        assert!(!to(&machine.lookup(id)).contains(&address(V6)));
        machine.absent(peer(2), id);
        assert_eq!(ends(&machine.wait().1), [(id, End::Timeout)]);
    }
    assert!(!is_waited_for(&machine, peer(1)));
    assert!(is_waited_for(&machine, address(V6)));
    assert_eq!(to(&machine.lookup(9)), [address(V6)]);
    machine.absent(peer(2), 9);
    assert_eq!(ends(&machine.absent(address(V6), 9)), [(9, End::Answered)]);
}

#[test]
fn one_whose_other_address_becomes_another_peers_is_asked_at_its_own() {
    let mut machine = with_an_alias();
    machine.lookup(5);
    machine.here(peer(1), about(3));
    assert!(is_waited_for(&machine, address(V6)), "it is 3 now");
    let mut machine = with_an_alias();
    machine.lookup(5);
    for number in 0..1_100_u32 {
        machine.now += MILLISECOND * 20;
        let from = SocketAddr::new(
            [10, 1, (number % 250) as u8, (number / 250) as u8].into(),
            PORT,
        );
        machine.here(address(V6), about(1));
        machine.absent(from, 5);
    }
    let peers = machine.core.peers(machine.now);
    assert!(
        peers.iter().all(|it| it.address != peer(1)),
        "it has lost its place"
    );
    assert!(is_waited_for(&machine, address(V6)));
}

#[test]
fn who_was_found_through_a_network_is_not_asked_without_one() {
    let mut machine = Machine::on_a_lan();
    machine.lookup(1);
    machine.here(address(V6), about(1));
    machine.now += WAKE;
    machine.core.set_networks(false, false);
    let actions = machine.lookup(5);
    assert!(sends(&actions).is_empty(), "{actions:?}");
    assert_eq!(ends(&actions), [(5, End::Alone)]);
}
