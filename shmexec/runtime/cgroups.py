"""What the control groups of this process say about memory, version 1 and 2.

A group may have a limit, and so may each group around it: what counts is the one with
the least left. Files are read anew each time, since limits may change while a program
runs; which folders they are in is found once.
"""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

UNLIMITED = 1 << 60
"""Limits from here on are none; version 1 writes a huge number."""

ROOT = "/sys/fs/cgroup"

_V1_RECLAIMABLE = {"total_inactive_file": 1.0, "total_active_file": 0.5}
_V2_RECLAIMABLE = {
    "inactive_file": 1.0,
    "active_file": 0.5,
    "slab_reclaimable": 1.0,
}


class Usage(NamedTuple):
    """What a limited group may use and what it uses, in bytes.

    Without what the kernel drops when it needs room: the page cache of files. Half of
    what is used often counts, since programs that lose it get slow.
    """

    limit: int
    used: int

    @property
    def free(self) -> int:
        """What it may use beside, in bytes."""
        return max(0, self.limit - self.used)


class Group(NamedTuple):
    """One group."""

    folder: str
    unified: bool
    """Of version 2."""
    outermost: bool = False
    """There may be groups around it that are not mounted here."""


def tightest(groups: tuple[Group, ...]) -> Usage | None:
    """The group that has the least left; None if none is limited."""
    found = [usage for group in groups if (usage := _usage(group)) is not None]
    return min(found, key=lambda usage: usage.free, default=None)


def oom_kills(groups: tuple[Group, ...]) -> int | None:
    """How many processes of the groups the kernel has killed for want of memory.

    Returns:
        The number in the innermost group that tells one, None if none does.
    """
    for group in groups:
        name = "memory.events" if group.unified else "memory.oom_control"
        counts = _table(f"{group.folder}/{name}")
        if "oom_kill" in counts:
            return counts["oom_kill"]
    return None


def groups_of(root: str = ROOT, own: str | None = None) -> tuple[Group, ...]:
    """The groups of this process that say something about memory, innermost first.

    Args:
        root: Where the file system of the groups is mounted.
        own: What ``/proc/self/cgroup`` says. In a container it may name folders that are
            not mounted there: what is mounted in their place is the container's group.
    """
    found: list[Group] = []
    text = _text("/proc/self/cgroup") if own is None else own
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        unified = controllers == ""
        if not unified and "memory" not in controllers.split(","):
            continue
        # Beside version 1, version 2 is mounted in a folder of its own.
        base = root if unified else f"{root}/memory"
        parts = [part for part in path.split("/") if part]
        if ".." in parts:  # outside of what this namespace shows
            parts = []
        name = "memory.max" if unified else "memory.limit_in_bytes"
        for length in range(len(parts), -1, -1):
            folder = "/".join([base, *parts[:length]])
            if os.path.exists(f"{folder}/{name}"):
                found.append(Group(folder, unified))
        if found:
            found[-1] = found[-1]._replace(outermost=True)
    return tuple(found)


@functools.cache
def own_groups() -> tuple[Group, ...]:
    """Those of this process."""
    return groups_of()


def _usage(group: Group) -> Usage | None:
    folder = group.folder
    # Past `memory.high` processes are slowed down until they stand still.
    limits, used_name, weights = (
        (("memory.max", "memory.high"), "memory.current", _V2_RECLAIMABLE)
        if group.unified
        else (
            ("memory.limit_in_bytes",),
            "memory.usage_in_bytes",
            _V1_RECLAIMABLE,
        )
    )
    numbers = (_number(f"{folder}/{name}") for name in limits)
    limit = min((n for n in numbers if n is not None), default=UNLIMITED)
    if limit >= UNLIMITED and (group.unified or not group.outermost):
        return None
    stat = _table(f"{folder}/memory.stat")
    # The least limit of this group and of all around it.
    limit = min(limit, stat.get("hierarchical_memory_limit", UNLIMITED))
    used = _number(f"{folder}/{used_name}")
    if limit >= UNLIMITED or used is None:
        return None
    cache = sum(int(stat.get(name, 0) * weight) for name, weight in weights.items())
    return Usage(limit, max(0, used - cache))


def _number(path: str) -> int | None:
    """The number in a file; None if there is none, as in ``max``."""
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _table(path: str) -> dict[str, int]:
    pairs = (line.split() for line in _text(path).splitlines())
    return {
        pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()
    }


def _text(path: str) -> str:
    # Unlike a bare descriptor, a file is closed even if an interrupt strikes at once.
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(1 << 16).decode(errors="replace")
    except OSError:
        return ""
