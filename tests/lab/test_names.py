"""Peers and caches that broadcast does not reach: by host name, by SRV record, by DNS-SD."""

import contextlib
import json
import socket
import statistics
import struct
import subprocess
import time
from pathlib import Path

from harness.case import LabCase, empty, full, http, wait_until

CHECKOUT = Path(__file__).resolve().parents[2]
ANNOUNCEMENT = CHECKOUT / "systemd" / "dns-sd" / "peerix.service"

SLOW_WEB_SERVER = """
import http.server, sys, time

class Slow(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *arguments):
        super().__init__(*arguments, directory=sys.argv[1])

    def do_GET(self):
        time.sleep(0.15)
        super().do_GET()

http.server.ThreadingHTTPServer(("", int(sys.argv[2])), Slow).serve_forever()
"""


def status(host):
    """What the daemon of `host` says of itself; wakes it."""
    return json.loads(http.get(host, "/status").body)


def statics(host):
    """The addresses that are asked directly."""
    return {peer["address"] for peer in status(host)["peers"] if peer["configured"] or peer["announced"]}


@contextlib.contextmanager
def running(host, arguments):
    """A program of `host` that runs meanwhile; it talks to itself."""
    process = host.spawn(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


def name_of(*labels):
    """A name on the wire, uncompressed."""
    return b"".join(bytes([len(label)]) + label.encode() for label in labels) + b"\0"


def announcements(first, count):
    """One mDNS answer: `count` instances of peers that nobody has heard of, each at its own address."""
    records = b""
    for number in range(first, first + count):
        instance = name_of(f"ghost{number}", "_peerix", "_tcp", "local")
        host = name_of(f"host{number}", "local")
        address = struct.pack(">I", 0x0a000000 + number)
        srv = struct.pack(">HHH", 0, 0, 12304) + host
        for name, kind, data in ((name_of("_peerix", "_tcp", "local"), 12, instance), (instance, 33, srv),
                                 (instance, 16, b"\0"), (host, 1, address)):
            records += name + struct.pack(">HHIH", kind, 1, 4500, len(data)) + data
    return struct.pack(">HHHHHH", 0, 0x8400, 0, 4 * count, 0, 0) + records


class Beyond(LabCase):
    """`holder` has the closure and is on another network than `asker`; a router passes no broadcasts."""

    @classmethod
    def specs(cls):
        return [full("holder", far=True), empty("asker")]

    def setUp(self):
        super().setUp()
        self.holder, self.asker = self.lab.hosts
        self.forget(self.asker, self.closure.paths)
        self.path = self.closure.chain[0]
        hosts = self.asker.path("/etc/hosts")
        before = hosts.read_text()
        self.addCleanup(hosts.write_text, before)
        self.addCleanup(self.asker.write, "/etc/resolv.conf", "")

    def narinfo(self):
        return self.status_of(self.asker, f"/{self.path.hash}.narinfo")

    def add_name(self, name):
        """A line of /etc/hosts of the asker that leads to the holder."""
        hosts = self.asker.path("/etc/hosts")
        hosts.write_text(hosts.read_text() + f"{self.holder.address} {name}\n")

    def pull_all(self):
        """Nix takes a path, whose holder sleeps at first."""
        self.holder.peerix.put_to_sleep()
        self.pull(self.asker, self.path)
        self.assert_valid(self.asker, [self.path])

    def test_without_a_name_nobody_is_found(self):
        """What the other tests would see if names did nothing."""
        self.assertEqual([self.narinfo() for _ in range(3)], [404] * 3)
        self.assertFalse(self.holder.peerix.awake())

    def test_a_static_peer_by_its_host_name(self):
        """Its address is in /etc/hosts; the port is that of all peers."""
        self.add_name("holder.far.test")
        self.asker.peerix.reset('[discovery]\npeers = ["holder.far.test"]\n')
        self.pull_all()
        self.assertEqual(statics(self.asker), {f"{self.holder.address}:12304"})

    def test_a_name_that_comes_later_and_one_that_fails_are_told_of_once(self):
        """The journal says what, where and why; then that it is mended; a reload looks up anew."""
        self.asker.peerix.reset('[discovery]\npeers = ["holder.far.test"]\n')
        self.assertEqual(self.narinfo(), 404)
        complaint = "cannot find the peer holder.far.test:12304 of the settings: the system does not know it"
        wait_until(lambda: complaint in self.asker.peerix.said(priority="warning"), 10, "the failure is in the journal")
        self.add_name("holder.far.test")
        self.asker.run("systemctl reload peerix.service")
        wait_until(lambda: statics(self.asker), 10, "the name is looked up again")
        # The first question may end before the holder is awake.
        wait_until(lambda: self.narinfo() == 200, 5, "what the peer has is found")
        self.assertEqual(self.asker.peerix.said(priority="warning").count(complaint), 1)
        self.assertIn("the peer holder.far.test:12304 is found: ", self.asker.peerix.said())

    def test_srv_records_of_a_domain(self):
        """The domain's DNS server names the holder. When it falls silent the addresses stay."""
        self.asker.write("/etc/resolv.conf", f"nameserver {self.holder.address}\n")
        self.asker.peerix.reset('[discovery]\ndomain = "fleet.test"\n')
        dns = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root",
               "--pid-file=", "--srv-host=_peerix._tcp.fleet.test,one.fleet.test,12304",
               f"--host-record=one.fleet.test,{self.holder.address}"]
        with running(self.holder, dns):
            # It gives rights away, and with them the signal that would end it with its parent.
            self.addCleanup(self.holder.run, "pkill -x dnsmasq", check=False)
            wait_until(lambda: self.holder.run("ss -Hlun sport = :53").stdout, 10, "the DNS server is up")
            wait_until(lambda: statics(self.asker), 10, "the record is looked up")
            self.pull_all()
            self.assertEqual(statics(self.asker), {f"{self.holder.address}:12304"})
            self.holder.run("pkill -x dnsmasq")
        self.asker.run("systemctl reload peerix.service")
        wait_until(lambda: "DNS has no SRV records for _peerix._tcp.fleet.test" in
                   self.asker.peerix.said(priority="warning"), 15, "the failure is in the journal")
        self.assertEqual(self.narinfo(), 200)
        self.assertEqual(self.asker.peerix.said(priority="warning").count("fleet.test of the settings"), 1)


    def test_a_silent_dns_server_delays_neither_lookups_nor_the_end(self):
        """Nobody answers for names: misses are as quick as without any, and the daemon stops while it still asks."""
        def times():
            took = [http.get(self.asker, f"/{number:032d}.narinfo").seconds for number in range(20)]
            started = time.monotonic()
            self.asker.peerix.put_to_sleep()
            self.assertEqual(self.asker.peerix.show("Result"), "success")
            return took[0], max(took[1:]), time.monotonic() - started
        without = times()
        self.asker.write("/etc/resolv.conf", "nameserver 192.168.77.250\n")
        self.asker.peerix.reset('[discovery]\npeers = ["a.far.test", "b.far.test"]\ndomain = "fleet.test"\n')
        silent = times()
        # The start is held up for a tenth of a second; the test's own time is the rest.
        self.assertLess(silent[0], without[0] + 0.3)
        self.assertLess(silent[1], without[1] + 0.1)
        self.assertLess(silent[2], without[2] + 0.7)
        self.note = "first miss, slowest of 19, stop: " + ", ".join(
            f"{then:.2f} s ({now:.2f})" for then, now in zip(silent, without))


