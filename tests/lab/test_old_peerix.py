"""Promise 8: a machine that has only the old peerix works with us, both ways and unchanged."""

import base64
import subprocess
from pathlib import Path

from harness.case import LabCase, empty, full, half, http, wire

OLD = Path(__file__).with_name("old_peerix.py")
SAMPLE = 12


class OldPeerix(LabCase):
    """`old` has the closure and speaks only the old protocol; `fresh` likewise, with an empty store."""

    @classmethod
    def specs(cls):
        return [full("old", peerix=False), empty("fresh", peerix=False), half("new"), empty("asker")]

    def setUp(self):
        super().setUp()
        self.old, self.fresh, self.new, self.asker = self.lab.hosts

    def run_old(self, host):
        """Start the double on a host for the rest of the test."""
        host.write("/root/old_peerix.py", OLD.read_bytes())
        process = host.spawn(["python3", "/root/old_peerix.py"], stdout=subprocess.PIPE,
                             stderr=subprocess.DEVNULL, text=True)
        self.addCleanup(process.wait)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.kill)
        self.assertEqual(process.stdout.readline(), "ready\n")

    def test_the_double_holds_and_asks_by_itself(self):
        """The double against itself: what fails here is no fault of peerix."""
        self.new.run("systemctl stop peerix.socket")
        self.asker.run("systemctl stop peerix.socket")
        self.run_old(self.old)
        self.run_old(self.fresh)
        wanted = self.closure.chain[SAMPLE - 1]
        self.forget(self.fresh, self.closure.chain)
        self.pull(self.fresh, wanted)
        self.assert_valid(self.fresh, [wanted])

    def test_we_pull_from_an_old_holder(self):
        """Small paths and a big one, through our gateway, from a holder that sends chunks of unknown length."""
        self.new.run("systemctl stop peerix.socket")
        self.run_old(self.old)
        wanted = [self.closure.chain[SAMPLE - 1], self.closure.blobs[0]]
        self.forget(self.asker, self.closure.paths)
        for path in wanted:
            self.pull(self.asker, path)
        self.assert_valid(self.asker, wanted)

    def test_an_old_asker_pulls_from_us(self):
        """Its own Nix, with the double as only substituter, gets valid paths of ours.

        We are awake: the old program waits 50 ms for answers, which is less than a start takes.
        """
        self.assert_holds(self.new, self.closure.chain[0])
        self.run_old(self.fresh)
        wanted = [self.closure.chain[SAMPLE - 1], self.closure.blobs[0]]
        self.forget(self.fresh, self.closure.chain + self.closure.blobs)
        for path in wanted:
            self.pull(self.fresh, path)
        self.assert_valid(self.fresh, wanted)

    def test_an_old_question_gets_the_old_answer_byte_for_byte(self):
        """Present: `01`, id, port, path. Absent: nothing."""
        path = self.closure.chain[0]
        number, question = wire.request(path.hash, 0xDEADBEEF)
        with self.fresh.udp(port=12304, bound=5) as sock:
            sock.sendto(question, (self.new.address, 12304))
            answer, source = sock.recvfrom(2048)
            self.assertEqual(answer, bytes.fromhex("01deadbeef00003010") + f"local/{path.hash}.narinfo".encode())
            self.assertEqual(source, (self.new.address, 12304))
            _, question = wire.request("0" * 32, 0xDEADBEF0)
            sock.sendto(question, (self.new.address, 12304))
            # What is asked later is answered later: silence until then is all that comes.
            _, question = wire.request(path.hash, 0xDEADBEF1)
            sock.sendto(question, (self.new.address, 12304))
            self.assertEqual(sock.recv(2048)[:5], bytes.fromhex("01deadbef1"))

    def test_the_url_of_our_narinfo_works_against_the_root_as_old_peers_resolve_it(self):
        """An old peer joins URL to the root, a Nix that has us as a binary cache to /local."""
        path = self.closure.chain[3]
        info = http.get(self.fresh, f"/local/{path.hash}.narinfo", self.new.address)
        self.assertEqual(info.field("URL"), f"nar/{path.nar}")
        for prefix in ("/", "/local/"):
            nar = http.get(self.fresh, prefix + info.field("URL"), self.new.address)
            self.assertEqual((nar.status, len(nar.body)), (200, path.nar_size), prefix)
        for line in info.body.decode().removesuffix("\n").split("\n"):
            self.assertIn(":", line, "an old parser crashes on a line without a colon")

    def test_urls_that_nix_still_has_from_the_old_peerix_are_served(self):
        """/v2/remote/IP/PORT/HASH/... finds a holder by HASH; the host in it is never contacted."""
        path = self.closure.chain[5]
        encoded = base64.b64encode(path.path.encode()).decode().replace("/", "_")
        with self.lab.capture() as seen:
            nar = http.get(self.asker, f"/v2/remote/192.168.77.99/12304/{path.hash}/local/nar/{encoded}.nar")
        self.assertEqual((nar.status, len(nar.body)), (200, path.nar_size))
        self.assertFalse([d for d in seen if d.target == "192.168.77.99"])
