//! Promise 2: Nix never receives a narinfo that is not for the asked path, or that it would reject;
//! bytes are hashed on the way, and a bad peer is named and banned.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    io::Write,
    net::{TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use peerix::protocol::PathState;

use support::{
    daemon::Daemon,
    host::Host,
    http::Answer,
    item::{self, Item, Tree, foreign_key, key, trusted_key},
    peer::{self, Asked, Peer, Then},
};

/// So that a lookup with nothing but refused answers ends soon.
const IMPATIENT: &str = "discovery.wake-timeout = \"150ms\"";

/// For the honest peer: late enough for a liar to be asked first, early enough to be heard.
const LATER: Duration = Duration::from_millis(60);

/// A peer that answers every narinfo request with these bytes.
fn peer_with_narinfo(narinfo: Vec<u8>) -> Peer {
    Peer::holding_all(move |asked, stream| {
        if asked.path.ends_with(".narinfo") {
            peer::ok(stream, &narinfo)
        } else {
            peer::not_found(stream)
        }
    })
}

/// An honest peer that is heard after the others.
fn honest_but_later(item: &Item) -> Peer {
    let items = vec![item.clone()];
    Peer::new(
        |datagram, port| {
            std::thread::sleep(LATER);
            peer::has_all(datagram, port)
        },
        move |asked, stream| peer::serve_honestly(&items, asked, stream),
    )
}

fn edit(text: &str, from: &str, to: &str) -> Vec<u8> {
    assert!(text.contains(from), "no {from:?} in {text}");
    text.replacen(from, to, 1).into_bytes()
}

/// The value of a line.
fn line<'a>(text: &'a str, name: &str) -> &'a str {
    let found = text.lines().find(|line| line.starts_with(name));
    found.unwrap_or_else(|| panic!("no {name} in {text}"))
}

fn flip(text: &str) -> String {
    let last = text.len() - 10;
    let other = if &text[last..=last] == "A" { "B" } else { "A" };
    format!("{}{other}{}", &text[..last], &text[last + 1..])
}

