"""Promise 4: what a neighbour has is found at the first question, however new it is."""

import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from harness.case import LabCase, empty, http
from harness.paths import KEY, Maker, hash_of

CACHE = "/root/cache"

# Builds what it reads, one a line, and says its path: the next one is not begun before it is asked for.
BUILDER = f"""
while read -r how what; do
    case $how in
    signed) nix-store -r "$what" --option substituters '' --option secret-key-files {KEY} ;;
    unsigned) nix-store -r "$what" --option substituters '' ;;
    sign) nix store sign --key-file {KEY} "$what" && echo signed ;;
    copy) nix copy --no-check-sigs --from file://{CACHE} "$what" && echo copied ;;
    esac || echo failed
done 2>/root/builder.log
"""


class FirstQuestion(LabCase):
    """`holder`, `second` and `third` make paths while `asker` asks for them."""

    @classmethod
    def specs(cls):
        return [empty("holder"), empty("second"), empty("third"), empty("asker")]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        *cls.holders, cls.asker = cls.lab.hosts
        cls.makers = [Maker(host, cls.closure) for host in cls.holders]
        cls.old_paths = cls.makers[0].build(cls.makers[0].derivations("old", 50))

    def setUp(self):
        super().setUp()
        self.builders = []

    def only(self, *holders):
        """Let the other holders hear nothing for the rest of the test."""
        for host in self.holders:
            if host not in holders:
                host.run("systemctl stop peerix.socket peerix.service")
                self.addCleanup(host.run, "systemctl start peerix.socket")

    def builder(self, host):
        """A shell on `host` that builds, signs and copies at once; returns a function that has it done."""
        shell = host.spawn(["sh", "-c", BUILDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(shell.stdout.close)
        self.addCleanup(shell.wait)
        self.addCleanup(shell.stdin.close)

        def do(how, what):
            """What it says when that is done: the path that was built, or `signed`, or `copied`."""
            shell.stdin.write(f"{how} {what}\n")
            shell.stdin.flush()
            said = shell.stdout.readline().strip()
            self.assertNotIn(said, ("", "failed"), host.path("/root/builder.log").read_text()[-2000:])
            return said
        return do

    def is_found(self, path):
        return self.status_of(self.asker, f"/{hash_of(path)}.narinfo") == 200

    def ask_much(self):
        """What a build does before it comes to the path in question: hits and misses, three hundred in all."""
        for round in range(2):
            for path in self.old_paths:
                self.assertTrue(self.is_found(path), path)
            for number in range(100):
                self.status_of(self.asker, f"/{round * 100 + number:032d}.narinfo")

    def check(self, missed, asked):
        """All were found."""
        self.note = f"{asked - len(missed)} of {asked}"
        self.assertEqual(missed, [])

    def make(self, thing, do):
        """A path that is there and signed since this moment, in one of the three ways."""
        number, derivation = thing
        if number % 5 == 4:
            do("copy", derivation)
            return derivation
        if number % 5 in (1, 3) or number % 10 == 5:
            path = do("unsigned", derivation)
            do("sign", path)
            return path
        return do("signed", derivation)

    def things(self, prefix, count, maker):
        """What `make` takes: derivations, and paths that wait in a cache."""
        derivations = maker.derivations(prefix, count)
        copied = maker.build(derivations[4::5])
        maker.host.run(["nix", "copy", "--to", f"file://{CACHE}?compression=none", *copied], bound=120)
        maker.host.run(["nix-store", "--delete", "--ignore-liveness", *copied], bound=60)
        derivations[4::5] = copied
        return list(enumerate(derivations))

    def test_ten_paths_built_and_asked_for_at_once(self):
        """The first row: each is signed as it is built, and asked for in the same moment."""
        self.only(self.holders[0])
        do = self.builder(self.holders[0])
        self.ask_much()
        missed = []
        for derivation in self.makers[0].derivations("row", 10):
            path = do("signed", derivation)
            if not self.is_found(path):
                missed.append(path)
        self.check(missed, 10)

    def test_a_path_signed_after_it_was_registered_is_found_at_once(self):
        """Not found before, and found by the very next question."""
        self.only(self.holders[0])
        do = self.builder(self.holders[0])
        self.ask_much()
        missed = []
        for derivation in self.makers[0].derivations("late", 10):
            path = do("unsigned", derivation)
            self.assertFalse(self.is_found(path), "nothing unsigned is shared")
            do("sign", path)
            if not self.is_found(path):
                missed.append(path)
        self.check(missed, 10)

    def test_200_new_paths_by_an_asker_awake_asleep_and_just_restarted(self):
        """Two fifths are signed as they are built, two fifths afterwards, a fifth comes in by `nix copy`."""
        self.only(self.holders[0])
        things = self.things("new", 200, self.makers[0])
        do = self.builder(self.holders[0])
        self.ask_much()
        drawn, missed, slowest = random.Random(1), {}, 0.0
        for number, thing in enumerate(things):
            state = drawn.choices(("awake", "asleep", "restarted"), (7, 1.5, 1.5))[0]
            if state == "asleep":
                self.asker.peerix.put_to_sleep()
            elif state == "restarted":
                self.asker.run("systemctl restart peerix.service")
            path = self.make(thing, do)
            began = time.monotonic()
            if not self.is_found(path):
                missed[path] = (number, state)
            slowest = max(slowest, time.monotonic() - began)
        self.note = f"{200 - len(missed)} of 200, the slowest {slowest * 1000:.0f} ms"
        self.assertEqual(missed, {})

    def test_200_new_paths_of_three_holders_of_which_two_sleep(self):
        """As above, four paths a round, asked for together: of the one that is awake and of those that sleep.

        The asker begins each round asleep too, as a machine does that has not asked for a while.
        """
        rounds = 50
        things = [self.things(f"many{number}", 2 * rounds, maker) for number, maker in enumerate(self.makers)]
        do = [self.builder(host) for host in self.holders]
        drawn, missed = random.Random(2), {}
        with ThreadPoolExecutor(4) as threads:
            for number in range(rounds):
                awake = drawn.randrange(3)
                sleepers = [host for place, host in enumerate(self.holders) if place != awake]
                list(threads.map(lambda host: host.peerix.put_to_sleep(), [*sleepers, self.asker]))
                http.get(self.holders[awake], "/healthz")
                having = drawn.sample((0, 0, 1, 1, 2, 2), 4)
                paths = [self.make(things[place].pop(0), do[place]) for place in having]
                for place, path, found in zip(having, paths, threads.map(self.is_found, paths)):
                    if not found:
                        missed[path] = (number, f"held by {place}, awake is {awake}")
        self.note = f"{4 * rounds - len(missed)} of {4 * rounds}"
        self.assertEqual(missed, {})
