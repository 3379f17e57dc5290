//! How long a holder takes to answer an ask of 56 hashes: `cargo bench --bench store_asks`.
//!
//! A store of 100,000 paths with ten references each, in memory where there is a /dev/shm. Beside
//! each time stands what the same 56 lookups cost by bare statements of SQLite, in the same run.
//! At the end: full asks that come and are answered over UDP on one core, beside a bare echo by
//! recvmmsg(2) of the same datagrams. The daemon itself takes 40,000 hashes a second (docs/protocol.md).

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a measurement prints, and fails by panicking"
)]

#[path = "../fixtures/local_store.rs"]
mod local_store;

use std::{
    fs,
    io::{IoSlice, IoSliceMut},
    net::UdpSocket,
    os::fd::AsRawFd,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use data_encoding::BASE64;
use local_store::{block_on, hash, settings, store_path};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg},
    unistd::Pid,
};
use peerix::{
    config::{Globs, SharePaths},
    format::{NarHash, PathInfo, SecretKey, StoreDir, StorePath, StorePathHash},
    protocol::{
        PathState,
        datagram::{Answer, Ask, Datagram, Magnitude, Sender},
    },
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
    let echoed = rate(echo);
    let answered = rate(|socket| answer(socket, &files, &database, signed));
    println!(
        "over UDP on one core: {answered:.0} full asks a second, a bare echo {echoed:.0}: {:.2} of it",
        answered / echoed
    );
}

/// How long asks are sent over UDP, and how many are on their way at once.
const SENT_FOR: Duration = Duration::from_secs(3);
const ON_THEIR_WAY: u64 = 32;

const SENDER: Sender = Sender {
    http_port: 12_304,
    instance: 7,
};

/// Full asks a second that `serve`, alone on the first core, sends something back to.
fn rate(serve: impl FnOnce(UdpSocket) + Send) -> f64 {
    let server = UdpSocket::bind("127.0.0.1:0").expect("socket");
    let client = UdpSocket::bind("127.0.0.1:0").expect("socket");
    client
        .connect(server.local_addr().expect("address"))
        .expect("connect");
    let patience = Duration::from_secs(1);
    client.set_read_timeout(Some(patience)).expect("timeout");
    thread::scope(|scope| {
        scope.spawn(move || {
            stay_on_core(0);
            serve(server);
        });
        stay_on_core(1);
        let asks: Vec<_> = (0..ROUNDS)
            .map(|round| {
                Datagram::Ask(Ask {
                    id: 1,
                    sender: SENDER,
                    only_if_any: false,
                    peers: Magnitude::default(),
                    hashes: ask(round * ASK..(round + 1) * ASK),
                })
                .encode()
            })
            .collect();
        let send = |number: u64| {
            let ask = &asks[(number % ROUNDS) as usize];
            client.send(ask).expect("send");
        };
        (0..ON_THEIR_WAY).for_each(send);
        let (mut count, mut buffer, began) = (0, [0; 2_048], Instant::now());
        while began.elapsed() < SENT_FOR {
            client.recv(&mut buffer).expect("an answer");
            send(count);
            count += 1;
        }
        let rate = count as f64 / began.elapsed().as_secs_f64();
        // Nothing else is as short: the end.
        client.send(&[]).expect("send");
        rate
    })
}

/// Without a second core both share the first.
fn stay_on_core(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core).expect("a core");
    if sched_setaffinity(Pid::from_raw(0), &cores).is_err() {
        println!("core {core} cannot be used alone");
    }
}

/// Sends back the head of what comes, up to 16 datagrams at a time.
fn echo(socket: UdpSocket) {
    const AT_ONCE: usize = 16;
    let mut buffers = [[0_u8; 2_048]; AT_ONCE];
    let mut headers = MultiHeaders::<SockaddrStorage>::preallocate(AT_ONCE, None);
    let mut replies = MultiHeaders::<SockaddrStorage>::preallocate(AT_ONCE, None);
    loop {
        let mut slices: Vec<_> = buffers
            .iter_mut()
            .map(|buffer| [IoSliceMut::new(buffer)])
            .collect();
        let came: Vec<_> = recvmmsg(
            socket.as_raw_fd(),
            &mut headers,
            slices.iter_mut(),
            MsgFlags::MSG_WAITFORONE,
            None,
        )
        .expect("receive")
        .map(|message| (message.bytes, message.address))
        .collect();
        if came.iter().any(|(length, _)| *length == 0) {
            return;
        }
        let heads: Vec<_> = buffers[..came.len()]
            .iter()
            .map(|buffer| [IoSlice::new(&buffer[..32])])
            .collect();
        let addresses: Vec<_> = came.iter().map(|(_, address)| *address).collect();
        let sent = sendmmsg(
            socket.as_raw_fd(),
            &mut replies,
            &heads,
            &addresses,
            [],
            MsgFlags::empty(),
        );
        sent.expect("send");
    }
}

/// Answers as the daemon does, with its own threads for the store, all on this core.
fn answer(socket: UdpSocket, files: &Path, database: &Path, policy: Arc<SharePolicy>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async {
        socket.set_nonblocking(true).expect("socket");
        let socket = Arc::new(tokio::net::UdpSocket::from_std(socket).expect("socket"));
        let store = LocalStore::unchecked(&settings(files, database));
        let mut buffer = [0; 2_048];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.expect("receive");
            if length == 0 {
                return;
            }
            let Ok(Datagram::Ask(ask)) = Datagram::parse(&buffer[..length]) else {
                panic!("not an ask");
            };
            let (socket, store, policy) = (socket.clone(), store.clone(), policy.clone());
            tokio::spawn(async move {
                let states = store.which_shared(ask.hashes, &policy).await;
                let answer = Answer {
                    id: ask.id,
                    sender: SENDER,
                    streams: Magnitude::default(),
                    states,
                };
                let packet = Datagram::Answer(answer).encode();
                socket.send_to(&packet, from).await.expect("send");
            });
        }
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
                number as i64 + 1,
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
                .execute((number as i64 + 1, reference as i64 + 1))
                .expect("reference");
        }
    }
    change.commit().expect("commit");
}
