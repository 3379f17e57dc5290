//! Every route answers as it is specified, to whom it is for and to nobody else.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::net::SocketAddr;

use sha2::{Digest, Sha256};

use support::{
    daemon::Daemon,
    eventually,
    host::Host,
    http::{Answer, Connection, get, request},
    item::{Item, Tree},
    own_lan_address,
    peer::{self, Peer},
    skip,
};

const NOBODY_HAS: &str = "00000000000000000000000000000000";

/// A machine that holds one path, beside a peer that holds another.
struct Pair {
    ours: Item,
    theirs: Item,
    peer: Peer,
    daemon: Daemon,
    host: Host,
}

impl Pair {
    fn new() -> Self {
        let (ours, theirs) = (
            Item::signed("ours", 100_000),
            Item::signed("theirs", 700_000),
        );
        let peer = Peer::honest(&[&theirs]);
        let host = Host::new().holding(&[&ours]).with(&Peer::setting(&[&peer]));
        let daemon = host.start();
        Self {
            ours,
            theirs,
            peer,
            daemon,
            host,
        }
    }

    fn at(&self) -> SocketAddr {
        self.daemon.address()
    }
}

#[test]
fn nix_cache_info_says_where_the_store_is() {
    let host = Host::new();
    let daemon = host.start();
    for path in ["/nix-cache-info", "/local/nix-cache-info"] {
        let answer = daemon.get(path);
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(
            answer.text(),
            "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 20\n"
        );
    }
    let daemon = Host::new().with("priority = 5").start();
    assert!(
        daemon
            .get("/nix-cache-info")
            .text()
            .contains("\nPriority: 5\n")
    );
}

#[test]
fn local_is_a_complete_binary_cache() {
    let base = Item::signed("base", 10);
    let item = Item::unsigned("item", 5_000)
        .refer_to(&[&base])
        .sign(&support::item::trusted_key());
    let host = Host::new().holding(&[&base, &item]);
    let daemon = host.start();
    let narinfo = daemon.get(&format!("/local/{}.narinfo", item.hash()));
    assert_eq!(narinfo.status, 200);
    assert_eq!(narinfo.text(), item.peer_narinfo());
    assert_eq!(
        narinfo.field("References").as_deref(),
        Some(base.info.path.basename())
    );
    // Old peers resolve the URL against the root, Nix against the directory of the narinfo.
    let url = narinfo.field("URL").expect("URL");
    for root in ["/", "/local/"] {
        let nar = daemon.get(&format!("{root}{url}"));
        assert_eq!(
            (nar.status, nar.body == item.nar),
            (200, true),
            "{root}{url}"
        );
    }
    let absent = daemon.get(&format!("/local/{NOBODY_HAS}.narinfo"));
    assert_eq!((absent.status, absent.text().as_str()), (404, "Not Found"));
}

#[test]
fn a_path_that_is_one_file_or_a_link_is_served_too() {
    let items = [
        Item::new("file", Tree::File(b"content".to_vec())),
        Item::new("program", Tree::Program(b"#!/bin/sh\n".to_vec())),
        Item::new("link", Tree::Link("/nix/store/elsewhere")),
    ]
    .map(|item| item.sign(&support::item::trusted_key()));
    let host = Host::new().holding(&items.iter().collect::<Vec<_>>());
    let daemon = host.start();
    for item in &items {
        assert_eq!(
            daemon.get(&format!("/nar/{}", item.nar_name())).body,
            item.nar,
            "{}",
            item.path()
        );
    }
}

/// What Nix needs of the head of a NAR to go on after a cut, and peers to fail over.
fn assert_nar_head(answer: &Answer, length: usize) {
    assert_eq!(
        answer.header("content-length"),
        Some(length.to_string().as_str())
    );
    assert_eq!(answer.header("accept-ranges"), Some("bytes"));
    for absent in ["content-encoding", "transfer-encoding"] {
        assert_eq!(answer.header(absent), None, "{absent}");
    }
}

#[test]
fn a_nar_has_length_and_ranges_and_no_encoding_and_names_its_holder() {
    let pair = Pair::new();
    let holder = pair.peer.http().to_string();
    for (path, item, from) in [
        (format!("/nar/{}", pair.ours.nar_name()), &pair.ours, "self"),
        (
            format!("/local/nar/{}", pair.ours.nar_name()),
            &pair.ours,
            "self",
        ),
        (
            format!("/v3/nar/{}", pair.ours.nar_name()),
            &pair.ours,
            "self",
        ),
        (
            format!("/v3/nar/{}", pair.theirs.nar_name()),
            &pair.theirs,
            holder.as_str(),
        ),
    ] {
        // Nix asks for encodings, and must not get one.
        let answer = request(
            pair.at(),
            "GET",
            &path,
            &["Accept-Encoding: zstd, br, gzip, deflate"],
        );
        assert_eq!(answer.status, 200, "{path}");
        assert_nar_head(&answer, item.nar.len());
        assert!(answer.complete && answer.body == item.nar, "{path}");
        if path.starts_with("/v3/") {
            assert_eq!(answer.header("x-peerix-peer"), Some(from), "{path}");
        }
    }
}

