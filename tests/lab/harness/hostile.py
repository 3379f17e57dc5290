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
class Item:
    """A path that a machine says it has: its narinfo, its NAR, and what it does when asked for either.

    narinfo is the text, or a function of the connection that answers; behave is one of a `Request`.
    Both may be changed while the machine answers.
    """
    path: object
    narinfo: object
    nar: bytes = b""
    behave: object = None


@dataclass
class Machine:
    """One of the machines it plays: where it is, what it says it has, and what it was asked for."""
    address: str
    items: list
    asked: list = field(default_factory=list)

    def __post_init__(self):
        self.by_hash = {item.path.hash: item for item in self.items}


class Hostile:
    """All of them. A context manager: they answer within it.

    `machines` are of `Machine`; each answers for its own paths and no others.
    """

    def __init__(self, host, machines):
        self._host = host
        self._machines = machines
        self._stopping = threading.Event()
        self._threads = []
        self._listeners = []
        self._open = set()

    def __enter__(self):
        for machine in self._machines:
            self._host.ip(f"address add {machine.address}/24 dev lan0")
        with self._host.network():
            # Broadcasts reach only who listens on no address in particular, all else who listens on its own.
            ears = self._udp("0.0.0.0")
            self._mouths = {machine.address: self._udp(machine.address) for machine in self._machines}
            self._sockets = [ears, *self._mouths.values()]
            for machine in self._machines:
                listener = socket.create_server((machine.address, PORT), backlog=128)
                self._listeners.append(listener)
                self._start(self._accept, listener, machine)
        self._start(self._hear, ears, self._machines)
        for machine in self._machines:
            self._start(self._hear, self._mouths[machine.address], [machine])
        return self

    def __exit__(self, *_):
        self._stopping.set()
        for sock in [*self._listeners, *self._open]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for sock in [*self._listeners, *self._sockets]:
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

    def _hear(self, sock, machines):
        """Answer what comes to a socket, each machine for itself."""
        while not self._stopping.is_set():
            try:
                datagram, asker = sock.recvfrom(2048)
            except TimeoutError:
                continue
            parsed = wire.parse(datagram)
            if parsed is None:
                continue
            kind, number, rest = parsed
            for machine in machines:
                said = None
                if kind == wire.REQUEST and rest in machine.by_hash:
                    said = wire.response(rest, number, PORT)
                elif kind == wire.ASK:
                    states = [wire.PRESENT if one in machine.by_hash else wire.ABSENT for one in rest.body]
                    if any(states) or not rest.flags & wire.ONLY_IF_ANY:
                        said = wire.answer(states, number, port=PORT, instance=self._machines.index(machine) + 1)
                if said:
                    self._mouths[machine.address].sendto(said, asker)

    def _accept(self, listener, machine):
        while not self._stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self._open.add(connection)
            self._start(self._serve, connection, machine)

    def _serve(self, connection, machine):
        """One connection: narinfos and NARs as their items say; what fails ends it."""
        try:
            with connection, contextlib.suppress(OSError):
                while head := self._head(connection):
                    target = head.split(" ")[1]
                    machine.asked.append(target)
                    found = re.search(r"/([0-9a-z]{32})[^/]*\.(narinfo|nar)$", target)
                    item = found and machine.by_hash.get(found[1])
                    if item is None:
                        connection.sendall(NOT_FOUND)
                    elif found[2] == "narinfo":
                        if callable(item.narinfo):
                            if not item.narinfo(connection):
                                return
                        else:
                            give_narinfo(connection, item.narinfo)
                    else:
                        first = re.search(r"^range: bytes=(\d+)-", head, re.IGNORECASE | re.MULTILINE)
                        if not item.behave(Request(connection, item.nar, int(first[1]) if first else 0)):
                            return
        finally:
            self._open.discard(connection)

    @staticmethod
    def _head(connection):
        """The head of a request, whose body is read and forgotten; None when no more comes."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(4096)
            if not piece:
                return None
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        head = head.decode()
        length = re.search(r"^content-length: (\d+)", head, re.IGNORECASE | re.MULTILINE)
        missing = (int(length[1]) if length else 0) - len(body)
        while missing > 0 and (piece := connection.recv(min(missing, 65536))):
            missing -= len(piece)
        return head


NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def give_narinfo(connection, narinfo):
    """200 and this text."""
    connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(narinfo)}\r\n\r\n".encode() + narinfo)


def no_narinfo(connection):
    """404, after a yes over UDP."""
    connection.sendall(NOT_FOUND)
    return True


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


def good(request):
    """As an honest holder."""
    right = request.right_head()
    request.send(right)
    return True


def forbidden(request):
    """It must not."""
    request.head(0, "403 Forbidden")
    return True


def moved(request):
    """It sends the asker elsewhere for a while."""
    request.head(0, "307 Temporary Redirect", f"Location: http://{address(0)}:{PORT}{TRAP}")
    return True


def empty_body(request):
    """A NAR of no bytes."""
    request.head(0)
    return True


def reset_after_headers(request):
    """The connection breaks before the first byte."""
    request.right_head()
    request.reset()


def stall(request):
    """Half of it, and then nothing."""
    right = request.right_head()
    request.send(right[:len(right) // 2])
    request.say_nothing()
