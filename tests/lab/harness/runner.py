"""Finds the lab's tests, runs them, prints a line for each and keeps the journals of failures."""

import fnmatch
import importlib
import os
import re
import sys
import time
import unittest
from pathlib import Path

from . import sandbox

TESTS = Path(__file__).resolve().parents[1]


def failures_directory():
    """Where the journals of failing hosts go."""
    top = Path(os.environ.get("PEERIX_LAB_FAILURES", "/tmp/peerix-lab-failures"))
    return top / sandbox.run_id()


def find(patterns):
    """The tests whose `file.Class.method` matches a pattern or has it in its name; all without patterns."""
    sys.path.insert(0, str(TESTS))
    loader = unittest.TestLoader()
    chosen = []
    for file in sorted(TESTS.glob("test_*.py")):
        module = importlib.import_module(file.stem)
        chosen += [test for test in _flat(loader.loadTestsFromModule(module))
                   if not patterns or any(p in test.id() or fnmatch.fnmatch(test.id(), p) for p in patterns)]
    return chosen


def _flat(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from _flat(item)
        else:
            yield item


def run(tests):
    """Run them in order; returns (passed, failed, skipped)."""
    result = _Result()
    unittest.TestSuite(tests).run(result)
    # A class whose lab did not come up fails once, before its tests, and a test can fail twice, in
    # its cleaning up too: what counts is how many did not pass.
    failed = max(len(tests) - result.passed - result.skips, 1 if result.failed else 0)
    for name, text in result.failed:
        print(f"\n--- {name}\n{text}")
    if failed and failures_directory().exists():
        print(f"journals of the failing hosts: {failures_directory()}")
    return result.passed, failed, result.skips


class _Result(unittest.TestResult):
    """One line for each test, as it ends."""

    def __init__(self):
        super().__init__()
        self.passed = self.skips = 0
        self.failed = []
        self._started = time.monotonic()

    def startTest(self, test):
        super().startTest(test)
        self._started = time.monotonic()

    def addSuccess(self, test):
        self.passed += 1
        self._line("ok", test, getattr(test, "note", ""))

    def addSkip(self, test, reason):
        self.skips += 1
        self._line("skip", test, reason)

    def addFailure(self, test, error):
        self._failure(test, error)

    def addError(self, test, error):
        self._failure(test, error)

    def addSubTest(self, test, subtest, error):
        if error:
            self._failure(subtest, error)

    def _failure(self, test, error):
        name = _name(test)
        self.failed.append((name, self._exc_info_to_string(error, test)))
        self._line("FAIL", test, str(error[1]).splitlines()[0] if str(error[1]) else repr(error[1]))
        lab = getattr(getattr(test, "test_case", test), "lab", None)
        if lab:
            _keep_journals(lab, failures_directory() / name)

    def _line(self, verdict, test, note=""):
        seconds = time.monotonic() - self._started
        print(f"{verdict:4} {seconds:6.1f} s  {_name(test)}{'  (' + note + ')' if note else ''}", flush=True)


def _name(test):
    """`file.Class.method`, fit for a file name too."""
    return re.sub(r"[^\w.-]", "_", test.id())


def _keep_journals(lab, directory):
    """The whole journal and the state of the units of each host; a dead host must not hide the rest."""
    directory.mkdir(parents=True, exist_ok=True)
    for host in lab.hosts:
        for name, command in (("journal", "journalctl --no-pager -o short-precise"),
                              ("units", "systemctl status --no-pager -l peerix.socket peerix.service; ss -tunap; ip addr")):
            try:
                text = host.run(command, check=False, bound=20).stdout
            except Exception as error:
                text = f"could not be read: {error}\n"
            (directory / f"{host.name}.{name}").write_text(text)
