//! Promises 2 and 3 for large NARs: several holders give their pieces at once, each is compared
//! with what another one says of it, and who lies is caught before Nix has the bytes.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    io::{self, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use peerix::protocol::PathState;
use sha2::{Digest, Sha256};

use support::{
    daemon::Daemon,
    eventually,
    host::Host,
    http::{Answer, Connection, get_within, request},
    item::{Item, Tree, noise, trusted_key},
    peer::{self, Asked, Peer, Then},
    timed,
};

/// What holders give the digest of.
const PIECE: usize = 4 << 20;

/// A hash of a debug build takes its time; a test that fails says how long it took.
const LONGEST: Duration = Duration::from_secs(60);

/// Six pieces, the last one short.
fn large() -> Item {
    Item::signed("large", 21 << 20)
}

fn digests(nar: &[u8]) -> Vec<u8> {
    nar.chunks(PIECE)
        .flat_map(|piece| Sha256::digest(piece).to_vec())
        .collect()
}

type Before = dyn Fn(&Asked, &mut TcpStream) -> io::Result<()> + Send + Sync;

/// What a holder does otherwise than an honest one; the bytes of its NAR, the digests, and what
/// happens before a piece.
struct Holder {
    nar: Vec<u8>,
    digests: Option<Vec<u8>>,
    before: Box<Before>,
}

impl Holder {
    fn honest(item: &Item) -> Self {
        Self {
            nar: item.nar.clone(),
            digests: Some(digests(&item.nar)),
            before: Box::new(|_, _| Ok(())),
        }
    }

    /// With a wrong byte at `at`, and digests that go with it.
    fn lying(item: &Item, at: usize) -> Self {
        let mut nar = item.nar.clone();
        nar[at] ^= 0x20;
        Self {
            digests: Some(digests(&nar)),
            nar,
            before: Box::new(|_, _| Ok(())),
        }
    }

    /// With wrong bytes in every piece, so that it is told whichever it gives.
    fn lying_throughout(item: &Item) -> Self {
        let mut liar = Self::lying(item, 9);
        for at in (0..item.nar.len()).step_by(PIECE / 2) {
            liar.nar[at] ^= 0x55;
        }
        liar
    }

    fn without_digests(mut self) -> Self {
        self.digests = None;
        self
    }

