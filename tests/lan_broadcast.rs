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
    io::{self, BufRead, BufReader, Lines, Write},
    net::{IpAddr, SocketAddr, UdpSocket as StdSocket},
    os::fd::AsFd,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    time::{ClockId, clock_gettime},
};
use peerix::{
    config::Config,
    format::StorePathHash,
    lan::{self, Identity, LanHandle},
    protocol::{
        Interface, PathState,
        datagram::{Ask, Datagram, Magnitude, Sender},
    },
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

/// Held for writing by a test that keeps the kernel's lock of all interfaces busy.
static TURNS: RwLock<()> = RwLock::new(());

/// For as long as it is held; none if this machine cannot run these tests.
fn turn() -> Option<RwLockReadGuard<'static, ()>> {
    can_make_namespaces().then(|| TURNS.read().unwrap_or_else(PoisonError::into_inner))
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

    /// Commands of `ip`, one a line.
    fn ip_batch(&self, commands: &str) {
        let mut run = Command::new("ip")
            .args(["-n", &self.0, "-batch", "-"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("ip");
        let mut stdin = run.stdin.take().expect("its stdin");
        stdin.write_all(commands.as_bytes()).expect("ip reads");
        drop(stdin);
        assert!(run.wait().is_ok_and(|status| status.success()));
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

/// What a host has counted; asks include the requests of old peers.
#[derive(Debug)]
struct Counters {
    echoes: u64,
    asks: u64,
    bursts: u64,
    discoveries: u64,
    sent: u64,
    cpu: Duration,
}

/// What a lookup found, and how it ended.
#[derive(Debug, PartialEq)]
struct Found {
    holders: BTreeSet<IpAddr>,
    end: String,
    absent: u32,
}

impl Host {
    /// `binds` as `[::]` or `0.0.0.0`, after `asleep` not read before a datagram comes; `raw` for a
    /// host that only sends what it is told. `extra` is added to the configuration.
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
        let mut holders = BTreeSet::<IpAddr>::new();
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
                    // Most are found at their link-local addresses, too.
                    if holders.iter().any(IpAddr::is_ipv4) {
                        holders.retain(IpAddr::is_ipv4);
                    }
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

    fn counters(&mut self) -> Counters {
        self.order("counters");
        let report = self.report();
        let numbers: Vec<u64> = report
            .split(' ')
            .map(|word| word.parse().expect("a number"))
            .collect();
        Counters {
            echoes: numbers[0],
            asks: numbers[1],
            bursts: numbers[2],
            discoveries: numbers[3],
            sent: numbers[4],
            cpu: Duration::from_millis(numbers[5]),
        }
    }

    /// Why it cannot ask.
    fn warnings(&mut self) -> String {
        self.order("warnings");
        self.report()
    }

    /// From where a raw host gets the answer to an ask that it sends to `address`.
    fn answer_from(&mut self, address: &str) -> IpAddr {
        self.order(&format!("ask {address}"));
        let source: SocketAddr = self.report().parse().expect("an address");
        source.ip()
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

/// Machines with one of these addresses each, on one bridge `br0`.
fn lan<const MACHINES: usize>(addresses: [&str; MACHINES]) -> (Namespace, [Namespace; MACHINES]) {
    let switch = Namespace::new();
    switch.bridge("br0");
    let machines = addresses.map(|address| {
        let machine = Namespace::new();
        switch.plug("br0", &machine, "lan0", address);
        machine
    });
    (switch, machines)
}

// The tests.

#[test]
fn a_dual_stack_socket_asks_and_answers_by_broadcast() {
    let Some(_turn) = turn() else {
        return;
    };
    let (_switch, [a, b, c]) = lan(["10.77.0.1/24", "10.77.0.2/24", "10.77.0.3/24"]);
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
    let counters = asker.counters();
    assert_eq!(counters.asks, 0, "its own broadcasts are no asks");
    assert!(counters.echoes > 0);
    let found = single.lookup(1);
    assert_eq!(found.holders, addresses(&["10.77.0.1", "10.77.0.2"]));
    let all_answer = |number| {
        let found = asker.lookup(number);
        (found.end.as_str(), found.absent) == ("Answered", 2)
    };
    assert!((2..50).any(all_answer));
    assert_eq!(asker.counters().bursts, 1);
    let counters = dual.counters();
    assert_eq!(
        counters.discoveries, 0,
        "who asks nothing broadcasts nothing"
    );
}

#[test]
fn every_chosen_interface_is_asked_and_no_other() {
    let Some(_turn) = turn() else {
        return;
    };
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
    let mut before = vec![0; networks.len()];
    let mut are_asked = || -> Vec<bool> {
        let hosts = peers.iter_mut().zip(&mut before);
        let is_asked = hosts.map(|((host, _), before)| {
            let asks = host.counters().asks;
            std::mem::replace(before, asks) < asks
        });
        is_asked.collect()
    };
    assert_eq!(
        are_asked(),
        [true, true, true, true, true, false],
        "link-local ones both, a public one never"
    );
    let holders = found("[interfaces]\nexclude = [\"guest*\", \"lan[23]\"]\n");
    assert_eq!(holders, addresses(&["10.1.0.2", "192.168.7.2"]));
    assert_eq!(are_asked(), [true, true, false, false, false, false]);
    let holders = found("[interfaces]\ninclude = [\"lan1\"]\n");
    assert_eq!(holders, addresses(&["192.168.7.2"]));
    assert_eq!(are_asked(), [false, true, false, false, false, false]);
}

#[test]
fn a_network_that_comes_and_goes_is_seen() {
    let Some(_turn) = turn() else {
        return;
    };
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
    // The first change is seen by the very next lookup, however soon that comes; further ones are
    // in 10 s.
    let change = |before: &[&str], change: &dyn Fn(), after: &[&str]| {
        let mut asker = Host::start(&a, "[::]", "");
        assert_eq!(asker.lookup(1).holders, addresses(before));
        change();
        let found = asker.lookup(1);
        assert_eq!(found.holders, addresses(after), "before: {before:?}");
    };
    let plug = |bridge: &str, interface: &str, address: &str| {
        switch.plug(bridge, &a, interface, address);
    };
    let both = ["10.77.0.2", "10.78.0.2"];
    change(&[], &|| plug("br0", "lan0", "10.77.0.1/24"), &both[..1]);
    change(&both[..1], &|| plug("br1", "lan1", "10.78.0.1/24"), &both);
    change(&both, &|| a.ip("link del lan0"), &both[1..]);
    let readdress = || {
        a.ip("addr flush dev lan1");
        a.ip("addr add 10.78.0.9/24 dev lan1");
    };
    change(&both[1..], &readdress, &both[1..]);
    change(&both[1..], &|| a.ip("link set lan1 down"), &[]);
    change(&[], &|| a.ip("link set lan1 up"), &both[1..]);
}

#[test]
fn a_cable_that_was_in_another_switch_meanwhile_is_a_new_network() {
    let Some(_turn) = turn() else {
        return;
    };
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
    assert_eq!(asker.counters().bursts, 2, "one for each network");
}

#[test]
fn a_new_name_is_judged_at_once() {
    let Some(_turn) = turn() else {
        return;
    };
    let (_switch, [a, b]) = lan(["fe80::a/64", "fe80::b/64"]);
    let mut holder = Host::start(&b, "[::]", "");
    holder.hold(1);
    let rename = |from: &str, to: &str| {
        a.ip(&format!("link set {from} down"));
        a.ip(&format!("link set {from} name {to}"));
        // IPv6 addresses do not outlive a link that goes down.
        a.ip(&format!("addr add fe80::a/64 dev {to} nodad"));
        a.ip(&format!("link set {to} up"));
    };
    rename("lan0", "guest0");
    let mut asker = Host::start(&a, "[::]", "[interfaces]\ninclude = [\"lan*\"]\n");
    assert_eq!(asker.lookup(1).end, "Alone");
    rename("guest0", "lan9");
    assert_eq!(asker.lookup(1).holders, addresses(&["fe80::b"]));
}

#[test]
fn multicast_finds_peers_on_a_link_without_ipv4() {
    let Some(_turn) = turn() else {
        return;
    };
    let (_switch, [a, b, c]) = lan(["fe80::a/64", "fe80::b/64", "fe80::c/64"]);
    let mut asker = Host::start(&a, "[::]", "");
    let mut holder = Host::start(&b, "[::]", "");
    let mut other = Host::start(&c, "[::]", "");
    holder.hold(1);
    asker.hold(1);
    let found = asker.lookup(1);
    assert_eq!(found.holders, addresses(&["fe80::b"]));
    assert_eq!(found.absent, 1);
    // On a busy machine an answer takes longer than a burst may wait for one.
    let all_answer = |number| {
        let found = asker.lookup(number);
        (found.end.as_str(), found.absent) == ("Answered", 2)
    };
    assert!((2..50).any(all_answer));
    let counters = asker.counters();
    assert_eq!(
        (counters.asks, counters.bursts),
        (0, 1),
        "its own multicasts are no asks"
    );
    assert!(counters.echoes > 0, "it hears them");
    assert_eq!(
        holder.counters().discoveries,
        0,
        "who asks nothing finds nobody"
    );
    assert_eq!(other.lookup(1).holders, addresses(&["fe80::a", "fe80::b"]));
}

#[test]
fn a_bridge_is_asked_and_its_ports_are_not() {
    let Some(_turn) = turn() else {
        return;
    };
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
    asker.hold(2);
    assert_eq!(holder.lookup(2).holders, addresses(&["fe80::a"]));
}

#[test]
fn a_socket_that_nobody_reads_hears_multicast() {
    let Some(_turn) = turn() else {
        return;
    };
    let (_switch, [a, b]) = lan(["fe80::a/64", "fe80::b/64"]);
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
    assert!(report == here || report == "ended Answered 1", "{report}");
    assert!(sleeper.counters().asks > 0, "the ask was not lost");
}

#[test]
fn two_subnets_on_one_link_find_each_other() {
    let Some(_turn) = turn() else {
        return;
    };
    let (_switch, [a, b]) = lan(["fe80::a/64", "fe80::b/64"]);
    a.ip("addr add 10.1.0.1/24 brd + dev lan0");
    b.ip("addr add 10.2.0.1/24 brd + dev lan0");
    let mut holder = Host::start(&b, "[::]", "");
    holder.hold(1);
    let mut asker = Host::start(&a, "[::]", "");
    assert_eq!(asker.lookup(1).holders, addresses(&["fe80::b"]));
}

#[test]
fn without_broadcast_there_is_no_multicast() {
    let Some(_turn) = turn() else {
        return;
    };
    let (_switch, [a, b]) = lan(["fe80::a/64", "fe80::b/64"]);
    let index = interface_index(&a, "lan0");
    let mut holder = Host::start(&b, "[::]", "");
    holder.hold(1);
    let peers = format!("peers = [\"[fe80::b%{index}]:{PORT}\"]\n");
    for (setting, is_broadcasting) in [("broadcast = false\n", false), ("", true)] {
        let mut asker = Host::start(&a, "[::]", &format!("[discovery]\n{setting}{peers}"));
        for _ in 0..3 {
            assert_eq!(asker.lookup(1).holders, addresses(&["fe80::b"]));
        }
        let counters = asker.counters();
        let seen = (counters.discoveries > 0, counters.echoes > 0);
        assert_eq!(seen, (is_broadcasting, is_broadcasting), "{counters:?}");
    }
}

#[test]
fn a_static_peer_is_found_over_ipv6_with_its_scope() {
    let Some(_turn) = turn() else {
        return;
    };
    let (_switch, [a, b]) = lan(["fe80::a/64", "fe80::b/64"]);
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

#[test]
fn answers_leave_from_the_address_that_was_asked() {
    let Some(_turn) = turn() else {
        return;
    };
    let (_switch, [a, b]) = lan(["10.77.0.1/24", "10.77.0.2/24"]);
    a.ip("addr add fd77::1/64 dev lan0 nodad");
    b.ip("addr add 10.77.0.3/24 dev lan0");
    for address in ["fd77::2/64", "fd77::3/64"] {
        b.ip(&format!("addr add {address} dev lan0 nodad"));
    }
    for (binds, more) in [
        ("0.0.0.0", &[][..]),
        ("[::]", &["fd77::2", "fd77::3", "fd77::2"]),
    ] {
        let _holder = Host::start(&b, binds, "");
        let mut asker = Host::start(&a, "raw", "");
        for asked in ["10.77.0.2", "10.77.0.3", "10.77.0.2"].iter().chain(more) {
            let source = asker.answer_from(asked);
            assert_eq!(source.to_string(), **asked, "asked by unicast");
        }
        let source = asker.answer_from("10.77.0.255");
        assert!(
            addresses(&["10.77.0.2", "10.77.0.3"]).contains(&source),
            "asked by broadcast: {source}"
        );
    }
    // Which a gateway that looks up believes, from whichever address it comes.
    let mut holder = Host::start(&b, "[::]", "");
    holder.hold(1);
    for peer in ["10.77.0.2", "10.77.0.3", "[fd77::2]", "[fd77::3]"] {
        let peers = format!("[discovery]\nbroadcast = false\npeers = [\"{peer}:{PORT}\"]\n");
        let mut asker = Host::start(&a, "[::]", &peers);
        let found = asker.lookup(1);
        let asked = peer.trim_matches(['[', ']']);
        assert_eq!(found.holders, addresses(&[asked]));
    }
}

#[test]
fn a_broadcast_is_answered_only_from_its_link_and_our_port() {
    let Some(_turn) = turn() else {
        return;
    };
    let (_switch, [a, b]) = lan(["10.77.0.1/24", "10.77.0.2/24"]);
    a.ip("addr add 10.99.0.1/32 dev lan0");
    a.ip("route add 10.77.0.255/32 dev lan0");
    b.ip("route add 10.99.0.1/32 dev lan0");
    let mut holder = Host::start(&b, "[::]", "");
    let mut asker = Host::start(&a, "raw", "");
    let expected: IpAddr = "10.77.0.2".parse().expect("an address");
    assert_eq!(asker.answer_from("10.77.0.255"), expected);
    assert_eq!(
        asker.answer_from("10.77.0.2 10.99.0.1"),
        expected,
        "unicast"
    );
    // What comes after these is answered, and they are not.
    let before = holder.counters().sent;
    for order in [
        format!("send 10.77.0.255 10.77.0.1:{}", PORT + 1),
        format!("send 10.77.0.255 10.99.0.1:{PORT}"),
    ] {
        asker.order(&order);
        assert_eq!(asker.report(), "sent");
    }
    assert_eq!(asker.answer_from("10.77.0.2"), expected);
    assert_eq!(holder.counters().sent, before + 1);
}

#[test]
fn forged_broadcasts_in_its_name_do_not_silence_an_asker() {
    let Some(_turn) = turn() else {
        return;
    };
    let (_switch, [a, b, c]) = lan(["10.77.0.1/24", "10.77.0.2/24", "10.77.0.9/24"]);
    // The forger has the asker's address where nobody can ask it for that.
    c.shell("echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore");
    c.ip("addr add 10.77.0.1/32 dev lo");
    let mut holder = Host::start(&b, "[::]", "");
    holder.hold(1);
    let mut forger = Host::start(&c, "raw", "");
    for burst in [5, 50] {
        let mut asker = Host::start(&a, "[::]", "");
        // More than five in this second already, and in the next ones.
        forger.order(&format!("flood 10.77.0.255 10.77.0.1:{PORT} {burst}"));
        assert_eq!(forger.report(), "flooding");
        for _ in 0..3 {
            let found = asker.lookup(1);
            assert_eq!(found.holders, addresses(&["10.77.0.2"]), "{burst} a second");
        }
        forger.order("stop");
        assert_eq!(forger.report(), "stopped");
    }
    assert!(holder.counters().asks > 10);
}

#[test]
fn a_host_that_cannot_ask_says_why_and_one_that_is_alone_does_not() {
    let Some(_turn) = turn() else {
        return;
    };
    let (_switch, [a]) = lan(["10.77.0.1/24"]);
    let mut alone = Host::start(&a, "[::]", "");
    assert_eq!(alone.lookup(1).holders, BTreeSet::new());
    assert_eq!(alone.warnings(), "", "nobody is there");
    drop(alone);

    a.ip("addr flush dev lan0");
    a.ip("addr add 10.77.0.1/32 dev lan0");
    let mut host = Host::start(&a, "[::]", "");
    assert_eq!(host.lookup(1).end, "Alone");
    let warnings = host.warnings();
    assert!(warnings.contains("lan0 has 10.77.0.1/32"), "{warnings}");
    a.ip("addr add 10.77.0.1/24 dev lan0");
    host.lookup(1);
    assert_eq!(host.warnings(), "", "it can ask now");
    drop(host);

    a.ip("addr add fe80::1/64 dev lan0 nodad");
    // As the kill switch of a VPN does.
    a.ip("xfrm policy add dst 10.77.0.255/32 dir out action block");
    refused(&a, "IPv4 broadcast");
    a.ip("xfrm policy add dst ff02::1/128 dir out action block");
    refused(&a, "IPv6 multicast");
    a.ip("xfrm policy flush");
    let mut host = Host::start(&a, "[::]", "");
    host.lookup(1);
    assert_eq!(host.warnings(), "", "nothing refuses any more");
    drop(host);
    let refuse = "table inet kill { chain out { type filter hook output priority 0; \
                  udp dport 12304 drop; }; }";
    let nft = Command::new("ip")
        .args(["netns", "exec", &a.0, "nft", refuse])
        .status();
    if nft.is_ok_and(|status| status.success()) {
        refused(&a, "IPv4 broadcast");
    } else {
        println!("skipped: a firewall that refuses broadcasts (no `nft`)");
    }
}

/// A lookup of a host in `namespace`, which is refused there.
fn refused(namespace: &Namespace, how: &str) {
    let mut host = Host::start(namespace, "[::]", "");
    assert_eq!(host.lookup(1).holders, BTreeSet::new());
    let warnings = host.warnings();
    let expected =
        format!("cannot ask for paths on lan0 by {how}: Operation not permitted (os error 1)");
    assert!(warnings.contains(&expected), "{warnings}");
}

#[test]
fn the_cost_of_a_lookup_does_not_grow_with_interfaces_where_nobody_was_heard() {
    const INTERFACES: u32 = 400;
    const LOOKUPS: u32 = 40;
    if !can_make_namespaces() {
        return;
    }
    let _alone = TURNS.write().unwrap_or_else(PoisonError::into_inner);
    let (_switch, [a, b]) = lan(["10.77.0.1/24", "10.77.0.2/24"]);
    let nobody = Namespace::new();
    for namespace in [&a, &nobody] {
        namespace.shell("echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad");
    }
    let (mut here, mut there) = (String::new(), String::new());
    for at in 0..INTERFACES {
        let (network, address) = (at / 32, at % 32 * 8 + 1);
        here += &format!(
            "link add hyp{at} type veth peer name plug{at} netns {}\n\
             addr add 172.16.{network}.{address}/29 dev hyp{at}\nlink set hyp{at} up\n",
            nobody.0
        );
        there += &format!("link set plug{at} up\n");
    }
    a.ip_batch(&here);
    nobody.ip_batch(&there);
    a.await_link_local(&format!("hyp{}", INTERFACES - 1));
    let mut holder = Host::start(&b, "[::]", "");
    holder.hold(1);
    let mut asker = Host::start(&a, "[::]", "");
    // A busy machine may not send all of it within what a burst may wait.
    let is_found = |_| asker.lookup(1).holders == addresses(&["10.77.0.2"]);
    assert!((0..5).any(is_found));
    // The first three requests to old peers go to all networks.
    for number in 2..6 {
        asker.lookup(number);
    }
    let begun = asker.counters();
    for number in 0..LOOKUPS {
        let expected = if number % 2 == 0 { 1 } else { 0 };
        let found = asker.lookup(if number % 2 == 0 { 1 } else { 100 + number });
        assert_eq!(found.holders.len(), expected, "lookup {number}");
    }
    let done = asker.counters();
    // Each network by IPv4 and by IPv6.
    let all = u64::from(2 * (INTERFACES + 1));
    let looked_for = done.discoveries - begun.discoveries;
    let sent = done.sent - begun.sent - looked_for * all;
    println!(
        "{LOOKUPS} lookups: {sent} datagrams beside {looked_for} broadcasts to find peers, {:?} of CPU; \
         the first five: {} datagrams, {:?}",
        done.cpu - begun.cpu,
        begun.sent,
        begun.cpu
    );
    assert!(sent <= u64::from(4 * LOOKUPS), "{sent} datagrams");
    assert!(begun.sent < 10 * all, "{} datagrams", begun.sent);
    assert!(done.cpu < Duration::from_secs(3), "{:?} of CPU", done.cpu);
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
    if binds == "raw" {
        return run_raw();
    }
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
    // As the socket unit does: a host hears its own broadcasts on each of its networks.
    socket.set_recv_buffer_size(4 << 20).expect("an option");
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
    let (sender, mut requests) = mpsc::channel(lan::MAX_REQUESTS);
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
            Some(request) = requests.recv() => {
                let state = |asked: &_| {
                    if held.iter().any(|&number| hash(number) == *asked) {
                        PathState::Present
                    } else {
                        PathState::Absent
                    }
                };
                let states: Vec<_> = request.hashes.iter().map(state).collect();
                handle.answer(&request, &states, 0);
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

/// Sends asks for nothing, by sockets of its own: `ask TO [FROM]`, `send TO FROM`, and
/// `flood TO FROM COUNT`, so many at once each second until `stop`.
fn run_raw() {
    println!("\n> ready");
    let flood = Arc::new(AtomicBool::new(false));
    let mut id = 0;
    for line in io::stdin().lines() {
        let line = line.expect("text");
        let words: Vec<&str> = line.split(' ').collect();
        id += 1;
        match words[..] {
            ["ask", to, ref from @ ..] => {
                let to: IpAddr = to.parse().expect("an address");
                let any = if to.is_ipv6() { "::" } else { "0.0.0.0" };
                let from = from.first().unwrap_or(&any);
                let socket = raw_socket(SocketAddr::new(from.parse().expect("an address"), PORT));
                socket.set_read_timeout(Some(BOUND)).expect("a timeout");
                send_ask(&socket, id, to);
                let mut buffer = [0; 200];
                let source = loop {
                    let (length, source) = socket.recv_from(&mut buffer).expect("an answer");
                    match Datagram::parse(&buffer[..length]) {
                        Ok(Datagram::Answer(answer)) if answer.id == id => break source,
                        _ => {}
                    }
                };
                println!("> {source}");
            }
            ["send", to, from] => {
                let socket = raw_socket(from.parse().expect("an address"));
                send_ask(&socket, id, to.parse().expect("an address"));
                println!("> sent");
            }
            ["flood", to, from, count] => {
                let to = to.parse().expect("an address");
                let socket = raw_socket(from.parse().expect("an address"));
                let count: u32 = count.parse().expect("a number");
                flood.store(true, Ordering::SeqCst);
                let flood = Arc::clone(&flood);
                let (started, has_started) = std::sync::mpsc::channel();
                std::thread::spawn(move || {
                    while flood.load(Ordering::SeqCst) {
                        for _ in 0..count {
                            send_ask(&socket, 7, to);
                        }
                        started.send(()).ok();
                        std::thread::sleep(Duration::from_secs(1));
                    }
                });
                has_started.recv().expect("a flood");
                println!("> flooding");
            }
            ["stop"] => {
                flood.store(false, Ordering::SeqCst);
                println!("> stopped");
            }
            _ => panic!("{line}"),
        }
    }
}

fn raw_socket(from: SocketAddr) -> StdSocket {
    let socket = Socket::new(Domain::for_address(from), Type::DGRAM, None).expect("a socket");
    socket.set_reuse_address(true).expect("an option");
    socket.set_broadcast(true).expect("an option");
    socket.bind(&from.into()).expect("its address");
    socket.into()
}

fn send_ask(socket: &StdSocket, id: u32, to: IpAddr) {
    let ask = Ask {
        id,
        sender: Sender {
            http_port: PORT,
            instance: 7,
        },
        only_if_any: false,
        peers: Magnitude::of(0),
        hashes: Vec::new(),
    };
    let packet = Datagram::Ask(ask).encode();
    socket.send_to(&packet, (to, PORT)).expect("sent");
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
        ["counters"] => {
            let all = handle.counters();
            let counters = all.discovery;
            let cpu = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("a clock");
            println!(
                "> {} {} {} {} {} {}",
                counters.echoes,
                counters.asks + counters.old_requests,
                counters.bursts,
                counters.discoveries,
                all.io.sent,
                Duration::from(cpu).as_millis()
            );
        }
        ["warnings"] => println!("> {}", handle.warnings().join(" | ")),
        _ => panic!("{order}"),
    }
}

/// As the daemon lists them.
fn interfaces() -> io::Result<Vec<Interface>> {
    let listed = interfaces::list().map_err(io::Error::other)?;
    let discovered = |listed: InterfaceAddress| Interface {
        name: listed.name,
        index: listed.index,
        is_up: listed.up,
        can_broadcast: listed.broadcasts && !listed.loopback && !listed.point_to_point,
        can_multicast: listed.multicast && !listed.loopback && !listed.port,
        address: listed.ip,
        is_tentative: listed.tentative,
        is_wireless: listed.wireless,
        prefix: listed.prefix_length,
        broadcast: listed.broadcast,
    };
    Ok(listed.into_iter().map(discovered).collect())
}
