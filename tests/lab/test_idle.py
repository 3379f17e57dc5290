"""Promise 6: asleep is free, the first packet wakes it, and no request is lost."""

import itertools
import time

from harness.case import LabCase, empty, full, http, wait_until, wire

UNIT_SUCCEEDED = "7ad2d189f7e94e70a38c781354912448"
UNIT_FAILED = "be02cf6855d2428ba40df7e9d022f03d"


class Idle(LabCase):
    """`holder` has the closure; `asker` has no daemon, only sockets of ours."""

    @classmethod
    def specs(cls):
        return [full("holder"), empty("asker", peerix=False)]

    def setUp(self):
        super().setUp()
        self.holder, self.asker = self.lab.hosts
        self.path = self.closure.chain[0]

    def test_it_ends_when_idle_and_the_next_packet_or_request_wakes_it(self):
        """No process is left, and each way of asking starts it again."""
        self.holder.peerix.reset('[idle]\ntimeout = "500ms"\n')
        info = f"/local/{self.path.hash}.narinfo"
        ways = {
            "a packet": lambda: wire.ask(self.asker, self.holder.address, self.path.hash, bound=5).state == wire.PRESENT,
            "a request from the LAN": lambda: self.status_of(self.asker, info, address=self.holder.address) == 200,
            "a request of the owner": lambda: self.status_of(self.holder, f"/{self.path.hash}.narinfo") == 200,
        }
        for way, ask in ways.items():
            self.assertFalse(self.holder.peerix.awake())
            starts = self.holder.peerix.starts()
            self.assertTrue(ask(), f"{way} was not answered")
            self.assertEqual(self.holder.peerix.starts(), starts + 1, f"{way} did not wake it")
            self.holder.peerix.await_asleep(bound=6)
        self.assert_no_lost_socket(self.holder)

    def test_what_is_no_work_does_not_keep_it_awake(self):
        """Asks who is there and looks at its state come more often than the timeout, and it goes all the same."""
        self.holder.peerix.reset('[idle]\ntimeout = "1s"\n')
        sock = self.asker.udp()
        for poke in (lambda: sock.sendto(wire.question([])[1], (self.holder.address, 12304)),
                     lambda: http.get(self.holder, "/healthz")):
            self.assert_holds(self.holder, self.path)
            next_poke = itertools.count(time.monotonic(), 0.4)
            due = [next(next_poke)]

            def gone():
                if time.monotonic() >= due[0]:
                    due[0] = next(next_poke)
                    if not self.holder.peerix.awake():
                        return True
                    poke()
                return not self.holder.peerix.awake()
            wait_until(gone, 6, "it ends although it is poked", every=0.01)

    def test_300_idle_exits_under_a_stream_of_requests_lose_none(self):
        """Each request comes at the moment of the exit, a little before or a little after it."""
        self.holder.peerix.reset('[idle]\ntimeout = "50ms"\n')
        info = f"/local/{self.path.hash}.narinfo"
        sock = self.asker.udp()
        ways = [
            lambda: wire.ask(self.asker, self.holder.address, self.path.hash, bound=3, sock=sock) is not None,
            lambda: self.status_of(self.asker, info, address=self.holder.address, bound=3) == 200,
            lambda: self.status_of(self.holder, info, bound=3) == 200,
        ]
        begin = self.count(UNIT_SUCCEEDED)
        exits, slowest, asked = 0, 0.0, 0
        end = time.monotonic() + 240
        while exits < 300:
            self.assertLess(time.monotonic(), end, f"only {exits} idle exits in 240 s")
            # The moments sweep from 10 ms before the timeout to 50 ms after it, in steps of 1 ms.
            moment = time.monotonic() + 0.050 + (asked * 7 % 61 - 10) / 1000
            wait_until(lambda: time.monotonic() >= moment, 1, "the moment of the exit", every=0.0005)
            started = time.monotonic()
            self.assertTrue(ways[asked % 3](), f"request {asked} (way {asked % 3}) was lost after about {exits} exits")
            slowest = max(slowest, time.monotonic() - started)
            asked += 1
            if asked % 25 == 0:
                exits = self.count(UNIT_SUCCEEDED) - begin
        self.assert_no_lost_socket(self.holder)
        self.assertEqual(self.count(UNIT_FAILED), 0, "the service has failed")
        self.note = f"{exits} exits, {asked} requests, slowest {slowest * 1000:.0f} ms"

    def count(self, message):
        """How often systemd has said this of the service."""
        return len(self.holder.journal(f"MESSAGE_ID={message}", "UNIT=peerix.service"))
