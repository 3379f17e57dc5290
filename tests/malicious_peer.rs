//! Promise 2, behaviour by behaviour: what a hostile machine of the LAN does, and that beside an
//! honest holder Nix gets what it asked for all the same, alone with the hostile one a clean
//! miss; that the reason is counted; and that memory stays bounded.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    io::{self, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Arc, LazyLock, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use support::{
    daemon::Daemon,
    eventually,
    host::Host,
    http::{Answer, Connection, get, get_within, raw, request},
    item::{Item, foreign_key},
    own_lan_address,
    peer::{self, Asked, Peer, Then},
    skip, timed,
};

/// So that a lookup with nothing but refused answers ends soon.
const IMPATIENT: &str = "discovery.wake-timeout = \"150ms\"";

/// So long after the hostile peer was asked the honest one is heard: time for it to answer.
const LATER: Duration = Duration::from_millis(200);

/// Time for the honest peer to be heard.
const PATIENT: &str = "discovery.timeout = \"1s\"\ndiscovery.wake-timeout = \"1s\"";

/// NARs up to this size are verified before their first byte is passed on: wrong bytes cost
/// Nix nothing. Of larger ones, wrong bytes from the only holder at hand show at the end: the
/// answer is cut, never complete, and the next attempt is right.
const VERIFIED_FIRST_BYTES: usize = 8 << 20;

/// What the daemon may take beside what it had after its start, whatever a peer does: the
/// buffers of all streams together (`limits.buffer`), and the rest of the process.
const MEMORY_KIB: u64 = (40 + 8) << 10;

/// No answer takes longer than this, whatever its bound: a test that fails says how long it took.
const LONGEST: Duration = Duration::from_secs(60);

/// How often the only holder is asked for one NAR, if it gives some bytes and breaks off each time.
const MOST_TRIES: usize = 40;

/// A flood that nobody stops.
const FLOOD_ENDS_AFTER: Duration = Duration::from_secs(20);

/// Bounds of time: what a machine that does other work beside the tests takes is in each.
mod within {
    use std::time::Duration;

    /// A narinfo, whoever answers or does not.
    pub(crate) const NARINFO: Duration = Duration::from_millis(1_500);

    /// A NAR whose hostile holder shows what it is at once.
    pub(crate) const AT_ONCE: Duration = Duration::from_secs(3);

    /// Who is silent for a second is left, if there is another holder.
    pub(crate) const A_STALL: Duration = Duration::from_secs(4);

    /// Who gives less than 64 KiB in ten seconds is left.
    pub(crate) const A_TRICKLE: Duration = Duration::from_secs(14);

    /// The only holder may be silent for 3 s, and slow for 10 s.
    pub(crate) const ALONE: Duration = Duration::from_secs(15);
}

/// Paths with NARs of 100 KB, about 6 MiB, and 12 MiB.
static ITEMS: LazyLock<[Item; 3]> = LazyLock::new(|| {
    [
        Item::signed("small", 100_000),
        Item::signed("middle", 6 << 20),
        Item::signed("large", 12 << 20),
    ]
});

/// What a hostile peer answers to a request for a path that it says it has.
type Serve = dyn Fn(&Item, &Asked, &mut TcpStream) -> io::Result<Then> + Send + Sync;

/// A way to be hostile over HTTP.
struct Behaviour {
    serve: Arc<Serve>,
    /// The word under which it is counted in `fetched.refused`, or `corrupt`.
    counted: &'static str,
    /// Another word that is as good.
    or_counted: Option<&'static str>,
    /// How long Nix waits for the NAR if there is an honest holder too.
    beside: Duration,
    /// And for the 404 if there is none.
    alone: Duration,
}

impl Behaviour {
    /// Wrong in everything it serves.
    fn new(
        counted: &'static str,
        serve: impl Fn(&Item, &Asked, &mut TcpStream) -> io::Result<Then> + Send + Sync + 'static,
    ) -> Self {
        Self {
            serve: Arc::new(serve),
            counted,
            or_counted: None,
            beside: within::AT_ONCE,
            alone: within::AT_ONCE,
        }
    }

    /// Right in its narinfo and wrong in its NAR.
    fn of_nar(
        counted: &'static str,
        serve: impl Fn(&[u8], &Asked, &mut TcpStream) -> io::Result<Then> + Send + Sync + 'static,
    ) -> Self {
        Self::new(counted, move |item, asked, stream| {
            if asked.path.ends_with(".narinfo") {
                peer::ok(stream, item.peer_narinfo().as_bytes())
            } else if asked.path.ends_with(".nar") {
                serve(&item.nar, asked, stream)
            } else {
                peer::not_found(stream)
            }
        })
    }

