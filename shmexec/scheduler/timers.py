"""What the time brings: limits of calls, kills, looks at packs, the ends of idle workers."""

from __future__ import annotations

from collections.abc import Callable

from shmexec.scheduler import records as r
from shmexec.scheduler.crew import Crew
from shmexec.scheduler.entities import Call, Worker
from shmexec.scheduler.records import Command, WorkerState
from shmexec.scheduler.slots import Slots
from shmexec.scheduler.state import State


class Timers:
    """See the module.

    Args:
        state: The pool's.
        slots: Calls side by side have limits of their own.
        crew: Starts wait for their time, and may take too long.
        idle_timeout: Seconds after which an idle worker ends, None for never.
        stop: Has a running call's worker ended.
    """

    def __init__(
        self,
        state: State,
        slots: Slots,
        crew: Crew,
        idle_timeout: float | None,
        stop: Callable[[Call, Worker, str, float], list[Command]],
    ) -> None:
        self._state = state
        self._slots = slots
        self._crew = crew
        self._idle_timeout = idle_timeout
        self._stop = stop

    def tick(self, now: float) -> list[Command]:
        """Do what is due."""
        commands: list[Command] = []
        for worker in list(self._state.workers.values()):
            if worker.id in self._state.mute and self._state.mute_is_over(worker, now):
                commands.append(r.Kill(worker.id, force=True))
            elif worker.stop_at is not None and worker.stop_at <= now:
                if worker.call is not None:
                    commands += self._stop(worker.call, worker, "timeout", now)
                else:
                    commands.append(self._crew.overdue(worker, now))
            elif worker.flight and worker.state is not WorkerState.DRAINING:
                commands += self._slots.tick(worker, now)
            elif worker.look_at is not None and worker.look_at <= now:
                commands.append(r.Look(worker.id))
            elif worker.kill_at is not None and worker.kill_at <= now:
                worker.kill_at = None
                commands.append(r.Kill(worker.id, force=True))
            elif (
                worker.state is WorkerState.IDLE
                and self._idle_timeout is not None
                and worker.since + self._idle_timeout <= now
            ):
                commands += self._state.retire(worker, now)
        due = self._state.next_spare()
        if due is not None and due <= now:
            self._state.spare = True
        return commands

    def next_tick(self) -> float | None:
        """When something is due, if ever."""
        times = [
            at
            for worker in self._state.workers.values()
            for at in (worker.stop_at, worker.kill_at, worker.look_at)
            if at is not None
        ]
        if self._state.slots > 1:
            times += self._slots.next_ticks()
        if self._idle_timeout is not None:
            idle = self._state.idle.values()
            times += [w.since + self._idle_timeout for w in idle if not w.flight]
        for at in (self._crew.next_spawn(), self._state.next_spare()):
            if at is not None:
                times.append(at)
        return min(times, default=None)
