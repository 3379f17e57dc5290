//! Issue 5: a plain binary cache (harmonia, nix-serve, a web server over a directory) is a holder
//! like others, and costs nothing while it is off.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    collections::HashSet,
    io::Write,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use nix::sys::signal::Signal;

use support::{
    daemon::Daemon,
    eventually,
    host::Host,
    http::Connection,
    item::Item,
    peer::{self, Asked, Peer, Then},
    timed,
};

const INFO: &str = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n";

/// Half of all lookups that wait for nothing are over by then, on a machine that is busy with other
/// tests; one that waits for a cache takes longer.
const AT_ONCE: Duration = Duration::from_millis(30);

/// How a path is kept.
#[derive(Clone)]
struct Kept {
    item: Item,
    method: &'static str,
    file: Vec<u8>,
    file_size: usize,
}

impl Kept {
    fn plain(item: &Item) -> Self {
        Self::packed(item, "none", item.nar.clone())
    }

    fn zstd(item: &Item) -> Self {
        let file = zstd::stream::encode_all(&item.nar[..], 3).expect("zstd");
        Self::packed(item, "zstd", file)
    }

    fn packed(item: &Item, method: &'static str, file: Vec<u8>) -> Self {
        Self {
            item: item.clone(),
            method,
            file_size: file.len(),
            file,
        }
    }

    fn name(&self) -> String {
        format!("nar/{}.nar.{}", self.item.info.nar_hash, self.method)
    }

    fn narinfo(&self) -> String {
        let narinfo = self.item.narinfo(&self.name());
        let fields = format!(
            "Compression: {}\nFileSize: {}\n",
            self.method, self.file_size
        );
        narinfo.replace("Compression: none\n", &fields)
    }

    /// Answers like a web server over a directory; `None` if it is not asked for this path.
    fn serve(&self, asked: &Asked, stream: &mut TcpStream) -> Option<std::io::Result<Then>> {
        let name = asked.path.strip_prefix("/cache/")?;
        if name == format!("{}.narinfo", self.item.hash()) {
            return Some(peer::ok(stream, self.narinfo().as_bytes()));
        }
        (name == self.name()).then(|| {
            let (head, bytes) = peer::part_of(asked, &self.file);
            stream.write_all(head.as_bytes())?;
            stream.write_all(bytes)?;
            Ok(Then::KeepOpen)
        })
    }
}

type Serve = dyn Fn(&Asked, &mut TcpStream) -> std::io::Result<Then> + Send + Sync;

/// A cache at any port.
fn serving(
    serve: impl Fn(&Asked, &mut TcpStream) -> std::io::Result<Then> + Send + Sync + 'static,
) -> Peer {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listener");
    on(listener, Arc::new(serve))
}

/// A cache that answers to `nix-cache-info`, and to everything else by `serve`.
fn on(listener: TcpListener, serve: Arc<Serve>) -> Peer {
    // Nobody asks it over UDP.
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("UDP");
    let serve = move |asked: &Asked, stream: &mut TcpStream| {
        if asked.path == "/cache/nix-cache-info" {
            peer::ok(stream, INFO.as_bytes())
        } else {
            serve(asked, stream)
        }
    };
    Peer::on(
        listener,
        udp,
        Arc::new(|_: &[u8], _| Vec::new()),
        Arc::new(serve),
    )
}

/// A cache in good order with these paths.
fn keeping(kept: &[Kept]) -> Peer {
    let kept = kept.to_vec();
    serving(move |asked, stream| {
        let mut answers = kept.iter().filter_map(|kept| kept.serve(asked, stream));
        match answers.next() {
            Some(answer) => answer,
            None => peer::not_found(stream),
        }
    })
}

fn answer(kept: &Kept, asked: &Asked, stream: &mut TcpStream) -> std::io::Result<Then> {
    let answer = kept.serve(asked, stream);
    answer.unwrap_or_else(|| peer::not_found(stream))
}

fn url(address: SocketAddr) -> String {
    format!("http://{address}/cache")
}

