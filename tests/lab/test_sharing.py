"""Promise 5: nothing leaves the machine by default but what a trusted key has signed."""

import base64

from harness.case import LabCase, empty, full, http, wire
from harness.peerix import KEY

UNSIGNED_BUILD = '''
derivation {
  name = "lab-private-build"; system = builtins.currentSystem; builder = "/bin/sh";
  args = [ "-c" "mkdir $out; echo secret > $out/file" ]; PATH = "/usr/bin:/bin";
}
'''


class Sharing(LabCase):
    """`owner` has the signed closure, and made things of its own; `stranger` is any other machine."""

    @classmethod
    def specs(cls):
        return [full("owner"), empty("stranger")]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        owner = cls.lab.host("owner")
        owner.write("/root/source/main.c", "int main() { return 0; }\n")
        owner.write("/root/private.nix", UNSIGNED_BUILD)
        cls.tree = owner.run("nix-store --add /root/source").stdout.strip()
        cls.flat = owner.run("nix-store --add-fixed sha256 /root/source/main.c").stdout.strip()
        cls.built = owner.run("nix-build --no-out-link private.nix").stdout.strip()
        cls.derivation = owner.run("nix-instantiate private.nix").stdout.split()[0]

    def setUp(self):
        super().setUp()
        self.owner, self.stranger = self.lab.hosts

    def answers(self, path):
        """What anyone gets to hear of a path on each way there is; see `SILENT` and `SHARED`."""
        store_hash = path.removeprefix("/nix/store/")[:32]
        nar_hash = self.owner.run(["nix-store", "-q", "--hash", path]).stdout.strip().removeprefix("sha256:")
        encoded = base64.b64encode(path.encode()).decode().replace("/", "_")
        there = {"address": self.owner.address}
        packet = wire.ask(self.stranger, self.owner.address, store_hash, bound=5)
        old_packet = wire.ask_as_old(self.stranger, self.owner.address, store_hash, bound=0.5)
        return {
            "narinfo": self.status_of(self.stranger, f"/local/{store_hash}.narinfo", **there),
            "nar": self.status_of(self.stranger, f"/nar/{store_hash}-{nar_hash}.nar", **there),
            "nar under /local": self.status_of(self.stranger, f"/local/nar/{store_hash}-{nar_hash}.nar", **there),
            "nar of old peers": self.status_of(self.stranger, f"/local/nar/{encoded}.nar", **there),
            "gateway of a stranger": self.status_of(self.stranger, f"/{store_hash}.narinfo"),
            "gateway of the owner": self.status_of(self.owner, f"/{store_hash}.narinfo"),
            "packet": packet and packet.state,
            "packet of old peers": old_packet is not None,
        }

    SILENT = {"narinfo": 404, "nar": 404, "nar under /local": 404, "nar of old peers": 404,
              "gateway of a stranger": 404, "gateway of the owner": 404, "packet": wire.ABSENT, "packet of old peers": False}
    SHARED = {key: 200 for key in SILENT} | {"packet": wire.PRESENT, "packet of old peers": True}

    def test_what_a_trusted_key_signed_is_shared(self):
        """The other side of the tests below: these ways do lead to a path."""
        self.assert_holds(self.owner, self.closure.chain[7])
        self.assertEqual(self.answers(self.closure.chain[7].path), self.SHARED)

    def test_nothing_unsigned_leaves_by_default(self):
        """Source trees, added files, unsigned builds and derivations: 404 and no answer."""
        self.assert_holds(self.owner, self.closure.chain[7])
        for path in (self.tree, self.flat, self.built, self.derivation):
            self.assertEqual(self.answers(path), self.SILENT, path)

    def test_an_answer_does_not_tell_a_private_path_from_none_at_all(self):
        """The same bytes for both, to the same ask; to that of an old peer none."""
        self.assert_holds(self.owner, self.closure.chain[7])
        answers = []
        with self.stranger.udp(bound=2) as sock:
            for store_hash in (self.built.removeprefix("/nix/store/")[:32], "0" * 32):
                sock.sendto(wire.question([store_hash], 0x01020304)[1], (self.owner.address, 12304))
                answers.append(sock.recv(2048))
                self.assertIsNone(wire.ask_as_old(self.stranger, self.owner.address, store_hash, bound=0.3))
        self.assertEqual(answers[0], answers[1])
        self.assertEqual(wire.parse(answers[0])[2].body, (wire.ABSENT,))

    def test_a_signing_key_shares_builds_but_no_source_trees(self):
        """With a key in the credential store the default is `built`."""
        self.owner.write(KEY, self.closure.secret_key, mode=0o600)
        self.owner.peerix.put_to_sleep()
        self.assert_holds(self.owner, self.closure.chain[7])
        self.assertEqual(self.answers(self.built), self.SHARED)
        for path in (self.tree, self.flat, self.derivation):
            self.assertEqual(self.answers(path), self.SILENT, path)
        info = http.get(self.stranger, f"/local/{self.built.removeprefix('/nix/store/')[:32]}.narinfo", self.owner.address)
        self.assertTrue(info.field("Sig").startswith("lab-1:"))

    def test_share_none_shares_nothing(self):
        """Not even what is signed."""
        self.owner.peerix.reset('[share]\npaths = "none"\n')
        self.assertEqual(self.answers(self.closure.chain[7].path), self.SILENT)

    def test_the_stranger_can_pull_what_the_owner_signed(self):
        """End to end: the unsigned build, signed on the fly, is accepted by a Nix that trusts the key."""
        self.owner.write(KEY, self.closure.secret_key, mode=0o600)
        self.stranger.run("rm -rf /root/.cache/nix")
        self.stranger.run(["nix-store", "-r", self.built])
        self.stranger.run(["nix-store", "--verify-path", self.built])
