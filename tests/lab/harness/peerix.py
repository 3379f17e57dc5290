"""The daemon on a lab host: its files, its settings, and what can be seen of it from outside."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .waiting import wait_until

PORT = 12304
CHECKOUT = Path(__file__).resolve().parents[3]
UNITS = ("peerix.socket", "peerix.service", "peerix-refresh.service", "peerix-refresh.path")
GATEWAY = f"http://127.0.0.1:{PORT}/"

CONFIG = "/etc/peerix/peerix.toml"
KEY = "/etc/credstore/peerix.signing-key"
STATE = "/run/peerix"
CACHE = "/var/cache/peerix"

# systemd's catalogue: "a unit is being started".
MESSAGE_STARTING = "7d4958e842da4a758f6c1cdc7b36dcc5"


@dataclass(frozen=True)
class Build:
    """What is under test, and the key that lab hosts trust.

    binary: the daemon; public_key: a line for trusted-public-keys
    """
    binary: Path
    public_key: str

    def nix_conf(self):
        """nix.conf of a host whose only substituter is its own gateway."""
        return (f"sandbox = false\nexperimental-features = nix-command\n"
                f"substituters = {GATEWAY}\ntrusted-public-keys = {self.public_key}\n")

    def with_share_keys(self, toml):
        """`toml` with the lab's key in `share.keys`, unless it says itself which keys these are."""
        if re.search(r"^(share\.)?keys *=", toml, re.M):
            return toml
        line = f'keys = ["{self.public_key}"]\n'
        if "[share]\n" in toml:
            return toml.replace("[share]\n", "[share]\n" + line, 1)
        return f"{toml}\n[share]\n{line}"


def binary():
    """The daemon's binary: `$PEERIX_BINARY`, else the checkout's release build."""
    path = os.environ.get("PEERIX_BINARY")
    if path:
        return Path(path)
    target = os.environ.get("CARGO_TARGET_DIR", CHECKOUT / "target")
    return Path(target) / "release" / "peerix"


class Peerix:
    """The daemon of one host."""

    def __init__(self, host):
        self.host = host

    # Files

    def put_files(self):
        """The binary and the shipped units, unchanged, where a package would put them."""
        self.put_binary(self.host.build.binary)
        self.configure(None)
        units = self.host.path("/usr/lib/systemd/system")
        for unit in UNITS:
            shutil.copyfile(CHECKOUT / "systemd" / unit, units / unit)

    def put_binary(self, source, at="/usr/bin/peerix"):
        """A program in the daemon's place, by a rename as packages do: the running one stays whole."""
        path = self.host.path(at)
        new = path.with_name(path.name + ".new")
        shutil.copyfile(source, new)
        new.chmod(0o755)
        new.rename(path)

    def configure(self, toml):
        """Write peerix.toml (None: as at first). Takes effect at the next start or reload."""
        self.host.write(CONFIG, self.host.build.with_share_keys(toml or ""))

    def drop_in(self, unit, lines, name="lab"):
        """Add a drop-in to a unit and let systemd read it (None: remove it)."""
        directory = f"/etc/systemd/system/{unit}.d"
        if lines is None:
            self.host.path(f"{directory}/{name}.conf").unlink(missing_ok=True)
        else:
            self.host.write(f"{directory}/{name}.conf", lines)
        self.host.run("systemctl daemon-reload")

    def reset(self, toml=None):
        """As after the installation: asleep, no memory of peers, no failed unit, `toml` and the lab's key as settings."""
        run = self.host.run
        run("systemctl stop peerix.socket peerix.service")
        run("systemctl reset-failed peerix.socket peerix.service", check=False)
        self.configure(toml)
        self.host.path(KEY).unlink(missing_ok=True)
        for state in (STATE, "/run/private/peerix", CACHE, "/var/cache/private/peerix"):
            run(["rm", "-rf", state])
        run("systemctl start peerix.socket")

    # What can be seen

    def show(self, prop, unit="peerix.service"):
        """One property of a unit as systemd prints it."""
        return self.host.run(["systemctl", "show", unit, "-p", prop, "--value"]).stdout.strip()

    def processes(self):
        """The ids (ours, not the host's) of the daemon's processes; not those of its ExecStopPost=."""
        try:
            ids = (self.host.group_of("peerix.service") / "cgroup.procs").read_text().split()
            return [int(p) for p in ids if os.readlink(f"/proc/{p}/exe").endswith("/bin/peerix")]
        except OSError:
            return []

    def awake(self):
        """Whether the service has a process now."""
        return bool(self.processes())

    def await_asleep(self, bound=15):
        """Wait until it has ended by itself: no process left and systemd says inactive."""
        wait_until(lambda: not self.awake(), bound, f"{self.host.name}: no process of peerix.service")
        wait_until(lambda: self.show("ActiveState") in ("inactive", "failed"), 5,
                   f"{self.host.name}: peerix.service is inactive")
        state = self.show("ActiveState")
        if state != "inactive":
            raise AssertionError(f"{self.host.name}: peerix.service is {state}: {self.show('Result')}")

    def put_to_sleep(self):
        """Stop the process, whatever its idle timeout says; the socket stays."""
        self.host.run("systemctl stop peerix.service")

    def starts(self):
        """How often the service has started since boot, from systemd's journal."""
        return len(self.host.journal(f"MESSAGE_ID={MESSAGE_STARTING}", "UNIT=peerix.service"))

    def socket_listens(self):
        """Whether the socket unit is up, not failed."""
        return self.show("ActiveState", "peerix.socket") == "active"

    def said(self, since=None, priority=None):
        """What the service has written to the journal, one line an entry."""
        matches = ["-u", "peerix.service"]
        if since:
            matches += ["--after-cursor", since]
        if priority:
            matches += ["-p", priority]
        return "\n".join(str(entry.get("MESSAGE", "")) for entry in self.host.journal(*matches))

    def cursor(self):
        """A mark in the journal, for `said(since=...)`."""
        out = self.host.run("journalctl -n 0 --show-cursor --no-pager").stdout
        return out.split("cursor: ", 1)[1].strip()