    /// Sends a narinfo that must not be accepted, and a NAR that is not that of the item.
    fn of_narinfo(
        counted: &'static str,
        narinfo: impl Fn(&Item) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self::new(counted, move |item, asked, stream| {
            if asked.path.ends_with(".narinfo") {
                peer::ok(stream, &narinfo(item))
            } else {
                peer::ok(stream, &vec![0; item.nar.len()])
            }
        })
    }

    fn lasting(mut self, beside: Duration, alone: Duration) -> Self {
        (self.beside, self.alone) = (beside, alone);
        self
    }

    fn or(mut self, counted: &'static str) -> Self {
        self.or_counted = Some(counted);
        self
    }

    fn peer(&self, item: &Item) -> Peer {
        let (serve, item) = (Arc::clone(&self.serve), item.clone());
        Peer::holding_all(move |asked, stream| serve(&item, asked, stream))
    }

    /// All of it: for each size, beside an honest holder and alone. Those that wait do it alone
    /// together, in one test.
    fn check(&self) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _others_wait = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        std::thread::scope(|scope| {
            for item in &*ITEMS {
                scope.spawn(|| self.check_beside_an_honest_holder(item));
                if self.alone < within::ALONE {
                    scope.spawn(|| self.check_alone(item));
                }
            }
        });
    }

    fn check_beside_an_honest_holder(&self, item: &Item) {
        let name = item.info.path.basename().to_owned();
        let hostile = self.peer(item);
        let honest = Peer::honest_behind(&hostile, LATER, item);
        let host = Host::new()
            .with(PATIENT)
            .with(&Peer::setting(&[&hostile, &honest]));
        let mut daemon = host.start();
        let before = daemon.resident_kib();

        let (narinfo, took) = timed(|| narinfo(&daemon, item));
        assert_eq!(narinfo.status, 200, "the narinfo of {name}");
        assert_eq!(
            narinfo.text(),
            item.narinfo(&format!("v3/nar/{}", item.nar_name()))
        );
        assert!(took < within::NARINFO, "the narinfo of {name}: {took:?}");

        let (answer, took) = timed(|| nar(&daemon, item));
        assert!(took < self.beside, "{name}: {took:?}");
        if answer.complete || self.counted != "corrupt" || verified_first(item) {
            assert_right(&answer, item);
        } else {
            assert_healed_by_the_next_attempt(&daemon, item);
        }
        assert!(!hostile.asked().is_empty(), "{name}: it was not asked");
        match self.or_counted {
            Some(other) if is_counted(&daemon, other) => {}
            _ => assert_counted(&daemon, self.counted),
        }
        assert_bounded(&daemon, before);
        daemon.assert_well();
    }

    fn check_alone(&self, item: &Item) {
        let name = item.info.path.basename().to_owned();
        let hostile = self.peer(item);
        let host = Host::new()
            .with(IMPATIENT)
            .with(&Peer::setting(&[&hostile]));
        let mut daemon = host.start();
        let before = daemon.resident_kib();
        let (narinfo, took) = timed(|| narinfo(&daemon, item));
        assert!(took < within::NARINFO, "the narinfo of {name}: {took:?}");
        if narinfo.status == 200 {
            assert_eq!(
                narinfo.text(),
                item.narinfo(&format!("v3/nar/{}", item.nar_name()))
            );
        } else {
            assert_eq!(narinfo.status, 404, "{name}");
        }
        let (answer, took) = timed(|| nar(&daemon, item));
        assert!(took < self.alone, "{name}: {took:?}");
        let tries = hostile.asked_for_nars();
        assert!(tries <= MOST_TRIES, "{name}: asked {tries} times");
        if answer.complete && answer.status == 200 {
            // All of the right bytes came, whatever came after them.
            assert_right(&answer, item);
        } else if verified_first(item) {
            assert_eq!(
                answer.status,
                404,
                "{name}: {} bytes, complete: {}",
                answer.body.len(),
                answer.complete
            );
        } else {
            assert!(answer.status == 404 || !answer.complete, "{name}");
        }
        match self.or_counted {
            Some(other) if is_counted(&daemon, other) => {}
            _ => assert_counted(&daemon, self.counted),
        }
        assert_bounded(&daemon, before);
        daemon.assert_well();
    }
}

fn verified_first(item: &Item) -> bool {
    item.nar.len() <= VERIFIED_FIRST_BYTES
}

fn narinfo(daemon: &Daemon, item: &Item) -> Answer {
    daemon.get(&format!("/{}.narinfo", item.hash()))
}

