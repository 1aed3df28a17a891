"""What a pool is at, as plain values for another program: ``shmexec top`` shows them.

Asked for by a thread that nobody waits for. The pool's lock is held while its tables are
copied, some microseconds, and never waited for for long: somebody who holds it may be
stuck. What the system knows of processes, whoever shows this asks the system for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import islice
from threading import Lock
from typing import Any

from shmexec.deadline import Deadline, now
from shmexec.runtime.tables import Tables
from shmexec.scheduler import inspection
from shmexec.scheduler.entities import Call, Worker
from shmexec.scheduler.records import CallState

WORKERS_AT_MOST = 256
"""Workers of a pool that are told one by one."""

_TEXT_AT_MOST = 120


def of_pool(
    tables: Tables,
    account: Hashable,
    standing: Callable[[], str],
    lock: Lock,
    deadline: Deadline,
) -> dict[str, Any]:
    """What one pool is at.

    Args:
        tables: The pool's.
        account: Who it is in the budget of its memory.
        standing: What it is at; asked with the lock held.
        lock: The pool's.
        deadline: Until when its lock is waited for.
    """
    options = tables.options
    told: dict[str, Any] = {
        "name": _cut(options.name),
        "actor": _cut(options.actor.name) if options.actor else None,
        "start_method": options.start_method,
        "uptime": now() - tables.born,
        "locked": False,
    }
    if not _acquire(lock, deadline):
        return {**told, "locked": True}
    try:
        told.update(_counts(tables), state=standing())
        workers = tables.machine.workers
        told["workers"] = [
            _worker(tables, worker)
            for worker in islice(workers.values(), WORKERS_AT_MOST)
        ]
        told["more_workers"] = max(0, len(workers) - WORKERS_AT_MOST)
    finally:
        lock.release()
    return {**told, **_memory(tables, account, deadline)}


def _acquire(lock: Lock, deadline: Deadline) -> bool:
    return lock.acquire(timeout=deadline.remaining() or 0.0)


def _counts(tables: Tables) -> dict[str, Any]:
    machine = tables.machine
    oldest, last = machine.oldest_pending(), machine.last_death
    failure = "; ".join(machine.broken) or (last[1] if last else "")
    return {
        "max_workers": machine.max_workers,
        "pending": machine.pending,
        "oldest_pending": 0.0 if oldest is None else now() - oldest.born,
        "running": len(machine.calls) - machine.pending,
        "done": machine.counts[CallState.DONE],
        "failed": machine.counts[CallState.FAILED],
        "cancelled": machine.counts[CallState.CANCELLED],
        "restarts": machine.deaths,
        "last_failure": _cut(failure),
        "paused": machine.paused,
    }


def _worker(tables: Tables, worker: Worker) -> dict[str, Any]:
    handle = tables.workers.get(worker.id)
    call, others = (None, 0) if handle is None else _current(worker, handle.begun())
    moment = now()
    return {
        "pid": None if handle is None else handle.process.pid,
        "state": worker.state.value,
        "since": moment - worker.since,
        "done": worker.calls,
        "call": None if call is None else _cut(call.name),
        "call_since": None if call is None else moment - inspection.sent_at(call),
        "more_calls": others,
        "stopping": bool(call is not None and call.stopping),
    }


def _current(worker: Worker, begun: int) -> tuple[Call | None, int]:
    """What it runs, or the first of it, and how many calls more it was sent."""
    if worker.call is not None:
        return worker.call, 0
    if worker.packed:
        current = worker.pack.get(begun)
        return current, len(worker.pack) - (current is not None)
    flight = worker.flight
    return next(iter(flight.values()), None), max(0, len(flight) - 1)


def _memory(tables: Tables, account: Hashable, deadline: Deadline) -> dict[str, Any]:
    host = tables.host
    if not _acquire(host.lock, deadline):
        return {"shared_used": None, "shared_budget": None}
    try:
        return {
            "shared_used": host.budget.used(account),
            "shared_budget": host.budget.limit(account),
        }
    except ValueError:  # it has just ended
        return {"shared_used": 0, "shared_budget": None}
    finally:
        host.lock.release()


def _cut(text: str) -> str:
    return text if len(text) <= _TEXT_AT_MOST else text[: _TEXT_AT_MOST - 1] + "…"
