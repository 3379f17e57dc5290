//! What a machine shares is told in a few bits a path, right and up to date; and what a peer sends
//! instead of a summary does no harm.

#[path = "fixtures/local_store.rs"]
#[expect(dead_code, reason = "each test uses its part")]
mod local_store;
#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    net::UdpSocket,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use peerix::{
    config::{Globs, SharePaths},
    format::{NarHash, PathInfo, StoreDir, StorePath, StorePathHash, TrustedKeys, base32},
    peer::{Client, PeerError, SummaryAnswer},
    protocol::{
        Datagram, Held, PeerAddr,
        summary::{Content, News, Stamp, Summary, key},
    },
    store::{LocalStore, SharePolicy, SummaryError},
};
use rusqlite::Connection;
use sha2::{Digest, Sha256};

use local_store::block_on;
use support::{
    daemon::Daemon,
    eventually,
    host::Host,
    http::{Answer, request},
    item::{self, Item},
    peer::{self, Asked, Peer, Then},
};

const WHO: Stamp = Stamp {
    instance: 1,
    rule: 2,
    generation: 0,
};

fn content(answer: &Answer) -> Content {
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("application/octet-stream")
    );
    assert_eq!(answer.header("cache-control"), Some("no-cache"));
    let length = answer.body.len().to_string();
    assert_eq!(answer.header("content-length"), Some(length.as_str()));
    let content = Content::parse(&answer.body).expect("a summary");
    let stamp = match &content {
        Content::Whole(summary) => summary.stamp(),
        Content::News(news) => news.stamp,
    };
    assert_eq!(answer.header("etag"), Some(stamp.etag().as_str()));
    content
}

fn whole(answer: &Answer) -> Summary {
    match content(answer) {
        Content::Whole(summary) => summary,
        Content::News(news) => panic!("{news:?}"),
    }
}

fn news(answer: &Answer) -> News {
    match content(answer) {
        Content::News(news) => news,
        Content::Whole(summary) => panic!("{summary:?}"),
    }
}

fn hash(item: &Item) -> StorePathHash {
    item.info.path.hash()
}

/// Whoever knows the summary of a moment ago hears by the first answer that there is more.
#[test]
fn an_answer_has_the_generation_of_what_it_says() {
    let host = Host::new();
    let daemon = host.start();
    let socket = UdpSocket::bind("127.0.0.1:0").expect("UDP");
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a timeout");
    for number in 1..=5 {
        let item = Item::signed(&format!("item{number}"), 10);
        host.add(&item);
        let batch = Datagram::Batch {
            id: number,
            known: 1,
            to_many: false,
            hashes: vec![hash(&item)],
        };
        socket
            .send_to(&batch.encode(), daemon.address())
            .expect("sent");
        let mut bytes = [0; 1_500];
        let length = socket.recv(&mut bytes).expect("an answer");
        let Ok(Datagram::Answer { about, held, .. }) = Datagram::parse(&bytes[..length]) else {
            panic!("{:?}", &bytes[..length]);
        };
        assert_eq!(held, Held::of([true]));
        assert_eq!(about.generation, u64::from(number));
    }
}

#[test]
fn a_summary_has_what_is_shared_and_nothing_else() {
    let signed = Item::signed("signed", 10);
    let foreign = Item::unsigned("foreign", 10).sign(&item::foreign_key());
    // Signed by the right name and the wrong key.
    let forged = Item::unsigned("forged", 10).sign(&item::key("cache.test-1", 9));
    let unsigned = Item::unsigned("unsigned", 10);
    let source = Item::source("source", 10);
    let above = Item::unsigned("above", 10).refer_to(&[&unsigned]).built();
    let built = Item::unsigned("built", 10).refer_to(&[&signed]).built();
    let all = [
        &signed, &foreign, &forged, &unsigned, &source, &above, &built,
    ];
    for (settings, shared) in [
        ("share.paths = \"signed\"", &[&signed][..]),
        ("share.paths = \"built\"", &[&signed, &built]),
        ("share.paths = \"all\"", &all),
        ("share.paths = \"none\"", &[]),
    ] {
        let host = Host::new().holding(&all).with(settings);
        let daemon = host.start();
        for path in ["/summary", "/local/summary"] {
            let summary = whole(&daemon.get(path));
            assert_eq!(summary.stamp().generation, 7, "{settings}");
            assert_eq!(summary.paths(), shared.len(), "{settings}");
            for item in shared {
                assert!(summary.contains(hash(item)), "{settings}: {}", item.path());
            }
        }
    }
}

