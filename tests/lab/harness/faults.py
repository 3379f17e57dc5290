"""What can befall a host in the middle of a NAR, and when: the schedule of `tests/lab/chaos`."""

import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .lan import port_of

# Each fault, and the most milliseconds that it may add at the median. A connection that ends says
# so at once; of a silent one only time tells. The others have no limit: Nix itself resumes, or
# nothing is to be felt at all.
MOST_ADDED = {
    "kill-daemon": 100, "reset": 100,
    "kill-host": 1500, "drop-link": 1500, "freeze-host": 1500,
    "kill-gateway": None, "gc": None,
}
FAULTS = tuple(MOST_ADDED)


@dataclass(frozen=True)
class Strike:
    """One faulted pull: the blobs to pull by number, in order, and after which part of them it strikes.

    draw chooses the victim when several serve.
    """
    run: int
    fault: str
    order: tuple
    part: float
    draw: float

    def byte(self, blobs):
        """After how many bytes from the holders it strikes."""
        return int(self.part * sum(blobs[number].nar_size for number in self.order))


def schedule(runs, seed, faults, blobs=4, pulled=2):
    """All strikes, round by round. A strike depends on seed, fault and run only, not on what else is chosen."""
    strikes = []
    for run in range(1, runs + 1):
        for fault in faults:
            drawn = random.Random(f"{seed} {fault} {run}")
            order = tuple(drawn.sample(range(blobs), pulled))
            strikes.append(Strike(run, fault, order, drawn.uniform(0.1, 0.8), drawn.random()))
    return strikes


def sent(hosts):
    """Bytes that each host has sent into the LAN; 0 for one without a cable. Cheap enough to ask all the time."""
    counted = dict.fromkeys(hosts, 0)
    rows = dict(line.split(":", 1) for line in Path("/proc/self/net/dev").read_text().splitlines()[2:])
    rows = {name.strip(): numbers for name, numbers in rows.items()}
    for host in hosts:
        if port_of(host) in rows:
            counted[host] = int(rows[port_of(host)].split()[0])
    return counted


def await_byte(holders, byte, process, draw):
    """Wait until the holders have sent `byte` bytes; the one that serves then, None if the pull ended first.

    Serving is who has sent a tenth or more of what went over the wire in the last 20 ms.
    """
    began = sent(holders)
    recent = [(time.monotonic(), began)]
    while process.poll() is None:
        now = sent(holders)
        recent.append((time.monotonic(), now))
        while len(recent) > 2 and recent[1][0] < recent[-1][0] - 0.02:
            recent.pop(0)
        if sum(now.values()) - sum(began.values()) >= byte:
            lately = {host: now[host] - recent[0][1][host] for host in holders}
            serving = [host for host in holders if lately[host] * 10 >= max(sum(lately.values()), 1)]
            if serving:
                return serving[int(draw * len(serving))]
        time.sleep(0.002)
    return None


def strike(lab, fault, holder, asker, paths):
    """Do it. `mend` undoes what lasts."""
    if fault == "kill-daemon":
        _kill(holder)
    elif fault == "kill-gateway":
        _kill(asker)
    elif fault == "reset":
        shown = subprocess.run(
            ["nsenter", f"--net=/run/netns/{holder.name}", "ss", "-K", "-H", "-t", "state", "established",
             "sport", "=", ":12304", "dst", asker.address], capture_output=True, text=True)
        if not shown.stdout.strip():
            raise RuntimeError(f"no connection was reset: {shown.stderr or 'does this kernel have it?'}")
    elif fault == "drop-link":
        lab.link_down(holder)
    elif fault == "kill-host":
        # First the cable: its kernel lives on here, and would say farewell for the processes.
        lab.link_down(holder)
        holder.kill()
    elif fault == "freeze-host":
        holder.freeze()
    elif fault == "gc":
        # Whatever needs them has to go with them; they are not needed by what is pulled.
        needing = holder.run(["nix-store", "-q", "--referrers-closure", *paths]).stdout.split()
        holder.run(["nix-store", "--delete", "--ignore-liveness", *sorted(set(needing))])
    else:
        raise ValueError(f"no such fault: {fault}")


def mend(lab, fault, holder, paths):
    """After the pull: the holder is as before."""
    if fault == "kill-daemon":
        holder.run("systemctl reset-failed peerix.service; systemctl start peerix.socket", check=False)
    elif fault == "drop-link":
        lab.link_up(holder)
    elif fault == "kill-host":
        holder.start()
        holder.await_boot()
        lab.link_up(holder)
    elif fault == "freeze-host":
        holder.freeze(False)
    elif fault == "gc":
        holder.run("rm -rf /root/.cache/nix")
        holder.run(["nix-store", "-r", *paths], bound=120)


def _kill(host):
    processes = host.peerix.processes()
    if not processes:
        raise RuntimeError(f"{host.name} has no daemon to kill")
    for process in processes:
        os.kill(process, signal.SIGKILL)