fn nar_path(item: &Item) -> String {
    format!("/v3/nar/{}", item.nar_name())
}

fn nar(daemon: &Daemon, item: &Item) -> Answer {
    get_within(daemon.address(), &nar_path(item), LONGEST)
}

fn assert_right(answer: &Answer, item: &Item) {
    assert_eq!(
        (answer.status, answer.complete, answer.body.len()),
        (200, true, item.nar.len()),
        "{}",
        item.info.path.basename()
    );
    assert!(answer.body == item.nar, "wrong bytes came through");
}

/// After wrong bytes that went out: what Nix does by itself, going on at the byte where it was,
/// must fail at once, so that it turns to its next substituter; and the next attempt is right.
fn assert_healed_by_the_next_attempt(daemon: &Daemon, item: &Item) {
    let resume = format!("Range: bytes={}-", item.nar.len() / 2);
    let (resumed, took) = timed(|| request(daemon.address(), "GET", &nar_path(item), &[&resume]));
    assert_eq!(resumed.status, 404, "Nix was let go on after wrong bytes");
    assert!(took < within::AT_ONCE, "{took:?}");
    assert_right(&nar(daemon, item), item);
}

fn is_counted(daemon: &Daemon, reason: &str) -> bool {
    let count = &daemon.status()["fetched"]["refused"][reason];
    count.as_u64().is_some_and(|count| count > 0)
}

/// The reason is in `/status`, and the same number in `/metrics`.
fn assert_counted(daemon: &Daemon, reason: &str) {
    let status = daemon.status();
    let fetched = &status["fetched"];
    let (count, metric) = match reason {
        "corrupt" => (&fetched["corrupt"], "peerix_corrupt_nars_total".to_owned()),
        _ => (
            &fetched["refused"][reason],
            format!("peerix_refused_total{{reason=\"{reason}\"}}"),
        ),
    };
    let count = count.as_u64().unwrap_or(0);
    assert!(count > 0, "no {reason} was counted: {fetched:#}");
    assert_eq!(metric_of(daemon, &metric), Some(count), "{metric}");
}

/// Datagrams rejected for `reason` so far.
fn rejected(daemon: &Daemon, reason: &str) -> u64 {
    let name = format!("peerix_datagrams_rejected_total{{reason=\"{reason}\"}}");
    metric_of(daemon, &name).expect("a metric")
}

fn metric_of(daemon: &Daemon, name: &str) -> Option<u64> {
    let text = daemon.get("/metrics").text();
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map(|value| value.parse().expect("a number"))
}

fn assert_bounded(daemon: &Daemon, before_kib: u64) {
    let grown = daemon.peak_resident_kib().saturating_sub(before_kib);
    assert!(grown < MEMORY_KIB, "{grown} KiB more than after the start");
}

/// A head for `length` bytes, or without a length, and these bytes.
fn send(stream: &mut TcpStream, length: Option<usize>, bytes: &[u8]) -> io::Result<Then> {
    begin(stream, length)?;
    stream.write_all(bytes)?;
    Ok(Then::Close)
}

fn begin(stream: &mut TcpStream, length: Option<usize>) -> io::Result<()> {
    match length {
        Some(length) => write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
        ),
        None => stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n"),
    }
}

fn flipped(nar: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = nar.to_vec();
    bytes[at] ^= 1;
    bytes
}

/// The narinfo of `item` with the line that begins with `name` from elsewhere.
fn with_line(item: &Item, name: &str, instead: &str) -> Vec<u8> {
    let good = item.peer_narinfo();
    let line = good.lines().find(|line| line.starts_with(name));
    let line = line.expect("a line of a narinfo");
    good.replacen(line, instead, 1).into_bytes()
}

fn line_of(narinfo: &str, name: &str) -> String {
    let line = narinfo.lines().find(|line| line.starts_with(name));
    line.expect("a line of a narinfo").to_owned()
}

// What is wrong with a narinfo.

#[test]
fn the_wrong_path_in_a_narinfo() {
    let other = Item::signed("other", 500).peer_narinfo();
    Behaviour::of_narinfo("other-path", move |_| other.clone().into_bytes()).check();
}

#[test]
fn the_wrong_hash_in_a_narinfo() {
    let other = line_of(&Item::signed("other", 500).peer_narinfo(), "NarHash: ");
    Behaviour::of_narinfo("unsigned", move |item| with_line(item, "NarHash: ", &other)).check();
}