/// A machine that knows these caches, and whoever else is in `peers`.
fn host_with(caches: &[&Peer], peers: &[&Peer]) -> Host {
    let peers = peers.iter().map(|peer| peer.udp().to_string());
    let caches = caches.iter().map(|cache| url(cache.http()));
    let all: Vec<String> = peers.chain(caches).map(|it| format!("{it:?}")).collect();
    Host::new().with(&format!("discovery.peers = [{}]", all.join(", ")))
}

/// A daemon that has found its caches to be in these states.
fn started(host: &Host, states: &[&str]) -> Daemon {
    let daemon = host.start();
    become_known(&daemon, states);
    daemon
}

fn become_known(daemon: &Daemon, states: &[&str]) {
    daemon.get("/nix-cache-info");
    eventually(&format!("caches that are {states:?}"), || {
        let caches = &daemon.status()["caches"];
        let found = caches.as_array().expect("caches").iter();
        let found: Vec<&str> = found.filter_map(|it| it["state"].as_str()).collect();
        (found == states).then_some(())
    });
}

fn narinfo(daemon: &Daemon, item: &Item) -> u16 {
    daemon.get(&format!("/{}.narinfo", item.hash())).status
}

/// Fails unless misses wait for nothing.
fn assert_misses_are_immediate(daemon: &Daemon, item: &Item) {
    let miss = |_| {
        let (status, took) = timed(|| narinfo(daemon, item));
        assert_eq!(status, 404);
        took
    };
    let mut times: Vec<Duration> = (0..21).map(miss).collect();
    times.sort_unstable();
    assert!(times[10] < AT_ONCE, "{times:?}");
}

fn nar_path(item: &Item) -> String {
    format!("/v3/nar/{}", item.nar_name())
}

fn asked_for(cache: &Peer, end: &str) -> Vec<Asked> {
    let mut asked = cache.asked();
    asked.retain(|asked| asked.path.ends_with(end));
    asked
}

