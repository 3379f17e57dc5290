//! How long a holder takes to answer an ask of 56 hashes: `cargo bench --bench store_asks`.
//!
//! A store of 100,000 paths with ten references each, in memory where there is a /dev/shm. Beside
//! each time stands what the same 56 lookups cost by bare statements of SQLite, in the same run.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a measurement prints, and fails by panicking"
)]

#[path = "../fixtures/local_store.rs"]
mod local_store;

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use data_encoding::BASE64;
use local_store::{block_on, hash, settings, store_path};
use peerix::{
    config::{Globs, SharePaths},
    format::{NarHash, PathInfo, SecretKey, StoreDir, StorePath, StorePathHash},
    protocol::PathState,
    store::{LocalStore, SharePolicy},
};
use rusqlite::Connection;

const PATHS: u64 = 100_000;
const ASK: u64 = 56;
const ROUNDS: u64 = 50;

/// Of them the last are built here, all in one closure.
const BUILT: u64 = 1_000;

const SCHEMA: &str = "\
    CREATE TABLE ValidPaths (id integer primary key autoincrement not null, \
        path text unique not null, hash text not null, registrationTime integer not null, \
        deriver text, narSize integer, ultimate integer, sigs text, ca text); \
    CREATE TABLE Refs (referrer integer not null, reference integer not null, \
        primary key (referrer, reference)); \
    CREATE INDEX IndexReferrer ON Refs(referrer); \
    CREATE INDEX IndexReference ON Refs(reference);";

fn main() {
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    };
    let dir = dir.expect("directory");
    let key = key();
    let database = dir.path().join("db.sqlite");
    let files = dir.path().join("store");
    fill(&database, &files, &key);
    let writer = Connection::open(&database).expect("database");
    let rows: i64 = writer
        .query_row("SELECT count(*) FROM ValidPaths", [], |row| row.get(0))
        .expect("count");
    println!("{rows} paths, asks of {ASK}, {ROUNDS} rounds: median and worst in ms");

    let policy = |rule| {
        let keys = [key.public_key()].into_iter().collect();
        let exclude = Globs::new(["*.drv"]).expect("globs");
        Arc::new(SharePolicy::new(
            StoreDir::default(),
            rule,
            exclude,
            keys,
            Vec::new(),
        ))
    };
    let signed_paths = |round| ask(round * ASK..(round + 1) * ASK);
    let missing = |round| ask(PATHS + round * ASK..PATHS + (round + 1) * ASK);
    bare(&database, signed_paths);

    let store = LocalStore::unchecked(&settings(&files, &database));
    let signed = policy(SharePaths::Signed);
    block_on(async {
        // The connection and the first thread.
        store.which_shared(vec![hash(PATHS)], &signed).await;
        for (what, share) in [("signed, first time", 1), ("signed, cached", 1)] {
            measure(what, &store, &signed, share, signed_paths).await;
        }
        measure(
            "signed, cached, new connection",
            &store.clone(),
            &signed,
            1,
            |round| {
                commit(&writer);
                signed_paths(round)
            },
        )
        .await;
        measure("not here", &store, &signed, 0, missing).await;
        measure("not here, cached", &store, &signed, 0, missing).await;

        let built = policy(SharePaths::Built);
        let top = vec![hash(PATHS - 1)];
        let began = Instant::now();
        let mut asks = 0;
        loop {
            asks += 1;
            match store.which_shared(top.clone(), &built).await[0] {
                PathState::Present => break,
                PathState::Undecided => tokio::time::sleep(Duration::from_millis(1)).await,
                other => panic!("{other:?}"),
            }
        }
        println!(
            "built, {BUILT} paths below, once: {:.1} ms, {asks} asks",
            milliseconds(began.elapsed())
        );
        let last = |_| ask(PATHS - ASK..PATHS);
        measure("built, cached", &store, &built, 1, last).await;
        let saved = built.save();
        let again = policy(SharePaths::Built);
        let began = Instant::now();
        let count = again.restore(&saved).expect("sound");
        println!(
            "{count} decisions restored from {} KiB in {:.2} ms",
            saved.len() >> 10,
            milliseconds(began.elapsed())
        );
        measure("built, after sleep", &store, &again, 1, last).await;

        let began = Instant::now();
        const ASKS: u64 = 20_000;
        for round in 0..ASKS {
            store
                .which_shared(signed_paths(round % ROUNDS), &signed)
                .await;
        }
        println!(
            "one asker after the other: {:.0} full asks a second",
            ASKS as f64 / began.elapsed().as_secs_f64()
        );
    });
}

