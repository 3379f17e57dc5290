"""Overload on real hosts: one machine of the LAN, or one's own Nix, asks for all that it can get."""

import http.client
import random
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.case import LabCase, empty, full

GIB = 1 << 30
ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"
PULLS = 25

# Opens COUNT connections to an address, so many a second, asks nothing on them, and keeps those that are kept.
OPENER = """
import resource, socket, sys, time
address, port, count, rate = sys.argv[1], *map(int, sys.argv[2:5])
resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, count + 100))
kept, began = [], time.monotonic()
for number in range(count):
    try:
        kept.append(socket.create_connection((address, port), timeout=5))
    except OSError:
        pass
    time.sleep(max(0, began + number / rate - time.monotonic()))
print(len(kept), flush=True)
sys.stdin.read()
"""

# Sends RATE datagrams a second, in steps of a millisecond, from one socket until its input ends; then says how
# many there were a second.
FLOODER = """
import os, socket, sys, threading, time
address, rate = sys.argv[1], int(sys.argv[2])
junk = [bytes([kind]) + os.urandom(36) for kind in (0, 1, 2, 3, 4, 5, 99, 255)] + [b"", os.urandom(1400)]
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sent, began = 0, time.monotonic()
waits = threading.Thread(target=sys.stdin.read, daemon=True)
waits.start()
print("begun", flush=True)
while waits.is_alive():
    due = int((time.monotonic() - began) * rate)
    while sent < due:
        sock.sendto(junk[sent % len(junk)], (address, 12304))
        sent += 1
    time.sleep(0.001)
print(int(sent / (time.monotonic() - began)), flush=True)
"""