/// Narinfos for `item` that must not reach Nix, with what is wrong with each.
fn hostile_narinfos(item: &Item, trap: &str) -> Vec<(&'static str, Vec<u8>)> {
    let good = item.peer_narinfo();
    let other = Item::signed("other", 500);
    let unsigned = {
        let mut item = item.clone();
        item.info.signatures.clear();
        item
    };
    let resized = {
        let mut item = unsigned.clone();
        item.info.nar_size += 1;
        item
    };
    let url = line(&good, "URL: ");
    let signature = line(&good, "Sig: ");
    let with_url = |to: &str| edit(&good, url, &format!("URL: {to}"));
    let mut narinfos = vec![
        ("for another path", other.peer_narinfo().into_bytes()),
        (
            "with the hash of another NAR",
            edit(
                &good,
                line(&good, "NarHash"),
                line(&other.peer_narinfo(), "NarHash"),
            ),
        ),
        (
            "with another size",
            edit(&good, line(&good, "NarSize"), "NarSize: 1234567"),
        ),
        (
            "with a size that the signature is not for",
            resized.sign(&foreign_key()).peer_narinfo().into_bytes(),
        ),
        (
            "with a reference more",
            edit(
                &good,
                "References: ",
                &format!("References: {}", other.info.path.basename()),
            ),
        ),
        ("without a signature", unsigned.peer_narinfo().into_bytes()),
        (
            "with a broken signature",
            edit(&good, signature, &flip(signature)),
        ),
        (
            "signed by a foreign key",
            unsigned
                .clone()
                .sign(&foreign_key())
                .peer_narinfo()
                .into_bytes(),
        ),
        (
            "signed by a foreign key of the trusted name",
            unsigned
                .sign(&key("cache.test-1", 66))
                .peer_narinfo()
                .into_bytes(),
        ),
        (
            "with the signature of another path",
            edit(&good, signature, line(&other.peer_narinfo(), "Sig: ")),
        ),
        (
            "with a content address that is not its own",
            edit(
                &good,
                signature,
                &format!("{signature}\nCA: fixed:r:sha256:{}", other.info.nar_hash),
            ),
        ),
        (
            "compressed with xz",
            edit(&good, "Compression: none", "Compression: xz"),
        ),
        (
            "compressed with zstd",
            edit(&good, "Compression: none", "Compression: zstd"),
        ),
        (
            "without Compression, which means bzip2",
            edit(&good, "Compression: none\n", ""),
        ),
        (
            "without a StorePath",
            edit(&good, line(&good, "StorePath"), "X: y"),
        ),
        (
            "with two StorePaths",
            [
                good.as_bytes(),
                b"StorePath: ",
                other.path().as_bytes(),
                b"\n",
            ]
            .concat(),
        ),
        (
            "with two NarHashes",
            [good.as_bytes(), line(&good, "NarHash").as_bytes(), b"\n"].concat(),
        ),
        (
            "without a NarHash",
            edit(&good, line(&good, "NarHash"), "X: y"),
        ),
        ("without a URL", edit(&good, url, "X: y")),
        (
            "of size 0",
            edit(&good, line(&good, "NarSize"), "NarSize: 0"),
        ),
        (
            "of negative size",
            edit(&good, line(&good, "NarSize"), "NarSize: -1"),
        ),
        (
            "of a size beyond 64 bits",
            edit(
                &good,
                line(&good, "NarSize"),
                "NarSize: 99999999999999999999",
            ),
        ),
        (
            "of a store elsewhere",
            edit(&good, &item.path(), &item.path().replace("/nix/", "/gnu/")),
        ),
        ("of /etc/passwd", edit(&good, &item.path(), "/etc/passwd")),
        (
            "of a path with dots",
            edit(
                &good,
                &item.path(),
                &format!("/nix/store/../{}", item.info.path.basename()),
            ),
        ),
        (
            "with a line without a colon",
            edit(&good, "Compression", "nonsense\nCompression"),
        ),
        ("with a carriage return", edit(&good, "none\n", "none\r\n")),
        ("with a NUL", edit(&good, "none\n", "none\0\n")),
        (
            "that is not UTF-8",
            [good.as_bytes(), b"X: \xff\xfe\n"].concat(),
        ),
        ("that is empty", Vec::new()),
        (
            "that is a web page",
            b"<!doctype html><title>Log in to the WLAN</title>".to_vec(),
        ),
        ("that is cut", good.as_bytes()[..good.len() / 2].to_vec()),
        (
            "larger than limits.narinfo",
            [
                good.as_bytes(),
                "X: yyyyyyyyyyyyyyyyyyy\n".repeat(4_000).as_bytes(),
            ]
            .concat(),
        ),
    ];
    for to in [
        "../../etc/passwd",
        "nar/../../x",
        "/etc/passwd",
        "//evil.example/x",
        "%2e%2e/x",
        "nar/%2E%2E/x",
        "nar\\x",
        "",
        "..",
    ] {
        narinfos.push(("whose URL leaves the cache", with_url(to)));
    }
    for to in [
        format!("http://{trap}/x.nar"),
        format!("HTTP://{trap}/x.nar"),
        format!("//{trap}/x.nar"),
        "file:///etc/passwd".into(),
    ] {
        narinfos.push(("whose URL is elsewhere", with_url(&to)));
    }
    narinfos
}

#[test]
fn a_hostile_narinfo_never_reaches_nix() {
    let item = Item::signed("wanted", 20_000);
    let trap = Peer::holding_all(|_, stream| peer::not_found(stream));
    let path = format!("/{}.narinfo", item.hash());
    for (what, narinfo) in hostile_narinfos(&item, &trap.http().to_string()) {
        let liar = peer_with_narinfo(narinfo.clone());
        let host = Host::new().with(IMPATIENT).with(&Peer::setting(&[&liar]));
        let mut daemon = host.start();
        let answer = daemon.get(&path);
        assert_eq!(
            answer.status,
            404,
            "a narinfo {what} came through:\n{}",
            answer.text()
        );
        assert!(
            !liar.asked().is_empty(),
            "the peer with a narinfo {what} was not asked"
        );
        assert_eq!(
            daemon.get(&format!("/v3/nar/{}", item.nar_name())).status,
            404,
            "the NAR of a narinfo {what}"
        );
        daemon.assert_well();
    }
    assert!(trap.asked().is_empty(), "{:?}", trap.asked());
}