#[test]
fn any_range_is_the_same_bytes_of_the_nar() {
    let pair = Pair::new();
    for (path, item) in [
        (format!("/nar/{}", pair.ours.nar_name()), &pair.ours),
        (format!("/v3/nar/{}", pair.ours.nar_name()), &pair.ours),
        (format!("/v3/nar/{}", pair.theirs.nar_name()), &pair.theirs),
    ] {
        let nar = &item.nar;
        let size = nar.len();
        for (range, bytes) in [
            ("bytes=0-0".to_owned(), 0..1),
            ("bytes=0-".to_owned(), 0..size),
            ("bytes=1-".to_owned(), 1..size),
            ("bytes=95-1234".to_owned(), 95..1235),
            (format!("bytes={}-", size - 1), size - 1..size),
            ("bytes=-1000".to_owned(), size - 1000..size),
            (format!("bytes=100-{}", size * 2), 100..size),
            (
                format!("bytes={}-{}", size / 2, size / 2 + 9),
                size / 2..size / 2 + 10,
            ),
        ] {
            let answer = request(pair.at(), "GET", &path, &[&format!("Range: {range}")]);
            let whole = bytes == (0..size);
            assert!(
                answer.status == 206 || (whole && answer.status == 200),
                "{path} {range}: {}",
                answer.status
            );
            assert_nar_head(&answer, bytes.len());
            assert!(answer.body == nar[bytes.clone()], "{path} {range}");
            if answer.status == 206 {
                let expected = format!("bytes {}-{}/{size}", bytes.start, bytes.end - 1);
                assert_eq!(answer.header("content-range"), Some(expected.as_str()));
            }
        }
        for range in [
            "bytes=5-2",
            "lines=1-2",
            "bytes=0-1,5-6",
            "bytes=",
            "bytes=x-y",
            "nonsense",
        ] {
            let answer = request(pair.at(), "GET", &path, &[&format!("Range: {range}")]);
            assert_eq!(
                (answer.status, answer.body == *nar),
                (200, true),
                "{path} {range}"
            );
        }
        for range in [
            format!("bytes={size}-"),
            format!("bytes={}-{}", size + 5, size + 9),
            "bytes=-0".to_owned(),
        ] {
            let answer = request(pair.at(), "GET", &path, &[&format!("Range: {range}")]);
            assert_eq!(answer.status, 416, "{path} {range}");
            assert_eq!(
                answer.header("content-range"),
                Some(format!("bytes */{size}").as_str())
            );
        }
    }
}

#[test]
fn a_range_is_conditional_on_if_range() {
    let pair = Pair::new();
    for (path, nar) in [
        (format!("/nar/{}", pair.ours.nar_name()), &pair.ours.nar),
        (
            format!("/v3/nar/{}", pair.theirs.nar_name()),
            &pair.theirs.nar,
        ),
    ] {
        let tag = get(pair.at(), &path)
            .header("etag")
            .expect("an ETag")
            .to_owned();
        let with = |if_range: &str| {
            request(
                pair.at(),
                "GET",
                &path,
                &["Range: bytes=10-19", &format!("If-Range: {if_range}")],
            )
        };
        let same = with(&tag);
        assert_eq!(
            (same.status, same.body.as_slice()),
            (206, &nar[10..20]),
            "{path}"
        );
        for other in ["\"another\"", "Wed, 21 Oct 2015 07:28:00 GMT", "W/\"weak\""] {
            let other = with(other);
            assert_eq!((other.status, other.body == *nar), (200, true), "{path}");
        }
    }
}

#[test]
fn head_answers_like_get_without_the_body() {
    let pair = Pair::new();
    for path in [
        "/nix-cache-info".to_owned(),
        format!("/local/{}.narinfo", pair.ours.hash()),
        format!("/nar/{}", pair.ours.nar_name()),
        pieces_route(&pair.ours),
        format!("/{}", pair.ours.old_nar_url()),
        format!("/{}.narinfo", pair.theirs.hash()),
        format!("/v3/nar/{}", pair.theirs.nar_name()),
        format!("/{NOBODY_HAS}.narinfo"),
        "/unknown".to_owned(),
        "/healthz".to_owned(),
    ] {
        let full = get(pair.at(), &path);
        let mut connection = Connection::open(pair.at()).expect("connection");
        let head = connection.ask("HEAD", &path, &[]).expect("head");
        let comparable = |answer: &Answer| {
            let mut headers = answer.headers.clone();
            headers.retain(|(name, _)| name != "date");
            (answer.status, headers)
        };
        assert_eq!(comparable(&head), comparable(&full), "{path}");
        // The next answer follows at once, so no body was sent.
        assert_eq!(
            connection.ask("GET", "/healthz", &[]).expect("next").status,
            200,
            "{path}"
        );
    }
}

