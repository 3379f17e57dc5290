//! Promise 3: a dying peer costs milliseconds. A NAR goes on from another holder at the exact byte.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    io::Write,
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use nix::sys::signal::Signal;

use support::{
    eventually,
    host::Host,
    http::{Connection, request},
    item::Item,
    peer::{self, Asked, Peer, Then},
    timed,
};

/// For a peer that is to be the second: late enough for the first to be taken.
const LATER: Duration = Duration::from_millis(60);

/// How much the first holder sends before it fails.
const SENT: usize = 1_234_567;

/// What the machine that runs the tests may take for itself, beside a full test run.
const SLACK: Duration = Duration::from_millis(700);

/// Checked before its first byte is passed on, as all up to 8 MiB.
fn big() -> Item {
    Item::signed("big", 4 << 20)
}

/// Passed on as it comes.
fn large() -> Item {
    Item::signed("large", 12 << 20)
}

/// A peer with the right narinfo that gives NARs by `serve`, heard `after` a while.
fn holder(
    item: &Item,
    after: Duration,
    serve: impl Fn(&Asked, &[u8], &mut TcpStream) -> std::io::Result<Then> + Send + Sync + 'static,
) -> Peer {
    let item = item.clone();
    Peer::new(
        move |datagram, port| {
            std::thread::sleep(after);
            peer::has_all(datagram, port)
        },
        move |asked, stream| {
            if asked.path.ends_with(".narinfo") {
                peer::ok(stream, item.peer_narinfo().as_bytes())
            } else {
                serve(asked, &item.nar, stream)
            }
        },
    )
}

fn honest(item: &Item, after: Duration) -> Peer {
    holder(item, after, whole)
}

fn whole(asked: &Asked, nar: &[u8], stream: &mut TcpStream) -> std::io::Result<Then> {
    let (head, bytes) = peer::part_of(asked, nar);
    stream.write_all(head.as_bytes())?;
    stream.write_all(bytes)?;
    Ok(Then::KeepOpen)
}

/// Sends the head and `bytes` of what it was asked for.
fn begin(asked: &Asked, nar: &[u8], bytes: usize, stream: &mut TcpStream) -> std::io::Result<()> {
    let (head, part) = peer::part_of(asked, nar);
    stream.write_all(head.as_bytes())?;
    stream.write_all(&part[..bytes.min(part.len())])
}

fn nar_requests(peer: &Peer) -> Vec<Asked> {
    let mut asked = peer.asked();
    asked.retain(|asked| asked.path.contains("/nar/"));
    asked
}

fn path(item: &Item) -> String {
    format!("/v3/nar/{}", item.nar_name())
}

#[test]
fn a_nar_goes_on_at_the_exact_byte_when_its_holder_dies() {
    let item = big();
    let first = holder(&item, Duration::ZERO, |asked, nar, stream| {
        begin(asked, nar, SENT, stream)?;
        Ok(Then::Close)
    });
    let second = honest(&item, LATER);
    let host = Host::new().with(&Peer::setting(&[&first, &second]));
    let daemon = host.start();
    let (answer, took) = timed(|| daemon.get(&path(&item)));
    assert!(
        answer.complete && answer.body == item.nar,
        "{} bytes",
        answer.body.len()
    );
    assert_eq!(
        answer.header("x-peerix-peer"),
        Some(first.http().to_string().as_str())
    );
    let asked = nar_requests(&second);
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(
        asked[0].range(),
        Some((SENT as u64, item.nar.len() as u64 - 1))
    );
    assert!(took < SLACK, "{took:?}");
    assert_eq!(daemon.status()["fetched"]["failovers"], 1);
}

#[test]
fn a_reset_costs_milliseconds_too() {
    let item = big();
    let first = holder(&item, Duration::ZERO, |asked, nar, stream| {
        begin(asked, nar, SENT, stream)?;
        Ok(Then::Reset)
    });
    let second = honest(&item, LATER);
    let host = Host::new().with(&Peer::setting(&[&first, &second]));
    let daemon = host.start();
    let (answer, took) = timed(|| daemon.get(&path(&item)));
    assert!(answer.complete && answer.body == item.nar);
    assert!(took < SLACK, "{took:?}");
}

#[test]
fn a_holder_that_falls_silent_costs_a_second() {
    let item = big();
    for sent in [0, SENT] {
        let first = holder(&item, Duration::ZERO, move |asked, nar, stream| {
            begin(asked, nar, sent, stream)?;
            peer::hang(stream)
        });
        let second = honest(&item, LATER);
        let host = Host::new()
            .with("discovery.timeout = \"200ms\"")
            .with(&Peer::setting(&[&first, &second]));
        let daemon = host.start();
        let (answer, took) = timed(|| daemon.get(&path(&item)));
        assert!(
            answer.complete && answer.body == item.nar,
            "after {sent} bytes: {} {} {took:?}",
            answer.status,
            answer.body.len()
        );
        assert!(
            took < Duration::from_secs(1) + SLACK,
            "after {sent} bytes: {took:?}"
        );
        assert_eq!(
            nar_requests(&second)[0]
                .range()
                .map_or(0, |(first, _)| first),
            sent as u64
        );
    }
}

