"""The scheduler: takes events in, brings calls and workers together.

``handle(event, now)`` returns commands; carrying them out is the runtime's business.
First in, first out within a priority; idle workers last in, first out. A call whose
worker died before it took the call goes back to its place in the queue at no cost; one
that had begun fails, unless it may be retried. What happens in a call is charged to the
call: only deaths while starting or idle count against the pool.

The moves that a call or a worker can make are in ``state``. What has rules of its own is
beside it: ``waiting``, the order of calls; ``packs``, several calls in one message;
``slots``, several calls under way in a worker; ``crew``, the starts of workers;
``timers``, what the time brings; ``weight``, what samples of memory lead to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shmexec.scheduler import inspection, records as r
from shmexec.scheduler.crew import Crew
from shmexec.scheduler.entities import Call, Worker
from shmexec.scheduler.packs import Packs
from shmexec.scheduler.records import CallState, Command, Event, WorkerState
from shmexec.scheduler.recovery import Recovery, Truth
from shmexec.scheduler.slots import Slots
from shmexec.scheduler.state import State
from shmexec.scheduler.timers import Timers
from shmexec.scheduler.waiting import place_of, priority_of
from shmexec.scheduler.weight import NO_LIMITS, Limits, Weight


class Machine:
    """The state of a pool, and what follows from each event.

    Args:
        max_workers: Workers at most, draining ones not counted.
        max_restarts: Failed starts in a row after which the pool is broken.
        max_calls: Calls after which a worker is replaced, None for never.
        idle_timeout: Seconds after which an idle worker ends, None for never.
        start_timeout: Seconds that an initializer may take, None for any time. If it
            takes longer the pool is broken: so would the next one's.
        exclusive: A worker is replaced only when it is gone, since both cannot have what
            it holds; and one that came back from a call that was stopped is asked to
            end, so that it can clean up.
        slots: Calls that a worker may have under way. If several, ``max_calls`` must be
            None, and calls are never packed.
        limits: Of memory.

    Attributes:
        weight: What samples of memory led to; to be looked at only.
    """

    def __init__(
        self,
        max_workers: int,
        *,
        max_restarts: int = 3,
        max_calls: int | None = None,
        idle_timeout: float | None = None,
        start_timeout: float | None = None,
        exclusive: bool = False,
        slots: int = 1,
        limits: Limits = NO_LIMITS,
    ) -> None:
        assert slots == 1 or max_calls is None
        self.max_calls = max_calls
        self.idle_timeout = idle_timeout
        self.start_timeout = start_timeout
        self.exclusive = exclusive
        self.slots = slots
        self.deaths = 0
        self.last_death: tuple[float, str] | None = None
        self._state = State(max_workers, exclusive=exclusive, slots=slots)
        self._packs = Packs(self._state, max_calls)
        self._slots = Slots(self._state)
        self._crew = Crew(self._state, max_restarts, start_timeout)
        self.weight = Weight(self._state, self._slots, limits)
        self._timers = Timers(
            self._state, self._slots, self._crew, idle_timeout, self._stop
        )
        self._recovery = Recovery(self._state, self._packs, self._slots, max_calls)
        self.calls: Mapping[int, Call] = self._state.calls
        self.workers: Mapping[int, Worker] = self._state.workers
        self.counts: Mapping[CallState, int] = self._state.counts
        self._handlers: dict[type, Callable[[Any, float], list[Command]]] = {
            r.Submitted: self._on_submitted,
            r.WorkerBegan: self._crew.began,
            r.WorkerReady: self._on_ready,
            r.WorkerRefused: self._crew.refused,
            r.Finished: self._on_finished,
            r.PackReplied: self._on_pack_replied,
            r.PackExpired: self._on_pack_expired,
            r.WorkerDead: self._on_dead,
            r.WorkerMute: self._on_mute,
            r.Cancelled: self._on_cancelled,
            r.Resized: self._on_resized,
            r.Closed: self._on_closed,
            r.Everyone: self._on_everyone,
            r.Tick: self._on_tick,
            r.MemorySampled: self._on_sampled,
        }

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take an event in; returns what must be done, in this order.

        Raises:
            IllegalEvent: If it cannot happen now; nothing was changed.
        """
        return self._handlers[type(event)](event, now)

    def recover(self, truth: Truth, now: float) -> list[Command]:
        """An interrupt has struck in :meth:`handle`: go by what is known for sure."""
        commands = self._recovery.recover(truth, now)
        return [*commands, *self._dispatch(now), *self._maybe_finish(now)]

    def failed(self, call: int) -> r.Fail | None:
        """Why a call that is not known any more has failed, if that was to be told."""
        return self._state.failed.get(call)

    def told(self, call: int) -> None:
        """It was."""
        self._state.failed.pop(call, None)

    # -- calls -----------------------------------------------------------------------

    def _on_submitted(self, event: r.Submitted, now: float) -> list[Command]:
        state = self._state
        if state.closed or event.call in state.calls:
            msg = f"call {event.call} submitted to a closed pool, or twice"
            raise r.IllegalEvent(msg)
        if event.worker is not None and event.worker not in state.workers:
            msg = f"call {event.call} is for worker {event.worker}, which is gone"
            raise r.IllegalEvent(msg)
        call = Call(event, place_of(event.call, event.priority), now)
        state.calls[call.id] = call
        state.submitted += 1
        state.pending += 1
        if state.broken:
            return [state.fail_broken(call, now)]
        if (
            state.idle
            and not state.waiting.queue
            and call.pinned is None
            and not state.paused
        ):
            return [self._start(call, state.idle.popitem()[1], now)]
        state.waiting.add(call)
        if not state.idle and state.active() >= state.max_workers:
            return []
        return self._dispatch(now)

    def _start(self, call: Call, worker: Worker, now: float) -> r.Send:
        if self.slots > 1:
            return self._slots.start(call, worker, now)
        # The two moves of the busiest path, without looking them up in the tables.
        assert call.state is CallState.PENDING
        assert worker.state is WorkerState.IDLE
        state = self._state
        state.pending -= 1
        call.state = CallState.RUNNING
        call.note((now, CallState.RUNNING, worker.id, ""))
        state.idle.pop(worker.id, None)
        worker.state = WorkerState.BUSY
        worker.since = now
        call.worker = worker
        worker.call = call
        if call.timeout is not None:
            worker.stop_at = now + call.timeout
            state.timed += 1
        return r.Send(call.id, worker.id)

    def _on_finished(self, event: r.Finished, now: float) -> list[Command]:
        state = self._state
        call, worker = state.calls.get(event.call), state.workers.get(event.worker)
        if worker is not None and call is not None and event.call in worker.flight:
            commands = self._slots.finished(call, worker, event, now)
            if worker.state is WorkerState.DRAINING:
                return commands
            if not worker.flight:
                commands += self.weight.replace(worker, now)
            return commands + self._dispatch(now)
        if call is None or worker is None or worker.call is not call:
            msg = f"worker {event.worker} finished call {event.call}, not its own"
            raise r.IllegalEvent(msg)
        self._detach(call, worker)
        worker.calls += 1
        call.seconds = event.seconds
        if call.kind is not None:
            self._packs.learn(call.kind, event.seconds)
        if call.stopping:
            # The interrupt came through before the kill; its reply is not a result.
            failed = state.fail(call, call.stopping, now, worker)
            if not self.exclusive:
                return [failed]
            return [failed, state.await_exit(worker, now)]
        ended = CallState.DONE if event.ok else CallState.FAILED
        if not event.begun:
            state.note_unsent(call, worker, now)
        state.move(call, ended, now, worker)
        return self._ready_again(worker, now)

    def _ready_again(self, worker: Worker, now: float) -> list[Command]:
        """A worker has done what it was sent."""
        if worker.state is WorkerState.DRAINING:
            return []
        state = self._state
        if self.max_calls is not None and worker.calls >= self.max_calls:
            return [*state.retire(worker, now), *self._dispatch(now)]
        if worker.heavy and (commands := self.weight.replace(worker, now)):
            return commands + self._dispatch(now)
        # Idle before the future resolves: a follow-up call finds it.
        state.shift(worker, WorkerState.IDLE, now)
        if state.pending or state.closed or state.active() > state.max_workers:
            return self._dispatch(now)
        return []

    def _detach(self, call: Call, worker: Worker) -> None:
        call.worker = None
        worker.call = None
        if worker.stop_at is not None:
            self._state.end_limit(worker)

    def _on_cancelled(self, event: r.Cancelled, now: float) -> list[Command]:
        call = self.calls.get(event.call)
        if call is None or call.stopping:
            return []
        if call.state is CallState.PENDING:
            self._state.move(call, CallState.CANCELLED, now)
            self._state.waiting.leave(call)
            return [r.Drop(call.id), *self._maybe_finish(now)]
        if not event.running or call.worker is None:
            return []
        if call.worker.look_at is not None:
            # Its worker may be at another call of the pack. If it is still there, or
            # has not begun, when the deadline has passed, it is stopped, or dropped.
            self._state.note_stop(call, call.worker, "stopped", now)
            return []
        return self._stop(call, call.worker, "stopped", now)

    def _stop(self, call: Call, worker: Worker, why: str, now: float) -> list[Command]:
        """Have a running call's worker ended; its slot is free at once."""
        if self.slots > 1:
            return self._slots.stop(call, worker, why, now)
        if not call.stopping:
            self._state.note_stop(call, worker, why, now)
        if worker.state is WorkerState.DRAINING:
            return []  # it was killed for its memory
        return [self._state.interrupt(worker, now), *self._dispatch(now)]

    def _on_pack_replied(self, event: r.PackReplied, now: float) -> list[Command]:
        worker, commands = self._packs.replied(event, now)
        return commands + self._ready_again(worker, now) if event.ended else commands

    def _on_pack_expired(self, event: r.PackExpired, now: float) -> list[Command]:
        worker, commands = self._packs.expired(event, now)
        for call in worker.pack.values():
            self._packs.overran(call)
            if call.stopping:
                commands += self._stop(call, worker, call.stopping, now)
        return commands + self._dispatch(now)

    # -- workers ---------------------------------------------------------------------

    def _on_ready(self, event: r.WorkerReady, now: float) -> list[Command]:
        return self._dispatch(now) if self._crew.ready(event, now) else []

    def _on_dead(self, event: r.WorkerDead, now: float) -> list[Command]:
        state = self._state
        worker = state.known(event.worker)
        state.forget(worker)
        call, reason = worker.call, event.reason
        if worker.state is not WorkerState.DRAINING:
            self.deaths += 1
            self.last_death = now, reason
        if worker.flight:
            commands = self._slots.orphaned(worker, event, now)
        elif call is not None:
            self._detach(call, worker)
            commands = state.orphan(call, worker, event.unread, reason, now)
        elif worker.packed:
            commands = self._packs.orphaned(worker, event, now)
        else:
            commands = self._crew.died(worker, event, now)
        for pinned in state.waiting.abandon(worker.id):
            commands.append(state.fail(pinned, "gone", now, worker, reason))
        return [*commands, *self._dispatch(now), *self._maybe_finish(now)]

    def _on_mute(self, event: r.WorkerMute, now: float) -> list[Command]:
        worker = self.workers.get(event.worker)
        if worker is not None:
            self._state.silence(worker, now)
        return []

    # -- the pool --------------------------------------------------------------------

    def _on_resized(self, event: r.Resized, now: float) -> list[Command]:
        state = self._state
        state.max_workers = event.max_workers
        commands: list[Command] = []
        for worker in list(state.idle.values()):
            if state.active() <= state.max_workers:
                break
            if not state.waiting.pinned.get(worker.id) and not worker.flight:
                commands += state.retire(worker, now)
        return commands + self._dispatch(now)

    def _on_closed(self, event: r.Closed, now: float) -> list[Command]:
        state = self._state
        state.closed = True
        commands: list[Command] = []
        if event.cancel_pending:
            state.cancelling = True
            commands += state.fail_pending("cancelled", now)
        return [*commands, *self._maybe_finish(now)]

    def _on_everyone(self, _event: r.Everyone, now: float) -> list[Command]:
        state = self._state
        if state.broken:
            return []
        return self._crew.spawn(state.max_workers - state.active(), now)

    def _maybe_finish(self, now: float) -> list[Command]:
        if not self._state.closed or self.calls:
            return []
        commands: list[Command] = []
        for worker in list(self.workers.values()):
            commands += self._state.retire(worker, now)
        return commands

    def _dispatch(self, now: float) -> list[Command]:
        """Bring pending calls and idle workers together; start workers for the rest."""
        state = self._state
        commands = self._send_pinned(now) if state.waiting.pinned else []
        while state.idle and (not state.paused or state.may_begin()):
            first = state.waiting.take()
            if first is None:
                break
            worker = state.idle.popitem()[1]
            known = first.kind in self._packs.seconds
            pack = self._packs.companions(first, worker) if known else ()
            if pack:
                commands.append(self._packs.start([first, *pack], worker, now))
            else:
                commands.append(self._start(first, worker, now))
            if state.paused:
                state.note_begin(now)
        if state.closed and not state.calls:
            return commands + self._maybe_finish(now)
        if not state.idle and not state.broken:
            commands += self._crew.spawn_lacking(now)
        # A pool that shrank lets its surplus workers go as they become idle.
        while state.idle and state.active() > state.max_workers:
            surplus = next((w for w in state.idle.values() if not w.flight), None)
            if surplus is None:
                break
            commands += state.retire(surplus, now)
        return commands

    def _send_pinned(self, now: float) -> list[Command]:
        """Bring calls to the workers that they are for."""
        state = self._state
        commands: list[Command] = []
        if not state.idle or not state.may_begin():
            return commands
        for number, call in state.waiting.take_pinned(state.idle):
            commands.append(self._start(call, state.idle.pop(number), now))
            if state.paused:
                state.note_begin(now)
                break
        return commands

    # -- memory ----------------------------------------------------------------------

    def _on_sampled(self, event: r.MemorySampled, now: float) -> list[Command]:
        commands = self.weight.sampled(event, now)
        if not commands and event.free is None:
            return commands
        return commands + self._dispatch(now)

    # -- time ------------------------------------------------------------------------

    def _on_tick(self, _event: r.Tick, now: float) -> list[Command]:
        return self._timers.tick(now) + self._dispatch(now)

    def next_tick(self) -> float | None:
        """When a :class:`Tick` is due, if ever."""
        return self._timers.next_tick() if self.has_timers else None

    @property
    def has_timers(self) -> bool:
        """Whether a :class:`Tick` may be due some time. Cheap, and needs no lock."""
        state = self._state
        return bool(
            state.timed
            or self._packs.open
            or state.draining
            or state.mute
            or self.idle_timeout is not None
            or (state.pending and not state.idle and state.active() < state.max_workers)
            or (state.paused and state.pending)
        )

    # -- to be asked -----------------------------------------------------------------

    @property
    def max_workers(self) -> int:
        """Workers at most."""
        return self._state.max_workers

    @property
    def broken(self) -> tuple[str, ...]:
        """Why no call can be run any more; empty while they can."""
        return self._state.broken

    @property
    def paused(self) -> bool:
        """Whether calls begin one at a time, since memory is scarce."""
        return self._state.paused

    @property
    def submitted(self) -> int:
        """Calls that ever came."""
        return self._state.submitted

    @property
    def pending(self) -> int:
        """Calls that wait."""
        return self._state.pending

    @property
    def finished(self) -> bool:
        """Closed, and nothing is left to do or to wait for."""
        return self._state.closed and not self.calls and not self.workers

    @property
    def unresolved(self) -> bool:
        """Whether anything is going on that somebody must attend to."""
        state = self._state
        return bool(state.calls) or state.starting > 0 or state.draining > 0

    def find(self, number: int) -> Call | None:
        """A call, also one that is finished if it is still remembered."""
        return self.calls.get(number) or self._state.memory.find(number)

    def story(self, number: int) -> list[inspection.Told] | None:
        """What happened to a call; None if it is not known, or not any more."""
        call = self.find(number)
        return None if call is None else inspection.story(call)

    def watch(self, watch: Callable[[Call], object] | None) -> None:
        """Have somebody told of each call that is finished, or nobody any more."""
        self._state.memory.watch = watch

    def oldest_pending(self) -> Call | None:
        """The call that waits for longest; they are in the order they came in."""
        return next(inspection.pending(self._state), None)

    def pending_priorities(self) -> list[int]:
        """The priority of each call that waits."""
        return [priority_of(c.order) for c in inspection.pending(self._state)]

    def validate(self) -> None:
        """Check the invariants; for tests."""
        inspection.validate(self._state, self._packs)
        assert self.has_timers or self._timers.next_tick() is None
