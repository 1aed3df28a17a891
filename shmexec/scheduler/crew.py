"""How workers come and go: starting, failing to, trying again, giving up.

Only deaths while starting count against the pool. After one there is a pause before the
next try, which doubles; after too many in a row the pool is broken. One that dies idle
counts for nothing: the next one starts only for a call, and gets it at once, so that no
loop can come of it. Nor does one that the system had no descriptors or memory left for,
while others run: the pool goes on with those, and tries again later. Where none runs any
more, but some did, it tries for a while, too, before that counts: whoever has what is
lacking may give it back.
"""

from __future__ import annotations

from shmexec.scheduler import records as r
from shmexec.scheduler.entities import Worker
from shmexec.scheduler.records import Command, WorkerState
from shmexec.scheduler.state import State

BACKOFF = 0.1
"""Seconds before the second restart in a row; doubles with each further one."""

BACKOFF_AT_MOST = 10.0

SCARCE_PAUSE = 5.0
"""Seconds before another start is tried after the system had nothing left for one, while
other workers run."""

SCARCE_AT_MOST = 30.0
"""Seconds that a pool whose workers have all ended tries to get what it had before."""


class Crew:
    """The workers' starts.

    Args:
        state: The pool's.
        max_restarts: Failed starts in a row after which the pool is broken.
        start_timeout: Seconds that an initializer may take, None for any time.
    """

    def __init__(
        self, state: State, max_restarts: int, start_timeout: float | None
    ) -> None:
        self._state = state
        self._max_restarts = max_restarts
        self._start_timeout = start_timeout
        self._failures: list[str] = []  # in a row
        self._proved = False  # some worker was ready
        self._scarce = 0  # starts in a row that the system refused
        self._scarce_since = 0.0
        self._spawn_at = 0.0
        self._numbers = 0

    def lacking(self) -> int:
        """Workers to be started for calls that any worker may run."""
        state = self._state
        pinned = state.waiting.count_pinned() if state.waiting.pinned else 0
        lacking = min(
            state.pending - pinned - state.starting,
            state.max_workers - state.active(),
        )
        if not state.paused:
            return lacking
        return min(lacking, 1) if state.may_begin() and not state.starting else 0

    def spawn_lacking(self, now: float) -> list[Command]:
        """Start workers for calls that would wait otherwise."""
        count = self.lacking()
        return self.spawn(count, now) if count > 0 else []

    def spawn(self, count: int, now: float) -> list[Command]:
        """Start so many workers, unless there was a failure just now."""
        if now < self._spawn_at:
            return []
        commands: list[Command] = []
        for _ in range(count):
            self._numbers += 1
            self._state.add_worker(self._numbers, now)
            commands.append(r.Spawn(self._numbers))
            if self._failures:
                break  # one at a time until one has made it
        return commands

    def next_spawn(self) -> float | None:
        """When a worker is to be started, if that is put off."""
        state = self._state
        # After a failure one starts at a time: its own fate is what is waited for.
        trying = self._failures and state.starting
        if self.lacking() > 0 and not (state.idle or state.broken or trying):
            return self._spawn_at
        return None

    def began(self, event: r.WorkerBegan, now: float) -> list[Command]:
        """A worker runs its initializer."""
        worker = self._state.known(event.worker)
        if worker.state is WorkerState.DRAINING:
            return []
        if worker.state is not WorkerState.STARTING or worker.stop_at is not None:
            msg = f"worker {worker.id} begins again, but it was {worker.state.value}"
            raise r.IllegalEvent(msg)
        if self._start_timeout is not None:
            worker.stop_at = now + self._start_timeout
            self._state.timed += 1
        return []

    def ready(self, event: r.WorkerReady, now: float) -> bool:
        """A worker is initialised; returns whether it can take calls."""
        worker = self._state.known(event.worker)
        if worker.state is WorkerState.DRAINING:
            return False
        if worker.state is not WorkerState.STARTING:
            msg = f"worker {worker.id} is ready, but it was {worker.state.value}"
            raise r.IllegalEvent(msg)
        self._failures.clear()
        self._proved, self._scarce = True, 0
        self._spawn_at = 0.0
        self._state.end_limit(worker)
        self._state.shift(worker, WorkerState.IDLE, now)
        return True

    def refused(self, event: r.WorkerRefused, now: float) -> list[Command]:
        """A worker's initializer failed."""
        worker = self._state.known(event.worker)
        if worker.state not in {WorkerState.STARTING, WorkerState.DRAINING}:
            msg = f"worker {worker.id} refused, but it was {worker.state.value}"
            raise r.IllegalEvent(msg)
        commands = self._state.retire(worker, now)
        reason = self._why_late(event.reason) if worker.late else event.reason
        return commands + self._break((reason,), now)

    def overdue(self, worker: Worker, now: float) -> r.Kill:
        """Have a worker ended whose initializer takes too long."""
        worker.late = True
        return self._state.interrupt(worker, now)

    def died(self, worker: Worker, event: r.WorkerDead, now: float) -> list[Command]:
        """A worker has died that had no call."""
        reason = event.reason
        if event.scarce and (pause := self._pause_of_scarcity(now)):
            self._spawn_at = now + pause
            return []
        if worker.late:
            return self._break((self._why_late(reason),), now)
        if worker.state is WorkerState.STARTING:
            return self._start_failed(reason, now)
        return []

    def _pause_of_scarcity(self, now: float) -> float:
        """Seconds before the next try after the system refused one; 0 to give up."""
        if self._state.active():
            return SCARCE_PAUSE  # those that run get what this one could not
        if not self._scarce:
            self._scarce_since = now
        self._scarce += 1
        if not self._proved or now > self._scarce_since + SCARCE_AT_MOST:
            return 0.0
        return min(SCARCE_PAUSE, BACKOFF * 2.0 ** (self._scarce - 1))

    def _why_late(self, reason: str) -> str:
        return (
            f"it took longer than its time limit of {self._start_timeout:g} s: {reason}"
        )

    def _start_failed(self, reason: str, now: float) -> list[Command]:
        self._failures.append(reason)
        failed = len(self._failures)
        if failed > self._max_restarts:
            return self._break(tuple(self._failures), now)
        if failed > 1:
            delay = min(BACKOFF_AT_MOST, BACKOFF * 2 ** (failed - 2))
            self._spawn_at = now + delay
        return []

    def _break(self, reasons: tuple[str, ...], now: float) -> list[Command]:
        state = self._state
        if state.broken:
            return []
        state.broken = reasons
        commands: list[Command] = [r.Broke(reasons)]
        commands += state.fail_pending("broken", now, "; ".join(reasons))
        for worker in list(state.workers.values()):
            if worker.state in {WorkerState.IDLE, WorkerState.STARTING}:
                commands += state.retire(worker, now)
        return commands
