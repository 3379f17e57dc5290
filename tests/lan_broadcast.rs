//! Broadcast and multicast on real interfaces, in network namespaces of the tests' own: bridges in one
//! namespace, hosts in others, and no way out. Each host is this test binary again, run in
//! its namespace; it takes orders on stdin and reports on stdout.
//!
//! Needs root and `ip`; without them the tests say that they are skipped.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "the helpers of tests are tests, too"
)]

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Lines, Write},
    net::{IpAddr, SocketAddr, UdpSocket as StdSocket},
    os::fd::AsFd,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use peerix::{
    config::Config,
    format::StorePathHash,
    lan::{self, Identity, LanHandle},
    protocol::{Held, Interface},
    system::interfaces::{self, InterfaceAddress},
};
use socket2::{Domain, Socket, Type};
use tokio::{net::UdpSocket, sync::mpsc};
use tokio_util::sync::CancellationToken;

const PORT: u16 = 12_304;

/// Longest wait for something that has to happen.
const BOUND: Duration = Duration::from_secs(10);

/// Tells the binary that it is a host: what it binds.
const HOST: &str = "PEERIX_TEST_LAN_HOST";

fn hash(number: u32) -> StorePathHash {
    StorePathHash::parse(format!("{number:032}").as_bytes()).expect("a hash")
}

// The networks.

static NAMESPACES: AtomicU32 = AtomicU32::new(0);

fn ip(arguments: &str) {
    let run = Command::new("ip").args(arguments.split(' ')).output();
    let output = run.expect("ip");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
}

fn can_make_namespaces() -> bool {
    let name = format!("peerix-try-{}", std::process::id());
    let number = NAMESPACES.fetch_add(1, Ordering::Relaxed);
    let name = format!("{name}-{number}");
    let made = Command::new("ip").args(["netns", "add", &name]).output();
    let made = made.is_ok_and(|output| output.status.success());
    if made {
        ip(&format!("netns del {name}"));
    } else {
        println!("skipped: network namespaces cannot be made here (not root, or no `ip`)");
    }
    made
}

/// A namespace, gone when dropped.
#[derive(Debug)]
struct Namespace(String);

impl Namespace {
    fn new() -> Self {
        let number = NAMESPACES.fetch_add(1, Ordering::Relaxed);
        let name = format!("peerix-{}-{number}", std::process::id());
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Self(name)
    }

    /// A bridge in this namespace; interfaces of hosts are plugged into it.
    fn bridge(&self, name: &str) {
        ip(&format!(
            "-n {} link add {name} type bridge forward_delay 0",
            self.0
        ));
        ip(&format!("-n {} link set {name} up", self.0));
    }

    /// An interface in `host`, plugged into `bridge` of this namespace. With a link-local IPv6
    /// address it has that one at once, and no other.
    /// The name of its other end is returned.
    fn plug(&self, bridge: &str, host: &Self, interface: &str, address: &str) -> String {
        let plug = format!("p{}", NAMESPACES.fetch_add(1, Ordering::Relaxed));
        ip(&format!(
            "-n {} link add {plug} type veth peer name {interface} netns {}",
            self.0, host.0
        ));
        ip(&format!("-n {} link set {plug} master {bridge} up", self.0));
        if address.starts_with("fe80:") {
            host.ip(&format!("link set {interface} addrgenmode none"));
            host.ip(&format!("addr add {address} dev {interface} nodad"));
        } else {
            host.ip(&format!("addr add {address} dev {interface}"));
        }
        // No second of asking whether another has the address that the link makes.
        let dad = format!("/proc/sys/net/ipv6/conf/{interface}/accept_dad");
        host.shell(&format!("echo 0 > {dad}"));
        host.ip(&format!("link set {interface} up"));
        host.await_link_local(interface);
        plug
    }