#[test]
fn what_a_plain_cache_has_is_found_and_fetched() {
    let (plain, packed) = (
        Item::signed("plain", 300_000),
        Item::signed("packed", 300_000),
    );
    let large = Item::signed("large", 12 << 20);
    let kept = [Kept::plain(&plain), Kept::zstd(&packed), Kept::zstd(&large)];
    let cache = keeping(&kept);
    let host = host_with(&[&cache], &[]);
    let daemon = started(&host, &["good"]);
    for item in [&plain, &packed, &large] {
        let answer = daemon.get(&format!("/{}.narinfo", item.hash()));
        assert_eq!(answer.status, 200, "{}", item.path());
        assert_eq!(answer.field("Compression").as_deref(), Some("none"));
        assert_eq!(answer.field("FileSize"), None);
        let url = answer.field("URL").expect("URL");
        let answer = daemon.get(&format!("/{url}"));
        assert!(
            answer.complete && answer.body == item.nar,
            "{}",
            item.path()
        );
        let from = cache.http().to_string();
        assert_eq!(answer.header("x-peerix-peer"), Some(from.as_str()));
    }
    let hosts = cache.asked();
    let host_line = format!("host: {}\r\n", cache.http());
    assert!(
        hosts.iter().all(|asked| asked.head.contains(&host_line)),
        "{hosts:?}"
    );
    assert!(hosts.iter().all(|asked| asked.path.starts_with("/cache/")));
    assert!(asked_for(&cache, ".pieces").is_empty());
    let status = daemon.status();
    assert_eq!(
        status["caches"][0]["url"],
        format!("{}/", url(cache.http()))
    );
    assert_eq!(status["caches"][0]["hits"], 3);
    assert_eq!(status["fetched"]["nars"], 3);
    let metrics = daemon.get("/metrics").text();
    for line in [
        "peerix_caches{state=\"good\"} 1".to_owned(),
        format!(
            "peerix_cache_answers_total{{cache=\"{}/\",answer=\"hit\"}} 3",
            url(cache.http())
        ),
    ] {
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
}

#[test]
fn a_part_of_a_packed_nar_is_that_part() {
    let item = Item::signed("packed", 5 << 20);
    let cache = keeping(&[Kept::zstd(&item)]);
    let host = host_with(&[&cache], &[]);
    let daemon = started(&host, &["good"]);
    let size = item.nar.len();
    for (first, last) in [
        (0, 9),
        (4_000_000, 4_000_009),
        (size - 10, size - 1),
        (1, size - 1),
    ] {
        let mut connection = Connection::open(daemon.address()).expect("connection");
        let range = format!("Range: bytes={first}-{last}");
        let answer = connection.ask("GET", &nar_path(&item), &[&range]);
        let answer = answer.expect("answer");
        assert_eq!(answer.status, 206);
        assert!(answer.body == item.nar[first..=last], "{first} to {last}");
    }
    assert!(
        asked_for(&cache, ".zstd")
            .iter()
            .all(|asked| asked.range().is_none())
    );
}

#[test]
fn what_cannot_be_unpacked_is_counted_and_skipped() {
    let (item, other) = (Item::signed("xz", 1_000), Item::signed("none", 1_000));
    let cache = keeping(&[
        Kept::packed(&item, "xz", item.nar.clone()),
        Kept::plain(&other),
    ]);
    let host = host_with(&[&cache], &[]);
    let daemon = started(&host, &["good"]);
    assert_eq!(narinfo(&daemon, &item), 404);
    assert_eq!(daemon.get(&nar_path(&item)).status, 404);
    assert_eq!(
        narinfo(&daemon, &other),
        200,
        "the cache is as good as before"
    );
    assert!(asked_for(&cache, ".xz").is_empty());
    let status = daemon.status();
    assert_eq!(status["caches"][0]["compressed"], 2);
    assert_eq!(status["fetched"]["refused"]["compressed"], 2);
}

#[test]
fn what_no_trusted_key_has_signed_is_refused() {
    let (item, other) = (
        Item::unsigned("unsigned", 1_000),
        Item::signed("signed", 1_000),
    );
    let cache = keeping(&[Kept::zstd(&item), Kept::zstd(&other)]);
    let host = host_with(&[&cache], &[]);
    let daemon = started(&host, &["good"]);
    assert_eq!(narinfo(&daemon, &item), 404);
    assert_eq!(
        narinfo(&daemon, &other),
        200,
        "the cache is as good as before"
    );
    assert_eq!(daemon.status()["caches"][0]["refused"], 1);
}

#[test]
fn a_path_that_a_cache_gains_is_found_at_the_next_question() {
    let item = Item::signed("gained", 1_000);
    let has_it = Arc::new(AtomicBool::new(false));
    let cache = {
        let (kept, has_it) = (Kept::plain(&item), Arc::clone(&has_it));
        serving(move |asked, stream| {
            if has_it.load(SeqCst) {
                answer(&kept, asked, stream)
            } else {
                peer::not_found(stream)
            }
        })
    };
    let host = host_with(&[&cache], &[]);
    let daemon = started(&host, &["good"]);
    for _ in 0..3 {
        assert_eq!(narinfo(&daemon, &item), 404);
    }
    has_it.store(true, SeqCst);
    assert_eq!(narinfo(&daemon, &item), 200);
    let status = daemon.status();
    assert_eq!(status["caches"][0]["misses"], 3);
    assert_eq!(status["caches"][0]["hits"], 1);
}

#[test]
fn a_redirect_and_an_error_are_misses() {
    let item = Item::signed("elsewhere", 1_000);
    let target = keeping(&[Kept::plain(&item)]);
    let location = url(target.http());
    let hash = item.hash();
    let redirecting = serving(move |_, stream| {
        write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: {location}/{hash}.narinfo\r\nContent-Length: 0\r\n\r\n"
        )?;
        Ok(Then::KeepOpen)
    });
    let broken = serving(|_, stream| {
        stream.write_all(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops")?;
        Ok(Then::KeepOpen)
    });
    let host = host_with(&[&redirecting, &broken], &[]);
    let daemon = started(&host, &["good", "good"]);
    assert_eq!(narinfo(&daemon, &item), 404);
    assert!(target.asked().is_empty(), "the redirect was followed");
    for cache in [&redirecting, &broken] {
        assert_eq!(asked_for(cache, ".narinfo").len(), 1);
    }
    assert_eq!(daemon.status()["fetched"]["refused"]["refused"], 2);
}

#[test]
fn a_cache_that_falls_silent_costs_a_moment_once() {
    let (item, other) = (Item::signed("item", 1_000), Item::signed("other", 1_000));
    let cache = serving(|_, stream| peer::hang(stream));
    let host = host_with(&[&cache], &[]);
    let daemon = started(&host, &["good"]);
    let (status, took) = timed(|| narinfo(&daemon, &item));
    assert_eq!(status, 404);
    assert!(
        took > Duration::from_millis(249),
        "not given its time: {took:?}"
    );
    assert!(took < Duration::from_millis(450), "{took:?}");
    assert_misses_are_immediate(&daemon, &other);
    assert_eq!(asked_for(&cache, ".narinfo").len(), 1);
    assert_eq!(daemon.status()["caches"][0]["state"], "off");
    assert_eq!(daemon.status()["caches"][0]["failures"], 1);
}

#[test]
fn a_cache_that_is_off_costs_nothing_and_is_used_again_when_it_is_back() {
    let item = Item::signed("item", 100_000);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listener");
    let address = listener.local_addr().expect("address");
    drop(listener);
    let host = Host::new().with(&format!("discovery.peers = [{:?}]", url(address)));
    let daemon = started(&host, &["off"]);
    assert_misses_are_immediate(&daemon, &item);
    let kept = Kept::zstd(&item);
    let listener = TcpListener::bind(address).expect("the same port");
    let serve = move |asked: &Asked, stream: &mut TcpStream| {
        let answer = kept.serve(asked, stream);
        answer.unwrap_or_else(|| peer::not_found(stream))
    };
    let _cache = on(listener, Arc::new(serve));
    assert_eq!(narinfo(&daemon, &item), 404, "it was probed a moment ago");
    daemon.signal(Signal::SIGHUP);
    daemon.log.line(&["are read again"]);
    become_known(&daemon, &["good"]);
    assert_eq!(narinfo(&daemon, &item), 200);
    assert!(daemon.get(&nar_path(&item)).body == item.nar);
}

#[test]
fn nobody_waits_for_a_cache_that_takes_no_connection() {
    // A listener whose queue is full: what comes is dropped, as by a host that is gone.
    let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let full = full.expect("socket");
    full.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
        .expect("bind");
    full.listen(0).expect("listen");
    let address = full.local_addr().expect("address").as_socket().expect("IP");
    let _in_the_queue = TcpStream::connect(address).expect("the first one");
    let item = Item::signed("item", 1_000);
    let host = Host::new().with(&format!("discovery.peers = [{:?}]", url(address)));
    let daemon = host.start();
    // Its probe is under way for half a second; the first lookup waits half of that.
    let (status, took) = timed(|| narinfo(&daemon, &item));
    assert_eq!(status, 404);
    assert!(took < Duration::from_millis(450), "{took:?}");
    assert_misses_are_immediate(&daemon, &item);
    become_known(&daemon, &["off"]);
}

#[test]
fn a_cache_for_another_store_or_none_at_all_is_not_asked() {
    let item = Item::signed("item", 1_000);
    let odd = |info: &'static str| {
        let kept = Kept::plain(&item);
        Peer::new(
            |_, _| Vec::new(),
            move |asked, stream| match asked.path.as_str() {
                "/cache/nix-cache-info" if info.is_empty() => peer::not_found(stream),
                "/cache/nix-cache-info" => peer::ok(stream, info.as_bytes()),
                _ => kept
                    .serve(asked, stream)
                    .unwrap_or_else(|| peer::not_found(stream)),
            },
        )
    };
    let other = odd("StoreDir: /opt/store\n");
    let nothing = odd("");
    let page = odd("<html><body>Welcome</body></html>\n");
    let host = host_with(&[&other, &nothing, &page], &[]);
    let daemon = started(&host, &["other-store", "no-cache", "no-cache"]);
    assert_eq!(narinfo(&daemon, &item), 404);
    for cache in [&other, &nothing, &page] {
        assert!(asked_for(cache, ".narinfo").is_empty());
    }
}

