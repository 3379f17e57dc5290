//! Overload: whatever one machine throws at the daemon, the local Nix is answered soon, and
//! memory stays bounded. On real hosts, with figures: tests/lab/test_overload.py.

#[expect(dead_code, reason = "each test uses its part")]
mod support;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use support::{
    daemon::Daemon,
    eventually,
    host::Host,
    http::{Connection, get},
    item::{Item, noise},
    peer::Peer,
    timed,
};

/// Resident memory that no load may exceed.
const MOST_RESIDENT_KIB: u64 = 64 << 10;

/// Far above what a busy test machine needs, far below what a Nix would notice as a hang.
const MOST_WAIT: Duration = Duration::from_secs(2);

/// Asks for `count` narinfos, and then some; each has to come, and soon.
fn assert_narinfos_come(daemon: &Daemon, item: &Item, count: usize) {
    let mut connection = Connection::open(daemon.address()).expect("connection");
    let path = format!("/{}.narinfo", item.hash());
    for number in 0..count {
        let (answer, took) = timed(|| connection.ask("GET", &path, &[]).expect("answer"));
        assert_eq!(answer.status, 200);
        assert!(took < MOST_WAIT, "narinfo {number} took {took:?}");
    }
}

fn assert_memory_is_bounded(daemon: &Daemon) {
    let resident = daemon.resident_kib();
    assert!(resident < MOST_RESIDENT_KIB, "{resident} KiB resident");
}

/// As many descriptors as this process and its children may have.
fn raise_descriptor_limit() -> u64 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("limit");
    hard
}

/// Tells a thread to end when dropped, by a panic too.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn a_flood_of_junk_datagrams_delays_no_narinfo_and_at_worst_makes_it_a_miss() {
    let item = Item::signed("held", 500);
    let peer = Peer::honest(&[&item]);
    let host = Host::new().with(&Peer::setting(&[&peer]));
    let mut daemon = host.start();
    let path = format!("/{}.narinfo", item.hash());
    let told = daemon.log.text().len();
    let (over, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("UDP");
            let mut junk: Vec<_> = (0..64)
                .map(|seed| noise(40 + seed as usize, seed))
                .collect();
            for (kind, datagram) in junk.iter_mut().enumerate() {
                datagram[0] = (kind % 6) as u8;
            }
            for datagram in junk.iter().cycle() {
                if over.load(Relaxed) {
                    return;
                }
                // A full buffer of the receiver is what a flood makes.
                if socket.send_to(datagram, daemon.address()).is_ok() {
                    sent.fetch_add(1, Relaxed);
                }
            }
        });
        // A failure here must end the flood too, or it would never be told.
        let _end = End(&over);
        eventually("a flood", || (sent.load(Relaxed) > 10_000).then_some(()));
        let mut connection = Connection::open(daemon.address()).expect("connection");
        for number in 0..100 {
            let (answer, took) = timed(|| connection.ask("GET", &path, &[]).expect("answer"));
            // The peer's datagram may be among those that the full buffer of the socket loses.
            assert!(matches!(answer.status, 200 | 404), "{}", answer.status);
            assert!(took < MOST_WAIT, "narinfo {number} took {took:?}");
        }
    });
    eventually("a find after the flood", || {
        (daemon.get(&path).status == 200).then_some(())
    });
    assert!(
        sent.load(Relaxed) > 20_000,
        "{} datagrams are no flood",
        sent.load(Relaxed)
    );
    assert_memory_is_bounded(&daemon);
    assert_eq!(
        daemon.log.text().len(),
        told,
        "strangers write into the journal"
    );
    daemon.assert_well();
}

#[test]
fn two_thousand_idle_connections_take_little_and_delay_nothing() {
    const IDLE: usize = 2_000;
    if raise_descriptor_limit() < 2 * IDLE as u64 {
        return support::skip("this process may not open 2,000 connections");
    }
    let item = Item::signed("held", 500);
    let host = Host::new().holding(&[&item]);
    let mut daemon = host.start();
    let before = daemon.resident_kib();
    // From loopback they are all taken; of the LAN they would be closed above the limit.
    let idle: Vec<_> = (0..IDLE)
        .map(|_| TcpStream::connect(daemon.address()).expect("connection"))
        .collect();
    assert_narinfos_come(&daemon, &item, 100);
    let grown = daemon.resident_kib() - before;
    assert!(
        grown < 16 * IDLE as u64,
        "{grown} KiB for {IDLE} connections"
    );
    assert_memory_is_bounded(&daemon);
    drop(idle);
    daemon.assert_well();
}

/// Asks for a NAR and takes a byte at a time, `count` of them.
fn sip(address: SocketAddr, item: &Item, count: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("connection");
    let head = format!(
        "GET /nar/{} HTTP/1.1\r\nHost: localhost\r\n\r\n",
        item.nar_name()
    );
    stream.write_all(head.as_bytes()).expect("request");
    for _ in 0..count {
        stream.read_exact(&mut [0]).expect("a byte");
    }
    stream
}

#[test]
fn readers_of_a_byte_at_a_time_hold_no_more_than_their_slots() {
    let item = Item::signed("large", 64 << 20);
    let host = Host::new().holding(&[&item]);
    let mut daemon = host.start();
    // One slot is left for somebody who reads.
    let slow: Vec<_> = (0..39).map(|_| sip(daemon.address(), &item, 100)).collect();
    assert_narinfos_come(&daemon, &item, 50);
    let nar = get(daemon.address(), &format!("/nar/{}", item.nar_name()));
    assert!(nar.complete && nar.body == item.nar);
    assert_memory_is_bounded(&daemon);
    drop(slow);
    daemon.assert_well();
}

#[test]
fn floods_of_headers_are_cut_and_take_no_memory() {
    let item = Item::signed("held", 500);
    let host = Host::new().holding(&[&item]);
    let mut daemon = host.start();
    let header = format!("X-Flood: {}\r\n", "x".repeat(1_000));
    for flood in [header.as_str(), "a:b\r\n", "GET "] {
        let mut open: Vec<_> = (0..32)
            .map(|_| TcpStream::connect(daemon.address()).expect("connection"))
            .collect();
        for stream in &mut open {
            stream
                .set_write_timeout(Some(support::PATIENCE))
                .expect("timeout");
            stream
                .write_all(b"GET /healthz HTTP/1.1\r\n")
                .expect("line");
        }
        let piece = flood.repeat((64 << 10) / flood.len());
        for mut stream in open {
            // 64 MiB would go in only if somebody took them in.
            let taken = (0..1_024).take_while(|_| stream.write_all(piece.as_bytes()).is_ok());
            assert!(
                taken.count() < 1_024,
                "an endless head of {:?} was taken",
                &flood[..4]
            );
        }
        assert_narinfos_come(&daemon, &item, 20);
    }
    assert_memory_is_bounded(&daemon);
    daemon.assert_well();
}
