"""A plain binary cache, made by real Nix and served by a web server that knows nothing of it, is a holder."""

import json
import statistics

from harness import http
from harness.case import LabCase, empty, full, wait_until

PORT = 8080


class PlainCaches(LabCase):
    """`server` has two caches of half of the closure, one packed, and no peerix; `reader` has nothing else."""

    @classmethod
    def specs(cls):
        return [full("server", peerix=False), empty("reader")]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        server, _ = cls.lab.hosts
        # What is copied from the small paths and the big ones: all that `half` refers to.
        paths = [path.path for path in cls.closure.half]
        for compression in ("zstd", "none", "xz"):
            some = paths if compression != "xz" else [cls.closure.chain[0].path]
            server.run(["nix", "copy", "--no-check-sigs", "--to", f"file:///srv/{compression}?compression={compression}",
                        *some], bound=300)

    def setUp(self):
        super().setUp()
        self.server, self.reader = self.lab.hosts
        self.forget(self.reader, self.closure.paths)

    def serve(self):
        """The caches, until the end of the test or until it is killed; listening when this returns."""
        web = self.server.spawn(f"exec python3 -m http.server {PORT} --directory /srv >/root/web.log 2>&1")
        self.addCleanup(web.wait)
        self.addCleanup(web.kill)
        wait_until(lambda: self.answers(), 10, "the web server listens")
        return web

    def answers(self):
        try:
            return http.get(self.reader, "/none/nix-cache-info", self.server.address, PORT).status == 200
        except OSError:
            return False

    def use(self, *caches):
        """The reader knows these caches and no peer at all."""
        urls = ", ".join(f'"http://{self.server.address}:{PORT}/{cache}"' for cache in caches)
        self.reader.peerix.reset(f"[discovery]\nbroadcast = false\npeers = [{urls}]\n")

    def caches(self):
        return json.loads(http.get(self.reader, "/status").body)["caches"]

    def rate(self):
        """MiB/s of the largest NAR that the reader has fetched so far, the last time."""
        fetched = [entry for entry in self.reader.journal("_SYSTEMD_UNIT=peerix.service")
                   if "PEERIX_BYTES" in entry]
        largest = max(reversed(fetched), key=lambda entry: int(entry["PEERIX_BYTES"]))
        return int(largest["PEERIX_BYTES"]) / int(largest["PEERIX_DURATION_US"]) * 1e6 / (1 << 20)

    def miss(self, number):
        answer = http.get(self.reader, f"/{number:032d}.narinfo")
        self.assertEqual(answer.status, 404)
        return answer.seconds

    def test_half_of_the_closure_comes_out_of_a_packed_cache_and_of_one_that_is_not(self):
        """Real Nix on both ends; 404 of nothing that is there, from the first lookup on."""
        notes = []
        self.serve()
        for compression in ("zstd", "none"):
            self.use(compression)
            self.forget(self.reader, self.closure.paths)
            self.reader.run(["nix-store", "-r", *[path.path for path in self.closure.half]], bound=300)
            status = json.loads(http.get(self.reader, "/status").body)
            cache, = status["caches"]
            self.assertEqual(cache["state"], "good")
            self.assertEqual(cache["hits"], len(self.closure.half))
            self.assertEqual(status["fetched"]["nars"], len(self.closure.half))
            self.assert_valid(self.reader, self.closure.half)
            notes.append(f"{cache['hits']} paths from {compression}, the largest at {self.rate():.0f} MiB/s")
        self.note = ", ".join(notes)

    def test_what_is_packed_otherwise_is_left_alone(self):
        """xz: counted, skipped, and the cache stays good."""
        self.serve()
        self.use("xz")
        path = self.closure.chain[0]
        self.assertEqual(self.status_of(self.reader, f"/{path.hash}.narinfo"), 404)
        cache, = self.caches()
        self.assertEqual((cache["state"], cache["compressed"]), ("good", 1))

    def test_a_cache_that_is_off_costs_nothing_and_is_used_when_it_is_back(self):
        """Stopped, the host still there; then the whole host silent; then all as before."""
        web = self.serve()
        self.use("none")
        path = self.closure.half[0]
        url = f"/{path.hash}.narinfo"
        self.assertEqual(self.status_of(self.reader, url), 200)
        good = [self.miss(number) for number in range(100, 200)]

        web.kill()
        web.wait()
        self.miss(1)
        off = [self.miss(number) for number in range(200, 300)]
        self.assertEqual(self.caches()[0]["state"], "off")
        self.assertLess(statistics.median(off), 0.02)

        # The first lookups of a new command find out, those after them have it.
        self.serve()
        wait_until(lambda: self.status_of(self.reader, url) == 200, 20, "the cache is used again", every=6)

        self.lab.link_down(self.server)
        self.addCleanup(self.lab.link_up, self.server)
        first = self.miss(2)
        silent = [self.miss(number) for number in range(300, 400)]
        self.assertLess(first, 0.5)
        self.assertLess(statistics.median(silent), 0.02)
        milliseconds = [f"{statistics.median(times) * 1000:.1f}" for times in (good, off, silent)]
        self.note = (f"misses of {milliseconds[0]} ms with it, {milliseconds[1]} when stopped, {milliseconds[2]} when "
                     f"silent after one of {first * 1000:.0f}")
