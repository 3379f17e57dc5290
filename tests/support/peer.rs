//! A peer that does as it is told: its UDP side answers requests, its HTTP side sends any bytes.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use peerix::{
    format::StorePathHash,
    protocol::{
        PathState,
        datagram::{Answer, Ask, Datagram, Magnitude, Sender},
    },
};

use super::item::Item;

/// A request that the peer got.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) path: String,
    /// The whole head.
    pub(crate) head: String,
}

impl Asked {
    /// `bytes=FIRST-LAST` of its Range header.
    pub(crate) fn range(&self) -> Option<(u64, u64)> {
        let line = self.head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("range").then_some(value)
        })?;
        let (first, last) = line.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// What to do with a request; the connection is closed if it says so, or fails.
type Serve = dyn Fn(&Asked, &mut TcpStream) -> std::io::Result<Then> + Send + Sync;

/// What to answer to a datagram.
type Reply = dyn Fn(&[u8], u16) -> Vec<Vec<u8>> + Send + Sync;

/// After an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    KeepOpen,
    Close,
    /// With a reset instead of an end.
    Reset,
}

/// A running peer; gone when dropped.
pub(crate) struct Peer {
    udp: SocketAddr,
    http: SocketAddr,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    stopped: AtomicBool,
    asked: Mutex<Vec<Asked>>,
    datagrams: Mutex<Vec<Vec<u8>>>,
    open: Mutex<Vec<TcpStream>>,
}

impl Peer {
    /// Answers like a new peer that has everything, and serves by `serve`.
    pub(crate) fn holding_all(
        serve: impl Fn(&Asked, &mut TcpStream) -> std::io::Result<Then> + Send + Sync + 'static,
    ) -> Self {
        Self::new(has_all, serve)
    }

    /// An honest peer with these paths.
    pub(crate) fn honest(items: &[&Item]) -> Self {
        let items: Vec<Item> = items.iter().map(|item| (*item).clone()).collect();
        let held: Vec<String> = items.iter().map(Item::hash).collect();
        Self::new(
            move |datagram, port| has(datagram, port, |hash| held.iter().any(|it| it == hash)),
            move |asked, stream| serve_honestly(&items, asked, stream),
        )
    }

    /// An honest peer with this path that answers the first ask for a path `delay` after `other` was
    /// asked over HTTP, or four times that if it is not: so that it is the second.
    pub(crate) fn honest_behind(other: &Self, delay: Duration, item: &Item) -> Self {
        let other = Arc::clone(&other.shared);
        Self::honest_after(item, move || {
            let is_asked = || !other.asked.lock().expect("requests").is_empty();
            wait_until(is_asked, 3 * delay);
            std::thread::sleep(delay);
        })
    }

    /// The same, when `other` has replied to an ask for a path: what it receives after that shows
    /// that it has.
    pub(crate) fn honest_behind_reply(other: &Self, longest: Duration, item: &Item) -> Self {
        let other = Arc::clone(&other.shared);
        Self::honest_after(item, move || {
            let has_replied = || {
                let datagrams = other.datagrams.lock().expect("datagrams");
                let asks = datagrams.iter().filter(|it| !asked_hashes(it).is_empty());
                asks.count() > 1
            };
            wait_until(has_replied, longest);
        })
    }

    /// An honest peer with this path that waits before it answers the first ask for a path.
    fn honest_after(item: &Item, wait: impl Fn() + Send + Sync + 'static) -> Self {
        let items = [item.clone()];
        let held = item.hash();
        let is_first = AtomicBool::new(true);
        Self::new(
            move |datagram, port| {
                if !asked_hashes(datagram).is_empty() && is_first.swap(false, SeqCst) {
                    wait();
                }
                has(datagram, port, |hash| hash == held)
            },
            move |asked, stream| serve_honestly(&items, asked, stream),
        )
    }

    /// With both sides told what to do.
    pub(crate) fn new(
        reply: impl Fn(&[u8], u16) -> Vec<Vec<u8>> + Send + Sync + 'static,
        serve: impl Fn(&Asked, &mut TcpStream) -> std::io::Result<Then> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listener");
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("UDP");
        Self::on(listener, udp, Arc::new(reply), Arc::new(serve))
    }

