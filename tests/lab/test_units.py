"""The shipped units: how they fail, that they do not fail, and what they expose."""

import re
import time

from harness.case import LabCase, empty, full, wait_until, wire

MOST_EXPOSURE = 1.2


class Units(LabCase):
    """`host` has the units as shipped; `asker` only asks."""

    @classmethod
    def specs(cls):
        return [full("host"), empty("asker", peerix=False)]

    def setUp(self):
        super().setUp()
        self.host, self.asker = self.lab.hosts
        self.path = self.closure.chain[0]

    def refused(self):
        """Whether a connection is refused, as a closed port does; an accepted one is left open a moment."""
        try:
            with self.asker.tcp(self.host.address, 12304, bound=1):
                return False
        except ConnectionRefusedError:
            return True
        except OSError:
            return False

    def break_binary(self):
        """Put a program that ends at once in the daemon's place."""
        self.host.peerix.put_binary(self.host.path("/usr/bin/false"))
        self.addCleanup(self.repair)

    def repair(self):
        """What an operator does: the right binary, and the units started again."""
        self.host.peerix.put_binary(self.host.build.binary)
        self.host.peerix.reset()

    def test_a_broken_binary_ends_in_a_refused_connection_within_ten_seconds(self):
        """An accepted connection that is never answered would hang Nix for minutes; a closed port is harmless."""
        self.break_binary()
        begin = time.monotonic()
        wait_until(self.refused, 10, "connections are refused", every=0.2)
        took = time.monotonic() - begin
        wait_until(lambda: self.host.peerix.show("ActiveState", "peerix.socket") == "failed", 2, "the socket unit is failed")
        self.repair()
        self.assert_holds(self.host, self.path)
        self.note = f"refused after {took:.1f} s"

    def test_a_broken_binary_that_a_packet_starts_ends_likewise(self):
        """The same when only UDP asks."""
        self.break_binary()
        self.asker.udp().sendto(wire.question([self.path.hash])[1], (self.host.address, 12304))
        wait_until(lambda: self.host.peerix.show("ActiveState", "peerix.socket") == "failed", 10,
                   "the socket unit is failed", every=0.2)
        self.assertTrue(self.refused())

    def test_ten_wake_ups_a_second_for_a_minute_never_fail_the_socket(self):
        """A packet every 100 ms, to a daemon that ends as soon as it can: each is answered."""
        self.host.peerix.reset('[idle]\ntimeout = "10ms"\n')
        starts = self.host.peerix.starts()
        begin = time.monotonic()
        with self.asker.udp() as sock:
            for number in range(600):
                due = begin + number / 10
                wait_until(lambda: time.monotonic() >= due, 1, "the next tenth of a second", every=0.002)
                self.assertIsNotNone(
                    wire.ask(self.asker, self.host.address, self.path.hash, bound=3, sock=sock),
                    f"packet {number} was lost")
        took = time.monotonic() - begin
        starts = self.host.peerix.starts() - starts
        self.assert_no_lost_socket(self.host)
        # Fewer would not have tried the limits.
        self.assertGreater(starts, 200)
        self.note = f"{starts} starts in {took:.0f} s"

    def test_systemd_finds_nothing_to_say_about_the_units(self):
        """`systemd-analyze verify` is silent."""
        done = self.host.run("systemd-analyze verify --man=no peerix.socket peerix.service")
        self.assertEqual((done.stdout + done.stderr).strip(), "")

    def test_the_service_exposes_little(self):
        """`systemd-analyze security` says at most 1.2."""
        text = self.host.run("systemd-analyze security --no-pager peerix.service", check=False).stdout
        exposure = float(re.search(r"Overall exposure level for peerix\.service: ([\d.]+)", text)[1])
        self.assertLessEqual(exposure, MOST_EXPOSURE, text)
        self.note = f"exposure {exposure}"

    def test_it_runs_as_nobody_in_particular_without_capabilities(self):
        """What the kernel says of the process: no root, no capability, no new privileges, a filter."""
        self.assert_holds(self.host, self.path)
        wait_until(lambda: len(self.host.peerix.processes()) == 1, 2, "it is one process")
        process, = self.host.peerix.processes()
        with open(f"/proc/{process}/status") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        self.assertNotIn("0", status["Uid"].split())
        for capabilities in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            self.assertEqual(int(status[capabilities], 16), 0, capabilities)
        self.assertEqual((status["NoNewPrivs"], status["Seccomp"]), ("1", "2"))