#[test]
fn a_bad_signature() {
    Behaviour::of_narinfo("unsigned", |item| {
        let signature = line_of(&item.peer_narinfo(), "Sig: ");
        let at = signature.len() - 10;
        let other = if &signature[at..=at] == "A" { "B" } else { "A" };
        let broken = format!("{}{other}{}", &signature[..at], &signature[at + 1..]);
        with_line(item, "Sig: ", &broken)
    })
    .check();
}

#[test]
fn a_foreign_signature() {
    Behaviour::of_narinfo("unsigned", |item| {
        let mut item = item.clone();
        item.info.signatures.clear();
        item.sign(&foreign_key()).peer_narinfo().into_bytes()
    })
    .check();
}

#[test]
fn a_narinfo_of_10_mib() {
    Behaviour::of_narinfo("wrong-length", |item| {
        let padding = "X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\n".repeat((10 << 20) / 40);
        [item.peer_narinfo().as_bytes(), padding.as_bytes()].concat()
    })
    .check();
}

#[test]
fn a_narinfo_without_end() {
    Behaviour::new("wrong-length", |item, _, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        stream.write_all(item.peer_narinfo().as_bytes())?;
        loop {
            stream.write_all(&b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\n".repeat(1_000))?;
        }
    })
    .check();
}

// Wrong lengths.

#[test]
fn a_nar_that_is_announced_too_long() {
    Behaviour::of_nar("wrong-length", |nar, _, stream| {
        send(stream, Some(nar.len() + 1), &[nar, b"x"].concat())
    })
    .check();
}

#[test]
fn a_nar_that_is_too_long_without_a_word() {
    Behaviour::of_nar("wrong-length", |nar, _, stream| {
        send(stream, None, &[nar, b"x"].concat())
    })
    .check();
}

#[test]
fn a_nar_that_is_announced_too_short() {
    Behaviour::of_nar("wrong-length", |nar, _, stream| {
        send(stream, Some(nar.len() - 1), &nar[1..])
    })
    .check();
}

#[test]
fn a_nar_that_is_too_short_without_a_word() {
    Behaviour::of_nar("wrong-length", |nar, _, stream| {
        send(stream, None, &nar[..nar.len() - 9])
    })
    .check();
}

#[test]
fn a_nar_that_ends_before_its_announced_length() {
    Behaviour::of_nar("broken", |nar, _, stream| {
        send(stream, Some(nar.len()), &nar[..nar.len() - 9])
    })
    .check();
}

#[test]
fn an_endless_body() {
    Behaviour::of_nar("wrong-length", |nar, asked, stream| {
        if asked.range().is_some() {
            let (head, _) = peer::part_of(asked, nar);
            let head = head
                .lines()
                .filter(|line| !line.starts_with("Content-Length"));
            let head: Vec<&str> = head.collect();
            stream.write_all(head.join("\r\n").as_bytes())?;
            stream.write_all(b"\r\n")?;
        } else {
            begin(stream, None)?;
        }
        loop {
            stream.write_all(nar)?;
        }
    })
    .check();
}

// Wrong bytes of the right length.

/// Wrong bytes are found, and the one that sent them is named and not asked again.
fn check_corrupt(at: fn(&[u8]) -> usize) {
    let behaviour = Behaviour::of_nar("corrupt", move |nar, _, stream| {
        send(stream, Some(nar.len()), &flipped(nar, at(nar)))
    });
    behaviour.check();
    for item in &*ITEMS {
        let hostile = behaviour.peer(item);
        let host = Host::new()
            .with(IMPATIENT)
            .with(&Peer::setting(&[&hostile]));
        let daemon = host.start();
        nar(&daemon, item);
        let address = hostile.http().to_string();
        daemon.log.line(&["warn", &address, &item.path()]);
        let status = daemon.status();
        assert_eq!(status["banned"][0]["peer"], address, "{status:#}");
        let asked = hostile.asked_for_nars();
        assert_eq!(nar(&daemon, item).status, 404);
        assert_eq!(hostile.asked_for_nars(), asked, "a banned peer was asked");
    }
}

#[test]
fn a_corrupt_first_byte() {
    check_corrupt(|_| 0);
}

#[test]
fn a_corrupt_byte_in_the_middle() {
    check_corrupt(|nar| nar.len() / 2);
}

#[test]
fn a_corrupt_last_byte() {
    check_corrupt(|nar| nar.len() - 1);
}

// Time.

fn trickling() -> Behaviour {
    // A little faster, so that it is never silent for as long as makes a stall.
    Behaviour::of_nar("slow", |nar, _, stream| {
        begin(stream, Some(nar.len()))?;
        for byte in nar.chunks(1) {
            stream.write_all(byte)?;
            std::thread::sleep(Duration::from_millis(800));
        }
        Ok(Then::Close)
    })
    .lasting(within::A_TRICKLE, within::ALONE)
}

