"""The units that let Nix forget its misses: after a sleep, and when the network has changed."""

import re

from harness.case import LabCase, empty, wait_until
from harness.peerix import MESSAGE_STARTING
from test_units import MOST_EXPOSURE

# systemd's catalogue: "a unit has been started".
MESSAGE_STARTED = "39f53479d3a045ac8e11786248231fbf"

REFRESH = "peerix-refresh.service"
MEMORY = "/root/.cache/nix/binary-cache-v6.sqlite"
COUNT = ("import sqlite3; print(sqlite3.connect('file:%s?mode=ro', uri=True)"
         ".execute('select count(*) from NARs where present = 0').fetchone()[0])" % MEMORY)

# What networkd, NetworkManager and others write when a network has come up.
STATES = ("/run/systemd/netif/state", "/run/NetworkManager/resolv.conf", "/etc/resolv.conf")


class RefreshUnits(LabCase):
    """One host, whose Nix has asked in vain."""

    @classmethod
    def specs(cls):
        return [empty("host")]

    def setUp(self):
        super().setUp()
        self.host, = self.lab.hosts
        self.remember_a_miss()

    def remember_a_miss(self):
        """Nix asks the gateway for what nobody has."""
        self.host.run("rm -rf /root/.cache/nix")
        self.host.run(["nix-store", "-r", self.closure.chain[0].path], check=False)
        self.assertEqual(self.misses(), 1, "Nix remembers no miss")

    def misses(self):
        """How many misses Nix remembers; the host itself reads its database."""
        return int(self.host.run(["python3", "-c", COUNT]).stdout)

    def enable(self, *units):
        """`systemctl enable --now`, and back at the test's end."""
        self.addCleanup(self.host.run, ["systemctl", "disable", "--now", *units], check=False)
        self.host.run(["systemctl", "enable", *units])
        for unit in units:
            if unit.endswith(".path"):
                self.host.run(["systemctl", "start", unit])

    def last(self, message, unit):
        """When systemd last said this of the unit; microseconds since boot."""
        return int(self.host.journal(f"MESSAGE_ID={message}", f"UNIT={unit}")[-1]["__MONOTONIC_TIMESTAMP"])

    def test_a_network_that_comes_up_is_noticed_however_it_is_managed(self):
        """Each file, whether it is written in place or replaced, and whether or not it was there before."""
        self.enable("peerix-refresh.path")
        for state in STATES:
            for write in (f"echo up > {state}", f"echo up again > {state}.new && mv {state}.new {state}"):
                with self.subTest(write):
                    self.host.run(f"mkdir -p $(dirname {state}) && {write}")
                    wait_until(lambda: self.misses() == 0, 5, "the miss is forgotten")
                    self.remember_a_miss()

    def test_a_machine_that_wakes_up_forgets(self):
        """suspend.target comes and goes as with a real sleep; only the sleep itself is left out."""
        self.enable(REFRESH)
        sleep = "systemd-suspend.service"
        self.host.peerix.drop_in(sleep, "[Service]\nExecStart=\nExecStart=/bin/true\n")
        self.addCleanup(self.host.peerix.drop_in, sleep, None)
        self.assertEqual(self.misses(), 1, "enabling it must not run it")
        for _ in range(2):
            self.host.run("systemctl start suspend.target")
            wait_until(lambda: self.misses() == 0, 5, "the miss is forgotten")
            # After the sleep, not on the way into it.
            self.assertGreater(self.last(MESSAGE_STARTING, REFRESH), self.last(MESSAGE_STARTED, sleep))
            self.remember_a_miss()

    def test_the_unit_may_do_little(self):
        """It runs as root, because the memory is root's, and with none of root's rights beside that."""
        done = self.host.run(f"systemd-analyze verify --man=no {REFRESH} peerix-refresh.path")
        self.assertEqual((done.stdout + done.stderr).strip(), "")
        text = self.host.run(f"systemd-analyze security --no-pager {REFRESH}", check=False).stdout
        exposure = float(re.search(r"Overall exposure level for [\w.-]+: ([\d.]+)", text)[1])
        self.assertLessEqual(exposure, MOST_EXPOSURE, text)
        self.note = f"exposure {exposure}"
        self.host.run(["systemctl", "start", REFRESH])
        self.assertEqual(self.misses(), 0)
