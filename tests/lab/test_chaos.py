"""The tool `chaos`: its schedule is the seed's, and it refuses what it does not know. Needs no hosts."""

import subprocess
import sys
import unittest
from pathlib import Path

from harness import faults

TOOL = Path(__file__).resolve().parent / "chaos"


class Schedule(unittest.TestCase):
    def test_the_same_seed_gives_the_same_schedule(self):
        self.assertEqual(faults.schedule(5, 7, faults.FAULTS), faults.schedule(5, 7, faults.FAULTS))

    def test_another_seed_gives_another(self):
        self.assertNotEqual(faults.schedule(5, 7, faults.FAULTS), faults.schedule(5, 8, faults.FAULTS))

    def test_a_strike_does_not_depend_on_the_other_faults(self):
        alone = faults.schedule(5, 7, ["reset"])
        among = [strike for strike in faults.schedule(5, 7, faults.FAULTS) if strike.fault == "reset"]
        self.assertEqual(alone, among)

    def test_each_fault_strikes_as_often_and_in_mid_nar(self):
        strikes = faults.schedule(5, 7, faults.FAULTS)
        for fault in faults.FAULTS:
            self.assertEqual([s.run for s in strikes if s.fault == fault], [1, 2, 3, 4, 5])
        self.assertTrue(all(0.1 <= s.part <= 0.8 and len(set(s.order)) == 2 for s in strikes))


class Arguments(unittest.TestCase):
    def refused(self, *arguments):
        done = subprocess.run([sys.executable, "-B", TOOL, *arguments], capture_output=True, text=True, timeout=20)
        self.assertEqual(done.returncode, 2, done.stderr)
        return done.stderr

    def test_an_unknown_fault_is_named(self):
        self.assertIn("no such fault: earthquake", self.refused("reset", "earthquake"))

    def test_no_runs_are_refused(self):
        self.assertIn("--runs", self.refused("--runs", "0"))
