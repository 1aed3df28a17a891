"""Calls that are known to be tiny go in packs, several in one message.

A pack has a deadline after which the worker begins no more of it. Then the runtime sees
how far the worker came; what had not begun waits again in its old place, so that no call
waits for a long one that it was packed with.
"""

from __future__ import annotations

from collections.abc import Hashable

from shmexec.scheduler import records as r
from shmexec.scheduler.entities import Call, Worker
from shmexec.scheduler.records import CallState, Command, WorkerState
from shmexec.scheduler.state import State

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


class Packs:
    """What calls of a kind take, and what becomes of those that were packed.

    Args:
        state: The pool's.
        max_calls: Calls after which a worker is replaced, None for never.
    """

    def __init__(self, state: State, max_calls: int | None) -> None:
        self._state = state
        self._max_calls = max_calls
        self.seconds: dict[Hashable, float] = {}  # what a call of a kind takes
        self.open = 0  # workers whose pack may be looked at

    def learn(self, kind: Hashable, seconds: float) -> None:
        """Remember what calls of a kind take, as a moving average."""
        if kind is None:
            return
        known = self.seconds.get(kind)
        if known is None and len(self.seconds) >= KINDS_AT_MOST:
            self.seconds.clear()
        if known is not None:
            seconds = known + (seconds - known) / 4
        self.seconds[kind] = seconds

    def overran(self, call: Call) -> None:
        """A packed call has taken longer than calls of its kind are known to."""
        self.learn(call.kind, PACK_PATIENCE)

    def companions(self, first: Call, worker: Worker) -> list[Call]:
        """Take the calls off the queue that shall go with this one, of a known kind."""
        each = self.seconds[first.kind] + PACK_OVERHEAD
        waiting = self._state.waiting.count() + 1
        # Nobody shall get more than its share while others could help.
        share = -(-waiting // max(1, self._state.active()))
        count = min(PACK_AT_MOST, int(PACK_SECONDS / each), share)
        if self._max_calls is not None:
            count = min(count, self._max_calls - worker.calls)
        return self._state.waiting.take_alike(first.kind, count - 1)

    def start(self, pack: list[Call], worker: Worker, now: float) -> r.SendPack:
        """Send pending calls to an idle worker."""
        self._state.shift(worker, WorkerState.BUSY, now)
        step = (now, CallState.RUNNING, worker.id, f"in a pack of {len(pack)}")
        self._state.pending -= len(pack)
        for call in pack:
            assert call.state is CallState.PENDING
            call.state = CallState.RUNNING
            call.note(step)
            call.worker = worker
            worker.pack[call.id] = call
        worker.packed = True
        worker.look_at = now + PACK_PATIENCE
        self.open += 1
        return r.SendPack(tuple(worker.pack), worker.id, worker.look_at)

    def _packed(self, number: int) -> Worker:
        worker = self._state.known(number)
        if not worker.packed:
            msg = f"worker {number} speaks of a pack, and was sent none"
            raise r.IllegalEvent(msg)
        return worker

    def replied(self, event: r.PackReplied, now: float) -> tuple[Worker, list[Command]]:
        """Results came; returns whose, and what must be done."""
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
            call.seconds = seconds
            if call.stopping:
                commands.append(self._state.fail(call, call.stopping, now, worker))
            else:
                ended = CallState.DONE if ok else CallState.FAILED
                self._state.move(call, ended, now)
            total += seconds
            kind = call.kind
        worker.calls += len(event.results)
        self.learn(kind, total / max(1, len(event.results)))
        if event.ended:
            self._end_look(worker)
            worker.packed = False
            commands += self._take_back(worker, list(worker.pack), now)
        return worker, commands

    def expired(self, event: r.PackExpired, now: float) -> tuple[Worker, list[Command]]:
        """The deadline has passed; leaves the worker what it has begun."""
        worker = self._packed(event.worker)
        if worker.look_at is None or now < worker.look_at:
            msg = f"worker {worker.id}: its pack has not expired, or had before"
            raise r.IllegalEvent(msg)
        self._end_look(worker)
        numbers = list(worker.pack)
        # The first one is the worker's whatever comes, as if it had been sent alone: so
        # that at least one call gets done for each message.
        first = numbers.index(event.begun) if event.begun in worker.pack else 0
        return worker, self._take_back(worker, numbers[first + 1 :], now)

    def orphaned(
        self, worker: Worker, event: r.WorkerDead, now: float
    ) -> list[Command]:
        """A worker has died with a pack."""
        self._end_look(worker)
        worker.packed = False
        numbers = list(worker.pack)
        begun = numbers.index(event.begun) + 1 if event.begun in worker.pack else 0
        commands: list[Command] = []
        for number in numbers[:begun]:
            call = worker.pack.pop(number)
            call.worker = None
            commands += self._state.orphan(call, worker, False, event.reason, now)
        return commands + self._take_back(worker, numbers[begun:], now)

    def _end_look(self, worker: Worker) -> None:
        if worker.look_at is not None:
            worker.look_at = None
            self.open -= 1

    def _take_back(
        self, worker: Worker, numbers: list[int], now: float
    ) -> list[Command]:
        """Calls of a pack that have not begun, and will not, wait in their old places."""
        state = self._state
        commands: list[Command] = []
        for number in numbers:
            call = worker.pack.pop(number)
            call.worker = None
            if call.stopping or state.cancelling:
                why = call.stopping or "cancelled"
                commands.append(state.fail(call, why, now, worker))
            elif state.broken:
                commands.append(state.fail_broken(call, now))
            else:
                state.wait_again(call, now, "taken back: it had not begun")
                commands.append(r.TakeBack(call.id))
        return commands
