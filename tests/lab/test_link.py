"""The lab's own link with delay and loss does what it is told to: what fails here is no fault of peerix."""

import re
import socket
import statistics
import threading
import time

from harness.case import LabCase, empty, wait_until
from harness.link import PORT

ECHOES = 1000

# As many as fit into the buffer of a socket.
BATCH = 100


class LinkItself(LabCase):
    """Two hosts without peerix, `near` behind the link."""

    @classmethod
    def specs(cls):
        return [empty("near", peerix=False), empty("there", peerix=False)]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.near, cls.there = cls.lab.hosts
        link = cls.lab.link(cls.near)
        cls.link = link.__enter__()
        cls.addClassCleanup(link.__exit__, None, None, None)

    def setUp(self):
        self.link.set()
        self.link.carrier(True)
        self.link.cut(False)
        self.echo()

    def echo(self):
        """An echo for UDP on `there`, until the end of the test."""
        server = self.there.udp(port=PORT, bound=0.1)
        over = threading.Event()

        def answer():
            while not over.is_set():
                try:
                    server.sendto(*server.recvfrom(2048))
                except TimeoutError:
                    continue
        thread = threading.Thread(target=answer)
        thread.start()
        self.addCleanup(server.close)
        self.addCleanup(thread.join)
        self.addCleanup(over.set)

    def trip(self, sock, number=0, bound=1.0):
        """Seconds of one round trip; None when it got lost."""
        sock.settimeout(bound)
        began = time.perf_counter()
        sock.sendto(str(number).encode(), (self.there.address, PORT))
        try:
            while sock.recv(100) != str(number).encode():
                pass
        except TimeoutError:
            return None
        return time.perf_counter() - began

    def test_a_round_trip_takes_twice_the_delay(self):
        """Of 0, 0.5, 10 and 75 ms; three milliseconds more at most, which the kernel and Python take on a busy machine."""
        medians = []
        with self.near.udp() as sock:
            self.trip(sock)
            for delay in (0, 0.5, 10, 75):
                self.link.set(delay_ms=delay)
                trips = [self.trip(sock, number) for number in range(20)]
                medians.append(statistics.median(trips) * 1000)
                self.assertGreaterEqual(min(trips) * 1000, 2 * delay)
                self.assertLess(medians[-1], 2 * delay + 3)
        self.note = "medians " + ", ".join(f"{median:.2f} ms" for median in medians)

    def test_so_many_are_lost_as_it_is_told_and_the_same_for_the_same_seed(self):
        """5 % each way; not one ARP or neighbour discovery."""
        def lost(seed):
            with self.near.udp() as sock:
                self.trip(sock)
                self.link.set(loss=0.05, seed=seed)
                back = set()
                for begin in range(0, ECHOES, BATCH):
                    for number in range(begin, begin + BATCH):
                        sock.sendto(str(number).encode(), (self.there.address, PORT))
                    sock.settimeout(0.1)
                    try:
                        while not back.issuperset(range(begin, begin + BATCH)):
                            back.add(int(sock.recv(100)))
                    except TimeoutError:
                        continue
            self.link.set()
            return set(range(ECHOES)) - back
        first = lost(3)
        self.assertEqual(lost(3), first)
        self.assertNotEqual(lost(4), first)
        self.assertTrue(60 <= len(first) <= 140, len(first))
        self.link.set(loss=1.0)
        for _ in range(5):
            self.near.ip("neighbour flush dev lan0")
            with self.near.udp() as sock:
                sock.sendto(b"x", (self.there.address, PORT))
            wait_until(lambda: self.near.shows(f"neighbour show {self.there.address}")[0]["state"] == ["REACHABLE"], 2,
                       "ARP passes")

    def test_exactly_one_frame_of_a_kind_is_dropped(self):
        """The kernel repeats a SYN after a second, and its answer too."""
        with self.there.network():
            server = socket.create_server((self.there.address, PORT))
        self.addCleanup(server.close)

        def connect():
            began = time.monotonic()
            self.near.tcp(self.there.address, PORT).close()
            return time.monotonic() - began
        self.assertLess(connect(), 0.2)
        for kind in ("syn", "syn-ack"):
            before = self.link.counts()["dropped"]
            self.link.drop_next(kind)
            self.assertTrue(0.9 < connect() < 1.5, kind)
            self.assertLess(connect(), 0.2)
            self.assertEqual(self.link.counts()["dropped"], before + 1)

    def test_cut_and_carrier(self):
        """Cut: silence, and nobody sees why. Without carrier: the interface says so, and keeps its address."""
        with self.near.udp() as sock:
            self.assertIsNotNone(self.trip(sock))
            self.link.cut()
            self.assertIsNone(self.trip(sock, bound=0.2))
            self.assertEqual(self.near.shows("link show lan0")[0]["operstate"], "UP")
            self.link.cut(False)
            self.assertIsNotNone(self.trip(sock))
            self.link.carrier(False)
            wait_until(lambda: self.near.shows("link show lan0")[0]["operstate"] == "DOWN", 2, "the carrier is gone")
            self.assertTrue(re.search(re.escape(self.near.address), str(self.near.shows("address show lan0"))))
            self.assertIsNone(self.trip(sock, bound=0.2))
            self.link.carrier(True)
            wait_until(lambda: self.trip(sock, bound=0.1) is not None, 2, "the carrier is back")