class Overload(LabCase):
    """`holder` has the closure, `asker` pulls it, `stranger` is the load."""

    @classmethod
    def specs(cls):
        return [full("holder"), empty("asker"), empty("stranger", peerix=False)]

    def setUp(self):
        super().setUp()
        self.holder, self.asker, self.stranger = self.lab.hosts

    def load(self, script, *arguments):
        """A script of load on the stranger; it has begun, or has opened all, when this returns what it said."""
        child = self.stranger.spawn(["python3", "-c", script, *map(str, arguments)], stdin=-1, stdout=-1, text=True)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        return child, child.stdout.readline()

    # Lookups

    def lookups(self):
        """1,000 narinfos on 8 connections, as Nix asks for them; the times of all, sorted."""
        present = [path.hash for path in self.closure.paths]
        absent = ["".join(random.choices(ALPHABET, k=32)) for _ in range(1000 - len(present))]
        asked = random.sample(present + absent, 1000)
        chunks = [asked[at::8] for at in range(8)]

        def ask(hashes):
            connection = http.client.HTTPConnection("127.0.0.1", 12304, timeout=15)
            connection.sock = self.asker.tcp("127.0.0.1", 12304, 15)
            took = []
            for hash in hashes:
                started = time.perf_counter()
                connection.request("GET", f"/{hash}.narinfo")
                response = connection.getresponse()
                response.read()
                took.append(time.perf_counter() - started)
                self.assertEqual(response.status, 200 if hash in known else 404, hash)
            connection.close()
            return took
        known = set(present)
        with ThreadPoolExecutor(8) as threads:
            return sorted(seconds for part in threads.map(ask, chunks) for seconds in part)

    def test_idle_connections_and_a_flood_of_junk_leave_lookups_quick(self):
        """2,000 idle connections, 50,000 junk datagrams a second: all 1,000 answered, p99 within 5 times the quiet one."""
        self.lookups()
        quiet = [self.lookups()[989] for _ in range(3)]
        self.load(OPENER, self.asker.address, 12304, 2000, 4000)
        flood, _ = self.load(FLOODER, self.asker.address, 50_000)
        loud = [self.lookups()[989] for _ in range(3)]
        flood.stdin.close()
        rate = int(flood.stdout.readline())
        quiet, loud = statistics.median(quiet), statistics.median(loud)
        self.note = (f"p99 {quiet * 1000:.1f} ms quiet, {loud * 1000:.1f} ms under {rate} datagrams a second, "
                     f"{resident(self.asker)['VmHWM']} KiB at most")
        self.assertLess(loud, 5 * quiet, self.note)
        self.assertGreater(rate, 25_000, "the flood was none")
        self.assertLess(resident(self.asker)["VmHWM"], 64 << 10)

    # Pulls

    def timed_pull(self):
        """Seconds that a pull of the closure takes."""
        self.forget(self.asker, self.closure.paths)
        started = time.monotonic()
        self.pull(self.asker, self.closure.top)
        return time.monotonic() - started

    def pull_in_a_storm(self, port):
        """The same while 5,000 connections to `port` of the holder are opened, in two seconds."""
        self.forget(self.asker, self.closure.paths)
        storm = threading.Thread(target=self.load, args=(OPENER, self.holder.address, port, 5000, 2500))
        storm.start()
        started = time.monotonic()
        self.pull(self.asker, self.closure.top)
        seconds = time.monotonic() - started
        storm.join()
        return seconds

    def test_five_thousand_connections_leave_a_pull_as_fast(self):
        """From one machine, to the holder, in the first two seconds of each pull; 1.25 times a pull beside as many
        connections to a port that nobody listens at, or 0.3 s more: the storm itself takes a good part of the cores
        that all hosts of the lab share, which no program of the holder can help."""
        quiet = [self.timed_pull() for _ in range(2)][-1]
        pairs = [(self.pull_in_a_storm(9), self.pull_in_a_storm(12304)) for _ in range(3)]
        refused, loud = (statistics.median(times) for times in zip(*pairs, strict=True))
        self.note = (f"{loud:.2f} s beside 5,000 connections, {refused:.2f} s beside 5,000 that are refused "
                     f"(medians of 3), {quiet:.2f} s quiet")
        self.assertLess(loud, max(1.25 * refused, refused + 0.3), self.note)

    # Memory

    def test_25_pulls_of_a_gibibyte_at_once_stay_within_64_mib_on_both_sides(self):
        """One path of 1 GiB, 25 clients of one gateway: resident memory at most 64 MiB at the holder and at the asker."""
        nar = self.a_gibibyte()
        url = f"http://127.0.0.1:12304/v3/nar/{nar}"
        started = time.monotonic()
        clients = [self.asker.spawn(["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{size_download}\n", url],
                                    stdout=-1, text=True) for _ in range(PULLS)]
        most = {self.holder: 0, self.asker: 0}
        while any(client.poll() is None for client in clients):
            for host in most:
                most[host] = max(most[host], resident(host)["VmRSS"])
            time.sleep(0.1)
        took = time.monotonic() - started
        peaks = {host: resident(host)["VmHWM"] for host in most}
        self.note = (f"{PULLS * 1024 / took:.0f} MiB/s; resident " + ", ".join(
            f"{host.name} {most[host] >> 10} MiB (peak {peaks[host] >> 10})" for host in most))
        for client in clients:
            status, size = client.stdout.read().split()
            self.assertEqual((status, int(size) >= GIB), ("200", True), size)
        for host in most:
            self.assertLessEqual(peaks[host], 64 << 10, self.note)

    def a_gibibyte(self):
        """Makes the holder hold a signed path of 1 GiB that takes no room; the name of its NAR."""
        self.holder.write("/root/key", self.closure.secret_key, 0o600)
        self.holder.write("/root/hole.nix", 'derivation { name = "lab-hole"; system = builtins.currentSystem; '
                          'builder = "/bin/sh"; args = [ "-c" "truncate -s 1G $out" ]; PATH = "/usr/bin:/bin"; }')
        path = self.holder.run("nix-build /root/hole.nix --no-out-link --option substituters ''").stdout.strip()
        self.holder.run(["nix", "store", "sign", "--key-file", "/root/key", path])
        digest = self.holder.run(["nix-store", "-q", "--hash", path]).stdout.strip().removeprefix("sha256:")
        return f"{path.removeprefix('/nix/store/')[:32]}-{digest}.nar"


def resident(host):
    """VmRSS and VmHWM of the daemon, in KiB; zeros while there is none."""
    found = {"VmRSS": 0, "VmHWM": 0}
    for pid in host.peerix.processes():
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in found:
                found[name] = max(found[name], int(value.split()[0]))
    return found