#[test]
fn a_daemon_does_not_ask_itself() {
    let item = Item::signed("item", 1_000);
    let mut host = Host::new();
    let daemon = host.start();
    host.set(&format!(
        "discovery.peers = [\"http://{}\"]",
        daemon.address()
    ));
    daemon.signal(Signal::SIGHUP);
    daemon.log.line(&["are read again"]);
    become_known(&daemon, &["ourselves"]);
    assert_misses_are_immediate(&daemon, &item);
}

#[test]
fn wrong_bytes_ban_a_cache() {
    for zstd in [false, true] {
        let (item, other) = (Item::signed("wrong", 200_000), Item::signed("other", 1_000));
        let mut nar = item.nar.clone();
        nar[150_000] ^= 1;
        let wrong = if zstd {
            let file = zstd::stream::encode_all(&nar[..], 3).expect("zstd");
            Kept::packed(&item, "zstd", file)
        } else {
            Kept::packed(&item, "none", nar)
        };
        let cache = keeping(&[wrong, Kept::plain(&other)]);
        let host = host_with(&[&cache], &[]);
        let daemon = started(&host, &["good"]);
        assert_eq!(narinfo(&daemon, &item), 200);
        assert_eq!(
            daemon.get(&nar_path(&item)).status,
            404,
            "nothing wrong is passed on"
        );
        let banned = &daemon.status()["banned"];
        assert_eq!(banned[0]["peer"], cache.http().to_string());
        assert_eq!(narinfo(&daemon, &other), 404, "it is not asked any more");
        assert!(asked_for(&cache, &format!("{}.narinfo", other.hash())).is_empty());
    }
}