#[test]
fn beside_a_hostile_narinfo_the_honest_one_is_found() {
    let item = Item::signed("wanted", 20_000);
    let path = format!("/{}.narinfo", item.hash());
    for (what, narinfo) in hostile_narinfos(&item, "127.0.0.1:9") {
        let (liar, honest) = (peer_with_narinfo(narinfo), honest_but_later(&item));
        let host = Host::new().with(&Peer::setting(&[&liar, &honest]));
        let daemon = host.start();
        let answer = daemon.get(&path);
        assert_eq!(answer.status, 200, "beside a narinfo {what}");
        assert_eq!(
            answer.text(),
            item.narinfo(&format!("v3/nar/{}", item.nar_name())),
            "beside a narinfo {what}"
        );
        assert!(
            !liar.asked().is_empty(),
            "the peer with a narinfo {what} was not asked"
        );
    }
}

#[test]
fn a_nar_beyond_the_limit_is_refused_by_its_narinfo() {
    let item = Item::signed("large", 2 << 20);
    let peer = Peer::honest(&[&item]);
    let host = Host::new()
        .with(IMPATIENT)
        .with("limits.nar = \"1MiB\"")
        .with(&Peer::setting(&[&peer]));
    let daemon = host.start();
    assert_eq!(daemon.get(&format!("/{}.narinfo", item.hash())).status, 404);
    assert_eq!(
        daemon.get(&format!("/v3/nar/{}", item.nar_name())).status,
        404
    );
    let nars = peer
        .asked()
        .iter()
        .filter(|asked| asked.path.ends_with(".nar"))
        .count();
    assert_eq!(nars, 0, "its NAR was asked for");
}

#[test]
fn refusals_are_counted_by_reason() {
    let item = Item::unsigned("wanted", 500);
    let peer = Peer::honest(&[&item]);
    let host = Host::new().with(IMPATIENT).with(&Peer::setting(&[&peer]));
    let daemon = host.start();
    assert_eq!(daemon.get(&format!("/{}.narinfo", item.hash())).status, 404);
    assert_eq!(daemon.status()["fetched"]["refused"]["unsigned"], 1);
    assert!(
        daemon
            .get("/metrics")
            .text()
            .contains("peerix_refused_total{reason=\"unsigned\"} 1")
    );
}

#[test]
fn a_redirect_is_not_followed() {
    let item = Item::signed("wanted", 500);
    let trap = Peer::honest(&[&item]);
    let to = trap.http();
    let liar = Peer::holding_all(move |asked, stream| {
        let path = &asked.path;
        write!(
            stream,
            "HTTP/1.1 302 Found\r\nLocation: http://{to}{path}\r\nContent-Length: 0\r\n\r\n"
        )?;
        Ok(Then::KeepOpen)
    });
    let host = Host::new().with(IMPATIENT).with(&Peer::setting(&[&liar]));
    let daemon = host.start();
    assert_eq!(daemon.get(&format!("/{}.narinfo", item.hash())).status, 404);
    assert!(!liar.asked().is_empty());
    assert!(trap.asked().is_empty(), "{:?}", trap.asked());
}