class Announced(LabCase):
    """`holder` has the closure, `asker` nothing, and `cache` is a machine with Avahi and no peerix."""

    @classmethod
    def specs(cls):
        return [full("holder"), empty("asker"), full("cache", peerix=False)]

    def setUp(self):
        super().setUp()
        self.holder, self.asker, self.cache = self.lab.hosts
        self.forget(self.asker, self.closure.paths)

    def start_avahi(self, host):
        host.run("systemctl unmask avahi-daemon.service avahi-daemon.socket && systemctl start avahi-daemon.service")
        self.addCleanup(host.run, "systemctl stop avahi-daemon.socket avahi-daemon.service; "
                                  "systemctl mask avahi-daemon.service avahi-daemon.socket")

    def miss(self, number=0):
        return self.status_of(self.asker, f"/{number:032d}.narinfo")

    def caches(self):
        return {cache["address"]: cache for cache in status(self.asker)["caches"]}

    def test_a_plain_cache_comes_is_used_and_goes(self):
        """nix copy made it, a web server serves it, Avahi announces it; nobody named it."""
        path = self.closure.chain[1]
        self.holder.run("systemctl stop peerix.socket peerix.service")
        self.cache.run(["nix", "copy", "--to", "file:///srv/cache?compression=none", path.path], bound=120)
        self.start_avahi(self.cache)
        self.miss()
        with running(self.cache, ["python3", "-m", "http.server", "-d", "/srv/cache", "8080"]):
            self.assertEqual(self.caches(), {})
            with running(self.cache, ["avahi-publish", "-s", "x", "_nix_binary_cache._tcp", "8080"]):
                address = f"{self.cache.address}:8080"
                wait_until(lambda: address in self.caches(), 15, "the cache is seen", every=0.2)
                wait_until(lambda: self.miss(1) == 404 and self.caches()[address]["state"] == "good", 15,
                           "the cache is probed", every=0.2)
                self.pull(self.asker, path)
                self.assert_valid(self.asker, [path])
                seen = self.caches()[address]
                self.assertEqual(seen["url"], f"http://{self.cache.name}.local:8080/")
                self.assertGreater(seen["hits"], 0)
            wait_until(lambda: self.caches() == {}, 15, "the cache is gone", every=0.2)

    def test_a_slow_cache_that_anybody_announces_costs_little_until_it_is_of_use(self):
        """It takes 150 ms for each answer, which the budget of the burst pays twice. What it then says counts all the same."""
        path = self.closure.chain[1]
        self.holder.run("systemctl stop peerix.socket peerix.service")
        self.cache.run(["nix", "copy", "--to", "file:///srv/cache?compression=none", path.path], bound=120)
        self.start_avahi(self.cache)
        with (running(self.cache, ["python3", "-c", SLOW_WEB_SERVER, "/srv/cache", "8080"]),
              running(self.cache, ["avahi-publish", "-s", "x", "_nix_binary_cache._tcp", "8080"])):
            address = f"{self.cache.address}:8080"
            wait_until(lambda: self.miss() == 404 and self.caches().get(address, {}).get("state") == "good", 20,
                       "the cache is probed", every=0.2)
            took = [http.get(self.asker, f"/{number:032d}.narinfo").seconds for number in range(1, 201)]
            seen = self.caches()[address]
            self.assertTrue(seen["announced"])
            self.assertGreater(seen["left"], 100)
            self.assertLess(statistics.median(took), 0.02)
            self.assertLess(sum(took), 10)
            self.note = f"200 misses in {sum(took):.1f} s, {sum(it > 0.1 for it in took)} of them waited"
            # The first answer comes too late for its lookup; the next lookup waits.
            wait_until(lambda: self.status_of(self.asker, f"/{path.hash}.narinfo") == 200, 20, "it is of use", every=0)
            self.assertEqual(self.miss(300), 404)
            left = self.caches()[address]["left"]
            self.assertEqual([self.miss(number) for number in range(301, 306)], [404] * 5)
            self.assertEqual(self.caches()[address]["left"], left)

    def test_our_own_announcement_is_seen_while_awake(self):
        """Beside an Avahi of our own that has the same port; with our instance; gone when we stop."""
        self.start_avahi(self.cache)
        self.start_avahi(self.asker)
        mark = self.asker.peerix.cursor()
        self.miss()

        def seen():
            lines = self.cache.run("avahi-browse -rptk _peerix._tcp", check=False, bound=20).stdout.splitlines()
            return [line.split(";") for line in lines if line.startswith("=")]
        found = wait_until(lambda: [fields for fields in seen() if fields[2] == "IPv4"], 20, "the announcement is seen")
        fields = found[0]
        self.assertEqual((fields[3], fields[4], fields[7], fields[8]),
                         ("asker", "_peerix._tcp", self.asker.address, "12304"))
        self.assertIn('"path=/local"', fields[9])
        self.assertRegex(fields[9], r'"id=[0-9a-f]{16}"')
        self.assertEqual(statics(self.asker), set(), "we do not ask ourselves")
        said = "\n".join(str(entry.get("MESSAGE")) for entry in self.asker.journal("-u", "avahi-daemon.service",
                                                                                   "--after-cursor", mark))
        self.assertNotIn("conflict", said.lower())
        self.asker.peerix.put_to_sleep()
        wait_until(lambda: not seen(), 20, "the goodbye is heard")

    def test_a_peer_on_the_link_of_an_interface_that_goes_and_comes_again(self):
        """Its address has the interface's name after the `%`; the new interface of that name has another index."""
        def link_local():
            address, = [one for one in self.holder.shows("-6 address show dev lan0 scope link")[0]["addr_info"]]
            return address["local"]

        def index():
            return self.asker.shows("link show lan0")[0]["ifindex"]
        self.asker.peerix.reset(f'[discovery]\nbroadcast = false\npeers = ["[{link_local()}%lan0]:12304"]\n')
        path, other = self.closure.chain[5:7]
        wait_until(lambda: statics(self.asker) == {f"[{link_local()}%{index()}]:12304"}, 5, "the peer is known")
        wait_until(lambda: self.status_of(self.asker, f"/{path.hash}.narinfo") == 200, 5, "the path is found")
        before = index()
        self.lab.unplug(self.asker)
        wait_until(lambda: not statics(self.asker), 5, "nobody is asked")
        self.assertEqual(self.miss(), 404)
        self.lab.plug(self.asker)
        self.assertNotEqual(index(), before)
        wait_until(lambda: self.status_of(self.asker, f"/{other.hash}.narinfo") == 200, 10, "another path is found", every=0.2)
        self.assertEqual(statics(self.asker), {f"[{link_local()}%{index()}]:12304"})
        self.assertIn("there is no interface lan0 at present", self.asker.peerix.said())
        self.assertNotIn("lan0", self.asker.peerix.said(priority="warning"))

    def test_a_sleeping_host_is_found_where_broadcast_is_filtered(self):
        """Its Avahi announces it from the shipped file; the first question wakes it."""
        path = self.closure.chain[2]
        self.holder.run("nft -f -", stdin="""table inet filtered {
            chain input {
                type filter hook input priority 0
                udp dport 12304 meta pkttype { broadcast, multicast } drop
            }
        }
        """)
        self.addCleanup(self.holder.run, "nft delete table inet filtered")
        self.assertEqual([self.status_of(self.asker, f"/{path.hash}.narinfo") for _ in range(2)], [404] * 2)
        self.assertFalse(self.holder.peerix.awake(), "broadcast is not filtered")
        self.holder.write("/etc/avahi/services/peerix.service", ANNOUNCEMENT.read_text())
        self.addCleanup(self.holder.path("/etc/avahi/services/peerix.service").unlink)
        self.start_avahi(self.holder)
        wait_until(lambda: statics(self.asker), 20, "the announcement is seen", every=0.2)
        self.assertFalse(self.holder.peerix.awake(), "an announcement wakes nobody")
        self.pull(self.asker, path)
        self.assert_valid(self.asker, [path])
        self.assertTrue(self.holder.peerix.awake())
        for host in (self.asker, self.holder):
            host.peerix.put_to_sleep()
        other = self.closure.chain[4]
        self.assertEqual(self.status_of(self.asker, f"/{other.hash}.narinfo"), 200, "forgotten over a sleep")

    def test_nothing_is_said_by_mdns_where_broadcast_or_dns_sd_is_off(self):
        """Not one datagram to port 5353, while lookups go on for longer than DNS-SD would wait."""
        for setting in ("broadcast = false", "dns-sd = false"):
            self.asker.peerix.reset(f"[discovery]\n{setting}\n")
            with self.lab.capture() as seen:
                for number in range(8):
                    self.miss(number)
                    self.asker.run("sleep 0.5")
            loud = [str(datagram) for datagram in seen if datagram.target_port == 5353 and datagram.host is self.asker]
            self.assertEqual(loud, [], setting)
        self.asker.peerix.reset()
        with self.lab.capture() as seen:
            self.miss()
            wait_until(lambda: any(d.target_port == 5353 and d.host is self.asker for d in seen), 10,
                       "with the default settings there is one")

    def test_a_daemon_that_others_woke_says_nothing_by_mdns(self):
        """Only the asker announces itself: a question must not end in an announcement of each neighbour."""
        path = self.closure.chain[3]
        with self.lab.capture() as seen:
            self.assertEqual(self.status_of(self.asker, f"/{path.hash}.narinfo"), 200)
            wait_until(lambda: any(d.target_port == 5353 and d.host is self.asker for d in seen), 10, "the asker's mDNS")
            self.holder.run("sleep 5")
        self.assertTrue(self.holder.peerix.awake())
        mdns = [datagram for datagram in seen if datagram.target_port == 5353]
        self.assertEqual({datagram.host.name for datagram in mdns}, {"asker"})
        self.note = f"{len(mdns)} mDNS datagrams in 5 s, IPv4 and IPv6, {sum(len(d.payload) for d in mdns)} bytes"

    def test_a_flood_of_announcements_is_left_alone(self):
        """A host announces peers without end: mDNS rests, memory and lookups stay as they are."""
        self.miss()
        with self.lab.capture() as seen:
            wait_until(lambda: any(d.target_port == 5353 and d.host is self.asker for d in seen), 10, "mDNS has begun")
        before = self.memory()
        with self.cache.network():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((self.cache.address, 0))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(self.cache.address))
        end, sent, slowest, highest = time.monotonic() + 8, 0, 0.0, 0
        while time.monotonic() < end:
            for _ in range(400):
                sock.sendto(announcements(10 * sent, 10), ("224.0.0.251", 5353))
                sent += 1
            slowest = max(slowest, http.get(self.asker, f"/{sent:032d}.narinfo").seconds)
            highest = max(highest, self.memory())
        sock.close()
        self.assertIn("DNS-SD rests for 10 min: the network announces without end",
                      self.asker.peerix.said(priority="warning"))
        wait_until(lambda: not statics(self.asker), 5, "the ghosts are forgotten")
        wait_until(lambda: "mDNS_daemon" not in self.threads(), 5, "its thread has ended")
        self.assertEqual(self.status_of(self.asker, f"/{self.closure.chain[0].hash}.narinfo"), 200)
        self.assertLess(slowest, 1.0)
        self.assertLess(highest - before, 150 << 20)
        self.note = f"{sent} packets, slowest miss {slowest * 1000:.0f} ms, {(highest - before) >> 20} MiB at most"

    def memory(self):
        """Bytes of the asker's daemon."""
        process, = self.asker.peerix.processes()
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096

    def threads(self):
        """Names of the threads of the asker's daemon."""
        process, = self.asker.peerix.processes()
        return {path.read_text().strip() for path in Path(f"/proc/{process}/task").glob("*/comm")}
