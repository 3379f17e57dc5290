"""What Nix does at a closed port: what the documents say of stopping peerix by hand is true of a real Nix."""

import time

from harness.case import LabCase, empty, full
from harness.peerix import GATEWAY

# Where the other cache is: after the gateway in priority.
OTHER = "http://192.168.77.1:12304/local?priority=50"


class ClosedSocket(LabCase):
    """`holder` has the closure and is the other cache; `asker` has a gateway, which is closed."""

    @classmethod
    def specs(cls):
        return [full("holder"), empty("asker", nix_conf=f"substituters = {GATEWAY} {OTHER}\n")]

    def setUp(self):
        super().setUp()
        self.holder, self.asker = self.lab.hosts
        self.forget(self.asker, self.closure.paths)

    def close(self, used):
        """Close the gateway, which Nix has used before or not."""
        if used:
            self.pull(self.asker, self.closure.chain[0])
        self.asker.run("systemctl stop peerix.socket peerix.service")

    def pull_now(self, *options):
        """Pull a path of three; returns whether that worked."""
        began = time.monotonic()
        done = self.asker.run(["nix-store", "-r", self.closure.chain[2].path, *options], check=False)
        self.note = f"{time.monotonic() - began:.1f} s"
        return done.returncode == 0

    def test_a_nix_that_has_never_used_the_gateway_goes_on(self):
        """It takes no notice of a substituter that it cannot reach."""
        self.close(used=False)
        self.assertTrue(self.pull_now())

    def test_a_nix_that_has_used_it_fails(self):
        """It remembers for a week that there is a cache, so a refused connection is an error to it."""
        self.close(used=True)
        self.assertFalse(self.pull_now(), "this Nix goes on: the documents can be kinder")

    def test_with_fallback_it_goes_on(self):
        """By `fallback = true`, or --fallback."""
        self.close(used=True)
        self.assertTrue(self.pull_now("--fallback"))

    def test_without_the_substituter_it_goes_on(self):
        """What the documents tell to type meanwhile."""
        self.close(used=True)
        self.assertTrue(self.pull_now("--option", "substituters", OTHER))
