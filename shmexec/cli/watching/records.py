"""What ``shmexec top`` shows, as frozen records; ``--json`` writes them as they are.

What programs say is checked for its shape: they may have another version of shmexec.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

VERSION = 1
"""Of what ``--json`` writes."""


@dataclass(frozen=True)
class Usage:
    """What the system says of a process."""

    cpu_percent: float | None = None
    """Of one CPU, since the last look."""
    private_bytes: int | None = None
    """``rss - shared``."""
    shared_bytes: int | None = None
    """Shared memory that it has touched; what two processes touched counts for both."""


@dataclass(frozen=True)
class Worker:
    """One worker; of a program that does not answer, what the system tells of it."""

    pid: int | None
    state: str
    """``starting``, ``idle``, ``busy``, ``draining``; ``stopped``, ``unknown``."""
    state_seconds: float | None = None
    call: str | None = None
    """Name of the function that runs."""
    call_seconds: float | None = None
    more_calls: int = 0
    """Calls that it was sent beside."""
    stopping: bool = False
    """The call is timed out, or cancelled, and is being stopped."""
    done: int | None = None
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Pool:
    """One pool: an executor's, or an actor's."""

    name: str
    actor: str | None
    """Name of the class, if it is an actor's."""
    state: str
    """As in :class:`shmexec.Health`; ``locked``: a thread keeps its lock, and nothing
    else is known."""
    start_method: str
    uptime_seconds: float
    max_workers: int = 0
    pending: int = 0
    oldest_pending_seconds: float = 0.0
    running: int = 0
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    restarts: int = 0
    """Workers that ended without being asked to."""
    last_failure: str = ""
    paused: bool = False
    """Calls begin one at a time, since memory is short."""
    shared_used_bytes: int | None = None
    shared_budget_bytes: int | None = None
    workers: tuple[Worker, ...] = ()
    more_workers: int = 0
    """Workers that are not listed."""


@dataclass(frozen=True)
class Program:
    """A process that has pools."""

    pid: int
    command: tuple[str, ...]
    uptime_seconds: float
    answers: bool
    why: str = ""
    """Why it does not answer."""
    python: str = ""
    usage: Usage = field(default_factory=Usage)
    pools: tuple[Pool, ...] = ()
    more_pools: int = 0
    """Pools that are not listed."""
    processes: tuple[Worker, ...] = ()
    """Of a program that does not answer: what seem to be its workers."""


def to_json(programs: list[Program]) -> dict[str, Any]:
    """Plain values for ``--json``."""
    return {"version": VERSION, "programs": [asdict(each) for each in programs]}


def pool_of(told: Any, usages: dict[int, Usage]) -> Pool | None:
    """A pool as its program tells it; None if that makes no sense.

    Args:
        told: By the program.
        usages: Of workers, by their process ids.
    """
    try:
        locked = bool(told["locked"])
        workers = () if locked else told["workers"]
        return Pool(
            name=str(told["name"]),
            actor=None if told["actor"] is None else str(told["actor"]),
            state="locked" if locked else str(told["state"]),
            start_method=str(told["start_method"]),
            uptime_seconds=float(told["uptime"]),
            oldest_pending_seconds=float(told.get("oldest_pending", 0.0)),
            last_failure=str(told.get("last_failure", "")),
            paused=bool(told.get("paused", False)),
            shared_used_bytes=_maybe(told.get("shared_used"), int),
            shared_budget_bytes=_maybe(told.get("shared_budget"), int),
            workers=tuple(_worker_of(each, usages) for each in workers),
            **{name: int(told.get(name, 0)) for name in _COUNTS},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


_COUNTS = (
    "max_workers",
    "pending",
    "running",
    "done",
    "failed",
    "cancelled",
    "restarts",
    "more_workers",
)


def _worker_of(told: Any, usages: dict[int, Usage]) -> Worker:
    pid = _maybe(told["pid"], int)
    return Worker(
        pid=pid,
        state=str(told["state"]),
        state_seconds=_maybe(told["since"], float),
        call=_maybe(told["call"], str),
        call_seconds=_maybe(told["call_since"], float),
        more_calls=int(told["more_calls"]),
        stopping=bool(told["stopping"]),
        done=_maybe(told["done"], int),
        usage=usages.get(pid or 0, Usage()),
    )


def _maybe(value: Any, kind: Any) -> Any:
    return None if value is None else kind(value)


def pids_of(told: Any) -> list[int]:
    """Process ids of the workers that a program tells of."""
    pools = told.get("pools", ()) if isinstance(told, dict) else ()
    found = []
    for pool in pools if isinstance(pools, list) else ():
        workers = pool.get("workers", ()) if isinstance(pool, dict) else ()
        for worker in workers if isinstance(workers, list) else ():
            pid = worker.get("pid") if isinstance(worker, dict) else None
            if isinstance(pid, int):
                found.append(pid)
    return found
