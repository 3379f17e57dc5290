"""Asking without a pause while something else happens."""

import threading
import time


class Prober(threading.Thread):
    """Asks the same question again and again within a `with` block, and remembers the worst.

    The question returns what was wrong, or nothing; an OSError is wrong too.
    """

    def __init__(self, question):
        super().__init__(daemon=True)
        self._question = question
        self._over = threading.Event()
        self.asked, self.slowest, self.problems = 0, 0.0, []

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self.join()

    def run(self):
        while not self._over.wait(0.02):
            started = time.monotonic()
            try:
                problem = self._question()
            except OSError as error:
                problem = repr(error)
            if problem:
                self.problems.append(problem)
            self.slowest = max(self.slowest, time.monotonic() - started)
            self.asked += 1