#[test]
fn an_answer_with_a_foreign_path_or_port_leads_nowhere() {
    let item = Item::signed("wanted", 500);
    let hash = item.hash();
    let response = |id: &[u8], port: u32, path: &str| {
        [&[0x01], id, &port.to_be_bytes(), path.as_bytes()].concat()
    };
    type Forge = Box<dyn Fn(&[u8], u16) -> Vec<u8> + Send + Sync>;
    let to = |port: Option<u32>, path: String| -> Forge {
        Box::new(move |id, own| response(id, port.unwrap_or(own.into()), &path))
    };
    let right = format!("local/{hash}.narinfo");
    let other = Item::signed("other", 500).hash();
    for (what, forge) in [
        ("another hash", to(None, format!("local/{other}.narinfo"))),
        (
            "another directory",
            to(None, format!("remote/{hash}.narinfo")),
        ),
        ("dots", to(None, format!("local/../local/{hash}.narinfo"))),
        ("a slash in front", to(None, format!("/{right}"))),
        ("a host", to(None, format!("http://127.0.0.1:1/{right}"))),
        ("a host as user", to(None, format!("@127.0.0.1/{right}"))),
        ("a query", to(None, format!("{right}?x"))),
        ("a tail", to(None, format!("{right}\r\nX: y"))),
        ("no path", to(None, String::new())),
        ("port 0", to(Some(0), right.clone())),
        ("a port beyond 65535", to(Some(70_000), right.clone())),
        (
            "a port beyond 65535 that wraps",
            to(Some(65_536 + 80), right.clone()),
        ),
        (
            "another id",
            Box::new(|id, own| peer::present(&[id[0] ^ 1, id[1], id[2], id[3]], own, "wanted")),
        ),
    ] {
        let items = vec![item.clone()];
        let liar = Peer::new(
            move |datagram, port| {
                let mut answers = peer::has(datagram, port, |_| false);
                if datagram[0] == 0 || !peer::asked_hashes(datagram).is_empty() {
                    answers.insert(0, forge(&datagram[1..5], port));
                }
                answers
            },
            move |asked, stream| peer::serve_honestly(&items, asked, stream),
        );
        let host = Host::new().with(IMPATIENT).with(&Peer::setting(&[&liar]));
        let mut daemon = host.start();
        assert_eq!(
            daemon.get(&format!("/{hash}.narinfo")).status,
            404,
            "{what}"
        );
        assert!(liar.asked().is_empty(), "{what}: {:?}", liar.asked());
        daemon.assert_well();
    }
}

#[test]
fn answers_to_ids_that_were_never_asked_count_for_nothing() {
    let item = Item::signed("wanted", 500);
    let liar = Peer::honest(&[&item]);
    let host = Host::new().with(IMPATIENT);
    let daemon = host.start();
    let socket = UdpSocket::bind("127.0.0.1:0").expect("UDP");
    for id in 0..2_000_u32 {
        let forged = peer::present(&id.to_be_bytes(), liar.http().port(), &item.hash());
        socket.send_to(&forged, daemon.address()).expect("send");
        socket
            .send_to(
                &peer::answer(id, 7, liar.http().port(), &[PathState::Present]),
                daemon.address(),
            )
            .expect("send");
    }
    assert_eq!(daemon.get(&format!("/{}.narinfo", item.hash())).status, 404);
    assert!(liar.asked().is_empty(), "{:?}", liar.asked());
    assert_eq!(daemon.status()["peers"].as_array().map(Vec::len), Some(0));
}

/// What a liar does with the bytes of a NAR.
type Lie = fn(&Asked, &[u8], &mut TcpStream) -> std::io::Result<Then>;

fn send(stream: &mut TcpStream, length: Option<usize>, bytes: &[u8]) -> std::io::Result<Then> {
    match length {
        Some(length) => write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
        )?,
        None => stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?,
    }
    stream.write_all(bytes)?;
    Ok(Then::Close)
}

fn flipped(nar: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = nar.to_vec();
    bytes[at] ^= 1;
    bytes
}

/// Answers to a NAR request that are all of the right length, and wrong.
const LIES: [(&str, Lie); 4] = [
    ("the first byte is wrong", |_, nar, stream| {
        send(stream, Some(nar.len()), &flipped(nar, 0))
    }),
    ("a byte in the middle is wrong", |_, nar, stream| {
        send(stream, Some(nar.len()), &flipped(nar, nar.len() / 2))
    }),
    ("the last byte is wrong", |_, nar, stream| {
        send(stream, Some(nar.len()), &flipped(nar, nar.len() - 1))
    }),
    ("all are zeros, without a length", |_, nar, stream| {
        send(stream, None, &vec![0; nar.len()])
    }),
];