    pub(crate) fn on(
        listener: TcpListener,
        udp: UdpSocket,
        reply: Arc<Reply>,
        serve: Arc<Serve>,
    ) -> Self {
        let shared = Arc::new(Shared {
            stopped: AtomicBool::new(false),
            asked: Mutex::default(),
            datagrams: Mutex::default(),
            open: Mutex::default(),
        });
        let (http, udp_address) = (
            listener.local_addr().expect("address"),
            udp.local_addr().expect("address"),
        );
        let threads = vec![
            std::thread::spawn({
                let shared = Arc::clone(&shared);
                move || answer_datagrams(&shared, &udp, http.port(), &*reply)
            }),
            std::thread::spawn({
                let shared = Arc::clone(&shared);
                move || accept(&shared, &listener, &serve)
            }),
        ];
        Self {
            udp: udp_address,
            http,
            shared,
            threads,
        }
    }

    /// The line of peerix.toml that makes these the static peers.
    pub(crate) fn setting(peers: &[&Self]) -> String {
        let peers: Vec<String> = peers
            .iter()
            .map(|peer| format!("{:?}", peer.udp.to_string()))
            .collect();
        format!("discovery.peers = [{}]", peers.join(", "))
    }

    pub(crate) fn udp(&self) -> SocketAddr {
        self.udp
    }

    pub(crate) fn http(&self) -> SocketAddr {
        self.http
    }

    /// HTTP requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().expect("requests").clone()
    }

    /// HTTP requests for NARs so far.
    pub(crate) fn asked_for_nars(&self) -> usize {
        let asked = self.asked();
        let nars = asked.iter().filter(|asked| asked.path.ends_with(".nar"));
        nars.count()
    }

    /// Datagrams so far.
    pub(crate) fn datagrams(&self) -> Vec<Vec<u8>> {
        self.shared.datagrams.lock().expect("datagrams").clone()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.shared.stopped.store(true, SeqCst);
        for stream in self.shared.open.lock().expect("connections").drain(..) {
            // It may be closed already.
            stream.shutdown(Shutdown::Both).ok();
        }
        // Wakes accept.
        TcpStream::connect(self.http).ok();
        for thread in self.threads.drain(..) {
            thread.join().expect("peer");
        }
    }
}

fn wait_until(has_happened: impl Fn() -> bool, longest: Duration) {
    let began = Instant::now();
    while !has_happened() && began.elapsed() < longest {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn answer_datagrams(shared: &Shared, socket: &UdpSocket, port: u16, reply: &Reply) {
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .expect("timeout");
    let mut buffer = [0; 2048];
    while !shared.stopped.load(SeqCst) {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let datagram = &buffer[..length];
        shared
            .datagrams
            .lock()
            .expect("datagrams")
            .push(datagram.to_vec());
        for answer in reply(datagram, port) {
            // The asker may have gone.
            socket.send_to(&answer, from).ok();
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener, serve: &Arc<Serve>) {
    while let Ok((stream, _)) = listener.accept() {
        if shared.stopped.load(SeqCst) {
            return;
        }
        shared
            .open
            .lock()
            .expect("connections")
            .push(stream.try_clone().expect("duplicate"));
        let (shared, serve) = (Arc::clone(shared), Arc::clone(serve));
        std::thread::spawn(move || converse(&shared, stream, &*serve));
    }
}

fn converse(shared: &Shared, mut stream: TcpStream, serve: &Serve) {
    let mut reader = BufReader::new(stream.try_clone().expect("duplicate"));
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if !reader.read_line(&mut head).is_ok_and(|bytes| bytes > 0) {
                return;
            }
        }
        let mut words = head.split(' ');
        let asked = Asked {
            method: words.next().unwrap_or_default().to_owned(),
            path: words.next().unwrap_or_default().to_owned(),
            head,
        };
        shared.asked.lock().expect("requests").push(asked.clone());
        match serve(&asked, &mut stream) {
            Ok(Then::KeepOpen) => {}
            Ok(Then::Reset) => {
                // Closing with a linger of zero sends a reset.
                socket2::SockRef::from(&stream)
                    .set_linger(Some(Duration::ZERO))
                    .expect("linger");
                shared.open.lock().expect("connections").clear();
                return;
            }
            Ok(Then::Close) | Err(_) => {
                stream.shutdown(Shutdown::Both).ok();
                return;
            }
        }
    }
}

/// Keeps the connection open and says nothing more until the other side goes away.
pub(crate) fn hang(stream: &mut TcpStream) -> std::io::Result<Then> {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    Ok(Then::Close)
}

/// 200 with this body.
pub(crate) fn ok(stream: &mut TcpStream, body: &[u8]) -> std::io::Result<Then> {
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )?;
    stream.write_all(body)?;
    Ok(Then::KeepOpen)
}

pub(crate) fn not_found(stream: &mut TcpStream) -> std::io::Result<Then> {
    stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
    Ok(Then::KeepOpen)
}

/// The head of an answer with the bytes of a NAR that were asked for, and those bytes.
pub(crate) fn part_of<'a>(asked: &Asked, nar: &'a [u8]) -> (String, &'a [u8]) {
    match asked.range() {
        Some((first, last)) => {
            let bytes = &nar[first as usize..=last as usize];
            let head = format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Length: {}\r\nContent-Range: bytes {first}-{last}/{}\r\n\r\n",
                bytes.len(),
                nar.len()
            );
            (head, bytes)
        }
        None => (
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", nar.len()),
            nar,
        ),
    }
}

