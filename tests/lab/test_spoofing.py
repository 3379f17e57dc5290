"""Datagrams with the address of somebody else, as any machine of a LAN can send them: a miss costs no more for it."""

import json
import os
import socket
import statistics
import struct
import threading
import time

from harness.case import LabCase, empty, half, http, wait_until, wire

PORT = 12304

# No host has this address.
NOBODY = "192.168.77.99"

# Misses in a row of which the median is taken.
MISSES = 101

# Forged datagrams a second.
RATE = 3000

# By then the system has given up looking for the first machines that do not exist, in seconds: as
# much waits for others as ever will.
GIVEN_UP = 4

# What a miss may cost more beside them, in seconds: far less than `discovery.timeout` (50 ms),
# which is what it would wait for somebody who does not answer.
SLACK = 0.015


class Spoofing(LabCase):
    """`holder` answers `asker`; `forger` has no peerix and sends in the name of others."""

    @classmethod
    def specs(cls):
        return [half("holder"), empty("asker"), empty("forger", peerix=False)]

    def setUp(self):
        super().setUp()
        self.holder, self.asker, self.forger = self.lab.hosts
        self.number = 0
        # Past the one wait of a burst, which the miss sits out, with the holder awake and known.
        self.assert_holds(self.holder, self.closure.chain[0])
        self.assertEqual(self.status_of(self.asker, f"/{self.closure.chain[0].hash}.narinfo"), 200)
        self.miss()

    def miss(self):
        """Seconds of a lookup that finds nothing."""
        self.number += 1
        answer = http.get(self.asker, f"/{self.number:032}.narinfo")
        self.assertEqual(answer.status, 404)
        return answer.seconds

    def median_miss(self):
        return statistics.median(self.miss() for _ in range(MISSES))

    def status(self):
        return json.loads(http.get(self.asker, "/status").body)

    def flood(self, forged, target):
        """Send `target` what `forged(turn)` gives (source address, payload); returns what ends it, at the latest with the test."""
        with self.forger.network():
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        stop = threading.Event()

        def send():
            turn = 0
            while not stop.is_set():
                for _ in range(RATE // 200):
                    source, payload = forged(turn)
                    raw.sendto(packet(source, target.address, payload), (target.address, 0))
                    turn += 1
                time.sleep(0.005)
        thread = threading.Thread(target=send)

        def end():
            stop.set()
            thread.join()
            raw.close()
        def received():
            return json.loads(http.get(target, "/status").body)["discovery"]["datagrams-received"]
        before = received()
        thread.start()
        self.addCleanup(end)
        wait_until(lambda: received() > before + 500, 10, "the flood arrives")
        return end

    def compare(self, forged):
        """The median of a miss before, beside and after the flood."""
        quiet = self.median_miss()
        end = self.flood(forged, self.asker)
        during = self.median_miss()
        found = self.status_of(self.asker, f"/{self.closure.chain[1].hash}.narinfo")
        end()
        after = self.median_miss()
        self.note = f"a miss {quiet * 1000:.1f} ms, beside the flood {during * 1000:.1f}, after it {after * 1000:.1f}"
        self.assertLess(during, quiet + SLACK, self.note)
        self.assertLess(after, quiet + SLACK, self.note)
        return found

    def check(self, forged):
        """A miss costs what it did before, and what the holder has is found, beside the flood and after it."""
        self.assertEqual(self.compare(forged), 200, "beside the flood")
        after = self.status_of(self.asker, f"/{self.closure.chain[2].hash}.narinfo")
        self.assertEqual(after, 200, "after the flood")

    def test_answers_in_the_name_of_the_holder_to_ids_that_were_never_asked(self):
        """That it has the path, that it has not, and an old peer's response, from the address and the port of a peer that is known."""
        wanted = self.closure.chain[1].hash

        def forged(turn):
            number = int.from_bytes(os.urandom(4))
            return self.holder.address, (
                wire.answer([wire.ABSENT], number, instance=7),
                wire.response(wanted, number, port=1),
                wire.answer([wire.PRESENT], number, port=1, instance=7),
            )[turn % 3]
        self.check(forged)

    def test_asks_of_machines_that_do_not_exist(self):
        """From addresses of the LAN and of others; all that is said to them waits for a machine that never shows up."""
        def forged(turn):
            return f"192.168.{turn // 200 % 200}.{turn % 200 + 20}", wire.question([], instance=turn)[1]
        self.check(forged)
        self.assertLessEqual(len(self.status()["peers"]), 1024)

    def test_requests_of_machines_that_do_not_exist(self):
        """From the port of peerix, as old peers send them."""
        def forged(turn):
            return f"192.168.77.{turn % 200 + 20}", wire.request(f"{turn:032}")[1]
        self.check(forged)

    def test_a_configured_peer_that_is_off(self):
        """What is sent to it waits in our socket for an answer to ARP, and must not be in the way of other questions."""
        self.asker.peerix.reset(f'[discovery]\npeers = ["{NOBODY}"]\n')
        self.miss()
        for _ in range(1000):
            self.miss()
        paths = self.closure.chain[:50]
        found = [self.status_of(self.asker, f"/{path.hash}.narinfo") for path in paths]
        self.note = f"{found.count(200)} of {len(paths)} paths found after a thousand misses"
        self.assertEqual(found.count(200), len(paths), self.note)

    def test_asks_in_the_name_of_a_peer_that_has_gone(self):
        """Misses have stopped waiting for it, and do not begin again."""
        self.holder.run("systemctl stop peerix.socket peerix.service")
        for _ in range(6):
            self.miss()
        self.compare(lambda turn: (self.holder.address, wire.question([], instance=7)[1]))


def packet(source, target, payload):
    """An IPv4 UDP datagram from any address, from and to the port of peerix; the kernel adds the IP checksum."""
    udp = struct.pack(">HHHH", PORT, PORT, 8 + len(payload), 0) + payload
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0,
                       socket.inet_aton(source), socket.inet_aton(target)) + udp
