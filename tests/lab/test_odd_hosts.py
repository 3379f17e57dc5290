"""Promises 4 and 9 on hosts that are not as most are: many interfaces, no way to ask, two addresses, many signatures."""

import contextlib
import json
import os
import subprocess
from pathlib import Path

from harness.case import PairCase, http, wait_until, wire
from harness.peerix import CONFIG

COUNT = 100
INTERFACES = 400
SIGNATURES = 41

# Datagrams on interfaces where nobody was heard, for 40 lookups in a burst: one discovery broadcast
# may be due, and no more.
LOOKUPS = 40
MOST_DATAGRAMS = INTERFACES

# Seconds of processor time for those lookups.
MOST_CPU = 0.4

SECOND_ADDRESS = "192.168.77.51"

# Adds so many signatures to a path, by keys that do not exist; what Nix itself takes a process for each.
SIGNER = """
import base64, os, sqlite3, sys
path, count = sys.argv[1], int(sys.argv[2])
signatures = [f"unknown{number}-1:{base64.b64encode(os.urandom(64)).decode()}" for number in range(count)]
with sqlite3.connect("/nix/var/nix/db/db.sqlite") as database:
    database.execute("update ValidPaths set sigs = ? || ' ' || sigs where path = ?", (" ".join(signatures), path))
"""

REFUSED = """table inet refused {
    chain output {
        type filter hook output priority 0
        oifname "lan0" udp dport 12304 meta pkttype { broadcast, multicast } drop
        oifname "lan0" ip daddr 192.168.77.255 drop
        oifname "lan0" ip6 daddr ff02::1 drop
    }
}
"""