#[test]
fn each_of_several_holders_gives_its_part() {
    let item = big();
    let peers: Vec<Peer> = (0..5)
        .map(|at| {
            holder(&item, LATER / 4 * at, |asked, nar, stream| {
                begin(asked, nar, 100_000, stream)?;
                Ok(Then::Close)
            })
        })
        .collect();
    let last = honest(&item, LATER * 2);
    let mut all: Vec<&Peer> = peers.iter().collect();
    all.push(&last);
    let host = Host::new().with(&Peer::setting(&all));
    let daemon = host.start();
    let answer = daemon.get(&path(&item));
    assert!(
        answer.complete && answer.body == item.nar,
        "{} bytes",
        answer.body.len()
    );
}

#[test]
fn a_small_nar_survives_the_death_of_its_holder() {
    let item = Item::signed("small", 100_000);
    let first = holder(&item, Duration::ZERO, |asked, nar, stream| {
        begin(asked, nar, 50_000, stream)?;
        Ok(Then::Close)
    });
    let second = honest(&item, LATER);
    let host = Host::new().with(&Peer::setting(&[&first, &second]));
    let daemon = host.start();
    let answer = daemon.get(&path(&item));
    assert!(
        answer.complete && answer.body == item.nar,
        "{}",
        answer.status
    );
}

#[test]
fn a_quicker_holder_is_looked_for_beside_one_that_is_slow() {
    let item = big();
    let slow = holder(&item, Duration::ZERO, |asked, nar, stream| {
        let (head, part) = peer::part_of(asked, nar);
        stream.write_all(head.as_bytes())?;
        for byte in part.chunks(1) {
            stream.write_all(byte)?;
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(Then::Close)
    });
    // It says nothing while the slow one is the only one that is known.
    let awake = Arc::new(AtomicBool::new(false));
    let quick = {
        let (item, awake) = (item.clone(), Arc::clone(&awake));
        Peer::new(
            move |datagram, port| {
                if awake.load(SeqCst) {
                    peer::has_all(datagram, port)
                } else {
                    Vec::new()
                }
            },
            move |asked, stream| peer::serve_honestly(std::slice::from_ref(&item), asked, stream),
        )
    };
    let host = Host::new().with(&Peer::setting(&[&slow, &quick]));
    let daemon = host.start();
    let narinfo = daemon.get(&format!("/{}.narinfo", item.hash()));
    assert_eq!(narinfo.status, 200);
    awake.store(true, SeqCst);
    let (answer, took) = timed(|| daemon.get(&path(&item)));
    assert!(answer.complete && answer.body == item.nar);
    assert!(took < Duration::from_secs(3) + SLACK, "{took:?}");
    assert_eq!(daemon.status()["fetched"]["refused"]["slow"], 1);
}

#[test]
fn a_holder_without_ranges_goes_on_as_well() {
    let item = big();
    let first = holder(&item, Duration::ZERO, |asked, nar, stream| {
        begin(asked, nar, SENT, stream)?;
        Ok(Then::Close)
    });
    // As the old peerix does: everything, in chunks, whatever was asked for.
    let second = holder(&item, LATER, |_, nar, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for chunk in nar.chunks(70_000) {
            write!(stream, "{:x}\r\n", chunk.len())?;
            stream.write_all(chunk)?;
            stream.write_all(b"\r\n")?;
        }
        stream.write_all(b"0\r\n\r\n")?;
        Ok(Then::KeepOpen)
    });
    let host = Host::new().with(&Peer::setting(&[&first, &second]));
    let daemon = host.start();
    let answer = daemon.get(&path(&item));
    assert!(
        answer.complete && answer.body == item.nar,
        "{} bytes",
        answer.body.len()
    );
}

#[test]
fn a_holder_that_gives_another_range_is_passed_over() {
    let item = big();
    let first = holder(&item, Duration::ZERO, |asked, nar, stream| {
        begin(asked, nar, SENT, stream)?;
        Ok(Then::Close)
    });
    let second = holder(&item, LATER, |_, nar, stream| {
        let size = nar.len();
        let length = size - SENT - 1;
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {}-{}/{size}\r\nContent-Length: {length}\r\n\r\n",
            SENT + 1,
            size - 1
        )?;
        stream.write_all(&nar[SENT + 1..])?;
        Ok(Then::Close)
    });
    let third = honest(&item, LATER * 2);
    let host = Host::new().with(&Peer::setting(&[&first, &second, &third]));
    let daemon = host.start();
    let answer = daemon.get(&path(&item));
    assert!(
        answer.complete && answer.body == item.nar,
        "{} bytes",
        answer.body.len()
    );
}

