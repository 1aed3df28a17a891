"""What the system says about memory: of a process, of the machine, of its cgroup.

On Linux its files are read, elsewhere psutil is asked, which is imported only then: the
first executor of a program does not need it.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import NamedTuple

from shmexec.runtime import cgroups


class Memory(NamedTuple):
    """Memory of the machine, or of its cgroup if that has less left, in bytes."""

    total: int
    free: int
    """What can be had without swapping."""


def private_bytes(pid: int) -> int | None:
    """Private memory of a process in bytes, ``rss - shared``; None if it is gone.

    Shared pages are not its own: an arena would count as "unique" to the process that
    happened to touch it first.
    """
    gauge = Gauge(pid)
    try:
        return gauge.read()
    finally:
        gauge.close()


class Gauge:
    """Reads the private memory of one process again and again.

    It keeps a descriptor: to open the file anew takes five times as long as to read it,
    and another process that gets the same number is not taken for this one.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._descriptor = -1

    def read(self) -> int | None:
        """As :func:`private_bytes`."""
        if not _PROC:
            return _private_bytes_elsewhere(self._pid)
        try:
            if self._descriptor < 0:
                path = f"/proc/{self._pid}/statm"
                self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            text = os.pread(self._descriptor, 256, 0)
            _, resident, shared, _ = text.split(b" ", 3)
        except (OSError, ValueError):
            return None
        # One that has ended and was not reaped yet has no memory, which is no reading.
        pages = int(resident)
        return max(0, pages - int(shared)) * _PAGE if pages else None

    def close(self) -> None:
        """Close the descriptor."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _private_bytes_elsewhere(pid: int) -> int | None:
    import psutil

    try:
        info = psutil.Process(pid).memory_info()
    except (psutil.Error, OSError):
        return None
    return max(0, int(info.rss) - int(getattr(info, "shared", 0)))


_PROC = os.path.exists("/proc/self/statm")
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def memory() -> Memory:
    """What there is of it now."""
    total, free = _machine()
    group = cgroups.tightest(cgroups.own_groups())
    if group is not None:
        total, free = min(total, group.limit), min(free, group.free)
    return Memory(total, free)


def total_bytes() -> int:
    """Memory of the machine, or of its cgroup if that has less."""
    return memory().total


def available_bytes() -> int:
    """Memory that can be had now without swapping, in the machine and the cgroup."""
    return memory().free


def oom_kills() -> int | None:
    """How many processes were killed so far for want of memory; None if nothing tells.

    In the cgroup, or else in the whole machine.
    """
    kills = cgroups.oom_kills(cgroups.own_groups())
    if kills is not None:
        return kills
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith("oom_kill ")]
    return int(found[0].split()[1]) if found else None


def _machine() -> tuple[int, int]:
    """Memory of the machine: all of it, and what can be had without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = {
            name: rest for name, _, rest in (line.partition(":") for line in lines)
        }
        kilobytes = [
            int(found[name].split()[0]) for name in ("MemTotal", "MemAvailable")
        ]
    except (OSError, KeyError, ValueError):
        import psutil

        memory = psutil.virtual_memory()
        return int(memory.total), int(memory.available)
    return kilobytes[0] * 1024, kilobytes[1] * 1024


def can_take(nbytes: int) -> bool:
    """Whether so many bytes can be had now, and a tenth of the machine left free."""
    return available_bytes() - nbytes > total_bytes() // 10


@functools.cache
def default_reserve() -> int:
    """Bytes that shall be left free: a twentieth of all, at most 1 GiB."""
    return min(1 << 30, total_bytes() // 20)


def growth_warning(workers: int, sizes: list[int]) -> str:
    """What to say of a pool of more than eight workers.

    Args:
        workers: How many there may be.
        sizes: Private memory of those that run, in bytes.
    """
    if sizes:
        each, source = max(sizes), f"measured in {len(sizes)} running workers"
    else:
        each = private_bytes(os.getpid()) or 1
        source = "measured in this process, since no worker runs yet"
    left = available_bytes() + sum(sizes)
    fit = max(1, left // max(1, each))
    verdict = "they fit" if fit >= workers else f"at most {fit} would fit"
    return (
        f"{workers} workers × {each / 1e6:.0f} MB of private memory ({source}) = "
        f"{workers * each / 1e9:.2f} GB, with {left / 1e9:.2f} GB left: {verdict}. "
        "What calls allocate comes on top; each worker past the number of CPUs costs "
        "memory and gains nothing for computing."
    )