async fn measure(
    what: &str,
    store: &LocalStore,
    policy: &Arc<SharePolicy>,
    present: usize,
    hashes: impl Fn(u64) -> Vec<StorePathHash>,
) {
    let mut times = Vec::new();
    let mut undecided = 0;
    for round in 0..ROUNDS {
        let hashes = hashes(round);
        let count = hashes.len();
        let began = Instant::now();
        let mut states = store.which_shared(hashes.clone(), policy).await;
        times.push(began.elapsed());
        while states.contains(&PathState::Undecided) {
            undecided += 1;
            states = store.which_shared(hashes.clone(), policy).await;
        }
        let found = states
            .iter()
            .filter(|it| **it == PathState::Present)
            .count();
        assert_eq!(found, present * count, "{what}");
    }
    print(what, times);
    if undecided > 0 {
        println!("    {undecided} times something was undecided after 5 ms");
    }
}

/// The reference: the same rows by the same statement, nothing else.
fn bare(database: &Path, hashes: impl Fn(u64) -> Vec<StorePathHash>) {
    const SQL: &str = "SELECT p.id, p.path, p.sigs, r.path FROM \
        (SELECT * FROM ValidPaths WHERE path >= ?1 AND path < ?2 ORDER BY path LIMIT 1) p \
        LEFT JOIN Refs f ON f.referrer = p.id LEFT JOIN ValidPaths r ON r.id = f.reference";
    let connection = Connection::open(database).expect("database");
    let mut statement = connection.prepare(SQL).expect("statement");
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let hashes = hashes(round);
        let began = Instant::now();
        for hash in hashes {
            let first = format!("/nix/store/{hash}-");
            let end = format!("/nix/store/{hash}.");
            let mut rows = statement.query((first, end)).expect("query");
            while let Some(row) = rows.next().expect("row") {
                std::hint::black_box(row.get_ref(1).expect("column"));
            }
        }
        times.push(began.elapsed());
    }
    print("bare SQLite", times);
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    println!(
        "{what}: {:.2} {:.2}",
        milliseconds(times[times.len() / 2]),
        milliseconds(times[times.len() - 1])
    );
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

fn ask(numbers: std::ops::Range<u64>) -> Vec<StorePathHash> {
    numbers.map(hash).collect()
}

fn key() -> SecretKey {
    let pair = ed25519_dalek::SigningKey::from_bytes(&[1; 32]).to_keypair_bytes();
    SecretKey::parse(&format!("bench-1:{}", BASE64.encode(&pair))).expect("key")
}

/// As any build on the machine does.
fn commit(writer: &Connection) {
    let sql = "UPDATE ValidPaths SET registrationTime = registrationTime + 1 WHERE id = 1";
    writer.execute(sql, []).expect("commit");
}

fn fill(database: &Path, files: &Path, key: &SecretKey) {
    fs::create_dir(files).expect("mkdir");
    let mut connection = Connection::open(database).expect("database");
    connection
        .pragma_update(None, "journal_mode", "wal")
        .expect("wal");
    connection.execute_batch(SCHEMA).expect("schema");
    let change = connection.transaction().expect("transaction");
    for number in 0..PATHS {
        let path = store_path(number, "path");
        fs::write(files.join(path.basename()), "").expect("write");
        let built = number >= PATHS - BUILT;
        // Ten before it: a chain through all that was built, and into what is signed.
        let below = number.saturating_sub(10)..number;
        let mut references: Vec<StorePath> =
            below.clone().map(|it| store_path(it, "path")).collect();
        references.sort();
        let info = PathInfo {
            path,
            nar_hash: NarHash::from_digest([7; 32]),
            nar_size: 1_000,
            references,
            deriver: None,
            signatures: Vec::new(),
            ca: None,
        };
        let signature = (!built).then(|| key.sign_info(&StoreDir::default(), &info).to_string());
        change
            .prepare_cached(
                "INSERT INTO ValidPaths (id, path, hash, registrationTime, narSize, ultimate, sigs) \
                 VALUES (?1, ?2, ?3, 1, 1000, ?4, ?5)",
            )
            .expect("statement")
            .execute((
                number + 1,
                format!("/nix/store/{}", info.path.basename()),
                format!("sha256:{}", "07".repeat(32)),
                built,
                signature,
            ))
            .expect("row");
        for reference in below {
            change
                .prepare_cached("INSERT INTO Refs VALUES (?1, ?2)")
                .expect("statement")
                .execute((number + 1, reference + 1))
                .expect("reference");
        }
    }
    change.commit().expect("commit");
}