fn silent_after_the_headers() -> Behaviour {
    Behaviour::of_nar("stalled", |nar, _, stream| {
        begin(stream, Some(nar.len()))?;
        peer::hang(stream)
    })
    .lasting(within::A_STALL, within::ALONE)
}

fn silent_instead_of_the_headers() -> Behaviour {
    Behaviour::of_nar("late", |_, _, stream| peer::hang(stream))
        .or("stalled")
        .lasting(within::A_STALL, within::ALONE)
}

fn endlessly_provisional() -> Behaviour {
    Behaviour::of_nar("late", |_, _, stream| {
        loop {
            stream.write_all(&b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n".repeat(100))?;
        }
    })
    .or("stalled")
    .lasting(within::A_STALL, within::ALONE)
}

#[test]
fn one_byte_a_second() {
    trickling().check();
}

#[test]
fn silence_after_the_headers() {
    silent_after_the_headers().check();
}

#[test]
fn silence_instead_of_the_headers() {
    silent_instead_of_the_headers().check();
}

#[test]
fn a_flood_of_provisional_answers() {
    endlessly_provisional().check();
}

#[test]
fn a_peer_that_keeps_nix_waiting_is_a_miss_in_the_end() {
    let item = &ITEMS[0];
    let patient = [
        trickling(),
        silent_after_the_headers(),
        silent_instead_of_the_headers(),
        endlessly_provisional(),
    ];
    std::thread::scope(|scope| {
        for behaviour in &patient {
            scope.spawn(|| behaviour.check_alone(item));
        }
    });
}

#[test]
fn silence_instead_of_the_end() {
    // It gives what is right; only the end of the body is missing.
    let behaviour = Behaviour::of_nar("", move |nar, _, stream| {
        begin(stream, None)?;
        stream.write_all(nar)?;
        peer::hang(stream)
    });
    std::thread::scope(|scope| {
        for item in &*ITEMS {
            let behaviour = &behaviour;
            scope.spawn(move || {
                let hostile = behaviour.peer(item);
                let honest = Peer::honest_behind(&hostile, LATER, item);
                let host = Host::new()
                    .with(PATIENT)
                    .with(&Peer::setting(&[&hostile, &honest]));
                let daemon = host.start();
                let before = daemon.resident_kib();
                let (answer, took) = timed(|| nar(&daemon, item));
                assert_right(&answer, item);
                assert!(took < within::A_STALL, "{took:?}");
                assert!(hostile.asked_for_nars() > 0);
                assert_bounded(&daemon, before);
            });
        }
    });
}

// Broken connections.

#[test]
fn a_reset_at_every_tenth_of_the_nar() {
    for tenth in 0..10 {
        let behaviour = Behaviour::of_nar("broken", move |nar, asked, stream| {
            let (head, part) = peer::part_of(asked, nar);
            stream.write_all(head.as_bytes())?;
            stream.write_all(&part[..part.len() / 10 * tenth])?;
            Ok(Then::Reset)
        });
        for item in &*ITEMS {
            behaviour.check_beside_an_honest_holder(item);
        }
        behaviour.check_alone(&ITEMS[tenth % 2]);
    }
}

#[test]
fn a_connection_that_is_closed_at_once() {
    Behaviour::new("broken", |_, _, _| Ok(Then::Close)).check();
}

#[test]
fn a_nar_request_that_is_answered_by_a_reset() {
    Behaviour::of_nar("broken", |_, _, _| Ok(Then::Reset)).check();
}

// What HTTP allows, and a NAR does not need.

#[test]
fn a_redirect() {
    let trap = Peer::holding_all(|_, stream| peer::not_found(stream));
    let to = trap.http();
    let redirect = move |asked: &Asked, stream: &mut TcpStream| {
        let path = &asked.path;
        write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: http://{to}{path}\r\nContent-Length: 0\r\n\r\n"
        )?;
        Ok(Then::KeepOpen)
    };
    Behaviour::of_nar("refused", move |_, asked, stream| redirect(asked, stream)).check();
    Behaviour::new("refused", move |_, asked, stream| redirect(asked, stream)).check();
    assert!(trap.asked().is_empty(), "{:?}", trap.asked());
}

#[test]
fn a_compressed_body() {
    Behaviour::of_nar("other-bytes", |nar, _, stream| {
        let length = nar.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {length}\r\n\r\n"
        )?;
        stream.write_all(nar)?;
        Ok(Then::Close)
    })
    .check();
}