    /// Waits until the interface may use its link-local IPv6 address: to a host that runs by
    /// then it is one more network to look for sleepers in, in mid-test.
    fn await_link_local(&self, interface: &str) {
        let begin = Instant::now();
        let show = ["-n", &self.0, "-o", "-6", "addr", "show", interface];
        loop {
            let output = Command::new("ip").args(show).output().expect("ip");
            let addresses = String::from_utf8_lossy(&output.stdout);
            if addresses.contains("fe80:") && !addresses.contains("tentative") {
                return;
            }
            assert!(begin.elapsed() < BOUND, "{interface}: {addresses}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the interface knows that the other end is up, which it hears a moment later.
    fn await_carrier(&self, interface: &str) {
        let begin = Instant::now();
        let show = ["-n", &self.0, "-o", "link", "show", interface];
        loop {
            let output = Command::new("ip").args(show).output().expect("ip");
            if String::from_utf8_lossy(&output.stdout).contains("state UP") {
                return;
            }
            assert!(begin.elapsed() < BOUND, "{interface} has no carrier");
        }
    }

    fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.0));
    }

    fn shell(&self, script: &str) {
        let run = Command::new("ip")
            .args(["netns", "exec", &self.0, "sh", "-c", script])
            .status();
        assert!(run.is_ok_and(|status| status.success()), "{script}");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "del", &self.0]).status();
        if !deleted.is_ok_and(|status| status.success()) {
            println!("the namespace {} is left over", self.0);
        }
    }
}

// A host, seen from the test.

struct Host {
    process: Child,
    orders: ChildStdin,
    reports: Lines<BufReader<ChildStdout>>,
}

/// What a lookup found, and how it ended.
#[derive(Debug, PartialEq)]
struct Found {
    holders: BTreeSet<IpAddr>,
    end: String,
    absent: u32,
}

