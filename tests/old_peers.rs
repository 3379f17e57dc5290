//! Promise 8: the first peerix on the LAN works with this one in both directions, unchanged. Its
//! side is played here byte for byte, written from its protocol alone.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    collections::BTreeMap,
    io::Write,
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use support::{
    PATIENCE,
    host::Host,
    http::{get, request},
    item::{Item, trusted_key},
    peer::{Asked, Peer, Then},
    timed,
};

/// How long an old peer waits for answers (`--timeout 50`).
const ITS_TIMEOUT: Duration = Duration::from_millis(50);

/// Answers a request that it can with `01 | id | port u32 | path`, and says nothing else, ever.
fn old_reply(held: &[String], datagram: &[u8], port: u16) -> Vec<Vec<u8>> {
    let (Some(0x00), Some(id)) = (datagram.first(), datagram.get(1..5)) else {
        return Vec::new();
    };
    let hash = String::from_utf8_lossy(&datagram[5..]).into_owned();
    if !held.contains(&hash) {
        return Vec::new();
    }
    let mut answer = vec![0x01];
    answer.extend_from_slice(id);
    answer.extend_from_slice(&u32::from(port).to_be_bytes());
    answer.extend_from_slice(format!("local/{hash}.narinfo").as_bytes());
    vec![answer]
}

/// Its narinfo: this order, a blank after the deriver, and nothing that it does not know.
fn old_narinfo(item: &Item) -> String {
    let references: Vec<&str> = item
        .info
        .references
        .iter()
        .map(|it| it.basename())
        .collect();
    let mut text = format!(
        "StorePath: {}\nURL: {}\nCompression: none\nNarHash: sha256:{}\nNarSize: {}\nReferences: {}\nDeriver: unknown-deriver \n",
        item.path(),
        item.old_nar_url(),
        item.info.nar_hash,
        item.info.nar_size,
        references.join(" ")
    );
    for signature in &item.info.signatures {
        text.push_str(&format!("Sig: {signature}\n"));
    }
    text
}

/// Chunked, without a length, as text, whatever range was asked for.
fn old_answer(stream: &mut TcpStream, body: &[u8]) -> std::io::Result<Then> {
    stream.write_all(
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n",
    )?;
    for chunk in body.chunks(10_000) {
        write!(stream, "{:x}\r\n", chunk.len())?;
        stream.write_all(chunk)?;
        stream.write_all(b"\r\n")?;
    }
    stream.write_all(b"0\r\n\r\n")?;
    Ok(Then::KeepOpen)
}

fn old_serve(items: &[Item], asked: &Asked, stream: &mut TcpStream) -> std::io::Result<Then> {
    for item in items {
        if asked.path == format!("/local/{}.narinfo", item.hash()) {
            return old_answer(stream, old_narinfo(item).as_bytes());
        }
        if asked.path == format!("/{}", item.old_nar_url()) {
            return old_answer(stream, &item.nar);
        }
    }
    stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")?;
    Ok(Then::KeepOpen)
}

/// An old peer that holds these paths and answers after a while.
fn old_holder(items: &[&Item], after: Duration) -> Peer {
    let items: Vec<Item> = items.iter().map(|item| (*item).clone()).collect();
    let held: Vec<String> = items.iter().map(Item::hash).collect();
    Peer::new(
        move |datagram, port| {
            std::thread::sleep(after);
            old_reply(&held, datagram, port)
        },
        move |asked, stream| old_serve(&items, asked, stream),
    )
}

/// What an old peer makes of a narinfo: each line is split at its first colon, and it crashes on a
/// line without one.
fn old_parse(text: &str) -> BTreeMap<String, String> {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let pair = |line: &str| {
        let (name, value) = line
            .split_once(':')
            .unwrap_or_else(|| panic!("the old parser crashes on {line:?}"));
        (name.trim().to_owned(), value.trim().to_owned())
    };
    text.split('\n').map(pair).collect()
}

