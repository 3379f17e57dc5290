"""Promise 4 on links as they are: a neighbour far away, a link that loses packets, a cable that was out."""

import time
from concurrent.futures import ThreadPoolExecutor

from harness.case import LinkedCase, http, wait_until
from harness.suspension import suspended, suspensible

COUNT = 200

# Lookups at a time, as many as Nix has connections.
AT_ONCE = 25

OUT_SECONDS = 5

# The network that a laptop moves to.
NEW_NET = "10.9.0"

# A free one in the network of the lab.
OTHER_ADDRESS = "192.168.77.61"


class FarLinks(LinkedCase):
    """Settings as they come."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.paths = cls.maker.make("far", COUNT)

    def find(self, paths):
        """How many are found, 25 at a time, each asked for once; and the seconds that it took."""
        parts = [paths[place::AT_ONCE] for place in range(AT_ONCE)]

        def ask(part):
            return self.statuses_of(self.asker, part).count(200)
        began = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as threads:
            return sum(threads.map(ask, parts)), time.monotonic() - began

    def check(self, round_trip_ms, loss, least, configured):
        """From new processes, which have heard of nobody: what is found of all."""
        if configured:
            self.asker.peerix.reset(f'[discovery]\nbroadcast = false\npeers = ["{self.holder.address}"]\n')
        # A start takes as long as this machine is busy, which is no matter of the link.
        for host in self.lab.hosts:
            http.get(host, "/healthz")
        self.link.set(delay_ms=round_trip_ms / 2, loss=loss, seed=round_trip_ms)
        found, took = self.find(self.paths)
        self.note = f"{found} of {COUNT} in {took:.1f} s"
        self.assertGreaterEqual(found, least, self.note)

    def await_carrier(self):
        """The system has seen that the carrier is there."""
        wait_until(lambda: self.asker.shows("link show lan0")[0]["operstate"] == "UP", 2, "the carrier is back", every=0.005)

    def out_and_in(self, broadcasts=True):
        """Before, all is found; then the cable is out, while misses go on; then in: from the first question on."""
        paths = self.paths[:100]
        self.assertEqual(self.find(paths)[0], 100)
        self.link.carrier(False)
        end = time.monotonic() + OUT_SECONDS
        while time.monotonic() < end:
            self.assertIn(self.status_of(self.asker, f"/{self.paths[150].hash}.narinfo"), (200, 404))
            time.sleep(0.2)
        self.link.carrier(True)
        self.await_carrier()
        if not broadcasts:
            # What was sent meanwhile has begun a search for the hardware address, which the kernel repeats once
            # a second: until then no unicast leaves. The answer to a broadcast tells the address.
            wait_until(lambda: "INCOMPLETE" not in self.asker.run("ip neigh").stdout, 4, "the holder is resolved", every=0.01)
        statuses = [self.status_of(self.asker, f"/{path.hash}.narinfo") for path in paths]
        self.note = f"{statuses.count(200)} of 100"
        missed = [place for place, status in enumerate(statuses) if status != 200]
        self.assertEqual(missed, [], self.note)

    def test_the_only_cable_out_for_five_seconds_and_in_again(self):
        """Found by broadcast before and after."""
        self.out_and_in()

    def test_the_only_cable_out_for_five_seconds_and_in_again_with_a_configured_peer(self):
        """The same where nothing is broadcast."""
        self.asker.peerix.reset(f'[discovery]\nbroadcast = false\npeers = ["{self.holder.address}"]\n')
        self.out_and_in(broadcasts=False)

    def move(self, host, address):
        """Give a host another address in place of its own; back in the end."""
        def restore():
            host.ip("address flush dev lan0 scope global")
            self.lab.address(host)
        self.addCleanup(restore)
        host.ip("address flush dev lan0 scope global")
        host.ip(f"address add {address}/24 brd + dev lan0")

    def check_suspended(self, move):
        """All is found before; then `move` happens while the asker is suspended: all is found from the first question on."""
        with suspensible(self.asker):
            paths = self.paths[:100]
            self.assertEqual(self.find(paths)[0], 100)
            with suspended(self.asker):
                move()
            statuses = [self.status_of(self.asker, f"/{path.hash}.narinfo") for path in paths]
        self.note = f"{statuses.count(200)} of 100"
        missed = [place for place, status in enumerate(statuses) if status != 200]
        self.assertEqual(missed, [], self.note)

    def test_a_laptop_suspended_and_moved(self):
        """It wakes up on another network, where the holder is somebody that it has never heard of."""
        def move():
            self.link.carrier(False)
            for number, host in enumerate(self.lab.hosts, 1):
                self.move(host, f"{NEW_NET}.{number}")
            self.link.carrier(True)
        self.check_suspended(move)

    def test_a_laptop_suspended_while_its_neighbour_moved(self):
        """Nothing but the clock says that time has passed."""
        self.check_suspended(lambda: self.move(self.holder, OTHER_ADDRESS))


def _add_tests():
    """One for each round trip, with and without loss, for a neighbour and for a configured peer."""
    cases = [(round_trip, 0.0, COUNT) for round_trip in (1, 20, 60, 150)]
    cases += [(round_trip, 0.05, COUNT - 1) for round_trip in (1, 20, 60)]
    for round_trip, loss, least in cases:
        for configured in (False, True):
            def test(self, arguments=(round_trip, loss, least, configured)):
                self.check(*arguments)
            who = "a_configured_peer" if configured else "a_neighbour"
            how = "with_loss_of_5_percent" if loss else "without_loss"
            test.__name__ = f"test_{who}_{round_trip:03}_ms_away_{how}"
            test.__doc__ = f"At least {least} of {COUNT}."
            setattr(FarLinks, test.__name__, test)


_add_tests()
