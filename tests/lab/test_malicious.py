"""Promise 2 with real Nix: a build succeeds, with the right bytes, whatever a hostile holder does."""

import json
import shutil
import threading
import time
from dataclasses import dataclass

from harness import hostile
from harness.case import LabCase, empty, http, wait_until
from harness.closure import StorePath
from harness.peerix import GATEWAY

SMALL, MIDDLE, LARGE = 100_000, 6 << 20, 24 << 20

# NARs up to 8 MiB are verified before their first byte goes out; wrong bytes of a larger one show
# at its end, and then Nix needs another substituter.
VERIFIED_FIRST = 8 << 20

# What each hostile machine does, and how large the path is that it has. Each has one of its own.
BEHAVIOURS = {
    "corrupt_small": (hostile.corrupt, SMALL),
    "corrupt_6_mib": (hostile.corrupt, MIDDLE),
    "corrupt_24_mib": (hostile.corrupt, LARGE),
    "short": (hostile.short, MIDDLE),
    "cut": (hostile.cut, MIDDLE),
    "endless": (hostile.endless, MIDDLE),
    "silent_after_the_headers": (hostile.silent, MIDDLE),
    "silent_before_the_headers": (hostile.mute, MIDDLE),
    "one_byte_a_second": (hostile.trickle, SMALL),
    "reset": (hostile.reset, MIDDLE),
    "404": (hostile.not_found, MIDDLE),
    "503": (hostile.busy, MIDDLE),
    "redirect": (hostile.redirect, MIDDLE),
    "compressed": (hostile.compressed, MIDDLE),
    "endless_headers": (hostile.headers, MIDDLE),
}

EXPRESSION = """
{ name, size }: derivation {
  name = "lab-hostile-${name}";
  system = builtins.currentSystem;
  builder = "/bin/sh";
  args = [ "-euc" "mkdir $out; head -c ${toString size} /dev/urandom > $out/data" ];
  PATH = "/usr/bin:/bin";
}
"""

CACHE = "/root/other-cache"

# Nobody may keep one build from its next substituter for longer, in seconds: the 20 that a silent
# holder has if there is no other one, and what the rest takes when all of them run at once.
ALONE, BESIDE = 26, 16

# A pull that is not over by then is ended.
LONGEST = 40


@dataclass
class Pull:
    """How a `nix-store -r` went: its exit code, its last words, its seconds."""
    code: int
    said: str
    seconds: float