/// An old peer that wants paths: the one answer that it gets, from whom. Of the others it hears
/// nothing, and no datagram of a type that it does not know.
fn old_ask(daemon: SocketAddr, hashes: &[&str]) -> (SocketAddr, u32, String) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("UDP");
    socket.set_read_timeout(Some(PATIENCE)).expect("timeout");
    for hash in hashes {
        let request = [&[0x00, 0xde, 0xad, 0xbe, 0xef], hash.as_bytes()].concat();
        assert_eq!(request.len(), 37);
        socket.send_to(&request, daemon).expect("send");
    }
    let mut buffer = [0; 1_024];
    let (length, from) = socket.recv_from(&mut buffer).expect("a datagram");
    let datagram = &buffer[..length];
    assert_eq!(datagram[..5], [0x01, 0xde, 0xad, 0xbe, 0xef]);
    assert!(2 * length <= 3 * 37, "{length} bytes for a request of 37");
    let port = u32::from_be_bytes(datagram[5..9].try_into().expect("four bytes"));
    let path = String::from_utf8(datagram[9..].to_vec()).expect("a path");
    (from, port, path)
}

#[test]
fn nix_gets_what_an_old_peer_has() {
    let base = Item::signed("base", 100);
    let item = Item::unsigned("wanted", 700_000)
        .refer_to(&[&base])
        .sign(&trusted_key());
    let small = Item::signed("small", 20_000);
    let old = old_holder(&[&item, &small], Duration::ZERO);
    let host = Host::new().with(&Peer::setting(&[&old]));
    let daemon = host.start();
    for item in [&item, &small] {
        let narinfo = daemon.get(&format!("/{}.narinfo", item.hash()));
        assert_eq!(narinfo.status, 200);
        let url = narinfo.field("URL").expect("URL");
        assert_eq!(narinfo.text(), item.narinfo(&url));
        let nar = daemon.get(&format!("/{url}"));
        assert!(nar.complete && nar.body == item.nar, "{}", nar.status);
        // What the old one cannot: a length, and any range.
        assert_eq!(
            nar.header("content-length"),
            Some(item.nar.len().to_string().as_str())
        );
        let part = request(
            daemon.address(),
            "GET",
            &format!("/{url}"),
            &["Range: bytes=10000-19999"],
        );
        assert_eq!(
            (part.status, part.body.as_slice()),
            (206, &item.nar[10_000..20_000])
        );
    }
    assert_eq!(daemon.status()["peers"][0]["kind"], "old");
}

#[test]
fn our_request_is_what_an_old_peer_understands() {
    let item = Item::signed("wanted", 500);
    let old = old_holder(&[&item], Duration::ZERO);
    let host = Host::new().with(&Peer::setting(&[&old]));
    let daemon = host.start();
    assert_eq!(daemon.get(&format!("/{}.narinfo", item.hash())).status, 200);
    let heard = old.datagrams();
    let requests: Vec<_> = heard
        .iter()
        .filter(|datagram| datagram[0] == 0x00)
        .collect();
    assert_eq!(requests.len(), 1, "{heard:?}");
    assert_eq!(
        (requests[0].len(), &requests[0][5..]),
        (37, item.hash().as_bytes())
    );
    // All else that is sent begins with a type that it does not know.
    assert!(
        heard.iter().all(|datagram| datagram[0] != 0x01),
        "{heard:?}"
    );
    let asked = old.asked();
    assert_eq!(asked[0].path, format!("/local/{}.narinfo", item.hash()));
    assert_eq!(asked[0].method, "GET");
}

#[test]
fn every_path_of_a_slow_old_peer_is_found() {
    let items: Vec<Item> = (0..40)
        .map(|at| Item::signed(&format!("item-{at}"), 200))
        .collect();
    let old = old_holder(&items.iter().collect::<Vec<_>>(), Duration::from_millis(15));
    let host = Host::new()
        .with(&Peer::setting(&[&old]))
        .with("discovery.timeout = \"300ms\"");
    let daemon = host.start();
    for item in &items {
        assert_eq!(
            daemon.get(&format!("/{}.narinfo", item.hash())).status,
            200,
            "{}",
            item.path()
        );
    }
}

#[test]
fn a_miss_beside_an_old_peer_costs_its_timeout_and_no_more() {
    let item = Item::signed("held", 500);
    let old = old_holder(&[&item], Duration::ZERO);
    let host = Host::new()
        .with("discovery.timeout = \"50ms\"")
        .with(&Peer::setting(&[&old]));
    let daemon = host.start();
    // Once it was heard, and the time in which sleepers wake up is over.
    assert_eq!(daemon.get(&format!("/{}.narinfo", item.hash())).status, 200);
    let miss =
        |at: usize| timed(|| assert_eq!(daemon.get(&format!("/{at:032}.narinfo")).status, 404)).1;
    miss(0);
    let slowest = (1..10).map(miss).max().expect("some");
    assert!(
        slowest >= Duration::from_millis(40),
        "it was given no time to answer: {slowest:?}"
    );
    assert!(
        slowest < ITS_TIMEOUT + Duration::from_millis(100),
        "{slowest:?}"
    );
}

