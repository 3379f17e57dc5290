"""The network of a lab and the hosts on it."""

import contextlib
import json
import socket
import struct
import subprocess
import threading
import time
from dataclasses import dataclass

from .host import Host

BRIDGE = "lan"
NET = "192.168.77"


class Lab:
    """Hosts on one bridge. A context manager: booted inside, gone after it.

    `hosts` are in the order of their specs and have the addresses 192.168.77.1, .2, ...
    """

    def __init__(self, specs, build):
        self.hosts = [Host(spec, f"{NET}.{number}", build) for number, spec in enumerate(specs, 1)]

    def __enter__(self):
        try:
            _ip(f"link add {BRIDGE} type bridge mcast_snooping 0")
            _ip(f"link set {BRIDGE} up")
            for host in self.hosts:
                host.prepare()
                if host.spec.connected:
                    self.plug(host)
                host.start()
            for host in self.hosts:
                host.await_boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        # In reverse, and to the end whatever fails: what one lab leaves behind fails those after it.
        with contextlib.ExitStack() as rest:
            rest.callback(subprocess.run, ["ip", "link", "delete", BRIDGE], capture_output=True)
            for host in self.hosts:
                rest.callback(host.destroy)
                # A namespace's own interfaces go some time after it; the next lab wants the same names now.
                rest.callback(subprocess.run, ["ip", "link", "delete", port_of(host)], capture_output=True)

    def host(self, name):
        """The host of that name."""
        return next(host for host in self.hosts if host.name == name)

    # Cables

    def plug(self, host):
        """Give the host its interface `lan0`, up, with its address and a default route."""
        _ip(f"link add {port_of(host)} type veth peer name lan0 netns {host.name}")
        _ip(f"link set {port_of(host)} master {BRIDGE} up")
        host.ip(f"address add {host.address}/24 brd + dev lan0")
        host.ip("link set lan0 up")
        host.ip(f"route add default via {NET}.254")

    def unplug(self, host):
        """Take the interface away, as a USB adapter that is pulled out."""
        _ip(f"link delete {port_of(host)}")

    def link_down(self, host):
        """Cut the host off without it seeing more than a dead switch."""
        _ip(f"link set {port_of(host)} nomaster")

    def link_up(self, host):
        """Undo `link_down`."""
        _ip(f"link set {port_of(host)} master {BRIDGE}")

    def slow_down(self, host, rate):
        """Let at most `rate` (as tc writes it: 100mbit) out of the host; None: no limit."""
        if rate is None:
            subprocess.run(["tc", "-n", host.name, "qdisc", "delete", "dev", "lan0", "root"], capture_output=True)
        else:
            subprocess.run(["tc", "-n", host.name, "qdisc", "replace", "dev", "lan0", "root", "tbf",
                            "rate", rate, "burst", "64kb", "latency", "100ms"], check=True)

    def slow_down_towards(self, host, rate):
        """Let at most `rate` into the host, whoever sends it."""
        subprocess.run(["tc", "qdisc", "replace", "dev", port_of(host), "root", "tbf",
                        "rate", rate, "burst", "128kb", "latency", "50ms"], check=True)

    # What goes over it

    def bytes_from(self, host):
        """How many bytes the host has sent into the LAN since it was plugged in."""
        shown = subprocess.run(["ip", "-j", "-s", "link", "show", port_of(host)], check=True, capture_output=True)
        return json.loads(shown.stdout)[0]["stats64"]["rx"]["bytes"]

    @contextlib.contextmanager
    def capture(self):
        """Collect every IPv4 UDP datagram that a host sends into the LAN; yields the growing list."""
        watch = _Capture({port_of(host): host for host in self.hosts})
        try:
            yield watch.seen
        finally:
            watch.stop()


def port_of(host):
    """The bridge's side of the host's cable."""
    return f"p-{host.name}"


def _ip(arguments):
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True)


@dataclass(frozen=True)
class Datagram:
    """One UDP datagram: when, which host sent it, and what it says."""
    time: float
    host: Host
    source: str
    source_port: int
    target: str
    target_port: int
    payload: bytes

    def broadcast(self):
        """Whether it went to everyone."""
        return self.target.endswith(".255")

    def __str__(self):
        return f"{self.host.name} {self.source}:{self.source_port} -> {self.target}:{self.target_port} {self.payload.hex()}"


class _Capture:
    """Reads the bridge's ports, where each frame of a host passes exactly once on its way in."""

    def __init__(self, ports):
        self.seen = []
        self._ports = ports
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0003))
        self._socket.settimeout(0.05)
        self._stopping = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def stop(self):
        """Stop after what has already arrived was read."""
        self._stopping = True
        self._thread.join()
        self._socket.close()

    def _read(self):
        while True:
            try:
                packet, (port, protocol, kind, *_) = self._socket.recvfrom(65536)
            except TimeoutError:
                if self._stopping:
                    return
                continue
            host = self._ports.get(port)
            if host and protocol == 0x0800 and kind != socket.PACKET_OUTGOING and packet[9] == socket.IPPROTO_UDP:
                header = (packet[0] & 15) * 4
                source_port, target_port, length, _ = struct.unpack(">HHHH", packet[header:header + 8])
                self.seen.append(Datagram(
                    time.monotonic(), host, socket.inet_ntoa(packet[12:16]), source_port,
                    socket.inet_ntoa(packet[16:20]), target_port, packet[header + 8:header + length]))
