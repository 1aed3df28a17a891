"""What is known about one call, and about one worker.

Their states are changed by :class:`~shmexec.scheduler.state.State` only; what else is
noted here, by the part of the scheduler whose business it is.
"""

from __future__ import annotations

from shmexec.scheduler import records as r
from shmexec.scheduler.records import CallState, WorkerState

Step = tuple[float, CallState, "int | None", str]
"""When a call came into which state, by which worker, and what there is to say of it."""


STOP = "is to stop"
"""Begins what is said of a call that runs and is not wanted any more."""


class Call:
    """One call. ``history`` is what :meth:`Machine.story` tells.

    Very many may wait: there is no history before the first move, and the place in the
    queue is one number (see :func:`~shmexec.scheduler.waiting.place_of`).
    """

    __slots__ = (
        "born",
        "ended",
        "history",
        "id",
        "kill_at",
        "kind",
        "name",
        "order",
        "pinned",
        "retries",
        "seconds",
        "sent",
        "state",
        "stop_at",
        "stopping",
        "timeout",
        "worker",
    )

    def __init__(self, event: r.Submitted, order: int, now: float) -> None:
        self.id = event.call
        self.name = event.name
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
        self.history: list[Step] | None = None
        self.ended = 0.0
        self.seconds = 0.0  # what the worker says that it took

    def note(self, step: Step) -> None:
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
        "heavy",
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
        self.heavy = 0  # its private memory at the last look, if over its limit
        self.since = now
        self.stop_at: float | None = None  # when its call, or its start, times out
        self.late = False  # its start has timed out
        self.kill_at: float | None = None  # when patience with its end is over
