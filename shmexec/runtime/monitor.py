"""What the system, psutil and the cgroup files say about memory.

psutil is imported when it is needed: the first executor of a program does not need it.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

_UNLIMITED = 1 << 60


def private_bytes(pid: int) -> int | None:
    """Private memory of a process in bytes, ``rss - shared``; None if it is gone.

    Shared pages are not its own: an arena would count as "unique" to the process that
    happened to touch it first.
    """
    import psutil

    try:
        info = psutil.Process(pid).memory_info()
    except (psutil.Error, OSError):
        return None
    return max(0, int(info.rss) - int(getattr(info, "shared", 0)))


def total_bytes() -> int:
    """Memory of the machine, or of its cgroup if that has less."""
    limit, _ = _cgroup()
    return min(_machine()[0], limit)


def available_bytes() -> int:
    """Memory that can be had now without swapping, in the machine and the cgroup."""
    limit, used = _cgroup()
    return max(0, min(_machine()[1], limit - used))


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


def _cgroup() -> tuple[int, int]:
    """Limit and use of the innermost limited cgroup; a huge limit if none has one."""
    best = (_UNLIMITED, 0)
    for folder, limit_name, used_name in _cgroup_folders():
        try:
            limit_text = (folder / limit_name).read_text().strip()
            used = int((folder / used_name).read_text())
            used -= _inactive_file(folder)
            limit = _UNLIMITED if limit_text == "max" else int(limit_text)
        except (OSError, ValueError):
            continue
        if limit < _UNLIMITED and limit - used < best[0] - best[1]:
            best = (limit, used)
    return best


def _inactive_file(folder: Path) -> int:
    """Page cache that the kernel drops when it needs room."""
    for line in (folder / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in {"inactive_file", "total_inactive_file"}:
            return int(value)
    return 0


@functools.cache
def _cgroup_folders() -> tuple[tuple[Path, str, str], ...]:
    root = Path("/sys/fs/cgroup")
    found: list[tuple[Path, str, str]] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return ()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            names, base = ("memory.max", "memory.current"), root
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            base = root / "memory"
        else:
            continue
        folder = base / path.lstrip("/")
        found += [
            (place, *names)
            for place in (folder, *folder.parents)
            if place.is_relative_to(base) and (place / names[0]).exists()
        ]
    return tuple(found)


def growth_warning(workers: int, pids: list[int]) -> str:
    """What to say when a pool of more than eight workers is asked for.

    Args:
        workers: How many are asked for.
        pids: Processes of running workers, to be measured.
    """
    sizes = [size for pid in pids if (size := private_bytes(pid)) is not None]
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
