//! Discovery on a simulated LAN: many hosts on a virtual clock, with loss, delay, duplicates,
//! reordering and hosts that sleep, come and go. The same seed gives the same run.

#![expect(clippy::expect_used, reason = "the helpers of tests are tests, too")]

#[expect(dead_code, reason = "the example uses all of it")]
#[path = "support/simulated_lan/mod.rs"]
mod simulated_lan;

#[path = "protocol_simulation/bursts.rs"]
mod bursts;
#[path = "protocol_simulation/changes.rs"]
mod changes;

use std::{collections::BTreeSet, time::Duration};

use peerix::protocol::{Datagram, End, Outcome, discovery::Kind};
use proptest::prelude::*;

use simulated_lan::{
    Found, Lan, TIMEOUT, WAKE,
    host::{Speech, address, hash},
    weather::{FAIR, Weather},
};

/// Lookups that come together wait so long for each other at most, here.
const GATHER: Duration = Duration::from_millis(5);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// What holds in any weather.
fn check(lan: &Lan) {
    for (&(host, id), found) in &lan.lookups {
        if found.is_cancelled {
            continue;
        }
        let of_host = lan.lookups.range((host, 0)..=(host, u32::MAX));
        let first = of_host.map(|(_, found)| found.began).min();
        let wakes = first.expect("this one") + WAKE;
        let limit = wakes.max(found.began + TIMEOUT) + GATHER;
        let ended = found.ended.map(|(at, _)| at);
        assert!(
            ended.is_some_and(|at| at <= limit),
            "lookup {id:#x} of {host} lasts from {:?} to {ended:?}",
            found.began
        );
    }
    for host in 0..lan.hosts.len() {
        let sent = |kind, broadcast| lan.traffic.sent(host, kind, broadcast);
        let asks = lan.lookups.keys().any(|&(asker, _)| asker == host);
        if let Speech::New(core) = &lan.hosts[host].speech {
            let bursts = core.counters().bursts as usize;
            assert!(
                sent(3, true) <= bursts,
                "{host} says hello twice in a burst"
            );
            let answers = sent(1, false) + sent(2, false);
            assert!(
                answers <= lan.traffic.received(host, 0),
                "an unasked answer of {host}"
            );
            assert!(
                sent(6, false) <= lan.traffic.received(host, 5),
                "an unasked answer to a batch of {host}"
            );
        }
        assert!(
            sent(4, false) <= lan.traffic.received(host, 3),
            "an unasked here of {host}"
        );
        assert!(
            asks || sent(0, true) + sent(3, true) + sent(5, true) == 0,
            "{host} asks by itself"
        );
    }
}

#[test]
fn all_that_is_there_is_found_and_misses_cost_a_round_trip() {
    let mut lan = Lan::new(1, FAIR);
    let asker = lan.add_new([]);
    for host in 1..=20 {
        lan.add_new((0..10).map(|n| host * 10 + n));
    }
    lan.lookup(asker, 1_000);
    lan.run(WAKE);
    for number in 10..210 {
        let id = lan.lookup(asker, number);
        lan.run(ms(5));
        let holder = address((number / 10) as usize);
        assert_eq!(lan.found(asker, id).holders, BTreeSet::from([holder]));
    }
    for number in 1_001..1_101 {
        lan.lookup(asker, number);
        lan.run(TIMEOUT);
    }
    for number in 2_000..2_100 {
        let id = lan.lookup(asker, number);
        lan.run(ms(5));
        assert!(
            lan.time_of(asker, id) <= ms(2),
            "{:?}",
            lan.time_of(asker, id)
        );
        let (_, outcome) = lan.found(asker, id).ended.expect("an end");
        let all = Outcome {
            end: End::Answered,
            present: 0,
            absent: 20,
            silent: 0,
        };
        assert_eq!(outcome, all);
    }
    check(&lan);
}

#[test]
fn a_sleeping_holder_is_found_by_the_first_lookup() {
    for seed in 0..50 {
        let mut lan = Lan::new(seed, FAIR);
        let asker = lan.add_new([]);
        let boot = ms(20 + lan.draws.below(400));
        let holder = lan.add_asleep(boot, [7]);
        let id = lan.lookup(asker, 7);
        lan.run(WAKE);
        assert_eq!(
            lan.found(asker, id).holders,
            BTreeSet::from([address(holder)])
        );
        check(&lan);
    }
}

#[test]
fn one_lookup_wakes_all_and_they_wake_nobody() {
    let mut lan = Lan::new(2, FAIR);
    let asker = lan.add_new([]);
    let hosts: Vec<usize> = (0..50)
        .map(|n| lan.add_asleep(ms(30 + n), [n as u32]))
        .collect();
    lan.lookup(asker, 1_000);
    lan.run(Duration::from_secs(30));
    for &host in &hosts {
        assert_eq!(lan.traffic.sent(host, 4, false), 1, "one here");
        assert_eq!(lan.traffic.sent(host, 2, false), 1, "one absent");
        let all = lan.traffic.all_sent(host);
        assert_eq!(all, 2, "and nothing else");
    }
    check(&lan);
}

