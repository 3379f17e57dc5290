"""What the network may do to a host, and what other hosts may ask of it."""

import statistics

from harness.case import LabCase, empty, full, half, http, wait_until, wire


class Network(LabCase):
    """`holder` has the closure; `asker` has a LAN and `alone` has none until a test plugs it in."""

    @classmethod
    def specs(cls):
        return [full("holder"), empty("asker"), half("alone", connected=False)]

    def setUp(self):
        super().setUp()
        self.holder, self.asker, self.alone = self.lab.hosts
        self.path = self.closure.chain[150]

    def miss(self, host, number=0):
        """Seconds of a narinfo that nobody has."""
        answer = http.get(host, f"/{number:032d}.narinfo")
        self.assertEqual(answer.status, 404)
        return answer.seconds

    def test_without_a_lan_a_miss_is_quick(self):
        """A host on its own: the first pays the start and at most one wait, the others nothing."""
        first = self.miss(self.alone)
        others = [self.miss(self.alone, number) for number in range(1, 11)]
        self.assertLess(first, 1.0)
        self.assertLess(max(others), 0.1)
        self.note = f"{first * 1000:.0f} ms, then {statistics.median(others) * 1000:.1f} ms"

    def test_with_neighbours_that_know_nothing_a_miss_is_quick(self):
        """Where every known peer has said no, there is no fixed wait."""
        self.miss(self.asker)
        self.assert_holds(self.holder, self.path)
        first = self.miss(self.asker, 1)
        others = [self.miss(self.asker, number) for number in range(2, 22)]
        self.assertLess(first, 0.6)
        self.assertLess(statistics.median(others), 0.05)
        self.note = f"median {statistics.median(others) * 1000:.1f} ms"

    def test_an_interface_that_comes_later_is_used(self):
        """A laptop is plugged in while the daemon runs: it finds its neighbours without a restart."""
        url = f"/{self.path.hash}.narinfo"
        self.assertEqual(self.status_of(self.alone, url), 404)
        before = self.alone.peerix.processes()
        self.lab.plug(self.alone)
        self.addCleanup(self.lab.unplug, self.alone)
        wait_until(lambda: self.status_of(self.alone, url) == 200, 5, "the neighbour is found", every=0.1)
        self.assertEqual(self.alone.peerix.processes(), before, "it was restarted")

    def test_a_cut_off_host_gets_its_misses_and_then_its_neighbours_back(self):
        """The cable is out for a while: 404 in time, never an error; then all is as before."""
        url = f"/{self.path.hash}.narinfo"
        self.assertEqual(self.status_of(self.asker, url), 200)
        self.lab.link_down(self.asker)
        self.addCleanup(self.lab.link_up, self.asker)
        for number in range(5):
            self.assertLess(self.miss(self.asker, number), 0.6)
        self.lab.link_up(self.asker)
        wait_until(lambda: self.status_of(self.asker, url) == 200, 5, "the neighbour is found again", every=0.1)

    def test_a_host_outside_the_allowed_networks_gets_nothing(self):
        """403 on each route, no answer to a packet; the owner's own requests go on."""
        self.holder.peerix.reset('allowed-networks = ["127.0.0.0/8", "::1/128", "10.0.0.0/8"]\n')
        self.assertEqual(self.status_of(self.holder, f"/local/{self.path.hash}.narinfo"), 200)
        for route in ("/nix-cache-info", f"/local/{self.path.hash}.narinfo", f"/nar/{self.path.nar}",
                      f"/{self.path.hash}.narinfo", "/status"):
            self.assertEqual(self.status_of(self.asker, route, address=self.holder.address), 403, route)
        self.assertIsNone(wire.ask(self.asker, self.holder.address, self.path.hash, bound=1))

    def test_the_owner_s_routes_are_403_from_another_host(self):
        """Whatever the path is, before any of it is looked at."""
        for route in (f"/{self.path.hash}.narinfo", "/nonsense.narinfo", f"/v3/nar/{self.path.nar}",
                      f"/v2/remote/127.0.0.1/12304/{self.path.hash}/local/nar/x.nar",
                      "/status", "/metrics", "/healthz"):
            self.assertEqual(self.status_of(self.asker, route, address=self.holder.address), 403, route)
        self.assertEqual(self.status_of(self.asker, "/nix-cache-info", address=self.holder.address), 200)

    def test_a_web_page_cannot_use_the_gateway(self):
        """A browser of the owner, sent by someone else's page: foreign Host, Origin or fetch metadata."""
        url = f"/{self.path.hash}.narinfo"
        for headers in ([("Host", "evil.example")], [("Origin", "http://evil.example")],
                        [("Sec-Fetch-Site", "cross-site")]):
            self.assertEqual(self.status_of(self.asker, url, headers=headers), 403, headers)
        for headers in ([("Host", "localhost:12304")], [("Host", "127.0.0.1")], [("Host", "[::1]:12304")],
                        [("Sec-Fetch-Site", "none")]):
            self.assertEqual(self.status_of(self.asker, url, headers=headers), 200, headers)

    def test_no_narinfo_of_nonsense_is_more_than_a_404(self):
        """A 400 or 500 would fail the whole build."""
        for name in ("", "x", "%00", "%ff%fe", "..%2f..%2fetc%2fpasswd", "e" * 32, "0" * 33, "a" * 8000,
                     self.path.hash.upper(), f"../{self.path.hash}", "a/b/c", "\xe4", "a%", "%zz", "-" * 32):
            data = f"GET /{name}.narinfo HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode("latin-1")
            answer = http.raw(self.asker, data)
            self.assertIn(answer.split(b" ")[1:2], ([b"200"], [b"404"]), (name, answer[:80]))

    def test_junk_is_answered_with_an_error_or_not_at_all(self):
        """Bytes that are no HTTP and no datagram of ours: the daemon runs on, the journal stays calm."""
        self.assert_holds(self.holder, self.path)
        before, mark = self.holder.peerix.processes(), self.holder.peerix.cursor()
        there = {"address": self.holder.address}
        for data in (b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00" * 20, b"GET / HTTP/9.9\r\n\r\n",
                     b"POST /local/x.narinfo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
                     f"GET /nar/{self.path.nar} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                     f"Range: bytes=9999999-\r\n\r\n".encode()):
            answer = http.raw(self.asker, data, whole=False, **there)
            self.assertTrue(answer == b"" or answer.split(b" ")[1][:1] == b"4", (data, answer[:80]))
        with self.asker.udp() as sock:
            for datagram in (b"", b"\0", b"\0\0\0\0\0", b"\0\0\0\0\1" + b"e" * 32, b"\0\0\0\0\1" + b"0" * 1400,
                             b"\1\0\0\0\1", b"\2", b"\2\0\0\0\1", b"\2" * 1400, b"\3", b"\3\0\0\0\1", b"\3" * 25,
                             wire.question([self.path.hash] * 2)[1][:-1], wire.answer([1] * 9, 1)[:-1],
                             b"\4" * 25, b"\xff" * 1400):
                sock.sendto(datagram, (self.holder.address, 12304))
        self.assert_holds(self.holder, self.path)
        self.assertEqual(self.holder.peerix.processes(), before)
        self.assertEqual(self.holder.peerix.said(since=mark, priority="notice"), "")
