"""A small HTTP client that asks from within a lab host."""

import http.client
import socket
import time
from dataclasses import dataclass


@dataclass
class Answer:
    """status, headers (lower-case names), body, and the seconds from before the connect to the last byte."""
    status: int
    headers: dict
    body: bytes
    seconds: float

    def field(self, name):
        """A field of the narinfo in the body, or None."""
        for line in self.body.decode().splitlines():
            key, _, value = line.partition(": ")
            if key == name:
                return value
        return None


def get(host, path, address="127.0.0.1", port=12304, method="GET", headers=(), bound=15.0):
    """One request from `host` on a connection of its own, closed at its end."""
    started = time.perf_counter()
    connection = http.client.HTTPConnection(address, port, timeout=bound)
    connection.sock = host.tcp(address, port, bound)
    connection.sock.settimeout(bound)
    try:
        connection.putrequest(method, path, skip_host="Host" in dict(headers), skip_accept_encoding=True)
        for name, value in (*headers, ("Connection", "close")):
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, body,
                  time.perf_counter() - started)


def raw(host, data, address="127.0.0.1", port=12304, bound=15.0, whole=True):
    """Send bytes as they are and return all that comes back; not `whole`: nothing more will come, so close our half."""
    with host.tcp(address, port, bound) as sock:
        sock.sendall(data)
        if not whole:
            sock.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := sock.recv(65536):
            answer += piece
    return answer


class Connection:
    """One connection that is kept, as Nix keeps its own: `ask` sends a path and times its answer."""

    def __init__(self, host, address="127.0.0.1", port=12304, bound=15.0):
        self._sock = host.tcp(address, port, bound)
        self._sock.settimeout(bound)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._sock.close()

    def ask(self, path):
        """The status of the answer to a GET, and the seconds from its first byte to the answer's last."""
        question = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        started = time.perf_counter()
        self._sock.sendall(question)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._receive()
        head, _, body = answer.partition(b"\r\n\r\n")
        status, *fields = head.decode().split("\r\n")
        lengths = [field.split(":")[1] for field in fields if field.lower().startswith("content-length:")]
        missing = int(lengths[0]) - len(body)
        while missing > 0:
            missing -= len(self._receive())
        return int(status.split(" ")[1]), time.perf_counter() - started

    def _receive(self):
        piece = self._sock.recv(65536)
        if not piece:
            raise ConnectionError("the connection was closed within an answer")
        return piece