#[test]
fn an_asker_gets_only_what_it_does_not_know() {
    let (first, second) = (Item::signed("first", 10), Item::signed("second", 10));
    let host = Host::new().holding(&[&first]);
    let daemon = host.start();
    let ask = |path: &str, etag: &str| {
        let known = format!("If-None-Match: {etag}");
        // The end of an answer without a length is the end of the connection.
        request(
            daemon.address(),
            "GET",
            path,
            &[&known, "Connection: close"],
        )
    };
    let known = whole(&daemon.get("/summary"));
    let etag = known.stamp().etag();
    for path in ["/summary", "/summary?since=1"] {
        let same = ask(path, &etag);
        assert_eq!((same.status, same.body.len()), (304, 0), "{path}");
        assert_eq!(same.header("etag"), Some(etag.as_str()));
    }
    let head = request(daemon.address(), "HEAD", "/summary", &[]);
    assert_eq!(head.status, 200);
    let length = known.encode().len().to_string();
    assert_eq!(head.header("content-length"), Some(length.as_str()));

    host.add(&second);
    host.add(&Item::unsigned("unsigned", 10));
    let came = news(&ask("/summary?since=1", &etag));
    assert_eq!((came.since, came.stamp.generation), (1, 3));
    assert_eq!(came.keys, [key(hash(&second))]);
    let mut both = known.clone();
    both.apply(&came).expect("it follows");
    assert!(both.contains(hash(&second)));
    let all = whole(&ask("/summary", &etag));
    assert!(all.contains(hash(&first)) && all.contains(hash(&second)));
    assert_eq!(all.stamp(), both.stamp());
    // A generation that is to come, or is none: the whole.
    for path in ["/summary?since=4", "/summary?since=x", "/summary?since="] {
        assert_eq!(whole(&daemon.get(path)), all, "{path}");
    }
    assert_eq!(news(&daemon.get("/summary?since=3")).keys, [0_u64; 0]);
}

#[test]
fn new_settings_are_another_summary_and_a_new_process_is_not() {
    let item = Item::signed("item", 10);
    let mut host = Host::new().holding(&[&item]);
    let runtime = host.open_directory("runtime");
    let start = |host: &Host| host.launch().env("RUNTIME_DIRECTORY", &runtime).start();
    let daemon = start(&host);
    let before = whole(&daemon.get("/summary")).stamp();
    assert_eq!(daemon.stop().0, Some(0));
    let daemon = start(&host);
    assert_eq!(whole(&daemon.get("/summary")).stamp(), before);

    host.set("share.paths = \"none\"");
    daemon.signal(Signal::SIGHUP);
    let after = eventually("another rule", || {
        let summary = whole(&daemon.get("/summary"));
        (summary.stamp() != before).then_some(summary)
    });
    assert_eq!((after.paths(), after.stamp().generation), (0, 1));
    assert_ne!(after.stamp().rule, before.rule);
    // Who knows the old one learns from the news that they are of no use.
    assert_ne!(
        news(&daemon.get("/summary?since=1")).stamp.rule,
        before.rule
    );
}

