"""The namespaces in which a run of the lab lives.

The run is the first process of a PID namespace and has mount and network namespaces of its own.
When it ends, even by SIGKILL, the kernel ends every host with it, and their mounts, interfaces
and memory go too: there is nothing to clean up and two runs cannot meet. Only empty control
groups can stay behind; the next run removes them.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

INSIDE = "PEERIX_LAB_INSIDE"
GROUP_PREFIX = "peerix-lab-"
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def enter():
    """Start this very program again inside fresh namespaces; return only there.

    The id of the run is the process id outside, which no other live run can have.
    """
    if INSIDE not in os.environ:
        os.environ[INSIDE] = str(os.getpid())
        os.execvp("unshare", [
            "unshare", "--mount", "--propagation", "private", "--net", "--pid", "--fork",
            "--kill-child", "--mount-proc", sys.executable, "-B", *sys.argv])
    # A first process has no default signal actions: without handlers it could not be asked to end.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    # nspawn, ip-netns and others keep state in /run by name: ours is private.
    mount("tmpfs", "/run", "tmpfs", "mode=755")
    for directory in ("/run/netns", "/run/lock", "/run/lab"):
        os.mkdir(directory)


def run_id():
    """The name of this run, unique among live ones."""
    return os.environ[INSIDE]


def mount(source, target, kind, options=""):
    """mount(2), with the failure named."""
    if _libc.mount(source.encode(), str(target).encode(), kind.encode(), 0, options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, f"mounting {kind} on {target}: {os.strerror(number)}")


def unmount_lazily(target):
    """umount2(2) with MNT_DETACH; what is not mounted is fine."""
    _libc.umount2(str(target).encode(), 2)


class network_of:
    """Within the block, sockets that this thread opens belong to the network namespace of `fd`.

    A socket stays in the namespace where it was opened, so it can be used after the block.
    """

    def __init__(self, fd):
        self._there = fd

    def __enter__(self):
        self._here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self._switch(self._there)

    def __exit__(self, *_):
        try:
            self._switch(self._here)
        finally:
            os.close(self._here)

    @staticmethod
    def _switch(fd):
        if _libc.setns(fd, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, f"entering a network namespace: {os.strerror(number)}")


def group_root():
    """Where the version 2 control groups of this machine are mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(target)
    raise RuntimeError("no cgroup2 mount: the lab needs version 2 control groups")


def group_roots():
    """The version 2 mount and, on a hybrid machine, systemd's named version 1 mount."""
    roots = [group_root()]
    named = Path("/sys/fs/cgroup/systemd")
    if named.is_dir() and named not in roots and (named / "cgroup.procs").exists():
        roots.append(named)
    return roots


def make_groups(name):
    """A control group for one host in each hierarchy.

    Each host needs its own: in a shared one the service managers would count each other's processes.
    """
    groups = [root / f"{GROUP_PREFIX}{run_id()}" / name for root in group_roots()]
    for group in groups:
        group.mkdir(parents=True, exist_ok=True)
    return groups


def remove_groups(top):
    """Remove a tree of control groups; one that still has processes stays."""
    for directory, _, _ in os.walk(top, topdown=False):
        try:
            os.rmdir(directory)
        except OSError:
            pass


def sweep_groups():
    """Remove the empty groups that killed runs left behind."""
    for root in group_roots():
        for group in root.glob(f"{GROUP_PREFIX}*"):
            if group.name != f"{GROUP_PREFIX}{run_id()}":
                remove_groups(group)


def remove_own_groups():
    """Remove this run's groups; its hosts are gone by then."""
    for root in group_roots():
        remove_groups(root / f"{GROUP_PREFIX}{run_id()}")
