"""The datagrams of port 12304, written from the specification and from what the old peerix sends.

All numbers are big-endian. The tests compare bytes with these, never with the daemon's own code.

| type | bytes |
|---|---|
| request | `00`, id u32, store hash: 32 ASCII characters |
| response | `01`, id u32, HTTP port u32, URL path |
| ask | `02`, id u32, version u8, flags u8, HTTP port u16, instance u64, count u8, then count x 20 bytes: store hashes |
| answer | `03`, id u32, version u8, flags u8, HTTP port u16, instance u64, count u8, then 2 bits a hash, the first ones highest |
"""

import os
import struct
import time
from dataclasses import dataclass

PORT = 12304
REQUEST, RESPONSE, ASK, ANSWER = range(4)
ABSENT, PRESENT, ON_ITS_WAY, UNKNOWN = range(4)

# Bit 0 of the flags of an ask: answer only if a state is not ABSENT.
ONLY_IF_ANY = 1

VERSION = 1
MOST_HASHES = 56
HASH_BYTES = 20
INSTANCE = 0x1122334455667788

NIX32 = "0123456789abcdfghijklmnpqrsvwxyz"
HEADER = struct.Struct(">BIBBHQB")

# An answer that does not come, or says UNKNOWN, is asked for again after so many seconds.
REPEAT_SECONDS = 0.2


@dataclass(frozen=True)
class Message:
    """An ask or an answer. body: the hashes of an ask (text), the states of an answer."""
    kind: int
    number: int
    version: int
    flags: int
    port: int
    instance: int
    body: tuple


@dataclass(frozen=True)
class Reply:
    """What a question for one hash came to: its state, the whole answer, and the seconds from the last datagram sent."""
    state: int
    answer: Message
    seconds: float


def new_id():
    """A random id."""
    return int.from_bytes(os.urandom(4))


def hash_bytes(store_hash):
    """The 20 bytes that the 32 characters stand for: the last digit is the lowest."""
    number = 0
    for digit in store_hash:
        number = number << 5 | NIX32.index(digit)
    return number.to_bytes(HASH_BYTES, "little")


def hash_text(data):
    """The reverse."""
    number = int.from_bytes(data, "little")
    return "".join(NIX32[number >> 5 * place & 31] for place in reversed(range(32)))


def request(store_hash, number=None):
    """A question of the old peerix; returns (id, datagram)."""
    number = new_id() if number is None else number
    return number, struct.pack(">BI", REQUEST, number) + store_hash.encode()


def response(store_hash, number, port=PORT):
    """The old peerix's answer for a path that is there."""
    return struct.pack(">BII", RESPONSE, number, port) + f"local/{store_hash}.narinfo".encode()


def question(hashes, number=None, flags=0, port=PORT, instance=INSTANCE):
    """An ask for store hashes (none: who is there?); returns (id, datagram)."""
    number = new_id() if number is None else number
    head = HEADER.pack(ASK, number, VERSION, flags, port, instance, len(hashes))
    return number, head + b"".join(map(hash_bytes, hashes))


def answer(states, number, flags=0, port=PORT, instance=INSTANCE):
    """An answer with these states."""
    packed = bytearray((len(states) + 3) // 4)
    for place, state in enumerate(states):
        packed[place // 4] |= state << 6 - 2 * (place % 4)
    return HEADER.pack(ANSWER, number, VERSION, flags, port, instance, len(states)) + bytes(packed)


def parse(datagram):
    """(type, id, rest) of a datagram, rest as the type has it; None when it is cut or of another type."""
    if len(datagram) < 5:
        return None
    kind, number = struct.unpack(">BI", datagram[:5])
    rest = datagram[5:]
    if kind == REQUEST:
        return kind, number, rest.decode(errors="replace")
    if kind == RESPONSE and len(rest) >= 4:
        return kind, number, (struct.unpack(">I", rest[:4])[0], rest[4:].decode(errors="replace"))
    if kind not in (ASK, ANSWER) or len(datagram) < HEADER.size:
        return None
    _, _, version, flags, port, instance, count = HEADER.unpack(datagram[:HEADER.size])
    rest = datagram[HEADER.size:]
    if kind == ASK:
        if count > MOST_HASHES or len(rest) < HASH_BYTES * count:
            return None
        body = tuple(hash_text(rest[HASH_BYTES * place:HASH_BYTES * (place + 1)]) for place in range(count))
    else:
        if len(rest) < (count + 3) // 4:
            return None
        body = tuple(rest[place // 4] >> 6 - 2 * (place % 4) & 3 for place in range(count))
    return kind, number, Message(kind, number, version, flags, port, instance, body)


def ask(host, target, store_hash, bound=2.0, sock=None):
    """Ask `target` (an address) from `host` for one hash, as a peer does: again until the answer is a state.

    Returns a `Reply`, or None when none came within `bound` seconds.
    """
    sock = sock or host.udp(bound=bound)
    end = time.perf_counter() + bound
    while time.perf_counter() < end:
        number, datagram = question([store_hash])
        sent = time.perf_counter()
        sock.sendto(datagram, (target, PORT))
        # A host that sleeps keeps the first one: only an answer that says nothing is a reason to hurry.
        answers = (said for said in _received(sock, target, end) if said[:2] == (ANSWER, number) and len(said[2].body) == 1)
        answer = next(answers, None)
        if answer is None:
            return None
        state, = answer[2].body
        if state != UNKNOWN:
            return Reply(state, answer[2], time.perf_counter() - sent)
        time.sleep(min(REPEAT_SECONDS, max(0, end - time.perf_counter())))
    return None


def _received(sock, target, end):
    """What comes from `target` until then, parsed."""
    while (left := end - time.perf_counter()) > 0:
        sock.settimeout(left)
        try:
            said, (source, _) = sock.recvfrom(2048)
        except TimeoutError:
            return
        parsed = parse(said)
        if source == target and parsed:
            yield parsed


def ask_as_old(host, target, store_hash, bound=2.0, sock=None):
    """Ask as the old peerix does; returns the (port, URL path) of its response, None when none came."""
    sock = sock or host.udp(bound=bound)
    number, datagram = request(store_hash)
    end = time.perf_counter() + bound
    sock.sendto(datagram, (target, PORT))
    responses = (said[2] for said in _received(sock, target, end) if said[:2] == (RESPONSE, number))
    return next(responses, None)
