//! What a burst of lookups finds and costs on one small LAN; `tests/bench/simulated-lan` measures
//! many more.

use super::simulated_lan::{
    closure::Mix,
    gateway::Pace,
    report::Limits,
    scenarios::Scenario,
    weather::{WIRED, Weather},
};

fn assert_kept(scenario: &Scenario) {
    let report = scenario.run();
    let broken = report.broken(&scenario.limits);
    assert_eq!(broken, [""; 0], "{}\n{report}", scenario.name);
}

#[test]
fn in_step_25_lookups_share_their_datagrams() {
    for mix in [Mix::NONE, Mix::ONE, Mix::ALL] {
        assert_kept(&Scenario {
            mix,
            paths: 3_000,
            pace: Pace::ROUNDS,
            limits: Limits {
                found: Some(1_000.0),
                datagrams: Some(1.3),
                ..Limits::default()
            },
            ..Scenario::default()
        });
    }
}

#[test]
fn without_loss_all_is_found_and_with_loss_nearly_all() {
    for (loss, found) in [(0, 1_000.0), (5, 997.0)] {
        assert_kept(&Scenario {
            name: format!("loss {loss} %"),
            weather: Weather {
                loss,
                duplicates: 20,
                reordered: 60,
                ..WIRED
            },
            paths: 1_000,
            limits: Limits {
                found: Some(found),
                ..Limits::default()
            },
            ..Scenario::default()
        });
    }
}
