"""How fast this machine is just now, which limits in fractions of a millisecond need to know."""

import os
import statistics
import time

# A datagram and its echo between two hosts, on the machine for which the limits were set and which did nothing else.
USUAL_ECHO_MS = 0.045


def echo_ms(asker, holder, count=2000):
    """Median milliseconds of a datagram and its echo, between two bare programs on these hosts."""
    with holder.udp() as echo, asker.udp() as client:
        child = os.fork()
        if child == 0:
            answer_until_empty(echo)
        client.connect((holder.address, echo.getsockname()[1]))
        times = []
        try:
            for _ in range(count):
                began = time.perf_counter()
                client.send(b"echo")
                client.recv(16)
                times.append(time.perf_counter() - began)
        finally:
            client.send(b"")
            os.waitpid(child, 0)
    return statistics.median(times) * 1000


def answer_until_empty(sock):
    """The child's part: ends the process, also when nothing comes any more."""
    try:
        while True:
            data, sender = sock.recvfrom(16)
            if not data:
                break
            sock.sendto(data, sender)
    finally:
        os._exit(0)


def slowness(asker, holder):
    """By how much this machine is slower now than the usual one; 1 at least. Limits are multiplied by it."""
    return max(1.0, echo_ms(asker, holder) / USUAL_ECHO_MS)
