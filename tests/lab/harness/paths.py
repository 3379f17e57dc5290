"""Many small paths, built on a lab host by its own Nix while a test runs.

Nothing but the shell is needed, so that one takes a few hundredths of a second.
"""

from .closure import StorePath

KEY = "/root/lab.sec"

EXPRESSION = """
{ prefix, count, chained }:
let
  path = number: derivation {
    name = "${prefix}-${toString number}";
    system = builtins.currentSystem;
    builder = "/bin/sh";
    args = [ "-c" "echo ${prefix} ${toString number} ${if chained && number > 0 then "${at (number - 1)}" else ""} > $out" ];
  };
  at = builtins.elemAt all;
  all = builtins.genList path count;
in
all
"""


class Maker:
    """Builds paths on `host`, which are signed by the key that lab hosts trust.

    `host` has no other substituter than none while it builds.
    """

    def __init__(self, host, closure):
        self.host = host
        host.write(KEY, closure.secret_key, 0o600)
        host.write("/root/paths.nix", EXPRESSION)

    def derivations(self, prefix, count, chained=False):
        """Instantiate `count` paths, each referring to the one before it if `chained`; not built yet."""
        return self.host.run(["nix-instantiate", "/root/paths.nix", "--argstr", "prefix", prefix, "--arg", "count",
                              str(count), "--arg", "chained", "true" if chained else "false"], bound=120).stdout.split()

    def build(self, derivations, signed=True):
        """Build them; returns their store paths, as text, in this order."""
        keys = KEY if signed else ""
        return self.host.run(["nix-store", "-r", *derivations, "--option", "substituters", "",
                              "--option", "secret-key-files", keys], bound=240).stdout.split()

    def sign(self, paths, key=KEY):
        """Sign paths that are there."""
        self.host.run(["nix", "store", "sign", "--key-file", key, *paths], bound=60)

    def described(self, paths):
        """What Nix knows of each."""
        hashes = self.host.run(["nix-store", "-q", "--hash", *paths], bound=60).stdout.split()
        sizes = self.host.run(["nix-store", "-q", "--size", *paths], bound=60).stdout.split()
        return [StorePath(path, nar_hash.removeprefix("sha256:"), int(size), ())
                for path, nar_hash, size in zip(paths, hashes, sizes, strict=True)]

    def make(self, prefix, count, chained=False, signed=True):
        """Instantiate, build and describe."""
        return self.described(self.build(self.derivations(prefix, count, chained), signed))

    def key(self, name):
        """A key pair of this name: (file of the secret key, line of the public one)."""
        secret = f"/root/{name}.sec"
        self.host.run(["nix-store", "--generate-binary-cache-key", name, secret, f"/root/{name}.pub"])
        return secret, self.host.path(f"/root/{name}.pub").read_text().strip()


def hash_of(path):
    """The 32 characters of a store path."""
    return path.removeprefix("/nix/store/")[:32]