/// Answers that cannot be the NAR by their form; nobody is called a liar for them.
const MISFITS: [(&str, Lie); 9] = [
    ("it is short", |_, nar, stream| {
        send(stream, Some(nar.len() - 1), &nar[1..])
    }),
    ("it is cut", |_, nar, stream| {
        send(stream, Some(nar.len()), &nar[..nar.len() - 9])
    }),
    ("it is cut, without a length", |_, nar, stream| {
        send(stream, None, &nar[..nar.len() - 9])
    }),
    ("it is long", |_, nar, stream| {
        send(stream, Some(nar.len() + 1), &[nar, b"x"].concat())
    }),
    ("it is long, without a length", |_, nar, stream| {
        send(stream, None, &[nar, b"x"].concat())
    }),
    ("it is endless", |_, _, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        loop {
            stream.write_all(&[b'x'; 65_536])?;
        }
    }),
    ("it is encoded", |_, nar, stream| {
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
            nar.len()
        )?;
        stream.write_all(nar)?;
        Ok(Then::Close)
    }),
    ("it is a range that nobody asked for", |_, nar, stream| {
        let size = nar.len();
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-{}/{size}\r\nContent-Length: {size}\r\n\r\n",
            size - 1
        )?;
        stream.write_all(nar)?;
        Ok(Then::Close)
    }),
    ("it is an error", |_, _, stream| {
        stream.write_all(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")?;
        Ok(Then::Close)
    }),
];

/// A peer with the right narinfo and the wrong NAR.
fn liar(item: &Item, lie: Lie) -> Peer {
    let item = item.clone();
    Peer::holding_all(move |asked, stream| {
        if asked.path.ends_with(".narinfo") {
            peer::ok(stream, item.peer_narinfo().as_bytes())
        } else {
            lie(asked, &item.nar, stream)
        }
    })
}

fn nar(daemon: &Daemon, item: &Item) -> Answer {
    daemon.get(&format!("/v3/nar/{}", item.nar_name()))
}

/// Nix can tell that it has not got the NAR.
fn assert_not_taken(answer: &Answer, what: &str) {
    let failed = answer.status == 404 || (answer.status == 200 && !answer.complete);
    assert!(
        failed,
        "{what}: {} with {} bytes, complete: {}",
        answer.status,
        answer.body.len(),
        answer.complete
    );
}

#[test]
fn a_small_nar_that_is_wrong_costs_nix_nothing() {
    let item = Item::signed("small", 100_000);
    for (what, lie) in LIES.into_iter().chain(MISFITS) {
        let (liar, honest) = (liar(&item, lie), honest_but_later(&item));
        let host = Host::new().with(&Peer::setting(&[&liar, &honest]));
        let daemon = host.start();
        let answer = nar(&daemon, &item);
        assert_eq!((answer.status, answer.complete), (200, true), "{what}");
        assert!(answer.body == item.nar, "wrong bytes came through: {what}");
        assert!(
            liar.asked()
                .iter()
                .any(|asked| asked.path.ends_with(".nar")),
            "the liar was not asked: {what}"
        );
    }
}

#[test]
fn a_small_nar_that_only_a_liar_has_is_404() {
    let item = Item::signed("small", 100_000);
    for (what, lie) in LIES.into_iter().chain(MISFITS) {
        let liar = liar(&item, lie);
        let host = Host::new().with(IMPATIENT).with(&Peer::setting(&[&liar]));
        let mut daemon = host.start();
        let answer = nar(&daemon, &item);
        assert_eq!(answer.status, 404, "{what}: {} bytes", answer.body.len());
        daemon.assert_well();
    }
}