    fn before(
        mut self,
        before: impl Fn(&Asked, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.before = Box::new(before);
        self
    }

    fn peer(self, item: &Item) -> Peer {
        self.peer_while(item, || true)
    }

    /// A peer that says nothing to questions unless `is_heard`.
    fn peer_while(self, item: &Item, is_heard: impl Fn() -> bool + Send + Sync + 'static) -> Peer {
        let narinfo = item.peer_narinfo();
        let answer = move |datagram: &[u8], port| {
            let answers = peer::has(datagram, port, |_| true).into_iter();
            answers.filter(|_| is_heard()).collect()
        };
        Peer::new(answer, move |asked, stream| {
            if asked.path.ends_with(".narinfo") {
                return peer::ok(stream, narinfo.as_bytes());
            }
            if asked.path.ends_with(".pieces") {
                return match &self.digests {
                    Some(digests) => peer::ok(stream, digests),
                    None => peer::not_found(stream),
                };
            }
            (self.before)(asked, stream)?;
            let (head, bytes) = peer::part_of(asked, &self.nar);
            stream.write_all(head.as_bytes())?;
            stream.write_all(bytes)?;
            Ok(Then::KeepOpen)
        })
    }
}

/// It waits for digests as long as a busy machine may take for them.
fn asker(peers: &[&Peer]) -> (Host, Daemon) {
    let host = Host::new()
        .with("limits.stall = \"5s\"\nlimits.stall-alone = \"20s\"")
        .with(&Peer::setting(peers));
    let daemon = host.start();
    (host, daemon)
}

/// With real daemons as its peers.
fn asker_of(holders: &[Daemon]) -> (Host, Daemon) {
    let peers: Vec<String> = holders
        .iter()
        .map(|holder| format!("{:?}", holder.address().to_string()))
        .collect();
    let host = Host::new().with(&format!("discovery.peers = [{}]", peers.join(", ")));
    let daemon = host.start();
    (host, daemon)
}

fn path(item: &Item) -> String {
    format!("/v3/nar/{}", item.nar_name())
}

fn fetch(daemon: &Daemon, item: &Item) -> Answer {
    get_within(daemon.address(), &path(item), LONGEST)
}

fn assert_right(answer: &Answer, item: &Item) {
    assert_eq!(
        (answer.status, answer.complete, answer.body.len()),
        (200, true, item.nar.len())
    );
    assert!(answer.body == item.nar, "wrong bytes came through");
}

fn banned(daemon: &Daemon) -> Vec<String> {
    let status = daemon.status();
    let banned = status["banned"].as_array().expect("a list").iter();
    banned
        .map(|ban| ban["peer"].as_str().expect("an address").to_owned())
        .collect()
}

fn ranges(peer: &Peer) -> Vec<(u64, u64)> {
    let asked = peer.asked();
    asked.iter().filter_map(Asked::range).collect()
}

#[test]
fn real_holders_share_the_work_and_vouch_for_each_other() {
    let item = Item::signed("huge", 64 << 20);
    let hosts = [0; 3].map(|_| Host::new().holding(&[&item]));
    let holders = hosts.each_ref().map(Host::start);
    let (_host, daemon) = asker_of(&holders);
    assert_right(&fetch(&daemon, &item), &item);
    let served = holders.each_ref().map(|holder| {
        let status = holder.status();
        status["served"]["nar-bytes"].as_u64().expect("bytes")
    });
    // One that answered the lookup late is left out.
    let least = (item.nar.len() / 12) as u64;
    let took_part = served.iter().filter(|bytes| **bytes > least).count();
    assert!(took_part >= 2, "{served:?}");
    let vouched = holders.iter().filter(|holder| {
        let metrics = holder.get("/metrics").text();
        metrics.contains("peerix_answers_total{route=\"pieces\",status=\"200\"} 1")
    });
    assert_eq!(vouched.count(), 2);
    assert_eq!(banned(&daemon), [] as [String; 0]);
}

#[test]
fn a_machine_that_answers_at_two_addresses_is_one_holder() {
    let item = large();
    let addresses = [0; 2].map(|_| {
        let served = [item.clone()];
        Peer::new(
            |datagram, port| match peer::asked_hashes(datagram).len() {
                0 => peer::has_all(datagram, port),
                count => {
                    let id = datagram[1..5].try_into().expect("an id");
                    let id = u32::from_be_bytes(id);
                    vec![peer::answer(id, 7, port, &vec![PathState::Present; count])]
                }
            },
            move |asked, stream| peer::serve_honestly(&served, asked, stream),
        )
    });
    let (_host, daemon) = asker(&addresses.each_ref());
    assert_right(&fetch(&daemon, &item), &item);
    let asked = addresses.each_ref().map(Peer::asked_for_nars);
    assert_eq!(asked.iter().sum::<usize>(), 1, "{asked:?}: in one piece");
}

#[test]
fn a_path_that_is_deleted_under_a_stream_comes_from_the_other_holder() {
    let item = Item::signed("huge", 64 << 20);
    let hosts = [0; 2].map(|_| Host::new().holding(&[&item]));
    let holders = hosts.each_ref().map(Host::start);
    let (_host, daemon) = asker_of(&holders);
    let mut connection = Connection::open(daemon.address()).expect("connection");
    connection
        .send(format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", path(&item)).as_bytes())
        .expect("send");
    assert_eq!(connection.head().expect("head").status, 200);
    let mut body = connection.body(PIECE).expect("first bytes");
    hosts[0].forget(&item);
    let tree = hosts[0].store_dir().join(item.info.path.basename());
    assert!(!tree.exists());
    body.extend(connection.body(item.nar.len() - PIECE).expect("the rest"));
    assert!(body == item.nar);
    assert_eq!(banned(&daemon), [] as [String; 0]);
}

#[test]
fn our_own_damaged_copy_is_no_holder() {
    let content = |seed| Tree::File(noise(100_000, seed));
    let item = Item::new("damaged", content(1)).sign(&trusted_key());
    let host = Host::new().holding(&[&item]);
    let file = host.store_dir().join(item.info.path.basename());
    std::fs::remove_file(&file).expect("the path");
    content(2).write(&file);
    let daemon = host.start();
    assert_eq!(fetch(&daemon, &item).status, 404);
    daemon.log.line(&["warn", "our own copy", "damaged"]);
    let text = daemon.log.text();
    assert_eq!(text.matches("our own copy").count(), 1, "{text}");
}

#[test]
fn a_lie_is_caught_before_it_is_sent_where_two_holders_are_honest() {
    let item = large();
    for at in [0, PIECE - 1, 2 * PIECE, 3 * PIECE + 5, item.nar.len() - 1] {
        let liar = Holder::lying(&item, at).peer(&item);
        let honest = [0; 2].map(|_| Holder::honest(&item).peer(&item));
        let (_host, daemon) = asker(&[&liar, &honest[0], &honest[1]]);
        assert_right(&fetch(&daemon, &item), &item);
        // It may not have been asked for that piece, nor for its digests.
        let banned = banned(&daemon);
        assert!(
            banned.is_empty() || banned == [liar.http().to_string()],
            "{banned:?}"
        );
        if !banned.is_empty() {
            daemon
                .log
                .line(&["warn", &liar.http().to_string(), "wrong bytes"]);
        }
    }
}

#[test]
fn one_liar_beside_one_honest_holder_is_caught_and_named() {
    let item = large();
    for at in [0, 2 * PIECE + 77, item.nar.len() - 1] {
        // On a busy machine the second one may be heard too late to be compared with.
        let met = (0..5).any(|_| {
            let liar = Holder::lying(&item, at).peer(&item);
            let honest = Holder::honest(&item).peer(&item);
            let (_host, daemon) = asker(&[&liar, &honest]);
            let answer = fetch(&daemon, &item);
            if ranges(&liar).is_empty() || ranges(&honest).is_empty() {
                return false;
            }
            assert_right(&answer, &item);
            assert_eq!(banned(&daemon), [liar.http().to_string()], "at {at}");
            daemon
                .log
                .line(&["warn", &liar.http().to_string(), "wrong bytes"]);
            true
        });
        assert!(met, "liar and honest holder never met");
    }
}

#[test]
fn wrong_digests_for_right_bytes_spoil_nothing() {
    let item = large();
    let mut liar = Holder::honest(&item);
    liar.digests = Some(vec![7; digests(&item.nar).len()]);
    let liar = liar.peer(&item);
    let honest = [0; 2].map(|_| Holder::honest(&item).peer(&item));
    let (_host, daemon) = asker(&[&liar, &honest[0], &honest[1]]);
    assert_right(&fetch(&daemon, &item), &item);
    let banned = banned(&daemon);
    assert!(
        banned.is_empty() || banned == [liar.http().to_string()],
        "{banned:?}"
    );
}

#[test]
fn without_digests_a_lie_is_cut_and_who_told_it_is_found_out() {
    let item = large();
    let liar = Holder::lying_throughout(&item).without_digests();
    let liar = liar.peer(&item);
    let honest = Holder::honest(&item).without_digests().peer(&item);
    let (_host, daemon) = asker(&[&liar, &honest]);
    let answer = fetch(&daemon, &item);
    assert!(!answer.complete, "wrong bytes passed for a NAR");
    // As Nix goes on by itself, which cannot help.
    let rest = request(
        daemon.address(),
        "GET",
        &path(&item),
        &["Range: bytes=9000000-"],
    );
    assert_eq!(rest.status, 404);
    // The next attempt need not wait until the liar is found.
    assert_right(&fetch(&daemon, &item), &item);
    eventually("the liar is banned", || {
        (banned(&daemon) == [liar.http().to_string()]).then_some(())
    });
}

#[test]
fn after_a_lie_a_second_holder_is_looked_for_until_it_answers() {
    let item = large();
    let liar = Holder::lying_throughout(&item).without_digests();
    // Who is asked for all of it is under suspicion: it is at large when Nix asks again.
    let liar = liar.before(|asked, _| {
        if asked.range().is_none() {
            std::thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    });
    let liar = liar.peer(&item);
    let is_heard = Arc::new(AtomicBool::new(true));
    let honest = Holder::honest(&item).without_digests();
    let honest = honest.peer_while(&item, {
        let is_heard = Arc::clone(&is_heard);
        move || is_heard.load(SeqCst)
    });
    let (_host, daemon) = asker(&[&liar, &honest]);
    assert!(!fetch(&daemon, &item).complete, "wrong bytes for a NAR");
    is_heard.store(false, SeqCst);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            is_heard.store(true, SeqCst);
        });
        assert_right(&fetch(&daemon, &item), &item);
    });
}