#[test]
fn a_bomb_takes_no_memory() {
    let item = Item::signed("bomb", 2 << 20);
    let zeros = vec![0; 16 << 20];
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).expect("encoder");
    for _ in 0..64 {
        encoder.write_all(&zeros).expect("packing");
    }
    let file = encoder.finish().expect("file");
    assert!(file.len() < 1 << 20, "1 GiB in {} bytes", file.len());
    let cache = keeping(&[Kept::packed(&item, "zstd", file)]);
    let host = host_with(&[&cache], &[]);
    let daemon = started(&host, &["good"]);
    assert_eq!(narinfo(&daemon, &item), 200);
    let before = daemon.resident_kib();
    assert_eq!(daemon.get(&nar_path(&item)).status, 404);
    let grown = daemon.peak_resident_kib().saturating_sub(before);
    assert!(grown < 32 << 10, "{grown} KiB more");
    let refused = &daemon.status()["fetched"]["refused"];
    assert!(refused["wrong-length"].as_u64() >= Some(1), "{refused}");
}

#[test]
fn a_file_that_is_not_what_it_should_be_is_no_nar() {
    let item = Item::signed("item", 500_000);
    let right = Kept::zstd(&item);
    let truncated = {
        let file = right.file[..right.file.len() / 2].to_vec();
        Kept::packed(&item, "zstd", file)
    };
    let long = {
        let file = [&right.file[..], b"junk"].concat();
        Kept {
            file_size: right.file_size,
            ..Kept::packed(&item, "zstd", file)
        }
    };
    let not_zstd = Kept::packed(&item, "zstd", item.nar.clone());
    for (what, wrong) in [
        ("truncated", truncated),
        ("long", long),
        ("no zstd", not_zstd),
    ] {
        let cache = keeping(&[wrong]);
        let host = host_with(&[&cache], &[]);
        let daemon = started(&host, &["good"]);
        assert_eq!(narinfo(&daemon, &item), 200, "{what}");
        let answer = daemon.get(&nar_path(&item));
        assert!(answer.status == 404 || !answer.complete, "{what}");
        assert_eq!(
            daemon.status()["banned"].as_array().map(Vec::len),
            Some(0),
            "{what}"
        );
    }
}

