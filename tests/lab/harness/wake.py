"""Measuring how long a sleeping host takes from a packet to its answer."""

import statistics
import subprocess
from pathlib import Path

from . import wire
from .waiting import wait_until

TRIVIAL_SOURCE = Path(__file__).resolve().parents[2] / "bench" / "trivial.c"


def wake_times(host, asker, store_hash, count):
    """Seconds from the packet to the answer, `count` times, each time from a host without the process."""
    times = []
    with asker.udp() as sock:
        for _ in range(count):
            host.peerix.put_to_sleep()
            wait_until(lambda: not host.peerix.awake() and host.peerix.show("ActiveState") == "inactive",
                       10, "the service is inactive")
            answer = wire.ask(asker, host.address, store_hash, bound=5, sock=sock)
            if answer is None:
                raise AssertionError(f"{host.name} did not answer within 5 s")
            times.append(answer.seconds)
    return times


def milliseconds(times):
    """Median and extremes, for a person."""
    return f"median {statistics.median(times) * 1000:6.1f} ms, {min(times) * 1000:6.1f} to {max(times) * 1000:6.1f} ms"


def put_trivial(host, at="/usr/bin/lab-trivial"):
    """Compile the trivial program and install it on a host."""
    built = Path("/run/lab/trivial")
    if not built.exists():
        subprocess.run(["cc", "-O2", "-o", str(built), str(TRIVIAL_SOURCE)], check=True)
    host.peerix.put_binary(built, at=at)
    return at
