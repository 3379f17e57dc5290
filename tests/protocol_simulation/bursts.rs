//! The closure of one Nix: what it costs, and how much of what is there it finds.

use std::time::Duration;

use super::{
    TIMEOUT, WAKE, check,
    simulated_lan::{
        Lan,
        closure::{self, Mix},
        gateway::Gateway,
        host::{Speech, address},
        report::Report,
        weather::Weather,
    },
};

const PARALLEL: usize = 25;

/// A switched network.
pub(super) const WIRED: Weather = Weather {
    loss: 0,
    duplicates: 0,
    delay: Duration::from_micros(200),
    reordered: 0,
};

/// A LAN of one asker and some peers that hold parts of what it asks for.
pub(super) fn lan_of(
    seed: u64,
    weather: Weather,
    (old, new): (usize, usize),
    paths: u32,
) -> (Lan, Gateway) {
    let mut lan = Lan::new(seed, weather);
    let asker = lan.add_new([]);
    let hands = Mix::default().deal(&mut lan.draws, old + new, paths);
    for (number, hand) in hands.into_iter().enumerate() {
        if number < old {
            lan.add(Speech::Old, hand);
        } else {
            lan.add_new(hand);
        }
    }
    let order = closure::order(&mut lan.draws, paths);
    let gateway = Gateway::new(&mut lan, asker, order, PARALLEL);
    (lan, gateway)
}

#[test]
fn a_burst_keeps_its_limits() {
    for (peers, paths) in [(3, 1_000), (10, 1_500), (33, 3_000)] {
        for loss in [0, 5] {
            let weather = Weather { loss, ..WIRED };
            let (mut lan, mut gateway) = lan_of(11, weather, (0, peers), paths);
            gateway.run(&mut lan, usize::MAX);
            let report = Report::of(&lan, &gateway);
            println!("{peers} peers, {loss} % loss\n{report}\n");
            assert_eq!(report.broken(), [""; 0], "{peers} peers, {loss} % loss");
            assert_eq!(report.lookups, paths as usize);
            // More than sixteen summaries are not fetched.
            let all_covered = peers <= 16;
            assert_eq!(report.covered.count() > 0, all_covered, "{report}");
            check(&lan);
        }
    }
}

#[test]
fn duplicates_and_disorder_lose_nothing() {
    for peers in [3, 40] {
        let weather = Weather {
            duplicates: 20,
            reordered: 60,
            ..WIRED
        };
        let (mut lan, mut gateway) = lan_of(12, weather, (0, peers), 600);
        gateway.run(&mut lan, usize::MAX);
        let report = Report::of(&lan, &gateway);
        assert_eq!(report.found, report.held, "{report}");
        check(&lan);
    }
}

#[test]
fn what_old_peers_hold_is_found_beside_new_ones_and_costs_their_time() {
    let (mut lan, mut gateway) = lan_of(13, WIRED, (2, 3), 800);
    gateway.run(&mut lan, usize::MAX);
    let report = Report::of(&lan, &gateway);
    println!("{report}");
    let by_old = |path: &u32| {
        let holds = |host: usize| lan.hosts[host].holds.contains(*path);
        (1..3).any(holds) && !(3..6).any(holds)
    };
    let from_old = gateway.asked.iter().filter(|it| by_old(&it.path));
    assert!(from_old.clone().count() > 50);
    assert!(from_old.clone().all(|it| it.from.is_some()));
    assert_eq!(report.found, report.held, "{report}");
    let misses = gateway.asked.iter().filter(|it| it.from.is_none());
    assert!(misses.clone().all(|it| it.took >= TIMEOUT), "{report}");
    let late = |it: &&super::simulated_lan::gateway::Asked| it.took > TIMEOUT * 2;
    assert!(
        misses.filter(late).count() <= PARALLEL,
        "only the first ones wait for those who wake up"
    );
    check(&lan);
}

#[test]
fn a_sleeping_holder_is_found_by_the_first_lookup_though_some_is_lost() {
    const SEEDS: u64 = 1_000;
    let mut found = 0;
    for seed in 0..SEEDS {
        let weather = Weather { loss: 5, ..WIRED };
        let mut lan = Lan::new(seed, weather);
        let asker = lan.add_new([]);
        for number in 0..5 {
            lan.add_new([100 + number]);
        }
        let boot = Duration::from_millis(20 + lan.draws.below(380));
        let holder = lan.add_asleep(boot, [7]);
        let id = lan.lookup(asker, 7);
        lan.run(WAKE);
        found += u64::from(lan.found(asker, id).holders.contains(&address(holder)));
        check(&lan);
    }
    println!("a sleeping holder was found {found} times of {SEEDS} with 5 % loss");
    assert!(found * 100 >= SEEDS * 98, "{found}");
}
