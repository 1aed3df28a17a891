"""The calls and workers of a pool, and the moves that they may make.

Everything that a call or a worker goes through comes down to what is here, and is
checked against the tables in ``records``. Which move to make, and when, is decided by
the modules beside this one.
"""

from __future__ import annotations

from shmexec.scheduler import records as r
from shmexec.scheduler.entities import STOP, Call, Worker
from shmexec.scheduler.memory import Memory
from shmexec.scheduler.records import CallState, Command, WorkerState
from shmexec.scheduler.waiting import Waiting

KILL_AFTER = 0.1
"""Seconds between the interrupt of a call that must stop and the kill."""

EXIT_WITHIN = 10.0
"""Seconds that a worker which was asked to end may take for its own clean-up."""

PATIENCE = 5.0
"""Seconds after which one more call begins in a paused pool.

Those that run may wait for it: for one that they submitted to another thread, say, or, if
it yields items, for whoever takes them.
"""

MUTE_AT_MOST = 1.0
"""Seconds that a worker which has closed its end of the connection may take to end."""


class State:
    """See the module.

    Args:
        max_workers: Workers at most, draining ones not counted.
        exclusive: Draining ones are counted.
        slots: Calls that a worker may have under way.
    """

    def __init__(self, max_workers: int, *, exclusive: bool, slots: int) -> None:
        self.max_workers = max_workers
        self.exclusive = exclusive
        self.slots = slots
        self.calls: dict[int, Call] = {}
        self.memory = Memory()  # of calls that are finished
        self.workers: dict[int, Worker] = {}
        self.waiting = Waiting(self.calls)
        # Those that can take a call. Ordered: the last one is used first.
        self.idle: dict[int, Worker] = {}
        self.closed = False
        self.cancelling = False  # closed, and what waits is not wanted
        self.broken: tuple[str, ...] = ()
        self.submitted = 0
        self.pending = 0
        self.counts = dict.fromkeys(
            (CallState.DONE, CallState.FAILED, CallState.CANCELLED), 0
        )
        self.failed: dict[int, r.Fail] = {}  # of calls that nobody was told of yet
        self.starting = 0
        self.draining = 0
        self.mute: set[int] = set()  # workers that cannot reply any more
        self.timed = 0  # workers, and calls that share one, with a time limit
        # Paused: calls begin one at a time, with one to spare after some patience.
        self.paused = False
        self.spare = False
        self.spare_at = 0.0

    def active(self) -> int:
        """Workers that count against the maximum."""
        return len(self.workers) - (0 if self.exclusive else self.draining)

    def count_limited(self) -> int:
        """What :attr:`timed` is to be."""
        workers, calls = self.workers.values(), self.calls.values()
        return (
            sum(worker.stop_at is not None for worker in workers)
            + sum(call.stop_at is not None for call in calls)
            + sum(call.kill_at is not None for call in calls)
        )

    def find_idle(self) -> dict[int, Worker]:
        """What :attr:`idle` is to hold: workers that may be sent a call, in any order."""
        return {
            worker.id: worker
            for worker in self.workers.values()
            if worker.state is WorkerState.IDLE
            or (
                worker.state is WorkerState.BUSY
                and 0 < len(worker.flight) < self.slots
                and not worker.heavy
            )
        }

    def known(self, number: int) -> Worker:
        """The worker of this number.

        Raises:
            IllegalEvent: If there is none.
        """
        worker = self.workers.get(number)
        if worker is None:
            msg = f"worker {number} is not known"
            raise r.IllegalEvent(msg)
        return worker

    # -- while memory is scarce --------------------------------------------------------

    def pause(self, now: float) -> None:
        """Let calls begin one at a time."""
        self.paused, self.spare = True, False
        self.spare_at = now + PATIENCE

    def may_begin(self) -> bool:
        """Whether a call may begin now, if there is a worker for it."""
        return not self.paused or self.spare or self.pending == len(self.calls)

    def note_begin(self, now: float) -> None:
        """A call has begun while the pool is paused."""
        self.spare = False
        self.spare_at = now + PATIENCE

    def next_spare(self) -> float | None:
        """When one more call may begin, if one waits for that."""
        waits = self.paused and self.pending and not self.spare
        return self.spare_at if waits else None

    # -- calls -----------------------------------------------------------------------

    def move(
        self,
        call: Call,
        state: CallState,
        now: float,
        worker: Worker | None = None,
        detail: str = "",
    ) -> None:
        """Change a call's state; one that is finished is only remembered.

        Raises:
            IllegalEvent: If its state does not allow that.
        """
        if state not in r.CALL_MOVES[call.state]:
            msg = f"call {call.id}: {call.state.value} to {state.value}"
            raise r.IllegalEvent(msg)
        if call.state is CallState.PENDING:
            self.pending -= 1
        elif state is CallState.PENDING:
            self.pending += 1
        call.state = state
        if state in self.counts:
            self.counts[state] += 1
            del self.calls[call.id]
            call.ended = now
            self.memory.keep(call)
        else:
            call.note((now, state, worker.id if worker else None, detail))

    def fail(
        self,
        call: Call,
        why: str,
        now: float,
        worker: Worker | None = None,
        detail: str = "",
    ) -> r.Fail:
        """End a call with an error of our own; see :class:`Fail`."""
        state = CallState.CANCELLED if why == "cancelled" else CallState.FAILED
        if state is CallState.FAILED:
            # Why it did: of what ends no more than that is kept.
            by = worker.id if worker else None
            call.note((now, state, by, f"{why}: {detail}" if detail else why))
        failed = r.Fail(call.id, why, worker.id if worker else None, detail)
        self.failed[call.id] = failed  # an interrupt may keep it from being told
        self.move(call, state, now, worker)
        return failed

    def fail_broken(self, call: Call, now: float) -> r.Fail:
        """End a call since the pool is broken."""
        return self.fail(call, "broken", now, detail="; ".join(self.broken))

    def fail_pending(self, why: str, now: float, detail: str = "") -> list[Command]:
        """End all calls that wait."""
        self.waiting.clear()
        return [
            self.fail(call, why, now, detail=detail)
            for call in list(self.calls.values())
            if call.state is CallState.PENDING
        ]

    def wait_again(self, call: Call, now: float, why: str) -> None:
        """Have a call that was sent to a worker wait again, in its old place."""
        self.move(call, CallState.PENDING, now, detail=why)
        self.waiting.add(call)

    def note_stop(self, call: Call, worker: Worker, why: str, now: float) -> None:
        """A call that runs is to stop."""
        call.stopping = why
        text = "its time is up" if why == "timeout" else "cancelled"
        call.note((now, CallState.RUNNING, worker.id, f"{STOP}: {text}"))

    def note_unsent(self, call: Call, worker: Worker, now: float) -> None:
        """A call was not sent after all, and will not be."""
        text = "it was not sent after all: cancelled, or for lack of descriptors"
        call.note((now, CallState.FAILED, worker.id, text))

    def orphan(
        self, call: Call, worker: Worker, unread: bool, reason: str, now: float
    ) -> list[Command]:
        """What becomes of a call whose worker has died.

        Args:
            call: It is not the worker's any more.
            worker: The one that died.
            unread: The call had not begun.
            reason: What killed the worker.
            now: The time.
        """
        if call.stopping:
            return [self.fail(call, call.stopping, now, worker, reason)]
        if self.broken and unread:
            return [self.fail_broken(call, now)]
        if not self.broken and (unread or call.retries > 0):
            call.retries -= not unread
            if call.pinned is None:
                what = "it had not begun" if unread else "it runs again"
                self.wait_again(call, now, f"{reason}; {what}")
                return []
        return [self.fail(call, "died", now, worker, reason)]

    # -- workers ---------------------------------------------------------------------

    def shift(self, worker: Worker, state: WorkerState, now: float) -> None:
        """Change a worker's state.

        Raises:
            IllegalEvent: If its state does not allow that.
        """
        before = worker.state
        if state not in r.WORKER_MOVES[before]:
            msg = f"worker {worker.id}: {before.value} to {state.value}"
            raise r.IllegalEvent(msg)
        if before is WorkerState.IDLE or self.slots > 1:
            self.idle.pop(worker.id, None)
        if before is WorkerState.STARTING:
            self.starting -= 1
        if state is WorkerState.IDLE:
            self.idle[worker.id] = worker
        elif state is WorkerState.DRAINING:
            self.draining += 1
        worker.state = state
        worker.since = now

    def end_limit(self, worker: Worker) -> None:
        """A worker's call, or its start, whose time may have been limited, is over."""
        if worker.stop_at is not None:
            worker.stop_at = None
            self.timed -= 1

    def retire(self, worker: Worker, now: float) -> list[Command]:
        """Ask a worker to end, unless it is about to."""
        if worker.state is WorkerState.DRAINING:
            return []
        self.end_limit(worker)
        self.shift(worker, WorkerState.DRAINING, now)
        return [self.await_exit(worker, now)]

    def await_exit(self, worker: Worker, now: float) -> r.Exit:
        """Ask a draining worker to end."""
        worker.kill_at = now + EXIT_WITHIN
        return r.Exit(worker.id)

    def interrupt(self, worker: Worker, now: float) -> r.Kill:
        """Have a worker ended that is in the midst of something."""
        self.end_limit(worker)
        self.shift(worker, WorkerState.DRAINING, now)
        worker.kill_at = now + KILL_AFTER
        return r.Kill(worker.id)

    def kill(self, worker: Worker, now: float) -> r.Kill:
        """End a worker at once."""
        self.end_limit(worker)
        self.shift(worker, WorkerState.DRAINING, now)
        return r.Kill(worker.id, force=True)

    def silence(self, worker: Worker, now: float) -> None:
        """A worker cannot reply any more: it may end by itself, for a moment.

        One that drains is given its time already.
        """
        if worker.state is not WorkerState.DRAINING:
            self.mute.add(worker.id)
            worker.kill_at = now + MUTE_AT_MOST

    def mute_is_over(self, worker: Worker, now: float) -> bool:
        """Whether a worker that cannot reply has had its moment; once."""
        over = worker.kill_at is not None and worker.kill_at <= now
        if over:
            worker.kill_at = None
        return over

    def add_worker(self, number: int, now: float) -> None:
        """A worker is to start."""
        self.workers[number] = Worker(number, now)
        self.starting += 1

    def forget(self, worker: Worker) -> None:
        """A worker is gone."""
        del self.workers[worker.id]
        self.idle.pop(worker.id, None)
        self.mute.discard(worker.id)
        self.end_limit(worker)
        self.starting -= worker.state is WorkerState.STARTING
        self.draining -= worker.state is WorkerState.DRAINING
