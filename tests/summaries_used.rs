//! After some tens of questions a machine asks its neighbours what they share, and from then on
//! only those who probably have a path; and what Nix will ask for next is fetched before it does.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::time::Duration;

use peerix::format::StorePathHash;
use peerix::protocol::summary::{Content, News, Stamp, Summary, key};

use support::{
    daemon::Daemon,
    eventually,
    host::Host,
    item::Item,
    peer::{self, Asked, Peer},
    timed,
};

/// Lookups after which summaries are fetched.
const LOOKUPS: u32 = 32;

const GENERATION: u64 = 7;

/// A hash that nobody has.
fn nobody_has(number: u32) -> String {
    format!("{number:032}")
}

fn stamp(peer_port: u16) -> Stamp {
    Stamp {
        instance: u64::from(peer_port),
        rule: 1,
        generation: GENERATION,
    }
}

/// The UDP side of a peer with summaries, which has `held` and says it is at `generation`.
fn reply(held: Vec<String>, datagram: &[u8], port: u16) -> Vec<Vec<u8>> {
    let answers = peer::has(datagram, port, |hash| held.iter().any(|it| it == hash));
    let of_version_two = |mut answer: Vec<u8>| {
        if answer[0] == 0x04 {
            answer[13..15].copy_from_slice(&2_u16.to_be_bytes());
        }
        answer
    };
    answers.into_iter().map(of_version_two).collect()
}

fn port_of(asked: &Asked) -> u16 {
    let host = asked.head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("host").then_some(value)
    });
    let (_, port) = host
        .and_then(|host| host.rsplit_once(':'))
        .expect("a host with a port");
    port.parse().expect("a port")
}

/// A peer that holds `items`, and whose summary says that it has those and `claimed`.
fn peer_with_summary(items: &[&Item], claimed: Vec<String>) -> Peer {
    let items: Vec<Item> = items.iter().map(|item| (*item).clone()).collect();
    let held: Vec<String> = items.iter().map(Item::hash).collect();
    let keys: Vec<u64> = held
        .iter()
        .chain(&claimed)
        .map(|hash| key(StorePathHash::parse(hash.as_bytes()).expect("hash")))
        .collect();
    Peer::new(
        move |datagram, port| reply(held.clone(), datagram, port),
        move |asked, stream| {
            let known = asked.path.strip_prefix("/local/summary");
            match known {
                Some("") => {
                    let summary = Summary::build(stamp(port_of(asked)), keys.clone());
                    peer::ok(stream, &summary.expect("a summary").encode())
                }
                Some(_) => {
                    let news = News {
                        stamp: stamp(port_of(asked)),
                        since: GENERATION,
                        keys: Vec::new(),
                    };
                    peer::ok(stream, &news.encode())
                }
                None => peer::serve_honestly(&items, asked, stream),
            }
        },
    )
}

fn narinfo(daemon: &Daemon, hash: &str) -> u16 {
    daemon.get(&format!("/{hash}.narinfo")).status
}

/// Asks as often as it takes, and waits until `peer` was asked for its summary.
fn fetch_summary(daemon: &Daemon, peer: &Peer) {
    let before = summaries_of(peer);
    for number in 0..LOOKUPS {
        assert_eq!(narinfo(daemon, &nobody_has(number)), 404);
    }
    eventually("the summary", || {
        (summaries_of(peer) > before && daemon.status()["fetched"]["summaries"] != 0).then_some(())
    });
}

fn summaries_of(peer: &Peer) -> usize {
    let asked = peer.asked();
    let summaries = asked
        .iter()
        .filter(|asked| asked.path.starts_with("/local/summary"));
    summaries.count()
}

/// How often `peer` was asked for `hash`: by datagram, and over HTTP.
fn questions(peer: &Peer, hash: &str) -> (usize, usize) {
    let datagrams = peer.datagrams();
    let datagrams = datagrams
        .iter()
        .filter(|it| it.windows(32).any(|window| window == hash.as_bytes()));
    let asked = peer.asked();
    let asked = asked
        .iter()
        .filter(|asked| asked.path == format!("/local/{hash}.narinfo"));
    (datagrams.count(), asked.count())
}

