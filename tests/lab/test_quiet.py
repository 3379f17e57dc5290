"""The LAN is left in peace: one machine that works does not keep the others awake."""

import time

from harness.case import LabCase, empty, full, http, wait_until

SHORT = '[idle]\ntimeout = "1s"\n'

# How long the LAN is watched for talk that must not come. Longer than the idle timeout and every
# wait of the protocol, so that a wake-up that causes another is seen at least twice.
WATCH_SECONDS = 5


class Quiet(LabCase):
    """Three hosts that all sleep."""

    @classmethod
    def specs(cls):
        return [full("holder"), empty("asker"), empty("other")]

    def setUp(self):
        super().setUp()
        self.holder, self.asker, self.other = self.lab.hosts
        for host in self.lab.hosts:
            host.peerix.reset(SHORT)
        self.path = self.closure.chain[0]

    def lookup(self):
        """One question of the asker's Nix."""
        self.assertEqual(http.get(self.asker, f"/{self.path.hash}.narinfo").status, 200)

    def test_a_daemon_woken_by_others_broadcasts_nothing(self):
        """Only the one whose owner wants something calls out; the answers go to it alone."""
        with self.lab.capture() as seen:
            self.lookup()
            wait_until(lambda: self.other.peerix.show("ActiveState") == "active", 5, "the question woke the third host")
            for host in self.lab.hosts:
                host.peerix.await_asleep()
        loud = {datagram.host.name for datagram in seen if datagram.broadcast()}
        self.assertEqual(loud, {"asker"}, "\n".join(map(str, seen)))
        to_asker = {address["local"] for address in self.asker.shows("address show lan0")[0]["addr_info"]}
        for datagram in seen:
            if datagram.host is not self.asker:
                self.assertIn(datagram.target, to_asker, str(datagram))
        self.note = f"{len(seen)} datagrams in all"

    def test_sleepers_do_not_wake_each_other_after_one_lookup(self):
        """After the lookup all fall asleep once, and nothing moves any more."""
        self.lookup()
        for host in self.lab.hosts:
            host.peerix.await_asleep()
        starts = [host.peerix.starts() for host in self.lab.hosts]
        with self.lab.capture() as seen:
            end = time.monotonic() + WATCH_SECONDS
            while time.monotonic() < end:
                awake = [host.name for host in self.lab.hosts if host.peerix.awake()]
                self.assertFalse(awake, f"{awake} woke by itself: {[str(d) for d in seen]}")
                time.sleep(0.05)
        self.assertEqual([str(d) for d in seen if 12304 in (d.source_port, d.target_port)], [])
        self.assertEqual([host.peerix.starts() for host in self.lab.hosts], starts)