class Malicious(LabCase):
    """`honest` has all paths, `asker` none; `crowd` is one hostile machine for each behaviour.

    All pulls of a kind run at once, when the class is set up; the tests look at how each went.
    """

    @classmethod
    def specs(cls):
        return [empty("honest"), empty("asker"), empty("crowd", peerix=False)]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.honest, cls.asker, cls.crowd = cls.lab.hosts
        cls.trapped = []
        cls.paths = cls._build()
        cls.machines = {name: cls._machine(number, name) for number, name in enumerate(BEHAVIOURS)}
        for path in cls.paths.values():
            cls.honest.run(["nix", "copy", "--to", f"file://{CACHE}?compression=none", path.path])
        shutil.copytree(cls.honest.path(CACHE), cls.asker.path(CACHE))
        local = f"http://{cls.honest.address}:12304/local"
        with hostile.Hostile(cls.crowd, list(cls.machines.values())):
            cls._meet_the_crowd()
            cls.honest.run("systemctl start peerix.socket")
            # Who comes in the middle of a burst is known when it asks something itself.
            http.get(cls.honest, f"/{0:032d}.narinfo")
            wait_until(cls._knows_the_honest_one, 10, "the asker knows the honest holder")
            cls.beside, cls.asked_beside = cls._pull_all(
                lambda path: f"{GATEWAY} {local}" if path.nar_size > VERIFIED_FIRST else GATEWAY)
            cls.status_beside = json.loads(http.get(cls.asker, "/status").body)
            cls.verified_beside = cls._verify_all()
            cls.forget(cls, cls.asker, cls.paths.values())
            cls._meet_the_crowd()
            cls.alone, cls.asked_alone = cls._pull_all(lambda path: f"{GATEWAY} file://{CACHE}?priority=50")
            cls.verified_alone = cls._verify_all()

    @classmethod
    def _meet_the_crowd(cls):
        """Nix and its gateway hear of all paths while only the hostile machines are there, so that they are asked first."""
        cls.honest.run("systemctl stop peerix.socket peerix.service")
        cls.asker.peerix.reset()
        cls.asker.run(["nix-store", "-r", "--dry-run", *[path.path for path in cls.paths.values()]])
        for machine in cls.machines.values():
            machine.asked.clear()

    @classmethod
    def _knows_the_honest_one(cls):
        peers = json.loads(http.get(cls.asker, "/status").body)["peers"]
        return any(peer["live"] for peer in peers if peer["address"].startswith(f"{cls.honest.address}:"))

    def setUp(self):
        """Everything has happened; the hosts stay as they are."""

    @classmethod
    def _build(cls):
        """One path for each behaviour, built and signed on `honest`."""
        cls.honest.write("/root/key.sec", cls.closure.secret_key)
        conf = cls.honest.path("/etc/nix/nix.conf")
        conf.write_text(conf.read_text() + "secret-key-files = /root/key.sec\n")
        cls.honest.write("/root/hostile.nix", EXPRESSION)
        paths = {}
        for name, (_, size) in BEHAVIOURS.items():
            path = cls.honest.run(["nix-build", "hostile.nix", "--no-out-link", "--argstr", "name", name,
                                   "--arg", "size", str(size)]).stdout.strip()
            nar_hash, nar_size = cls.honest.run(
                ["sh", "-c", 'nix-store -q --hash "$0"; nix-store -q --size "$0"', path]).stdout.split()
            paths[name] = StorePath(path, nar_hash.removeprefix("sha256:"), int(nar_size), ())
        return paths

    @classmethod
    def _machine(cls, number, name):
        path = cls.paths[name]
        narinfo = http.get(cls.asker, f"/local/{path.hash}.narinfo", cls.honest.address).body
        nar = http.get(cls.asker, f"/nar/{path.nar}", cls.honest.address).body
        item = hostile.Item(path, narinfo, nar, BEHAVIOURS[name][0])
        return hostile.Machine(hostile.address(number), [item])

    @classmethod
    def _pull_all(cls, substituters):
        """Pull each path by a Nix of its own, all at once: how each went, and whom they asked for NARs."""
        pulls = {}

        def pull(name, path):
            began = time.monotonic()
            done = cls.asker.run(["timeout", str(LONGEST), "nix-store", "-r", path.path,
                                  "--option", "substituters", substituters(path)], check=False)
            pulls[name] = Pull(done.returncode, done.stderr[-2000:], time.monotonic() - began)
        threads = [threading.Thread(target=pull, args=item) for item in cls.paths.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        cls.trapped += [a for machine in cls.machines.values() for a in machine.asked if a == hostile.TRAP]
        asked = {name for name, machine in cls.machines.items() if any(a.endswith(".nar") for a in machine.asked)}
        return pulls, asked

    @classmethod
    def _verify_all(cls):
        """The paths whose contents are what their hashes say."""
        return {name for name, path in cls.paths.items()
                if cls.asker.run(["nix-store", "--verify-path", path.path], check=False).returncode == 0}

    def test_who_sent_wrong_bytes_is_banned_and_nobody_else(self):
        """By address, in /status. Of the large NAR no wrong bytes need have been taken at all."""
        liars = {name: self.machines[name].address for name in BEHAVIOURS if name.startswith("corrupt")}
        banned = {ban["peer"].removesuffix(":12304") for ban in self.status_beside["banned"]}
        self.assertLessEqual({liars["corrupt_small"], liars["corrupt_6_mib"]}, banned)
        self.assertLessEqual(banned, set(liars.values()))
        self.assertGreaterEqual(self.status_beside["fetched"]["corrupt"], len(banned))

    def test_no_redirect_was_followed(self):
        """Neither of a NAR beside the honest holder nor of one alone."""
        self.assertIn("redirect", self.asked_beside & self.asked_alone)
        self.assertEqual(self.trapped, [])

    def check(self, name, pulls, asked, verified, bound):
        """One pull."""
        pull = pulls[name]
        self.note = f"{pull.seconds:.1f} s"
        self.assertEqual(pull.code, 0, pull.said)
        self.assertIn(name, verified, "its contents are not what its hash says")
        self.assertIn(name, asked, "the hostile machine was not asked, so nothing was tested")
        self.assertLess(pull.seconds, bound)


def _add_tests():
    """Two tests for each behaviour."""
    for name in BEHAVIOURS:
        def beside(self, name=name):
            self.check(name, self.beside, self.asked_beside, self.verified_beside, BESIDE)

        def alone(self, name=name):
            self.check(name, self.alone, self.asked_alone, self.verified_alone, ALONE)
        for test, where in ((beside, "beside_an_honest_holder"), (alone, "alone_nix_goes_to_its_next_substituter")):
            test.__name__ = f"test_{name}_{where}"
            setattr(Malicious, test.__name__, test)


_add_tests()