#[test]
fn a_big_nar_that_is_wrong_is_never_complete() {
    let item = Item::signed("big", 3 << 20);
    for (what, lie) in LIES.into_iter().chain(MISFITS) {
        let liar = liar(&item, lie);
        let host = Host::new().with(IMPATIENT).with(&Peer::setting(&[&liar]));
        let mut daemon = host.start();
        assert_not_taken(&nar(&daemon, &item), what);
        daemon.assert_well();
    }
}

#[test]
fn after_a_big_lie_the_next_try_is_right() {
    // Too large to be checked before its first byte.
    let item = Item::signed("big", 9 << 20);
    for (what, lie) in LIES {
        let (liar, honest) = (liar(&item, lie), honest_but_later(&item));
        let host = Host::new().with(&Peer::setting(&[&liar, &honest]));
        let daemon = host.start();
        assert_not_taken(&nar(&daemon, &item), what);
        let again = nar(&daemon, &item);
        assert_eq!((again.status, again.complete), (200, true), "{what}");
        assert!(again.body == item.nar, "{what}");
        assert_eq!(
            again.header("x-peerix-peer"),
            Some(honest.http().to_string().as_str())
        );
    }
}

#[test]
fn a_liar_is_named_and_banned() {
    for size in [100_000, 3 << 20] {
        for (what, lie) in LIES {
            let item = Item::signed("wanted", size);
            let liar = liar(&item, lie);
            let host = Host::new().with(IMPATIENT).with(&Peer::setting(&[&liar]));
            let daemon = host.start();
            assert_not_taken(&nar(&daemon, &item), what);
            let address = liar.http().to_string();
            daemon
                .log
                .line(&["warn", &address, &item.path(), "wrong bytes"]);
            let status = daemon.status();
            assert_eq!(status["banned"][0]["peer"], address, "{what}: {status:#}");
            assert_eq!(status["fetched"]["corrupt"], 1, "{what}");

            let before = liar.asked().len();
            for path in [
                format!("/{}.narinfo", item.hash()),
                format!("/v3/nar/{}", item.nar_name()),
            ] {
                assert_eq!(daemon.get(&path).status, 404, "{what}");
            }
            assert_eq!(
                liar.asked().len(),
                before,
                "a banned peer was asked: {what}"
            );
        }
    }
}

#[test]
fn of_two_peers_that_gave_a_part_each_the_liar_alone_is_banned() {
    let item = Item::signed("wanted", 3 << 20);
    // The first sends right bytes and dies; the second goes on with wrong ones.
    let first = liar(&item, |_, nar, stream| {
        send(stream, Some(nar.len()), &nar[..nar.len() / 2])
    });
    let second = {
        let item = item.clone();
        Peer::new(
            |datagram, port| {
                std::thread::sleep(LATER);
                peer::has_all(datagram, port)
            },
            move |asked, stream| {
                if asked.path.ends_with(".narinfo") {
                    return peer::ok(stream, item.peer_narinfo().as_bytes());
                }
                let (head, bytes) = peer::part_of(asked, &item.nar);
                stream.write_all(head.as_bytes())?;
                stream.write_all(&flipped(bytes, bytes.len() - 1))?;
                Ok(Then::Close)
            },
        )
    };
    let host = Host::new().with(&Peer::setting(&[&first, &second]));
    let daemon = host.start();
    assert_not_taken(&nar(&daemon, &item), "half a lie");
    let banned = &daemon.status()["banned"];
    assert_eq!(banned.as_array().map(Vec::len), Some(1), "{banned}");
    assert_eq!(banned[0]["peer"], second.http().to_string());
}

#[test]
fn an_unsigned_source_is_taken_because_its_path_vouches_for_it() {
    let item = Item::source("source", 5_000);
    let peer = Peer::honest(&[&item]);
    let host = Host::new().with(&Peer::setting(&[&peer]));
    let daemon = host.start();
    let narinfo = daemon.get(&format!("/{}.narinfo", item.hash()));
    assert_eq!(narinfo.status, 200);
    assert!(
        narinfo
            .field("CA")
            .is_some_and(|ca| ca.starts_with("fixed:r:sha256:"))
    );
    assert!(nar(&daemon, &item).body == item.nar);
}

