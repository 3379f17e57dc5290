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

use peerix::protocol::{
    datagram::Datagram,
    discovery::{End, Kind, Outcome},
};
use proptest::prelude::*;

use simulated_lan::{
    Lan, TIMEOUT, WAKE,
    host::{Daemon, address, hash},
    traffic::{ANSWER, RESPONSE},
    weather::{WIRED, Weather},
};

const REQUEST: u8 = 0;
const ASK: u8 = 2;

/// No lookup takes longer: what a burst may wait, the old peers, and what is free.
const LONGEST_LOOKUP: Duration = Duration::from_millis(1_000);

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// What holds in any weather.
fn check(lan: &Lan) {
    for ((host, id), found) in &lan.lookups {
        if found.is_cancelled {
            continue;
        }
        let (ended, _) = found.ended.expect("every lookup ends");
        let took = ended - found.began;
        assert!(took <= LONGEST_LOOKUP, "{id:?} of {host} took {took:?}");
    }
    for host in 0..lan.hosts.len() {
        let traffic = &lan.traffic;
        assert!(traffic.sent(host, RESPONSE, false) <= traffic.received(host, REQUEST));
        assert!(traffic.sent(host, ANSWER, false) <= traffic.received(host, ASK));
        let looks_up = lan.lookups.keys().any(|&(asker, _)| asker == host);
        let broadcasts = [REQUEST, ASK].map(|kind| traffic.sent(host, kind, true));
        assert!(
            looks_up || broadcasts == [0, 0],
            "{host} broadcasts by itself"
        );
    }
}

#[test]
fn all_that_is_there_is_found_and_misses_cost_a_round_trip() {
    let mut lan = Lan::new(1, WIRED);
    let asker = lan.add_new([]);
    for host in 1..=20 {
        lan.add_new((0..10).map(|n| host * 10 + n));
    }
    lan.lookup(asker, 1_000);
    lan.run(WAKE);
    for number in 10..210 {
        let id = lan.lookup(asker, number);
        lan.run(ms(20));
        let holder = address((number / 10) as usize);
        assert_eq!(lan.found(asker, id).holders, BTreeSet::from([holder]));
    }
    // What could be an old peer's costs its time once a burst, and a response is at most one.
    for number in 2_000..2_100 {
        let id = lan.lookup(asker, number);
        lan.run(ms(20));
        assert!(lan.time_of(asker, id) <= ms(1), "one round trip");
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
        let mut lan = Lan::new(seed, WIRED);
        let asker = lan.add_new([]);
        let boot = ms(20 + lan.draws.below(230));
        let holder = lan.add_asleep(boot, [7]);
        let id = lan.lookup(asker, 7);
        lan.run(WAKE);
        let holders = &lan.found(asker, id).holders;
        assert_eq!(*holders, BTreeSet::from([address(holder)]));
        lan.run(WAKE);
        check(&lan);
    }
}

#[test]
fn what_is_woken_wakes_nobody() {
    let mut lan = Lan::new(2, WIRED);
    let asker = lan.add_new([]);
    let sleepers: Vec<usize> = (0..50).map(|n| lan.add_asleep(ms(20 + n), [])).collect();
    lan.lookup(asker, 1_000);
    lan.run(Duration::from_secs(30));
    for host in sleepers {
        assert_eq!(lan.traffic.sent(host, ASK, true), 0);
        assert_eq!(lan.traffic.sent(host, REQUEST, true), 0);
    }
    check(&lan);
}

#[test]
fn an_old_peer_is_found_in_both_directions() {
    let mut lan = Lan::new(4, WIRED);
    let asker = lan.add_new([1]);
    let old = lan.add(Daemon::Old, [2, 3]);
    let first = lan.lookup(asker, 2);
    lan.run(WAKE);
    let second = lan.lookup(asker, 3);
    lan.run(TIMEOUT);
    let miss = lan.lookup(asker, 4);
    lan.run(TIMEOUT * 2);
    for id in [first, second] {
        let holders = &lan.found(asker, id).holders;
        assert_eq!(*holders, BTreeSet::from([address(old)]));
    }
    let took = lan.time_of(asker, miss);
    assert!(took >= TIMEOUT && took <= TIMEOUT + ms(1), "{took:?}");
    let now = lan.now;
    let peers = lan.core(asker).peers(now);
    let kinds: Vec<Kind> = peers.iter().map(|peer| peer.kind).collect();
    assert_eq!(kinds, [Kind::Old]);
    let request = Datagram::Request {
        id: 5,
        hash: hash(1),
    };
    let arrival = Lan::arrival(address(old), false, true);
    lan.deliver(asker, arrival, request.encode()[..].into());
    assert_eq!(lan.traffic.sent(asker, RESPONSE, false), 1);
    check(&lan);
}

#[test]
fn who_is_alone_waits_once() {
    let mut lan = Lan::new(3, WIRED);
    let asker = lan.add_new([]);
    let first = lan.lookup(asker, 1);
    lan.run(WAKE * 2);
    assert!(lan.time_of(asker, first) <= WAKE);
    let began = lan.now;
    for number in 3..100 {
        let id = lan.lookup(asker, number);
        while lan.found(asker, id).ended.is_none() {
            lan.run(ms(1));
        }
    }
    assert!(lan.now - began <= ms(97 * 2), "{:?}", lan.now - began);
    check(&lan);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn lookups_end_in_any_weather(
        seed in any::<u64>(),
        (loss, duplicates, delay) in (0..60_u64, 0..60_u64, 1..80_u64),
        kinds in prop::collection::vec(0..5_u8, 1..12),
        lookups in prop::collection::vec((0..4_u64, 0..40_u32), 1..60),
    ) {
        let weather = Weather { loss, duplicates, jitter: ms(delay), reordered: 50, ..WIRED };
        let mut lan = Lan::new(seed, weather);
        let asker = lan.add_new([1, 2, 3]);
        for (number, kind) in kinds.iter().enumerate() {
            let holds = (0..20).filter(|n| n % (number as u32 + 1) == 0);
            match kind {
                0 => lan.add_new(holds),
                1 => lan.add_asleep(ms(20 + 40 * number as u64), holds),
                2 => lan.add(Daemon::Old, holds),
                3 => lan.add(Daemon::Forger, []),
                _ => lan.add(Daemon::Off, holds),
            };
        }
        lan.configure(asker, &[1]);
        for (pause, number) in lookups {
            lan.lookup(asker, number);
            lan.run(ms(pause * 40));
        }
        lan.run(Duration::from_secs(2));
        for found in lan.lookups.values() {
            prop_assert!(found.ended.is_some(), "every lookup ends");
        }
    }

    #[test]
    fn hostile_datagrams_stop_nothing(
        seed in any::<u64>(),
        datagrams in prop::collection::vec(
            (0..5_u8, prop::collection::vec(any::<u8>(), 0..80), any::<[u8; 2]>(), any::<bool>()),
            0..200,
        ),
    ) {
        let mut lan = Lan::new(seed, WIRED);
        let asker = lan.add_new([]);
        let holder = lan.add_new([7]);
        for (kind, mut bytes, [third, fourth], is_broadcast) in datagrams {
            bytes.insert(0, kind);
            let from = ([10, 9, third, fourth], 12_304).into();
            for to in [asker, holder] {
                let arrival = Lan::arrival(from, false, is_broadcast);
                lan.deliver(to, arrival, bytes[..].into());
            }
        }
        let id = lan.lookup(asker, 7);
        lan.run(Duration::from_secs(2));
        prop_assert!(lan.found(asker, id).holders.contains(&address(holder)));
    }
}
