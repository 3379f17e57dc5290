"""The datagrams of port 12304, written from docs/protocol.md and from what the old peerix sends.

All numbers are big-endian. The tests compare bytes with these, never with the daemon's own code.

| type | bytes |
|---|---|
| request | `00`, id u32, store hash: 32 ASCII characters |
| response | `01`, id u32, HTTP port u32, URL path |
| absent | `02`, id u32 |
| hello, here | `03` or `04`, id u32, instance u64, version u16, HTTP port u16, generation u64 |
"""

import os
import struct
import time

REQUEST, RESPONSE, ABSENT, HELLO, HERE = range(5)
HELLO_BYTES = 25


def request(store_hash, number=None):
    """A question for a store hash; returns (id, datagram)."""
    number = int.from_bytes(os.urandom(4)) if number is None else number
    return number, struct.pack(">BI", REQUEST, number) + store_hash.encode()


def hello(number=None, instance=0x1122334455667788, version=1, port=12304, generation=0):
    """A hello; returns (id, datagram)."""
    number = int.from_bytes(os.urandom(4)) if number is None else number
    return number, struct.pack(">BIQHHQ", HELLO, number, instance, version, port, generation)


def parse(datagram):
    """(type, id, rest) of a datagram of ours; None when it is too short."""
    if len(datagram) < 5:
        return None
    kind, number = struct.unpack(">BI", datagram[:5])
    rest = datagram[5:]
    if kind == RESPONSE:
        rest = (struct.unpack(">I", rest[:4])[0], rest[4:].decode())
    elif kind == REQUEST:
        rest = rest.decode(errors="replace")
    return kind, number, rest


def ask(host, target, store_hash, bound=2.0, sock=None):
    """Ask `target` (an address) for a hash from `host`.

    Returns (type, rest, seconds) of its answer, or None when none came within `bound` seconds.
    """
    sock = sock or host.udp(bound=bound)
    number, datagram = request(store_hash)
    started = time.perf_counter()
    sock.sendto(datagram, (target, 12304))
    while (left := bound - (time.perf_counter() - started)) > 0:
        sock.settimeout(left)
        try:
            answer, (source, _) = sock.recvfrom(2048)
        except TimeoutError:
            return None
        parsed = parse(answer)
        if source == target and parsed and parsed[1] == number and parsed[0] in (RESPONSE, ABSENT):
            return parsed[0], parsed[2], time.perf_counter() - started
    return None