#[test]
fn a_page_of_a_browser_gets_none_and_a_degraded_machine_has_none() {
    let host = Host::new();
    let daemon = host.start();
    let of_page = request(daemon.address(), "GET", "/summary", &["Origin: http://x"]);
    assert_eq!(of_page.status, 403);
    assert_eq!(
        request(daemon.address(), "POST", "/summary", &[]).status,
        405
    );
    assert_eq!(whole(&daemon.get("/summary")).paths(), 0, "an empty store");

    let host = Host::new();
    fs::write(host.database(), b"no database").expect("write");
    let daemon: Daemon = {
        let sockets = support::daemon::Sockets::open();
        host.launch().activate(&sockets)
    };
    let refused = eventually("listening", || {
        let answer = daemon.get("/summary");
        (answer.status != 0).then_some(answer)
    });
    assert_eq!(refused.status, 404);
}

/// A store of rows without files: signed paths, each referring to the two before it.
struct Rows {
    directory: tempfile::TempDir,
    connection: Connection,
}

impl Rows {
    fn new(count: u64) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let store = support::store::Store::new(directory.path());
        let connection = Connection::open(store.database()).expect("open");
        let rows = Self {
            directory,
            connection,
        };
        rows.add(0..count);
        rows
    }

    fn path(number: u64) -> StorePath {
        let unique = Sha256::digest(number.to_be_bytes());
        let basename = format!("{}-row", base32::encode(&unique[..20]));
        StorePath::from_basename(&basename).expect("store path")
    }

    fn hash(number: u64) -> StorePathHash {
        Self::path(number).hash()
    }

    fn add(&self, numbers: std::ops::Range<u64>) {
        const PATH: &str = "insert into ValidPaths (path, hash, registrationTime, narSize, sigs) \
                            values (?1, ?2, 1700000000, ?3, ?4)";
        const REFERENCE: &str = "insert into Refs (referrer, reference) \
                                 select a.id, b.id from ValidPaths a, ValidPaths b \
                                 where a.path = ?1 and b.path = ?2";
        let (dir, key) = (StoreDir::default(), item::trusted_key());
        let change = self
            .connection
            .unchecked_transaction()
            .expect("transaction");
        for number in numbers {
            let mut references: Vec<_> =
                (number.saturating_sub(2)..number).map(Self::path).collect();
            references.sort();
            let mut info = PathInfo {
                path: Self::path(number),
                nar_hash: NarHash::from_digest(Sha256::digest(number.to_le_bytes()).into()),
                nar_size: 1_000,
                references,
                deriver: None,
                signatures: Vec::new(),
                ca: None,
            };
            info.signatures.push(key.sign_info(&dir, &info));
            let path = info.path.display(&dir).to_string();
            let nar_hash = format!("sha256:{}", info.nar_hash);
            let mut row = change.prepare_cached(PATH).expect("statement");
            row.execute((&path, nar_hash, 1_000, info.signatures[0].to_string()))
                .expect("row");
            let mut reference = change.prepare_cached(REFERENCE).expect("statement");
            for earlier in &info.references {
                reference
                    .execute((&path, earlier.display(&dir).to_string()))
                    .expect("reference");
            }
        }
        change.commit().expect("commit");
    }

    fn forget(&self, number: u64) {
        let path = Self::path(number).display(&StoreDir::default()).to_string();
        let gone = self
            .connection
            .execute("delete from ValidPaths where path = ?1", [path]);
        assert_eq!(gone.expect("row"), 1);
    }

    fn store(&self) -> LocalStore {
        let store: &Path = self.directory.path();
        let settings = local_store::settings(&store.join("store"), &store.join("db.sqlite"));
        LocalStore::open(&settings).expect("store")
    }
}

fn policy() -> Arc<SharePolicy> {
    Arc::new(SharePolicy::new(
        StoreDir::default(),
        SharePaths::Signed,
        Globs::new([""; 0]).expect("globs"),
        TrustedKeys::from_iter([item::trusted_public_key()]),
        Vec::new(),
    ))
}

