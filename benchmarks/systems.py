"""The systems that are compared, each used as its own documentation recommends.

A system is a function that opens it with so many workers and gives a :class:`Caller`.
What it needs is imported in that function, so that no system pays for another's import.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

FORK_PER_CALL = "fork-per-call"


class Caller(Protocol):
    """A system that stands ready."""

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Run one call and wait for its result."""

    def gather(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        """Ask for all calls, then take all results."""


@dataclass(frozen=True)
class System:
    """An entry of :data:`SYSTEMS`.

    Attributes:
        name: As given to ``--systems``.
        title: As shown in the table.
        open: Takes a number of workers.
        inherits: A call sees this process's memory as it is when the call starts: a
            cache that a worker would keep must then be filled here.
    """

    name: str
    title: str
    open: Callable[[int], AbstractContextManager[Caller]]
    inherits: bool = False


class _Submit:
    """Any ``concurrent.futures.Executor``."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self._executor.submit(fn, *args).result()

    def gather(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        futures = [self._executor.submit(fn, item) for item in items]
        return [future.result() for future in futures]


class _Apply:
    """``multiprocessing.Pool``."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self._pool.apply(fn, args)

    def gather(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        results = [self._pool.apply_async(fn, (item,)) for item in items]
        return [result.get() for result in results]


class _Direct:
    """A plain call."""

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return fn(*args)

    def gather(self, fn: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        return [fn(item) for item in items]


@contextmanager
def _shmexec(workers: int) -> Iterator[Caller]:
    import shmexec

    with shmexec.Executor(workers, threads_per_worker=1) as executor:
        yield _Submit(executor)


@contextmanager
def _fork_per_call(workers: int) -> Iterator[Caller]:
    import shmexec

    with shmexec.ForkPerCallExecutor(workers) as executor:
        yield _Submit(executor)


@contextmanager
def _process_pool(workers: int, method: str) -> Iterator[Caller]:
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(workers, mp_context=context) as executor:
        yield _Submit(executor)


@contextmanager
def _pool(workers: int) -> Iterator[Caller]:
    with multiprocessing.Pool(workers) as pool:
        yield _Apply(pool)
        pool.close()
        pool.join()


@contextmanager
def _in_process(_workers: int) -> Iterator[Caller]:
    yield _Direct()


SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System("shmexec", "shmexec", _shmexec),
        System(
            "ppe-fork", "ProcessPoolExecutor (fork)", lambda n: _process_pool(n, "fork")
        ),
        System(
            "ppe-spawn",
            "ProcessPoolExecutor (spawn)",
            lambda n: _process_pool(n, "spawn"),
        ),
        System("pool", "multiprocessing.Pool", _pool),
        System(FORK_PER_CALL, "fork per call", _fork_per_call, inherits=True),
        System("inprocess", "in process (no copy)", _in_process, inherits=True),
    )
}
