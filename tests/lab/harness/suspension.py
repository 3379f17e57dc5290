"""A suspension without one: CLOCK_BOOTTIME jumps for the daemon of a host, and no other clock does."""

import contextlib
import subprocess
import tempfile
from pathlib import Path

# Within reach of the daemon's sandbox.
LIBRARY, MARK = "/usr/lib/lab-suspension.so", "/etc/peerix/suspended"
SECONDS = 3600

SOURCE = f"""
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time)
{{
    int result = syscall(SYS_clock_gettime, clock, time);
    if (result == 0 && clock == CLOCK_BOOTTIME && access("{MARK}", F_OK) == 0)
        time->tv_sec += {SECONDS};
    return result;
}}
"""


@contextlib.contextmanager
def suspensible(host):
    """Within the block the daemon of `host` reads clocks as if it had been suspended, from `suspended` on."""
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "library.so"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-x", "c", "-", "-o", library], input=SOURCE, text=True, check=True)
        host.write(LIBRARY, library.read_bytes(), mode=0o755)
    host.peerix.drop_in("peerix.service", f"[Service]\nEnvironment=LD_PRELOAD={LIBRARY}\n", name="suspension")
    try:
        yield
    finally:
        host.peerix.drop_in("peerix.service", None, name="suspension")
        host.path(MARK).unlink(missing_ok=True)


@contextlib.contextmanager
def suspended(host):
    """Within the block nothing runs on `host`; when it ends, an hour has passed."""
    host.freeze()
    try:
        yield
    finally:
        host.write(MARK, "")
        host.freeze(False)