#[test]
fn a_holder_with_another_nar_for_the_path_is_not_mixed_in() {
    let item = big();
    let mut other = Item::unsigned("other", 4 << 20);
    other.info.path = item.info.path.clone();
    let other = other.sign(&support::item::trusted_key());
    let first = holder(&item, Duration::ZERO, |asked, nar, stream| {
        // Only once: it does not come back.
        if asked.range().is_none() {
            begin(asked, nar, SENT, stream)?;
        }
        Ok(Then::Close)
    });
    let second = honest(&other, LATER);
    let host = Host::new().with(&Peer::setting(&[&first, &second]));
    let daemon = host.start();
    let answer = daemon.get(&path(&item));
    assert_eq!(answer.status, 404, "nothing was passed on yet");
    assert!(nar_requests(&second).is_empty());
}

#[test]
fn our_own_store_goes_on_when_nobody_else_can() {
    let item = big();
    let first = holder(&item, Duration::ZERO, |asked, nar, stream| {
        begin(asked, nar, SENT, stream)?;
        Ok(Then::Close)
    });
    let host = Host::new()
        .holding(&[&item])
        .with(&Peer::setting(&[&first]));
    let daemon = host.start();
    let answer = daemon.get(&path(&item));
    assert_eq!(
        answer.header("x-peerix-peer"),
        Some(first.http().to_string().as_str())
    );
    assert!(
        answer.complete && answer.body == item.nar,
        "{} bytes",
        answer.body.len()
    );
}

#[test]
fn a_range_fails_over_like_the_whole() {
    let item = big();
    let first = holder(&item, Duration::ZERO, |asked, nar, stream| {
        begin(asked, nar, 100_000, stream)?;
        Ok(Then::Close)
    });
    let second = honest(&item, LATER);
    let host = Host::new().with(&Peer::setting(&[&first, &second]));
    let daemon = host.start();
    let answer = request(
        daemon.address(),
        "GET",
        &path(&item),
        &["Range: bytes=500000-2999999"],
    );
    assert_eq!((answer.status, answer.complete), (206, true));
    assert!(answer.body == item.nar[500_000..3_000_000]);
    assert_eq!(nar_requests(&second)[0].range(), Some((600_000, 2_999_999)));
}

#[test]
fn with_no_holder_left_the_nar_is_cut_and_resumes_where_it_was() {
    static BACK: AtomicBool = AtomicBool::new(false);
    let item = large();
    let only = holder(&item, Duration::ZERO, |asked, nar, stream| {
        if BACK.load(SeqCst) {
            return whole(asked, nar, stream);
        }
        if asked.range().is_some() {
            return Ok(Then::Close);
        }
        begin(asked, nar, SENT, stream)?;
        Ok(Then::Close)
    });
    let host = Host::new().with(&Peer::setting(&[&only]));
    let daemon = host.start();
    let cut = daemon.get(&path(&item));
    assert_eq!((cut.status, cut.complete), (200, false));
    assert!(
        item.nar.starts_with(&cut.body) && !cut.body.is_empty(),
        "{} bytes",
        cut.body.len()
    );
    // As Nix goes on: from the byte it has.
    BACK.store(true, SeqCst);
    let range = format!("Range: bytes={}-", cut.body.len());
    let rest = request(daemon.address(), "GET", &path(&item), &[&range]);
    assert_eq!((rest.status, rest.complete), (206, true));
    assert!([cut.body, rest.body].concat() == item.nar);
}

/// Refuses every NAR.
fn refuse(status: &str, stream: &mut TcpStream) -> std::io::Result<Then> {
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n")?;
    Ok(Then::KeepOpen)
}

#[test]
fn when_the_only_known_holder_fails_another_one_may_be_heard_late() {
    for status in ["404 Not Found", "503 Service Unavailable"] {
        let item = big();
        // The other one's machine is busy: for a while after the NAR was asked for nothing is heard of it.
        let is_heard = Arc::new(AtomicBool::new(false));
        let busy = Arc::clone(&is_heard);
        let known = holder(&item, Duration::ZERO, move |_, _, stream| {
            let busy = Arc::clone(&busy);
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                busy.store(true, SeqCst);
            });
            refuse(status, stream)
        });
        let narinfo = item.peer_narinfo();
        let nar = item.nar.clone();
        let late = Peer::new(
            move |datagram, port| match is_heard.load(SeqCst) {
                true => peer::has_all(datagram, port),
                false => Vec::new(),
            },
            move |asked, stream| match asked.path.ends_with(".narinfo") {
                true => peer::ok(stream, narinfo.as_bytes()),
                false => whole(asked, &nar, stream),
            },
        );
        let host = Host::new().with(&Peer::setting(&[&known, &late]));
        let daemon = host.start();
        assert_eq!(daemon.get(&format!("/{}.narinfo", item.hash())).status, 200);
        let answer = daemon.get(&path(&item));
        assert_eq!((answer.status, answer.complete), (200, true), "{status}");
        assert!(answer.body == item.nar, "{status}: wrong bytes");
    }
}