#[test]
fn a_flood_of_headers() {
    let flood = |stream: &mut TcpStream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
        loop {
            stream.write_all(&b"X-Header: value\r\n".repeat(1_000))?;
        }
    };
    Behaviour::new("broken", move |_, _, stream| flood(stream)).check();
    Behaviour::of_nar("broken", move |_, _, stream| flood(stream)).check();
}

#[test]
fn a_503_for_ever() {
    let busy = |stream: &mut TcpStream| {
        stream.write_all(
            b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
        )?;
        Ok(Then::KeepOpen)
    };
    Behaviour::new("refused", move |_, _, stream| busy(stream)).check();
    Behaviour::of_nar("refused", move |_, _, stream| busy(stream)).check();
}

// Datagrams.

/// That `daemon` finds `item` and gets its NAR, in time.
fn assert_found(daemon: &Daemon, item: &Item) {
    let (answer, took) = timed(|| narinfo(daemon, item));
    assert_eq!(
        answer.text(),
        item.narinfo(&format!("v3/nar/{}", item.nar_name()))
    );
    assert!(took < within::NARINFO, "{took:?}");
    assert_right(&nar(daemon, item), item);
}

#[test]
fn an_answer_from_another_address() {
    // It has the right id, and the port of a machine that the asker shall bother: the asker
    // takes the address that the answer came from, whatever it stands for.
    let item = &ITEMS[0];
    let trap = Peer::honest(&[item]);
    let port = trap.http().port();
    let asker = Arc::new(OnceLock::new());
    let forger = UdpSocket::bind("127.0.0.9:0").expect("another address of this machine");
    let hostile = {
        let asker = Arc::clone(&asker);
        Peer::new(
            move |datagram, _| {
                for answer in peer::has_all(datagram, port) {
                    let to: &SocketAddr = asker.get().expect("the daemon runs");
                    forger.send_to(&answer, to).expect("send");
                }
                Vec::new()
            },
            |_, stream| peer::not_found(stream),
        )
    };
    let honest = Peer::honest_behind_reply(&hostile, LATER, item);
    let host = Host::new()
        .with(PATIENT)
        .with(&Peer::setting(&[&hostile, &honest]));
    let mut daemon = host.start();
    asker.set(daemon.address()).expect("set once");
    assert_found(&daemon, item);
    assert!(trap.asked().is_empty(), "{:?}", trap.asked());
    assert_counted(&daemon, "unreachable");
    daemon.assert_well();

    let host = Host::new().with(IMPATIENT).with(&Peer::setting(&[&trap]));
    let alone = host.start();
    let socket = UdpSocket::bind("127.0.0.9:0").expect("another address of this machine");
    socket
        .send_to(&peer::present(&[0; 4], port, &item.hash()), alone.address())
        .expect("send");
    eventually("it is counted", || {
        (rejected(&alone, "unknown-id") == 1).then_some(())
    });
}

#[test]
fn answers_to_ids_that_were_never_asked() {
    let item = &ITEMS[0];
    let trap = Peer::honest(&[item]);
    let honest = Peer::honest(&[item]);
    let host = Host::new().with(&Peer::setting(&[&honest]));
    let mut daemon = host.start();
    let socket = UdpSocket::bind("127.0.0.9:0").expect("UDP");
    let before = daemon.resident_kib();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut id = 0_u32;
            // Not for ever: what fails must not hang.
            let began = Instant::now();
            while !stop.load(SeqCst) && began.elapsed() < FLOOD_ENDS_AFTER {
                id = id.wrapping_add(0x9e37_79b9);
                let forged = peer::present(&id.to_be_bytes(), trap.http().port(), &item.hash());
                socket.send_to(&forged, daemon.address()).expect("send");
            }
        });
        eventually("the flood arrives", || {
            (rejected(&daemon, "unknown-id") > 1_000).then_some(())
        });
        assert_found(&daemon, item);
        stop.store(true, SeqCst);
    });
    assert!(trap.asked().is_empty(), "{:?}", trap.asked());
    assert_bounded(&daemon, before);
    daemon.assert_well();
}

