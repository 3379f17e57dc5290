"""Promise 1 for a daemon that cannot do its work: it starts, says why, and answers 404.

A connection that is accepted and never answered hangs Nix for minutes; a service that ends at its
start would be started again and again. So no state of configuration, key, nix.conf or store ends
a start that systemd asked for.
"""

import contextlib
import sqlite3

from harness.case import LabCase, empty, full, http, wait_until
from harness.peerix import CONFIG, KEY

DATABASE = "/nix/var/nix/db"


class DegradedStart(LabCase):
    """`host` is broken in one way after the other; it has a LAN and a neighbour with all paths."""

    @classmethod
    def specs(cls):
        return [full("host"), full("neighbour"), empty("asker", peerix=False)]

    def setUp(self):
        super().setUp()
        self.host, self.neighbour, self.asker = self.lab.hosts
        # Only what the broken host itself says is of interest here.
        self.neighbour.run("systemctl stop peerix.socket")
        self.path = self.closure.chain[0]

    # The ways to be broken: each changes the host and says what the reason must name.

    def config(self, content):
        self.host.write(CONFIG, content)

    def break_syntax(self):
        self.config("[idle\ntimeout = 1\n")
        return r"peerix\.toml"

    def break_key_name(self):
        self.config("prot = 12304\n")
        return "prot"

    def break_value(self):
        self.config('[idle]\ntimeout = "soon"\n')
        return "timeout"

    def break_type(self):
        self.config('port = "many"\n')
        return "port"

    def break_encoding(self):
        self.config(b"\xff\xfe\x00port")
        return r"peerix\.toml"

    def break_config_into_a_directory(self):
        self.host.path(CONFIG).unlink()
        self.host.path(CONFIG).mkdir()
        self.addCleanup(self.host.path(CONFIG).rmdir)
        return r"peerix\.toml"

    def break_config_rights(self):
        self.host.write(CONFIG, "port = 12304\n", mode=0o600)
        return r"peerix\.toml"

    def break_credential(self):
        self.host.write(KEY, "this is no key", mode=0o600)
        return "key"

    def break_credential_by_emptying_it(self):
        self.host.write(KEY, "", mode=0o600)
        return "key"

    def break_key_file(self):
        self.config('[signing]\nkey-file = "/nonexistent/key"\n')
        return "/nonexistent/key"

    def break_trusted_key(self):
        self.change("/etc/nix/nix.conf", b"trusted-public-keys = lab-1:notbase64\n")
        return r"trusted-public-keys|lab-1|nix\.conf"

    def break_nix_conf(self):
        self.change("/etc/nix/nix.conf", b"\x00\xff\xfe no such = = file\n")
        return r"nix\.conf"

    def break_database_by_removing_it(self):
        self.without_database()
        return r"db\.sqlite|database"

    def break_database_with_garbage(self):
        self.without_database()
        self.host.write(f"{DATABASE}/db.sqlite", b"not a database, " * 1000)
        return r"db\.sqlite|database"

    def break_database_tables(self):
        self.without_database()
        with contextlib.closing(sqlite3.connect(self.host.path(f"{DATABASE}/db.sqlite"))) as other:
            other.execute("create table Cookies (flavour text)")
            other.commit()
        return r"db\.sqlite|database|ValidPaths"

    def break_database_rights(self):
        database = self.host.path(DATABASE)
        database.chmod(0o700)
        self.addCleanup(database.chmod, 0o755)
        return r"db\.sqlite|database"

    def change(self, inside, content):
        """Other content for a file until the end of the test."""
        path = self.host.path(inside)
        before = path.read_bytes()
        path.write_bytes(content)
        self.addCleanup(path.write_bytes, before)

    def without_database(self):
        """Nix's database is aside until the end of the test; nobody has it open."""
        self.host.run("systemctl stop nix-daemon.socket nix-daemon.service")
        database, aside = self.host.path(DATABASE), self.host.path(f"{DATABASE}.aside")
        aside.mkdir()

        def move_all(source, target):
            for file in source.iterdir():
                file.rename(target / file.name)

        def restore():
            for file in database.iterdir():
                file.unlink()
            move_all(aside, database)
            aside.rmdir()
        move_all(database, aside)
        self.addCleanup(restore)

    # What must hold for each

    def hold(self, break_it):
        """404 at once, one start, and a reason in the journal and in STATUS."""
        reason = break_it()
        starts, mark = self.host.peerix.starts(), self.host.peerix.cursor()
        cold = http.get(self.host, "/0123456789abcdfghijklmnpqrsvwxyz.narinfo", bound=5)
        self.assertEqual(cold.status, 404)
        # The first may contain the start of the process and the one wait of a burst for sleepers.
        self.assertLess(cold.seconds, 1.2, "with the start")
        warm = [http.get(self.host, f"/{self.path.hash[:-1]}{digit}.narinfo") for digit in "0123456789"]
        own = http.get(self.asker, f"/local/{self.path.hash}.narinfo", self.host.address)
        self.assertEqual({answer.status for answer in (*warm, own)}, {404})
        slowest = max(answer.seconds for answer in warm)
        self.assertLess(slowest, 0.1, "once it runs")
        self.assertEqual(self.host.peerix.show("ActiveState"), "active")
        self.assertEqual(self.host.peerix.starts(), starts + 1, "it was started more than once")
        self.assertEqual(self.host.peerix.show("NRestarts"), "0")
        self.assertRegex(self.host.peerix.said(since=mark, priority="warning"), reason)
        self.assertRegex(self.host.peerix.show("StatusText"), reason)
        self.assert_no_lost_socket(self.host)
        self.note = f"cold {cold.seconds * 1000:.0f} ms, then {slowest * 1000:.1f} ms"

    # And back

    def test_a_reload_after_the_repair_is_enough(self):
        """The degraded daemon becomes a whole one without a restart."""
        self.break_key_name()
        self.assertEqual(self.status_of(self.asker, f"/local/{self.path.hash}.narinfo", address=self.host.address), 404)
        before = self.host.peerix.processes()
        self.host.peerix.configure(None)
        self.host.run("systemctl reload peerix.service")
        wait_until(lambda: self.status_of(self.asker, f"/local/{self.path.hash}.narinfo", address=self.host.address) == 200,
                   2, "it shares after the reload")
        self.assertEqual(self.host.peerix.processes(), before)

    def test_without_a_database_the_gateway_works_all_the_same(self):
        """Holding nothing is no reason not to find what others hold."""
        self.neighbour.run("systemctl start peerix.socket")
        self.without_database()
        answer = http.get(self.host, f"/{self.path.hash}.narinfo")
        self.assertEqual((answer.status, answer.field("StorePath")), (200, self.path.path))


def _add_tests():
    """One test for each way to be broken."""
    for name in [n for n in vars(DegradedStart) if n.startswith("break_")]:
        def test(self, name=name):
            self.hold(getattr(self, name))
        test.__name__ = f"test_{name}_costs_nix_nothing"
        setattr(DegradedStart, test.__name__, test)


_add_tests()
