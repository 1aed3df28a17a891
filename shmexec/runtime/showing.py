"""What a pool and its workers do now, as text for people; see ``Executor.dump``.

The pool's lock is taken to look at its tables and to ask workers for their stacks, and
let go while they write them. Somebody may be stuck who holds it, which is what a text
like this is to find out: so nobody waits for it for long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import NamedTuple

from shmexec.deadline import now
from shmexec.runtime import monitor
from shmexec.runtime.asking import Asked, wait_for_all
from shmexec.runtime.tables import Tables
from shmexec.scheduler import inspection
from shmexec.scheduler.entities import Call, Worker
from shmexec.scheduler.records import WorkerState
from shmexec.worker import main

_LOCKED_WITHIN = 2.0
_TOGETHER = 16
"""Workers that are asked at the same time; each takes a descriptor meanwhile."""

_CALLS_AT_MOST = 10
"""Calls of one worker that are told one by one."""


class Busy(Exception):
    """Another thread has held the pool's lock for long."""


@contextmanager
def _held(lock: Lock) -> Iterator[None]:
    got: list[bool] = []
    try:
        # One C call, so that an interrupt cannot fall between lock and note.
        got.extend(map(lock.acquire, (True,), (_LOCKED_WITHIN,)))
        if not got[0]:
            raise Busy
        yield
    finally:
        if got and got[0]:
            lock.release()


class _Seen(NamedTuple):
    """A worker, as it was when the lock was held."""

    number: int
    pid: int | None
    head: str
    calls: list[str]


def title(tables: Tables) -> str:
    """What the pool is of."""
    options = tables.options
    if options.actor is not None:
        return f"actor {options.actor.name} ({options.name})"
    return f"executor {options.name!r}"


def show(tables: Tables, lock: Lock, standing: Callable[[], str]) -> str:
    """All of it.

    Args:
        tables: The pool's.
        lock: The pool's.
        standing: What the pool is at; asked with the lock held.
    """
    try:
        # One after the other: two would read each other's text.
        with tables.showing:
            parts = _head(tables, lock, standing)
            with _held(lock):
                workers = sorted(tables.machine.workers)
            for start in range(0, len(workers), _TOGETHER):
                parts += _group(tables, lock, workers[start : start + _TOGETHER])
            return "\n".join(parts) + "\n"
    except Busy:
        return (
            f"{title(tables)}\n  (a thread of this process has held its lock for "
            f"{_LOCKED_WITHIN:g} s; faulthandler.dump_traceback() shows which)\n"
        )


def _head(tables: Tables, lock: Lock, standing: Callable[[], str]) -> list[str]:
    with _held(lock):
        head = f"{title(tables)}: {standing()}"
        reasons = tables.machine.broken
        priorities = tables.machine.pending_priorities()
        oldest = tables.machine.oldest_pending()
        seconds = None if oldest is None else now() - oldest.born
    why = [f"  {line}" for reason in reasons for line in reason.splitlines()]
    return [head, *why, _pending(priorities, seconds)]


def _pending(priorities: Iterable[int], oldest: float | None) -> str:
    counts = Counter(priorities)
    if not counts:
        return "  no call pending"
    each = ", ".join(
        f"{count} of priority {priority}"
        for priority, count in sorted(counts.items(), reverse=True)
    )
    since = "" if oldest is None else f", the oldest for {oldest:.1f} s"
    return f"  calls pending: {sum(counts.values())} ({each}){since}"


def _group(tables: Tables, lock: Lock, numbers: list[int]) -> Iterator[str]:
    """Some workers, which write their stacks at the same time."""
    seen: list[_Seen] = []
    asked: dict[int, Asked] = {}
    why: dict[int, str] = {}
    try:
        with _held(lock):
            for number in numbers:
                worker = tables.machine.workers.get(number)
                if worker is None:
                    continue  # it has ended meanwhile
                seen.append(_look(tables, worker))
                try:
                    handle = tables.workers[number]
                    asked[number] = Asked(handle)
                except KeyError:
                    why[number] = "(its process is being made)\n"
                except OSError as error:
                    why[number] = f"(no stacks: {error})\n"
        wait_for_all(list(asked.values()))
        with _held(lock):
            for number, each in asked.items():
                why[number] = each.answer()
    finally:
        for each in asked.values():
            each.close()
    for one in seen:
        private = None if one.pid is None else monitor.private_bytes(one.pid)
        size = "" if private is None else f", {private / 1e6:.1f} MB of private memory"
        yield f"\n{one.head}{size}"
        yield from one.calls
        yield from (f"    {line}" for line in _shortened(why[one.number]))


def _shortened(text: str) -> Iterator[str]:
    """Without what is below the worker's loop, which is the same in all of them."""
    below = False
    for line in text.splitlines():
        below = below and line.startswith("  ")
        if line and not below:
            yield line
        below = below or (main.__file__ in line and line.endswith(" in loop"))


def _look(tables: Tables, worker: Worker) -> _Seen:
    handle = tables.workers.get(worker.id)
    pid = None if handle is None else handle.process.pid
    who = f"worker {worker.id}" + ("" if pid is None else f" (pid {pid})")
    state: str = worker.state.value
    if worker.state is WorkerState.STARTING and handle is not None:
        what = "building the instance" if tables.options.actor else "its initializer"
        state = f"starting: its process, or {what}"
    since = now() - worker.since
    calls = [] if handle is None else _calls(worker, handle.begun())
    return _Seen(worker.id, pid, f"{who}, {state} for {since:.1f} s", calls)


def _calls(worker: Worker, begun: int) -> list[str]:
    """The calls that a worker was sent and has not done."""
    if worker.call is not None:
        return [_call(worker.call, begun, alone=True)]
    if worker.packed:
        number = len(worker.pack)
        current = worker.pack.get(begun)
        lines = [f"  a pack of which {number} calls are not known to be done"]
        return [*lines, *([_call(current, begun)] if current else [])]
    flight = list(worker.flight.values())
    lines = [_call(call, 0) for call in flight[:_CALLS_AT_MOST]]
    if len(flight) > _CALLS_AT_MOST:
        lines.append(f"  and {len(flight) - _CALLS_AT_MOST} calls more")
    return lines


def _call(call: Call, begun: int, *, alone: bool = False) -> str:
    since = inspection.sent_at(call)
    text = f"  call {call.id} of {call.name}, for {now() - since:.1f} s"
    if call.timeout is not None:
        text += f" of {call.timeout:g} s that it may take"
    if call.stopping:
        why = "its time is up" if call.stopping == "timeout" else "it was cancelled"
        text += f"; being stopped, since {why}"
    elif alone and begun != call.id:
        text += "; the worker has not begun with it"
    return text