#[test]
fn bytes_of_a_convict_that_come_late_count_for_nothing() {
    let item = large();
    let is_second = Arc::new(AtomicBool::new(false));
    let if_second = |milliseconds| {
        let is_second = Arc::clone(&is_second);
        move || {
            if is_second.load(SeqCst) {
                std::thread::sleep(Duration::from_millis(milliseconds));
            }
        }
    };
    let liar = Holder::lying_throughout(&item).without_digests();
    // Its pieces come when it has been heard out already, and the other one is being heard.
    let (late, first) = (if_second(1_500), if_second(30));
    let liar = liar.before(move |asked, _| {
        if asked.range().is_some() {
            late();
        }
        Ok(())
    });
    let liar = liar.peer(&item);
    let honest = Holder::honest(&item).without_digests();
    let honest = honest.before(|asked, _| {
        if asked.range().is_none() {
            std::thread::sleep(Duration::from_millis(2_500));
        }
        Ok(())
    });
    let honest = honest.peer_while(&item, move || {
        first();
        true
    });
    let (_host, daemon) = asker(&[&liar, &honest]);
    assert!(!fetch(&daemon, &item).complete, "wrong bytes for a NAR");
    is_second.store(true, SeqCst);
    assert_right(&fetch(&daemon, &item), &item);
}