#[test]
fn a_path_of_a_summary_is_asked_for_where_it_is_and_without_a_datagram() {
    let (first, second) = (Item::signed("first", 10), Item::signed("second", 10));
    let peer = peer_with_summary(&[&first, &second], Vec::new());
    let host = Host::new().with(&Peer::setting(&[&peer]));
    let runtime = host.open_directory("runtime");
    let start = || host.launch().env("RUNTIME_DIRECTORY", &runtime).start();
    let daemon = start();
    assert_eq!(narinfo(&daemon, &nobody_has(99)), 404);
    assert_eq!(summaries_of(&peer), 0, "not for one question");
    fetch_summary(&daemon, &peer);
    eventually("the summary at work", || {
        let hash = first.hash();
        assert_eq!(narinfo(&daemon, &hash), 200);
        let (datagrams, asked) = questions(&peer, &hash);
        (asked > datagrams).then_some(())
    });
    assert_eq!(narinfo(&daemon, &second.hash()), 200);
    assert_eq!(questions(&peer, &second.hash()), (0, 1));
    assert_eq!(summaries_of(&peer), 1, "fetched once");
    assert_eq!(daemon.stop().0, Some(0));

    // The next process knows it from the first question on, and has it confirmed.
    let daemon = start();
    let before = questions(&peer, &second.hash()).0;
    assert_eq!(narinfo(&daemon, &second.hash()), 200);
    assert_eq!(questions(&peer, &second.hash()), (before, 2));
    fetch_summary(&daemon, &peer);
    let asked = peer.asked();
    let again = asked
        .iter()
        .rfind(|it| it.path.starts_with("/local/summary"));
    let again = again.expect("asked again");
    assert_eq!(again.path, format!("/local/summary?since={GENERATION}"));
}

#[test]
fn a_peer_whose_summary_is_wrong_is_not_asked_by_it() {
    let claimed: Vec<String> = (1_000..1_200).map(nobody_has).collect();
    let item = Item::signed("item", 10);
    let peer = peer_with_summary(&[&item], claimed.clone());
    let host = Host::new().with(&Peer::setting(&[&peer]));
    let daemon = host.start();
    fetch_summary(&daemon, &peer);
    eventually("the summary at work", || {
        assert_eq!(narinfo(&daemon, &item.hash()), 200);
        (questions(&peer, &item.hash()).1 > questions(&peer, &item.hash()).0).then_some(())
    });
    for hash in &claimed {
        assert_eq!(narinfo(&daemon, hash), 404);
    }
    let asked = claimed.iter().filter(|hash| questions(&peer, hash).1 > 0);
    let asked = asked.count();
    assert!((60..=64).contains(&asked), "{asked} were asked for in vain");
    assert_eq!(narinfo(&daemon, &item.hash()), 200, "it has what it has");
    assert_eq!(summaries_of(&peer), 1, "and is asked for no other summary");
}

#[test]
fn who_says_no_late_and_before_the_lan_does_costs_nix_no_request() {
    let wrong: Vec<String> = (1_000..1_002).map(nobody_has).collect();
    let keys: Vec<u64> = wrong
        .iter()
        .map(|hash| key(StorePathHash::parse(hash.as_bytes()).expect("hash")))
        .collect();
    // Later than usual over HTTP, and later still by datagram; the others at once.
    let is_late = |datagram: &[u8]| datagram.ends_with(b"1000") || datagram.ends_with(b"1001");
    let peer = Peer::new(
        move |datagram, port| {
            if datagram[0] == 0 && is_late(datagram) {
                std::thread::sleep(Duration::from_millis(200));
            }
            reply(Vec::new(), datagram, port)
        },
        move |asked, stream| {
            if asked.path == "/local/summary" {
                let summary = Summary::build(stamp(port_of(asked)), keys.clone());
                return peer::ok(stream, &summary.expect("a summary").encode());
            }
            std::thread::sleep(Duration::from_millis(100));
            peer::not_found(stream)
        },
    );
    let host = Host::new().with(&Peer::setting(&[&peer]));
    let mut daemon = host.start();
    fetch_summary(&daemon, &peer);
    eventually("the summary at work", || {
        assert_eq!(narinfo(&daemon, &wrong[0]), 404);
        (questions(&peer, &wrong[0]).1 > 0).then_some(())
    });
    for hash in &wrong {
        assert_eq!(narinfo(&daemon, hash), 404);
    }
    daemon.assert_well();
}

