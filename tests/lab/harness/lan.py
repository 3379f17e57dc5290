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
from .link import Link
from .waiting import wait_until

BRIDGE = "lan"
NET = "192.168.77"
FAR_BRIDGE = "far"
FAR_NET = "192.168.78"
ROUTER = "router"


class Lab:
    """Hosts on one bridge, or on two with a router between. A context manager: booted inside, gone after it.

    `hosts` are in the order of their specs and have the addresses 192.168.77.1, .2, ...; those that
    are `far` have 192.168.78 and their number.
    """

    def __init__(self, specs, build):
        self.hosts = [Host(spec, f"{FAR_NET if spec.far else NET}.{number}", build)
                      for number, spec in enumerate(specs, 1)]
        self.has_router = any(spec.far for spec in specs)

    def __enter__(self):
        try:
            for bridge in self._bridges():
                _ip(f"link add {bridge} type bridge mcast_snooping 0")
                _ip(f"link set {bridge} up")
            if self.has_router:
                _add_router()
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
            for bridge in self._bridges():
                rest.callback(subprocess.run, ["ip", "link", "delete", bridge], capture_output=True)
            if self.has_router:
                rest.callback(subprocess.run, ["ip", "netns", "delete", ROUTER], capture_output=True)
            for host in self.hosts:
                rest.callback(host.destroy)
                # A namespace's own interfaces go some time after it; the next lab wants the same names now.
                rest.callback(subprocess.run, ["ip", "link", "delete", port_of(host)], capture_output=True)

    def _bridges(self):
        return (BRIDGE, FAR_BRIDGE) if self.has_router else (BRIDGE,)

    def host(self, name):
        """The host of that name."""
        return next(host for host in self.hosts if host.name == name)

    # Cables

    def plug(self, host, ipv4=True, mac=None):
        """Give the host its interface `lan0`, up, with its address and a default route.

        Not `ipv4`: with the link-local IPv6 address that the kernel gives it, and nothing else. `mac`: that
        of an earlier interface, which other hosts remember.
        """
        _ip(f"link add {port_of(host)} type veth peer name lan0 netns {host.name}")
        _ip(f"link set {port_of(host)} master {_bridge_of(host)} up")
        if mac:
            host.ip(f"link set lan0 address {mac}")
        if not ipv4:
            host.ip("link set lan0 up")
            return
        _configure(host)

    def unplug(self, host):
        """Take the interface away, as a USB adapter that is pulled out."""
        _ip(f"link delete {port_of(host)}")

    def link_down(self, host):
        """Cut the host off without it seeing more than a dead switch."""
        _ip(f"link set {port_of(host)} nomaster")

    def link_up(self, host):
        """Undo `link_down`."""
        _ip(f"link set {port_of(host)} master {_bridge_of(host)}")

    @contextlib.contextmanager
    def link(self, host, delay_ms=0.0, loss=0.0, seed=1):
        """Join the host to the bridge by a `Link` within the block: the same interface, MAC and addresses."""
        mac = host.shows("link show lan0")[0]["address"]
        self.unplug(host)
        link = Link(host.namespace, "lan0", port_of(host))
        try:
            link.set(delay_ms, loss, seed)
            # No second of asking whether another host has the link-local address: nobody else has this MAC.
            subprocess.run(["ip", "netns", "exec", host.name, "sh", "-c",
                            "echo 0 > /proc/sys/net/ipv6/conf/lan0/accept_dad"], check=True)
            host.ip(f"link set lan0 address {mac}")
            _ip(f"link set {port_of(host)} master {_bridge_of(host)} up")
            _configure(host)
            # Of a new TAP nobody knows whether it has a carrier.
            link.carrier(False)
            link.carrier(True)
            self.await_forwarding(host)
            yield link
        finally:
            link.close()
            wait_until(lambda: not host.shows("link show type tun"), 5, f"{host.name}: the link is gone")
            self.plug(host, mac=mac)
            self.await_forwarding(host)

    def address(self, host):
        """Give an interface that is up and has no address the host's own."""
        _configure(host)

    def await_forwarding(self, host):
        """Return when the host's interface is up for it and for the bridge, which both learn a moment later."""
        wait_until(lambda: host.shows("link show lan0")[0]["operstate"] == "UP", 5, f"{host.name} has a carrier")
        wait_until(lambda: self._port_state(host) == "forwarding", 5, f"the bridge forwards to {host.name}")

    def _port_state(self, host):
        shown = subprocess.run(["ip", "-j", "-d", "link", "show", port_of(host)], check=True, capture_output=True)
        return json.loads(shown.stdout)[0]["linkinfo"]["info_slave_data"]["state"]

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
        """Collect every UDP datagram that a host sends into the LAN; yields the growing list."""
        watch = _Capture({port_of(host): host for host in self.hosts})
        try:
            yield watch.seen
        finally:
            watch.stop()


def port_of(host):
    """The bridge's side of the host's cable."""
    return f"p-{host.name}"


def _bridge_of(host):
    return FAR_BRIDGE if host.spec.far else BRIDGE


def _configure(host):
    """Address, up, and a default route."""
    host.ip(f"address add {host.address}/24 brd + dev lan0")
    host.ip("link set lan0 up")
    host.ip(f"route add default via {FAR_NET if host.spec.far else NET}.254")


def _add_router():
    """A namespace that passes packets between the two networks: nothing runs in it."""
    _ip(f"netns add {ROUTER}")
    for bridge, net in ((BRIDGE, NET), (FAR_BRIDGE, FAR_NET)):
        _ip(f"link add p-{bridge}-r type veth peer name {bridge} netns {ROUTER}")
        _ip(f"link set p-{bridge}-r master {bridge} up")
        _ip(f"-n {ROUTER} address add {net}.254/24 brd + dev {bridge}")
        _ip(f"-n {ROUTER} link set {bridge} up")
    forward = "echo 1 > /proc/sys/net/ipv4/ip_forward"
    subprocess.run(["ip", "netns", "exec", ROUTER, "sh", "-c", forward], check=True)


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
        return self.target.endswith(".255") or self.multicast()

    def multicast(self):
        """Whether it went to everyone by IPv6."""
        return self.target == "ff02::1"

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
            if host and kind != socket.PACKET_OUTGOING and (parts := _udp(protocol, packet)):
                source, target, datagram = parts
                source_port, target_port, length, _ = struct.unpack(">HHHH", datagram[:8])
                self.seen.append(Datagram(time.monotonic(), host, source, source_port, target, target_port,
                                          datagram[8:length]))


def _udp(protocol, packet):
    """(source, target, UDP datagram) of an IP packet; None if it carries something else."""
    if protocol == 0x0800 and packet[9] == socket.IPPROTO_UDP:
        source, target, header = packet[12:16], packet[16:20], (packet[0] & 15) * 4
        family = socket.AF_INET
    elif protocol == 0x86dd and packet[6] == socket.IPPROTO_UDP:
        source, target, header = packet[8:24], packet[24:40], 40
        family = socket.AF_INET6
    else:
        return None
    return socket.inet_ntop(family, source), socket.inet_ntop(family, target), packet[header:]
