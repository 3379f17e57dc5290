use super::{record::FIRST_BAN, *};

fn peer(port: u16) -> PeerAddr {
    format!("127.0.0.1:{port}").parse().expect("peer")
}

fn path(number: usize) -> StorePathHash {
    StorePathHash::parse(format!("{number:032}").as_bytes()).expect("hash")
}

fn ms(time: u64) -> Duration {
    Duration::from_millis(time)
}

/// The order of `peer(1)` for `path(1)`, of which nothing was heard over UDP.
fn order(health: &PeerHealth, now: Instant) -> Order {
    health.order(now, peer(1), path(1), None)
}

/// No answer to what was asked then.
fn silent(asked: Instant) -> Failure {
    Failure::Transport {
        asked,
        last_answer: None,
    }
}

fn stalled(asked: Instant) -> Failure {
    Failure::Nar {
        asked,
        is_stall: true,
    }
}

#[test]
fn backoff_doubles_to_a_minute_and_an_answer_ends_it() {
    let (health, mut now) = (PeerHealth::default(), Instant::now());
    for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
        health.record_failure(now, peer(1), silent(now));
        // What fails meanwhile is the same failure.
        health.record_failure(now + ms(900), peer(1), silent(now + ms(900)));
        let end = now + Duration::from_secs(seconds);
        assert_eq!(order(&health, end - ms(1)), Order::BackingOff);
        assert_eq!(order(&health, end), Order::Healthy);
        assert!(health.is_unreachable(peer(1)), "until it has answered");
        now = end;
    }
    health.record_failure(now, peer(1), silent(now));
    health.record_success(peer(1), Success::Transport { at: now });
    assert_eq!(order(&health, now), Order::Healthy);
    assert!(!health.is_unreachable(peer(1)));
    health.record_failure(now, peer(1), silent(now));
    assert_eq!(order(&health, now + ms(1_000)), Order::Healthy);
}

#[test]
fn what_was_asked_before_the_last_answer_says_nothing_when_it_fails() {
    let (health, start) = (PeerHealth::default(), Instant::now());
    let answered = start + ms(10);
    health.record_success(peer(1), Success::Transport { at: answered });
    health.record_failure(answered + ms(500), peer(1), silent(start));
    assert!(!health.is_unreachable(peer(1)));
    health.record_failure(answered + ms(500), peer(1), silent(answered));
    assert!(health.is_unreachable(peer(1)));
}

