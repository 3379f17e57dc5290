//! Peers that go and come, and paths that are added, while a Nix is asking.

use std::time::Duration;

use peerix::protocol::{End, discovery::Kind};

use super::{
    TIMEOUT, WAKE,
    bursts::{WIRED, lan_of},
    check, ms,
    simulated_lan::{
        Lan,
        host::{Speech, address},
        report::Report,
    },
};

/// More than a lookup takes while everybody answers, or nobody need be asked.
const SLOW: Duration = Duration::from_millis(10);

const PATHS: u32 = 1_500;

#[test]
fn a_peer_that_leaves_costs_a_few_slow_lookups() {
    for has_summaries in [false, true] {
        let (mut lan, mut gateway) = lan_of(21, WIRED, (0, 6), PATHS);
        gateway.has_summaries = has_summaries;
        gateway.run(&mut lan, PATHS as usize / 2);
        let before = gateway.asked.len();
        lan.leave(3);
        gateway.run(&mut lan, usize::MAX);
        let after = &gateway.asked[before..];
        let slow = after.iter().filter(|it| it.took > SLOW).count();
        println!("summaries: {has_summaries}, {slow} slow lookups");
        assert!(slow <= 50, "{slow}");
        if !has_summaries {
            let last = &after[after.len() - 300..];
            assert!(last.iter().all(|it| it.took <= SLOW), "it is forgotten");
        }
        let report = Report::of(&lan, &gateway);
        assert_eq!(report.found_awake, report.held_awake, "{report}");
        check(&lan);
    }
}

/// Three peers whose summaries decide everything, for so long that probes are a minute apart.
fn covered_lan() -> (Lan, usize) {
    let mut lan = Lan::new(22, WIRED);
    let asker = lan.add_new([]);
    for number in 0..3 {
        lan.add_new([number]);
    }
    lan.lookup(asker, 1_000);
    lan.run(WAKE);
    let now = lan.now;
    let peers = lan.core(asker).peers(now);
    let about = peers.iter().filter_map(|peer| peer.about);
    let summaries: Vec<(u64, u64)> = about.map(|it| (it.instance, it.generation)).collect();
    assert_eq!(summaries.len(), 3);
    lan.core(asker).set_summaries(&summaries);
    for number in 2_000..2_400 {
        let id = lan.lookup(asker, number);
        assert_eq!(end(&lan, asker, id), Some(End::Covered));
        lan.run(ms(500));
    }
    (lan, asker)
}

fn end(lan: &Lan, asker: usize, id: u32) -> Option<End> {
    lan.found(asker, id).ended.map(|(_, outcome)| outcome.end)
}

/// Asks for `path` twice a second until it is found at `holder`; how long that took.
fn until_found(lan: &mut Lan, asker: usize, path: u32, holder: usize) -> Duration {
    let begun = lan.now;
    loop {
        assert!(lan.now - begun < Duration::from_secs(120), "never found");
        let id = lan.lookup(asker, path);
        lan.run(TIMEOUT);
        if lan.found(asker, id).holders.contains(&address(holder)) {
            return lan.now - TIMEOUT - begun;
        }
        assert_eq!(end(lan, asker, id), Some(End::Covered));
        lan.run(ms(450));
    }
}

#[test]
fn a_peer_that_comes_is_found_within_a_minute() {
    let (mut lan, asker) = covered_lan();
    let newcomer = lan.add(Speech::Gone, [7]);
    lan.come(newcomer);
    let took = until_found(&mut lan, asker, 7, newcomer);
    println!("found after {took:?}");
    assert!(took <= Duration::from_secs(61), "{took:?}");
    check(&lan);
}

#[test]
fn a_peer_that_comes_and_asks_is_found_at_once() {
    let (mut lan, asker) = covered_lan();
    let newcomer = lan.add(Speech::Gone, [7]);
    lan.come(newcomer);
    lan.lookup(newcomer, 3_000);
    lan.run(WAKE);
    let took = until_found(&mut lan, asker, 7, newcomer);
    assert!(took <= Duration::from_secs(2), "{took:?}");
    let now = lan.now;
    let peers = lan.core(asker).peers(now);
    let known = peers.iter().find(|peer| peer.address == address(newcomer));
    assert_eq!(known.map(|peer| peer.kind), Some(Kind::New));
    check(&lan);
}

#[test]
fn a_path_that_was_added_is_found_after_the_next_probe() {
    let (mut lan, asker) = covered_lan();
    lan.gain(2, 7);
    let probes = lan.core(asker).counters().probes;
    let took = until_found(&mut lan, asker, 7, 2);
    println!("found after {took:?}");
    assert!(took <= Duration::from_secs(61), "{took:?}");
    assert_eq!(lan.core(asker).counters().probes, probes + 1);
    check(&lan);
}