#[test]
fn a_nar_of_another_hash_is_not_served_under_it() {
    let pair = Pair::new();
    let mixed = format!("{}-{}.nar", pair.ours.hash(), pair.theirs.info.nar_hash);
    for path in [
        format!("/nar/{mixed}"),
        format!("/local/nar/{mixed}"),
        format!("/v3/nar/{mixed}"),
    ] {
        assert_eq!(pair.daemon.get(&path).status, 404, "{path}");
    }
}

#[test]
fn the_old_form_of_nar_urls_still_works() {
    let pair = Pair::new();
    let url = pair.ours.old_nar_url();
    for url in [
        url.clone(),
        url.replace('=', "%3D"),
        url.replace('+', "%2B"),
    ] {
        let nar = pair.daemon.get(&format!("/{url}"));
        assert_eq!(
            (nar.status, nar.body == pair.ours.nar),
            (200, true),
            "{url}"
        );
    }
    // Of a path that is not here, outside of the store, or no base64 at all.
    for url in [
        pair.theirs.old_nar_url(),
        "local/nar/Li4vLi4vZXRjL3Bhc3N3ZA==.nar".to_owned(),
        "local/nar/L2V0Yy9wYXNzd2Q=.nar".to_owned(),
        "local/nar/%%%.nar".to_owned(),
    ] {
        assert_eq!(pair.daemon.get(&format!("/{url}")).status, 404, "{url}");
    }
}

#[test]
fn a_url_of_the_old_peerix_is_resolved_by_hash_and_its_host_never_contacted() {
    let pair = Pair::new();
    let trap = Peer::holding_all(|_, stream| peer::not_found(stream));
    let (ip, port) = (trap.http().ip(), trap.http().port());
    for (item, path) in [
        (&pair.theirs, pair.theirs.old_nar_url()),
        (&pair.ours, pair.ours.old_nar_url()),
        (&pair.theirs, "anything/at/all".to_owned()),
    ] {
        let answer = pair
            .daemon
            .get(&format!("/v2/remote/{ip}/{port}/{}/{path}", item.hash()));
        assert_eq!(
            (answer.status, answer.body == item.nar),
            (200, true),
            "{path}"
        );
    }
    let unknown = pair.daemon.get(&format!(
        "/v2/remote/{ip}/{port}/{NOBODY_HAS}/local/nar/x.nar"
    ));
    assert_eq!(unknown.status, 404);
    assert!(trap.asked().is_empty(), "{:?}", trap.asked());
    assert!(trap.datagrams().is_empty());
}

#[test]
fn the_gateway_prefers_the_lan_and_then_has_our_own() {
    let item = Item::signed("everywhere", 1_000);
    let peer = Peer::honest(&[&item]);
    let host = Host::new().holding(&[&item]);
    let alone = host.start();
    let path = format!("/{}.narinfo", item.hash());
    assert_eq!(alone.get(&path).status, 200);
    assert_eq!(
        alone
            .get(&format!("/v3/nar/{}", item.nar_name()))
            .header("x-peerix-peer"),
        Some("self")
    );

    let host = host.with(&Peer::setting(&[&peer]));
    let daemon = host.start();
    let narinfo = daemon.get(&path);
    assert_eq!(narinfo.status, 200);
    assert_eq!(
        narinfo.text(),
        item.narinfo(&format!("v3/nar/{}", item.nar_name()))
    );
    let nar = daemon.get(&format!("/v3/nar/{}", item.nar_name()));
    assert_eq!(
        nar.header("x-peerix-peer"),
        Some(peer.http().to_string().as_str())
    );
}

#[test]
fn the_nar_url_is_stateless() {
    let pair = Pair::new();
    let path = format!("/v3/nar/{}", pair.theirs.nar_name());
    // No narinfo was asked for before, and none is after a restart.
    assert_eq!(pair.daemon.get(&path).body, pair.theirs.nar);
    let again = pair.host.start();
    assert_eq!(again.get(&path).body, pair.theirs.nar);
}

#[test]
fn unknown_routes_are_404_and_errors_tell_nothing() {
    let mut pair = Pair::new();
    let secret = pair.host.dir().to_string_lossy().into_owned();
    for path in [
        "/",
        "/index.html",
        "/local",
        "/local/",
        "/nar/",
        "/nar/x.nar",
        "/v3/nar/",
        "/v3/nar/x-y.nar",
        "/v2/remote/",
        "/v2/remote/a/b/c/d",
        "/v1/x",
        "/local/../nix-cache-info",
        "//nix-cache-info",
        "/nix-cache-info/",
        "/NIX-CACHE-INFO",
        "/local/nar/.nar",
        "/%6eix-cache-info",
        "/status/x",
        "/log/x",
        "/../../etc/passwd",
    ] {
        let answer = get(pair.at(), path);
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (404, "Not Found"),
            "{path}"
        );
        let told = format!("{:?} {}", answer.headers, answer.text());
        assert!(!told.contains(&secret), "{path}: {told}");
    }
    pair.daemon.assert_well();
}

