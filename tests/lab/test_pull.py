"""The purpose of it all: a store path comes from a neighbour, and one can see where from."""

import time

from harness.case import LabCase, empty, full, half, wait_until


class Pull(LabCase):
    """`first` made the closure, `second` has half of it, `third` has nothing and no other substituter."""

    @classmethod
    def specs(cls):
        return [full("first"), half("second"), empty("third")]

    def setUp(self):
        super().setUp()
        self.first, self.second, self.third = self.lab.hosts
        self.forget(self.third, self.closure.paths)

    def test_a_closure_comes_from_two_holders_that_only_their_sockets_started(self):
        """205 paths, byte for byte; nobody has started a service, and nobody is left running badly."""
        for host in self.lab.hosts:
            self.assertFalse(host.peerix.awake(), f"{host.name} runs before anyone asked")
        before = [host.peerix.starts() for host in self.lab.hosts]
        self.pull(self.third, self.closure.top)
        self.assert_valid(self.third, self.closure.paths)
        for host, starts in zip(self.lab.hosts, before):
            self.assertEqual(host.peerix.starts(), starts + 1, f"{host.name}: one start is enough")
            self.assertEqual(host.peerix.show("TriggeredBy"), "peerix.socket")
        for holder in (self.first, self.second):
            self.assertTrue(self.transfers(holder, self.third), f"{holder.name} served nothing")
        served = {host.name: len(self.transfers(host, self.third)) for host in (self.first, self.second)}
        self.note = ", ".join(f"{count} from {name}" for name, count in served.items())

    def test_the_journal_finds_both_ends_of_a_transfer(self):
        """`journalctl PEERIX_HASH=...` on the holder and on the asker, with the peer, bytes and time."""
        path = self.closure.blobs[3]
        self.pull(self.third, path)
        for host, peer in ((self.first, self.third), (self.third, self.first)):
            found = [e for e in host.journal(f"PEERIX_HASH={path.hash}") if "PEERIX_BYTES" in e]
            self.assertTrue(found, f"{host.name}: no entry for {path.hash}")
            entry = found[-1]
            self.assertEqual(int(entry["PEERIX_BYTES"]), path.nar_size)
            self.assertIn(entry["PEERIX_PEER"], peer.addresses())
            self.assertEqual(entry["PEERIX_STORE_PATH"], path.path)
            self.assertGreater(int(entry["PEERIX_DURATION_US"]), 0)

    def test_a_holder_that_freezes_in_mid_stream_costs_a_moment(self):
        """Both have the path; the machine that serves it hangs; the other goes on at the very byte."""
        path = self.closure.blobs[0]
        holders = (self.first, self.second)
        for holder in holders:
            self.lab.slow_down(holder, "200mbit")
            self.addCleanup(self.lab.slow_down, holder, None)
        before = {holder: self.lab.bytes_from(holder) for holder in holders}
        pull = self.third.spawn(f"exec nix-store -r {path.path} > /root/pull.log 2>&1")
        self.addCleanup(pull.wait)
        self.addCleanup(pull.kill)
        busy = wait_until(lambda: next((h for h in holders if self.lab.bytes_from(h) > before[h] + (8 << 20)), None),
                          20, "one of them serves the path")
        busy.freeze()
        self.addCleanup(busy.freeze, False)
        frozen = time.monotonic()
        # What is left takes 2.5 s at this rate; noticing the stall takes 1 to 2 s more.
        self.assertEqual(pull.wait(10), 0)
        self.note = f"whole {time.monotonic() - frozen:.1f} s after the freeze"
        self.assert_valid(self.third, [path])

    def transfers(self, host, peer):
        """The journal's entries on `host` of NARs from or to `peer`."""
        return [entry for entry in host.journal("_SYSTEMD_UNIT=peerix.service")
                if "PEERIX_BYTES" in entry and peer.address in entry.get("PEERIX_PEER", "")]
