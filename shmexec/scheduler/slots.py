"""Workers with several slots: several calls under way in each.

They begin in the order in which they were sent, and end in any. One that must stop is
asked to; only if it does not is its worker ended, and what else it had begun with it.
"""

from __future__ import annotations

from shmexec.scheduler import records as r
from shmexec.scheduler.entities import Call, Worker
from shmexec.scheduler.records import CallState, Command, WorkerState
from shmexec.scheduler.state import State

CANCEL_WITHIN = 0.3
"""Seconds that one call of several has to end when it is cancelled."""


class Slots:
    """What happens to calls that share their workers.

    Args:
        state: The pool's.
    """

    def __init__(self, state: State) -> None:
        self._state = state

    def start(self, call: Call, worker: Worker, now: float) -> r.Send:
        """Give a pending call to a worker that has a slot for it."""
        state = self._state
        state.move(call, CallState.RUNNING, now, worker)
        if worker.state is WorkerState.IDLE:
            state.shift(worker, WorkerState.BUSY, now)
        worker.sent += 1
        call.sent = worker.sent
        call.worker = worker
        worker.flight[call.id] = call
        if call.timeout is not None:
            call.stop_at = now + call.timeout
            state.timed += 1
        self.offer(worker)
        return r.Send(call.id, worker.id)

    def offer(self, worker: Worker) -> None:
        """Have a busy worker be given calls if it has a slot for one.

        One over its limit of memory ends when it has done those it has.
        """
        if len(worker.flight) < self._state.slots and not worker.heavy:
            self._state.idle[worker.id] = worker
        else:
            self._state.idle.pop(worker.id, None)

    def finished(
        self, call: Call, worker: Worker, event: r.Finished, now: float
    ) -> list[Command]:
        """A worker replied to one of its calls."""
        state = self._state
        if event.begun:
            worker.begun = max(worker.begun, call.sent)
        self._detach(call, worker)
        worker.calls += 1
        call.seconds = event.seconds
        commands: list[Command] = []
        if call.stopping:
            gently = worker.state is not WorkerState.DRAINING
            failed = state.fail(call, call.stopping, now, worker)
            commands.append(failed._replace(gently=gently))
        else:
            ended = CallState.DONE if event.ok else CallState.FAILED
            if not event.begun:
                state.note_unsent(call, worker, now)
            state.move(call, ended, now, worker)
        if worker.state is WorkerState.DRAINING:
            if state.exclusive and not worker.flight:
                commands.append(state.await_exit(worker, now))
        elif worker.flight:
            self.offer(worker)
        else:
            state.shift(worker, WorkerState.IDLE, now)
        return commands

    def _detach(self, call: Call, worker: Worker) -> None:
        del worker.flight[call.id]
        call.worker = None
        self._end_limits(call)

    def _end_limits(self, call: Call) -> None:
        self._state.timed -= (call.stop_at is not None) + (call.kill_at is not None)
        call.stop_at = call.kill_at = None

    def stop(self, call: Call, worker: Worker, why: str, now: float) -> list[Command]:
        """Ask a call to end; if it does not, its worker will be ended."""
        self._state.note_stop(call, worker, why, now)
        self._end_limits(call)
        if worker.state is WorkerState.DRAINING:
            return []
        call.kill_at = now + CANCEL_WITHIN
        self._state.timed += 1
        return [r.Interrupt(call.id, worker.id)]

    def _stop_all(self, call: Call, worker: Worker, now: float) -> r.Kill:
        """A call does not end: stop its worker. What ends by itself till then counts."""
        why = "timed out" if call.stopping == "timeout" else "was cancelled"
        worker.blame = f"it was stopped, since call {call.id} {why} and did not end"
        for each in worker.flight.values():
            self._end_limits(each)
        return self._state.interrupt(worker, now)

    def kill(self, worker: Worker, now: float) -> r.Kill:
        """End a worker at once, whatever it has under way."""
        for each in worker.flight.values():
            self._end_limits(each)
        return self._state.kill(worker, now)

    def orphaned(
        self, worker: Worker, event: r.WorkerDead, now: float
    ) -> list[Command]:
        """A worker has died with calls under way."""
        last = worker.flight.get(event.begun)
        begun = max(worker.begun, last.sent if last is not None else 0)
        reason = f"{event.reason} ({worker.blame})" if worker.blame else event.reason
        commands: list[Command] = []
        for call in list(worker.flight.values()):
            self._detach(call, worker)
            unread = call.sent > begun
            commands += self._state.orphan(call, worker, unread, reason, now)
        return commands

    def tick(self, worker: Worker, now: float) -> list[Command]:
        """Look at the time limits of a worker's calls."""
        commands: list[Command] = []
        for call in list(worker.flight.values()):
            if call.kill_at is not None and call.kill_at <= now:
                return [*commands, self._stop_all(call, worker, now)]
            if call.stop_at is not None and call.stop_at <= now:
                commands += self.stop(call, worker, "timeout", now)
        return commands

    def next_ticks(self) -> list[float]:
        """When those limits pass."""
        return [
            at
            for worker in self._state.workers.values()
            for call in worker.flight.values()
            for at in (call.stop_at, call.kill_at)
            if at is not None
        ]
