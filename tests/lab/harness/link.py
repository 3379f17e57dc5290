"""A link with delay and loss, for kernels without netem: two TAP devices and a program between them.

One device is the host's `lan0`, the other the bridge's port. The program holds each frame back for
as long as it is told to, drops some of them, and can cut the link, with or without the host seeing
that the carrier is gone. ARP and IPv6 neighbour discovery are delayed and never lost: with them the
system itself makes hosts unreachable for a second, which is no business of the daemon.

usage: link.py NETNS-FD INSIDE OUTSIDE   (`Link` starts it; orders are lines of JSON on its stdin)
"""

import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import struct
import subprocess
import sys
import time

PORT = 12304

CLONE_NEWNET = 0x40000000
IFF_TAP_NO_PI = 0x1002
TUNSETIFF, TUNSETCARRIER = 0x400454ca, 0x400454e2

# Frames read from one device before the other has its turn.
BURST = 64


class Link:
    """The program, as the tests see it. `Lab.link` makes it and ends it.

    loss is a share of all frames of each direction, delay_ms what each frame is held back: a round
    trip has it twice.
    """

    def __init__(self, namespace, inside, outside):
        self._program = subprocess.Popen(
            [sys.executable, "-B", __file__, str(namespace), inside, outside],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, pass_fds=[namespace])
        if not self._program.stdout.readline():
            raise RuntimeError("the link did not start")

    def close(self):
        """End it; its devices go with it."""
        self._program.stdin.close()
        self._program.wait(10)
        self._program.stdout.close()

    def _order(self, **order):
        self._program.stdin.write(json.dumps(order) + "\n")
        self._program.stdin.flush()
        return json.loads(self._program.stdout.readline())

    def set(self, delay_ms=0.0, loss=0.0, seed=1):
        """Hold frames back so long from now on, and lose so many of them: the same ones for the same seed."""
        self._order(delay=delay_ms / 1000, loss=loss, seed=seed)

    def drop_next(self, kind, count=1):
        """Drop the next `count` frames of a kind: "syn" and "syn-ack" are those of connections to peerix."""
        self._order(drop=kind, count=count)

    def cut(self, is_cut=True):
        """Drop everything, and what is under way too; nobody sees that the carrier is gone. Or let go on."""
        self._order(cut=is_cut)

    def carrier(self, is_there):
        """Take the carrier from the host's interface, which keeps its addresses, or give it back."""
        self._order(carrier=is_there)

    def counts(self):
        """Frames `passed`, `lost` at random, and `dropped` because `drop_next` or `cut` said so."""
        return self._order()


# The program.

class _Wire:
    """The frames between the two devices."""

    def __init__(self, inside, outside):
        self.inside, self.outside = inside, outside
        self.delay, self.loss, self.is_cut = 0.0, 0.0, False
        self.chances = {}
        self.to_drop = []
        self.held = []
        self.number = 0
        self.counts = {"passed": 0, "lost": 0, "dropped": 0}
        self.seed(1)

    def seed(self, seed):
        # Each direction has chances of its own, so that what one loses does not depend on the other.
        self.chances = {self.inside: random.Random(f"{seed} out"), self.outside: random.Random(f"{seed} in")}

    def take(self, source):
        """Read what is there; what is to pass waits for its time."""
        for _ in range(BURST):
            try:
                frame = os.read(source, 65536)
            except BlockingIOError:
                return
            except OSError:
                # The device is down at present.
                return
            if self._is_dropped(frame):
                self.counts["dropped"] += 1
            elif self.loss and not is_neighbour_discovery(frame) and self.chances[source].random() < self.loss:
                self.counts["lost"] += 1
            else:
                target = self.outside if source == self.inside else self.inside
                self.number += 1
                heapq.heappush(self.held, (time.monotonic() + self.delay, self.number, target, frame))

    def _is_dropped(self, frame):
        if self.is_cut:
            return True
        found = kind(frame)
        if found in self.to_drop:
            self.to_drop.remove(found)
            return True
        return False

    def pass_on(self):
        """Write what has waited long enough; seconds until the next one, None when none waits."""
        while self.held:
            left = self.held[0][0] - time.monotonic()
            if left > 0:
                return left
            _, _, target, frame = heapq.heappop(self.held)
            try:
                os.write(target, frame)
                self.counts["passed"] += 1
            except OSError:
                # Down, or without a carrier: as on a cable that is out.
                self.counts["dropped"] += 1
        return None

    def obey(self, order):
        if "delay" in order:
            self.delay, self.loss = order["delay"], order["loss"]
            self.seed(order["seed"])
        if "drop" in order:
            self.to_drop = [order["drop"]] * order["count"]
        if "cut" in order:
            self.is_cut = order["cut"]
            if self.is_cut:
                self.held.clear()
        if "carrier" in order:
            fcntl.ioctl(self.inside, TUNSETCARRIER, struct.pack("i", order["carrier"]))


def is_neighbour_discovery(frame):
    """Whether it is ARP, or a message of RFC 4861."""
    protocol = frame[12:14]
    return protocol == b"\x08\x06" or (protocol == b"\x86\xdd" and frame[20:21] == b"\x3a" and 133 <= frame[54] <= 137)


def kind(frame):
    """ "syn" or "syn-ack" of a connection to peerix; None for all else."""
    if frame[12:14] == b"\x08\x00" and frame[23:24] == b"\x06":
        tcp = frame[14 + 4 * (frame[14] & 15):]
    elif frame[12:14] == b"\x86\xdd" and frame[20:21] == b"\x06":
        tcp = frame[54:]
    else:
        return None
    source, target = struct.unpack(">HH", tcp[:4])
    flags = tcp[13] & 0x12
    if flags == 0x02 and target == PORT:
        return "syn"
    if flags == 0x12 and source == PORT:
        return "syn-ack"
    return None


def _open(name):
    """A TAP device of this name in the network namespace where we are."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP_NO_PI))
    return device


def _main(namespace, inside, outside):
    outer = _open(outside)
    if ctypes.CDLL(None, use_errno=True).setns(int(namespace), CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "entering the host's network namespace")
    wire = _Wire(_open(inside), outer)
    print("ready", flush=True)
    orders = b""
    while True:
        left = wire.pass_on()
        ready, _, _ = select.select([wire.inside, wire.outside, 0], [], [], left)
        for source in ready:
            if source != 0:
                wire.take(source)
                continue
            said = os.read(0, 65536)
            if not said:
                return
            *lines, orders = (orders + said).split(b"\n")
            for line in lines:
                wire.obey(json.loads(line))
                print(json.dumps(wire.counts), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