#[test]
fn alone_a_miss_costs_nothing_after_the_window() {
    let mut lan = Lan::new(3, FAIR);
    let asker = lan.add_new([]);
    let first = lan.lookup(asker, 1);
    lan.run(ms(100));
    let second = lan.lookup(asker, 2);
    lan.run(WAKE);
    assert_eq!(lan.time_of(asker, first), WAKE);
    assert_eq!(
        lan.time_of(asker, second),
        WAKE - ms(100),
        "the window is paid once"
    );
    for number in 3..100 {
        let id = lan.lookup(asker, number);
        assert_eq!(lan.time_of(asker, id), Duration::ZERO);
    }
    check(&lan);
}

#[test]
fn an_old_peer_is_found_in_both_directions() {
    let mut lan = Lan::new(4, FAIR);
    let asker = lan.add_new([1]);
    let old = lan.add(Speech::Old, [2, 3]);
    let first = lan.lookup(asker, 2);
    lan.run(WAKE);
    let second = lan.lookup(asker, 3);
    lan.run(TIMEOUT);
    let miss = lan.lookup(asker, 4);
    lan.run(TIMEOUT);
    for id in [first, second] {
        assert_eq!(lan.found(asker, id).holders, BTreeSet::from([address(old)]));
    }
    assert_eq!(lan.time_of(asker, miss), TIMEOUT);
    let now = lan.now;
    let kinds: Vec<Kind> = lan
        .core(asker)
        .peers(now)
        .iter()
        .map(|peer| peer.kind)
        .collect();
    assert_eq!(kinds, [Kind::Old]);
    let request = Datagram::Request {
        id: 5,
        hash: hash(1),
    };
    lan.deliver(address(old), asker, request.encode()[..].into());
    assert_eq!(lan.traffic.sent(asker, 1, false), 1);
    check(&lan);
}

#[test]
fn a_peer_that_vanishes_costs_four_timeouts() {
    let mut lan = Lan::new(5, FAIR);
    let asker = lan.add_new([]);
    let gone = lan.add_new([]);
    lan.lookup(asker, 1);
    lan.run(WAKE);
    lan.hosts[gone].speech = Speech::Old;
    let times: Vec<Duration> = (0..10)
        .map(|number| {
            let id = lan.lookup(asker, number);
            lan.run(TIMEOUT);
            lan.time_of(asker, id)
        })
        .collect();
    assert_eq!(times[..4], [TIMEOUT; 4]);
    assert_eq!(times[4..], [Duration::ZERO; 6]);
}

#[test]
fn with_five_in_a_hundred_lost_most_is_found() {
    let weather = Weather {
        loss: 5,
        duplicates: 2,
        delay: ms(3),
        reordered: 100,
    };
    let mut lan = Lan::new(6, weather);
    let asker = lan.add_new([]);
    for host in 1..=10 {
        lan.add_new((0..100).map(|n| host * 100 + n));
    }
    lan.lookup(asker, 0);
    lan.run(WAKE);
    let ids: Vec<u32> = (100..1_100)
        .map(|number| {
            let id = lan.lookup(asker, number);
            lan.run(ms(10));
            id
        })
        .collect();
    lan.run(TIMEOUT);
    let found = ids
        .iter()
        .filter(|&&id| !lan.found(asker, id).holders.is_empty())
        .count();
    println!("found {found} of 1000 with 5 % loss each way");
    assert!(found >= 860, "{found}");
    check(&lan);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn in_any_weather(
        seed in any::<u64>(),
        (loss, duplicates, delay) in (0..60_u64, 0..60_u64, 1..80_u64),
        kinds in prop::collection::vec(0..3_u8, 1..12),
        lookups in prop::collection::vec((0..4_u64, 0..40_u32), 1..60),
    ) {
        let mut lan = Lan::new(seed, Weather { loss, duplicates, delay: ms(delay), reordered: 50 });
        let asker = lan.add_new([1, 2, 3]);
        for (number, kind) in kinds.iter().enumerate() {
            let holds = (0..20).filter(|n| n % (number as u32 + 1) == 0);
            match kind {
                0 => lan.add_new(holds),
                1 => lan.add_asleep(ms(20 + 40 * number as u64), holds),
                _ => lan.add(Speech::Old, holds),
            };
        }
        for (pause, number) in lookups {
            lan.lookup(asker, number);
            lan.run(ms(pause * 40));
        }
        lan.run(Duration::from_secs(2));
        check(&lan);
        let honest = |(&(_, _), found): (&(usize, u32), &Found)| found.holders.len() <= kinds.len();
        prop_assert!(lan.lookups.iter().all(honest));
    }
}
