"""What a pool tells people: how it is, what became of a call, what its workers do."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock
from typing import Any

from shmexec.deadline import Deadline, now
from shmexec.figures import Glimpse, Health, Stats, Step, Story
from shmexec.runtime import facts, monitor, showing
from shmexec.runtime.futures import Future
from shmexec.runtime.streams import Stream
from shmexec.runtime.tables import Tables
from shmexec.scheduler.records import WorkerState

_GONE = (
    "its story is not kept any more: that of the latest 1,000 calls which went well is, "
    "and of the latest 1,000 others"
)

_NO_CALL = (
    "it has no call in a worker: it could not be pickled, came from a cache, ran in this "
    "process or in one of its own, or is an item of a batch"
)


def story_of(owner: object, asked: object) -> Story:
    """What happened to the call of a future, or of a stream.

    Args:
        owner: The pool of the executor that was asked.
        asked: What it was asked about.

    Raises:
        TypeError: If it is neither.
        ValueError: If it is another executor's.
    """
    if not isinstance(asked, (Future, Stream)):
        msg = (
            f"story() takes a future that submit() returned, or a stream, not {asked!r}. "
            "(Items of pipelines have several calls, and those of batchers share one.)"
        )
        raise TypeError(msg)
    pool = getattr(asked, "_pool", None)
    telling = getattr(pool, "telling", None)
    if pool is None or telling is None:
        return Story(0, "", (), _NO_CALL)
    # Those of its actors are its own.
    if pool is not owner and pool.options.actor is None:
        msg = f"this future is of another executor, {pool.options.name!r}: ask that one"
        raise ValueError(msg)
    number: int = asked._call  # noqa: SLF001
    told: Story = telling.story(number, asked if isinstance(asked, Future) else None)
    return told


class Telling:
    """See the module.

    Args:
        tables: The pool's.
        lock: The pool's.
        standing: What the pool is at; asked with the lock held.
    """

    def __init__(self, tables: Tables, lock: Lock, standing: Callable[[], str]) -> None:
        self._tables = tables
        self._machine = tables.machine
        self._lock = lock
        self._standing = standing

    def after_fork_in_child(self, lock: Lock) -> None:
        """The pool's lock was made anew: who held it does not exist here."""
        self._lock = lock

    def dump(self) -> str:
        """See :meth:`shmexec.Executor.dump`."""
        return showing.show(self._tables, self._lock, self._standing)

    def facts(self, account: Hashable, deadline: Deadline) -> dict[str, Any]:
        """For other programs of this user; see :mod:`~shmexec.runtime.facts`."""
        return facts.of_pool(
            self._tables, account, self._standing, self._lock, deadline
        )

    def story(self, number: int, future: Future[object] | None) -> Story:
        """What happened to a call.

        Args:
            number: The call's.
            future: Its future, which knows whether it was cancelled.
        """
        with self._lock:
            told = self._machine.story(number)
            call = self._machine.find(number)
            if told is None or call is None:
                return Story(number, "a function", (), _GONE)
            pids = [self._tables.pids.get(each.worker or 0) for each in told]
        steps = [
            Step(at - call.born, what, worker, pid)
            for (at, what, worker), pid in zip(told, pids, strict=True)
        ]
        last, note = steps[-1], ""
        if future is not None and future.cancelled() and last.what.startswith("failed"):
            steps[-1] = last._replace(what="cancelled before it was sent")
        elif self._tables.options.fallback and last.what.startswith("failed: broken"):
            note = "then it ran in a process of its own, since there is a fallback"
        return Story(number, call.name, tuple(steps), note)

    def glimpse(self, stats: Callable[[], Stats]) -> Glimpse:
        """State, figures and what is wrong, for a display.

        Args:
            stats: Gives the figures; called with the lock held.
        """
        try:
            with showing.held(self._lock):
                # Figures first: they see to a state that an interrupt left half changed.
                figures, state = stats(), self._standing()
                broken, last = self._machine.broken, self._machine.last_death
        except showing.Busy:
            return Glimpse("unknown", None, showing.HELD)
        trouble = "; ".join(broken)
        if not trouble and last:
            trouble = f"the last worker that died: {last[1]}"
        return Glimpse(state, figures, trouble)

    def health(self) -> Health:
        """See :meth:`shmexec.Executor.health`."""
        with self._lock:
            time, machine = now(), self._machine
            states = [worker.state for worker in machine.workers.values()]
            oldest, last = machine.oldest_pending(), machine.last_death
            broken = machine.broken
            state = self._standing()
            pending = machine.pending
            pids = [handle.process.pid for handle in self._tables.workers.values()]
            restarts = machine.deaths
        busy = states.count(WorkerState.BUSY)
        return Health(
            state=state,
            workers=busy + states.count(WorkerState.IDLE),
            starting=states.count(WorkerState.STARTING),
            busy=busy,
            pending=pending,
            oldest_pending=0.0 if oldest is None else time - oldest.born,
            restarts=restarts,
            last_failure="; ".join(broken) or (last[1] if last else ""),
            last_failure_ago=None if last is None else time - last[0],
            private_bytes=sum(monitor.private_bytes(pid) or 0 for pid in pids),
        )