#[test]
fn a_query_does_not_matter() {
    let pair = Pair::new();
    for path in [
        "/nix-cache-info?x=1".to_owned(),
        format!("/nar/{}?hash=abc", pair.ours.nar_name()),
    ] {
        assert_eq!(get(pair.at(), &path).status, 200, "{path}");
    }
}

#[test]
fn other_methods_change_nothing() {
    let mut pair = Pair::new();
    for method in [
        "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND",
    ] {
        for path in [
            "/nix-cache-info".to_owned(),
            format!("/local/{}.narinfo", pair.ours.hash()),
            format!("/nar/{}", pair.ours.nar_name()),
            format!("/v3/nar/{}", pair.theirs.nar_name()),
        ] {
            let answer = request(pair.at(), method, &path, &["Content-Length: 0"]);
            assert!(
                (400..500).contains(&answer.status),
                "{method} {path}: {}",
                answer.status
            );
        }
    }
    pair.daemon.assert_well();
}

#[test]
fn a_connection_serves_one_request_after_the_other() {
    let pair = Pair::new();
    let mut connection = Connection::open(pair.at()).expect("connection");
    for _ in 0..50 {
        let narinfo = connection
            .ask("GET", &format!("/{}.narinfo", pair.theirs.hash()), &[])
            .expect("narinfo");
        assert_eq!(narinfo.status, 200);
        let nar = connection
            .ask("GET", &format!("/nar/{}", pair.ours.nar_name()), &[])
            .expect("NAR");
        assert!(nar.body == pair.ours.nar);
    }
    // Also pipelined.
    let one = "GET /nix-cache-info HTTP/1.1\r\nHost: localhost\r\n\r\n";
    connection.send(one.repeat(10).as_bytes()).expect("send");
    for _ in 0..10 {
        assert_eq!(connection.answer(false).expect("answer").status, 200);
    }
}

#[test]
fn status_metrics_and_health_are_there_for_operators() {
    let pair = Pair::new();
    assert_eq!(
        get(pair.at(), &format!("/v3/nar/{}", pair.theirs.nar_name())).status,
        200
    );
    let status = pair.daemon.status();
    assert_eq!(status["state"], "ready", "{status:#}");
    assert_eq!(status["fetched"]["nars"], 1, "{status:#}");
    assert_eq!(
        status["peers"][0]["address"],
        pair.peer.udp().to_string(),
        "{status:#}"
    );
    let metrics = get(pair.at(), "/metrics").text();
    for line in ["peerix_ready 1", "peerix_fetched_nars_total 1", "# EOF"] {
        assert!(
            metrics.lines().any(|it| it == line),
            "{line} is missing:\n{metrics}"
        );
    }
    assert_eq!(get(pair.at(), "/healthz").status, 200);
}

/// Routes for this machine alone.
fn private_routes(item: &Item) -> Vec<String> {
    vec![
        format!("/{}.narinfo", item.hash()),
        "/junk.narinfo".to_owned(),
        format!("/v3/nar/{}", item.nar_name()),
        format!("/v2/remote/127.0.0.1/1/{}/x", item.hash()),
        "/v2/remote/junk".to_owned(),
        "/v3/junk".to_owned(),
        "/status".to_owned(),
        "/metrics".to_owned(),
        "/healthz".to_owned(),
    ]
}

/// Routes for the LAN.
fn public_routes(item: &Item) -> Vec<String> {
    vec![
        "/nix-cache-info".to_owned(),
        "/local/nix-cache-info".to_owned(),
        format!("/local/{}.narinfo", item.hash()),
        format!("/nar/{}", item.nar_name()),
        format!("/local/nar/{}", item.nar_name()),
        pieces_route(item),
        format!("/local{}", pieces_route(item)),
        format!("/{}", item.old_nar_url()),
    ]
}

