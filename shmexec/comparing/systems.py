"""The systems that are compared: shmexec, the standard library, and the baselines.

A system is a class that opens it with so many workers; it gives a :class:`Caller`. What
it needs is imported there, so that no system pays for another's import. Each is used as
its own documentation recommends; where that differs from a plain call it is said at the
class. Packages of others are in :mod:`shmexec.comparing.peers`.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shmexec.comparing import peers
from shmexec.comparing.caller import Caller, Submit
from shmexec.comparing.case import Case

SHMEXEC = "shmexec"
WITHOUT_NATIVE = "shmexec-nonative"
SHARE = "shmexec-share"
FORK_PER_CALL = "fork-per-call"
SUBPROCESS = "subprocess"
IN_PROCESS = "inprocess"

Opener = Callable[[int], AbstractContextManager[Caller]]


@dataclass(frozen=True)
class System:
    """An entry of :data:`SYSTEMS`.

    Attributes:
        name: As given to ``--systems``.
        title: As shown in tables.
        open: Takes a number of workers.
        package: What must be installed.
        inherits: A call sees this process's memory as it is when the call starts: a
            cache that a worker would keep must then be filled here.
        shares: Has a way to make an input ready for many calls.
        persistent: Has workers that outlive a call.
        heavy: Takes seconds where others take milliseconds: not in a quick run, unless
            it is asked for.
        ours: It is shmexec, so no peer.
        environment: Variables that its process gets.
        families: Cases it takes part in; None for all.
        only_reuse: Takes part only where an input is used again.
    """

    name: str
    title: str
    open: Opener
    package: str | None = None
    inherits: bool = False
    shares: bool = False
    persistent: bool = True
    heavy: bool = False
    ours: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    families: frozenset[str] | None = None
    only_reuse: bool = False

    def takes_part(self, case: Case) -> bool:
        """Whether the case asks this system anything."""
        if case.needs_sharing and not self.shares:
            return False
        if case.only_ours and not self.ours:
            return False
        if case.needs_workers and not self.persistent:
            return False
        if self.only_reuse and not case.reuses:
            return False
        return self.families is None or case.family in self.families

    def missing(self) -> str | None:
        """Why it cannot take part on this machine; None if it can."""
        if self.package and importlib.util.find_spec(self.package) is None:
            return "not installed"
        return None


class _Shmexec(Submit):
    """shmexec, with its own way to make batches."""

    def batcher(self, fn: Callable[..., Any]) -> Any:
        executor: Any = self._executor
        return executor.batcher(fn)


class _Share(Submit):
    """shmexec, with inputs that are used again shared first."""

    def keep(self, value: Any) -> Any:
        import shmexec

        return shmexec.share(value)


class _ForkPerCall(Submit):
    """Has no chunks of its own; a part is as free as the whole."""

    map_chunked = Caller.map_chunked


class _Pool(Caller):
    """``multiprocessing.Pool``, whose ``map`` makes chunks unless told not to."""

    def __init__(self, pool: Any, workers: int) -> None:
        self._pool = pool
        self.workers = workers

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self._pool.apply(fn, args)

    def gather(self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Any:
        results = [self._pool.apply_async(fn, args) for args in calls]
        return [result.get() for result in results]

    def map(self, fn: Callable[..., Any], items: Sequence[Any]) -> Iterable[Any]:
        return self._pool.map(fn, items)

    def map_chunked(
        self, fn: Callable[..., Any], items: Sequence[Any]
    ) -> Iterable[Any]:
        return self._pool.map(fn, items, chunksize=self.chunk(items))


class _Direct(Caller):
    """A plain call."""

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return fn(*args)

    def gather(self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Any:
        return [fn(*args) for args in calls]


@contextmanager
def _shmexec(workers: int, caller: type[Submit] = _Shmexec) -> Iterator[Caller]:
    import shmexec

    with shmexec.Executor(workers, threads_per_worker=1) as executor:
        yield caller(executor, workers)


@contextmanager
def _fork_per_call(workers: int) -> Iterator[Caller]:
    import shmexec

    with shmexec.ForkPerCallExecutor(workers) as executor:
        yield _ForkPerCall(executor, workers)


@contextmanager
def _process_pool(workers: int, method: str) -> Iterator[Caller]:
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        yield Submit(executor, workers)


@contextmanager
def _pool(workers: int) -> Iterator[Caller]:
    with multiprocessing.Pool(workers) as pool:
        yield _Pool(pool, workers)
        pool.close()
        pool.join()


@contextmanager
def _in_process(_workers: int) -> Iterator[Caller]:
    yield _Direct()


_OF_ARRAYS = frozenset({"in", "out", "both", "shared", "reuse", "memory"})

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(SHMEXEC, "shmexec", _shmexec, ours=True),
        System(
            SHARE,
            "shmexec, `share`d input",
            partial(_shmexec, caller=_Share),
            ours=True,
            shares=True,
            only_reuse=True,
        ),
        System(
            WITHOUT_NATIVE,
            "shmexec without native part",
            _shmexec,
            ours=True,
            environment={"SHMEXEC_NATIVE": "0"},
            families=_OF_ARRAYS,
        ),
        System(
            "ppe-fork",
            "ProcessPoolExecutor (fork)",
            partial(_process_pool, method="fork"),
        ),
        System(
            "ppe-spawn",
            "ProcessPoolExecutor (spawn)",
            partial(_process_pool, method="spawn"),
        ),
        System("pool", "multiprocessing.Pool", _pool),
        System("loky", "loky", peers.loky, package="loky"),
        System("joblib", "joblib", peers.joblib, package="joblib", shares=True),
        System("mpire", "mpire", peers.mpire, package="mpire", shares=True),
        System("pebble", "Pebble", peers.pebble, package="pebble"),
        System("ray", "Ray", peers.ray, package="ray", shares=True, heavy=True),
        System(
            "dask", "Dask", peers.dask, package="distributed", shares=True, heavy=True
        ),
        System(
            FORK_PER_CALL,
            "fork per call",
            _fork_per_call,
            inherits=True,
            shares=True,
            persistent=False,
        ),
        System(
            SUBPROCESS,
            "subprocess per call",
            peers.subprocess_per_call,
            shares=True,
            heavy=True,
            persistent=False,
        ),
        System(
            IN_PROCESS,
            "in process (no copy)",
            _in_process,
            inherits=True,
            shares=True,
            persistent=False,
        ),
    )
}
