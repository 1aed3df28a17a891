"""Streams: the items of a generator that runs in a worker, as they come.

The worker may send as many items as it has credit for; what the consumer takes gives it
more. Every item has a future of its own, so that threads wait for it, and coroutines, as
for any other. The last future in the queue is that of what comes next: when it is
resolved and still the last, the stream has ended, or failed.

Who wakes a consumer: whatever resolves the future, that is an item, the reply at the
generator's end, the worker's death, a time-out, the pool's end. Who wakes a worker that
waits for credit: the consumer; if that is gone, the finalizer of its stream, or the
pool's shutdown, which both close the generator; if the parent is gone, the lifeline.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from shmexec.closing import Closing
from shmexec.errors import PoolClosed
from shmexec.worker.steps import END

if TYPE_CHECKING:
    from shmexec.runtime.futures import Future
    from shmexec.runtime.pool import Pool
    from shmexec.worker.steps import Steps

T = TypeVar("T")

__all__ = ["Stream"]


class Stream(Closing, Iterator[T], AsyncIterator[T], Generic[T]):
    """What :meth:`shmexec.Executor.stream` returns: iterate over it, once.

    ``for`` and ``async for`` alike. Leaving the loop, dropping the stream or
    :meth:`close` closes the generator in the worker: its ``finally`` runs, and the
    worker is free for other calls. Ctrl-C while it waits for an item ends it as
    :meth:`cancel` does.

    Example:
        >>> for item in ex.stream(range, 3):
        ...     print(item)
        0
        1
        2
    """

    def __init__(
        self, pool: Pool, call: int, items: deque[Future[Any]], buffersize: int
    ) -> None:
        self._ended = True  # an interrupt in here has it closed by who makes it
        self._pool = pool
        self._call = call
        self._items = items
        # Credit goes back in portions: a message for each item would cost as much.
        self._portion = max(1, buffersize // 2)
        self._taken = 0
        self._ended = False
        self._owner: object = None

    def keep_alive(self, owner: object) -> Stream[T]:
        """Hold on to the executor while the stream lives; for the executor only."""
        self._owner = owner
        return self

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        future = self._items[0]
        try:
            item: T = future.result()
        except KeyboardInterrupt as interrupt:
            if not _has_failed(future):  # else the generator raised it
                self.cancel()
                raise interrupt.with_traceback(None) from None
            self._ended = True
            raise
        except BaseException:
            self._ended = _has_failed(future)
            raise
        if self._took(future):
            return item
        raise StopIteration

    async def __anext__(self) -> T:
        if self._ended:
            raise StopAsyncIteration
        future = self._items[0]
        try:
            item: T = (
                future.result() if future.done() else await asyncio.wrap_future(future)
            )
        except asyncio.CancelledError:
            self.cancel()
            raise
        except BaseException:
            self._ended = _has_failed(future)
            raise
        if self._took(future):
            return item
        raise StopAsyncIteration

    def _took(self, future: Future[Any]) -> bool:
        """Whether what a resolved future has is an item, and not the end."""
        if future is self._items[-1]:
            self._ended = True
            if future.result() is False:
                msg = "the executor was shut down before the stream had ended"
                raise PoolClosed(msg)
            return False
        self._items.popleft()
        self._taken += 1
        if self._taken >= self._portion:
            # In this order: an interrupt in between gives some twice, rather than never.
            self._pool.give_credit(self._call, self._portion)
            self._taken = 0
        return True

    def close(self) -> None:
        """Have the generator closed in the worker, and drop what has come.

        Does not wait: a step that is under way ends first. Harmless at the end.

        Example:
            >>> stream = ex.stream(range, 1_000_000)
            >>> next(stream)
            0
            >>> stream.close()
            >>> list(stream)
            []
        """
        if not self._ended:
            self._ended = True
            self._pool.close_stream(self._call)

    async def aclose(self) -> None:
        """As :meth:`close`; ``contextlib.aclosing`` calls it.

        Example:
            >>> from contextlib import aclosing
            >>> async def main():
            ...     async with aclosing(ex.stream(range, 1_000_000)) as stream:
            ...         return await anext(stream)
            >>> asyncio.run(main())
            0
        """
        self.close()

    def cancel(self) -> None:
        """Stop the call also in the middle of a step; its worker is replaced then.

        Example:
            >>> def forever():
            ...     yield 1
            ...     time.sleep(3600)
            >>> stream = ex.stream(forever)
            >>> next(stream)
            1
            >>> stream.cancel()
        """
        if not self._ended:
            self._ended = True
            self._items[-1].cancel(running=True)

    def __del__(self) -> None:
        if not self._ended and not sys.is_finalizing():
            self._pool.drop_stream(self._call)


def _has_failed(future: Future[Any]) -> bool:
    """Whether a stream ended with an error; else something struck whoever waited.

    It leaves the stream as it was, also if an item came at the same moment.
    """
    return future.done() and (future.cancelled() or future.exception() is not None)


class LocalStream(Stream[T]):
    """A stream of a pool without processes: each step runs when it is asked for."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._ended = False
        self._owner = None

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        try:
            item = self._steps.step()
        except BaseException:
            self._ended = True
            raise
        if item is END:
            self._ended = True
            raise StopIteration
        return item  # type: ignore[no-any-return]

    async def __anext__(self) -> T:
        if self._ended:
            raise StopAsyncIteration
        try:
            item = await self._steps.astep()
        except BaseException:
            self._ended = True
            raise
        if item is END:
            self._ended = True
            raise StopAsyncIteration
        return item  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the generator now."""
        if not self._ended:
            self._ended = True
            self._steps.close()

    def cancel(self) -> None:
        """As :meth:`close`: nothing runs between two steps."""
        self.close()

    def __del__(self) -> None:
        """Nothing to do: the generator goes with its last reference."""