#[test]
fn no_web_page_reaches_the_gateway() {
    let pair = Pair::new();
    for path in private_routes(&pair.theirs) {
        for header in [
            "Host: evil.example",
            "Host: 192.168.1.1:12304",
            "Host: 127.0.0.1.evil.example",
            "Host: localhost.evil.example",
            "Origin: http://evil.example",
            "Origin: null",
            "Sec-Fetch-Site: cross-site",
            "Sec-Fetch-Site: same-origin",
        ] {
            let mut head = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n{header}\r\n");
            if !header.starts_with("Host") {
                head.push_str("Host: localhost\r\n");
            }
            head.push_str("\r\n");
            let answer = support::http::raw(pair.at(), head.as_bytes()).expect("answer");
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (403, "Forbidden"),
                "{path} with {header}"
            );
        }
    }
    for host in [
        "localhost",
        "LOCALHOST:1",
        "127.0.0.1",
        "127.0.0.1:12304",
        "[::1]",
        "[::1]:80",
        "127.9.9.9",
    ] {
        let head = format!(
            "GET /{}.narinfo HTTP/1.1\r\nConnection: close\r\nHost: {host}\r\nSec-Fetch-Site: none\r\n\r\n",
            pair.theirs.hash()
        );
        assert_eq!(
            support::http::raw(pair.at(), head.as_bytes())
                .expect("answer")
                .status,
            200,
            "{host}"
        );
    }
}

/// A machine that an own address of this one is a LAN client of; none where there is no such
/// address.
fn on_the_lan(settings: &str, items: &[&Item]) -> Option<(Host, Daemon, SocketAddr)> {
    let Some(ip) = own_lan_address() else {
        skip("this machine has no address but loopback, so nobody can play a LAN client");
        return None;
    };
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    let host = Host::new()
        .holding(items)
        .with(&format!(
            "allowed-networks = [\"{ip}/{bits}\", \"127.0.0.0/8\"]"
        ))
        .with(settings);
    let daemon = host.start();
    let address = SocketAddr::new(ip, daemon.address().port());
    Some((host, daemon, address))
}

#[test]
fn the_lan_gets_the_holdings_and_not_the_gateway() {
    let item = Item::signed("shared", 3_000);
    let Some((_host, mut daemon, lan)) = on_the_lan("", &[&item]) else {
        return;
    };
    for path in public_routes(&item) {
        assert_eq!(get(lan, &path).status, 200, "{path}");
    }
    for path in private_routes(&item) {
        let answer = get(lan, &path);
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (403, "Forbidden"),
            "{path}"
        );
    }
    // Claiming to be somebody else changes nothing.
    for header in [
        "X-Forwarded-For: 127.0.0.1",
        "X-Real-IP: 127.0.0.1",
        "Forwarded: for=127.0.0.1",
    ] {
        assert_eq!(
            request(lan, "GET", &format!("/{}.narinfo", item.hash()), &[header]).status,
            403,
            "{header}"
        );
    }
    daemon.assert_well();
}

#[test]
fn nobody_outside_the_allowed_networks_gets_anything() {
    let Some(ip) = own_lan_address() else {
        return skip("this machine has no address but loopback, so nobody can play a stranger");
    };
    let item = Item::signed("shared", 3_000);
    let host = Host::new()
        .holding(&[&item])
        .with("allowed-networks = [\"127.0.0.0/8\", \"::1/128\"]");
    let daemon = host.start();
    let lan = SocketAddr::new(ip, daemon.address().port());
    for path in public_routes(&item)
        .into_iter()
        .chain(private_routes(&item))
    {
        assert_eq!(get(lan, &path).status, 403, "{path}");
        assert_ne!(daemon.get(&path).status, 403, "{path}");
    }
}

#[test]
fn lan_connections_above_the_limit_of_one_address_are_closed_and_loopback_is_served() {
    let item = Item::signed("shared", 3_000);
    let Some((_host, mut daemon, lan)) = on_the_lan("limits.connections = 320", &[&item]) else {
        return;
    };
    // 320 less the 64 of loopback, and a quarter of that for each address; this is but one.
    let mut open: Vec<Connection> = (0..64)
        .map(|_| Connection::open(lan).expect("connection"))
        .collect();
    for connection in &mut open {
        assert_eq!(
            connection
                .ask("GET", "/nix-cache-info", &[])
                .expect("answer")
                .status,
            200
        );
    }
    for _ in 0..20 {
        let mut more = Connection::open(lan).expect("connection");
        assert!(
            more.ask("GET", "/nix-cache-info", &[]).is_err(),
            "a connection above the limit was served"
        );
    }
    assert_eq!(daemon.status()["served"]["shed"], 20);
    assert_eq!(daemon.get(&format!("/{}.narinfo", item.hash())).status, 200);
    drop(open.pop());
    eventually("room for one more", || {
        Connection::open(lan)
            .ok()?
            .ask("GET", "/nix-cache-info", &[])
            .ok()
    });
    daemon.assert_well();
}

/// Asks for a NAR and reads only the head of the answer.
fn begin(at: SocketAddr, item: &Item) -> (Answer, Connection) {
    let mut connection = Connection::open(at).expect("connection");
    let head = format!("GET /nar/{} HTTP/1.1\r\nHost: x\r\n\r\n", item.nar_name());
    connection.send(head.as_bytes()).expect("send");
    (connection.head().expect("head"), connection)
}

