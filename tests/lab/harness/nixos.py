"""What services.peerix makes of a configuration, and a lab host that has it.

The module is evaluated by the Nix of this machine with the stand-in of tests/nixos: the cases there are
the configurations here. A lab host is no NixOS: it gets the drop-ins, files and lines of nix.conf
that NixOS would lay out, over the units that the package brings.
"""

import functools
import json
import os
import subprocess
import tempfile

from .peerix import CHECKOUT

SYSTEM = "/etc/systemd/system"
DROP_IN = "overrides"


@functools.cache
def cases():
    """Name to what the module makes of it, for the cases that evaluate and fail no assertion."""
    with tempfile.TemporaryDirectory() as state:
        done = subprocess.run(
            ["nix-instantiate", "--eval", "--strict", "--json", "--store", "dummy://", "-E",
             "(import ./tests/nixos { }).results"],
            cwd=CHECKOUT, check=False, capture_output=True, text=True,
            env={**os.environ, "HOME": state, "NIX_CONF_DIR": state})
    if done.returncode:
        raise RuntimeError(f"nix-instantiate: {done.stderr}")
    made = {name: case["got"] for name, case in json.loads(done.stdout).items()}
    return {name: got for name, got in made.items() if got and got["units"] and not got["failures"]}


def nix_conf(made, public_key):
    """The nix.conf of a machine with it, which trusts the lab's key and has no other substituter."""
    settings = {key: value for key, value in made["nix"].items() if key != "substituters"}
    lines = [f"{key} = {value if isinstance(value, str) else ' '.join(value)}" for key, value in settings.items()]
    return "\n".join(["sandbox = false", "experimental-features = nix-command", "substituters =",
                      f"trusted-public-keys = {public_key}", *lines, made["nixExtra"], ""])


class Configured:
    """A host as the module would have it, within a `with` block."""

    def __init__(self, host, made):
        self._host, self._made = host, made
        self._before = host.path("/etc/nix/nix.conf").read_text()

    def __enter__(self):
        host = self._host
        host.run("systemctl stop peerix.socket peerix.service")
        for unit, rendered in self._made["units"].items():
            if rendered["text"]:
                host.write(f"{SYSTEM}/{unit}.d/{DROP_IN}.conf", rendered["text"])
        host.run("systemctl daemon-reload")
        host.peerix.reset()
        for name, text in self._made["files"].items():
            if "--check-config" not in text:
                host.write(f"/etc/{name}", host.build.with_share_keys(text) if name.endswith(".toml") else text)
        host.write("/etc/nix/nix.conf", nix_conf(self._made, host.build.public_key))
        self._restart_nix()
        return self

    def __exit__(self, *_):
        host = self._host
        host.run("systemctl stop peerix.socket peerix.service", check=False)
        for unit in self._made["units"]:
            host.run(["rm", "-rf", f"{SYSTEM}/{unit}.d"])
        for name in self._made["files"]:
            host.path(f"/etc/{name}").unlink(missing_ok=True)
        host.write("/etc/nix/nix.conf", self._before)
        host.run("systemctl daemon-reload")
        self._restart_nix()

    def _restart_nix(self):
        # The daemon alone: its socket stays.
        self._host.run("systemctl stop nix-daemon.service", check=False)
