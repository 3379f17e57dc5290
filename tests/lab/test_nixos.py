"""The units as services.peerix makes them: they expose little, and pull as the plain ones do."""

import contextlib
import re
import time

from harness import nixos
from harness.case import LabCase, empty, full, http, wait_until
from harness.peerix import PORT
from test_units import MOST_EXPOSURE

SECRET = "/run/secrets/peerix"


class Nixos(LabCase):
    """`holder` has the closure, `asker` an empty store; what the module makes is laid over their units."""

    @classmethod
    def specs(cls):
        return [full("holder"), empty("asker")]

    def setUp(self):
        super().setUp()
        self.holder, self.asker = self.lab.hosts
        self.forget(self.asker, self.closure.paths)
        for host in self.lab.hosts:
            # The user and group of the cases that name one.
            for file, entry in (("passwd", "peers:x:4711:4712::/:/usr/sbin/nologin"), ("group", "peers:x:4712:")):
                text = host.path(f"/etc/{file}").read_text()
                if entry not in text:
                    host.write(f"/etc/{file}", f"{text}{entry}\n")
        self._stack = contextlib.ExitStack()
        self.addCleanup(self._stack.close)

    def configure(self, *hosts, name):
        """Have `hosts` as the case of this name says, until the end of the test or of `undo`."""
        made = nixos.cases()[name]
        for host in hosts:
            self._stack.enter_context(nixos.Configured(host, made))
        return made

    def undo(self):
        """The plain units again."""
        self._stack.close()

    def lay_key(self, *hosts):
        """The secret key of the lab, for root alone."""
        for host in hosts:
            host.run(["install", "-D", "-m", "600", "/dev/stdin", SECRET], stdin=self.closure.secret_key)
            self.addCleanup(host.run, ["rm", "-f", SECRET])

    def test_every_variant_is_clean_and_exposes_little(self):
        """`systemd-analyze verify` is silent, `security` says at most 1.2."""
        worst = 0.0
        self.assertGreater(len(nixos.cases()), 12)
        for name in nixos.cases():
            with self.subTest(name):
                made = self.configure(self.holder, name=name)
                units = " ".join(made["units"])
                done = self.holder.run(f"systemd-analyze verify --man=no {units}")
                # Keys with X- are for NixOS; systemd passes over them.
                self.assertEqual((done.stdout + done.stderr).strip(), "", name)
                text = self.holder.run("systemd-analyze security --no-pager peerix.service", check=False).stdout
                exposure = float(re.search(r"Overall exposure level for peerix\.service: ([\d.]+)", text)[1])
                self.assertLessEqual(exposure, MOST_EXPOSURE, f"{name}:\n{text}")
                worst = max(worst, exposure)
                self.undo()
        self.note = f"{len(nixos.cases())} variants, exposure at most {worst}"

    def test_a_closure_comes_through_each_kind_of_unit(self):
        """The same pull as with the plain units: nothing set, a user of its own, another port, a key."""
        times = []
        for name in ("defaults", "old-user-ids", "other-port", "own-builds", "every-kind-of-setting"):
            with self.subTest(name):
                self.lay_key(self.holder, self.asker)
                self.configure(self.holder, self.asker, name=name)
                # Without broadcast, as every-kind-of-setting has it, the holder has to be named.
                if name == "every-kind-of-setting":
                    settings = self.asker.path("/etc/peerix/peerix.toml")
                    text = settings.read_text().replace('"10.0.0.1"', f'"{self.holder.address}"')
                    text = text.replace('"cache.example.org-1"', f'"{self.holder.build.public_key}"')
                    for host in (self.asker, self.holder):
                        host.write("/etc/peerix/peerix.toml", text.replace('"10.0.0.0/8"', '"192.168.77.0/24"'))
                for host in (self.holder, self.asker):
                    self.assertFalse(host.peerix.awake())
                began = time.monotonic()
                self.pull(self.asker, self.closure.top)
                times.append(f"{name} {time.monotonic() - began:.1f} s")
                self.assert_valid(self.asker, self.closure.paths)
                self.assert_no_lost_socket()
                self.forget(self.asker, self.closure.paths)
                self.undo()
        self.note = ", ".join(times)

    def test_the_process_is_the_user_that_was_chosen(self):
        """Dynamic without `user`, else the one named, and never root."""
        for name, wanted in (("defaults", None), ("old-group-alone", None), ("old-user-ids", ["4711", "4712"])):
            with self.subTest(name):
                self.configure(self.holder, name=name)
                self.assert_holds(self.holder, self.closure.chain[0])
                process, = wait_until(self.holder.peerix.processes, 2, "it is one process")
                with open(f"/proc/{process}/status") as file:
                    status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
                user, group = status["Uid"].split()[0], status["Gid"].split()[0]
                if wanted:
                    self.assertEqual([user, group], wanted)
                else:
                    self.assertTrue(61184 <= int(user) <= 65519, user)
                self.assertEqual(int(status["CapEff"], 16), 0)
                self.undo()

    def test_a_key_that_only_root_can_read_signs_own_builds(self):
        """LoadCredential= hands it over; it comes before one in the credential store."""
        self.lay_key(self.holder)
        self.configure(self.holder, name="own-builds")
        self.holder.write("/etc/credstore/peerix.signing-key", "other-1:" + self.closure.secret_key.split(":", 1)[1], mode=0o600)
        self.addCleanup(self.holder.path("/etc/credstore/peerix.signing-key").unlink)
        path = self.holder.run(["nix-build", "--no-out-link", "-E",
                                'derivation { name = "made-here"; system = builtins.currentSystem; builder = "/bin/sh"; '
                                'args = [ "-c" "echo made > $out" ]; }']).stdout.strip()
        self.holder.run("systemctl restart peerix.service")
        answer = http.get(self.asker, f"/local/{path.removeprefix('/nix/store/')[:32]}.narinfo", self.holder.address)
        self.assertEqual(answer.status, 200)
        self.assertTrue(answer.field("Sig").startswith("lab-1:"), answer.field("Sig"))

    def test_a_key_that_is_not_there_costs_misses_and_is_named(self):
        """A service that cannot start would leave Nix waiting; this one starts, answers 404 and says why."""
        self.configure(self.holder, name="own-builds")
        path = self.closure.chain[0]
        for bound in (5, 0.5):
            answer = http.get(self.holder, f"/{path.hash}.narinfo", bound=5)
            self.assertEqual(answer.status, 404)
            self.assertLess(answer.seconds, bound)
        state = self.holder.run("systemctl status --no-pager peerix.service").stdout
        self.assertRegex(state, "Status: .*cannot sign: .*could not be read")
        # And when it is there, a restart is all that it takes.
        self.lay_key(self.holder)
        self.holder.run("systemctl restart peerix.service")
        self.assertEqual(http.get(self.holder, f"/local/{path.hash}.narinfo").status, 200)

    def test_settings_are_taken_by_a_reload(self):
        """What NixOS does for X-Reload-Triggers= at a switch: the process stays, the rule is new."""
        self.configure(self.holder, name="nothing-shared")
        path = f"/local/{self.closure.chain[0].hash}.narinfo"
        self.assertEqual(http.get(self.asker, path, self.holder.address).status, 404)
        before = self.holder.peerix.processes()
        self.holder.peerix.configure(nixos.cases()["defaults"]["files"]["peerix/peerix.toml"])
        self.holder.run("systemctl reload peerix.service")
        self.assertEqual(http.get(self.asker, path, self.holder.address).status, 200)
        self.assertEqual(self.holder.peerix.processes(), before)

    def test_another_port_is_the_only_one(self):
        """The packaged port is taken back, for datagrams as for connections."""
        self.configure(self.holder, name="other-port")
        listed = self.holder.run("ss -Hltun").stdout
        self.assertIn(":8080", listed)
        self.assertNotIn(f":{PORT}", listed)