#[test]
fn one_address_has_at_most_32_nars_at_a_time_and_this_machine_any_number() {
    let item = Item::signed("large", 32 << 20);
    let Some((_host, daemon, lan)) = on_the_lan("limits.buffer = \"64MiB\"", &[&item]) else {
        return;
    };
    let mut under_way: Vec<_> = (0..32).map(|_| begin(lan, &item)).collect();
    assert!(under_way.iter().all(|(head, _)| head.status == 200));
    let (head, _) = begin(lan, &item);
    assert_eq!((head.status, head.header("retry-after")), (503, Some("1")));
    // The slots for others are there: 64 of the buffer are the LAN's.
    let own: Vec<_> = (0..40).map(|_| begin(daemon.address(), &item)).collect();
    assert!(own.iter().all(|(head, _)| head.status == 200));
    drop(under_way.pop());
    eventually("room for one more", || {
        (begin(lan, &item).0.status == 200).then_some(())
    });
}

#[test]
fn a_busy_holder_tells_the_lan_when_to_come_back_and_serves_its_owner() {
    let item = Item::signed("large", 32 << 20);
    // Room for two streams, one of them the owner's.
    let Some((_host, daemon, lan)) = on_the_lan("limits.buffer = \"1MiB\"", &[&item]) else {
        return;
    };
    let path = format!("/nar/{}", item.nar_name());
    let mut first = Connection::open(lan).expect("connection");
    first
        .send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
        .expect("send");
    assert_eq!(first.head().expect("head").status, 200);
    let second = get(lan, &path);
    assert_eq!(
        (second.status, second.text().as_str()),
        (503, "Service Unavailable")
    );
    assert!(
        second
            .header("retry-after")
            .is_some_and(|seconds| seconds.parse::<u32>().is_ok())
    );
    for other in [
        "/nix-cache-info".to_owned(),
        format!("/local/{}.narinfo", item.hash()),
    ] {
        assert_eq!(get(lan, &other).status, 200, "{other}");
    }
    assert!(daemon.get(&format!("/v3/nar/{}", item.nar_name())).body == item.nar);
    // When the first one has ended there is room again.
    assert!(first.body(item.nar.len()).expect("body") == item.nar);
    drop(first);
    eventually("room for one more", || {
        (get(lan, &path).status == 200).then_some(())
    });
}

#[test]
fn proxies_of_the_environment_are_ignored() {
    let item = Item::signed("direct", 2_000);
    let peer = Peer::honest(&[&item]);
    let trap = Peer::holding_all(|_, stream| peer::not_found(stream));
    let host = Host::new().with(&Peer::setting(&[&peer]));
    let mut launch = host.launch();
    for variable in [
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
        "HTTPS_PROXY",
    ] {
        launch = launch.env(variable, format!("http://{}", trap.http()));
    }
    let daemon = launch.start();
    assert_eq!(daemon.get(&format!("/{}.narinfo", item.hash())).status, 200);
    assert!(daemon.get(&format!("/v3/nar/{}", item.nar_name())).body == item.nar);
    assert!(trap.asked().is_empty(), "{:?}", trap.asked());
}

#[test]
fn what_the_store_gets_and_loses_shows_at_the_next_request() {
    let (early, late) = (Item::signed("early", 1_000), Item::signed("late", 1_000));
    let host = Host::new().holding(&[&early]);
    let daemon = host.start();
    let narinfo = |item: &Item| {
        daemon
            .get(&format!("/local/{}.narinfo", item.hash()))
            .status
    };
    assert_eq!((narinfo(&early), narinfo(&late)), (200, 404));
    host.add(&late);
    assert_eq!((narinfo(&early), narinfo(&late)), (200, 200));
    host.forget(&early);
    assert_eq!((narinfo(&early), narinfo(&late)), (404, 200));
    assert_eq!(
        daemon.get(&format!("/nar/{}", early.nar_name())).status,
        404
    );
}

#[test]
fn a_nar_whose_file_shrinks_on_the_way_is_cut_and_never_padded() {
    let item = Item::signed("shrinking", 64 << 20);
    let host = Host::new().holding(&[&item]);
    let mut daemon = host.start();
    let mut connection = Connection::open(daemon.address()).expect("connection");
    let head = format!(
        "GET /nar/{} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        item.nar_name()
    );
    connection.send(head.as_bytes()).expect("send");
    assert_eq!(connection.head().expect("head").status, 200);
    let first = connection.body(1 << 20).expect("first bytes");
    let data = host
        .store_dir()
        .join(item.info.path.basename())
        .join("data");
    host.truncate(&data, 32 << 20);
    let rest = connection.rest();
    let all = [first, rest].concat();
    assert!(
        all.len() < item.nar.len(),
        "{} bytes of {}",
        all.len(),
        item.nar.len()
    );
    assert!(
        item.nar.starts_with(&all),
        "other bytes than the NAR's were sent"
    );
    daemon.assert_well();
}

