"""What the benchmarks on lab hosts share: their start, and their hosts."""

import argparse
import contextlib
import os
import shutil
import sys

from . import base, peerix, sandbox
from .case import the_closure
from .lan import Lab
from .peerix import Build


def options(description, **numbers):
    """Parse the command line: an integer option with its default for each of `numbers`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    return parser.parse_args()


@contextlib.contextmanager
def lab(*specs):
    """Enter the sandbox and boot hosts; `specs` are functions, called where the closure can be built."""
    if os.geteuid() != 0:
        sys.exit("lab benchmarks need root")
    if not shutil.which("systemd-nspawn") or not shutil.which("mmdebstrap"):
        sys.exit("lab benchmarks need the tools that tests/run installs")
    if not peerix.binary().exists():
        sys.exit(f"no daemon at {peerix.binary()}: cargo build --release")
    if sandbox.INSIDE not in os.environ:
        base.base()
    sandbox.enter()
    try:
        closure = the_closure()
        with Lab([spec() for spec in specs], Build(peerix.binary(), closure.public_key)) as booted:
            yield booted, closure
    finally:
        sandbox.remove_own_groups()
