"""The scheduler: everything that changes the state of a call or a worker.

``handle(event, now)`` returns commands; carrying them out is the runtime's business.
First in, first out within a priority; idle workers last in, first out. A call whose
worker died before it took the call goes back to its place in the queue at no cost; one
that had begun fails, unless it may be retried. What happens in a call is charged to the
call: only deaths while starting or idle count against the pool.

Calls that are known to be tiny go in packs, several in one message. A pack has a
deadline after which the worker begins no more of it. Then the runtime sees how far the
worker came; what had not begun waits again in its old place, so that no call waits for a
long one that it was packed with.

A worker with several slots has several calls under way. They begin in the order in which
they were sent, and end in any. One that must stop is asked to; only if it does not is its
worker ended, and what else it had begun with it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import Any

from shmexec.scheduler import records as r
from shmexec.scheduler.records import CallState, Command, Event, WorkerState

BACKOFF = 0.1
"""Seconds before the second restart in a row; doubles with each further one."""

BACKOFF_AT_MOST = 10.0
KILL_AFTER = 0.1
"""Seconds between the interrupt of a call that must stop and the kill."""

CANCEL_WITHIN = 0.3
"""Seconds that one call of several has to end when it is cancelled."""

PACK_AT_MOST = 128
"""Calls in a pack."""

PACK_SECONDS = 0.002
"""What a pack should take. Far longer than what sending it costs."""

PACK_PATIENCE = 0.005
"""Seconds after which a worker begins no more calls of a pack.