#[test]
fn an_unsigned_narinfo_whose_content_address_does_not_fit_is_refused() {
    let item = Item::source("source", 5_000);
    let other = Item::source("source", 6_000);
    let good = item.peer_narinfo();
    let ca = line(&good, "CA: ");
    for (what, narinfo) in [
        (
            "the digest of another NAR",
            edit(&good, ca, line(&other.peer_narinfo(), "CA: ")),
        ),
        (
            "another NAR",
            edit(
                &good,
                line(&good, "NarHash"),
                line(&other.peer_narinfo(), "NarHash"),
            ),
        ),
        (
            "another NAR and its digest",
            good.replace(
                &item.info.nar_hash.to_string(),
                &other.info.nar_hash.to_string(),
            )
            .into_bytes(),
        ),
        (
            "md5",
            edit(&good, ca, "CA: fixed:r:md5:3kk2jbm1p9a4zhhp1y45xdvf8c"),
        ),
        (
            "sha1",
            edit(
                &good,
                ca,
                "CA: fixed:r:sha1:kpcd173cq987hw957sx6m0868wv3x6d9",
            ),
        ),
        (
            "git",
            edit(
                &good,
                ca,
                "CA: fixed:git:sha1:kpcd173cq987hw957sx6m0868wv3x6d9",
            ),
        ),
        (
            "flat instead of recursive",
            edit(&good, "CA: fixed:r:", "CA: fixed:"),
        ),
        ("text", edit(&good, "CA: fixed:r:", "CA: text:")),
        ("nonsense", edit(&good, ca, "CA: nonsense")),
        ("no content address", edit(&good, &format!("{ca}\n"), "")),
    ] {
        let liar = peer_with_narinfo(narinfo);
        let host = Host::new().with(IMPATIENT).with(&Peer::setting(&[&liar]));
        let daemon = host.start();
        assert_eq!(
            daemon.get(&format!("/{}.narinfo", item.hash())).status,
            404,
            "{what}"
        );
        assert!(!liar.asked().is_empty(), "{what}");
    }
}

#[test]
fn unsigned_text_and_flat_files_are_checked_before_their_first_byte() {
    let content = item::noise(2 << 20, 5);
    for item in [
        Item::text("script.sh", b"echo hello\n"),
        Item::text("large.txt", &content),
        Item::flat("src.tar", &content),
    ] {
        let honest = Peer::honest(&[&item]);
        let host = Host::new().with(&Peer::setting(&[&honest]));
        let daemon = host.start();
        assert_eq!(
            daemon.get(&format!("/{}.narinfo", item.hash())).status,
            200,
            "{}",
            item.path()
        );
        assert!(nar(&daemon, &item).body == item.nar, "{}", item.path());

        // The path and its digest are right; NarHash is that of a NAR of the liar's choice.
        let evil = Tree::File(item::noise(item.nar.len() / 2, 6));
        let mut forged = Item::new("forged", evil);
        forged.info.path = item.info.path.clone();
        forged.info.ca = item.info.ca.clone();
        let liar = Peer::honest(&[&forged]);
        let host = Host::new().with(IMPATIENT).with(&Peer::setting(&[&liar]));
        let daemon = host.start();
        daemon.get(&format!("/{}.narinfo", item.hash()));
        let answer = nar(&daemon, &forged);
        assert_eq!(
            (answer.status, answer.body.len()),
            (404, "Not Found".len()),
            "{}",
            item.path()
        );
        assert_eq!(
            daemon.status()["banned"][0]["peer"],
            liar.http().to_string()
        );
    }
}

#[test]
fn an_unsigned_flat_file_too_large_to_be_checked_first_is_refused() {
    let item = Item::flat("large.tar", &item::noise(9 << 20, 5));
    let peer = Peer::honest(&[&item]);
    let host = Host::new().with(IMPATIENT).with(&Peer::setting(&[&peer]));
    let daemon = host.start();
    assert_eq!(daemon.get(&format!("/{}.narinfo", item.hash())).status, 404);
    // Signed it is like any other.
    let item = item.sign(&trusted_key());
    let peer = Peer::honest(&[&item]);
    let host = Host::new().with(&Peer::setting(&[&peer]));
    let daemon = host.start();
    assert!(nar(&daemon, &item).body == item.nar);
}