class OddHosts(PairCase):
    """`holder` has the paths, `asker` asks for them."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.paths = cls.maker.make("odd", COUNT)

    def misses(self, count, begin=0):
        """Seconds of so many misses."""
        with http.Connection(self.asker) as connection:
            answers = [connection.ask(f"/{begin + number:032d}.narinfo") for number in range(count)]
        self.assertEqual({status for status, _ in answers}, {404})
        return sorted(seconds for _, seconds in answers)

    # Many interfaces

    @contextlib.contextmanager
    def many_interfaces(self):
        """Addressed ones that lead nowhere, as a hypervisor has them."""
        lines = []
        for number in range(INTERFACES):
            lines += [f"link add vm{number} type veth peer name xm{number}",
                      f"address add 10.{number // 250}.{number % 250}.1/24 brd + dev vm{number}",
                      f"link set vm{number} up", f"link set xm{number} up"]
        ipv6 = "/proc/sys/net/ipv6/conf/default/disable_ipv6"
        enter = ["ip", "netns", "exec", self.asker.name]
        subprocess.run([*enter, "sh", "-c", f"echo 1 > {ipv6}"], check=True)
        subprocess.run(["ip", "-n", self.asker.name, "-batch", "-"], input="\n".join(lines), text=True, check=True)
        try:
            yield
        finally:
            gone = "\n".join(f"link delete vm{number}" for number in range(INTERFACES))
            subprocess.run(["ip", "-n", self.asker.name, "-batch", "-"], input=gone, text=True, check=True)
            subprocess.run([*enter, "sh", "-c", f"echo 0 > {ipv6}"], check=True)

    def sent_to_nobody(self):
        """Packets that left on the interfaces that lead nowhere."""
        shown = subprocess.run(["ip", "-n", self.asker.name, "-j", "-s", "link", "show", "type", "veth"], check=True,
                               capture_output=True).stdout
        return sum(link["stats64"]["tx"]["packets"] for link in json.loads(shown) if link["ifname"].startswith("vm"))

    def cpu_seconds(self):
        """Processor time of the asker's daemon."""
        process, = self.asker.peerix.processes()
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def test_a_host_with_400_addressed_interfaces(self):
        """All is found in the first burst; lookups cost no more than elsewhere."""
        with self.many_interfaces():
            self.asker.peerix.reset()
            before = self.sent_to_nobody()
            self.assert_all_found(self.asker, self.paths)
            first = self.sent_to_nobody() - before
            before, cpu = self.sent_to_nobody(), self.cpu_seconds()
            self.misses(LOOKUPS // 2)
            self.assert_all_found(self.asker, self.paths[:LOOKUPS // 2])
            sent, cpu = self.sent_to_nobody() - before, self.cpu_seconds() - cpu
            self.note = f"{first} datagrams to nobody in the first burst, then {sent} and {cpu:.2f} s for {LOOKUPS} lookups"
            self.assertLessEqual(sent, MOST_DATAGRAMS, self.note)
            self.assertLessEqual(cpu, MOST_CPU, self.note)

    # Hosts that cannot ask

    def told(self, words):
        """Whether STATUS= and /status have these words, and how many warnings of the journal do."""
        status = http.get(self.asker, "/status").body.decode()
        journal = self.asker.peerix.said(since=self.mark, priority="warning").splitlines()
        return (words in self.asker.peerix.show("StatusText"), words in status,
                len([line for line in journal if words in line]))

    def check_cannot_ask(self, *words):
        """It says so in all three places, in the journal once, with the interface and what the system said."""
        self.mark = self.asker.peerix.cursor()
        self.misses(20)
        wait_until(lambda: self.told("cannot ask")[:2] == (True, True), 10, "STATUS= and /status say that it cannot ask", every=0.2)
        self.misses(20, begin=20)
        said = self.asker.peerix.said(since=self.mark, priority="warning").splitlines()
        lines = [line for line in said if "cannot ask" in line]
        self.assertEqual(len(lines), len(set(lines)), lines)
        self.assertLessEqual(len(lines), 2, "one for each way to ask, IPv4 and IPv6")
        line = lines[0]
        for word in words:
            self.assertIn(word, line)
            self.assertIn(word, self.asker.peerix.show("StatusText"))
        self.note = line

    @contextlib.contextmanager
    def no_ipv6(self):
        """The asker's interface has no IPv6 address."""
        def disable(value):
            setting = "/proc/sys/net/ipv6/conf/lan0/disable_ipv6"
            subprocess.run(["ip", "netns", "exec", self.asker.name, "sh", "-c", f"echo {value} > {setting}"], check=True)
        disable(1)
        try:
            yield
        finally:
            disable(0)

    def test_broadcasts_that_the_own_firewall_refuses(self):
        """The interface is named, and what the kernel answered."""
        self.asker.run("nft -f -", stdin=REFUSED)
        self.addCleanup(self.asker.run, "nft delete table inet refused")
        self.check_cannot_ask("lan0", "Operation not permitted")

    def test_a_host_with_only_a_32_address(self):
        """As some VPNs and clouds give it: there is no network to broadcast to."""
        def restore():
            self.asker.ip("address flush dev lan0 scope global")
            self.asker.ip(f"address add {self.asker.address}/24 brd + dev lan0")
            self.asker.ip("route add default via 192.168.77.254")
        with self.no_ipv6():
            self.addCleanup(restore)
            self.asker.ip("address flush dev lan0")
            self.asker.ip(f"address add {self.asker.address}/32 dev lan0")
            self.check_cannot_ask("lan0", f"{self.asker.address}/32")

    def test_a_host_whose_sandbox_denies_netlink(self):
        """A container without it: interfaces cannot be listed."""
        self.asker.peerix.drop_in("peerix.service", "[Service]\nRestrictAddressFamilies=\n"
                                  "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX\n")
        self.addCleanup(self.asker.peerix.drop_in, "peerix.service", None)
        self.check_cannot_ask("interfaces", "not supported")

    def test_nobody_there_is_told_apart(self):
        """A host that can ask, and hears nobody: no word of not being able to."""
        self.holder.run("systemctl stop peerix.socket peerix.service")
        self.addCleanup(self.holder.run, "systemctl start peerix.socket")
        self.mark = self.asker.peerix.cursor()
        self.misses(20)
        status = wait_until(lambda: self.asker.peerix.show("StatusText"), 10, "there is a STATUS=", every=0.2)
        self.assertEqual(self.told("cannot ask"), (False, False, 0))
        self.assertRegex(status, r"^0 peers|nobody")
        self.note = status

    # Two addresses

    def test_a_neighbour_with_two_addresses_in_one_network(self):
        """It answers from the address that was asked; and is found, with misses that cost one round trip."""
        self.holder.ip(f"address add {SECOND_ADDRESS}/24 brd + dev lan0")
        self.addCleanup(self.holder.ip, f"address delete {SECOND_ADDRESS}/24 dev lan0")
        self.holder.peerix.reset()
        for address in (SECOND_ADDRESS, self.holder.address):
            reply = wire.ask(self.asker, address, self.paths[0].hash, bound=3)
            self.assertIsNotNone(reply, f"no answer from {address}")
            self.assertEqual(reply.state, wire.PRESENT)
            self.assertIsNotNone(wire.ask_as_old(self.asker, address, self.paths[0].hash), f"none for an old peer from {address}")
        notes = []
        for toml in (None, f'[discovery]\nbroadcast = false\npeers = ["{SECOND_ADDRESS}"]\n'):
            self.asker.peerix.reset(toml)
            self.assert_all_found(self.asker, self.paths)
            times = self.misses(100)
            notes.append(f"{times[50] * 1000:.2f} ms")
            self.assertLess(times[50], 0.010, "a miss waits for an answer that is dropped")
        self.note = "a miss takes " + " and ".join(notes)

    # Signatures

    def test_a_path_with_41_signatures(self):
        """All but one by keys that nobody knows; the narinfo has all of them, and the asker's Nix takes it."""
        path, = self.maker.make("signed-often", 1)
        self.holder.run(["python3", "-c", SIGNER, path.path, str(SIGNATURES - 1)])
        answer = http.get(self.asker, f"/local/{path.hash}.narinfo", self.holder.address)
        signatures = [line for line in answer.body.decode().splitlines() if line.startswith("Sig: ")]
        self.assertEqual(len(signatures), SIGNATURES)
        self.assertEqual(self.status_of(self.asker, f"/{path.hash}.narinfo"), 200)
        self.pull(self.asker, path)

    def test_a_path_that_a_private_cache_signed_is_not_shared_until_the_settings_say_so(self):
        """This host trusts the cache's key; what came from there is not for everybody."""
        secret, public = self.maker.key("company-1")
        path, = self.maker.make("company", 1, signed=False)
        self.maker.sign([path.path], secret)
        conf = self.holder.path("/etc/nix/nix.conf").read_text()
        self.addCleanup(self.holder.write, "/etc/nix/nix.conf", conf)
        self.holder.write("/etc/nix/nix.conf", f"{conf}extra-trusted-public-keys = {public}\n")
        for toml, state, status in ((None, wire.ABSENT, 404), ('share.keys = ["company-1"]\n', wire.PRESENT, 200)):
            self.holder.peerix.reset(toml)
            self.assertEqual(wire.ask(self.asker, self.holder.address, path.hash, bound=5).state, state, toml)
            self.assertEqual(self.status_of(self.asker, f"/local/{path.hash}.narinfo", address=self.holder.address), status, toml)
        # With no settings at all it is what cache.nixos.org signed, and nothing else.
        self.holder.peerix.put_to_sleep()
        self.holder.path(CONFIG).unlink()
        for one in (path, self.paths[0]):
            self.assertEqual(wire.ask(self.asker, self.holder.address, one.hash, bound=5).state, wire.ABSENT)
