"""One lab host: a container with its own systemd, store, address and network namespace."""

import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import base, sandbox
from .peerix import Peerix
from .waiting import wait_until

SYSTEM = "payload/system.slice"

# What a command in a host sees, whatever environment the tests were started from.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root", "LANG": "C.UTF-8", "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0",
}


@dataclass(frozen=True)
class Spec:
    """What a host is to be.

    name: its host name, unique in its lab
    stores: directories whose `nix` becomes the store it boots with, see `closure`; none: an empty one
    nix_conf: lines added to its nix.conf (later lines win)
    connected: whether it has its interface into the LAN from the start
    peerix: whether the daemon's socket is enabled at boot
    far: whether it is on the second network, behind a router that passes no broadcasts
    """
    name: str
    stores: tuple = ()
    nix_conf: str = ""
    connected: bool = True
    peerix: bool = True
    far: bool = False


class Host:
    """A booted host. Made by `Lab`, which also knows its address."""

    def __init__(self, spec, address, build):
        self.spec = spec
        self.name = spec.name
        self.address = address
        self.build = build
        self.peerix = Peerix(self)
        self._directory = Path("/run/lab") / self.name
        self.root = self._directory / "root"
        self.log = self._directory / "console.log"
        self._groups = []
        self.namespace = None
        self._process = None
        self.pid = None

    # Its life

    def prepare(self):
        """Lay its root directory and its network namespace, before the boot."""
        self._directory.mkdir()
        sandbox.mount("tmpfs", self._directory, "tmpfs", "size=75%,mode=755")
        for part in ("upper", "work", "root"):
            (self._directory / part).mkdir()
        lower = ":".join([*map(str, self.spec.stores), str(base.base())])
        sandbox.mount("overlay", self.root, "overlay",
                      f"lowerdir={lower},upperdir={self._directory}/upper,workdir={self._directory}/work")
        self.write("/etc/hostname", f"{self.name}\n")
        self.write("/etc/machine-id", "")
        # Names are answered here or not at all: a question to a server that is not there takes seconds.
        self.write("/etc/hosts", f"127.0.0.1 localhost {self.name}\n::1 localhost\n")
        self.write("/etc/resolv.conf", "")
        self.write("/etc/nix/nix.conf", self.build.nix_conf() + self.spec.nix_conf)
        # Tests wake the daemon thousands of times: journald must not drop what they look for.
        self.write("/etc/systemd/journald.conf.d/lab.conf",
                   "[Journal]\nRateLimitIntervalSec=0\nStorage=volatile\n")
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self.namespace = os.open(f"/run/netns/{self.name}", os.O_RDONLY)
        self.ip("link set lo up")
        if self.spec.peerix:
            self.peerix.put_files()
            wants = self.root / "etc/systemd/system/sockets.target.wants"
            wants.mkdir(parents=True, exist_ok=True)
            (wants / "peerix.socket").symlink_to("/usr/lib/systemd/system/peerix.socket")

    def start(self):
        """Start the boot; `await_boot` waits for its end, so that hosts boot side by side."""
        self._groups = sandbox.make_groups(self.name)
        enter = " && ".join(f"echo 0 > {shlex.quote(str(g))}/cgroup.procs" for g in self._groups)
        nspawn = ["systemd-nspawn", "--register=no", "--keep-unit", "-q", "-D", str(self.root),
                  f"--network-namespace-path=/run/netns/{self.name}", f"--machine={self.name}",
                  "--link-journal=no", "--console=pipe", "--resolv-conf=off", "--boot"]
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", f"{enter} && exec {shlex.join(nspawn)}"],
                env={**os.environ, "UNIFIED_CGROUP_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def await_boot(self):
        """Return when its systemd says that it is up."""
        self.pid = wait_until(self._first_process, 20, f"{self.name} has a first process")
        wait_until(lambda: self.run("systemctl is-system-running", check=False).stdout.strip()
                   in ("running", "degraded"), 30, f"{self.name} is up", every=0.1)

    def _first_process(self):
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.name} did not boot: {self.log.read_text(errors='replace')}")
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        for child in map(int, children.split()):
            # Before its exec it is still nspawn, whose namespaces are not all made yet. Nspawn's first
            # child makes the second and ends: it may be gone by now.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    return child
        return None

    def kill(self):
        """The plug is pulled: every process of the host is gone at once, its disk stays."""
        if self._process:
            # Also before it entered its group.
            self._process.kill()
            # All of the group, whoever they are: in mid-boot its first process is not known yet.
            (self._groups[0] / "cgroup.kill").write_text("1")
            self._process.wait()
            wait_until(lambda: "populated 0" in (self._groups[0] / "cgroup.events").read_text(), 10,
                       f"{self.name}: the last process is gone")
            # Linux (6.18) also kills who is cloned into a group that was killed once: the next boot has new ones.
            for group in self._groups:
                sandbox.remove_groups(group)
        self.pid = self._process = None

    def destroy(self):
        """End it and give back all that it held."""
        try:
            self.kill()
        finally:
            self._give_back()

    def _give_back(self):
        if self.namespace is not None:
            os.close(self.namespace)
            self.namespace = None
            subprocess.run(["ip", "netns", "delete", self.name], check=False)
        sandbox.unmount_lazily(self.root)
        sandbox.unmount_lazily(self._directory)
        if self._directory.exists():
            shutil.rmtree(self._directory, ignore_errors=True)

    def freeze(self, frozen=True):
        """Stop (or let go on) every process of the host, as a machine that hangs does."""
        (self._groups[0] / "cgroup.freeze").write_text("1" if frozen else "0")

    # Commands and files

    def command(self, arguments):
        """The argument list that runs `arguments` (a list, or a line for sh) in this host."""
        if isinstance(arguments, str):
            arguments = ["sh", "-c", arguments]
        return ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "--wdns=/root", *arguments]

    def run(self, arguments, check=True, bound=60, stdin=None):
        """Run to its end and return the CompletedProcess; with `check`, a failure is an AssertionError with its output."""
        done = subprocess.run(self.command(arguments), env=ENVIRONMENT, timeout=bound, text=True,
                              errors="replace", capture_output=True, input=stdin or "")
        if check and done.returncode:
            raise AssertionError(
                f"{self.name}: {arguments!r} ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return done

    def spawn(self, arguments, **options):
        """Start in the background; the caller waits for it or kills it, and with it what runs in the host."""
        options.setdefault("stdin", subprocess.DEVNULL)
        if isinstance(arguments, str):
            arguments = ["sh", "-c", arguments]
        return subprocess.Popen(self.command(["setpriv", "--pdeathsig", "KILL", "--", *arguments]),
                                env=ENVIRONMENT, **options)

    def path(self, inside):
        """Where a path of the host lies for us. Only for paths without absolute symlinks."""
        return self.root / inside.lstrip("/")

    def write(self, inside, content, mode=0o644):
        """Write a file of the host, making its directories."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        path.chmod(mode)

    def journal(self, *matches):
        """The journal's entries that match, as dictionaries, oldest first."""
        out = self.run(["journalctl", "-o", "json", "--all", "--no-pager", *matches]).stdout
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    def group_of(self, unit):
        """The control group of a system unit, whether or not it exists now."""
        return self._groups[0] / SYSTEM / unit

    # Network

    def ip(self, arguments):
        """Run `ip` in this host's network namespace."""
        subprocess.run(["ip", "-n", self.name, *arguments.split()], check=True, capture_output=True)

    def shows(self, arguments):
        """What `ip` says of this host's network, as JSON says it; entries that say nothing are left out."""
        shown = subprocess.run(["ip", "-n", self.name, "-j", *arguments.split()], check=True, capture_output=True)
        return [entry for entry in json.loads(shown.stdout or "[]") if entry]

    def addresses(self):
        """All that this host has on its cable, as text."""
        return [one["local"] for one in self.shows("address show dev lan0")[0]["addr_info"]]

    def network(self):
        """A context in which this thread's new sockets are sockets of this host."""
        return sandbox.network_of(self.namespace)

    def tcp(self, address, port, bound=5.0):
        """A TCP connection made by this host."""
        with self.network():
            return socket.create_connection((address, port), timeout=bound)

    def udp(self, port=0, bound=2.0):
        """A UDP socket of this host that may broadcast."""
        with self.network():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.settimeout(bound)
        sock.bind(("0.0.0.0", port))
        return sock