/// A peer whose summary has `claimed` and that says it has none of it by datagram; over HTTP it
/// never answers once it has told its summary.
fn peer_that_hangs(claimed: Vec<String>) -> Peer {
    let keys: Vec<u64> = claimed
        .iter()
        .map(|hash| key(StorePathHash::parse(hash.as_bytes()).expect("hash")))
        .collect();
    Peer::new(
        |datagram, port| reply(Vec::new(), datagram, port),
        move |asked, stream| {
            if asked.path == "/local/summary" {
                let summary = Summary::build(stamp(port_of(asked)), keys.clone());
                return peer::ok(stream, &summary.expect("a summary").encode());
            }
            peer::hang(stream)
        },
    )
}

/// Waits until `peer` is asked for paths because of its summary.
fn await_summary_at_work(daemon: &Daemon, peer: &Peer, claimed: &[String]) {
    let mut claimed = claimed.iter();
    eventually("the summary at work", || {
        let hash = claimed.next().expect("one more");
        assert_eq!(narinfo(daemon, hash), 404);
        (questions(peer, hash).1 > 0).then_some(())
    });
}

#[test]
fn a_peer_that_hangs_costs_a_few_lookups_some_time_and_not_each() {
    let claimed: Vec<String> = (1_000..1_300).map(nobody_has).collect();
    let peer = peer_that_hangs(claimed.clone());
    let host = Host::new().with(&Peer::setting(&[&peer]));
    let daemon = host.start();
    fetch_summary(&daemon, &peer);
    let (first, others) = claimed.split_at(100);
    await_summary_at_work(&daemon, &peer, first);
    let times: Vec<Duration> = others
        .iter()
        .map(|hash| {
            let (status, took) = timed(|| narinfo(&daemon, hash));
            assert_eq!(status, 404);
            took
        })
        .collect();
    let slow = times
        .iter()
        .filter(|took| **took > Duration::from_millis(90));
    let slow = slow.count();
    assert!(slow <= 10, "{slow} of {} lookups had to wait", times.len());
    let refused = &daemon.status()["fetched"]["refused"];
    assert!(refused["late"].as_u64() > Some(0), "{refused}");
}

#[test]
fn a_holder_behind_others_that_hang_is_found() {
    let item = Item::signed("item", 10);
    let claimed: Vec<String> = (1_000..1_100)
        .map(nobody_has)
        .chain([item.hash()])
        .collect();
    let hanging: Vec<Peer> = (0..5).map(|_| peer_that_hangs(claimed.clone())).collect();
    let honest = peer_with_summary(&[&item], Vec::new());
    let all: Vec<&Peer> = hanging.iter().chain([&honest]).collect();
    let host = Host::new().with(&Peer::setting(&all));
    // Who comes first differs from process to process.
    for _ in 0..3 {
        let daemon = host.start();
        fetch_summary(&daemon, &honest);
        eventually("all summaries", || {
            (daemon.status()["fetched"]["summaries"] == 6).then_some(())
        });
        assert_eq!(narinfo(&daemon, &item.hash()), 200);
    }
}

#[test]
fn junk_instead_of_a_summary_changes_nothing() {
    let item = Item::signed("item", 10);
    let served = [item.clone()];
    let held = vec![item.hash()];
    let peer = Peer::new(
        move |datagram, port| reply(held.clone(), datagram, port),
        move |asked, stream| {
            if asked.path.starts_with("/local/summary") {
                peer::ok(stream, &[1; 5_000])
            } else {
                peer::serve_honestly(&served, asked, stream)
            }
        },
    );
    let host = Host::new().with(&Peer::setting(&[&peer]));
    let mut daemon = host.start();
    for number in 0..=LOOKUPS {
        assert_eq!(narinfo(&daemon, &nobody_has(number)), 404);
    }
    eventually("a refusal", || {
        (daemon.status()["fetched"]["summaries-refused"] == 1).then_some(())
    });
    assert_eq!(narinfo(&daemon, &item.hash()), 200);
    assert!(matches!(
        Content::parse(&[1; 5_000]),
        Err(peerix::protocol::summary::SummaryError::TooMany
            | peerix::protocol::summary::SummaryError::Filter)
    ));
    daemon.assert_well();
}

