"""The closure that the tests pull, built once by real Nix on a lab host and kept in the cache.

Two stores come of it, each a directory whose `nix` is laid under a host's own (`Spec.stores`):
`full`, where all was built, derivations included, and `half`, with the first half of the chain
and of the big paths. All outputs are signed with a key made for the purpose, which lab hosts trust.
"""

import inspect
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from . import base
from .host import Spec
from .lan import Lab
from .peerix import Build

EXPRESSION = Path(__file__).resolve().parents[1] / "closure.nix"
KEY_NAME = "lab-1"


@dataclass(frozen=True)
class StorePath:
    """One path of the closure: its name in full, NAR hash (nix32, 52 characters) and size, references."""
    path: str
    nar_hash: str
    nar_size: int
    references: tuple

    @property
    def hash(self):
        """Its store hash, 32 characters."""
        return self.path.removeprefix("/nix/store/")[:32]

    @property
    def name(self):
        """What follows the hash."""
        return self.path.removeprefix("/nix/store/")[33:]

    @property
    def nar(self):
        """The file name of its NAR on the routes of peerix."""
        return f"{self.hash}-{self.nar_hash}.nar"


class Closure:
    """What was built, and where the stores lie."""

    def __init__(self, directory):
        listed = json.loads((directory / "paths.json").read_text())
        paths = {p["path"]: StorePath(p["path"], p["nar_hash"], p["nar_size"], tuple(p["references"]))
                 for p in listed["paths"]}
        self.paths = list(paths.values())
        self.top = paths[listed["top"]]
        self.chain = [paths[p] for p in listed["chain"]]
        self.blobs = [paths[p] for p in listed["blobs"]]
        self.half = [paths[p] for p in listed["half"]]
        self.full_store = directory / "full"
        self.half_store = directory / "half"
        self.public_key = (directory / "key.pub").read_text().strip()
        self.secret_key = (directory / "key.sec").read_text().strip()


def closure():
    """The closure; built now when the cache has none for this expression and base (under a minute)."""
    key = base.key_of(base.base_key(), EXPRESSION.read_text(), *map(inspect.getsource, (_build, _described)))
    base.base()
    with base.made_once("closure", key) as (directory, fresh):
        if fresh:
            print("building the lab's closure (once) ...", flush=True)
            _build(directory)
    return Closure(base.cache() / f"closure-{key}")


def _build(directory):
    with Lab([Spec("maker", peerix=False, nix_conf="substituters =\n")], Build(None, "")) as lab:
        maker, = lab.hosts
        maker.run(["sh", "-c", f"nix-store --generate-binary-cache-key {KEY_NAME} key.sec key.pub"])
        with open(maker.path("/etc/nix/nix.conf"), "a") as conf:
            conf.write("secret-key-files = /root/key.sec\n")
        maker.write("/root/closure.nix", EXPRESSION.read_bytes())

        def outputs(attribute):
            return maker.run(["nix-build", "closure.nix", "--no-out-link", "-A", attribute],
                             bound=300).stdout.split()
        top, = outputs("top")
        half_tops = outputs("half")
        listed = {
            "top": top, "chain": outputs("chain"), "blobs": outputs("blobs"),
            "half": maker.run(["nix-store", "-qR", *half_tops]).stdout.split(),
            "paths": _described(maker, maker.run(["nix-store", "-qR", top]).stdout.split()),
        }
        maker.run(["nix", "copy", "--to", "/root/half", *half_tops], bound=120)
        # The last user of the database folds its log into it (Nix keeps the file, empty), so the
        # stores are at rest when copied; the daemon does not when it is stopped, a query does.
        maker.run("systemctl stop nix-daemon.socket nix-daemon.service")
        maker.run(["nix-store", "-q", "--hash", top])
        for name, store in (("full", "/nix"), ("half", "/root/half/nix")):
            target = directory / name / "nix"
            shutil.copytree(maker.path(store), target, symlinks=True, ignore=_only_plain)
            log = target / "var/nix/db/db.sqlite-wal"
            if log.exists() and log.stat().st_size:
                raise RuntimeError(f"the {name} store was not at rest")
        for key in ("key.sec", "key.pub"):
            shutil.copyfile(maker.path(f"/root/{key}"), directory / key)
        (directory / "paths.json").write_text(json.dumps(listed, indent=1))


def _described(host, paths):
    """Hash, size and references of each as Nix prints them."""
    rows = []
    for path in paths:
        nar_hash, size = host.run(
            ["sh", "-c", 'nix-store -q --hash "$0"; nix-store -q --size "$0"', path]).stdout.split()
        references = host.run(["nix-store", "-q", "--references", path]).stdout.split()
        rows.append({"path": path, "nar_hash": nar_hash.removeprefix("sha256:"),
                     "nar_size": int(size), "references": references})
    return rows


def _only_plain(directory, names):
    """Leave out sockets and pipes: they belong to the host's running daemon."""
    return [n for n in names if (p := Path(directory) / n).exists() and not p.is_symlink()
            and not p.is_file() and not p.is_dir()]