#[test]
fn an_old_peer_gets_what_we_have() {
    let base = Item::signed("base", 100);
    let item = Item::unsigned("wanted", 300_000)
        .refer_to(&[&base])
        .sign(&trusted_key());
    let source = Item::source("source", 1_000).sign(&trusted_key());
    let host = Host::new().holding(&[&base, &item, &source]);
    let daemon = host.start();
    for item in [&item, &base, &source] {
        let (from, port, path) = old_ask(daemon.address(), &[&item.hash()]);
        assert_eq!(
            (from.port(), port),
            (daemon.address().port(), u32::from(daemon.address().port()))
        );
        assert_eq!(path, format!("local/{}.narinfo", item.hash()));
        let root = SocketAddr::new(from.ip(), u16::try_from(port).expect("a port"));
        let narinfo = get(root, &format!("/{path}"));
        assert_eq!(narinfo.status, 200);
        let fields = old_parse(&narinfo.text());
        assert_eq!(fields["StorePath"], item.path());
        assert_eq!(fields["NarHash"], format!("sha256:{}", item.info.nar_hash));
        assert_eq!(fields["NarSize"], item.nar.len().to_string());
        assert_eq!(fields["Compression"], "none");
        assert_eq!(fields["Sig"], item.info.signatures[0].to_string());
        let names: Vec<_> = narinfo
            .text()
            .lines()
            .map(|line| line.split(':').next().unwrap_or_default().to_owned())
            .collect();
        let order = [
            "StorePath",
            "URL",
            "Compression",
            "NarHash",
            "NarSize",
            "References",
        ];
        assert_eq!(names[..6], order);
        // It resolves the URL against the root of the server.
        let nar = get(root, &format!("/{}", fields["URL"]));
        assert_eq!((nar.status, nar.body == item.nar), (200, true));
    }
}

#[test]
fn an_old_peer_that_remembers_our_old_urls_is_served() {
    let item = Item::signed("wanted", 300_000);
    let host = Host::new().holding(&[&item]);
    let daemon = host.start();
    assert!(daemon.get(&format!("/{}", item.old_nar_url())).body == item.nar);
}

#[test]
fn what_we_do_not_have_is_nothing_to_an_old_peer() {
    let item = Item::signed("held", 500);
    let host = Host::new().holding(&[&item]);
    let daemon = host.start();
    let (_, _, path) = old_ask(daemon.address(), &[&"0".repeat(32), &item.hash()]);
    assert_eq!(path, format!("local/{}.narinfo", item.hash()));
}

#[test]
fn old_and_new_peers_are_asked_side_by_side() {
    let (of_old, of_new, of_both) = (
        Item::signed("old", 500),
        Item::signed("new", 500),
        Item::signed("both", 500),
    );
    let old = old_holder(&[&of_old, &of_both], Duration::ZERO);
    let new = Peer::honest(&[&of_new, &of_both]);
    let host = Host::new().with(&Peer::setting(&[&old, &new]));
    let daemon = host.start();
    for item in [&of_old, &of_new, &of_both] {
        assert_eq!(
            daemon.get(&format!("/{}.narinfo", item.hash())).status,
            200,
            "{}",
            item.path()
        );
        assert!(
            daemon.get(&format!("/v3/nar/{}", item.nar_name())).body == item.nar,
            "{}",
            item.path()
        );
    }
}

#[test]
fn a_nar_fails_over_between_old_and_new() {
    let item = Item::signed("big", 4 << 20);
    let dying = {
        let item = item.clone();
        Peer::holding_all(move |asked, stream| {
            if asked.path.ends_with(".narinfo") {
                return support::peer::ok(stream, item.peer_narinfo().as_bytes());
            }
            let (head, bytes) = support::peer::part_of(asked, &item.nar);
            stream.write_all(head.as_bytes())?;
            stream.write_all(&bytes[..bytes.len() / 3])?;
            Ok(Then::Close)
        })
    };
    let old = old_holder(&[&item], Duration::from_millis(30));
    let host = Host::new().with(&Peer::setting(&[&dying, &old]));
    let daemon = host.start();
    let nar = daemon.get(&format!("/v3/nar/{}", item.nar_name()));
    assert!(
        nar.complete && nar.body == item.nar,
        "{} bytes",
        nar.body.len()
    );
}