#[test]
fn a_nar_goes_on_at_the_exact_byte_from_peer_to_cache_and_back() {
    let item = Item::signed("large", 12 << 20);
    for is_cache_first in [true, false] {
        let kept = Kept::zstd(&item);
        let fails = Arc::new(AtomicBool::new(is_cache_first));
        let cache = serving(move |asked, stream| {
            if asked.path.ends_with(".zstd") && fails.load(SeqCst) {
                let (head, bytes) = peer::part_of(asked, &kept.file);
                stream.write_all(head.as_bytes())?;
                stream.write_all(&bytes[..bytes.len() / 2])?;
                return Ok(Then::Close);
            }
            let answer = kept.serve(asked, stream);
            answer.unwrap_or_else(|| peer::not_found(stream))
        });
        let its = item.clone();
        let peer = Peer::holding_all(move |asked, stream| {
            if asked.path.ends_with(".narinfo") {
                return peer::ok(stream, its.peer_narinfo().as_bytes());
            }
            let (head, bytes) = peer::part_of(asked, &its.nar);
            stream.write_all(head.as_bytes())?;
            if is_cache_first {
                stream.write_all(bytes)?;
                return Ok(Then::KeepOpen);
            }
            stream.write_all(&bytes[..bytes.len() / 3])?;
            Ok(Then::Close)
        });
        let host = host_with(&[&cache], &[&peer]);
        let daemon = started(&host, &["good"]);
        let answer = daemon.get(&nar_path(&item));
        assert!(
            answer.complete && answer.body == item.nar,
            "{is_cache_first}: {} bytes",
            answer.body.len()
        );
    }
}

#[test]
fn pieces_come_from_caches_that_know_ranges() {
    let item = Item::signed("huge", 40 << 20);
    let plain = || keeping(&[Kept::plain(&item)]);
    let (one, two, packed) = (plain(), plain(), keeping(&[Kept::zstd(&item)]));
    for with_packed in [false, true] {
        let mut caches = vec![&one, &two];
        caches.extend(with_packed.then_some(&packed));
        let host = host_with(&caches, &[]);
        let daemon = started(&host, &vec!["good"; caches.len()]);
        let answer = daemon.get(&nar_path(&item));
        assert!(answer.complete && answer.body == item.nar);
        for cache in caches {
            assert!(asked_for(cache, ".pieces").is_empty());
        }
        if !with_packed {
            for cache in [&one, &two] {
                let asked = asked_for(cache, ".none");
                assert!(asked.iter().filter(|asked| asked.range().is_some()).count() > 1);
            }
        }
    }
}

#[test]
fn a_holder_that_is_read_from_its_start_is_not_silent() {
    let item = Item::signed("large", 12 << 20);
    let kept = Kept::zstd(&item);
    // Found first, it fails close to the end; nobody reads a packed NAR from there.
    let (first, second) = (kept.clone(), kept);
    let failing = serving(move |asked, stream| {
        if !asked.path.ends_with(".zstd") {
            return answer(&first, asked, stream);
        }
        let (head, bytes) = peer::part_of(asked, &first.file);
        stream.write_all(head.as_bytes())?;
        stream.write_all(&bytes[..bytes.len() / 8 * 7])?;
        Ok(Then::Close)
    });
    let slow = serving(move |asked, stream| {
        if !asked.path.ends_with(".zstd") {
            std::thread::sleep(Duration::from_millis(50));
            return answer(&second, asked, stream);
        }
        let (head, bytes) = peer::part_of(asked, &second.file);
        stream.write_all(head.as_bytes())?;
        for bytes in bytes.chunks(256 << 10) {
            stream.write_all(bytes)?;
            std::thread::sleep(Duration::from_millis(45));
        }
        Ok(Then::KeepOpen)
    });
    let host = host_with(&[&failing, &slow], &[]);
    let daemon = started(&host, &["good", "good"]);
    let (answer, took) = timed(|| daemon.get(&nar_path(&item)));
    assert!(answer.complete && answer.body == item.nar);
    assert!(
        took > Duration::from_millis(1_900),
        "not longer than `limits.stall`: {took:?}"
    );
    let refused = &daemon.status()["fetched"]["refused"];
    assert!(refused["stalled"].is_null(), "{refused}");
}

