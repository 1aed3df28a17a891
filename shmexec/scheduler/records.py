"""States of calls and workers, the events that change them, the commands that follow."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from enum import Enum
from typing import NamedTuple


class CallState(Enum):
    """Where a call is."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    __hash__ = object.__hash__  # members are single; Enum's own is slow


class WorkerState(Enum):
    """What a worker is doing. A dead one is forgotten."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"

    __hash__ = object.__hash__


CALL_MOVES: dict[CallState, frozenset[CallState]] = {
    CallState.PENDING: frozenset(
        {CallState.RUNNING, CallState.CANCELLED, CallState.FAILED}
    ),
    # Back to pending: its worker died before it began, or a retry is due.
    CallState.RUNNING: frozenset(
        {CallState.DONE, CallState.FAILED, CallState.PENDING, CallState.CANCELLED}
    ),
    CallState.DONE: frozenset(),
    CallState.FAILED: frozenset(),
    CallState.CANCELLED: frozenset(),
}

WORKER_MOVES: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STARTING: frozenset({WorkerState.IDLE, WorkerState.DRAINING}),
    WorkerState.IDLE: frozenset({WorkerState.BUSY, WorkerState.DRAINING}),
    WorkerState.BUSY: frozenset({WorkerState.IDLE, WorkerState.DRAINING}),
    WorkerState.DRAINING: frozenset(),
}


class IllegalEvent(RuntimeError):
    """An event that cannot happen in this state; nothing was changed."""


# -- events ------------------------------------------------------------------------------


class Submitted(NamedTuple):
    """A call was handed in. A higher priority runs earlier."""

    call: int
    timeout: float | None = None
    retries: int = 0
    priority: int = 0
    worker: int | None = None
    """Only this worker may run it."""
    kind: Hashable = None
    """Calls of one kind take about as long; those of None are never packed."""
    name: str = ""
    """What people know it by."""


class WorkerBegan(NamedTuple):
    """A worker runs its initializer now, which has a time limit."""

    worker: int


class WorkerReady(NamedTuple):
    """A worker is initialised and waits."""

    worker: int


class WorkerRefused(NamedTuple):
    """A worker's initializer failed: so would the next one's."""

    worker: int
    reason: str


class Finished(NamedTuple):
    """A worker replied to its call."""

    call: int
    worker: int
    ok: bool
    seconds: float = 0.0
    begun: bool = True
    """False if it was never sent."""


class PackReplied(NamedTuple):
    """Results of packed calls came: (call, ok, seconds) each, in their order."""

    worker: int
    results: Sequence[tuple[int, bool, float]]
    ended: bool
    """It was the worker's last word about this pack."""


class PackExpired(NamedTuple):
    """The pack's deadline has passed: no call behind ``begun`` can begin any more."""

    worker: int
    begun: int


class WorkerDead(NamedTuple):
    """A worker was reaped."""

    worker: int
    reason: str
    unread: bool = False
    """It had not taken the call that was sent to it."""
    begun: int = 0
    """Of several calls, the one that it had begun last; 0 if none."""
    scarce: bool = False
    """It never began, since the system had nothing left for it now."""


class WorkerMute(NamedTuple):
    """A worker will not be heard of any more, but for its end."""

    worker: int


class Cancelled(NamedTuple):
    """Somebody does not want the call any more; ``running``: not even if it runs."""

    call: int
    running: bool = False


class Resized(NamedTuple):
    """The pool shall have another size."""

    max_workers: int


class Closed(NamedTuple):
    """No more calls come."""

    cancel_pending: bool = False


class Everyone(NamedTuple):
    """Start workers up to the maximum now."""


class Tick(NamedTuple):
    """Time has passed; see :meth:`Machine.next_tick`."""


class MemorySampled(NamedTuple):
    """What workers have, and what the machine has left, in bytes."""

    workers: tuple[tuple[int, int], ...] = ()
    """(worker, its private memory) each; a busy one's call may be about to end."""
    free: int | None = None
    """None if nobody has looked."""


Event = (
    Submitted
    | WorkerBegan
    | WorkerReady
    | WorkerRefused
    | Finished
    | PackReplied
    | PackExpired
    | WorkerDead
    | WorkerMute
    | Cancelled
    | Resized
    | Closed
    | Everyone
    | Tick
    | MemorySampled
)


# -- commands ----------------------------------------------------------------------------


class Send(NamedTuple):
    """Write the call to the worker."""

    call: int
    worker: int


class SendPack(NamedTuple):
    """Write these calls to the worker; it begins none of them after the deadline."""

    calls: tuple[int, ...]
    worker: int
    deadline: float


class Look(NamedTuple):
    """The deadline of the worker's pack has passed: see how far it came.

    To be answered by :class:`PackExpired`.
    """

    worker: int


class TakeBack(NamedTuple):
    """The call was sent, and waits again: it has not begun and cannot any more."""

    call: int


class Spawn(NamedTuple):
    """Start a worker with this number."""

    worker: int


class Exit(NamedTuple):
    """Ask a worker to end."""

    worker: int


class Interrupt(NamedTuple):
    """Have a worker cancel one of its calls, which then replies; others go on."""

    call: int
    worker: int


class Kill(NamedTuple):
    """End a worker: show its stacks and interrupt it, or kill it by ``force``."""

    worker: int
    force: bool = False


class Trim(NamedTuple):
    """Memory is getting scarce: return what lies idle."""


class Warn(NamedTuple):
    """Tell people about memory."""

    why: str
    """``retired``, ``killed`` or ``paused``."""
    worker: int | None
    nbytes: int
    """What that worker has, or what the machine has left."""


class Drop(NamedTuple):
    """Forget what the call holds; its future is cancelled already."""

    call: int


class Fail(NamedTuple):
    """Resolve the call with an error of our own."""

    call: int
    why: str
    """``died``, ``gone`` (before it had begun, and it was for that worker), ``timeout``,
    ``stopped``, ``broken`` or ``cancelled``."""
    worker: int | None = None
    detail: str = ""
    gently: bool = False
    """It ended by itself when it was cancelled; its worker goes on."""


class Broke(NamedTuple):
    """The pool is broken: nothing can be submitted any more."""

    reasons: tuple[str, ...]


Command = (
    Send
    | SendPack
    | Look
    | TakeBack
    | Spawn
    | Exit
    | Interrupt
    | Kill
    | Trim
    | Warn
    | Drop
    | Fail
    | Broke
)
