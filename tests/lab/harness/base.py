"""The Debian base that all lab hosts share, made once and kept outside the checkout.

It lies in `$PEERIX_LAB_CACHE` (default /var/cache/peerix-lab), under a name that holds a hash of
all that went into it, so that a changed package list makes a new one. It is built under another
name and renamed when whole: a killed build leaves nothing that could be taken for a base.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import time
from pathlib import Path

SUITE = "trixie"
PACKAGES = (
    "systemd systemd-sysv dbus nix-bin nix-setup-systemd iproute2 nftables curl socat tcpdump "
    "procps strace jq python3 sudo avahi-daemon avahi-utils dnsmasq-base"
).split()

# Units that would wait for, or write to, a console that a lab host does not have; timers
# that would wake up in the middle of a measurement; and responders that only some tests want.
MASKED = (
    "console-getty.service getty@.service container-getty@.service serial-getty@.service "
    "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer systemd-tmpfiles-clean.timer "
    "e2scrub_all.timer fstrim.timer avahi-daemon.service avahi-daemon.socket"
).split()


def cache():
    """The directory for what is made once; created when missing."""
    path = Path(os.environ.get("PEERIX_LAB_CACHE", "/var/cache/peerix-lab"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def key_of(*parts):
    """A short name for what was made from `parts`."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def made_once(kind, key):
    """Yield (directory, fresh): an empty temporary directory when it has to be made, else the made one.

    Holds a lock, so two runs make it once. A failure inside the block leaves nothing behind.
    """
    final = cache() / f"{kind}-{key}"
    with open(cache() / f"{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if final.is_dir():
            os.utime(final)
            yield final, False
            return
        growing = cache() / f"{kind}-growing"
        shutil.rmtree(growing, ignore_errors=True)
        growing.mkdir()
        try:
            yield growing, True
        except BaseException:
            shutil.rmtree(growing, ignore_errors=True)
            raise
        # A run that is still going may stand on an older one: that goes after a day unused.
        for old in cache().glob(f"{kind}-*"):
            if old != growing and time.time() - old.stat().st_mtime > 86400:
                shutil.rmtree(old, ignore_errors=True)
        growing.rename(final)


def base_key():
    """Names the base by what it is made from."""
    return key_of(SUITE, *PACKAGES, *MASKED)


def base():
    """The base's root directory; made now if this machine has none yet (about a minute)."""
    with made_once("base", base_key()) as (directory, fresh):
        if fresh:
            print(f"making the lab's base of Debian {SUITE} (once) ...", flush=True)
            _bootstrap(directory / "root")
            for unit in MASKED:
                (directory / "root/etc/systemd/system" / unit).symlink_to("/dev/null")
    return cache() / f"base-{base_key()}" / "root"


def _bootstrap(root):
    log = cache() / "base.log"
    with open(log, "w") as out:
        done = subprocess.run(
            ["mmdebstrap", "--variant=minbase", "--format=directory",
             "--include=" + ",".join(PACKAGES), SUITE, str(root), mirror()],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise RuntimeError(f"mmdebstrap failed, its whole log is in {log}:\n{tail}")


def mirror():
    """The Debian mirror that this machine's apt already uses."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"],
        capture_output=True, text=True, check=True).stdout
    rows = [line.rsplit(" ", 1) for line in listed.splitlines()]
    # Before the first `apt-get update` apt knows no labels, only addresses.
    for wanted in (lambda label, uri: label == "Debian",
                   lambda label, uri: uri.rstrip("/").endswith("/debian")):
        for label, uri in rows:
            if wanted(label, uri):
                return uri
    raise RuntimeError("apt on this machine has no Debian archive to make the lab's base from")
