"""What happens to pools at fork and at interpreter exit, and the hosts they share."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from shmexec.memory.host import Host
from shmexec.memory.segment import Kind
from shmexec.runtime import monitor
from shmexec.runtime.server import forget_fork_server

if TYPE_CHECKING:
    from shmexec.runtime.attended import Attended
    from shmexec.runtime.pool import Pool
    from shmexec.runtime.workers import WorkerHandle

_pools: weakref.WeakValueDictionary[int, Pool] = weakref.WeakValueDictionary()
"""By their ids; looked at by :func:`pools`."""

_hosts: dict[Kind, Host] = {}
_lock = threading.Lock()
_exiting = False

opening: set[WorkerHandle] = set()
"""Workers that are being started: no pool knows them yet."""

launch = threading.Lock()
"""Held while a worker is started, and so held in a worker that was forked: made anew."""

keep_in_child: set[int] = set()
"""Descriptors that the next forked child is to keep: it is a worker, they are its own."""


ROOMIER = 8
"""How often the budget an arena's address space is, if it may be.

However blocks came and went, one finds room in it, as long as a part of the budget is
free: with sizes from 32 KiB to 64 MiB, whatever the allocator, a program can be written
that needs 4.5 times what is in use at most (Robson, JACM 18, 1971), and none was seen to
need more of this one; programs that do not try need less than 1.5 times."""

ROOM_AT_MOST = 256 << 30
"""Bytes of address space for that, unless the machine has more memory. Each worker has an
arena, and all are mapped in this process, whose address space has 128 TiB."""


def host(kind: Kind, at_least: int | None = None) -> Host:
    """The process's shared memory of that kind, made at first use.

    Args:
        kind: Which.
        at_least: The budget that it will be given, if that is known.
    """
    with _lock:
        found = _hosts.get(kind)
        if found is None or found.forked:
            budget = max(64 << 20, monitor.available_bytes() // 2)
            room = min(ROOMIER * max(budget, at_least or 0), ROOM_AT_MOST)
            arena = max(budget, monitor.total_bytes(), room)
            found = _hosts[kind] = Host(kind, arena, budget)
        return found


def register(pool: Pool) -> None:
    """Have a pool looked after."""
    _pools[id(pool)] = pool


def unregister(pool: Attended) -> None:
    """It has ended: nothing is left to look after."""
    _pools.pop(id(pool), None)


def pools() -> list[Pool]:
    """The pools of this process that have not ended."""
    # Copied by one C call: other threads make and end pools meanwhile.
    refs = _pools.valuerefs()
    return [pool for ref in refs if (pool := ref()) is not None]


def exiting() -> bool:
    """Whether the interpreter is ending: no call can be taken any more."""
    return _exiting


def _at_exit() -> None:
    """Finish what was submitted, as ``ProcessPoolExecutor`` does, then end workers."""
    global _exiting
    try:
        for pool in pools():
            pool.take_in()
        _exiting = True
        for pool in pools():
            pool.shutdown(wait=True)
    except KeyboardInterrupt:
        _exiting = True
        for pool in pools():
            pool.halt()
        raise


def _before_fork() -> None:
    _lock.acquire()
    for found in _hosts.values():
        found.before_fork()


def _after_fork_in_parent() -> None:
    for found in _hosts.values():
        found.after_fork_in_parent()
    _lock.release()


def _after_fork_in_child() -> None:
    global _lock, launch
    _lock, launch = threading.Lock(), threading.Lock()
    steps: list[Callable[[], object]] = [
        *(found.after_fork_in_child for found in _hosts.values()),
        *(partial(pool.after_fork_in_child, keep_in_child) for pool in pools()),
        *(partial(handle.close_in_child, keep_in_child) for handle in opening),
        forget_fork_server,
    ]
    _hosts.clear()
    _pools.clear()
    opening.clear()
    for step in steps:
        # One that fails must not keep the others from letting go of the parent.
        with contextlib.suppress(Exception):
            step()
    keep_in_child.clear()


try:
    # Where concurrent.futures does it, too: before threads are joined.
    threading._register_atexit(_at_exit)  # type: ignore[attr-defined] # noqa: SLF001
except (AttributeError, RuntimeError):
    atexit.register(_at_exit)
os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