#[test]
fn a_response_that_names_another_port_or_path() {
    let item = &ITEMS[0];
    let trap = Peer::honest(&[item]);
    let hash = item.hash();
    let right = format!("local/{hash}.narinfo");
    for (port, path, reason) in [
        (None, format!("../local/{hash}.narinfo"), "path"),
        (None, format!("local/../local/{hash}.narinfo"), "path"),
        (None, format!("/{right}"), "path"),
        (None, format!("http://{}/{right}", trap.http()), "path"),
        (None, format!("//{}/{right}", trap.http()), "path"),
        (None, format!("@{}/{right}", trap.http()), "path"),
        (None, format!("{right}\r\nHost: evil.example"), "path"),
        (Some(0), right.clone(), "port"),
        (Some(65_536 + u32::from(trap.http().port())), right, "port"),
    ] {
        let forged = path.clone();
        let hostile = Peer::new(
            move |datagram, own| {
                let port = port.unwrap_or(own.into());
                let is_old_request = datagram.first() == Some(&0);
                if !is_old_request && peer::asked_hashes(datagram).is_empty() {
                    return peer::has_all(datagram, own);
                }
                vec![
                    [
                        &[1],
                        &datagram[1..5],
                        &port.to_be_bytes(),
                        forged.as_bytes(),
                    ]
                    .concat(),
                ]
            },
            |_, stream| peer::not_found(stream),
        );
        let honest = Peer::honest_behind_reply(&hostile, LATER, item);
        let host = Host::new()
            .with(PATIENT)
            .with(&Peer::setting(&[&hostile, &honest]));
        let mut daemon = host.start();
        assert_found(&daemon, item);
        assert!(hostile.asked().is_empty(), "{path}: {:?}", hostile.asked());
        assert!(rejected(&daemon, reason) > 0, "{path}");
        daemon.assert_well();
    }
    assert!(trap.asked().is_empty(), "{:?}", trap.asked());
}

#[test]
fn replayed_datagrams() {
    // What a peer has answered is sent again and again when it has gone, by somebody else.
    let (item, other) = (&ITEMS[0], Item::signed("other", 500));
    let recorded = Arc::new(Mutex::new(Vec::new()));
    let gone = Arc::new(AtomicBool::new(false));
    let victim = {
        let (recorded, gone) = (Arc::clone(&recorded), Arc::clone(&gone));
        Peer::new(
            move |datagram, port| {
                if gone.load(SeqCst) {
                    return Vec::new();
                }
                let answers = peer::has_all(datagram, port);
                recorded.lock().expect("answers").extend(answers.clone());
                answers
            },
            |_, stream| peer::not_found(stream),
        )
    };
    let honest = Peer::honest_behind(&victim, LATER, item);
    let host = Host::new().with(&Peer::setting(&[&victim, &honest]));
    let mut daemon = host.start();
    assert_found(&daemon, item);
    gone.store(true, SeqCst);
    let recorded = recorded.lock().expect("answers").clone();
    assert!(!recorded.is_empty(), "the victim has answered");

    let asked = victim.asked().len();
    let socket = UdpSocket::bind("127.0.0.9:0").expect("UDP");
    let replay = |to: SocketAddr| {
        for _ in 0..200 {
            for answer in &recorded {
                socket.send_to(answer, to).expect("send");
            }
        }
    };
    replay(daemon.address());
    assert_found(&daemon, item);
    assert_eq!(narinfo(&daemon, &other).status, 404);
    assert_eq!(victim.asked().len(), asked, "an old answer led somewhere");
    daemon.assert_well();

    // To another process they mean nothing at all.
    let host = Host::new().with(&Peer::setting(&[&honest]));
    let next = host.start();
    replay(next.address());
    eventually("all of them are counted", || {
        let all = recorded.len() as u64 * 200;
        (rejected(&next, "unknown-id") == all).then_some(())
    });
    assert_eq!(next.status()["peers"].as_array().map(Vec::len), Some(1));
    assert_found(&next, item);
}

// Clients.

#[test]
fn a_page_with_a_name_of_its_own_for_this_machine() {
    let item = &ITEMS[0];
    let honest = Peer::honest(&[item]);
    let host = Host::new().with(&Peer::setting(&[&honest]));
    let daemon = host.start();
    let paths = [
        format!("/{}.narinfo", item.hash()),
        nar_path(item),
        "/status".to_owned(),
        "/metrics".to_owned(),
    ];
    for path in &paths {
        for head in [
            format!("GET {path} HTTP/1.1\r\nHost: rebound.example:12304\r\n"),
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nHost: rebound.example\r\n"),
            format!("GET http://rebound.example{path} HTTP/1.1\r\nHost: localhost\r\n"),
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: http://rebound.example\r\n"),
        ] {
            let head = format!("{head}Connection: close\r\n\r\n");
            let answer = raw(daemon.address(), head.as_bytes()).expect("answer");
            assert!(
                matches!(answer.status, 400 | 403 | 404) && !answer.body.starts_with(b"StorePath"),
                "{head}: {}",
                answer.status
            );
        }
    }
    assert!(
        honest.datagrams().is_empty(),
        "the LAN was asked for a page"
    );
    assert!(honest.asked().is_empty());
    let metrics = daemon.get("/metrics").text();
    assert!(metrics.contains("status=\"403\""), "{metrics}");
    assert_found(&daemon, item);
}

