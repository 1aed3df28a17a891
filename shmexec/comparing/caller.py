"""How a case asks a system for calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

from shmexec.comparing import work

CHUNKS_PER_WORKER = 4


class Caller:
    """A system that stands ready; what is here is right for most of them.

    Attributes:
        workers: How many it was opened with.
        views: A part of what ``keep`` gave can be passed alone; if not, the whole goes
            with the bounds of the part.
    """

    workers = 1
    views = True

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Run one call and wait for its result."""
        raise NotImplementedError

    def gather(self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Any:
        """Ask for all calls, each with its arguments, then give all results in order."""
        raise NotImplementedError

    def map(self, fn: Callable[..., Any], items: Sequence[Any]) -> Iterable[Any]:
        """Results for all items, chunked as the system does by default."""
        return self.gather(fn, [(item,) for item in items])

    def map_chunked(
        self, fn: Callable[..., Any], items: Sequence[Any]
    ) -> Iterable[Any]:
        """The same in large chunks."""
        size = self.chunk(items)
        chunks = [
            (fn, items[start : start + size]) for start in range(0, len(items), size)
        ]
        for results in self.gather(work.each, chunks):
            yield from results

    def chunk(self, items: Sequence[Any]) -> int:
        """Items per chunk, so that each worker gets a few chunks."""
        return -(-len(items) // (CHUNKS_PER_WORKER * self.workers))

    def keep(self, value: Any) -> Any:
        """Make ready an input that many calls will use; gives what to pass for it."""
        return value

    def parts(
        self,
        kept: Any,
        of_view: Callable[[Any], Any],
        of_whole: Callable[..., Any],
        bounds: Sequence[tuple[int, int]],
    ) -> list[Any]:
        """A call for each part: of its view, or of the whole and the bounds."""
        if not self.views:
            return self.gather(of_whole, [(kept, *ends) for ends in bounds])
        return self.gather(of_view, [(kept[start:stop],) for start, stop in bounds])


class Submit(Caller):
    """Any ``concurrent.futures.Executor``."""

    def __init__(self, executor: Any, workers: int) -> None:
        self._executor: Executor = executor
        self.workers = workers

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self._executor.submit(fn, *args).result()

    def gather(self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Any:
        futures = [self._executor.submit(fn, *args) for args in calls]
        return [future.result() for future in futures]

    def map(self, fn: Callable[..., Any], items: Sequence[Any]) -> Iterable[Any]:
        return self._executor.map(fn, items)

    def map_chunked(
        self, fn: Callable[..., Any], items: Sequence[Any]
    ) -> Iterable[Any]:
        return self._executor.map(fn, items, chunksize=self.chunk(items))
