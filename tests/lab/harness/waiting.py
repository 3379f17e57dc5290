"""Waiting for an event, with a bound."""

import time


def wait_until(condition, bound, what, every=0.02):
    """Return the first true result of `condition()`; fail after `bound` seconds, saying `what` was awaited."""
    end = time.monotonic() + bound
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() >= end:
            raise AssertionError(f"not within {bound} s: {what}")
        time.sleep(every)
