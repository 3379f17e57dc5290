"""`peerix refresh`: Nix asks again for what the neighbours did not have a moment ago."""

import sqlite3

from harness.case import LabCase, empty, full, wait_until

MEMORY = "/root/.cache/nix/binary-cache-v6.sqlite"
URL = "http://127.0.0.1:12304"
USER = "visitor"
USER_ID = 1234


class Refresh(LabCase):
    """`holder` has the closure, `asker` an empty store and no substituter but its gateway.

    In each test Nix first asks while the holder is deaf, and remembers the miss. Then the holder
    is back, and the gateway finds it: what fails from then on fails because of what Nix remembers.
    """

    nix_conf = ""

    @classmethod
    def specs(cls):
        return [full("holder"), empty("asker", nix_conf=cls.nix_conf)]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        asker = cls.lab.host("asker")
        # Debian lets only this group talk to the Nix daemon.
        asker.run(f"useradd --uid {USER_ID} --create-home --groups nix-users {USER}")
        asker.write(f"/etc/sudoers.d/{USER}", f"{USER} ALL=(root) NOPASSWD: /usr/bin/peerix refresh\n", mode=0o440)

    def setUp(self):
        super().setUp()
        self.holder, self.asker = self.lab.hosts
        self.forget(self.asker, self.closure.paths)
        self.path = self.closure.chain[0]

    # Steps

    def realise(self, command="nix-store -r", check=False):
        """Ask Nix for the path; whether it got it."""
        return self.asker.run(f"{command} {self.path.path}", check=check, bound=120).returncode == 0

    def let_nix_remember_a_miss(self, command="nix-store -r", memory=MEMORY):
        """Nobody has the path when Nix asks; then somebody has, and Nix does not ask again."""
        self.holder.run("systemctl stop peerix.socket peerix.service")
        self.assertFalse(self.realise(command), "it came from somewhere while the holder was deaf")
        self.assertEqual(self.remembered(memory), (1, 0))
        self.holder.run("systemctl start peerix.socket")
        wait_until(lambda: self.status_of(self.asker, f"/{self.path.hash}.narinfo") == 200, 10,
                   "the gateway has the path to offer")
        self.assertFalse(self.realise(command), "Nix remembers no miss, and this test proves nothing")
        self.assertEqual(self.remembered(memory), (1, 0))

    def refresh(self, command="peerix refresh"):
        """Run it and return its lines."""
        return self.asker.run(command).stdout.splitlines()

    def remembered(self, memory=MEMORY):
        """How many misses and hits of the gateway are in a database of Nix's."""
        with sqlite3.connect(f"file:{self.asker.path(memory)}?mode=ro", uri=True) as connection:
            return connection.execute(
                "select coalesce(sum(present = 0), 0), coalesce(sum(present = 1), 0) from NARs"
                " where cache in (select id from BinaryCaches where url = ?)", [URL]).fetchone()

    def files_of_memory(self, directory="/root/.cache/nix"):
        """Names and owners of the files there."""
        return {p.name: p.stat().st_uid for p in self.asker.path(directory).iterdir()}

    # Tests

    def test_root_without_a_daemon_gets_the_path_after_a_refresh(self):
        """The store is opened directly."""
        self.let_nix_remember_a_miss("NIX_REMOTE=local nix-store -r")
        before = self.files_of_memory()
        self.assertEqual(self.refresh(), [f"forgot 1 miss of {URL} in {MEMORY}"])
        self.assertEqual(self.files_of_memory(), before)
        self.realise("NIX_REMOTE=local nix-store -r", check=True)
        self.assert_valid(self.asker, [self.path])
        self.assertEqual(self.refresh(), [f"no misses of {URL} in {MEMORY}"])
        self.assertEqual(self.remembered(), (0, 1), "the hit is still known")

    def test_the_memory_of_the_nix_daemon_is_that_of_root(self):
        """The daemon asks, a service of systemd without HOME."""
        ask = "NIX_REMOTE=daemon nix-store -r"
        self.let_nix_remember_a_miss(ask)
        self.assertEqual(self.refresh("env -u HOME peerix refresh"), [f"forgot 1 miss of {URL} in {MEMORY}"])
        self.realise(ask, check=True)
        self.assert_valid(self.asker, [self.path])

    def test_the_memory_is_found_where_the_unit_of_the_nix_daemon_says(self):
        """`XDG_CACHE_HOME` in a drop-in, with a blank in it; root's own memory is refreshed as well."""
        directory = "/var/cache/of nix"
        memory = f"{directory}/nix/binary-cache-v6.sqlite"
        self.asker.peerix.drop_in("nix-daemon.service", f'[Service]\nEnvironment="XDG_CACHE_HOME={directory}"\n')
        self.addCleanup(self.asker.run, ["rm", "-rf", directory])
        self.addCleanup(self.asker.run, "systemctl stop nix-daemon.service")
        self.addCleanup(self.asker.peerix.drop_in, "nix-daemon.service", None)
        self.asker.run("systemctl stop nix-daemon.service")
        ask = "NIX_REMOTE=daemon nix-store -r"
        self.let_nix_remember_a_miss(ask, memory)
        lines = self.refresh()
        self.assertIn(f"forgot 1 miss of {URL} in {memory}", lines)
        self.assertEqual(len(lines), 2, lines)
        self.realise(ask, check=True)

    def test_a_user_is_told_to_use_sudo_and_then_it_works(self):
        """Beside a daemon the user's own memory does not count; through sudo both are refreshed."""
        ask = as_user("nix-store -r")
        self.let_nix_remember_a_miss(ask)
        own = f"/home/{USER}/.cache/nix"
        mine = f"{own}/binary-cache-v6.sqlite"
        # What this user's Nix remembers when it asks by itself, from an evaluation for example.
        remember = (f"rm -rf {own} && mkdir -p {own} && cp /root/.cache/nix/* {own}"
                    f" && chown -R {USER}: /home/{USER}/.cache")
        self.asker.run(remember)
        told = self.asker.run(as_user("peerix refresh"), check=False)
        self.assertEqual((told.returncode, told.stdout), (77, f"forgot 1 miss of {URL} in {mine}\n"))
        self.assertIn("sudo peerix refresh", told.stderr)
        self.assertFalse(self.realise(ask), "the user's memory is not the daemon's")

        self.asker.run(remember)
        lines = self.refresh(as_user("sudo peerix refresh"))
        self.assertEqual(lines, [f"forgot 1 miss of {URL} in {memory}" for memory in (MEMORY, mine)])
        self.assertEqual(set(self.files_of_memory(own).values()), {USER_ID})
        self.assertEqual(set(self.files_of_memory().values()), {0})
        self.realise(ask, check=True)
        self.assert_valid(self.asker, [self.path])

    def test_refreshing_all_the_time_does_not_disturb_a_pull(self):
        """The whole closure, while misses come and are forgotten; what Nix found it still knows."""
        for remote in ("local", "daemon"):
            with self.subTest(remote):
                self.forget(self.asker, self.closure.paths)
                self.assert_holds(self.holder, self.path)
                pull = self.asker.spawn(
                    f"NIX_REMOTE={remote} exec nix-store -r {self.closure.top.path} > /root/pull.log 2>&1")
                self.addCleanup(pull.wait)
                self.addCleanup(pull.kill)
                refreshes = 0
                while pull.poll() is None:
                    missing = f"/nix/store/{refreshes:032}-missing"
                    self.asker.run(f"NIX_REMOTE={remote} nix-store -r {missing}", check=False)
                    self.assertEqual(self.refresh(), [f"forgot 1 miss of {URL} in {MEMORY}"])
                    refreshes += 1
                self.assertEqual(pull.wait(), 0, self.asker.path("/root/pull.log").read_text()[-3000:])
                self.assertGreater(refreshes, 5, "too few to mean anything")
                self.assert_valid(self.asker, self.closure.paths)
                self.assertEqual(self.remembered(), (0, len(self.closure.paths)))
                self.note = f"{getattr(self, 'note', '')} {remote}: {refreshes} refreshes".strip()


class RefreshWithoutWriteAheadLogs(Refresh):
    """The same with a Nix that locks its databases by directories, as on NFS."""

    nix_conf = "use-sqlite-wal = false\n"

    def test_nix_locks_by_directories_here(self):
        """Otherwise the other tests of this class show nothing that those of the first do not."""
        self.asker.run("NIX_REMOTE=local strace -f -qq -e trace=mkdir -o /root/trace"
                       f" nix-store -r {self.path.path}")
        self.assertIn(f'mkdir("{MEMORY}.lock"', self.asker.path("/root/trace").read_text())


def as_user(command):
    """The command line as an ordinary user of the asker, with a login's environment."""
    return (f"exec setpriv --reuid {USER_ID} --regid {USER_ID} --init-groups"
            f" env HOME=/home/{USER} USER={USER} LOGNAME={USER} {command}")
