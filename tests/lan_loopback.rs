//! The UDP task between two loopback addresses: nothing leaves the machine.

#![expect(clippy::expect_used, reason = "the helpers of tests are tests, too")]

use std::{
    net::{SocketAddr, UdpSocket as StdSocket},
    time::{Duration, Instant},
};

use peerix::{
    config::Config,
    format::StorePathHash,
    lan::{self, Identity, LanHandle},
    protocol::{
        PathState,
        datagram::{Answer, Ask, Datagram, Magnitude, Sender},
        discovery::{End, Kind, PeerRequest, Reject},
    },
};
use tokio::{net::UdpSocket, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

/// No wait of these tests is longer.
const BOUND: Duration = Duration::from_secs(10);

fn hash(number: u32) -> StorePathHash {
    StorePathHash::parse(format!("{number:032}").as_bytes()).expect("a hash")
}

fn bind(ip: &str) -> StdSocket {
    let socket = StdSocket::bind((ip, 0)).expect("a loopback socket");
    socket.set_nonblocking(true).expect("non-blocking");
    socket
}

fn local(socket: &StdSocket) -> SocketAddr {
    socket.local_addr().expect("an address")
}

fn config(peers: &[SocketAddr]) -> Config {
    let peers: Vec<String> = peers
        .iter()
        .map(|peer| format!("{:?}", peer.to_string()))
        .collect();
    let text = format!(
        "[discovery]\nbroadcast = false\nwake-timeout = \"200ms\"\npeers = [{}]\n",
        peers.join(", ")
    );
    Config::parse(&text).expect("a config")
}

/// A running task, and what its daemon would hold.
struct Host {
    handle: LanHandle,
    requests: mpsc::Receiver<PeerRequest>,
    stop: CancellationToken,
    task: JoinHandle<Result<(), lan::LanError>>,
}

impl Host {
    fn start(sockets: Vec<StdSocket>, peers: &[SocketAddr], room: usize) -> Self {
        let (sender, requests) = mpsc::channel(room);
        let sockets = sockets
            .into_iter()
            .map(|socket| UdpSocket::from_std(socket).expect("in a runtime"));
        let identity = Identity {
            http_port: 80,
            saved: None,
        };
        let (handle, task) = lan::open(
            sockets.collect(),
            &config(peers),
            identity,
            Box::new(|| Ok(Vec::new())),
            sender,
        )
        .expect("usable sockets");
        let stop = CancellationToken::new();
        let task = tokio::spawn(task.run(stop.clone()));
        Self {
            handle,
            requests,
            stop,
            task,
        }
    }

    /// Answers all requests from now on: held is what is below `bound`.
    fn answer(self, bound: u32) -> LanHandle {
        self.answer_with(move |asked, _| {
            if (0..bound).any(|number| hash(number) == asked) {
                PathState::Present
            } else {
                PathState::Absent
            }
        })
    }

    /// Answers all requests from now on; `state` gets a hash, and the number of requests so far.
    fn answer_with(
        self,
        state: impl Fn(StorePathHash, u32) -> PathState + Send + 'static,
    ) -> LanHandle {
        let Self {
            handle,
            mut requests,
            ..
        } = self;
        let answering = handle.clone();
        tokio::spawn(async move {
            let mut count = 0;
            while let Some(request) = requests.recv().await {
                let asked = request.hashes.iter();
                let states: Vec<_> = asked.map(|&it| state(it, count)).collect();
                answering.answer(&request, &states, 0);
                count += 1;
            }
        });
        handle
    }
}

/// An ask as a peer sends it.
fn ask(id: u32, hashes: &[StorePathHash]) -> Vec<u8> {
    let ask = Ask {
        id,
        sender: Sender {
            http_port: 80,
            instance: 5,
        },
        only_if_any: false,
        peers: Magnitude::of(0),
        hashes: hashes.to_vec(),
    };
    Datagram::Ask(ask).encode().to_vec()
}

#[tokio::test]
async fn two_hosts_find_what_the_other_has() {
    let (first, second) = (bind("127.0.0.1"), bind("127.0.0.2"));
    let (here, there) = (local(&first), local(&second));
    let asker = Host::start(vec![first], &[there], 1).answer(0);
    let holder = Host::start(vec![second], &[here], 1_024).answer(10);
    let mut lookup = asker.lookup(hash(1));
    let found = timeout(BOUND, lookup.next()).await.expect("in time");
    let expected: SocketAddr = "127.0.0.2:80".parse().expect("an address");
    assert_eq!(found.map(|peer| peer.socket_addr()), Some(expected));
    assert_eq!(timeout(BOUND, lookup.next()).await, Ok(None));
    let outcome = lookup.outcome().expect("an end");
    assert_eq!((outcome.present, outcome.absent), (1, 0));

    // No old peer is known, and the wait for one is over: a miss costs one round trip.
    let begin = Instant::now();
    let mut lookup = asker.lookup(hash(11));
    assert_eq!(timeout(BOUND, lookup.next()).await, Ok(None));
    let outcome = lookup.outcome().expect("an end");
    assert_eq!((outcome.end, outcome.absent), (End::Answered, 1));
    assert!(
        begin.elapsed() < Duration::from_millis(50),
        "{:?}",
        begin.elapsed()
    );

    let peers = asker.peers();
    assert_eq!(
        (peers.len(), peers[0].kind, peers[0].address),
        (1, Kind::New, there)
    );
    assert_eq!((peers[0].present, peers[0].absent), (1, 1));
    let counters = holder.counters();
    assert_eq!(
        (counters.io.answered_present, counters.io.answered_absent),
        (1, 1)
    );
    assert_eq!(counters.discovery.asks, 2, "one ask a lookup");
}

#[tokio::test]
async fn a_dropped_lookup_is_over() {
    let socket = bind("127.0.0.1");
    let nobody = local(&bind("127.0.0.3"));
    let host = Host::start(vec![socket], &[nobody], 1);
    drop(host.handle.lookup(hash(1)));
    assert_eq!(host.handle.counters().discovery.cancelled, 1);
    let mut lookup = host.handle.lookup(hash(2));
    assert_eq!(timeout(BOUND, lookup.next()).await, Ok(None));
    assert_eq!(
        lookup.outcome().map(|outcome| outcome.end),
        Some(End::TimedOut)
    );
    drop(lookup);
    assert_eq!(host.handle.counters().discovery.cancelled, 1);
}

#[tokio::test]
async fn stopping_ends_all_lookups() {
    let socket = bind("127.0.0.1");
    let nobody = local(&bind("127.0.0.3"));
    let host = Host::start(vec![socket], &[nobody], 1);
    let mut lookup = host.handle.lookup(hash(1));
    assert!(timeout(BOUND, host.handle.ping()).await.expect("in time"));
    host.stop.cancel();
    let ended = timeout(BOUND, host.task).await.expect("in time");
    ended.expect("no panic").expect("no error");
    assert_eq!(timeout(BOUND, lookup.next()).await, Ok(None));
    assert_eq!(lookup.outcome(), None);
    assert_eq!(
        timeout(BOUND, host.handle.lookup(hash(2)).next()).await,
        Ok(None)
    );
    assert!(!timeout(BOUND, host.handle.ping()).await.expect("in time"));
}

#[tokio::test]
async fn without_sockets_or_networks_lookups_end_at_once() {
    let host = Host::start(Vec::new(), &[], 1);
    let mut lookup = host.handle.lookup(hash(1));
    assert_eq!(timeout(BOUND, lookup.next()).await, Ok(None));
    assert_eq!(
        lookup.outcome().map(|outcome| outcome.end),
        Some(End::Alone)
    );
    let peer = local(&bind("127.0.0.3"));
    let host = Host::start(Vec::new(), &[peer], 1);
    let mut lookup = host.handle.lookup(hash(1));
    assert_eq!(timeout(BOUND, lookup.next()).await, Ok(None));
    assert!(host.handle.counters().io.send_refused > 0);
}

/// A bare socket that speaks to `host`, as a stranger or an old peer would.
struct Stranger {
    socket: UdpSocket,
    host: SocketAddr,
}

impl Stranger {
    fn new(ip: &str, host: SocketAddr) -> Self {
        let socket = UdpSocket::from_std(bind(ip)).expect("in a runtime");
        Self { socket, host }
    }

    async fn send(&self, bytes: &[u8]) {
        self.socket
            .send_to(bytes, self.host)
            .await
            .expect("loopback");
    }

    async fn receive(&self) -> Datagram {
        let mut buffer = [0; 512];
        let received = timeout(BOUND, self.socket.recv_from(&mut buffer)).await;
        let (length, from) = received.expect("in time").expect("a datagram");
        assert_eq!(from, self.host, "through the socket that was asked");
        Datagram::parse(&buffer[..length]).expect("a datagram")
    }
}

#[tokio::test]
async fn an_old_peer_gets_its_answer_from_the_socket_it_asked() {
    let sockets = [bind("127.0.0.1"), bind("127.0.0.4"), bind("::1")];
    let addresses: Vec<SocketAddr> = sockets.iter().map(local).collect();
    let _host = Host::start(sockets.into(), &[], 1_024).answer(10);
    for host in addresses {
        let ip = if host.is_ipv6() { "::1" } else { "127.0.0.9" };
        let stranger = Stranger::new(ip, host);
        let request = Datagram::Request {
            id: 7,
            hash: hash(3),
        };
        stranger.send(&request.encode()).await;
        let expected = Datagram::Response {
            id: 7,
            http_port: 80,
            hash: hash(3),
        };
        assert_eq!(stranger.receive().await, expected);
        let request = Datagram::Request {
            id: 8,
            hash: hash(30),
        };
        // An old peer is told nothing of what is not here.
        stranger.send(&request.encode()).await;
        stranger.send(&ask(9, &[hash(30), hash(3)])).await;
        let Datagram::Answer(answer) = stranger.receive().await else {
            panic!("no answer");
        };
        let states = vec![PathState::Absent, PathState::Present];
        assert_eq!((answer.id, answer.states), (9, states));
    }
}

#[tokio::test]
async fn answers_leave_from_the_address_that_was_asked() {
    // Of the whole loopback network the system would choose 127.0.0.1.
    for (bound, asked) in [
        ("0.0.0.0", &["127.0.0.5", "127.0.0.6"][..]),
        ("::", &["127.0.0.5", "::1", "127.0.0.6"]),
    ] {
        let socket = bind(bound);
        let port = local(&socket).port();
        let _host = Host::start(vec![socket], &[], 1_024).answer(10);
        for ip in asked {
            let host = SocketAddr::new(ip.parse().expect("an address"), port);
            let own = if host.is_ipv6() { "::1" } else { "127.0.0.9" };
            let stranger = Stranger::new(own, host);
            stranger.send(&ask(1, &[])).await;
            stranger.receive().await;
            stranger.send(&ask(2, &[hash(1)])).await;
            stranger.receive().await;
            let request = Datagram::Request {
                id: 3,
                hash: hash(1),
            };
            stranger.send(&request.encode()).await;
            stranger.receive().await;
        }
    }
}

#[tokio::test]
async fn a_path_that_its_holder_cannot_decide_at_once_is_found_by_the_repeat() {
    for undecided in 1..=3 {
        let (first, second) = (bind("127.0.0.1"), bind("127.0.0.2"));
        let (here, there) = (local(&first), local(&second));
        let asker = Host::start(vec![first], &[there], 1).answer(0);
        let holder = Host::start(vec![second], &[here], 1_024).answer_with(move |_, count| {
            if count < undecided {
                PathState::Undecided
            } else {
                PathState::Present
            }
        });
        let mut lookup = asker.lookup(hash(1));
        let found = timeout(BOUND, lookup.next()).await.expect("in time");
        assert!(found.is_some(), "after {undecided} answers without a word");
        drop(lookup);
        assert_eq!(holder.counters().io.answered_absent, 0);
        let repeated = asker.counters().discovery.repeated;
        assert_eq!(repeated, u64::from(undecided));
    }
}

#[tokio::test]
async fn junk_is_counted_and_the_task_goes_on() {
    let socket = bind("127.0.0.1");
    let address = local(&socket);
    let host = Host::start(vec![socket], &[], 1_024).answer(10);
    let stranger = Stranger::new("127.0.0.9", address);
    for length in [0, 1, 4, 36, 1_400, 2_049, 9_000] {
        stranger.send(&vec![0xee; length]).await;
        stranger.send(&vec![0x00; length]).await;
        stranger.send(&vec![0x03; length]).await;
    }
    // More hashes than fit, and fewer than announced.
    let mut many = ask(4, &[hash(1); 56]);
    many[17] = 57;
    stranger.send(&many).await;
    stranger.send(&ask(5, &[hash(1); 3])[..77]).await;
    stranger.send(&ask(6, &[])).await;
    let answer = stranger.receive().await;
    assert!(matches!(answer, Datagram::Answer(Answer { id: 6, .. })));
    let counters = host.counters();
    assert_eq!(counters.discovery.received, 24);
    let rejected: u64 = counters.discovery.rejected().map(|(_, count)| count).sum();
    assert_eq!(rejected, 23, "{counters:?}");
    let unknown = counters
        .discovery
        .rejected()
        .find(|&(kind, _)| kind == Reject::UnknownType);
    assert_eq!(unknown, Some((Reject::UnknownType, 6)));
}

#[tokio::test]
async fn requests_beyond_the_bound_are_dropped() {
    let socket = bind("127.0.0.1");
    let address = local(&socket);
    let mut host = Host::start(vec![socket], &[], 4);
    let stranger = Stranger::new("127.0.0.9", address);
    for id in 0..100 {
        stranger
            .send(&Datagram::Request { id, hash: hash(3) }.encode())
            .await;
    }
    stranger.send(&ask(6, &[])).await;
    assert!(matches!(
        stranger.receive().await,
        Datagram::Answer(Answer { id: 6, .. })
    ));
    assert_eq!(host.handle.counters().io.requests_dropped, 96);
    for _ in 0..4 {
        let request = host.requests.recv().await.expect("a request");
        host.handle.answer(&request, &[PathState::Present], 0);
        assert!(matches!(
            stranger.receive().await,
            Datagram::Response { .. }
        ));
    }
}

#[tokio::test]
async fn networks_that_are_not_allowed_hear_nothing() {
    let socket = bind("127.0.0.1");
    let address = local(&socket);
    let mut host = Host::start(vec![socket], &[], 4);
    let mut config = config(&[]);
    config.allowed_networks = vec!["127.0.0.8/32".parse().expect("a network")];
    host.handle.configure(&config);
    let request = Datagram::Request {
        id: 1,
        hash: hash(3),
    }
    .encode();
    Stranger::new("127.0.0.9", address).send(&request).await;
    Stranger::new("127.0.0.8", address).send(&request).await;
    let request = timeout(BOUND, host.requests.recv()).await.expect("in time");
    let from = request.expect("a request").from.ip();
    assert_eq!(from.to_string(), "127.0.0.8");
    let counters = host.handle.counters().discovery;
    let refused = counters
        .rejected()
        .find(|&(kind, _)| kind == Reject::NotAllowed);
    assert_eq!(refused, Some((Reject::NotAllowed, 1)));
}

#[tokio::test]
async fn a_peer_whose_port_is_closed_does_not_end_the_task() {
    let socket = bind("127.0.0.1");
    let closed = local(&bind("127.0.0.3"));
    let host = Host::start(vec![socket], &[closed], 4);
    for number in 0..20 {
        let mut lookup = host.handle.lookup(hash(number));
        assert_eq!(timeout(BOUND, lookup.next()).await, Ok(None));
    }
    assert!(timeout(BOUND, host.handle.ping()).await.expect("in time"));
    assert!(!host.task.is_finished());
}

#[tokio::test]
async fn the_next_process_knows_what_this_one_knew() {
    let (first, second) = (bind("127.0.0.1"), bind("127.0.0.2"));
    let (here, there) = (local(&first), local(&second));
    let copy = first
        .try_clone()
        .expect("a descriptor, as systemd keeps one");
    let asker = Host::start(vec![first], &[there], 1);
    let _holder = Host::start(vec![second], &[here], 1_024).answer(10);
    let mut lookup = asker.handle.lookup(hash(1));
    assert!(
        timeout(BOUND, lookup.next())
            .await
            .expect("in time")
            .is_some()
    );
    asker.stop.cancel();
    let ended = timeout(BOUND, asker.task).await.expect("in time");
    ended.expect("no panic").expect("no error");
    let saved = asker.handle.save();
    assert_eq!(saved.peers.len(), 1);

    let stranger = Stranger::new("127.0.0.9", here);
    stranger
        .send(
            &Datagram::Request {
                id: 9,
                hash: hash(1),
            }
            .encode(),
        )
        .await;
    let (sender, mut requests) = mpsc::channel(4);
    let identity = Identity {
        http_port: 80,
        saved: Some((saved.clone(), Duration::ZERO)),
    };
    let sockets = vec![UdpSocket::from_std(copy).expect("in a runtime")];
    let opened = lan::open(
        sockets,
        &config(&[there]),
        identity,
        Box::new(|| Ok(Vec::new())),
        sender,
    );
    let (handle, task) = opened.expect("usable sockets");
    assert_eq!(handle.save().instance, saved.instance);
    assert_eq!(handle.peers().len(), 1);
    tokio::spawn(task.run(CancellationToken::new()));
    let request = timeout(BOUND, requests.recv()).await.expect("in time");
    assert_eq!(request.expect("it waited in the socket").hashes, [hash(1)]);
}
