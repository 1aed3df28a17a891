"""What samples of memory lead to: of single workers, and of what the machine has left.

A worker over its limit is replaced after its call, one over the hard limit at once, in
mid-call. When memory gets scarce idle memory is returned first; if that does not help
the pool is *paused*: calls wait, but for one at a time; and if hardly anything is left
it *refuses* new calls.

A paused pool never stands still. One call may always run; and since that one may wait
for another, one more begins after each ``PATIENCE``. Samples end the pause; if none
come any more, it goes on like that.
"""

from __future__ import annotations

from typing import NamedTuple

from shmexec.scheduler import records as r
from shmexec.scheduler.entities import Worker
from shmexec.scheduler.records import Command, WorkerState
from shmexec.scheduler.slots import Slots
from shmexec.scheduler.state import State

TRIM_EVERY = 2.0
"""Seconds between two tries to return idle memory, while there is little."""


class Limits(NamedTuple):
    """Bytes of private memory that a worker may have, and that shall be left free.

    Attributes:
        after: A worker over it is replaced after its call; None for no limit.
        within: A worker over it is killed in its call; None for no limit.
        reserve: Of the machine, or its cgroup; 0 for none.
    """

    after: int | None = None
    within: int | None = None
    reserve: int = 0


NO_LIMITS = Limits()


class Weight:
    """See the module.

    Args:
        state: The pool's.
        slots: Its calls that share a worker.
        limits: What may be had.
    """

    def __init__(self, state: State, slots: Slots, limits: Limits) -> None:
        self._state = state
        self._slots = slots
        self._limits = limits
        self._after = min(
            (n for n in (limits.after, limits.within) if n is not None), default=None
        )
        self._trim_at = 0.0
        self._tight = False  # it was at the last sample, and idle memory was returned
        self.retired = 0
        """Workers that were replaced after a call."""
        self.killed = 0
        """Workers that were killed in a call."""
        self.pauses = 0
        """How often the pool was paused."""
        self.refusing = False
        """Whether no call should be taken."""

    def sampled(self, event: r.MemorySampled, now: float) -> list[Command]:
        """Somebody has looked."""
        commands: list[Command] = []
        for number, nbytes in event.workers:
            worker = self._state.workers.get(number)
            if worker is not None:
                commands += self._weigh(worker, nbytes, now)
        if event.free is not None and self._limits.reserve:
            commands += self._mind(event.free, now)
        return commands

    # -- workers -----------------------------------------------------------------------

    def _weigh(self, worker: Worker, nbytes: int, now: float) -> list[Command]:
        limits, busy = self._limits, worker.state is WorkerState.BUSY
        if not busy and worker.state is not WorkerState.IDLE:
            return []
        if busy and limits.within is not None and nbytes > limits.within:
            self.killed += 1
            warn = r.Warn("killed", worker.id, nbytes)
            return [warn, self._slots.kill(worker, now)]
        over = self._after is not None and nbytes > self._after
        worker.heavy = nbytes if over else 0
        if busy and worker.flight:
            self._slots.offer(worker)
        return [] if busy else self.replace(worker, now)

    def replace(self, worker: Worker, now: float) -> list[Command]:
        """Ask a worker without a call to end, if it is over its limit.

        Not before its first call: the one in its place would be no lighter. Nor while
        calls wait that no other worker can run.
        """
        pinned = self._state.waiting.pinned.get(worker.id)
        if not worker.heavy or not worker.calls or pinned:
            return []
        self.retired += 1
        warn = r.Warn("retired", worker.id, worker.heavy)
        return [warn, *self._state.retire(worker, now)]

    # -- the machine -------------------------------------------------------------------

    def _mind(self, free: int, now: float) -> list[Command]:
        """See how much is left."""
        state, reserve = self._state, self._limits.reserve
        commands: list[Command] = []
        tight = free < 2 * reserve
        if tight and now >= self._trim_at:
            self._trim_at = now + TRIM_EVERY
            commands.append(r.Trim())
        # Idle memory first: the next sample tells whether that was enough.
        if free < reserve and self._tight and not state.paused:
            state.pause(now)
            self.pauses += 1
            commands.append(r.Warn("paused", None, free))
        elif free >= reserve + reserve // 4:
            state.paused = False
        self._tight = tight
        self.refusing = state.paused and free < reserve // 4
        return commands
