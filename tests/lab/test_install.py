"""Installing, upgrading and removing on a machine that never saw peerix: by systemd/install.sh, and by the Debian package."""

import re
import shutil
import subprocess
from pathlib import Path

from harness import peerix
from harness.case import LabCase, empty, full, half, wait_until, wire
from harness.prober import Prober

MIB = 1 << 20
SETTINGS = peerix.CONFIG
DROP_IN = "/run/systemd/system/peerix.service.d"
MASK = "/etc/systemd/system/peerix.socket"
UNITS = ("peerix.socket", "peerix.service", "peerix-refresh.path", "peerix-refresh.service")

# Where things change whatever is installed. Not in the list because they are file systems of their
# own, which `find -xdev` leaves out: /run, /tmp, /proc, /sys, /dev.
VOLATILE = {
    "/nix": "the tests' own pulls",
    "/root": "the source that is installed from, and Nix's memory",
    "/var/lib/apt": "apt's lists, for which it makes directories when it is first used",
    "/var/lib/dpkg": "dpkg's records, which keep backups and the names of purged packages",
    "/var/lib/systemd": "systemd's own state: timers, deb-systemd-helper, private directories",
    "/var/log": "logs of dpkg, apt and the journal",
    "/var/cache": "caches of apt and ldconfig",
    "/var/tmp": "private directories of units that run now",
}


