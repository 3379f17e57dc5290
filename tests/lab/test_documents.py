"""Every command of the documents, typed as it stands there by somebody who begins with nothing.

README.md is followed from top to bottom on one machine, docs/install.md with a machine for each of its
sections; the other documents on a machine that has what README.md led to.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from harness.case import LabCase, full
from harness.documents import blocks, sections
from harness.host import Spec
from harness.peerix import CHECKOUT, CONFIG, GATEWAY

READER = "reader"
SOURCE = f"/home/{READER}/peerix"

# What this run is part of.
LEFT_OUT = {"tests/run"}

# Documents that begin where README.md ends.
LATER = ("docs/configuration.md", "docs/migrating.md", "docs/troubleshooting.md")


def newcomer(name):
    """A machine without peerix, whose Nix has no substituter until the reader gives it one."""
    return Spec(name, peerix=False, nix_conf="substituters =\n")


class Documents(LabCase):
    """`neighbour` has the closure; each other machine is a reader's."""

    @classmethod
    def specs(cls):
        cls.names = ["readme", *[f"install{number}" for number in range(len(sections("docs/install.md")))]]
        return [full("neighbour"), *map(newcomer, cls.names)]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for name in cls.names:
            settle(cls.lab.host(name))

    def test_readme(self):
        """From the first look to the last command; then what the other documents say."""
        reader = Reader(self, self.lab.host("readme"))
        for block in blocks("README.md"):
            reader.follow(block)
        self.assertTrue(reader.has_pulled, "README.md does not lead to a machine that pulls from its neighbour")
        for name in LATER:
            for block in blocks(name):
                reader.follow(block)
        self.note = f"{reader.typed} commands"

    def test_install(self):
        """Each section for itself."""
        typed = 0
        for number, (section, found) in enumerate(sections("docs/install.md").items()):
            with self.subTest(section):
                reader = Reader(self, self.lab.host(f"install{number}"))
                for block in found:
                    reader.follow(block)
                if any("nix.conf" in command for block in found for command in block.commands):
                    self.assertTrue(reader.has_pulled, f"{section}: nothing was pulled")
                typed += reader.typed
        self.note = f"{typed} commands"


class Reader:
    """Somebody at a machine, in the directory of the source, who may use sudo."""

    def __init__(self, case, host):
        self._case, self._host = case, host
        self.typed, self.has_pulled = 0, False

    def follow(self, block):
        """Type the commands of a block; each has to end well."""
        for command in block.commands:
            if command in LEFT_OUT:
                continue
            done = self._build(command) if command.startswith("cargo ") else self._type(command)
            # Of a daemon that sleeps systemctl says with 3 that it is not active.
            fine = (0, 3) if command.startswith("systemctl status ") else (0,)
            self._case.assertIn(done.returncode, fine,
                                f"{block.place}: {command}\n{done.stdout[-1500:]}{done.stderr[-1500:]}")
            self.typed += 1
        self._pull_once()

    def _type(self, command):
        return self._host.run(["runuser", "-u", READER, "--", "env", f"HOME=/home/{READER}", "bash", "-c",
                               f"cd {SOURCE} && {command}"], check=False, bound=120)

    def _build(self, command):
        """The hosts have no compiler: cargo runs on this machine, in the source that they have a copy of."""
        target = CHECKOUT / "target"
        done = subprocess.run(command.split(), cwd=CHECKOUT, capture_output=True, text=True, timeout=1500, check=False,
                              env={**os.environ, "CARGO_NET_OFFLINE": "true", "PATH": f"{cargo_deb()}:{os.environ['PATH']}"})
        there = self._host.path(f"{SOURCE}/target")
        for made in (target / "release/peerix", *target.glob("debian/*.deb")):
            if made.exists():
                copy = there / made.relative_to(target)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(made, copy)
        self._host.run(["chown", "-R", f"{READER}:{READER}", f"{SOURCE}/target"])
        return done

    def _pull_once(self):
        """As soon as the document has brought the reader so far: what a neighbour has comes from there."""
        case, path = self._case, self._case.closure.chain[3]
        told = f"extra-substituters = {GATEWAY}" in self._host.path("/etc/nix/nix.conf").read_text()
        if told and self._host.peerix.socket_listens() and not self.has_pulled:
            case.pull(self._host, path)
            case.assert_valid(self._host, [path])
            # The machine is a neighbour now: it gives what it has, of private caches when its owner says so.
            neighbour = case.lab.host("neighbour")
            nar = f"/local/nar/{path.nar}"
            case.assertEqual(case.status_of(neighbour, nar, address=self._host.address), 404)
            settings = self._host.path(CONFIG)
            written = settings.read_text() if settings.exists() else ""
            # `configure` adds the key of the lab, which is such a cache here.
            self._host.peerix.configure(re.sub(r"(?m)^keys = .*\n", "", written))
            self._host.peerix.put_to_sleep()
            case.assertEqual(case.status_of(neighbour, nar, address=self._host.address), 200)
            self.has_pulled = True


def cargo_deb():
    """The directory of the cargo-deb that tests/run has installed."""
    tools = Path(os.environ.get("PEERIX_TOOLS_CACHE", "/var/cache/peerix-tools"))
    found = sorted(tools.glob("cargo-deb-*/bin"))
    if not found:
        raise AssertionError(f"no cargo-deb in {tools}: tests/lab/debian-package --prepare installs it")
    return found[-1]


def settle(host):
    """A user with a copy of the source, who may use sudo and read the journal."""
    host.run(["useradd", "--create-home", "--shell", "/bin/bash", "--groups", "systemd-journal", READER])
    host.write("/etc/sudoers.d/reader", f"{READER} ALL=(ALL) NOPASSWD: ALL\n", mode=0o440)
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (CHECKOUT / name).is_file():
            copy = host.path(f"{SOURCE}/{name}")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, copy)
    host.run(["chown", "-R", f"{READER}:{READER}", SOURCE])