#[test]
fn clients_that_read_one_byte_a_second() {
    let Some(ip) = own_lan_address() else {
        return skip("this machine has no address but loopback, so nobody can play a LAN client");
    };
    let (small, large) = (&ITEMS[0], &ITEMS[2]);
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    let host = Host::new().holding(&[small, large]).with(&format!(
        "allowed-networks = [\"{ip}/{bits}\", \"127.0.0.0/8\"]"
    ));
    let mut daemon = host.start();
    let lan = SocketAddr::new(ip, daemon.address().port());
    let before = daemon.resident_kib();
    let path = format!("/nar/{}", large.nar_name());
    // Half of the room that there is for the LAN.
    let mut slow: Vec<Connection> = (0..20)
        .map(|_| {
            let mut connection = Connection::open(lan).expect("connection");
            let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
            connection.send(request.as_bytes()).expect("send");
            assert_eq!(connection.head().expect("head").status, 200);
            connection
        })
        .collect();
    for _ in 0..3 {
        for connection in &mut slow {
            connection.body(1).expect("a byte");
        }
        let (answer, took) = timed(|| get(lan, &format!("/nar/{}", small.nar_name())));
        assert!(
            answer.body == small.nar && took < within::AT_ONCE,
            "{took:?}"
        );
        let (answer, took) = timed(|| nar(&daemon, large));
        assert_right(&answer, large);
        assert!(took < within::AT_ONCE, "beside slow clients: {took:?}");
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_bounded(&daemon, before);
    daemon.assert_well();
}

#[test]
fn a_client_of_the_gateway_that_reads_one_byte_a_second() {
    let item = &ITEMS[2];
    let honest = Peer::honest(&[item]);
    let host = Host::new().with(&Peer::setting(&[&honest]));
    let mut daemon = host.start();
    let before = daemon.resident_kib();
    let mut slow: Vec<Connection> = (0..20)
        .map(|_| {
            let mut connection = Connection::open(daemon.address()).expect("connection");
            let request = format!("GET {} HTTP/1.1\r\nHost: localhost\r\n\r\n", nar_path(item));
            connection.send(request.as_bytes()).expect("send");
            assert_eq!(connection.head().expect("head").status, 200);
            connection
        })
        .collect();
    for _ in 0..3 {
        for connection in &mut slow {
            connection.body(1).expect("a byte");
        }
        let (answer, took) = timed(|| nar(&daemon, item));
        assert_right(&answer, item);
        assert!(took < within::AT_ONCE, "beside slow clients: {took:?}");
        std::thread::sleep(Duration::from_secs(1));
    }
    assert_bounded(&daemon, before);
    daemon.assert_well();
}

// More than one.

#[test]
fn a_crowd_of_hostile_peers_of_all_kinds() {
    let item = &ITEMS[1];
    let turn = AtomicU32::new(0);
    type Lie = fn(&[u8], &mut TcpStream) -> io::Result<Then>;
    let kinds: [Lie; 6] = [
        |nar, stream| send(stream, Some(nar.len() + 1), nar),
        |nar, stream| send(stream, Some(nar.len()), &nar[..nar.len() / 2]),
        |nar, stream| send(stream, Some(nar.len()), &flipped(nar, 5)),
        |_, stream| peer::not_found(stream),
        |_, _| Ok(Then::Reset),
        |nar, stream| {
            begin(stream, Some(nar.len()))?;
            peer::hang(stream)
        },
    ];
    let hostile: Vec<Peer> = (0..12)
        .map(|_| {
            let kind = kinds[turn.fetch_add(1, SeqCst) as usize % kinds.len()];
            Behaviour::of_nar("", move |nar, _, stream| kind(nar, stream)).peer(item)
        })
        .collect();
    let honest = Peer::honest_behind(&hostile[0], LATER, item);
    let peers: Vec<&Peer> = hostile.iter().chain([&honest]).collect();
    let host = Host::new().with(PATIENT).with(&Peer::setting(&peers));
    let mut daemon = host.start();
    let before = daemon.resident_kib();
    let (answer, took) = timed(|| narinfo(&daemon, item));
    assert_eq!(answer.status, 200);
    assert!(took < within::NARINFO, "{took:?}");
    // Two of them are silent for a second each.
    let (answer, took) = timed(|| nar(&daemon, item));
    assert_right(&answer, item);
    assert!(took < within::A_STALL * 2, "{took:?}");
    assert_bounded(&daemon, before);
    daemon.assert_well();
}