#[test]
fn an_answer_over_udp_puts_backoff_back_to_its_first_step() {
    let (health, start) = (PeerHealth::default(), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    for seconds in [0, 10, 20, 30] {
        health.record_failure(at(seconds), peer(1), silent(at(seconds)));
    }
    let order = |now, answered| health.order(now, peer(1), path(1), Some(answered));
    assert_eq!(order(at(32), at(29)), Order::BackingOff, "before it failed");
    assert_eq!(order(at(30) + ms(999), at(31)), Order::BackingOff);
    assert_eq!(order(at(32), at(31)), Order::Healthy);
    let last_answer = Some(at(31));
    let asked = at(32);
    let failure = Failure::Transport { asked, last_answer };
    health.record_failure(asked, peer(1), failure);
    assert_eq!(order(at(32) + ms(1_999), at(31)), Order::BackingOff);
    assert_eq!(order(at(34), at(31)), Order::Healthy, "the second step");
}

#[test]
fn an_answer_about_one_path_costs_that_path_alone() {
    let (health, now) = (PeerHealth::default(), Instant::now());
    health.record_failure(now, peer(1), Failure::Path(path(1)));
    assert_eq!(order(&health, now), Order::PathFailed);
    assert_eq!(health.order(now, peer(1), path(2), None), Order::Healthy);
    assert_eq!(health.order(now, peer(2), path(1), None), Order::Healthy);
    assert_eq!(order(&health, now + PATH_COUNTS_FOR), Order::Healthy);
    health.clear_paths();
    assert_eq!(order(&health, now), Order::Healthy);
    health.record_failure(now, peer(1), Failure::Path(path(1)));
    health.record_success(peer(1), Success::Path(path(1)));
    assert_eq!(order(&health, now), Order::Healthy);
}

#[test]
fn a_success_clears_its_own_kind_alone() {
    let (health, now) = (PeerHealth::default(), Instant::now());
    let fail_all = || {
        health.record_failure(now, peer(1), silent(now));
        health.record_failure(now, peer(1), Failure::Path(path(1)));
        for asked in [now, now + ms(1)] {
            health.record_failure(asked, peer(1), stalled(asked));
        }
    };
    fail_all();
    health.record_success(peer(1), Success::Transport { at: now });
    assert_eq!(order(&health, now), Order::NarsFail);
    health.record_success(peer(1), Success::Path(path(1)));
    assert!(health.nars_fail(peer(1)));
    fail_all();
    health.record_success(peer(1), Success::Nar);
    assert!(!health.nars_fail(peer(1)));
    assert_eq!(order(&health, now), Order::BackingOff);
    health.record_success(peer(1), Success::Transport { at: now });
    assert_eq!(order(&health, now), Order::PathFailed);
}

#[test]
fn two_nars_in_a_row_count_and_those_under_way_together_are_one() {
    let (health, start) = (PeerHealth::default(), Instant::now());
    let fail = |asked: u64, failed: u64| {
        let asked = start + ms(asked);
        health.record_failure(start + ms(failed), peer(1), stalled(asked));
    };
    for asked in 0..16 {
        fail(asked, 100 + asked);
    }
    assert!(!health.nars_fail(peer(1)));
    fail(100, 200);
    assert!(health.nars_fail(peer(1)));
    health.record_success(peer(1), Success::Nar);
    fail(300, 400);
    assert!(!health.nars_fail(peer(1)));
}

#[test]
fn nars_are_probed_once_a_second_and_less_often_when_they_fail_all_the_same() {
    let (health, start) = (PeerHealth::default(), Instant::now());
    let at = |seconds| start + Duration::from_secs(seconds);
    let fail = |seconds| {
        let asked = at(seconds);
        health.record_failure(asked, peer(1), stalled(asked));
    };
    (0..2).for_each(fail);
    assert!(health.may_probe_nar(at(2), peer(1)));
    assert!(!health.may_probe_nar(at(3) - ms(1), peer(1)));
    assert!(health.may_probe_nar(at(3), peer(1)));
    (3..10).for_each(fail);
    assert!(health.may_probe_nar(at(10), peer(1)), "no probe was wrong");
    health.record_success(peer(1), Success::NarProbe);
    (10..13).for_each(fail);
    assert!(!health.may_probe_nar(at(12) - ms(1), peer(1)));
    assert!(health.may_probe_nar(at(12), peer(1)));
    for seconds in 20..40 {
        health.record_success(peer(1), Success::NarProbe);
        fail(seconds);
    }
    assert!(!health.may_probe_nar(at(71), peer(1)));
    assert!(health.may_probe_nar(at(72), peer(1)), "once a minute");
    health.record_success(peer(1), Success::Nar);
    assert!(!health.nars_fail(peer(1)));
}

#[test]
fn a_narinfo_without_end_makes_a_peer_late_until_one_has_its_end() {
    let (health, now) = (PeerHealth::default(), Instant::now());
    health.record_failure(now, peer(1), Failure::NarinfoStalled);
    assert!(health.is_late(peer(1)) && !health.is_unreachable(peer(1)));
    health.record_success(peer(1), Success::Transport { at: now });
    assert!(health.is_late(peer(1)), "headers prove nothing");
    health.record_success(peer(1), Success::Narinfo);
    assert!(!health.is_late(peer(1)));
    health.record_failure(now, peer(1), silent(now));
    assert!(health.is_late(peer(1)));
}

#[test]
fn one_lookup_a_second_waits_for_an_unreachable_peer() {
    let (health, start) = (PeerHealth::default(), Instant::now());
    health.record_failure(start, peer(1), silent(start));
    assert!(health.may_wait(start, peer(1)));
    assert!(!health.may_wait(start + ms(999), peer(1)));
    assert!(health.may_wait(start + ms(1_000), peer(1)));
    assert!(health.may_wait(start, peer(2)));
}

#[test]
fn connection_attempts_go_on_until_it_answers_or_the_burst_is_over() {
    let (health, start) = (PeerHealth::default(), Instant::now());
    health.record_failure(start, peer(1), silent(start));
    assert!(health.begin_reconnecting(start, peer(1)));
    assert!(!health.begin_reconnecting(start + ms(500), peer(1)), "once");
    assert!(!health.ends_reconnecting(start + WANTED_FOR, peer(1)));
    assert!(health.ends_reconnecting(start + WANTED_FOR + ms(500), peer(1)));
    assert!(health.begin_reconnecting(start, peer(1)));
    health.record_success(peer(1), Success::Transport { at: start });
    assert!(health.ends_reconnecting(start, peer(1)));
    for port in 0..20 {
        health.record_failure(start, peer(100 + port), silent(start));
    }
    let began = (0..20).filter(|port| health.begin_reconnecting(start, peer(100 + port)));
    assert_eq!(began.count(), MOST_RECONNECTING);
}

#[test]
fn a_hedge_waits_for_the_typical_latency() {
    let health = PeerHealth::default();
    assert_eq!(health.hedge_delay(peer(1)), LONGEST_HEDGE_DELAY);
    for _ in 0..50 {
        health.record_latency(peer(1), Duration::from_micros(300));
        health.record_latency(peer(2), ms(20));
    }
    assert_eq!(health.hedge_delay(peer(1)), SHORTEST_HEDGE_DELAY);
    let steady = health.hedge_delay(peer(2));
    assert!((20..22).contains(&steady.as_millis()), "{steady:?}");
    health.record_latency(peer(2), ms(40));
    assert!(health.hedge_delay(peer(2)) > ms(40));
}

#[test]
fn narinfos_for_other_paths_ban_when_they_come_again_and_again() {
    let (health, now) = (PeerHealth::default(), Instant::now());
    assert_eq!(health.record_wrong_path(now, peer(1)), None);
    assert_eq!(health.record_wrong_path(now, peer(1)), None);
    health.record_failure(now, peer(1), Failure::Path(path(1)));
    health.record_success(peer(1), Success::Path(path(1)));
    assert_eq!(health.record_wrong_path(now, peer(1)), None);
    assert_eq!(health.record_wrong_path(now, peer(1)), None);
    assert_eq!(health.record_wrong_path(now, peer(1)), Some(FIRST_BAN));
    assert!(health.is_banned(now, peer(1)));
}

#[test]
fn the_owner_can_have_all_forgotten() {
    let (health, now) = (PeerHealth::default(), Instant::now());
    health.ban(now, peer(2));
    health.record_failure(now, peer(1), silent(now));
    health.record_failure(now, peer(1), Failure::Path(path(1)));
    assert_eq!(health.clear_all(now), 1);
    assert_eq!(order(&health, now), Order::Healthy);
    assert!(!health.is_banned(now, peer(2)));
    assert_eq!(health.ban(now, peer(2)), FIRST_BAN);
}

#[test]
fn bans_grow_to_a_day_and_outlive_the_process() {
    let (health, now) = (PeerHealth::default(), Instant::now());
    assert_eq!(health.ban(now, peer(1)), FIRST_BAN);
    assert!(health.is_banned(now, peer(1)));
    let ban = Ban {
        peer: peer(1).socket_addr(),
        seconds_left: FIRST_BAN.as_secs(),
        times: 1,
    };
    assert_eq!(health.bans(now), std::slice::from_ref(&ban));
    let next = PeerHealth::default();
    next.restore(now, std::slice::from_ref(&ban));
    assert!(next.is_banned(now, peer(1)));
    let later = ban.clone().after(Duration::from_secs(1));
    assert_eq!(later.map(|ban| ban.seconds_left), Some(599));
    assert_eq!(ban.after(FIRST_BAN + Duration::from_secs(1)), None);
    assert!(!health.is_banned(now + FIRST_BAN, peer(1)));
    assert_eq!(health.ban(now, peer(1)), 2 * FIRST_BAN);
    let longest = (0..40).map(|_| health.ban(now, peer(1))).max();
    assert_eq!(longest, Some(LONGEST_BAN));
}

#[test]
fn floods_of_peers_and_paths_take_bounded_memory() {
    let (health, now) = (PeerHealth::default(), Instant::now());
    for port in 1..=5_000 {
        health.ban(now, peer(port));
    }
    assert_eq!(health.bans(now).len(), MOST_PEERS.get());
    for number in 0..20_000 {
        health.record_failure(now, peer(1), Failure::Path(path(number)));
    }
    assert_eq!(health.lock().paths.len(), MOST_PATHS.get());
}
