"""Datagrams with the address of somebody else, as any machine of a LAN can send them: a miss costs no more for it."""

import os
import socket
import statistics
import struct
import threading
import time

from harness.case import LabCase, empty, half, http, wire

PORT = 12304

# Misses in a row of which the median is taken.
MISSES = 101

# Forged datagrams a second.
RATE = 3000

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
        # Past the one wait of a burst, with the holder awake and known.
        self.assert_holds(self.holder, self.closure.chain[0])
        self.assertEqual(self.status_of(self.asker, f"/{self.closure.chain[0].hash}.narinfo"), 200)
        time.sleep(0.6)

    def median_miss(self):
        """Seconds of a lookup that finds nothing, at the median."""
        taken = []
        for _ in range(MISSES):
            self.number += 1
            answer = http.get(self.asker, f"/{self.number:032}.narinfo")
            self.assertEqual(answer.status, 404)
            taken.append(answer.seconds)
        return statistics.median(taken)

    def forge(self, datagrams):
        """Send what `datagrams(turn)` gives (source address, payload) until the test ends."""
        with self.forger.network():
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        stop = threading.Event()

        def flood():
            turn = 0
            while not stop.is_set():
                for _ in range(RATE // 200):
                    source, payload = datagrams(turn)
                    raw.sendto(packet(source, self.asker.address, payload), (self.asker.address, 0))
                    turn += 1
                time.sleep(0.005)
        thread = threading.Thread(target=flood)
        before = self.received()
        thread.start()

        def end():
            stop.set()
            thread.join()
            raw.close()
        self.addCleanup(end)
        while self.received() < before + 500:
            time.sleep(0.01)
        return end

    def received(self):
        """Datagrams that the asker has received."""
        return self.discovery()["datagrams-received"]

    def discovery(self):
        return self.asker_status()["discovery"]

    def asker_status(self):
        import json
        return json.loads(http.get(self.asker, "/status").body)

    def check(self, datagrams):
        """A miss beside the flood and after it costs what it did before."""
        quiet = self.median_miss()
        end = self.forge(datagrams)
        during = self.median_miss()
        end()
        after = self.median_miss()
        self.note = f"a miss {quiet * 1000:.1f} ms, beside the flood {during * 1000:.1f}, after it {after * 1000:.1f}"
        self.assertLess(during, quiet + SLACK, self.note)
        self.assertLess(after, quiet + SLACK, self.note)
        path = self.closure.chain[1]
        self.assertEqual(self.status_of(self.asker, f"/{path.hash}.narinfo"), 200)

    def test_answers_in_the_name_of_the_holder_to_ids_that_were_never_asked(self):
        """Here, absent and response, from the address and the port of a peer that is known."""
        path = self.closure.chain[2].hash

        def forged(turn):
            number = int.from_bytes(os.urandom(4))
            return self.holder.address, (
                struct.pack(">BI", wire.ABSENT, number),
                struct.pack(">BII", wire.RESPONSE, number, 1) + f"local/{path}.narinfo".encode(),
                struct.pack(">BIQHHQ", wire.HERE, number, 7, 1, PORT, 1),
            )[turn % 3]
        self.check(forged)

    def test_hellos_of_machines_that_do_not_exist(self):
        """From every address of the LAN, and of others."""
        def forged(turn):
            return f"192.168.{turn // 200 % 200}.{turn % 200 + 20}", wire.hello(instance=turn)[1]
        self.check(forged)
        self.assertLessEqual(len(self.asker_status()["peers"]), 1024)

    def test_requests_of_machines_that_do_not_exist(self):
        """From the port of peerix, as old peers send them."""
        def forged(turn):
            return f"10.1.{turn // 200 % 200}.{turn % 200 + 20}", wire.request(f"{turn:032}")[1]
        self.check(forged)

    def test_a_peer_that_has_gone_and_is_greeted_for(self):
        """The holder is off; somebody goes on to say hello in its name."""
        self.holder.run("systemctl stop peerix.socket peerix.service")
        for _ in range(6):
            self.median_of_one()
        self.check_gone()

    def median_of_one(self):
        self.number += 1
        http.get(self.asker, f"/{self.number:032}.narinfo")

    def check_gone(self):
        quiet = self.median_miss()
        end = self.forge(lambda turn: (self.holder.address, wire.hello(instance=7)[1]))
        during = self.median_miss()
        end()
        self.note = f"a miss {quiet * 1000:.1f} ms, beside the greetings {during * 1000:.1f}"
        self.assertLess(during, quiet + SLACK, self.note)


def packet(source, target, payload):
    """An IPv4 UDP datagram from any address, from and to the port of peerix; the kernel adds the IP checksum."""
    udp = struct.pack(">HHHH", PORT, PORT, 8 + len(payload), 0) + payload
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0,
                       socket.inet_aton(source), socket.inet_aton(target)) + udp