class Ways:
    """What holds for each way to install. `target` is the machine; it has half of the closure and no peerix.

    `holder` has the closure, `asker` nothing; both run peerix. A way says how it does
    `install(version)`, with version 1 or 2, and `remove()`, both returning what was printed; where
    it puts the `binary`, and where it tells the line for nix.conf.
    """

    @classmethod
    def specs(cls):
        return [full("holder"), half("target", peerix=False), empty("asker")]

    def setUp(self):
        super().setUp()
        self.holder, self.target, self.asker = self.lab.hosts
        self.path = self.closure.chain[0]
        self.forget(self.asker, self.closure.paths)
        self.forget(self.target, [self.closure.blobs[2]])
        self.target.write("/etc/nix/nix.conf", "sandbox = false\nsubstituters =\n"
                          f"trusted-public-keys = {self.closure.public_key}\n")
        # A signing key is one of share.keys; outside of the files that are compared.
        self.target.run(["sh", "-c", f"mkdir -p {DROP_IN} && cat > {DROP_IN}/lab.conf && systemctl daemon-reload"],
                        stdin=f"[Service]\nSetCredential=peerix.signing-key:{self.closure.secret_key}\n")
        self.addCleanup(self.clean)

    def clean(self):
        """Whatever a test did, the next one finds a machine without peerix."""
        for path in (MASK, "/usr/sbin/policy-rc.d"):
            self.target.path(path).unlink(missing_ok=True)
        self.target.run("rm -rf /etc/systemd/system/peerix.service.d; systemctl daemon-reload")
        self.remove()
        self.target.run("rm -rf /etc/peerix /etc/credstore/peerix.signing-key /root/stage")

    # What can be seen

    def listing(self):
        """Every path of the target outside of VOLATILE, with its type, mode and link target."""
        prunes = " -o ".join(f"-path {path}" for path in VOLATILE)
        out = self.target.run(["sh", "-c", f"find / -xdev \\( {prunes} \\) -prune -o -printf '%p %y %m %l\\n'"]).stdout
        return set(out.splitlines())

    def assert_same_files(self, before):
        """The file system is as it was."""
        now = self.listing()
        self.assertEqual((sorted(now - before), sorted(before - now)), ([], []), "left behind, and missing")

    def states(self):
        """The states of socket and service."""
        return tuple(self.target.peerix.show("ActiveState", unit) for unit in UNITS[:2])

    def enabled(self):
        """What systemd says of the socket's enablement."""
        return self.target.run("systemctl is-enabled peerix.socket", check=False).stdout.strip()

    def pids(self):
        """All processes of the service, those included whose program has been replaced."""
        try:
            return {int(pid) for pid in (self.target.group_of("peerix.service") / "cgroup.procs").read_text().split()}
        except FileNotFoundError:
            return set()

    def assert_refused(self):
        """Nothing listens on the port."""
        with self.assertRaises(ConnectionRefusedError):
            self.asker.tcp(self.target.address, 12304)

    # The tests

    def test_after_the_installation_the_socket_listens_and_nothing_runs(self):
        """Enabled for the next boot, open now, asleep; systemd has nothing to say about the units."""
        starts = self.target.peerix.starts()
        self.install()
        self.assertEqual(self.states(), ("active", "inactive"))
        self.assertEqual(self.pids(), set())
        self.assertEqual(self.enabled(), "enabled")
        self.assertEqual(self.target.peerix.starts(), starts)
        done = self.target.run(["systemd-analyze", "verify", "--man=no", *UNITS])
        self.assertEqual((done.stdout + done.stderr).strip(), "")
        self.assertIn(f"path={self.binary} ;", self.target.peerix.show("ExecStart"))
        self.assert_holds(self.target, self.path)
        self.assertEqual(self.states(), ("active", "active"))

    def test_neighbours_pull_from_it_and_its_own_nix_through_it(self):
        """All that was done beside the installation is what it tells: the line in nix.conf and Nix's restart."""
        self.holder.run("systemctl stop peerix.socket peerix.service")
        told = self.told(self.install())
        theirs = self.closure.blobs[0]
        self.pull(self.asker, theirs)
        self.assert_valid(self.asker, [theirs])
        self.holder.run("systemctl start peerix.socket")
        with open(self.target.path("/etc/nix/nix.conf"), "a") as conf:
            conf.write(told + "\n")
        self.target.run("systemctl restart nix-daemon.service")
        ours = self.closure.blobs[2]
        for environment in ({}, {"NIX_REMOTE": "daemon"}):
            self.forget(self.target, [ours])
            self.target.run(["env", *(f"{k}={v}" for k, v in environment.items()), "nix-store", "-r", ours.path])
            self.assert_valid(self.target, [ours])
        found = [e for e in self.target.journal(f"PEERIX_HASH={ours.hash}") if "PEERIX_BYTES" in e]
        self.assertEqual({self.holder.address in entry["PEERIX_PEER"] for entry in found}, {True}, found)

    def test_an_upgrade_loses_no_request(self):
        """Questions over UDP and HTTP, and a NAR that is on its way: all go on, and the new program runs."""
        self.holder.run("systemctl stop peerix.socket peerix.service")
        self.target.write(SETTINGS, '[limits]\nupload = "8MiB"\n')
        self.install()
        opened = self.target.peerix.show("ActiveEnterTimestampMonotonic", "peerix.socket")
        path = self.closure.blobs[1]
        pull = self.asker.spawn(f"exec nix-store -r {path.path} > /root/pull.log 2>&1")
        self.addCleanup(pull.wait)
        self.addCleanup(pull.kill)
        goal = self.lab.bytes_from(self.target) + 8 * MIB
        wait_until(lambda: self.lab.bytes_from(self.target) >= goal or pull.poll() is not None, 30, "the NAR is on its way")
        old = self.pids()
        self.assertEqual(len(old), 1)
        with Prober(self.ask_over_udp) as udp, Prober(self.ask_over_http) as over_http:
            wait_until(lambda: udp.asked > 5 and over_http.asked > 5, 5, "questions are answered")
            self.assertIsNone(pull.poll(), "the pull was over before the upgrade")
            self.install(version=2)
            self.assertIsNone(pull.poll(), "the pull was over before the new program took it up")
            self.assertFalse(old & self.pids(), "the old program still runs")
            self.assertEqual(pull.wait(60), 0, self.asker.path("/root/pull.log").read_text()[-3000:])
        for prober in (udp, over_http):
            self.assertEqual(prober.problems, [])
        self.assert_valid(self.asker, [path])
        running, = self.pids()
        program = Path(f"/proc/{running}/exe")
        self.assertEqual(program.readlink().name, self.binary.name, "it runs a program that is no longer there")
        self.assertEqual(program.stat().st_ino, self.target.path(str(self.binary)).stat().st_ino)
        self.assertEqual(self.target.peerix.show("ActiveEnterTimestampMonotonic", "peerix.socket"), opened,
                         "the socket was closed and opened again")
        self.note = (f"slowest of {udp.asked} questions over UDP {udp.slowest * 1000:.0f} ms, "
                     f"of {over_http.asked} over HTTP {over_http.slowest * 1000:.0f} ms")

    def ask_over_udp(self):
        """One question to the target, by a neighbour; what is wrong with its answer."""
        answer = wire.ask(self.asker, self.target.address, self.path.hash, bound=5)
        return None if answer and answer.state == wire.PRESENT else f"over UDP: {answer}"

    def ask_over_http(self):
        """The same for its narinfo."""
        status = self.status_of(self.asker, f"/local/{self.path.hash}.narinfo", address=self.target.address, bound=5)
        return None if status == 200 else f"over HTTP: {status}"

    def test_an_upgrade_wakes_no_daemon(self):
        """One that sleeps goes on sleeping; the next question starts the new program."""
        starts = self.target.peerix.starts()
        self.install()
        self.install(version=2)
        self.assertEqual((self.states(), self.target.peerix.starts()), (("active", "inactive"), starts))

    def test_a_second_installation_changes_nothing(self):
        """The same files, the same state, no complaint."""
        self.install()
        files, states = self.listing(), self.states()
        self.install()
        self.assert_same_files(files)
        self.assertEqual((self.states(), self.enabled()), (states, "enabled"))

    def test_removing_it_leaves_the_file_system_as_it_was(self):
        """After use, with settings and a key; and once more, when there is nothing to remove."""
        self.target.write(peerix.KEY, self.closure.secret_key + "\n", 0o600)
        before = self.listing()
        self.install()
        self.target.write(SETTINGS, "# the user's\n")
        self.assert_holds(self.target, self.path)
        self.target.run("test -e /run/peerix")
        self.remove()
        self.assert_refused()
        self.assertEqual(self.pids(), set())
        for unit in UNITS:
            self.assertEqual(self.target.peerix.show("LoadState", unit), "not-found", unit)
        self.target.run("! test -e /run/peerix && ! test -L /run/peerix && ! test -e /run/private/peerix"
                        " && ! test -L /var/cache/peerix && ! test -e /var/cache/private/peerix")
        if self.keeps_settings:
            self.target.run(["rm", "-r", "/etc/peerix"])
        self.assert_same_files(before)
        self.remove()
        self.assert_same_files(before)

    def test_a_socket_that_was_closed_stays_closed(self):
        """Stopped or disabled by its owner, it is so after an upgrade."""
        self.install()
        self.target.run("systemctl stop peerix.socket")
        self.install(version=2)
        self.assertEqual((self.states()[0], self.enabled()), ("inactive", "enabled"))
        self.target.run("systemctl disable peerix.socket")
        self.install(version=1)
        self.assertEqual((self.states()[0], self.enabled()), ("inactive", "disabled"))

    def test_an_upgrade_mends_a_socket_that_a_broken_program_closed(self):
        """The program of the next version starts, so the socket is opened again."""
        self.install()
        self.target.peerix.put_binary(self.target.path("/usr/bin/false"), at=str(self.binary))
        with self.asker.tcp(self.target.address, 12304):
            wait_until(lambda: self.states()[0] == "failed", 15, "the socket has failed", every=0.2)
        self.install(version=2)
        self.assert_holds(self.target, self.path)

    def test_a_masked_socket_stays_closed_and_masked(self):
        """The owner's decision stands through installation and removal."""
        self.target.run("systemctl mask peerix.socket")
        before = self.listing()
        for version in (1, 2):
            self.install(version)
            self.assertEqual((self.enabled(), self.states()), ("masked", ("inactive", "inactive")))
            self.assert_refused()
        self.remove()
        self.assert_same_files(before)

    def test_a_socket_that_was_masked_later_leaves_nothing_behind_either(self):
        """Enabled, then masked, then removed: the mask alone stays."""
        before = self.listing()
        self.install()
        self.target.run("systemctl mask --now peerix.socket")
        self.remove()
        self.target.path(MASK).unlink()
        self.assert_same_files(before)


