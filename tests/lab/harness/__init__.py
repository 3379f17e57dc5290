"""The lab: several machines with their own systemd, Nix store and address, on one machine.

A lab host is a `systemd-nspawn` container that boots its own PID 1 on an overlay over a Debian base,
in its own network namespace, with a veth into a bridge. Nothing of it touches the machine's own
network, and all of it dies with the process that made it (see `sandbox`).

| module | owns |
|---|---|
| `sandbox` | the namespaces and the control group in which a run lives and dies |
| `base` | the Debian base, made once with mmdebstrap outside the checkout |
| `closure` | the closure that the tests pull, built once by real Nix on a lab host |
| `paths` | many small paths, built while a test runs |
| `host` | one host: boot, commands, sockets in its network, stop |
| `peerix` | the daemon on a host: install, configure, watch |
| `nixos` | what the NixOS module makes of a configuration, and a host that has it |
| `lan` | the bridge, the hosts on it, and what went over it |
| `link` | a link with delay, loss and cuts, in the place of a host's cable |
| `wire` | the UDP datagrams, written from docs/protocol.md and not from the daemon's code |
| `http` | a small HTTP client whose sockets live in a host's network |
| `prober` | asking again and again while something else happens |
| `hostile` | a peer that lies, breaks off, floods or says nothing |
| `faults` | what befalls a host in mid-NAR, and the schedule of it |
| `waiting` | waiting for an event, with a bound |
| `documents` | the commands of README.md and docs/ |
| `case` | what a test class inherits |
| `runner` | finds tests, runs them, prints a line for each, keeps journals of failures |
| `bench`, `wake` | what the benchmarks in tests/bench share |

The tests are the files `test_*.py` beside this directory; `tests/lab/run` runs them.
"""
