"""Promise 4: a miss costs nearly nothing, whoever is on the LAN; and what is there is found."""

import random
import subprocess
from pathlib import Path

from harness.case import LabCase, empty, full, half, http, wait_until

ALPHABET = "0123456789abcdfghijklmnpqrsvwxyz"
OLD = Path(__file__).with_name("old_peerix.py")

# What the first lookups of a burst wait for sleeping neighbours, and lookups for an old peer.
WAKE_SECONDS, OLD_SECONDS = 0.35, 0.05


def nobody_has(count):
    """Hashes of paths that do not exist."""
    return ["".join(random.choices(ALPHABET, k=32)) for _ in range(count)]


def summed_up(times):
    """Median, 99th percentile and maximum in milliseconds, and the three for a person."""
    ordered = sorted(seconds * 1000 for seconds in times)
    median, late, worst = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100], ordered[-1]
    return median, late, worst, f"median {median:.2f} ms, p99 {late:.2f} ms, worst {worst:.2f} ms"


class Discovery(LabCase):
    """`holder` and `half` have the closure and half of it, `asker` has nothing, `old` speaks the old protocol."""

    @classmethod
    def specs(cls):
        return [full("holder"), half("half"), empty("asker"), full("old", peerix=False)]

    def setUp(self):
        super().setUp()
        self.holder, self.half, self.asker, self.old = self.lab.hosts
        # A link-local address that comes in the middle is a new network: it has sleepers to be waited for.
        wait_until(self.is_settled, 10, "the asker's addresses are no longer tentative")

    def is_settled(self):
        """Whether the asker has its link-local address for good."""
        addresses = self.asker.shows("address show lan0")[0]["addr_info"]
        return any(one["scope"] == "link" and not one.get("tentative") for one in addresses)

    def misses(self, count):
        """Seconds of so many misses, one after the other."""
        with http.Connection(self.asker) as connection:
            answers = [connection.ask(f"/{hash}.narinfo") for hash in nobody_has(count)]
        self.assertEqual({status for status, _ in answers}, {404})
        return [seconds for _, seconds in answers]

    def quietest(self, measure, most_median, most_late, rounds=None):
        """Of up to ten measurements the one that was disturbed least: the client and all hosts share two cores.

        What disturbs only adds time, so the first one within the limits is enough.
        """
        rounds = [] if rounds is None else rounds
        while len(rounds) < 10:
            rounds.append(summed_up(measure()))
            median, late, _, _ = rounds[-1]
            if len(rounds) >= 3 and median <= most_median and late <= most_late:
                break
        return min(rounds, key=lambda one: max(one[0] / most_median, one[1] / most_late))

    def run_old(self):
        """Start the old peer for the rest of the test."""
        self.old.write("/root/old_peerix.py", OLD.read_bytes())
        process = self.old.spawn(["python3", "/root/old_peerix.py"], stdout=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL, text=True)
        self.addCleanup(process.wait)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.kill)
        self.assertEqual(process.stdout.readline(), "ready\n")

    def silence(self, *hosts):
        """Let these hosts hear nothing for the rest of the test."""
        for host in hosts:
            host.run("systemctl stop peerix.socket peerix.service")
            self.addCleanup(host.run, "systemctl start peerix.socket")

    def test_a_thousand_misses_of_three_hosts(self):
        """After the first hundred: half of them within half a millisecond, all but ten within two."""
        self.misses(100)
        median, late, _, self.note = self.quietest(lambda: self.misses(1000), 0.5, 2.0)
        self.assertLessEqual(median, 0.5, self.note)
        self.assertLessEqual(late, 2.0, self.note)

    def test_a_thousand_misses_alone(self):
        """Nobody is there: past the wake-up no miss waits for anybody."""
        self.silence(self.holder, self.half)
        with http.Connection(self.asker) as connection:
            _, first = connection.ask(f"/{nobody_has(1)[0]}.narinfo")
        self.assertLess(first, WAKE_SECONDS + 0.5)
        rounds = []
        _, late, worst, self.note = self.quietest(lambda: self.misses(1000), 1.0, 1.0, rounds)
        self.assertLessEqual(late, 1.0, self.note)
        self.assertLess(worst, 10.0, self.note)
        # A miss may meet a machine that is busy with something else; a wait for somebody it is not.
        self.assertLess(max(worst for _, _, worst, _ in rounds), OLD_SECONDS * 1000, self.note)

    def test_a_hit_takes_one_question_to_a_neighbour(self):
        """A thousand hits: half of them within a millisecond."""
        paths = (self.closure.paths * 5)[:1000]
        with http.Connection(self.asker) as connection:
            def hits():
                answers = [connection.ask(f"/{path.hash}.narinfo") for path in paths]
                self.assertEqual({status for status, _ in answers}, {200})
                return [seconds for _, seconds in answers]
            median, _, _, self.note = self.quietest(hits, 1.0, 10.0)
        self.assertLessEqual(median, 1.0, self.note)

    def test_all_of_an_old_peer_is_found_and_its_time_is_paid(self):
        """Beside new peers that have less: each path that only the old one has, and the window for what nobody has."""
        self.silence(self.holder)
        self.run_old()
        only_old = [path for path in self.closure.paths
                    if not self.half.path(path.path).exists()][:60]
        self.assertEqual(len(only_old), 60)
        with http.Connection(self.asker) as connection:
            found = [connection.ask(f"/{path.hash}.narinfo")[0] for path in only_old]
        self.assertEqual(found, [200] * 60)
        median, late, _, self.note = summed_up(self.misses(40))
        self.assertGreaterEqual(median, OLD_SECONDS * 1000, self.note)
        self.assertLess(late, OLD_SECONDS * 1000 + 25, self.note)
        # Of what a new peer has, its time is not paid.
        with http.Connection(self.asker) as connection:
            hits = [connection.ask(f"/{path.hash}.narinfo") for path in self.closure.half[:60]]
        self.assertEqual({status for status, _ in hits}, {200})
        median, _, _, note = summed_up([seconds for _, seconds in hits])
        self.assertLess(median, OLD_SECONDS * 1000 / 2, note)
        self.note = f"a miss {self.note}; a hit of a new peer {note}"

    def test_the_first_lookup_finds_what_a_sleeping_neighbour_has(self):
        """A hundred times: both asleep, one question, found."""
        paths = random.choices(self.closure.paths, k=100)
        missed = []
        for path in paths:
            for host in (self.holder, self.half, self.asker):
                host.peerix.put_to_sleep()
            answer = http.get(self.asker, f"/{path.hash}.narinfo")
            if answer.status != 200:
                missed.append(path.name)
        self.assertEqual(missed, [])

    def test_what_one_host_asks_wakes_the_others_once(self):
        """A burst of misses, with pauses between them, starts each neighbour no more than once."""
        for host in self.lab.hosts[:3]:
            host.peerix.reset('[idle]\ntimeout = "2s"\n')
        self.misses(100)
        before = [host.peerix.starts() for host in (self.holder, self.half)]
        with self.lab.capture() as seen:
            self.misses(500)
        asked = [datagram for datagram in seen if datagram.host is self.asker]
        self.note = f"{len(seen)} datagrams for 500 misses, {len(asked)} of them questions"
        # To each neighbour an ask, from each an answer, and an old peer's request to all.
        self.assertLessEqual(len(seen), 500 * 5 + 100, self.note)
        self.assertEqual([host.peerix.starts() for host in (self.holder, self.half)], before)