const PIECE_BYTES: usize = 4 << 20;

fn pieces_route(item: &Item) -> String {
    format!("/nar/{}-{}.pieces", item.hash(), item.info.nar_hash)
}

/// What docs/protocol.md says that the answer is.
fn piece_digests(nar: &[u8]) -> Vec<u8> {
    let digests = nar.chunks(PIECE_BYTES).map(Sha256::digest);
    digests.flat_map(|digest| digest.to_vec()).collect()
}

/// A signed path that is one file, whose NAR has exactly `nar_size` bytes.
fn item_of_nar_size(name: &str, nar_size: usize) -> Item {
    let framing = Tree::File(Vec::new()).nar().len();
    let content = support::item::noise(nar_size - framing, nar_size as u64);
    let item = Item::new(name, Tree::File(content)).sign(&support::item::trusted_key());
    assert_eq!(item.nar.len(), nar_size);
    item
}

#[test]
fn the_digests_of_a_nar_are_those_of_its_pieces_of_four_mebibytes() {
    let items = [
        item_of_nar_size("less", PIECE_BYTES - 8),
        item_of_nar_size("one", PIECE_BYTES),
        item_of_nar_size("more", PIECE_BYTES + 8),
        item_of_nar_size("three", 3 * PIECE_BYTES),
        Item::signed("tree", 2 * PIECE_BYTES),
        Item::signed("small", 10),
    ];
    let host = Host::new().holding(&items.iter().collect::<Vec<_>>());
    let mut daemon = host.start();
    for item in &items {
        let expected = piece_digests(&item.nar);
        for prefix in ["", "/local"] {
            let answer = daemon.get(&format!("{prefix}{}", pieces_route(item)));
            assert_eq!(answer.status, 200, "{}", item.path());
            assert!(
                answer.complete && answer.body == expected,
                "{}",
                item.path()
            );
            assert_eq!(
                answer.header("content-length"),
                Some(expected.len().to_string().as_str())
            );
            assert_eq!(
                answer.header("content-type"),
                Some("application/octet-stream")
            );
        }
    }
    let metrics = daemon.get("/metrics").text();
    let count = "peerix_answers_total{route=\"pieces\",status=\"200\"} 12";
    assert!(metrics.lines().any(|line| line == count), "{metrics}");
    daemon.assert_well();
}

#[test]
fn there_are_no_digests_of_what_is_not_shared_or_has_another_hash() {
    let pair = Pair::new();
    let private = Item::unsigned("private", 1_000);
    pair.host.add(&private);
    let (ours, theirs) = (&pair.ours, &pair.theirs);
    for path in [
        pieces_route(&private),
        pieces_route(theirs),
        format!("/nar/{}-{}.pieces", ours.hash(), theirs.info.nar_hash),
        format!("/nar/{NOBODY_HAS}-{}.pieces", ours.info.nar_hash),
        format!("/nar/{}.pieces", ours.hash()),
        format!("/v3{}", pieces_route(ours)),
    ] {
        let answer = pair.daemon.get(&path);
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (404, "Not Found"),
            "{path}"
        );
    }
}

/// Changes one byte of the path's file.
fn spoil(host: &Host, item: &Item, at: usize) {
    let path = host.store_dir().join(item.info.path.basename());
    let mut content = std::fs::read(&path).expect("file");
    content[at] ^= 1;
    std::fs::remove_file(&path).expect("removed");
    std::fs::write(&path, content).expect("file");
}

#[test]
fn digests_are_computed_once() {
    let item = item_of_nar_size("kept", 5 * PIECE_BYTES);
    let host = Host::new().holding(&[&item]);
    let daemon = host.start();
    let expected = piece_digests(&item.nar);
    assert!(daemon.get(&pieces_route(&item)).body == expected);
    // Whoever hashed the file now would find other bytes.
    spoil(&host, &item, 9 << 20);
    let again = daemon.get(&pieces_route(&item));
    assert!(again.complete && again.body == expected);
}

#[test]
fn the_last_digest_of_a_damaged_path_is_never_sent_and_the_damage_is_told_once() {
    let item = item_of_nar_size("damaged", 3 * PIECE_BYTES + 8);
    let host = Host::new().holding(&[&item]);
    spoil(&host, &item, 5 << 20);
    let as_it_is = {
        let framing = Tree::File(Vec::new()).nar().len();
        let mut nar = item.nar.clone();
        // Behind the content come 16 bytes of framing.
        nar[framing - 16 + (5 << 20)] ^= 1;
        piece_digests(&nar)
    };
    let mut daemon = host.start();
    for _ in 0..3 {
        let answer = daemon.get(&pieces_route(&item));
        assert_eq!(answer.status, 200);
        assert!(!answer.complete, "{} bytes", answer.body.len());
        // Those of what the holder would serve, but for the last.
        assert!(answer.body == as_it_is[..as_it_is.len() - 32]);
    }
    let line = daemon.log.line(&["the store is damaged", &item.hash()]);
    assert_eq!(
        daemon.log.text().matches("the store is damaged").count(),
        1,
        "{line}"
    );
    daemon.assert_well();
}