#[test]
fn later_paths_are_added_until_they_are_many_or_paths_have_gone() {
    let rows = Rows::new(300);
    let (store, policy) = (rows.store(), policy());
    block_on(async {
        let summary = async || store.summary(&policy, WHO).await.expect("a summary");
        let has = |summary: &Summary, numbers: std::ops::Range<u64>| {
            numbers.map(Rows::hash).all(|it| summary.contains(it))
        };
        let first = summary().await;
        assert_eq!((first.paths(), first.added()), (300, 0));
        assert!(has(&first, 0..300) && !has(&first, 300..330));
        assert!(Arc::ptr_eq(&first, &summary().await), "nothing to do");

        rows.add(300..500);
        let second = summary().await;
        assert_eq!((second.paths(), second.added()), (500, 200));
        assert!(has(&second, 0..500));
        rows.add(500..600);
        let third = summary().await;
        assert_eq!((third.paths(), third.added()), (600, 300));
        // That were many: the next one is made anew.
        let fourth = summary().await;
        assert_eq!((fourth.paths(), fourth.added()), (600, 0));
        assert!(has(&fourth, 0..600));

        rows.forget(599);
        let fifth = summary().await;
        assert_eq!((fifth.paths(), fifth.stamp().generation), (599, 599));
        // Another rule is another summary, whatever is there.
        let other = Stamp { rule: 3, ..WHO };
        let sixth = store.summary(&policy, other).await.expect("a summary");
        assert_eq!(
            sixth.stamp(),
            Stamp {
                generation: 599,
                ..other
            }
        );
    });
}

#[test]
fn what_is_new_is_told_by_itself_unless_it_is_much() {
    let rows = Rows::new(5_000);
    let (store, policy) = (rows.store(), policy());
    block_on(async {
        let news = async |since| store.news(&policy, WHO, since).await.expect("an answer");
        let few = news(4_000).await.expect("few");
        let numbers = (4_000..5_000).map(|it| key(Rows::hash(it)));
        assert_eq!(few.keys, numbers.collect::<Vec<_>>());
        assert_eq!((few.since, few.stamp.generation), (4_000, 5_000));
        assert_eq!(news(100).await, None, "4,900 rows");
        assert_eq!(news(5_000).await.expect("none").keys, [0; 0]);
        assert_eq!(news(5_001).await, None, "to come");
    });
}

#[test]
fn questions_are_answered_while_a_summary_is_made() {
    let rows = Rows::new(5_000);
    let (store, policy) = (rows.store(), policy());
    block_on(async {
        let making = {
            let (store, policy) = (store.clone(), Arc::clone(&policy));
            tokio::spawn(async move { store.summary(&policy, WHO).await })
        };
        // Given up by whoever asked, and made all the same.
        let given_up = tokio::time::timeout(Duration::from_millis(1), store.summary(&policy, WHO));
        drop(given_up.await);
        let mut slowest = Duration::ZERO;
        let mut asked = 0;
        while !making.is_finished() {
            let began = Instant::now();
            let wanted = Rows::hash(asked * 17 % 5_000);
            assert!(store.query(wanted).await.expect("an answer").is_some());
            slowest = slowest.max(began.elapsed());
            asked += 1;
        }
        let summary = making.await.expect("no panic").expect("a summary");
        assert_eq!(summary.paths(), 5_000);
        assert!(asked >= 20, "only {asked} questions in between");
        assert!(
            slowest < Duration::from_secs(1),
            "{slowest:?} for one question"
        );
    });
}

#[test]
fn a_database_that_cannot_be_read_gives_no_summary_and_one_that_is_back_does() {
    let rows = Rows::new(10);
    let (store, policy) = (rows.store(), policy());
    let database = rows.directory.path().join("db.sqlite");
    let aside = rows.directory.path().join("aside");
    block_on(async {
        fs::rename(&database, &aside).expect("rename");
        let error = store.summary(&policy, WHO).await.expect_err("no database");
        assert!(matches!(error, SummaryError::Store(_)), "{error:?}");
        fs::rename(&aside, &database).expect("rename");
        let summary = store.summary(&policy, WHO).await.expect("a summary");
        assert_eq!(summary.paths(), 10);
    });
}