/// What an honest peer does.
pub(crate) fn serve_honestly(
    items: &[Item],
    asked: &Asked,
    stream: &mut TcpStream,
) -> std::io::Result<Then> {
    for item in items {
        if asked.path == format!("/local/{}.narinfo", item.hash()) {
            return ok(stream, item.peer_narinfo().as_bytes());
        }
        if asked.path == format!("/nar/{}", item.nar_name()) {
            let (head, bytes) = part_of(asked, &item.nar);
            stream.write_all(head.as_bytes())?;
            stream.write_all(bytes)?;
            return Ok(Then::KeepOpen);
        }
    }
    not_found(stream)
}

/// The UDP side of a new peer that has everything.
pub(crate) fn has_all(datagram: &[u8], port: u16) -> Vec<Vec<u8>> {
    has(datagram, port, |_| true)
}

/// The UDP side of a new peer that says of each path whether it has it.
pub(crate) fn has(datagram: &[u8], port: u16, holds: impl Fn(&str) -> bool) -> Vec<Vec<u8>> {
    says(datagram, port, |hash| {
        if holds(hash) {
            PathState::Present
        } else {
            PathState::Absent
        }
    })
}

/// The UDP side of a new peer that says a state of each path.
pub(crate) fn says(datagram: &[u8], port: u16, state: impl Fn(&str) -> PathState) -> Vec<Vec<u8>> {
    match Datagram::parse(datagram) {
        Ok(Datagram::Request { id, hash }) if state(hash.as_str()) == PathState::Present => {
            vec![present(&id.to_be_bytes(), port, hash.as_str())]
        }
        Ok(Datagram::Ask(ask)) => {
            let states: Vec<_> = ask.hashes.iter().map(|it| state(it.as_str())).collect();
            if ask.only_if_any && states.iter().all(|&it| it == PathState::Absent) {
                return Vec::new();
            }
            vec![answer(ask.id, u64::from(port), port, &states)]
        }
        _ => Vec::new(),
    }
}

/// The hashes that an 0x02 asks for; none of another datagram.
pub(crate) fn asked_hashes(datagram: &[u8]) -> Vec<String> {
    match Datagram::parse(datagram) {
        Ok(Datagram::Ask(ask)) => ask.hashes.iter().map(ToString::to_string).collect(),
        _ => Vec::new(),
    }
}

/// An 0x02 to one peer.
pub(crate) fn ask(id: u32, instance: u64, http_port: u16, hashes: &[&str]) -> Vec<u8> {
    let hash = |text: &&str| StorePathHash::parse(text.as_bytes()).expect("a hash");
    let ask = Ask {
        id,
        sender: Sender {
            http_port,
            instance,
        },
        only_if_any: false,
        peers: Magnitude::of(1),
        hashes: hashes.iter().map(hash).collect(),
    };
    Datagram::Ask(ask).encode().to_vec()
}

/// An 0x03.
pub(crate) fn answer(id: u32, instance: u64, http_port: u16, states: &[PathState]) -> Vec<u8> {
    let answer = Answer {
        id,
        sender: Sender {
            http_port,
            instance,
        },
        streams: Magnitude::of(0),
        states: states.to_vec(),
    };
    Datagram::Answer(answer).encode().to_vec()
}

/// An 0x01.
pub(crate) fn present(id: &[u8], port: u16, hash: &str) -> Vec<u8> {
    let path = format!("local/{hash}.narinfo");
    [&[0x01], id, &u32::from(port).to_be_bytes(), path.as_bytes()].concat()
}