/// Puts a path into the store whose NAR takes much longer to hash than a test lasts.
fn add_endless(host: &Host, name: &str) -> Item {
    const SIZE: u64 = 1 << 40;
    let mut item = Item::new(name, Tree::File(Vec::new()));
    item.info.nar_size += SIZE;
    let item = item.sign(&support::item::trusted_key());
    host.add(&item);
    let path = host.store_dir().join(item.info.path.basename());
    host.truncate(&path, SIZE);
    item
}

#[test]
fn one_path_is_hashed_at_a_time_a_few_wait_and_more_are_told_to_come_back() {
    let host = Host::new();
    let endless: Vec<_> = (0..10)
        .map(|number| add_endless(&host, &format!("endless{number}")))
        .collect();
    let quick = Item::signed("quick", 100_000);
    host.add(&quick);
    let mut daemon = host.start();
    let ask = |item: &Item| {
        let mut connection = Connection::open(daemon.address()).expect("connection");
        let head = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", pieces_route(item));
        connection.send(head.as_bytes()).expect("send");
        let head = connection.head().expect("head");
        (head, connection)
    };
    // The first digest comes while the rest is far away.
    let (head, mut first) = ask(&endless[0]);
    assert_eq!(head.status, 200);
    let zeros = first.body(64).expect("two digests")[32..].to_vec();
    assert_eq!(zeros, Sha256::digest(vec![0; PIECE_BYTES]).to_vec());
    // Who asks for the same gets the same, and takes no place.
    let (_, mut joined) = ask(&endless[0]);
    assert_eq!(joined.body(64).expect("two digests")[32..], zeros);

    let mut waiting: Vec<_> = endless[1..9].iter().map(ask).collect();
    assert!(waiting.iter().all(|(head, _)| head.status == 200));
    let (head, _) = ask(&quick);
    assert_eq!(head.status, 503);
    assert!(head.header("retry-after").is_some());

    // The first goes, and the work for it goes on as long as somebody waits; then the next begins.
    drop(first);
    assert_eq!(joined.body(32).expect("a digest"), zeros);
    drop(joined);
    waiting[0].1.body(64).expect("the turn of the second");
    // Now there is a place; and when all others have gone, it is this one's turn.
    let (head, mut connection) = ask(&quick);
    assert_eq!(head.status, 200);
    drop(waiting);
    assert_eq!(
        connection.body(32).expect("the digest"),
        piece_digests(&quick.nar)
    );
    daemon.assert_well();
}

#[test]
fn nobody_fetches_a_path_in_parts_without_a_line() {
    let (item, other) = (
        Item::signed("parted", 1 << 20),
        Item::signed("other", 1 << 20),
    );
    let host = Host::new().holding(&[&item, &other]);
    let daemon = host.start();
    let size = item.nar.len();
    let part = |item: &Item, from: usize, to: usize| {
        let range = format!("Range: bytes={from}-{}", to - 1);
        let path = format!("/nar/{}", item.nar_name());
        assert_eq!(
            request(daemon.address(), "GET", &path, &[&range]).status,
            206
        );
    };
    let lines = |words: &str| daemon.log.text().matches(words).count();
    let of_item = format!("served a part of {}", item.path());
    part(&item, 0, 1_000);
    daemon.log.line(&[&of_item, ": 1000 bytes"]);
    // The last bytes alone are not the NAR.
    part(&item, size - 10, size);
    for at in 1..10 {
        part(&item, at * 1_000, (at + 1) * 1_000);
    }
    part(&other, 5, 6);
    daemon
        .log
        .line(&["served a part of", &other.path(), ": 1 bytes"]);
    assert_eq!(lines(&of_item), 1, "{}", daemon.log.text());
    part(&item, 10_000, size - 10);
    daemon.log.line(&[
        "served all parts of",
        &item.path(),
        &format!(": {size} bytes"),
    ]);
    // One that goes away early has got a part too.
    let (_, mut cut) = begin(daemon.address(), &item);
    cut.body(1_000).expect("some bytes");
    drop(cut);
    eventually("the line", || (lines(&of_item) == 2).then_some(()));
    assert_eq!(lines(&format!("served {}", item.path())), 0);
    assert!(daemon.get(&format!("/nar/{}", item.nar_name())).complete);
    daemon.log.line(&[
        &format!("served {} ", item.path()),
        &format!(": {size} bytes"),
    ]);
}
