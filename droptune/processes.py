"""Processes of this machine: where a process id means something, and whether one still runs."""

import os
import socket
import uuid
from functools import cache
from pathlib import Path

_PROC = Path("/proc")


@cache
def place() -> str:
    """Return a name for where a process id means something: this boot, this container.

    Two processes of one place can look each other up by their ids. On Linux it is the id of the
    boot with that of the namespace of process ids, which containers have of their own.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode():x}"


def exists(pid: int) -> bool:
    """Tell whether a process of this place exists and has not ended; True if unknown."""
    if os.name != "posix":  # a signal of 0 ends a process on Windows
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    try:
        # After the name in parentheses, which may hold anything, comes the state; Z has ended.
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return True


def cores() -> int:
    """Return how many cores this process may use, by its binding and its container."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:  # microseconds in each period, https://docs.kernel.org/admin-guide/cgroup-v2.html
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(own, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such limit
        return own