/// Items whose holder is expected: all but one hash in eleven are.
fn leaves(count: usize) -> Vec<Item> {
    let names = (0..).map(|number| Item::signed(&format!("leaf-{number}"), 10));
    let expected = names.filter(|item| {
        let last = item.hash().pop().expect("a digit");
        !"1aq".contains(last)
    });
    expected.take(count).collect()
}

fn count(daemon: &Daemon, name: &str) -> u64 {
    daemon.status()["fetched"][name].as_u64().expect("a count")
}

#[test]
fn references_are_fetched_before_nix_asks_for_them() {
    let mut leaves = leaves(5);
    let deep = Item::signed("deep", 10);
    let middle = Item::unsigned("middle", 10)
        .refer_to(&[&deep])
        .sign(&support::item::trusted_key());
    leaves.push(middle.clone());
    let ours = leaves.remove(0);
    let references: Vec<&Item> = leaves.iter().chain([&ours]).collect();
    let top = Item::unsigned("top", 10)
        .refer_to(&references)
        .sign(&support::item::trusted_key());
    let all: Vec<&Item> = references.iter().copied().chain([&top, &deep]).collect();
    let peer = Peer::honest(&all);
    let host = Host::new().holding(&[&ours]).with(&Peer::setting(&[&peer]));
    let daemon = host.start();

    assert_eq!(narinfo(&daemon, &top.hash()), 200);
    let is_expected = |item: &&Item| !"1aq".contains(item.hash().pop().expect("a digit"));
    let wanted = leaves.iter().filter(is_expected).count() as u64;
    eventually("the references", || {
        (count(&daemon, "prefetched") == wanted).then_some(())
    });
    assert_eq!(questions(&peer, &ours.hash()), (0, 0), "we have that");
    assert_eq!(questions(&peer, &deep.hash()), (0, 0), "one step is enough");
    for leaf in leaves.iter().filter(is_expected) {
        assert_eq!(questions(&peer, &leaf.hash()), (0, 1), "{}", leaf.path());
        assert_eq!(narinfo(&daemon, &leaf.hash()), 200);
        assert_eq!(questions(&peer, &leaf.hash()), (0, 1), "{}", leaf.path());
    }
    assert_eq!(count(&daemon, "prefetch-used"), wanted);
    // A NAR of what was prefetched comes from its holder.
    let nar = daemon.get(&format!("/v3/nar/{}", leaves[0].nar_name()));
    assert!(nar.status == 200 && nar.body == leaves[0].nar);
}

#[test]
fn a_nar_request_starts_no_prefetch() {
    let mut leaves = leaves(4);
    let last = leaves.remove(0);
    let above = |name: &str, references: &[&Item]| {
        let item = Item::unsigned(name, 10).refer_to(references);
        item.sign(&support::item::trusted_key())
    };
    let top = above("top", &leaves.iter().collect::<Vec<_>>());
    let later = above("later", &[&last]);
    let all: Vec<&Item> = leaves.iter().chain([&top, &last, &later]).collect();
    let peer = Peer::honest(&all);
    let host = Host::new().with(&Peer::setting(&[&peer]));
    let daemon = host.start();
    assert_eq!(narinfo(&daemon, &nobody_has(0)), 404, "Nix is there");
    let nar = daemon.get(&format!("/v3/nar/{}", top.nar_name()));
    assert!(nar.status == 200 && nar.body == top.nar);
    // What a narinfo starts comes after what the NAR would have started.
    assert_eq!(narinfo(&daemon, &later.hash()), 200);
    eventually("a reference", || {
        (count(&daemon, "prefetched") > 0).then_some(())
    });
    assert_eq!(count(&daemon, "prefetched"), 1);
    for leaf in &leaves {
        assert_eq!(questions(&peer, &leaf.hash()), (0, 0));
    }
}