#[test]
fn a_nar_that_nobody_gives_is_given_up_within_half_a_second_and_its_rest_at_once() {
    let item = big();
    let rest: &[&str] = &["Range: bytes=1000-"];
    for (headers, within) in [(&[][..], 500), (rest, 300)] {
        let only = holder(&item, Duration::ZERO, |_, _, stream| {
            refuse("404 Not Found", stream)
        });
        let host = Host::new().with(&Peer::setting(&[&only]));
        let daemon = host.start();
        let narinfo = format!("/{}.narinfo", item.hash());
        assert_eq!(daemon.get(&narinfo).status, 200);
        let asked = || request(daemon.address(), "GET", &path(&item), headers);
        let (answer, took) = timed(asked);
        assert_eq!(answer.status, 404, "{headers:?}");
        let within = Duration::from_millis(within) + SLACK;
        assert!(took < within, "{headers:?}: {took:?}");
    }
}

#[test]
fn a_narinfo_does_not_wait_for_a_peer_that_hangs() {
    let item = Item::signed("wanted", 500);
    let hanging = Peer::holding_all(|_, stream| peer::hang(stream));
    let second = honest(&item, LATER);
    let host = Host::new().with(&Peer::setting(&[&hanging, &second]));
    let daemon = host.start();
    for attempt in ["first", "second"] {
        let (answer, took) = timed(|| daemon.get(&format!("/{}.narinfo", item.hash())));
        assert_eq!(answer.status, 200);
        assert!(took < Duration::from_millis(450), "{attempt}: {took:?}");
    }
}

#[test]
fn real_daemons_take_over_from_one_that_is_killed() {
    let item = Item::signed("huge", 96 << 20);
    let holders = [Host::new().holding(&[&item]), Host::new().holding(&[&item])];
    let mut running: Vec<_> = holders.iter().map(Host::start).collect();
    let peers: Vec<_> = running
        .iter()
        .map(|daemon| format!("{:?}", daemon.address().to_string()))
        .collect();
    let asker = Host::new().with(&format!("discovery.peers = [{}]", peers.join(", ")));
    let daemon = asker.start();
    let mut connection = Connection::open(daemon.address()).expect("connection");
    connection
        .send(format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", path(&item)).as_bytes())
        .expect("send");
    let head = connection.head().expect("head");
    assert_eq!(head.status, 200);
    let mut body = connection.body(8 << 20).expect("first bytes");
    let from = head.header("x-peerix-peer").expect("holder").to_owned();
    let at = running
        .iter()
        .position(|it| it.address().to_string() == from)
        .expect("one of them");
    running[at].signal(Signal::SIGKILL);
    running[at].wait();
    let (rest, took) = timed(|| {
        connection
            .body(item.nar.len() - body.len())
            .expect("the rest")
    });
    body.extend(rest);
    assert!(body == item.nar);
    assert!(took < Duration::from_secs(10), "{took:?}");
    let status = eventually("the account", || {
        let status = daemon.status();
        (status["fetched"]["nars"] == 1).then_some(status)
    });
    assert_eq!(status["fetched"]["failovers"], 1, "{status:#}");
}

#[test]
fn a_slow_client_is_no_reason_to_give_up_on_a_holder() {
    // The stall clock runs only while nothing is there to be sent.
    let item = Item::signed("large", 32 << 20);
    let holder = honest(&item, Duration::ZERO);
    let host = Host::new().with(&Peer::setting(&[&holder]));
    let daemon = host.start();
    let mut connection = Connection::open(daemon.address()).expect("connection");
    connection
        .send(format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", path(&item)).as_bytes())
        .expect("send");
    connection.head().expect("head");
    let first = connection.body(100_000).expect("first bytes");
    // Longer than any holder may be silent while another might be found.
    std::thread::sleep(Duration::from_millis(2_500));
    let rest = connection
        .body(item.nar.len() - first.len())
        .expect("the rest");
    assert!([first, rest].concat() == item.nar);
    assert_eq!(nar_requests(&holder).len(), 1);
}
