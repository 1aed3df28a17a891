"""Making a state whole that an interrupt has left half changed.

What calls there are, and what each worker was sent, is known beside the scheduler, and
is the truth. A call that was sent nowhere waits, in its old place; a worker that has
nothing to do is idle. All that can be counted is counted anew, and what was decided but
perhaps not done is decided once more: to tell a worker twice to end does no harm.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from shmexec.scheduler import records as r
from shmexec.scheduler.entities import Call, Worker
from shmexec.scheduler.packs import Packs
from shmexec.scheduler.records import CallState, Command, WorkerState
from shmexec.scheduler.slots import Slots
from shmexec.scheduler.state import KILL_AFTER, State


class Truth(NamedTuple):
    """What is known for sure."""

    calls: Collection[int]
    """Calls that are not done."""
    sent: Mapping[int, Sequence[int]]
    """By worker that has a process: what it was sent, in order, done or not."""
    packed: Collection[int]
    """Workers that were sent a pack which has not ended."""
    starting: Collection[int]
    """Workers that are just being started, or are due to be."""
    asked: Collection[int]
    """Workers that were asked to end."""


class Recovery:
    """See the module.

    Args:
        state: The pool's.
        packs: Its packs.
        slots: Its workers with several slots.
        max_calls: Calls after which a worker is replaced, None for never.
    """

    def __init__(
        self, state: State, packs: Packs, slots: Slots, max_calls: int | None
    ) -> None:
        self._state = state
        self._packs = packs
        self._slots = slots
        self._max_calls = max_calls

    def recover(self, truth: Truth, now: float) -> list[Command]:
        """Make the state whole; what must be done once more."""
        state = self._state
        for number in list(state.calls):
            if number not in truth.calls:
                del state.calls[number]
        for number, calls in truth.sent.items():
            if number not in state.workers and any(n in state.calls for n in calls):
                # Its death was being told of, and will be again.
                state.workers[number] = Worker(number, now)
                state.workers[number].state = WorkerState.BUSY
        for call in state.calls.values():
            call.worker, call.state = None, CallState.PENDING
        commands: list[Command] = []
        for worker in list(state.workers.values()):
            commands += self._settle_worker(worker, truth, now)
        for call in state.calls.values():
            if call.state is CallState.PENDING:
                call.stop_at = call.kill_at = None
        self._count()
        return commands + self._decide_again(now)

    def _settle_worker(self, worker: Worker, truth: Truth, now: float) -> list[Command]:
        """Give a worker what it was sent."""
        state = self._state
        if worker.id not in truth.sent:
            if worker.state in {WorkerState.IDLE, WorkerState.BUSY}:
                del state.workers[worker.id]  # there is no process any more
                return []
            return [] if worker.id in truth.starting else [r.Spawn(worker.id)]
        calls = [state.calls[n] for n in truth.sent[worker.id] if n in state.calls]
        for call in calls:
            call.worker, call.state = worker, CallState.RUNNING
        worker.packed = worker.id in truth.packed
        worker.call, worker.pack, worker.flight = None, {}, {}
        by_number = {call.id: call for call in calls}
        if worker.packed:
            worker.pack = by_number
        elif state.slots > 1:
            worker.flight = by_number
        elif calls:
            worker.call = calls[0]
        if worker.state is WorkerState.DRAINING:
            return self._end(worker, calls, truth, now)
        if calls or worker.packed:
            worker.state = WorkerState.BUSY
        elif worker.state is not WorkerState.STARTING:
            worker.state = WorkerState.IDLE
        self._limit(worker, now)
        return []

    def _end(
        self, worker: Worker, calls: list[Call], truth: Truth, now: float
    ) -> list[Command]:
        """It is to end; perhaps nobody has told it."""
        worker.stop_at = worker.look_at = None
        if worker.kill_at is None:
            worker.kill_at = now + KILL_AFTER
        if calls:
            return [r.Kill(worker.id)]
        return [] if worker.id in truth.asked else [r.Exit(worker.id)]

    def _limit(self, worker: Worker, now: float) -> None:
        """Set when it is to be looked at."""
        if worker.id not in self._state.mute:
            worker.kill_at = None
        worker.look_at = (worker.look_at or now) if worker.packed else None
        if worker.call is not None and worker.call.timeout is not None:
            worker.stop_at = worker.stop_at or now + worker.call.timeout
        elif worker.state is not WorkerState.STARTING:
            worker.stop_at = None
        for call in worker.flight.values():
            if call.timeout is not None and not call.stopping:
                call.stop_at = call.stop_at or now + call.timeout

    def _count(self) -> None:
        """All that can be counted, and the order of what waits."""
        state = self._state
        calls, workers = state.calls.values(), state.workers.values()
        waiting = [call for call in calls if call.state is CallState.PENDING]
        state.pending = len(waiting)
        state.waiting.fill(waiting)
        state.mute.intersection_update(state.workers)
        by_state = [worker.state for worker in workers]
        state.starting = by_state.count(WorkerState.STARTING)
        state.draining = by_state.count(WorkerState.DRAINING)
        self._packs.open = sum(w.look_at is not None for w in workers)
        state.timed = state.count_limited()
        free = state.find_idle()
        order = [*(n for n in state.idle if n in free), *free]
        state.idle.clear()
        state.idle.update((n, free[n]) for n in dict.fromkeys(order))
        # What was done and not yet counted, counts as that.
        counted = sum(state.counts.values()) + len(state.calls)
        state.counts[CallState.DONE] += max(0, state.submitted - counted)
        state.submitted = max(state.submitted, counted)

    def _decide_again(self, now: float) -> list[Command]:
        state = self._state
        commands: list[Command] = []
        for call in list(state.calls.values()):
            if call.state is CallState.PENDING:
                commands += self._decide_pending(call, now)
            elif call.stopping and call.worker is not None:
                commands += self._stop_again(call, call.worker, now)
        for worker in list(state.workers.values()):
            idle = worker.state is WorkerState.IDLE
            spent = self._max_calls is not None and worker.calls >= self._max_calls
            useless = state.broken and (idle or worker.state is WorkerState.STARTING)
            if useless or (idle and spent):
                commands += state.retire(worker, now)
        return commands

    def _decide_pending(self, call: Call, now: float) -> list[Command]:
        state = self._state
        gone = call.pinned is not None and call.pinned not in state.workers
        if call.stopping or state.cancelling:
            failed = state.fail(call, call.stopping or "cancelled", now)
        elif state.broken:
            failed = state.fail_broken(call, now)
        elif gone:
            failed = state.fail(call, "died", now, detail="its worker has ended")
        else:
            return []
        state.waiting.leave(call)
        return [failed]

    def _stop_again(self, call: Call, worker: Worker, now: float) -> list[Command]:
        """A call that is to stop; perhaps nobody has told its worker."""
        if worker.state is WorkerState.DRAINING or worker.packed:
            return []
        if self._state.slots > 1:
            return self._slots.stop(call, worker, call.stopping, now)
        return [self._state.interrupt(worker, now)]
