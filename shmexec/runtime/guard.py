"""Minds the memory of a pool's workers, and what the machine has left.

It has no thread. Whoever leads looks when :attr:`Guard.due` has come, as at other times
of the pool, and tells the scheduler what there is; that decides. While calls run it
looks at growing intervals, and more often the nearer a limit is: memory cannot be filled
faster than :data:`FILLED_AT`. After the last call it looks once more, then not at all:
an idle pool sleeps.

Who wakes calls that wait for memory: the next look, which is due while any does. If
nobody leads, nobody could send them either; and if a look fails, memory counts as
plenty. The pool's own patience (:mod:`shmexec.scheduler.weight`) does not need it.

The caller holds the pool's lock, for all of it but :attr:`Guard.due` and
:meth:`Guard.refusal`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from shmexec.deadline import now
from shmexec.errors import MemoryScarce, MemoryWarning
from shmexec.options import DEFAULT_WORKERS_AT_MOST
from shmexec.runtime import monitor
from shmexec.runtime.footprint import Growth
from shmexec.runtime.monitor import Memory
from shmexec.runtime.tables import Tables
from shmexec.runtime.workers import WorkerHandle
from shmexec.scheduler import records as r

FIRST_LOOK = 0.02
"""Seconds from the first call after a rest to a look."""

INTERVAL = 0.1
"""Seconds from that look to the next; doubles with each."""

INTERVAL_AT_MOST = 5.0

FILLED_AT = 2e9
"""Bytes per second that page faults can fill, at most."""

NEAR_HARD, NEAR = 0.1, 0.25
"""Seconds between looks at workers that are about to pass the hard limit, or the other."""

SCARCE = 0.25
"""Seconds between looks at the machine while there is little."""

LOOKS_PER_SECOND = 15.0
"""Looks at workers after their calls; one takes some 10 microseconds."""

BURST = 40.0
"""Such looks in a row, after a time without."""


class Guard:
    """See the module.

    Args:
        tables: The pool's.
        handle: Tells the scheduler of an event, and does what it says.
        remark: Has the program warned.
    """

    def __init__(
        self,
        tables: Tables,
        handle: Callable[[r.Event], None],
        remark: Callable[[Warning], None],
    ) -> None:
        self._options = options = tables.options
        self._machine = tables.machine
        self._workers = tables.workers
        self._reserve = tables.reserve
        self._handle = handle
        self._remark = remark
        self._within = options.max_worker_memory_hard
        self._after = options.max_worker_memory or self._within
        self._limited = self._after is not None
        self.due: float | None = None
        """When to look; None while the pool rests."""
        self.trimming = False
        """Whether idle memory of this process is to be returned, without the lock."""
        self._free_at = 0.0
        self._interval = INTERVAL
        self._seen = -1  # calls that had come and gone at the last look
        self._last = Memory(0, sys.maxsize)
        self._looks, self._looks_at = BURST, 0.0
        self._oom_kills: int | None = None
        self._told: set[str] = set()  # what was warned of

    # -- when to look ------------------------------------------------------------------

    def arm(self) -> bool:
        """Calls come again after a rest: look soon. The leader is to be woken."""
        moment = now()
        self._interval = INTERVAL
        self.due = moment + (0.0 if self._machine.paused else FIRST_LOOK)
        self._free_at = self.due
        return True

    def look_anew(self) -> None:
        """See also what the machine has, whenever somebody looked last."""
        self._free_at = 0.0
        self.look()

    def look(self) -> None:
        """It is time: see what there is, and tell the scheduler."""
        moment = now()
        machine = self._machine
        finished = sum(machine.counts.values())
        resting = not machine.calls and finished == self._seen
        self._seen = finished
        self._interval = min(INTERVAL_AT_MOST, 2 * self._interval)
        seen = self._look_at_workers()
        free = None
        if self._free_at <= moment or resting:
            free = self._look_at_machine()
            self._free_at = moment + self._pause_between(free)
        self.due = None  # what follows may arm it
        self._handle(r.MemorySampled(seen, free))
        if not resting:
            soon = min(self._interval, self._soonest(seen))
            self.due = min(moment + soon, self._free_at)

    def _pause_between(self, free: int) -> float:
        """Seconds after which the machine may have less than shall be left."""
        far = (free - 2 * self._reserve) / FILLED_AT
        return min(self._interval, max(SCARCE, far))

    def _soonest(self, seen: tuple[tuple[int, int], ...]) -> float:
        """Seconds after which a worker may pass a limit, but not too few."""
        soonest = float("inf")
        for limit, at_least in ((self._within, NEAR_HARD), (self._after, NEAR)):
            if limit is not None:
                below = [size for _, size in seen if size <= limit]
                room = limit - max(below, default=0)
                soonest = min(soonest, max(at_least, room / FILLED_AT))
        return soonest

    # -- looking -----------------------------------------------------------------------

    def _look_at_machine(self) -> int:
        if not self._reserve:
            return sys.maxsize
        try:
            self._last = monitor.memory()
        except (OSError, ValueError):
            self._last = Memory(0, sys.maxsize)
        return self._last.free

    def _look_at_workers(self) -> tuple[tuple[int, int], ...]:
        seen: list[tuple[int, int]] = []
        looks = self._limited and self._count_looks() >= 1.0
        for number, handle in self._workers.items():
            worker = self._machine.workers.get(number)
            if worker is None or worker.state is r.WorkerState.STARTING:
                continue
            nbytes = self.measure(handle)
            if nbytes is None:
                continue
            seen.append((number, nbytes))
            if worker.state is r.WorkerState.IDLE:
                self._mark(handle, worker.calls, nbytes)
            elif handle.footprint.is_due(worker.calls + 1):
                handle.look_after = True  # what its call holds now says nothing
            if self._after is not None and (nbytes > self._after or looks):
                handle.look_after = True
        return tuple(seen)

    def measure(self, handle: WorkerHandle) -> int | None:
        """What a worker has now; None if it is gone."""
        gauge = handle.gauge
        pid = handle.process.pid
        nbytes = monitor.private_bytes(pid) if gauge is None else gauge.read()
        if nbytes is not None:
            handle.footprint.see(nbytes)
        return nbytes

    def memory(self) -> Memory:
        """What the machine, or its cgroup, has now."""
        return monitor.memory()

    def ready(self, handle: WorkerHandle) -> None:
        """A worker is initialised."""
        nbytes = monitor.private_bytes(handle.process.pid)
        if nbytes is not None:
            handle.footprint.start(nbytes)
        handle.look_after = self._limited
        if self._limited:  # it is looked at often
            handle.gauge = monitor.Gauge(handle.process.pid)
        if self._oom_kills is None:
            self._oom_kills = monitor.oom_kills()

    def call_ended(self, handle: WorkerHandle) -> None:
        """A worker has replied, and has not been given another call yet.

        If too many looks were had of late, this worker is looked at again when all are;
        but in any case if it was over its limit in mid-call.
        """
        worker = self._machine.workers[handle.number]
        heavy = worker.heavy
        if self._limited and not heavy:
            if self._count_looks() < 1.0:
                handle.look_after = False
                return
            self._looks -= 1.0
        handle.look_after = self._limited
        nbytes = self.measure(handle)
        if nbytes is None:
            return
        if not worker.flight:
            self._mark(handle, worker.calls + 1, nbytes)
        if self._limited:
            self._handle(r.MemorySampled(((handle.number, nbytes),)))

    def _count_looks(self) -> float:
        """How many looks may be had now, after calls."""
        moment = now()
        passed = moment - self._looks_at
        self._looks = min(BURST, self._looks + passed * LOOKS_PER_SECOND)
        self._looks_at = moment
        return self._looks

    # -- what is refused ---------------------------------------------------------------

    @property
    def refusing(self) -> bool:
        """Whether calls are refused; to be looked at without the lock."""
        return self._machine.weight.refusing

    def refusal(self, needed: int = 0) -> MemoryScarce:
        """The error that says so; without the lock."""
        total, free = self._last
        reserve = self._reserve
        what = f"no room for {needed} bytes" if needed else "no more calls are taken"
        return MemoryScarce(
            f"{what}: the machine, or its cgroup, has {_mb(free)} of {_mb(total)} of "
            f"memory left, less than min_free_memory={_mb(reserve)}. Wait for calls to "
            "end, use fewer workers, or lower min_free_memory=",
            needed=needed,
            used=max(0, total - free),
            budget=total,
            threshold=reserve,
        )

    # -- what is told ------------------------------------------------------------------

    def warn(self, command: r.Warn) -> None:
        """The scheduler has decided something that people should know."""
        options, nbytes = self._options, command.nbytes
        handle = self._workers.get(command.worker or 0)
        if command.why == "killed":
            if handle is not None:
                limit = _mb(self._within or 0)
                handle.verdict = (
                    f"its private memory of {_mb(nbytes)} had passed "
                    f"max_worker_memory_hard={limit}"
                )
        elif command.why == "retired":
            if handle is not None:
                limit = _mb(options.max_worker_memory or self._within or 0)
                self._tell("retired", _retirement(handle, nbytes, limit, options.name))
        else:
            self._tell("paused", self._scarcity(nbytes))

    def _tell(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            self._remark(MemoryWarning(text))

    def _scarcity(self, free: int) -> str:
        options, workers = self._options, self._machine.max_workers
        text = (
            f"pool {options.name!r}: {_mb(free)} of memory are left in the machine or "
            f"its cgroup, less than min_free_memory={_mb(self._reserve)}: its calls "
            "begin one at a time until there is more"
        )
        if workers > DEFAULT_WORKERS_AT_MOST:
            sizes = [each.memory for each in self._workers.values() if each.memory]
            text += ". " + monitor.growth_warning(workers, sizes)
        return text

    def _mark(self, handle: WorkerHandle, calls: int, nbytes: int) -> None:
        growth = handle.footprint.mark(calls, nbytes)
        if growth is not None and "growth" not in self._told:
            self._tell("growth", _growth(handle, growth, self._options.name))

    def hint(self, handle: WorkerHandle) -> str:
        """Why a worker was perhaps killed, by whoever it was, of which nothing is known."""
        kills, before = monitor.oom_kills(), self._oom_kills
        self._oom_kills = kills
        if kills is not None and before is not None and kills > before:
            why = ", by the system for want of memory"
        else:
            why = ", possibly out of memory"
        facts = []
        if handle.memory is not None:
            facts.append(f"it had {_mb(handle.memory)} of its own when last looked at")
        if self._machine.paused or self._last.free < 2 * self._reserve:
            facts.append(f"the machine or its cgroup had {_mb(self._last.free)} left")
        return why + (f" ({', '.join(facts)})" if facts else "")


def _mb(nbytes: int) -> str:
    return f"{nbytes / 1e6:.0f} MB"


def _retirement(handle: WorkerHandle, nbytes: int, limit: str, name: str) -> str:
    who = f"pool {name!r}: worker {handle.number} (pid {handle.process.pid})"
    start = handle.footprint.baseline or 0
    return (
        f"{who} has {_mb(nbytes)} of private memory after its call ({_mb(start)} after "
        f"its start), more than max_worker_memory={limit}: it is replaced. This is said "
        "once; stats().workers_replaced counts"
    )


def _growth(handle: WorkerHandle, growth: Growth, name: str) -> str:
    each = growth.nbytes / growth.calls / 1e6
    return (
        f"pool {name!r}: worker {handle.number} (pid {handle.process.pid}) grows with "
        f"every call: {_mb(growth.nbytes)} in {growth.calls} calls, {each:.3g} MB per "
        f"call; it has {_mb(handle.memory or 0)} now. What calls keep, in globals or "
        "caches say, stays in the worker: max_tasks_per_child= or max_worker_memory= "
        "replace it in time"
    )