impl Host {
    /// `binds` as `[::]` or `0.0.0.0`, after `asleep` not read before a datagram comes; `extra` is added to the configuration.
    fn start(namespace: &Namespace, binds: &str, extra: &str) -> Self {
        let program = std::env::current_exe().expect("this binary");
        let mut process = Command::new("ip")
            .args(["netns", "exec", &namespace.0])
            .arg(program)
            .args([
                "--exact",
                "host",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(HOST, format!("{binds}\n{extra}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a host");
        let orders = process.stdin.take().expect("its stdin");
        let reports = BufReader::new(process.stdout.take().expect("its stdout")).lines();
        let mut host = Self {
            process,
            orders,
            reports,
        };
        assert_eq!(host.report(), "ready");
        host
    }

    fn report(&mut self) -> String {
        loop {
            let line = self.reports.next().expect("a report").expect("text");
            // The test harness writes its own lines, and does not end them all.
            if let Some((_, report)) = line.split_once("> ") {
                return report.to_owned();
            }
        }
    }

    fn order(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("the host listens");
    }

    fn hold(&mut self, number: u32) {
        self.order(&format!("hold {number}"));
        assert_eq!(self.report(), "held");
    }

    fn lookup(&mut self, number: u32) -> Found {
        self.order(&format!("lookup {number}"));
        let mut holders = BTreeSet::new();
        loop {
            let report = self.report();
            let words: Vec<&str> = report.split(' ').collect();
            match words[..] {
                ["candidate", address] => {
                    let address: SocketAddr = address.parse().expect("an address");
                    assert!(holders.insert(address.ip()), "{address} twice");
                }
                ["ended", end, absent] => {
                    let end = end.to_owned();
                    let absent = absent.parse().expect("a number");
                    return Found {
                        holders,
                        end,
                        absent,
                    };
                }
                _ => panic!("{report}"),
            }
        }
    }

    /// Who has told this host of itself.
    fn peers(&mut self) -> BTreeSet<IpAddr> {
        self.order("peers");
        let report = self.report();
        let address = |word: &str| word.parse::<SocketAddr>().expect("an address").ip();
        report.split_whitespace().map(address).collect()
    }

    fn counters(&mut self) -> (u64, u64, u64) {
        self.order("counters");
        let report = self.report();
        let numbers: Vec<u64> = report
            .split(' ')
            .map(|word| word.parse().expect("a number"))
            .collect();
        (numbers[0], numbers[1], numbers[2])
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self
            .process
            .kill()
            .and_then(|()| self.process.wait())
            .is_err()
        {
            println!("a host was gone already");
        }
    }
}

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts
        .iter()
        .map(|text| text.parse().expect("an address"))
        .collect()
}

// The tests.

#[test]
fn a_dual_stack_socket_asks_and_answers_by_broadcast() {
    if !can_make_namespaces() {
        return;
    }
    let (switch, a, b, c) = (
        Namespace::new(),
        Namespace::new(),
        Namespace::new(),
        Namespace::new(),
    );
    switch.bridge("br0");
    switch.plug("br0", &a, "lan0", "10.77.0.1/24");
    switch.plug("br0", &b, "lan0", "10.77.0.2/24");
    switch.plug("br0", &c, "lan0", "10.77.0.3/24");
    let mut asker = Host::start(&a, "[::]", "");
    let mut dual = Host::start(&b, "[::]", "");
    let mut single = Host::start(&c, "0.0.0.0", "");
    dual.hold(1);
    single.hold(1);
    asker.hold(1);
    assert_eq!(
        asker.lookup(1).holders,
        addresses(&["10.77.0.2", "10.77.0.3"])
    );
    let found = single.lookup(1);
    assert_eq!(found.holders, addresses(&["10.77.0.1", "10.77.0.2"]));
    let found = asker.lookup(2);
    assert_eq!((found.end.as_str(), found.absent), ("Answered", 2));
    let (echoes, questions, bursts) = asker.counters();
    assert_eq!(
        (questions, bursts),
        (1, 1),
        "its own broadcasts are no questions"
    );
    // A hello, a request, and on a slow machine a probe, each by broadcast and by multicast.
    assert!(echoes <= 6, "{echoes}");
    assert_eq!(dual.counters().2, 0, "who asks nothing broadcasts nothing");
}

#[test]
fn every_chosen_interface_is_asked_and_no_other() {
    if !can_make_namespaces() {
        return;
    }
    let switch = Namespace::new();
    let a = Namespace::new();
    let networks = [
        ("lan0", "10.1.0.", "24"),
        ("lan1", "192.168.7.", "25"),
        ("lan2", "169.254.3.", "16"),
        ("lan3", "169.254.4.", "16"),
        ("guest0", "172.16.5.", "24"),
        ("wan0", "8.8.8.", "24"),
    ];
    let mut peers = Vec::new();
    for (index, (interface, network, prefix)) in networks.iter().enumerate() {
        let bridge = format!("br{index}");
        switch.bridge(&bridge);
        switch.plug(&bridge, &a, interface, &format!("{network}1/{prefix}"));
        let peer = Namespace::new();
        switch.plug(&bridge, &peer, "lan0", &format!("{network}2/{prefix}"));
        let mut host = Host::start(&peer, "0.0.0.0", "");
        host.hold(1);
        peers.push((host, peer));
    }
    let found = |extra: &str| Host::start(&a, "[::]", extra).lookup(1).holders;
    let all = ["10.1.0.2", "192.168.7.2", "169.254.3.2", "172.16.5.2"];
    // Both link-local networks are asked; two hosts there may answer, but only the one that
    // the routes lead to gets our answers back, so which of them is found is not our matter.
    let without_second = |holders: BTreeSet<IpAddr>| -> BTreeSet<IpAddr> {
        let second: IpAddr = "169.254.4.2".parse().expect("an address");
        holders
            .into_iter()
            .filter(|&holder| holder != second)
            .collect()
    };
    assert_eq!(without_second(found("")), addresses(&all));
    let asked: Vec<u64> = peers
        .iter_mut()
        .map(|(host, _)| host.counters().1)
        .collect();
    assert_eq!(
        asked,
        [1, 1, 1, 1, 1, 0],
        "link-local ones both, a public one never"
    );
    let holders = found("[interfaces]\nexclude = [\"guest*\", \"lan[23]\"]\n");
    assert_eq!(holders, addresses(&["10.1.0.2", "192.168.7.2"]));
    let holders = found("[interfaces]\ninclude = [\"lan1\"]\n");
    assert_eq!(holders, addresses(&["192.168.7.2"]));
    let asked: Vec<u64> = peers
        .iter_mut()
        .map(|(host, _)| host.counters().1)
        .collect();
    assert_eq!(asked, [2, 3, 1, 1, 1, 0]);
}

#[test]
fn a_network_that_comes_and_goes_is_seen() {
    if !can_make_namespaces() {
        return;
    }
    let (switch, a, b, c) = (
        Namespace::new(),
        Namespace::new(),
        Namespace::new(),
        Namespace::new(),
    );
    switch.bridge("br0");
    switch.bridge("br1");
    switch.plug("br0", &b, "lan0", "10.77.0.2/24");
    switch.plug("br1", &c, "lan0", "10.78.0.2/24");
    let mut first = Host::start(&b, "[::]", "");
    let mut second = Host::start(&c, "[::]", "");
    first.hold(1);
    second.hold(1);
    let mut asker = Host::start(&a, "[::]", "");
    assert_eq!(asker.lookup(1).end, "Alone", "there is no network");

    // Each change is seen by the very next lookup, however soon that comes.
    switch.plug("br0", &a, "lan0", "10.77.0.1/24");
    assert_eq!(asker.lookup(1).holders, addresses(&["10.77.0.2"]));
    switch.plug("br1", &a, "lan1", "10.78.0.1/24");
    let both = addresses(&["10.77.0.2", "10.78.0.2"]);
    assert_eq!(asker.lookup(1).holders, both);

    a.ip("link del lan0");
    assert_eq!(asker.lookup(1).holders, addresses(&["10.78.0.2"]));

    a.ip("addr flush dev lan1");
    a.ip("addr add 10.78.0.9/24 dev lan1");
    let found = asker.lookup(1);
    assert_eq!(found.holders, addresses(&["10.78.0.2"]), "another address");

    a.ip("link set lan1 down");
    assert_eq!(asker.lookup(1).end, "Alone", "down");
    a.ip("link set lan1 up");
    assert_eq!(asker.lookup(1).holders, addresses(&["10.78.0.2"]), "up");
}

#[test]
fn a_cable_that_was_in_another_switch_meanwhile_is_a_new_network() {
    if !can_make_namespaces() {
        return;
    }
    let (switch, a, b, c) = (
        Namespace::new(),
        Namespace::new(),
        Namespace::new(),
        Namespace::new(),
    );
    switch.bridge("br0");
    switch.bridge("br1");
    switch.plug("br0", &b, "lan0", "10.77.0.2/24");
    switch.plug("br1", &c, "lan0", "10.77.0.3/24");
    let plug = switch.plug("br0", &a, "lan0", "10.77.0.1/24");
    let mut first = Host::start(&b, "[::]", "");
    let mut second = Host::start(&c, "[::]", "");
    first.hold(1);
    second.hold(2);
    let mut asker = Host::start(&a, "[::]", "");
    assert_eq!(asker.lookup(1).holders, addresses(&["10.77.0.2"]));
    // Between two lookups, with the same address and the same prefix on the other side.
    switch.ip(&format!("link set {plug} down"));
    switch.ip(&format!("link set {plug} master br1"));
    switch.ip(&format!("link set {plug} up"));
    a.await_carrier("lan0");
    assert_eq!(asker.lookup(2).holders, addresses(&["10.77.0.3"]));
    assert_eq!(asker.counters().2, 2, "a hello for each network");
}

#[test]
fn a_new_name_is_judged_at_once() {
    if !can_make_namespaces() {
        return;
    }
    let (switch, a, b) = (Namespace::new(), Namespace::new(), Namespace::new());
    switch.bridge("br0");
    switch.plug("br0", &a, "lan0", "fe80::a/64");
    switch.plug("br0", &b, "lan0", "fe80::b/64");
    let mut holder = Host::start(&b, "[::]", "");
    holder.hold(1);
    let mut asker = Host::start(&a, "[::]", "[interfaces]\ninclude = [\"lan*\"]\n");
    let rename = |from: &str, to: &str| {
        a.ip(&format!("link set {from} down"));
        a.ip(&format!("link set {from} name {to}"));
        // IPv6 addresses do not outlive a link that goes down.
        a.ip(&format!("addr add fe80::a/64 dev {to} nodad"));
        a.ip(&format!("link set {to} up"));
    };
    assert_eq!(asker.lookup(1).holders, addresses(&["fe80::b"]));
    rename("lan0", "guest0");
    assert_eq!(asker.lookup(1).end, "Alone");
    rename("guest0", "lan9");
    assert_eq!(asker.lookup(1).holders, addresses(&["fe80::b"]));
}

#[test]
fn multicast_finds_peers_on_a_link_without_ipv4() {
    if !can_make_namespaces() {
        return;
    }
    let (switch, a, b, c) = (
        Namespace::new(),
        Namespace::new(),
        Namespace::new(),
        Namespace::new(),
    );
    switch.bridge("br0");
    switch.plug("br0", &a, "lan0", "fe80::a/64");
    switch.plug("br0", &b, "lan0", "fe80::b/64");
    switch.plug("br0", &c, "lan0", "fe80::c/64");
    let mut asker = Host::start(&a, "[::]", "");
    let mut holder = Host::start(&b, "[::]", "");
    let mut other = Host::start(&c, "[::]", "");
    holder.hold(1);
    asker.hold(1);
    let found = asker.lookup(1);
    assert_eq!(found.holders, addresses(&["fe80::b"]));
    assert_eq!((found.end.as_str(), found.absent), ("Timeout", 1));
    let found = asker.lookup(2);
    assert_eq!((found.end.as_str(), found.absent), ("Answered", 2));
    let (echoes, questions, bursts) = asker.counters();
    assert_eq!(
        (echoes, questions, bursts),
        (3, 0, 1),
        "it hears its own hello and requests, and they are no questions"
    );
    assert_eq!(holder.counters().2, 0, "who asks nothing sends to nobody");
    assert_eq!(other.lookup(1).holders, addresses(&["fe80::a", "fe80::b"]));
}

#[test]
fn a_bridge_is_asked_and_its_ports_are_not() {
    if !can_make_namespaces() {
        return;
    }
    let (switch, a, b) = (Namespace::new(), Namespace::new(), Namespace::new());
    switch.bridge("br0");
    switch.plug("br0", &a, "port0", "fe80::aa/64");
    switch.plug("br0", &b, "lan0", "fe80::b/64");
    let mut holder = Host::start(&b, "[::]", "");
    holder.hold(1);
    a.bridge("lan0");
    a.ip("addr add fe80::a/64 dev lan0 nodad");
    a.ip("link set port0 master lan0");
    let mut asker = Host::start(&a, "[::]", "");
    assert_eq!(asker.lookup(1).holders, addresses(&["fe80::b"]));
    assert_eq!(holder.peers(), addresses(&["fe80::a"]));
}

#[test]
fn a_socket_that_nobody_reads_hears_multicast() {
    if !can_make_namespaces() {
        return;
    }
    let (switch, a, b) = (Namespace::new(), Namespace::new(), Namespace::new());
    switch.bridge("br0");
    switch.plug("br0", &a, "lan0", "fe80::a/64");
    switch.plug("br0", &b, "lan0", "fe80::b/64");
    let mut sleeper = Host::start(&b, "asleep [::]", "");
    let mut asker = Host::start(&a, "[::]", "[discovery]\nwake-timeout = \"5s\"\n");
    asker.order("lookup 1");
    assert_eq!(sleeper.report(), "woken");
    assert_eq!(sleeper.report(), "ready");
    sleeper.hold(1);
    let index = interface_index(&a, "lan0");
    // It may have read the first question before it knew what it holds.
    let report = asker.report();
    let here = format!("candidate [fe80::b%{index}]:{PORT}");
    assert!(report == here || report == "ended Timeout 1", "{report}");
    assert!(sleeper.counters().1 > 0, "the question was not lost");
}

#[test]
fn two_subnets_on_one_link_find_each_other() {
    if !can_make_namespaces() {
        return;
    }
    let (switch, a, b) = (Namespace::new(), Namespace::new(), Namespace::new());
    switch.bridge("br0");
    switch.plug("br0", &a, "lan0", "fe80::a/64");
    switch.plug("br0", &b, "lan0", "fe80::b/64");
    a.ip("addr add 10.1.0.1/24 brd + dev lan0");
    b.ip("addr add 10.2.0.1/24 brd + dev lan0");
    let mut holder = Host::start(&b, "[::]", "");
    holder.hold(1);
    let mut asker = Host::start(&a, "[::]", "");
    assert_eq!(asker.lookup(1).holders, addresses(&["fe80::b"]));
}

#[test]
fn without_broadcast_there_is_no_multicast() {
    if !can_make_namespaces() {
        return;
    }
    let (switch, a, b) = (Namespace::new(), Namespace::new(), Namespace::new());
    switch.bridge("br0");
    switch.plug("br0", &a, "lan0", "fe80::a/64");
    switch.plug("br0", &b, "lan0", "fe80::b/64");
    let index = interface_index(&a, "lan0");
    let mut holder = Host::start(&b, "[::]", "");
    let peers = format!("peers = [\"[fe80::b%{index}]:{PORT}\"]\n");
    let ask = |settings: &str| {
        let mut asker = Host::start(&a, "[::]", &format!("[discovery]\n{settings}{peers}"));
        for number in 0..3 {
            asker.lookup(number);
        }
    };
    ask("broadcast = false\n");
    assert_eq!(holder.counters().1, 3, "each question once: directly");
    ask("");
    let asked = holder.counters().1 - 3;
    assert!(
        asked > 3,
        "the first question twice, it is not known yet that both ways lead there"
    );
}

#[test]
fn a_static_peer_is_found_over_ipv6_with_its_scope() {
    if !can_make_namespaces() {
        return;
    }
    let (switch, a, b) = (Namespace::new(), Namespace::new(), Namespace::new());
    switch.bridge("br0");
    switch.plug("br0", &a, "lan0", "fe80::a/64");
    switch.plug("br0", &b, "lan0", "fe80::b/64");
    let index = interface_index(&a, "lan0");
    let mut holder = Host::start(&b, "[::]", "[discovery]\nbroadcast = false\n");
    holder.hold(1);
    let peers = format!("[discovery]\nbroadcast = false\npeers = [\"[fe80::b%{index}]:{PORT}\"]\n");
    let mut asker = Host::start(&a, "[::]", &peers);
    asker.order("lookup 1");
    assert_eq!(
        asker.report(),
        format!("candidate [fe80::b%{index}]:{PORT}")
    );
}

fn interface_index(namespace: &Namespace, interface: &str) -> u32 {
    let output = Command::new("ip")
        .args(["-n", &namespace.0, "-o", "link", "show", interface])
        .output()
        .expect("ip");
    let text = String::from_utf8(output.stdout).expect("text");
    let (index, _) = text.split_once(':').expect("an index");
    index.parse().expect("a number")
}

// A host, from within.

#[test]
#[ignore = "the other tests run it, as a host in a namespace"]
fn host() {
    let role = std::env::var(HOST).expect("the tests say what to bind");
    let (binds, extra) = role.split_once('\n').expect("two parts");
    let config = Config::parse(extra).expect("a config");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let socket = match binds.strip_prefix("asleep ") {
        None => bind(binds),
        Some(binds) => {
            let socket = bind(binds);
            println!("\n> ready");
            await_datagram(&socket);
            println!("> woken");
            socket
        }
    };
    runtime.block_on(run_host(socket, config));
}

fn bind(text: &str) -> StdSocket {
    let address: SocketAddr = format!("{text}:{PORT}").parse().expect("an address");
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None).expect("a socket");
    if address.is_ipv6() {
        socket.set_only_v6(false).expect("dual-stack");
    }
    socket.set_nonblocking(true).expect("non-blocking");
    socket.bind(&address.into()).expect("its address");
    socket.into()
}

/// As systemd waits for a service: the socket is bound and in no group, and nobody reads it.
fn await_datagram(socket: &StdSocket) {
    let mut readable = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let bound = PollTimeout::try_from(BOUND).expect("not so long");
    assert_eq!(poll(&mut readable, bound), Ok(1), "nothing has come");
}

async fn run_host(socket: StdSocket, config: Config) {
    let (sender, mut questions) = mpsc::channel(lan::MAX_QUESTIONS);
    let sockets = vec![UdpSocket::from_std(socket).expect("in a runtime")];
    let identity = Identity {
        http_port: PORT,
        saved: None,
    };
    let opened = lan::open(sockets, &config, identity, Box::new(interfaces), sender);
    let (handle, task) = opened.expect("usable sockets");
    let stop = CancellationToken::new();
    let task = tokio::spawn(task.run(stop.clone()));
    println!("\n> ready");
    let (to_host, mut orders) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines() {
            to_host.send(line.expect("text")).expect("the host listens");
        }
    });
    let mut held = BTreeSet::new();
    loop {
        tokio::select! {
            Some(question) = questions.recv() => {
                let is_held = |asked: &_| held.iter().any(|&number| hash(number) == *asked);
                let held = Held::of(question.hashes().iter().map(is_held));
                handle.answer(&question, held);
            }
            order = orders.recv() => match order {
                Some(order) => obey(&handle, &order, &mut held).await,
                None => break,
            },
        }
    }
    stop.cancel();
    task.await.expect("no panic").expect("no error");
}