#[test]
fn where_all_are_wrong_nix_gets_no_whole_nar() {
    let item = large();
    let liars = [3, PIECE + 3].map(|at| Holder::lying(&item, at).peer(&item));
    let (_host, daemon) = asker(&[&liars[0], &liars[1]]);
    let answer = fetch(&daemon, &item);
    assert!(
        answer.status == 404 || !answer.complete,
        "{}",
        answer.status
    );
}

#[test]
fn work_moves_away_from_a_slow_holder() {
    let item = large();
    let slow = Holder::honest(&item)
        .before(|_, _| {
            std::thread::sleep(Duration::from_millis(900));
            Ok(())
        })
        .peer(&item);
    // The others are heard once the slow one is a holder: an answer of its that came late, on a
    // busy machine, would leave it out.
    let slow = Arc::new(slow);
    let quick = [0; 2].map(|_| {
        let slow = Arc::clone(&slow);
        Holder::honest(&item).peer_while(&item, move || !slow.asked().is_empty())
    });
    let (_host, daemon) = asker(&[&slow, &quick[0], &quick[1]]);
    let (answer, took) = timed(|| fetch(&daemon, &item));
    assert_right(&answer, &item);
    // Six pieces in turn from three would wait for two of the slow one.
    assert!(took < Duration::from_millis(1_700), "{took:?}");
    assert!(!ranges(&slow).is_empty(), "it was not asked");
}

#[test]
fn a_holder_that_is_silent_in_mid_piece_costs_a_second_at_most() {
    let item = large();
    let pieces = Arc::new(AtomicUsize::new(0));
    let hanging = Holder::honest(&item)
        .before(move |_, stream| {
            if pieces.fetch_add(1, SeqCst) == 1 {
                peer::hang(stream)?;
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Ok(())
        })
        .peer(&item);
    let honest = Holder::honest(&item).peer(&item);
    let host = Host::new().with(&Peer::setting(&[&hanging, &honest]));
    let daemon = host.start();
    let (undisturbed, usual) = {
        let honest = [0; 2].map(|_| Holder::honest(&item).peer(&item));
        let (_host, daemon) = asker(&[&honest[0], &honest[1]]);
        timed(|| fetch(&daemon, &item))
    };
    assert_right(&undisturbed, &item);
    let (answer, took) = timed(|| fetch(&daemon, &item));
    assert_right(&answer, &item);
    let added = took.saturating_sub(usual);
    assert!(added < Duration::from_millis(1_500), "{added:?} more");
}

#[test]
fn a_holder_without_ranges_is_left_to_the_last() {
    let item = large();
    let narinfo = item.peer_narinfo();
    let nar = item.nar.clone();
    let old = Peer::holding_all(move |asked, stream| {
        if asked.path.ends_with(".narinfo") {
            return peer::ok(stream, narinfo.as_bytes());
        }
        if asked.path.ends_with(".pieces") {
            return peer::not_found(stream);
        }
        peer::ok(stream, &nar)
    });
    let failing = Arc::new(AtomicUsize::new(0));
    let honest = Holder::honest(&item)
        .before(move |_, _| {
            if failing.fetch_add(1, SeqCst) >= 2 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            Ok(())
        })
        .peer(&item);
    let (_host, daemon) = asker(&[&old, &honest]);
    assert_right(&fetch(&daemon, &item), &item);
    assert!(ranges(&honest).len() > 2, "{:?}", ranges(&honest));
}

#[test]
fn the_rest_of_a_nar_comes_from_several_holders_too() {
    let item = large();
    let honest = [0; 2].map(|_| Holder::honest(&item).peer(&item));
    let liar = Holder::lying(&item, 3 * PIECE + 1).peer(&item);
    let (_host, daemon) = asker(&[&honest[0], &honest[1], &liar]);
    for start in [1, PIECE, PIECE + 1, 5 * PIECE + 100, item.nar.len() - 1] {
        let range = format!("Range: bytes={start}-");
        let rest = request(daemon.address(), "GET", &path(&item), &[&range]);
        assert_eq!((rest.status, rest.complete), (206, true), "from {start}");
        assert!(rest.body == item.nar[start..], "from {start}");
    }
}