class InstallScript(Ways, LabCase):
    """systemd/install.sh with its default prefix."""

    binary = Path("/usr/local/bin/peerix")
    keeps_settings = True
    source = "/root/peerix-source"

    def setUp(self):
        super().setUp()
        self.put_source(1)

    def put_source(self, version):
        """The parts of the checkout that a release archive has; the program of version 2 is one byte longer."""
        top = self.target.path(self.source)
        shutil.rmtree(top, ignore_errors=True)
        for part in ("systemd", "docs"):
            shutil.copytree(peerix.CHECKOUT / part, top / part)
        program = top / "target/release/peerix"
        program.parent.mkdir(parents=True)
        program.write_bytes(self.lab.hosts[0].build.binary.read_bytes() + b"\0" * (version - 1))
        program.chmod(0o755)

    def script(self, arguments="", bound=60, **options):
        """Run the script; returns the CompletedProcess."""
        return self.target.run(f"exec {self.source}/systemd/install.sh {arguments}", bound=bound, **options)

    def install(self, version=1):
        self.put_source(version)
        return self.script().stdout

    def remove(self):
        return self.script("--uninstall").stdout

    def told(self, output):
        """The line for nix.conf, from what the script printed."""
        return re.search(r"^ +(extra-substituters = \S+)$", output, re.M)[1]

    def refused(self, code, *words, arguments="", before=""):
        """The script fails with that code, says these words on standard error, and changes nothing."""
        files = self.listing()
        done = self.target.run(f"{before} exec {self.source}/systemd/install.sh {arguments}", check=False)
        self.assertEqual(done.returncode, code, done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)
        self.assert_same_files(files)

    def test_it_says_what_it_did_and_what_is_left_to_do(self):
        """One line for each file, no line for nix.conf that is there already, and what was kept at the end."""
        output = self.install()
        for path in (self.binary, "/usr/local/lib/systemd/system/peerix.socket", "/usr/local/share/man/man8/peerix.8",
                     "/usr/local/share/zsh/site-functions/_peerix"):
            self.assertIn(f"installed {path}\n", output)
            self.assertTrue(self.target.path(str(path)).is_file())
        self.assertIn("port 12304 through the firewall", output)
        with open(self.target.path("/etc/nix/nix.conf"), "a") as conf:
            conf.write(self.told(output) + "\n")
        self.assertIn("already names the substituter http://127.0.0.1:12304/", self.install())
        # To allow it to others is not to use it.
        self.target.write("/etc/nix/nix.conf", "extra-trusted-substituters = http://127.0.0.1:12304/\n")
        self.assertIn("add this line", self.install())
        self.target.write(SETTINGS, "")
        output = self.remove()
        for words in ("kept /etc/peerix, ", "stopped peerix.socket", f"removed {self.binary}", "nix.conf still names"):
            self.assertIn(words, output)
        self.assertIn("nothing to remove", self.remove())

    def test_what_only_an_older_version_had_goes(self):
        """A file on the record that the new version does not install."""
        before = self.listing()
        self.install()
        record = self.target.path("/usr/local/share/peerix/installed")
        self.target.write("/usr/local/share/peerix/old", "")
        record.write_text(record.read_text() + "f /usr/local/share/peerix/old\n")
        self.install(version=2)
        self.assertFalse(self.target.path("/usr/local/share/peerix/old").exists())
        self.remove()
        self.assert_same_files(before)

    def test_an_installation_that_was_cut_off_is_finished_by_the_next(self):
        """It is no upgrade of one whose owner has closed the socket."""
        blocked = "/usr/local/share/man/man5"
        self.target.run(["mkdir", "-p", blocked])
        self.target.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", blocked])
        self.assertNotEqual(self.script(check=False).returncode, 0)
        self.target.run(["umount", blocked])
        self.install()
        self.assertEqual((self.states()[0], self.enabled()), ("active", "enabled"))
        self.assert_holds(self.target, self.path)
        self.remove()
        self.target.run(["rm", "-rf", blocked])

    def test_a_record_that_leads_elsewhere_is_not_believed(self):
        """Where a group may write below the prefix, it must not choose what root removes."""
        self.install()
        record = self.target.path("/usr/local/share/peerix/installed")
        honest = record.read_text()
        self.target.write("/etc/lab-victim", "")
        self.target.run("mkdir -p /srv/lab-victim")
        for line in ("f /usr/local/../../etc/lab-victim", "f /etc/lab-victim", "d /usr/local/../../srv/lab-victim", "d /srv/lab-victim"):
            with self.subTest(line):
                record.write_text(f"{honest}{line}\n")
                done = self.script("--uninstall", check=False)
                self.assertEqual(done.returncode, 66, done.stdout + done.stderr)
                self.assertTrue(self.target.path("/etc/lab-victim").exists() and self.target.path("/srv/lab-victim").exists())
                record.parent.mkdir(parents=True, exist_ok=True)
                record.write_text(honest)
                self.install()
        self.target.run("rm -r /etc/lab-victim /srv/lab-victim")

    def test_an_installation_that_was_cut_off_can_be_removed(self):
        """A directory that takes no file, at the beginning and in the middle: what came before it can be taken back."""
        for blocked in ("/usr/local/bin", "/usr/local/share/man/man5"):
            self.target.run(["mkdir", "-p", blocked])
            before = self.listing()
            self.target.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", blocked])
            failed = self.script(check=False)
            self.target.run(["umount", blocked])
            self.assertNotEqual(failed.returncode, 0)
            self.assertEqual(self.target.path("/usr/local/lib/systemd/system/peerix.service").exists(),
                             blocked.endswith("man5"), "it did not end where it should")
            self.remove()
            self.assert_same_files(before)
        self.target.run(["rmdir", blocked])

    def test_another_prefix_is_as_good(self):
        """/usr, where the units stay as they are shipped; and only there can it be removed."""
        before = self.listing()
        self.script("--prefix /usr")
        self.assertIn("path=/usr/bin/peerix ;", self.target.peerix.show("ExecStart"))
        self.assert_holds(self.target, self.path)
        self.assertIn("nothing to remove", self.remove())
        self.refused(69, "another peerix")
        self.script("--prefix=/usr/ --uninstall")
        self.assert_same_files(before)

    def test_it_refuses_what_would_not_work(self):
        """Each time: which thing, where, what would be right, and nothing is changed."""
        self.refused(77, "only root", "DESTDIR", before="cp -r /root/peerix-source /tmp/source; chmod -R a+rX /tmp/source;"
                     " cd /tmp; exec setpriv --reuid 65534 --clear-groups /tmp/source/systemd/install.sh;")
        self.refused(69, "/opt/peerix/lib/systemd/system", "/usr/local", arguments="--prefix /opt/peerix")
        self.refused(64, "absolute path", arguments="--prefix usr")
        self.refused(64, "absolute path", arguments="--prefix '/usr/my local'")
        self.refused(64, "unknown argument --frob", arguments="--frob")
        self.refused(64, "--binary lacks its value", arguments="--binary")
        self.refused(66, "/nowhere/peerix", "cargo build --release", arguments="--binary /nowhere/peerix")
        self.target.write("/root/not-for-here", "not a program\n", 0o755)
        self.refused(69, "/root/not-for-here does not run", arguments="--binary /root/not-for-here")
        shutil.rmtree(self.target.path(self.source) / "docs/man")
        self.refused(66, f"{self.source}/docs/man/peerix.8 is missing")

    def test_it_does_not_cover_another_installation(self):
        """Units in /etc, from an installation by hand, would hide the new ones."""
        self.target.write("/etc/systemd/system/peerix.service", "[Service]\nExecStart=/usr/bin/true\n")
        self.addCleanup(self.target.run, "rm /etc/systemd/system/peerix.service; systemctl daemon-reload")
        self.target.run("systemctl daemon-reload")
        self.refused(69, "another peerix", "/etc/systemd/system/peerix.service")

    def test_an_older_systemd_needs_the_drop_in(self):
        """systemd 252 is refused, with the directives that it lacks; with the drop-in it goes on."""
        self.target.write("/root/old/systemctl", "#!/bin/sh\n[ \"$1\" != --version ] || { echo 'systemd 252 (252.39)'; exit; }\n"
                          "exec /usr/bin/systemctl \"$@\"\n", 0o755)
        older = "PATH=/root/old:$PATH;"
        self.refused(69, "systemd is 252", "254", "ImportCredential=", "notify-reload", "docs/install.md", before=older)
        self.target.run(f"cd {self.source} && install -D -m 644 docs/systemd-252.conf"
                        " /etc/systemd/system/peerix.service.d/systemd-252.conf")
        self.assertIn("systemd is 252: going on", self.target.run(f"{older} {self.source}/systemd/install.sh").stdout)
        self.assertEqual(self.target.peerix.show("Type"), "notify")
        self.assert_holds(self.target, self.path)
        self.target.run("systemctl reload peerix.service")
        wait_until(lambda: "reload" in self.target.peerix.said().lower(), 5, "the reload is in the journal")

    def test_staging_touches_nothing_but_the_directory(self):
        """With DESTDIR, and without root: these files with these modes, and systemctl is not even called."""
        self.target.write("/root/fake/systemctl", "#!/bin/sh\n: > /tmp/systemctl-was-called\n", 0o755)
        before = self.listing()
        self.target.run("rm -rf /tmp/source /tmp/stage; cp -r /root/peerix-source /root/fake /tmp/; chmod -R a+rX /tmp/peerix-source /tmp/fake")
        self.target.run("umask 077; cd /tmp; PATH=/tmp/fake:$PATH DESTDIR=/tmp/mine/stage exec setpriv --reuid 65534 --regid 65534"
                        " --clear-groups /tmp/peerix-source/systemd/install.sh --prefix /opt/peerix")
        out = self.target.run("cd /tmp/mine/stage; find . -type d ! -perm 755; find . -type f -printf '%P %m\\n' | sort").stdout
        inside = {"bin/peerix": 755, "share/bash-completion/completions/peerix": 644,
                  "share/doc/peerix/dns-sd/peerix.service": 644, "share/doc/peerix/dns-sd/peerix.dnssd": 644,
                  "share/doc/peerix/peerix.toml": 644, "share/fish/vendor_completions.d/peerix.fish": 644,
                  "share/man/man5/peerix.toml.5": 644, "share/man/man8/peerix.8": 644,
                  "share/zsh/site-functions/_peerix": 644, **{f"lib/systemd/system/{unit}": 644 for unit in UNITS}}
        self.assertEqual(out.splitlines(), sorted(f"opt/peerix/{name} {mode}" for name, mode in inside.items()))
        self.target.run("! test -e /tmp/systemctl-was-called")
        unit = self.target.run("cat /tmp/mine/stage/opt/peerix/lib/systemd/system/peerix.service").stdout
        self.assertIn("\nExecStart=/opt/peerix/bin/peerix\n", unit)
        self.assert_same_files(before)