async fn obey(handle: &LanHandle, order: &str, held: &mut BTreeSet<u32>) {
    let words: Vec<&str> = order.split(' ').collect();
    match words[..] {
        ["hold", number] => {
            held.insert(number.parse().expect("a number"));
            println!("> held");
        }
        ["lookup", number] => {
            let mut lookup = handle.lookup(hash(number.parse().expect("a number")));
            while let Some(peer) = lookup.next().await {
                println!("> candidate {peer}");
            }
            let outcome = lookup.outcome().expect("an end");
            println!("> ended {:?} {}", outcome.end, outcome.absent);
        }
        ["peers"] => {
            let peers = handle.peers().into_iter();
            let peers: Vec<String> = peers.map(|peer| peer.address.to_string()).collect();
            println!("> {}", peers.join(" "));
        }
        ["counters"] => {
            let counters = handle.counters().discovery;
            println!(
                "> {} {} {}",
                counters.echoes, counters.requests, counters.bursts
            );
        }
        _ => panic!("{order}"),
    }
}

/// As the daemon lists them.
fn interfaces() -> Vec<Interface> {
    let listed = interfaces::list().expect("the interfaces");
    let discovered = |listed: InterfaceAddress| Interface {
        name: listed.name,
        index: listed.index,
        is_up: listed.up,
        can_broadcast: listed.broadcasts && !listed.loopback && !listed.point_to_point,
        can_multicast: listed.multicast && !listed.loopback && !listed.port,
        address: listed.ip,
        is_tentative: listed.tentative,
        prefix: listed.prefix_length,
        broadcast: listed.broadcast,
    };
    listed.into_iter().map(discovered).collect()
}
