"""What a program holds of the machine: to be compared before and after."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

_SHM = Path("/dev/shm")
_STEP = 0.1


class Held(NamedTuple):
    """What is held.

    Attributes:
        processes: In this session, or descended from this process; without it.
        descriptors: Open ones of this process.
        names: In ``/dev/shm``, of whomever.
    """

    processes: frozenset[int]
    descriptors: int
    names: frozenset[str]


def held() -> Held:
    """What is held now."""
    descriptors = len(os.listdir("/proc/self/fd"))
    names = frozenset(os.listdir(_SHM)) if _SHM.is_dir() else frozenset()
    return Held(frozenset(family()), descriptors, names)


def family() -> set[int]:
    """The processes of this session, and all descendants; without this process."""
    own, session = os.getpid(), os.getsid(0)
    parents: dict[int, tuple[int, int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path("/proc", entry, "stat").read_text(encoding="utf-8")
                _, parent, _, of = stat.rpartition(")")[2].split()[:4]
                parents[int(entry)] = int(parent), int(of)
    found = {pid for pid, (_, of) in parents.items() if of == session} - {own}
    tree = {own} | found
    while more := {pid for pid, (up, _) in parents.items() if up in tree} - tree:
        tree |= more
    return tree - {own}


def left(before: Held, within: float) -> dict[str, int]:
    """How much more is held than before, when that has not gone ``within`` seconds."""
    until = time.monotonic() + within
    while True:
        now = held()
        more = {
            "processes": max(0, len(now.processes) - len(before.processes)),
            "descriptors": max(0, now.descriptors - before.descriptors),
            "names": len(_of_this_session(now.names - before.names)),
        }
        if not any(more.values()) or time.monotonic() > until:
            return more
        time.sleep(_STEP)


def _of_this_session(names: frozenset[str]) -> set[str]:
    """Those that no process of another session has open or mapped.

    Other programs come and go in ``/dev/shm``, too.
    """
    ours = family() | {os.getpid()}
    mine = set(names)
    for entry in os.listdir("/proc") if mine else ():
        if entry.isdigit() and int(entry) not in ours:
            with contextlib.suppress(OSError):
                maps = Path("/proc", entry, "maps").read_text(encoding="utf-8")
                mine -= {name for name in mine if f"/dev/shm/{name}" in maps}
                folder = Path("/proc", entry, "fd")
                targets = {os.readlink(each) for each in folder.iterdir()}
                mine -= {name for name in mine if f"/dev/shm/{name}" in targets}
    return {name for name in mine if (_SHM / name).exists()}