#[test]
#[ignore = "a measurement: cargo test --release --test summaries -- --ignored --nocapture"]
fn how_long_a_summary_takes() {
    for count in [10_000_u64, 100_000] {
        let rows = Rows::new(count);
        let (store, policy) = (rows.store(), policy());
        block_on(async {
            let began = Instant::now();
            let mut slowest = Duration::ZERO;
            let summary = loop {
                let asked = Instant::now();
                match store.summary(&policy, WHO).await {
                    Ok(summary) => break summary,
                    Err(error) => assert!(matches!(error, SummaryError::Unfinished), "{error:?}"),
                }
                slowest = slowest.max(asked.elapsed());
            };
            let made = began.elapsed();
            let began = Instant::now();
            let asked = 1_000.min(count);
            for number in 0..asked {
                let wanted = Rows::hash(number);
                store.query(wanted).await.expect("an answer");
            }
            let each = began.elapsed() / asked as u32;
            println!(
                "{count} rows: {made:?}, {:?} a row, signature included (a look-up alone takes {each:?}); \
                 {} bytes sent, {} kept",
                made / count as u32,
                summary.encode().len(),
                summary.memory_bytes()
            );
        });
    }
}

/// A client and a peer that serves by `serve`.
fn asking(serve: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) -> (Client, PeerAddr, Peer) {
    let peer = Peer::holding_all(move |asked, stream| {
        stream.write_all(&serve(asked))?;
        Ok(Then::KeepOpen)
    });
    let address = PeerAddr::new(peer.http()).expect("peer");
    (Client::new().expect("client"), address, peer)
}

