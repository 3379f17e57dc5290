# What the tests do again and again. Their scripts begin with this file.


def lay_key(machine):
    """Put the signing key where the service expects it."""
    machine.succeed("install -D -m 600 /etc/test/secret-key /run/test/secret-key")


def build(machine, name):
    """Build the path of that name; returns it."""
    return machine.succeed(f"nix-build /etc/test/path.nix --argstr name {name} --no-out-link").strip()


def await_asleep(machine):
    """Wait until the daemon has gone by itself; the socket stays."""
    machine.wait_until_succeeds("systemctl show -P ActiveState peerix.service | grep -qx inactive", timeout=60)
    machine.succeed("systemctl is-active peerix.socket")