Long enough that a worker that waits for a CPU of a busy machine still gets to it.
"""

PACK_OVERHEAD = 5e-6
"""Seconds that a packed call takes beside itself."""

KINDS_AT_MOST = 1024
"""Kinds of calls whose durations are remembered."""

EXIT_WITHIN = 10.0
"""Seconds that a worker which was asked to end may take for its own clean-up."""


class Call:
    """One call. ``history`` holds (time, state, worker) for :meth:`Machine.story`.

    Very many may wait: there is no history before the first move.
    """

    __slots__ = (
        "born",
        "history",
        "id",
        "kill_at",
        "kind",
        "order",
        "pinned",
        "retries",
        "sent",
        "state",
        "stop_at",
        "stopping",
        "timeout",
        "worker",
    )

    def __init__(self, event: r.Submitted, order: tuple[int, int], now: float) -> None:
        self.id = event.call
        self.timeout = event.timeout
        self.retries = event.retries
        self.pinned = event.worker
        self.kind = event.kind
        self.order = order
        self.born = now
        self.state = CallState.PENDING
        self.worker: Worker | None = None
        self.stopping = ""
        # Of calls that share a worker:
        self.sent = 0  # its place among all that the worker was sent
        self.stop_at: float | None = None  # when it times out
        self.kill_at: float | None = None  # when patience with it is over
        self.history: list[tuple[float, CallState, int | None]] | None = None

    def note(self, step: tuple[float, CallState, int | None]) -> None:
        """Add a step to the history."""
        if self.history is None:
            self.history = [step]
        else:
            self.history.append(step)


class Worker:
    """One worker process, by its number, which is never used again."""

    __slots__ = (
        "begun",
        "blame",
        "call",
        "calls",
        "flight",
        "id",
        "kill_at",
        "late",
        "look_at",
        "pack",
        "packed",
        "sent",
        "since",
        "state",
        "stop_at",
    )

    def __init__(self, number: int, now: float) -> None:
        self.id = number
        self.state = WorkerState.STARTING
        self.call: Call | None = None
        self.flight: dict[int, Call] = {}  # calls that share it, as they were sent
        self.sent = 0  # how many of those it was sent
        self.begun = 0  # it has begun at least so many
        self.blame = ""  # why it was stopped in the midst of them
        self.packed = False  # a pack was sent, and its last reply has not come
        self.pack: dict[int, Call] = {}  # what is left of it, in order
        self.look_at: float | None = None  # when its deadline passes
        self.calls = 0
        self.since = now
        self.stop_at: float | None = None  # when its call, or its start, times out
        self.late = False  # its start has timed out
        self.kill_at: float | None = None  # when patience with its end is over


class Machine:
    """The state of a pool.

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
    ) -> None:
        self.max_workers = max_workers
        self.max_restarts = max_restarts
        self.max_calls = max_calls
        self.idle_timeout = idle_timeout
        self.start_timeout = start_timeout
        self.exclusive = exclusive
        self.slots = slots
        assert slots == 1 or max_calls is None
        self.calls: dict[int, Call] = {}
        self.workers: dict[int, Worker] = {}
        self.closed = False
        self.broken: tuple[str, ...] = ()
        self.deaths = 0
        self.pending = 0
        self.counts = dict.fromkeys(
            (CallState.DONE, CallState.FAILED, CallState.CANCELLED), 0
        )
        self.submitted = 0
        self._queue: list[tuple[int, int]] = []  # (-priority, id)
        self._pinned: dict[int, list[int]] = {}
        # Those that can take a call. Ordered: the last one is used first.
        self._idle: dict[int, Worker] = {}
        self._starting = 0
        self._draining = 0
        self._timed = 0  # workers, and calls that share one, with a time limit
        self._packs = 0  # workers whose pack may be looked at
        self._seconds: dict[Hashable, float] = {}  # what a call of a kind takes
        self._cancelling = False
        self._failures: list[str] = []
        self._spawn_at = 0.0
        self._numbers = 0
        self._handlers: dict[type, Callable[[Any, float], list[Command]]] = {
            r.Submitted: self._on_submitted,
            r.WorkerBegan: self._on_began,
            r.WorkerReady: self._on_ready,
            r.WorkerRefused: self._on_refused,
            r.Finished: self._on_finished,
            r.PackReplied: self._on_pack_replied,
            r.PackExpired: self._on_pack_expired,
            r.WorkerDead: self._on_dead,
            r.Cancelled: self._on_cancelled,
            r.Resized: self._on_resized,
            r.Closed: self._on_closed,
            r.Everyone: self._on_everyone,
            r.Tick: self._on_tick,
        }

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take an event in; returns what must be done, in this order.

        Raises:
            IllegalEvent: If it cannot happen now; nothing was changed.
        """
        return self._handlers[type(event)](event, now)

    # -- calls -----------------------------------------------------------------------

    def _on_submitted(self, event: r.Submitted, now: float) -> list[Command]:
        if self.closed or event.call in self.calls:
            msg = f"call {event.call} submitted to a closed pool, or twice"
            raise r.IllegalEvent(msg)
        if event.worker is not None and event.worker not in self.workers:
            msg = f"call {event.call} is for worker {event.worker}, which is gone"
            raise r.IllegalEvent(msg)
        call = Call(event, (-event.priority, event.call), now)
        self.calls[call.id] = call
        self.submitted += 1
        self.pending += 1
        if self.broken:
            return [self._fail(call, "broken", now, detail="; ".join(self.broken))]
        if self._idle and not self._queue and call.pinned is None:
            return [self._start(call, self._idle.popitem()[1], now)]
        self._enqueue(call)
        if not self._idle and self._active() >= self.max_workers:
            return []
        return self._dispatch(now)

    def _enqueue(self, call: Call) -> None:
        if call.pinned is None:
            heapq.heappush(self._queue, call.order)
        else:
            self._pinned.setdefault(call.pinned, []).append(call.id)

    def _start(self, call: Call, worker: Worker, now: float) -> r.Send:
        if self.slots > 1:
            return self._start_beside(call, worker, now)
        # The two moves of the busiest path, without looking them up in the tables.
        assert call.state is CallState.PENDING
        assert worker.state is WorkerState.IDLE
        self.pending -= 1
        call.state = CallState.RUNNING
        call.note((now, CallState.RUNNING, worker.id))
        self._idle.pop(worker.id, None)
        worker.state = WorkerState.BUSY
        worker.since = now
        call.worker = worker
        worker.call = call
        if call.timeout is not None:
            worker.stop_at = now + call.timeout
            self._timed += 1
        return r.Send(call.id, worker.id)

    def _on_finished(self, event: r.Finished, now: float) -> list[Command]:
        call, worker = self.calls.get(event.call), self.workers.get(event.worker)
        if worker is not None and call is not None and event.call in worker.flight:
            return self._finished_beside(call, worker, event, now)
        if call is None or worker is None or worker.call is not call:
            msg = f"worker {event.worker} finished call {event.call}, not its own"
            raise r.IllegalEvent(msg)
        self._detach(call, worker)
        worker.calls += 1
        self._learn(call.kind, event.seconds)
        if call.stopping:
            # The interrupt came through before the kill; its reply is not a result.
            failed = self._fail(call, call.stopping, now, worker)
            if not self.exclusive:
                return [failed]
            worker.kill_at = now + EXIT_WITHIN
            return [failed, r.Exit(worker.id)]
        self._move(call, CallState.DONE if event.ok else CallState.FAILED, now, worker)
        return self._ready_again(worker, now)

    def _ready_again(self, worker: Worker, now: float) -> list[Command]:
        """A worker has done what it was sent."""
        if worker.state is WorkerState.DRAINING:
            return []
        if self.max_calls is not None and worker.calls >= self.max_calls:
            return [*self._retire(worker, now), *self._dispatch(now)]
        # Idle before the future resolves: a follow-up call finds it.
        self._shift(worker, WorkerState.IDLE, now)
        if not (self.pending or self.closed or self._active() > self.max_workers):
            return []
        return self._dispatch(now)

    def _learn(self, kind: Hashable, seconds: float) -> None:
        """Remember what calls of a kind take, as a moving average."""
        if kind is None:
            return
        known = self._seconds.get(kind)
        if known is None and len(self._seconds) >= KINDS_AT_MOST:
            self._seconds.clear()
        if known is not None:
            seconds = known + (seconds - known) / 4
        self._seconds[kind] = seconds

    def _detach(self, call: Call, worker: Worker) -> None:
        call.worker = None
        worker.call = None
        self._end_limit(worker)

    def _end_limit(self, worker: Worker) -> None:
        if worker.stop_at is not None:
            worker.stop_at = None
            self._timed -= 1

    def _on_cancelled(self, event: r.Cancelled, now: float) -> list[Command]:
        call = self.calls.get(event.call)
        if call is None or call.stopping:
            return []
        if call.state is CallState.PENDING:
            self._move(call, CallState.CANCELLED, now)
            if call.pinned is not None:
                # It must not be counted among those that wait for their own worker.
                self._pinned[call.pinned].remove(call.id)
            return [r.Drop(call.id), *self._maybe_finish(now)]
        if not event.running or call.worker is None:
            return []
        if call.worker.look_at is not None:
            # Its worker may be at another call of the pack. If it is still there, or
            # has not begun, when the deadline has passed, it is stopped, or dropped.
            call.stopping = "stopped"
            return []
        return self._stop(call, call.worker, "stopped", now)

    def _stop(self, call: Call, worker: Worker, why: str, now: float) -> list[Command]:
        """Have a running call's worker ended; its slot is free at once."""
        call.stopping = why
        if self.slots > 1:
            return self._stop_beside(call, worker, now)
        self._end_limit(worker)
        self._shift(worker, WorkerState.DRAINING, now)
        worker.kill_at = now + KILL_AFTER
        return [r.Kill(worker.id), *self._dispatch(now)]

    def _fail(
        self,
        call: Call,
        why: str,
        now: float,
        worker: Worker | None = None,
        detail: str = "",
    ) -> r.Fail:
        state = CallState.CANCELLED if why == "cancelled" else CallState.FAILED
        self._move(call, state, now, worker)
        return r.Fail(call.id, why, worker.id if worker else None, detail)

    # -- calls that share a worker -----------------------------------------------------

    def _start_beside(self, call: Call, worker: Worker, now: float) -> r.Send:
        self._move(call, CallState.RUNNING, now, worker)
        if worker.state is WorkerState.IDLE:
            self._shift(worker, WorkerState.BUSY, now)
        worker.sent += 1
        call.sent = worker.sent
        call.worker = worker
        worker.flight[call.id] = call
        if call.timeout is not None:
            call.stop_at = now + call.timeout
            self._timed += 1
        self._offer(worker)
        return r.Send(call.id, worker.id)

    def _offer(self, worker: Worker) -> None:
        """Have a busy worker be given calls if it has a slot for one."""
        if len(worker.flight) < self.slots:
            self._idle[worker.id] = worker
        else:
            self._idle.pop(worker.id, None)

    def _finished_beside(
        self, call: Call, worker: Worker, event: r.Finished, now: float
    ) -> list[Command]:
        if event.begun:
            worker.begun = max(worker.begun, call.sent)
        self._detach_beside(call, worker)
        worker.calls += 1
        if call.stopping:
            gently = worker.state is not WorkerState.DRAINING
            failed = self._fail(call, call.stopping, now, worker)
            commands: list[Command] = [failed._replace(gently=gently)]
        else:
            state = CallState.DONE if event.ok else CallState.FAILED
            self._move(call, state, now, worker)
            commands = []
        if worker.state is WorkerState.DRAINING:
            if worker.flight or not self.exclusive:
                return commands
            worker.kill_at = now + EXIT_WITHIN
            return [*commands, r.Exit(worker.id)]
        if worker.flight:
            self._offer(worker)
        else:
            self._shift(worker, WorkerState.IDLE, now)
        return commands + self._dispatch(now)

    def _detach_beside(self, call: Call, worker: Worker) -> None:
        del worker.flight[call.id]
        call.worker = None
        self._end_call_limits(call)

    def _end_call_limits(self, call: Call) -> None:
        self._timed -= (call.stop_at is not None) + (call.kill_at is not None)
        call.stop_at = call.kill_at = None

    def _stop_beside(self, call: Call, worker: Worker, now: float) -> list[Command]:
        """Ask a call to end; if it does not, its worker will be ended."""
        self._end_call_limits(call)
        if worker.state is WorkerState.DRAINING:
            return []
        call.kill_at = now + CANCEL_WITHIN
        self._timed += 1
        return [r.Interrupt(call.id, worker.id)]

    def _stop_all(self, call: Call, worker: Worker, now: float) -> list[Command]:
        """A call does not end: stop its worker. What ends by itself till then counts."""
        why = "timed out" if call.stopping == "timeout" else "was cancelled"
        worker.blame = f"it was stopped, since call {call.id} {why} and did not end"
        for each in worker.flight.values():
            self._end_call_limits(each)
        self._shift(worker, WorkerState.DRAINING, now)
        worker.kill_at = now + KILL_AFTER
        return [r.Kill(worker.id)]

    def _flight_orphaned(
        self, worker: Worker, event: r.WorkerDead, now: float
    ) -> list[Command]:
        last = worker.flight.get(event.begun)
        begun = max(worker.begun, last.sent if last is not None else 0)
        reason = f"{event.reason} ({worker.blame})" if worker.blame else event.reason
        commands: list[Command] = []
        for call in list(worker.flight.values()):
            self._detach_beside(call, worker)
            unread = call.sent > begun
            commands += self._rest_of_orphan(call, worker, unread, reason, now)
        return commands

    def _tick_beside(self, worker: Worker, now: float) -> list[Command]:
        commands: list[Command] = []
        for call in list(worker.flight.values()):
            if call.kill_at is not None and call.kill_at <= now:
                return commands + self._stop_all(call, worker, now)
            if call.stop_at is not None and call.stop_at <= now:
                commands += self._stop(call, worker, "timeout", now)
        return commands

    # -- packs -----------------------------------------------------------------------

    def _companions(self, first: Call, worker: Worker) -> list[Call]:
        """Take the calls off the queue that shall go with this one."""
        each = self._seconds[first.kind] + PACK_OVERHEAD
        waiting = len(self._queue) + 1
        # Nobody shall get more than its share while others could help.
        share = -(-waiting // max(1, self._active()))
        count = min(PACK_AT_MOST, int(PACK_SECONDS / each), share)
        if self.max_calls is not None:
            count = min(count, self.max_calls - worker.calls)
        found: list[Call] = []
        queue, calls = self._queue, self.calls
        while queue and len(found) + 1 < count:
            call = calls.get(queue[0][1])
            if call is not None and call.state is CallState.PENDING:
                if call.kind != first.kind:
                    break
                found.append(call)
            heapq.heappop(queue)
        return found

    def _start_pack(self, pack: list[Call], worker: Worker, now: float) -> r.SendPack:
        self._shift(worker, WorkerState.BUSY, now)
        step = (now, CallState.RUNNING, worker.id)
        self.pending -= len(pack)
        for call in pack:
            assert call.state is CallState.PENDING
            call.state = CallState.RUNNING
            call.note(step)
            call.worker = worker
            worker.pack[call.id] = call
        worker.packed = True
        worker.look_at = now + PACK_PATIENCE
        self._packs += 1
        return r.SendPack(tuple(worker.pack), worker.id, worker.look_at)

    def _packed(self, number: int) -> Worker:
        worker = self._known(number)
        if not worker.packed:
            msg = f"worker {number} speaks of a pack, and was sent none"
            raise r.IllegalEvent(msg)
        return worker

    def _on_pack_replied(self, event: r.PackReplied, now: float) -> list[Command]:
        worker = self._packed(event.worker)
        for number, _, _ in event.results:
            if number not in worker.pack:
                msg = f"worker {worker.id} finished call {number}, not in its pack"
                raise r.IllegalEvent(msg)
        commands: list[Command] = []
        total, kind = 0.0, None
        for number, ok, seconds in event.results:
            call = worker.pack.pop(number)
            call.worker = None
            if call.stopping:
                commands.append(self._fail(call, call.stopping, now, worker))
            else:
                self._move(call, CallState.DONE if ok else CallState.FAILED, now)
            total += seconds
            kind = call.kind
        worker.calls += len(event.results)
        self._learn(kind, total / max(1, len(event.results)))
        if not event.ended:
            return commands
        self._end_look(worker)
        worker.packed = False
        commands += self._take_back(worker, list(worker.pack), now)
        return commands + self._ready_again(worker, now)

    def _on_pack_expired(self, event: r.PackExpired, now: float) -> list[Command]:
        worker = self._packed(event.worker)
        if worker.look_at is None or now < worker.look_at:
            msg = f"worker {worker.id}: its pack has not expired, or had before"
            raise r.IllegalEvent(msg)
        self._end_look(worker)
        numbers = list(worker.pack)
        # The first one is the worker's whatever comes, as if it had been sent alone: so
        # that at least one call gets done for each message.
        first = numbers.index(event.begun) if event.begun in worker.pack else 0
        commands = self._take_back(worker, numbers[first + 1 :], now)
        for call in worker.pack.values():
            # It overran what it is known to take.
            self._learn(call.kind, PACK_PATIENCE)
            if call.stopping:
                commands += self._stop(call, worker, call.stopping, now)
        return commands + self._dispatch(now)

    def _end_look(self, worker: Worker) -> None:
        if worker.look_at is not None:
            worker.look_at = None
            self._packs -= 1

    def _take_back(
        self, worker: Worker, numbers: list[int], now: float
    ) -> list[Command]:
        """Calls of a pack that have not begun, and will not, wait in their old places."""
        commands: list[Command] = []
        for number in numbers:
            call = worker.pack.pop(number)
            call.worker = None
            if call.stopping or self._cancelling:
                why = call.stopping or "cancelled"
                commands.append(self._fail(call, why, now, worker))
            elif self.broken:
                detail = "; ".join(self.broken)
                commands.append(self._fail(call, "broken", now, detail=detail))
            else:
                self._move(call, CallState.PENDING, now)
                self._enqueue(call)
                commands.append(r.TakeBack(call.id))
        return commands

    def _pack_orphaned(
        self, worker: Worker, event: r.WorkerDead, now: float
    ) -> list[Command]:
        self._end_look(worker)
        worker.packed = False
        numbers = list(worker.pack)
        begun = numbers.index(event.begun) + 1 if event.begun in worker.pack else 0
        commands: list[Command] = []
        for number in numbers[:begun]:
            call = worker.pack.pop(number)
            commands += self._orphaned(call, worker, False, event.reason, now)
        return commands + self._take_back(worker, numbers[begun:], now)

    # -- workers ---------------------------------------------------------------------

    def _on_began(self, event: r.WorkerBegan, now: float) -> list[Command]:
        worker = self._known(event.worker)
        if worker.state is WorkerState.DRAINING:
            return []
        if worker.state is not WorkerState.STARTING or worker.stop_at is not None:
            msg = f"worker {worker.id} begins again, but it was {worker.state.value}"
            raise r.IllegalEvent(msg)
        if self.start_timeout is not None:
            worker.stop_at = now + self.start_timeout
            self._timed += 1
        return []

    def _start_overdue(self, worker: Worker, now: float) -> list[Command]:
        """Have a worker ended whose initializer takes too long."""
        self._end_limit(worker)
        self._shift(worker, WorkerState.DRAINING, now)
        worker.late = True
        worker.kill_at = now + KILL_AFTER
        return [r.Kill(worker.id)]

    def _why_late(self, reason: str) -> str:
        return (
            f"it took longer than its time limit of {self.start_timeout:g} s: {reason}"
        )

    def _on_ready(self, event: r.WorkerReady, now: float) -> list[Command]:
        worker = self._known(event.worker)
        if worker.state is WorkerState.DRAINING:
            return []
        if worker.state is not WorkerState.STARTING:
            msg = f"worker {worker.id} is ready, but it was {worker.state.value}"
            raise r.IllegalEvent(msg)
        self._failures.clear()
        self._spawn_at = 0.0
        self._end_limit(worker)
        self._shift(worker, WorkerState.IDLE, now)
        return self._dispatch(now)

    def _on_refused(self, event: r.WorkerRefused, now: float) -> list[Command]:
        worker = self._known(event.worker)
        if worker.state not in {WorkerState.STARTING, WorkerState.DRAINING}:
            msg = f"worker {worker.id} refused, but it was {worker.state.value}"
            raise r.IllegalEvent(msg)
        commands = self._retire(worker, now)
        reason = self._why_late(event.reason) if worker.late else event.reason
        return commands + self._break((reason,), now)

    def _on_dead(self, event: r.WorkerDead, now: float) -> list[Command]:
        worker = self._known(event.worker)
        del self.workers[worker.id]
        self._idle.pop(worker.id, None)
        self._end_limit(worker)
        state, call = worker.state, worker.call
        self._starting -= state is WorkerState.STARTING
        self._draining -= state is WorkerState.DRAINING
        commands: list[Command] = []
        if state is not WorkerState.DRAINING:
            self.deaths += 1
        if worker.flight:
            commands += self._flight_orphaned(worker, event, now)
        elif call is not None:
            commands += self._orphaned(call, worker, event.unread, event.reason, now)
        elif worker.packed:
            commands += self._pack_orphaned(worker, event, now)
        elif worker.late:
            commands += self._break((self._why_late(event.reason),), now)
        elif state is WorkerState.STARTING:
            # One that died idle counts for nothing: the next one starts only for a
            # call, and gets it at once, so that no loop can come of it.
            commands += self._start_failed(event.reason, now)
        for call_id in self._pinned.pop(worker.id, ()):
            pinned = self.calls.get(call_id)
            if pinned is not None and pinned.state is CallState.PENDING:
                commands.append(self._fail(pinned, "died", now, worker, event.reason))
        return [*commands, *self._dispatch(now), *self._maybe_finish(now)]

    def _orphaned(
        self, call: Call, worker: Worker, unread: bool, reason: str, now: float
    ) -> list[Command]:
        self._detach(call, worker)
        return self._rest_of_orphan(call, worker, unread, reason, now)

    def _rest_of_orphan(
        self, call: Call, worker: Worker, unread: bool, reason: str, now: float
    ) -> list[Command]:
        """What becomes of a call whose worker has died."""
        if call.stopping:
            return [self._fail(call, call.stopping, now, worker, reason)]
        if self.broken and unread:
            return [self._fail(call, "broken", now, detail="; ".join(self.broken))]
        if not self.broken and (unread or call.retries > 0):
            call.retries -= not unread
            if call.pinned is None:
                self._move(call, CallState.PENDING, now)
                self._enqueue(call)
                return []
        return [self._fail(call, "died", now, worker, reason)]

    def _start_failed(self, reason: str, now: float) -> list[Command]:
        self._failures.append(reason)
        failed = len(self._failures)
        if failed > self.max_restarts:
            return self._break(tuple(self._failures), now)
        if failed > 1:
            delay = min(BACKOFF_AT_MOST, BACKOFF * 2 ** (failed - 2))
            self._spawn_at = now + delay
        return []

    def _break(self, reasons: tuple[str, ...], now: float) -> list[Command]:
        if self.broken:
            return []
        self.broken = reasons
        commands: list[Command] = [r.Broke(reasons)]
        detail = "; ".join(reasons)
        commands += [
            self._fail(call, "broken", now, detail=detail)
            for call in list(self.calls.values())
            if call.state is CallState.PENDING
        ]
        for worker in list(self.workers.values()):
            if worker.state in {WorkerState.IDLE, WorkerState.STARTING}:
                commands += self._retire(worker, now)
        return commands

    def _retire(self, worker: Worker, now: float) -> list[Command]:
        if worker.state is WorkerState.DRAINING:
            return []
        self._end_limit(worker)
        self._shift(worker, WorkerState.DRAINING, now)
        worker.kill_at = now + EXIT_WITHIN
        return [r.Exit(worker.id)]

    # -- the pool --------------------------------------------------------------------

    def _on_resized(self, event: r.Resized, now: float) -> list[Command]:
        self.max_workers = event.max_workers
        commands: list[Command] = []
        for worker in list(self._idle.values()):
            if self._active() <= self.max_workers:
                break
            if not self._pinned.get(worker.id) and not worker.flight:
                commands += self._retire(worker, now)
        return commands + self._dispatch(now)

    def _on_closed(self, event: r.Closed, now: float) -> list[Command]:
        self.closed = True
        self._cancelling = self._cancelling or event.cancel_pending
        commands: list[Command] = []
        if event.cancel_pending:
            commands += [
                self._fail(call, "cancelled", now)
                for call in list(self.calls.values())
                if call.state is CallState.PENDING
            ]
        return [*commands, *self._maybe_finish(now)]

    def _on_everyone(self, _event: r.Everyone, now: float) -> list[Command]:
        if self.broken:
            return []
        return self._spawn(self.max_workers - self._active(), now)

    def _on_tick(self, _event: r.Tick, now: float) -> list[Command]:
        commands: list[Command] = []
        for worker in list(self.workers.values()):
            if worker.stop_at is not None and worker.stop_at <= now:
                if worker.call is not None:
                    commands += self._stop(worker.call, worker, "timeout", now)
                else:
                    commands += self._start_overdue(worker, now)
            elif worker.flight and worker.state is not WorkerState.DRAINING:
                commands += self._tick_beside(worker, now)
            elif worker.look_at is not None and worker.look_at <= now:
                commands.append(r.Look(worker.id))
            elif worker.kill_at is not None and worker.kill_at <= now:
                worker.kill_at = None
                commands.append(r.Kill(worker.id, force=True))
            elif (
                worker.state is WorkerState.IDLE
                and self.idle_timeout is not None
                and worker.since + self.idle_timeout <= now
            ):
                commands += self._retire(worker, now)
        return commands + self._dispatch(now)

    def next_tick(self) -> float | None:
        """When a :class:`Tick` is due, if ever."""
        return self._next_tick() if self.has_timers else None

    def _next_tick(self) -> float | None:
        times = [
            at
            for worker in self.workers.values()
            for at in (worker.stop_at, worker.kill_at, worker.look_at)
            if at is not None
        ]
        if self.slots > 1:
            times += self._ticks_beside()
        if self.idle_timeout is not None:
            times += [
                w.since + self.idle_timeout for w in self._idle.values() if not w.flight
            ]
        # After a failure one starts at a time: its own fate is what is waited for.
        trying = self._failures and self._starting
        if self._lacking() > 0 and not (self._idle or self.broken or trying):
            times.append(self._spawn_at)
        return min(times, default=None)

    def _ticks_beside(self) -> list[float]:
        return [
            at
            for worker in self.workers.values()
            for call in worker.flight.values()
            for at in (call.stop_at, call.kill_at)
            if at is not None
        ]

    @property
    def has_timers(self) -> bool:
        """Whether a :class:`Tick` may be due some time. Cheap, and needs no lock."""
        return bool(
            self._timed
            or self._packs
            or self._draining
            or self.idle_timeout is not None
            or (self.pending and not self._idle and self._active() < self.max_workers)
        )

    @property
    def finished(self) -> bool:
        """Closed, and nothing is left to do or to wait for."""
        return self.closed and not self.calls and not self.workers

    @property
    def unresolved(self) -> bool:
        """Whether anything is going on that somebody must attend to."""
        return bool(self.calls) or self._starting > 0 or self._draining > 0

    def _maybe_finish(self, now: float) -> list[Command]:
        if not self.closed or self.calls:
            return []
        commands: list[Command] = []
        for worker in list(self.workers.values()):
            commands += self._retire(worker, now)
        return commands

    def _lacking(self) -> int:
        """Workers to be started for calls that any worker may run."""
        pinned = sum(map(len, self._pinned.values())) if self._pinned else 0
        return min(
            self.pending - pinned - self._starting, self.max_workers - self._active()
        )

    def _active(self) -> int:
        return len(self.workers) - (0 if self.exclusive else self._draining)

    def _dispatch(self, now: float) -> list[Command]:
        """Bring pending calls and idle workers together; start workers for the rest."""
        commands: list[Command] = []
        if self._pinned and self._idle:
            commands += self._dispatch_pinned(now)
        while self._idle and self._queue:
            call = self.calls.get(heapq.heappop(self._queue)[1])
            if call is None or call.state is not CallState.PENDING:
                continue  # cancelled, or failed, while it waited
            worker = self._idle.popitem()[1]
            pack = self._companions(call, worker) if call.kind in self._seconds else ()
            if pack:
                commands.append(self._start_pack([call, *pack], worker, now))
            else:
                commands.append(self._start(call, worker, now))
        if self.closed and not self.calls:
            return commands + self._maybe_finish(now)
        if not self._idle and not self.broken:
            commands += self._spawn(self._lacking(), now)
        # A pool that shrank lets its surplus workers go as they become idle.
        while self._idle and self._active() > self.max_workers:
            surplus = next((w for w in self._idle.values() if not w.flight), None)
            if surplus is None:
                break
            commands += self._retire(surplus, now)
        return commands

    def _dispatch_pinned(self, now: float) -> list[Command]:
        commands: list[Command] = []
        for number, waiting in list(self._pinned.items()):
            while waiting and number in self._idle:
                call = self.calls.get(waiting.pop(0))
                if call is not None and call.state is CallState.PENDING:
                    worker = self._idle.pop(number)
                    commands.append(self._start(call, worker, now))
            if not waiting:
                del self._pinned[number]
        return commands

    def _spawn(self, count: int, now: float) -> list[Command]:
        if now < self._spawn_at:
            return []
        commands: list[Command] = []
        for _ in range(count):
            self._numbers += 1
            self.workers[self._numbers] = Worker(self._numbers, now)
            self._starting += 1
            commands.append(r.Spawn(self._numbers))
            if self._failures:
                break  # one at a time until one has made it
        return commands

    # -- transitions -----------------------------------------------------------------

    def _known(self, number: int) -> Worker:
        worker = self.workers.get(number)
        if worker is None:
            msg = f"worker {number} is not known"
            raise r.IllegalEvent(msg)
        return worker

    def _move(
        self, call: Call, state: CallState, now: float, worker: Worker | None = None
    ) -> None:
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
        else:
            call.note((now, state, worker.id if worker else None))

    def _shift(self, worker: Worker, state: WorkerState, now: float) -> None:
        before = worker.state
        if state not in r.WORKER_MOVES[before]:
            msg = f"worker {worker.id}: {before.value} to {state.value}"
            raise r.IllegalEvent(msg)
        if before is WorkerState.IDLE or self.slots > 1:
            self._idle.pop(worker.id, None)
        if before is WorkerState.STARTING:
            self._starting -= 1
        if state is WorkerState.IDLE:
            self._idle[worker.id] = worker
        elif state is WorkerState.DRAINING:
            self._draining += 1
        worker.state = state
        worker.since = now

    def story(self, call_id: int) -> str:
        """What happened to an unfinished call, a line for each step."""
        call = self.calls.get(call_id)
        if call is None:
            return f"call {call_id} is not known (finished, or never submitted)"
        start = call.born
        history = [(start, CallState.PENDING, None), *(call.history or ())]
        return "\n".join(
            f"+{at - start:.3f} s {state.value}"
            + (f" in worker {worker}" if worker is not None else "")
            for at, state, worker in history
        )

    def validate(self) -> None:
        """Check the invariants; for tests."""
        workers, calls = self.workers.values(), self.calls.values()
        by_state = [w.state for w in workers]
        assert self._starting == by_state.count(WorkerState.STARTING)
        assert self._draining == by_state.count(WorkerState.DRAINING)
        assert self._packs == sum(w.look_at is not None for w in workers)
        limited = sum(w.stop_at is not None for w in workers)
        limited += sum(c.stop_at is not None for c in calls)
        limited += sum(c.kill_at is not None for c in calls)
        assert self._timed == limited
        assert self.has_timers or self._next_tick() is None
        idle = {
            w.id
            for w in workers
            if w.state is WorkerState.IDLE
            or (w.state is WorkerState.BUSY and 0 < len(w.flight) < self.slots)
        }
        assert set(self._idle) == idle
        assert self.pending == sum(c.state is CallState.PENDING for c in calls)
        for call in calls:
            assert call.state in {CallState.PENDING, CallState.RUNNING}
            running = call.state is CallState.RUNNING
            assert running == (call.worker is not None)
            if call.worker is not None:
                worker = call.worker
                assert (
                    worker.call is call
                    or worker.pack.get(call.id) is call
                    or worker.flight.get(call.id) is call
                )
                assert self.workers[call.worker.id] is call.worker
        for worker in workers:
            self._validate_worker(worker)
        queued = {entry[1] for entry in self._queue}
        queued.update(*self._pinned.values())
        for call in calls:
            if call.state is CallState.PENDING:
                assert call.id in queued
        if not self.broken:
            # Nobody waits beside an idle worker that might take the call.
            free = [c for c in calls if c.state is CallState.PENDING and not c.pinned]
            assert not (free and self._idle)

    def _validate_worker(self, worker: Worker) -> None:
        if worker.state is WorkerState.BUSY:
            busy_with = (
                worker.call is not None,
                worker.packed,
                bool(worker.flight),
            )
            assert sum(busy_with) == 1
        places = [call.sent for call in worker.flight.values()]
        assert places == sorted(places)
        assert len(places) <= self.slots
        for each in worker.flight.values():
            assert each.worker is worker
            assert worker.state in {WorkerState.BUSY, WorkerState.DRAINING}
        assert worker.packed or not (worker.pack or worker.look_at)
        for each in worker.pack.values():
            assert each.worker is worker
        if worker.call is not None:
            assert worker.state in {WorkerState.BUSY, WorkerState.DRAINING}