class DebianPackage(Ways, LabCase):
    """The Debian package, installed without a network."""

    binary = Path("/usr/bin/peerix")
    keeps_settings = False

    @classmethod
    def setUpClass(cls):
        cls.packages = {version: build_package(version) for version in (1, 2)}
        super().setUpClass()

    def setUp(self):
        super().setUp()
        for version, package in self.packages.items():
            self.target.write(f"/root/peerix_{version}.deb", package)

    def install(self, version=1):
        """The first time by apt, which looks after what it needs; an upgrade by dpkg."""
        if version == 1:
            command = "apt-get install -y --reinstall --allow-downgrades /root/peerix_1.deb"
        else:
            command = "dpkg -i /root/peerix_2.deb"
        done = self.target.run(f"DEBIAN_FRONTEND=noninteractive exec {command}")
        # Only apt complains, that it cannot read root's directory as its own user.
        complaints = [line for line in done.stderr.splitlines() if "Download is performed unsandboxed" not in line]
        self.assertEqual(complaints, [])
        return done.stdout

    def remove(self):
        return self.target.run("dpkg --purge peerix").stdout

    def told(self, _):
        """The line for nix.conf, from the documentation in the package."""
        readme = self.target.path("/usr/share/doc/peerix/README.Debian").read_text()
        return re.search(r"^ +(extra-substituters = \S+)$", readme, re.M)[1]

    def test_it_has_what_a_package_has(self):
        """Documentation, manual pages, completions; needed are a C library and systemd, and no file is a conffile."""
        self.install()
        files = self.target.run("dpkg -L peerix").stdout.split()
        for name in ("/usr/share/doc/peerix/copyright", "/usr/share/doc/peerix/changelog.gz", "/usr/share/doc/peerix/changelog.Debian.gz",
                     "/usr/share/doc/peerix/examples/dns-sd/peerix.service", "/usr/share/doc/peerix/examples/dns-sd/peerix.dnssd",
                     "/usr/share/doc/peerix/examples/peerix.toml", "/usr/share/man/man8/peerix.8.gz",
                     "/usr/share/man/man5/peerix.toml.5.gz", "/usr/share/bash-completion/completions/peerix",
                     "/usr/share/zsh/vendor-completions/_peerix", "/usr/share/fish/vendor_completions.d/peerix.fish"):
            self.assertIn(name, files)
        fields = self.target.run("dpkg-query -W -f '${Depends}\\n${Conffiles}\\n${Section}\\n' peerix").stdout.splitlines()
        self.assertRegex(fields[0], r"^libc6 \(>= [\d.]+\), systemd \(>= 254\)$")
        self.assertEqual(fields[1:], ["", "net"])
        self.assertEqual(self.target.run("dpkg --verify peerix").stdout, "")

    def test_its_changelog_names_the_version_that_it_has(self):
        """That of Cargo.toml, and the revision."""
        cargo = re.search(r'^version = "(.*)"$', (peerix.CHECKOUT / "Cargo.toml").read_text(), re.M)[1]
        first = (peerix.CHECKOUT / "systemd/debian/changelog").read_text().splitlines()[0]
        self.assertTrue(first.startswith(f"peerix ({cargo}-1) "), first)

    def test_the_same_source_gives_the_same_package(self):
        """Byte for byte, so that others can check what is published."""
        # Not assertEqual, which would print both.
        self.assertTrue(build_package(1) == self.packages[1], "they differ")

    def test_a_plain_removal_keeps_settings_and_comes_back_open(self):
        """Stopped and disabled; what the administrator wrote stays; a new installation opens the socket again."""
        self.install()
        self.target.write(SETTINGS, "# the user's\n")
        self.assert_holds(self.target, self.path)
        self.target.run("dpkg --remove peerix")
        self.assert_refused()
        self.assertEqual(self.pids(), set())
        self.target.run("! test -L /etc/systemd/system/sockets.target.wants/peerix.socket && test -e /etc/peerix/peerix.toml")
        self.install()
        self.assertEqual((self.states(), self.enabled()), (("active", "inactive"), "enabled"))

    def test_a_socket_that_was_disabled_stays_so_over_a_removal(self):
        """What the administrator has disabled is on record, not with the package."""
        self.install()
        self.target.run("systemctl disable --now peerix.socket")
        self.install(version=2)
        self.target.run("dpkg --remove peerix")
        self.install(version=2)
        self.assertEqual((self.states()[0], self.enabled()), ("inactive", "disabled"))

    def test_policy_decides_about_starting(self):
        """Under policy-rc.d 101, as while an image is made, nothing is started; the next boot does."""
        self.target.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755)
        done = self.target.run("dpkg -i /root/peerix_1.deb")
        self.assertIn("policy-rc.d returned 101", done.stderr)
        self.assertEqual((self.states(), self.enabled()), (("inactive", "inactive"), "enabled"))

    def test_what_may_be_a_key_survives_a_purge(self):
        """And it is said where it lies."""
        self.install()
        self.target.write(SETTINGS, "")
        self.target.write("/etc/peerix/signing-key", "the user's\n", 0o600)
        self.target.write(peerix.KEY, self.closure.secret_key + "\n", 0o600)
        output = self.remove()
        for kept in ("/etc/peerix", "/etc/credstore/peerix.signing-key"):
            self.assertRegex(output, f"{kept}.*left there")
        self.target.run("test -e /etc/peerix/signing-key && test -e /etc/credstore/peerix.signing-key && ! test -e /etc/peerix/peerix.toml")

    def test_the_script_does_not_cover_the_package(self):
        """systemd/install.sh says who is there."""
        self.install()
        for part in ("systemd", "docs"):
            shutil.copytree(peerix.CHECKOUT / part, self.target.path("/root/other") / part)
        self.addCleanup(self.target.run, "rm -r /root/other")
        done = self.target.run("/root/other/systemd/install.sh --binary /usr/bin/peerix", check=False)
        self.assertEqual(done.returncode, 69)
        self.assertIn("another peerix", done.stderr)


def build_package(version):
    """The bytes of a Debian package of the release build, with that number in its version."""
    done = subprocess.run([str(peerix.CHECKOUT / "tests/lab/debian-package"), "--deb-version", f"0.0.{version}-1",
                           "--output", "/run/lab/peerix.deb"], capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"the package could not be built:\n{done.stderr[-3000:]}")
    return Path(done.stdout.strip()).read_bytes()
