"""A hostile peer: it says that it has a path, gives the right narinfo, and then does as it is told.

It runs in the tests' own process, with sockets in the network of a lab host that has no peerix. One
such host plays many machines, each with an address of its own: what one of them does must not be
held against the others.
"""

import contextlib
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field

from . import wire

PORT = 12304


def address(number):
    """That of the machine of this number, from 0."""
    return f"192.168.77.{100 + number}"


# Where its redirects point: a machine of its own, which sees who follows one, by this path.
TRAP = "/trap.nar"


@dataclass(frozen=True)
class Request:
    """A request for a NAR: the socket to answer on, the right NAR, and the first byte asked for."""
    connection: socket.socket
    nar: bytes
    first: int

    def send(self, data):
        """Bytes as they are."""
        self.connection.sendall(data)

    def head(self, length=None, status="200 OK", *lines):
        """The head of an answer, with a length if there is one."""
        lines = [*lines, *([] if length is None else [f"Content-Length: {length}"])]
        self.send("\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode())

    def right_head(self):
        """What an honest holder would begin with; returns the bytes that it would send."""
        total = len(self.nar)
        if self.first:
            self.head(total - self.first, "206 Partial Content", f"Content-Range: bytes {self.first}-{total - 1}/{total}")
        else:
            self.head(total)
        return self.nar[self.first:]

    def say_nothing(self):
        """Until the other side goes away."""
        while self.connection.recv(65536):
            pass

    def reset(self):
        """End the connection as a machine does that has lost it."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@dataclass
class Machine:
    """One of the machines it plays: where, what it has, what it does with a request for the NAR."""
    address: str
    path: object
    narinfo: bytes
    nar: bytes
    behave: object
    asked: list = field(default_factory=list)


class Hostile:
    """All of them. A context manager: they answer within it.

    `machines` are of `Machine`; each answers for its own path and no other.
    """

    def __init__(self, host, machines):
        self._host = host
        self._machines = machines
        self._by_hash = {machine.path.hash: machine for machine in machines}
        self._stopping = threading.Event()
        self._threads = []
        self._listeners = []
        self._open = set()

    def __enter__(self):
        for machine in self._machines:
            self._host.ip(f"address add {machine.address}/24 dev lan0")
        with self._host.network():
            # Broadcasts reach only who listens on no address in particular.
            self._ears = self._udp("0.0.0.0")
            self._mouths = {machine.address: self._udp(machine.address) for machine in self._machines}
            for machine in self._machines:
                listener = socket.create_server((machine.address, PORT), backlog=128)
                self._listeners.append(listener)
                self._start(self._accept, listener, machine)
        self._start(self._hear)
        return self

    def __exit__(self, *_):
        self._stopping.set()
        for sock in [*self._listeners, *self._open]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for sock in [*self._listeners, self._ears, *self._mouths.values()]:
            sock.close()
        for machine in self._machines:
            self._host.ip(f"address delete {machine.address}/24 dev lan0")

    def _start(self, work, *arguments):
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _udp(self, address):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, PORT))
        sock.settimeout(0.1)
        return sock

    def _hear(self):
        while not self._stopping.is_set():
            try:
                datagram, asker = self._ears.recvfrom(2048)
            except TimeoutError:
                continue
            parsed = wire.parse(datagram)
            if parsed is None:
                continue
            kind, number, rest = parsed
            if kind == wire.REQUEST:
                for machine in self._machines:
                    if machine.path.hash == rest:
                        path = f"local/{rest}.narinfo".encode()
                        answer = struct.pack(">BII", wire.RESPONSE, number, PORT) + path
                    else:
                        answer = struct.pack(">BI", wire.ABSENT, number)
                    self._mouths[machine.address].sendto(answer, asker)
            elif kind == wire.HELLO:
                for instance, machine in enumerate(self._machines, 1):
                    answer = struct.pack(">BIQHHQ", wire.HERE, number, instance, 1, PORT, 1)
                    self._mouths[machine.address].sendto(answer, asker)

    def _accept(self, listener, machine):
        while not self._stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._open.add(connection)
            self._start(self._serve, connection, machine)

    def _serve(self, connection, machine):
        """One connection: the narinfo as it should be, the NAR as told; what fails ends it."""
        try:
            with connection, contextlib.suppress(OSError):
                while head := self._head(connection):
                    target = head.split(" ")[1]
                    machine.asked.append(target)
                    if target.endswith(".narinfo"):
                        length = f"Content-Length: {len(machine.narinfo)}"
                        connection.sendall(f"HTTP/1.1 200 OK\r\n{length}\r\n\r\n".encode() + machine.narinfo)
                        continue
                    if not target.endswith(".nar"):
                        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                        continue
                    found = re.search(r"^range: bytes=(\d+)-", head, re.IGNORECASE | re.MULTILINE)
                    if not machine.behave(Request(connection, machine.nar, int(found[1]) if found else 0)):
                        return
        finally:
            self._open.discard(connection)

    @staticmethod
    def _head(connection):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = connection.recv(4096)
            if not piece:
                return None
            head += piece
        return head.decode()


# What it can do with a request for a NAR. True: the connection is fit for another request.

def corrupt(request):
    """One bit is wrong, in the middle."""
    middle = len(request.nar) // 2
    wrong = bytearray(request.nar)
    wrong[middle] ^= 1
    request.right_head()
    request.send(wrong[request.first:])


def short(request):
    """It announces less than the NAR has."""
    request.head(len(request.nar) - 1)
    request.send(request.nar[:-1])


def cut(request):
    """It ends before what it announced."""
    request.send(request.right_head()[:-9])


def endless(request):
    """It has no length and no end."""
    request.head()
    while True:
        request.send(request.nar)


def silent(request):
    """Headers, and then nothing."""
    request.right_head()
    request.say_nothing()


def mute(request):
    """Not even headers."""
    request.say_nothing()


def trickle(request):
    """A byte a second, or a little more."""
    for byte in request.right_head():
        request.send(bytes([byte]))
        time.sleep(0.8)


def reset(request):
    """The connection breaks in the middle."""
    right = request.right_head()
    request.send(right[:len(right) // 2])
    request.reset()


def not_found(request):
    """It has it no more."""
    request.head(0, "404 Not Found")
    return True


def busy(request):
    """It has no time."""
    request.head(0, "503 Service Unavailable", "Retry-After: 1")
    return True


def redirect(request):
    """It sends the asker elsewhere."""
    request.head(0, "302 Found", f"Location: http://{address(0)}:{PORT}{TRAP}")
    return True


def compressed(request):
    """It says that it has compressed the right bytes."""
    request.head(len(request.nar), "200 OK", "Content-Encoding: gzip")
    request.send(request.nar)


def headers(request):
    """Headers without end."""
    request.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        request.send(b"X-Header: value\r\n" * 1000)
