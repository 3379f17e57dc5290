//! Peers that go and come, and paths that are added, while a Nix is asking.

use std::time::Duration;

use super::{
    WAKE, check, ms,
    simulated_lan::{
        Lan,
        host::{Daemon, address},
        weather::WIRED,
    },
};

fn is_found(lan: &mut Lan, asker: usize, path: u32, holder: usize) -> bool {
    let id = lan.lookup(asker, path);
    lan.run(ms(400));
    lan.found(asker, id).holders.contains(&address(holder))
}

#[test]
fn a_path_that_was_added_a_millisecond_ago_is_found() {
    let mut lan = Lan::new(21, WIRED);
    let asker = lan.add_new([]);
    let holder = lan.add_new([]);
    for path in 0..100 {
        assert!(!is_found(&mut lan, asker, path, holder));
        lan.hosts[holder].holds.insert(path);
        lan.run(ms(1));
        assert!(is_found(&mut lan, asker, path, holder), "{path}");
    }
    check(&lan);
}

#[test]
fn a_peer_that_comes_is_found_with_the_next_discovery_broadcast() {
    let mut lan = Lan::new(22, WIRED);
    let asker = lan.add_new([]);
    lan.add_new([]);
    let newcomer = lan.add(Daemon::Off, [7]);
    lan.lookup(asker, 1_000);
    lan.run(WAKE);
    lan.come(newcomer);
    let came = lan.now;
    while !is_found(&mut lan, asker, 7, newcomer) {
        assert!(lan.now - came <= Duration::from_secs(11), "never found");
    }
    check(&lan);
}

#[test]
fn a_peer_that_comes_and_asks_is_found_at_once() {
    let mut lan = Lan::new(23, WIRED);
    let asker = lan.add_new([]);
    lan.add_new([]);
    let newcomer = lan.add(Daemon::Off, [7]);
    lan.lookup(asker, 1_000);
    lan.run(WAKE);
    lan.come(newcomer);
    lan.lookup(newcomer, 3_000);
    lan.run(ms(2));
    assert!(is_found(&mut lan, asker, 7, newcomer));
    check(&lan);
}
