"""What every test class of the lab inherits: its hosts, and the questions tests ask."""

import functools
import unittest

from . import http, peerix, wire
from .closure import closure
from .host import Spec
from .lan import Lab
from .paths import Maker
from .peerix import Build
from .waiting import wait_until


@functools.cache
def the_closure():
    """The closure, looked up once a run."""
    return closure()


def full(name, **options):
    """A host whose store has the whole closure."""
    return Spec(name, stores=(the_closure().full_store,), **options)


def half(name, **options):
    """A host whose store has half of it."""
    return Spec(name, stores=(the_closure().half_store,), **options)


def empty(name, **options):
    """A host with an empty store."""
    return Spec(name, **options)


class LabCase(unittest.TestCase):
    """Tests that share one lab. Before each of them every daemon is asleep and as installed.

    A class says its hosts in `specs()`; they are `self.lab.hosts` in this order.
    """

    lab = None

    @classmethod
    def specs(cls):
        """The hosts of this class's lab."""
        raise NotImplementedError

    @classmethod
    def setUpClass(cls):
        cls.closure = the_closure()
        lab = Lab(cls.specs(), Build(peerix.binary(), cls.closure.public_key))
        lab.__enter__()
        cls.addClassCleanup(lab.__exit__)
        cls.lab = lab

    def setUp(self):
        for host in self.lab.hosts:
            if host.spec.peerix:
                host.peerix.reset()

    # What is asked often

    def status_of(self, host, path, **options):
        """The HTTP status of a GET from `host`."""
        return http.get(host, path, **options).status

    def statuses_of(self, host, paths):
        """The statuses of the narinfos of these paths at the host's gateway, one after the other on one connection."""
        with http.Connection(host) as connection:
            return [connection.ask(f"/{path.hash}.narinfo")[0] for path in paths]

    def assert_all_found(self, host, paths):
        """Every one of them at its first question."""
        statuses = self.statuses_of(host, paths)
        self.assertEqual(statuses.count(200), len(paths), f"{statuses.count(200)} of {len(paths)}")

    def assert_no_lost_socket(self, *hosts):
        """Every socket unit still listens."""
        for host in hosts or self.lab.hosts:
            self.assertTrue(host.peerix.socket_listens(), f"{host.name}: peerix.socket is not active")

    def assert_holds(self, host, path):
        """`host` answers for a path of its own, over UDP and HTTP; wakes it if it sleeps."""
        asker = next(other for other in self.lab.hosts if other is not host)
        answer = wire.ask(asker, host.address, path.hash, bound=5)
        self.assertIsNotNone(answer, f"{host.name} did not answer for {path.name}")
        self.assertEqual(answer.state, wire.PRESENT)
        self.assertEqual(http.get(asker, f"/local/{path.hash}.narinfo", host.address).status, 200)

    def pull(self, host, path, bound=180):
        """`nix-store -r` on a host whose only substituter is its gateway."""
        host.run(["nix-store", "-r", path.path], bound=bound)

    def forget(self, host, paths):
        """Take paths (and what needs them) out of the host's store, and Nix's memory of substituters with them."""
        present = [p.path for p in paths if host.path(p.path).exists()]
        if present:
            host.run(["nix-store", "--delete", "--ignore-liveness", *present], bound=120)
        host.run("rm -rf /root/.cache/nix")

    def assert_valid(self, host, paths):
        """The store says that it has them, and its contents are byte for byte what their hashes say."""
        host.run(["nix-store", "--check-validity", *[p.path for p in paths]])
        host.run(["nix-store", "--verify", "--check-contents"], bound=120)


class PairCase(LabCase):
    """Two hosts: `holder`, where `maker` makes paths, and `asker`."""

    @classmethod
    def specs(cls):
        return [empty("holder"), empty("asker")]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.holder, cls.asker = cls.lab.hosts
        cls.maker = Maker(cls.holder, cls.closure)


class LinkedCase(PairCase):
    """The same, with `asker` at the end of `link`, which is as new before each test."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        link = cls.lab.link(cls.asker)
        cls.link = link.__enter__()
        cls.addClassCleanup(link.__exit__, None, None, None)

    def setUp(self):
        super().setUp()
        self.link.set()
        self.addCleanup(self.link.cut, False)
        self.addCleanup(self.link.carrier, True)


__all__ = ["LabCase", "LinkedCase", "PairCase", "empty", "full", "half", "http", "wire", "wait_until"]
