"""Figures about a pool, as frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """One worker at one moment.

    Example:
        >>> _ = ex.broadcast(abs, -1)
        >>> worker = ex.stats().workers[0]
        >>> worker.calls > 0, worker.pid != os.getpid()
        (True, True)
    """

    pid: int | None
    """Process id, None until it is known."""
    state: str
    """``starting``, ``idle``, ``busy`` or ``draining``."""
    calls: int
    """Calls it has finished."""
    private_bytes: int | None
    """``rss - shared``, as it is now; the last figure of one that has just ended, None
    if there is none."""
    arena_bytes: int
    """Bytes of results in its arena that the parent still holds. Shared memory counts
    here only, with its owner, whoever has it mapped."""
    peak_bytes: int | None = None
    """The most private memory it was seen to have; looked at now and then."""
    growth_bytes: int | None = None
    """What it has more than after its start, initializer included."""


@dataclass(frozen=True, slots=True)
class Stats:
    """A pool at one moment; made by :meth:`shmexec.Executor.stats`. It cannot be changed.

    Calls are counted since the pool was made, and so are bytes and blocks.

    Example:
        >>> ex.submit(abs, -1).result()
        1
        >>> stats = ex.stats()
        >>> stats.running, stats.pending, stats.shared_memory_budget > 0
        (0, 0, True)
    """

    name: str
    """Of the pool: the executor's, or that with the name of an actor's class."""
    max_workers: int
    """Workers that there may be."""
    workers: tuple[WorkerStats, ...]
    """Those that there are, also those that start, or are about to end."""
    submitted: int
    """Calls that came in; those that could not be pickled did not."""
    pending: int
    """Calls that wait for a worker now."""
    running: int
    """Calls that are with workers now."""
    done: int
    """Calls that returned."""
    failed: int
    """Calls that raised, timed out, were stopped, or lost their worker."""
    cancelled: int
    """Calls that were cancelled before they began."""
    worker_deaths: int
    """Workers that ended without being asked to."""
    bytes_copied_in: int
    """Bytes of arguments copied into shared memory by this process. What ``share`` copies
    is no argument."""
    bytes_copied_out: int
    """Bytes of results that workers copied into shared memory."""
    bytes_by_reference: int
    """Bytes of arguments that were passed by reference, not copied."""
    blocks_recycled: int
    """Blocks of shared memory for arguments, results and, with the native part, arrays
    made in calls, that took memory which was in use before."""
    blocks_faulted: int
    """Such blocks that took new memory, some of it at least: they cost several times as
    much."""
    shared_memory_used: int
    """Bytes of the budget in use: live blocks here, and the workers' quotas, which a busy
    worker keeps. So it may be more than the budget for a while."""
    shared_memory_budget: int
    """The limit in bytes for this pool, with others of the same executor."""
    native: bool
    """Whether results are born in shared memory: the native part was built, and is used.

    Without it each result is copied there once."""
    workers_replaced: int = 0
    """Workers over ``max_worker_memory``, replaced after a call."""
    workers_killed: int = 0
    """Workers over ``max_worker_memory_hard``, killed in a call."""
    memory_free: int = 0
    """Bytes that the machine, or its cgroup, has left."""
    min_free_memory: int = 0
    """Bytes that shall be left."""
    paused: bool = False
    """Whether calls begin one at a time, since there is less."""
    pauses: int = 0
    """How often that came about."""

    def to_openmetrics(self, *others: Stats) -> str:
        """The figures as OpenMetrics text, for Prometheus and its like to scrape.

        Counters are those of the pool's life. The label ``pool`` has its name, and that
        of workers is ``pid``. Serve it as ``application/openmetrics-text;
        version=1.0.0; charset=utf-8``.

        Args:
            *others: Of other pools (another executor, an actor's replicas), to be in the
                same text: two texts cannot be put together. Where names are equal, those
                that come later get a number.

        Example:
            >>> import shmexec
            >>> with shmexec.Executor(1, name="models") as ex:
            ...     text = ex.stats().to_openmetrics()
            >>> [line for line in text.splitlines() if "submitted" in line][-1]
            'shmexec_calls_submitted_total{pool="models"} 0'
        """
        from shmexec.openmetrics import render

        return render((self, *others))


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """The shared memory of this program at one moment; made by :func:`shmexec.stats`.

    Example:
        >>> stats = shmexec.stats()
        >>> stats.used <= stats.budget
        True
    """

    native: bool
    """Whether the native part was built and is used: results are born in shared memory
    and handed over. Without it each is copied once."""
    segment: str
    """``memfd``, or ``posix`` where there is none or ``SHMEXEC_SEGMENT`` says so."""
    used: int
    """Bytes of the budget in use by all executors and by shared arrays."""
    shared: int
    """Bytes of them that ``share``, ``empty`` and their kind, and arrays born in
    ``shared_arrays()``, take."""
    budget: int
    """The limit in bytes."""
    arrays: int
    """Results and shared arrays that this program holds."""


class Durations(NamedTuple):
    """What the latest of many durations were, in seconds; all 0 if there were none."""

    mean: float
    median: float
    longest: float


@dataclass(frozen=True, slots=True)
class BatcherStats:
    """A batcher at one moment; made by :meth:`shmexec.Batcher.stats`.

    Example:
        >>> with ex.batcher(np.sqrt) as root:
        ...     _ = root(4.0).result()
        ...     stats = root.stats()
        >>> stats.items, dict(stats.batch_sizes)
        (1, {1: 1})
    """

    items: int
    """Items that were taken in."""
    batches: int
    """Calls that were made of them."""
    waiting: int
    """Items that wait now, of which ``max_queue`` may."""
    running: int
    """Batches that are with workers now."""
    cancelled: int
    """Items that were cancelled while they waited."""
    failed: int
    """Items that failed, alone or with their batch."""
    batch_sizes: Mapping[int, int]
    """How many batches there were of each size, those that were cancelled not counted."""
    wait_seconds: Durations
    """Of the latest 4,096 items: from coming to the start of their batch."""
    run_seconds: Durations
    """Of the latest 1,024 batches: from there to the result."""


class Step(NamedTuple):
    """Something that befell a call.

    Example:
        >>> future = ex.submit(abs, -1)
        >>> step = ex.story(future).steps[0]
        >>> step.what, step.worker
        ('submitted', None)
    """

    seconds: float
    """Since the call was submitted."""
    what: str
    worker: int | None
    """Number of the worker it was with, None if none."""
    pid: int | None
    """Of that worker; None if it is not known any more."""


@dataclass(frozen=True, slots=True)
class Story:
    """What happened to one call; made by :meth:`shmexec.Executor.story`.

    ``str()`` of it has a line for each step.

    Example:
        >>> future = ex.submit(abs, -1)
        >>> _ = future.result()
        >>> story = ex.story(future)
        >>> story.name, len(story.steps)
        ('abs', 3)
    """

    call: int
    """The call's number, as errors name it; 0 if it never was one."""
    name: str
    steps: tuple[Step, ...]
    """In their order; none if the call is not remembered any more."""
    note: str = ""
    """Why there are no steps."""

    def __str__(self) -> str:
        lines = [f"call {self.call} of {self.name}" if self.call else "no call"]
        lines += [f"  {self.note}"] if self.note else []
        for seconds, what, worker, pid in self.steps:
            by = "" if worker is None else f" [worker {worker}"
            by += "" if worker is None else f", pid {pid}]" if pid else "]"
            lines.append(f"  +{seconds:.6f} s {what}{by}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One call of a profile; of :attr:`shmexec.Profile.calls`.

    Times are in seconds since the profile began, negative before that, and None for
    what did not happen.

    Example:
        >>> import shmexec
        >>> with shmexec.Executor(1) as ex, ex.profile() as p:
        ...     _ = ex.submit(divmod, 1, 0).exception()
        >>> [call] = p.calls
        >>> call.name, call.outcome, call.error, call.worker
        ('divmod', 'failed', 'ZeroDivisionError', 1)
    """

    call: int
    """The call's number in its pool, as errors name it; 0 if it could not be pickled."""
    name: str
    """Of the function."""
    outcome: str
    """``done``, ``failed`` (it raised, or could not run), ``cancelled``, ``timed out``,
    ``worker died``; ``running`` or ``pending``: not done when the profile ended; ``apart``:
    it was left to a process of its own, by a pool with a ``fallback``."""
    error: str
    """The type of the exception that it failed with, else empty."""
    pool: str
    """Name of the pool whose worker ran it: the executor's, or an actor's."""
    worker: int | None
    """Number of that worker in its pool; None if it was never sent."""
    pid: int | None
    """Its process id; None also if it is not known any more."""
    attempts: int
    """How often it was sent to a worker."""
    packed: bool
    """Whether it went there in one message with other calls, the last time."""
    queued: float
    """When it was handed to the scheduler, its arguments packed."""
    sent: float | None
    """When it was sent to the worker, the last time."""
    began: float | None
    """When the worker began it. What follows has arguments unpickled, the function and
    its result pickled."""
    ended: float | None
    """When that was done, by the worker's own time."""
    replied: float | None
    """When this process took the reply in, or knew that there would be none."""
    packing: float
    """Seconds before ``queued`` in which arguments were pickled and copied, waiting for
    room included; 0 for a call that was submitted before the profile began."""
    placing: float
    """Seconds after ``ended`` in which the worker copied results, waiting for room
    included; of a stream those of all items."""
    copied_in: int
    """Bytes of arguments copied into shared memory."""
    by_reference_in: int
    """Bytes of arguments passed without a copy."""
    copied_again: int
    """Bytes of ``copied_in`` of arrays of 1 MB and more that an earlier call was given,
    too: the same ones, or other views of them."""
    copied_out: int
    """Bytes of results that the worker copied into shared memory."""
    by_reference_out: int
    """Bytes of results that were handed over without a copy."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a pool is well, at one moment; made by :meth:`shmexec.Executor.health`.

    Example:
        >>> ex.submit(abs, -1).result()
        1
        >>> health = ex.health()
        >>> health.workers > 0, health.pending
        (True, 0)
    """

    state: str
    """``starting``: no worker is up yet (they start as calls need them); ``ready``;
    ``busy``: calls pend or run; ``failed``: it takes no calls any more; ``closing``;
    ``closed``."""
    workers: int
    """Workers that are up."""
    starting: int
    """Workers that start."""
    busy: int
    """Workers of those that are up that run calls."""
    pending: int
    """Calls that wait for a worker."""
    oldest_pending: float
    """Seconds that the first of them waits; 0 if there is none."""
    restarts: int
    """Workers that ended without being asked to."""
    last_failure: str
    """How the last of those ended, or why the pool has failed; else empty."""
    last_failure_ago: float | None
    """Seconds since the last of those ended, None if none did."""
    private_bytes: int
    """Private memory of all workers, as psutil sees it now."""


class Glimpse(NamedTuple):
    """A pool at one moment, for a display."""

    state: str
    """As in :class:`Health`; ``unknown`` if nobody could tell."""
    stats: Stats | None
    """None if nobody could tell."""
    trouble: str = ""
    """What is, or went, wrong; empty if nothing did."""