#[test]
fn a_cache_that_answers_one_after_the_other_is_busy_and_loses_nothing() {
    let items: Vec<Item> = (0..25)
        .map(|at| Item::signed(&format!("item-{at}"), 1_000))
        .collect();
    let kept: Vec<Kept> = items.iter().map(Kept::plain).collect();
    let turn = Mutex::new(());
    let cache = serving(move |asked, stream| {
        let _turn = turn.lock().expect("turn");
        std::thread::sleep(Duration::from_millis(3));
        let is_it = |kept: &&Kept| asked.path.contains(&kept.item.hash());
        let narinfo = kept.iter().find(is_it).map(Kept::narinfo);
        let narinfo = narinfo.expect("one of its paths");
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
            narinfo.len()
        );
        stream.write_all((head + &narinfo).as_bytes())?;
        Ok(Then::KeepOpen)
    });
    let host = host_with(&[&cache], &[]);
    let daemon = started(&host, &["good"]);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let asking: Vec<_> = items
            .iter()
            .map(|item| scope.spawn(|| narinfo(&daemon, item)))
            .collect();
        asking
            .into_iter()
            .map(|it| it.join().expect("asked"))
            .collect()
    });
    assert_eq!(statuses, [200; 25]);
}

#[test]
fn a_cache_is_not_blamed_for_our_own_queue() {
    let items: Vec<Item> = (0..12)
        .map(|at| Item::signed(&format!("item-{at}"), 1_000))
        .collect();
    let last = Item::signed("last", 1_000);
    let kept: Vec<Kept> = items.iter().chain([&last]).map(Kept::plain).collect();
    // Two NARs are asked for at a time, so the last ones wait for longer than `limits.stall`.
    let cache = serving(move |asked, stream| {
        if asked.path.ends_with(".none") {
            std::thread::sleep(Duration::from_millis(300));
        }
        let mut answers = kept.iter().filter_map(|kept| kept.serve(asked, stream));
        answers.next().unwrap_or_else(|| peer::not_found(stream))
    });
    let held = items.clone();
    let slower = Peer::new(
        {
            let held: Vec<String> = items.iter().map(Item::hash).collect();
            move |datagram, port| peer::has(datagram, port, |hash| held.iter().any(|it| it == hash))
        },
        move |asked, stream| {
            std::thread::sleep(Duration::from_millis(100));
            peer::serve_honestly(&held, asked, stream)
        },
    );
    let host = host_with(&[&cache], &[&slower]);
    let daemon = started(&host, &["good"]);
    for item in &items {
        assert_eq!(narinfo(&daemon, item), 200);
    }
    std::thread::scope(|scope| {
        for item in &items {
            let daemon = &daemon;
            scope.spawn(move || assert!(daemon.get(&nar_path(item)).body == item.nar));
        }
    });
    let refused = &daemon.status()["fetched"]["refused"];
    assert!(refused["stalled"].is_null(), "{refused}");
    assert!(refused["busy"].as_u64() > Some(0), "{refused}");
    assert_eq!(narinfo(&daemon, &last), 200, "and is still asked");
}

#[test]
fn a_thousand_misses_cost_a_round_trip_each_on_connections_that_stay_open() {
    let connections = Arc::new(Mutex::new(HashSet::new()));
    let cache = serving({
        let connections = Arc::clone(&connections);
        move |_, stream| {
            let from = stream.peer_addr()?;
            connections.lock().expect("connections").insert(from);
            peer::not_found(stream)
        }
    });
    let host = host_with(&[&cache], &[]);
    let daemon = started(&host, &["good"]);
    let mut connection = Connection::open(daemon.address()).expect("connection");
    let mut times: Vec<Duration> = (0..1_000_u32)
        .map(|at| {
            let hash = format!("{at:0>32}");
            let path = format!("/{hash}.narinfo");
            let (answer, took) = timed(|| connection.ask("GET", &path, &[]));
            assert_eq!(answer.expect("answer").status, 404);
            took
        })
        .collect();
    times.sort_unstable();
    let (median, p99) = (times[500], times[990]);
    eprintln!("1,000 misses with one cache: median {median:?}, p99 {p99:?}");
    assert!(median < Duration::from_millis(5), "{median:?}");
    let status = daemon.status();
    assert_eq!(status["caches"][0]["misses"], 1_000);
    let connections = connections.lock().expect("connections").len();
    assert!(connections <= 8, "{connections} connections");
    assert_eq!(status["caches"][0]["state"], "good");
}