#[test]
fn without_require_sigs_nobody_signs_and_bytes_are_hashed_all_the_same() {
    let item = Item::unsigned("wanted", 3 << 20);
    let honest = Peer::honest(&[&item]);
    let liar = liar(&item, LIES[1].1);
    for (peer, is_honest) in [(&honest, true), (&liar, false)] {
        let host = Host::new().with(IMPATIENT).with(&Peer::setting(&[peer]));
        std::fs::write(host.nix_conf(), "require-sigs = false\n").expect("nix.conf");
        let daemon = host.start();
        assert_eq!(daemon.get(&format!("/{}.narinfo", item.hash())).status, 200);
        let answer = nar(&daemon, &item);
        if is_honest {
            assert!(answer.complete && answer.body == item.nar);
        } else {
            assert_not_taken(&answer, "a lie");
        }
    }
}

#[test]
fn keys_of_nix_conf_of_its_includes_and_of_our_own_settings_count() {
    let by = |seed: u8| Item::unsigned("wanted", 500).sign(&key(&format!("key-{seed}"), seed));
    let public = |seed: u8| key(&format!("key-{seed}"), seed).public_key().to_string();
    let mut host = Host::new()
        .with(IMPATIENT)
        .with(&format!("trust.public-keys = [{:?}]", public(11)));
    host.file(
        "more.conf",
        format!("extra-trusted-public-keys = {}\n", public(12)),
        0o644,
    );
    let main = format!(
        "trusted-public-keys = {}\ninclude more.conf\n!include not-there.conf\n",
        public(13)
    );
    std::fs::write(host.nix_conf(), main).expect("nix.conf");
    for (seed, status) in [(11, 200), (12, 200), (13, 200), (14, 404)] {
        let item = by(seed);
        let peer = Peer::honest(&[&item]);
        host.set_peers(&[&peer]);
        let daemon = host.start();
        assert_eq!(
            daemon.get(&format!("/{}.narinfo", item.hash())).status,
            status,
            "key {seed}"
        );
    }
}

#[test]
fn a_changed_nix_conf_is_noticed_without_a_reload() {
    let item = Item::unsigned("wanted", 500).sign(&foreign_key());
    let peer = Peer::honest(&[&item]);
    let host = Host::new().with(IMPATIENT).with(&Peer::setting(&[&peer]));
    let daemon = host.start();
    let path = format!("/{}.narinfo", item.hash());
    assert_eq!(daemon.get(&path).status, 404);
    let trusted = format!("trusted-public-keys = {}\n", foreign_key().public_key());
    std::fs::write(host.nix_conf(), trusted).expect("nix.conf");
    support::eventually("the new key counts", || {
        (daemon.get(&path).status == 200).then_some(())
    });
}

#[test]
fn a_peer_that_answers_everything_cannot_use_up_memory() {
    // Endless bodies and heads for narinfos and NARs, many at a time.
    let item = Item::signed("wanted", 3 << 20);
    let count = Arc::new(AtomicUsize::new(0));
    let liar = Peer::holding_all({
        let count = Arc::clone(&count);
        move |_, stream| {
            count.fetch_add(1, SeqCst);
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            loop {
                stream.write_all(&[b'A'; 65_536])?;
            }
        }
    });
    let host = Host::new().with(IMPATIENT).with(&Peer::setting(&[&liar]));
    let mut daemon = host.start();
    let before = daemon.resident_kib();
    std::thread::scope(|scope| {
        for _ in 0..25 {
            scope.spawn(|| assert_eq!(nar(&daemon, &item).status, 404));
        }
    });
    assert!(count.load(SeqCst) > 0);
    let grown = daemon.resident_kib().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB");
    daemon.assert_well();
}