fn ok(body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn summary(stamp: Stamp) -> Summary {
    Summary::build(stamp, vec![1, 2, 3]).expect("a summary")
}

#[test]
fn a_client_asks_with_what_it_knows() {
    let stamp = Stamp {
        generation: 8,
        ..WHO
    };
    let came = News {
        stamp: Stamp {
            generation: 9,
            ..stamp
        },
        since: 8,
        keys: vec![4],
    };
    let answers = [
        ok(&summary(stamp).encode()),
        b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec(),
        ok(&came.encode()),
    ];
    let next = std::sync::atomic::AtomicUsize::new(0);
    let (client, address, peer) =
        asking(move |_| answers[next.fetch_add(1, std::sync::atomic::Ordering::SeqCst)].clone());
    block_on(async {
        let ask = async |known| client.summary(address, known, 1_000).await.expect("answer");
        let SummaryAnswer::Whole(first) = ask(None).await else {
            panic!("the whole");
        };
        assert_eq!(first, summary(stamp));
        let known = Some(first.stamp());
        assert!(matches!(ask(known).await, SummaryAnswer::NotModified));
        let SummaryAnswer::News(second) = ask(known).await else {
            panic!("news");
        };
        assert_eq!(second, came);
    });
    let asked = peer.asked();
    assert_eq!(asked[0].path, "/local/summary");
    assert_eq!(asked[1].path, "/local/summary?since=8");
    let tag = format!("if-none-match: {}\r\n", stamp.etag());
    assert!(asked[1].head.contains(&tag), "{}", asked[1].head);
}

#[test]
fn news_by_another_rule_are_dropped_and_the_whole_is_fetched() {
    let new_rule = Stamp {
        rule: 77,
        generation: 9,
        ..WHO
    };
    let came = News {
        stamp: new_rule,
        since: 8,
        keys: Vec::new(),
    };
    let (client, address, peer) = asking(move |asked| {
        if asked.path.contains('?') {
            ok(&came.encode())
        } else {
            ok(&summary(new_rule).encode())
        }
    });
    let known = Stamp {
        generation: 8,
        ..WHO
    };
    let answer = block_on(client.summary(address, Some(known), 1_000)).expect("answer");
    assert!(matches!(answer, SummaryAnswer::Whole(whole) if whole == summary(new_rule)));
    assert_eq!(peer.asked().len(), 2);
}

#[test]
fn junk_of_a_peer_is_refused() {
    let good = summary(WHO).encode();
    let unasked = News {
        stamp: WHO,
        since: 0,
        keys: vec![1],
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", ok(b""), "other-bytes"),
        ("junk", ok(&[0xff; 500]), "other-bytes"),
        ("cut", ok(&good[..good.len() - 1]), "other-bytes"),
        ("longer", ok(&[&good[..], b"x"].concat()), "other-bytes"),
        ("news for nothing", ok(&unasked.encode()), "other-bytes"),
        ("too long", ok(&[1; 1_001]), "wrong-length"),
        (
            "endless",
            [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &[1; 100_000]].concat(),
            "wrong-length",
        ),
        (
            "not modified, as if it were known",
            b"HTTP/1.1 304 Not Modified\r\n\r\n".to_vec(),
            "refused",
        ),
        (
            "none",
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "refused",
        ),
    ];
    for (what, answer, kind) in cases {
        let (client, address, _peer) = asking(move |_| answer.clone());
        let error = block_on(client.summary(address, None, 1_000)).expect_err(what);
        assert_eq!(error.kind(), kind, "{what}: {error:?}");
    }
}

#[test]
fn a_peer_that_says_nothing_is_not_waited_for_much_longer_than_a_summary_takes() {
    let peer = Peer::holding_all(|_, stream| peer::hang(stream));
    let address = PeerAddr::new(peer.http()).expect("peer");
    let client = Client::new().expect("client");
    let (answer, took) = support::timed(|| block_on(client.summary(address, None, 1_000)));
    assert!(matches!(answer, Err(PeerError::Late { .. })), "{answer:?}");
    assert!(
        (Duration::from_secs(5)..Duration::from_secs(10)).contains(&took),
        "{took:?}"
    );
}

/// The examples of docs/protocol.md: a title with what they say, and lines of digits and remarks.
#[test]
fn the_examples_of_the_specification_are_right() {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/protocol.md");
    let text = fs::read_to_string(text).expect("docs/protocol.md");
    let mut kinds = Vec::new();
    for block in text.split("```hex summary\n").skip(1) {
        let (block, _) = block.split_once("```").expect("the end of a block");
        let (title, lines) = block.split_once('\n').expect("a title");
        let (kind, fields) = title
            .strip_prefix("= ")
            .and_then(|title| title.split_once(' '))
            .expect("a kind and its fields");
        let fields: BTreeMap<&str, &str> = fields
            .split(' ')
            .map(|field| field.split_once('=').expect("NAME=VALUE"))
            .collect();
        let digits: String = lines
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .collect();
        let bytes = data_encoding::HEXLOWER
            .decode(digits.as_bytes())
            .expect("digits");
        let number = |name: &str| u64::from_str_radix(fields[name], 16).expect("a number");
        let stamp = Stamp {
            instance: number("instance"),
            rule: number("rule"),
            generation: fields["generation"].parse().expect("a generation"),
        };
        let hashes: Vec<StorePathHash> = fields["has"]
            .split(',')
            .map(|hash| StorePathHash::parse(hash.as_bytes()).expect("a hash"))
            .collect();
        match Content::parse(&bytes).expect("a summary") {
            Content::Whole(summary) => {
                assert_eq!(summary.stamp(), stamp);
                assert_eq!(summary.paths(), hashes.len());
                assert!(hashes.iter().all(|hash| summary.contains(*hash)));
                let lacks = StorePathHash::parse(fields["lacks"].as_bytes()).expect("a hash");
                assert!(!summary.contains(lacks));
                assert_eq!(summary.encode(), bytes);
            }
            Content::News(news) => {
                assert_eq!(news.stamp, stamp);
                assert_eq!(news.since.to_string(), fields["since"]);
                let keys: Vec<u64> = hashes.into_iter().map(key).collect();
                assert_eq!(news.keys, keys);
                assert_eq!(news.encode(), bytes);
            }
        }
        kinds.push(kind);
    }
    assert_eq!(kinds, ["whole", "news"]);
}
