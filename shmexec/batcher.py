"""``Executor.batcher``: single items in, calls on batches of them.

Each item is written into its row of a batch (``runtime.rows``) at once, by the thread
that submits it. A batch that may run (``scheduler.grouping`` decides) becomes an ordinary
call of the pool (``runtime.gathering``); when that is done, the next batch goes, and the
result is split (``runtime.parts``).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar, get_args

import numpy as np

from shmexec.closing import Closing
from shmexec.errors import QueueFull
from shmexec.figures import BatcherStats
from shmexec.options import CallOptions, positive_int
from shmexec.runtime.backend import Backend
from shmexec.runtime.futures import Future
from shmexec.runtime.gathering import Gatherer
from shmexec.runtime.parts import Gathered, Item
from shmexec.runtime.rows import Form
from shmexec.runtime.waiting import may_block
from shmexec.scheduler.grouping import Grouping
from shmexec.wire.pickling import is_masked

QUEUED_BATCHES = 16
"""Full batches that may wait, unless ``max_queue`` says otherwise."""

OnFull = Literal["wait", "refuse"]

T = TypeVar("T")


class Batcher(Closing, Generic[T]):
    """Takes single items and runs a function on batches of them.

    Made by :meth:`shmexec.Executor.batcher`, which tells what it does. Any number of
    threads and ``asyncio`` tasks may use one at a time. It keeps its executor alive. As a
    context manager, it is closed at the end.

    Example:
        >>> with ex.batcher(np.sqrt, max_batch_size=16) as root:
        ...     futures = [root(number) for number in (1.0, 4.0, 9.0)]
        ...     [float(future.result()) for future in futures]
        [1.0, 2.0, 3.0]
    """

    def __init__(
        self,
        owner: object,
        backend: Backend,
        fn: Callable[..., Any],
        options: CallOptions,
        *,
        max_batch_size: int,
        max_delay: float,
        max_queue: int | None,
        on_full: OnFull,
    ) -> None:
        size = positive_int("max_batch_size", max_batch_size)
        limit = (
            QUEUED_BATCHES * size
            if max_queue is None
            else positive_int("max_queue", max_queue)
        )
        if on_full not in get_args(OnFull):
            msg = f"on_full must be 'wait' or 'refuse', not {on_full!r}"
            raise ValueError(msg)
        grouping = Grouping(Gathered, size, _check_delay(max_delay), limit)
        self._owner = owner
        self._gatherer = Gatherer(backend, fn, options, grouping)
        self._waits = on_full == "wait"
        self._finalizer = weakref.finalize(self, self._gatherer.abandon)
        self._finalizer.atexit = False

    def __call__(self, item: Any) -> Future[T]:
        """Submit one item.

        Args:
            item: An array, a number, or a tuple or dict of these. It is copied.

        Returns:
            A future of its part of the result. ``cancel()`` succeeds as long as the item
            waits for its batch to start.

        Raises:
            TypeError: If it is none of these.
            QueueFull: If ``max_queue`` items wait, and this is not to wait for room: as
                was said with ``on_full="refuse"``, in a callback, or under an event loop
                (there, ``await`` :meth:`acall`).
            SharedMemoryFull: If there is no room for it in shared memory, and waiting
                would not help, or is not possible here.
            PoolClosed: After :meth:`close`, or when the executor was shut down.

        Example:
            >>> with ex.batcher(lambda rows: rows.sum(axis=1)) as total:
            ...     float(total(np.array([1.0, 2.0])).result())
            3.0
        """
        form, parts = _form_of(item)
        future = Item()
        while True:
            try:
                self._gatherer.put(form, parts, future)
                return future
            except QueueFull:
                if not (self._waits and may_block()):
                    raise
            self._gatherer.gate().result()

    async def acall(self, item: Any) -> T:
        """Submit one item and await its part of the result.

        While the queue is full it awaits room, unless ``on_full="refuse"``. Cancelling
        the task cancels the item if its batch has not started.

        Raises:
            TypeError, QueueFull, SharedMemoryFull, PoolClosed: As from a call.
            Exception: What the item, or its batch, failed with.

        Example:
            >>> async def main():
            ...     with ex.batcher(np.sqrt) as root:
            ...         return [float(y) for y in await asyncio.gather(*map(root.acall, (1.0, 4.0)))]
            >>> asyncio.run(main())
            [1.0, 2.0]
        """
        import asyncio

        form, parts = _form_of(item)
        future = Item()
        while True:
            try:
                self._gatherer.put(form, parts, future)
                break
            except QueueFull:
                if not self._waits:
                    raise
            await asyncio.wrap_future(self._gatherer.gate())
        return await asyncio.wrap_future(future)

    def stats(self) -> BatcherStats:
        """Figures about items and batches at this moment.

        Example:
            >>> with ex.batcher(np.sqrt) as root:
            ...     _ = root(4.0).result()
            ...     root.stats().items, root.stats().batches
            (1, 1)
        """
        return self._gatherer.stats()

    def close(self, *, wait: bool = True) -> None:
        """Take no more items; what waits still runs, without further delay.

        Args:
            wait: Return when all of it is done. In a callback and under an event loop
                it does not wait.

        Example:
            >>> root = ex.batcher(np.sqrt, max_delay=60)
            >>> future = root(4.0)
            >>> root.close()  # what waits runs now
            >>> float(future.result())
            2.0
        """
        self._finalizer.detach()
        self._gatherer.close("the batcher was closed")
        if wait and may_block():
            self._gatherer.join()

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<shmexec.Batcher of {self._gatherer.name}: {stats.waiting} items waiting, "
            f"{stats.running} batches running>"
        )


def _check_delay(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        msg = f"max_delay must be a number of seconds, not {value!r}"
        raise TypeError(msg)
    if not 0 <= value < math.inf:
        msg = f"max_delay must be at least 0 and finite, not {value!r}"
        raise ValueError(msg)
    return float(value)


# -- items ---------------------------------------------------------------------------


def _form_of(item: Any) -> tuple[Form, Sequence[np.ndarray]]:
    """What an item can be stacked with, and its arrays."""
    if type(item) is np.ndarray:
        return Form(None, (item.shape,), (item.dtype,)), (item,)
    names = None
    if isinstance(item, Mapping):
        if not all(isinstance(name, str) for name in item):
            msg = f"the keys of an item must be strings, not {list(item)!r}"
            raise TypeError(msg)
        names = tuple(sorted(item))
        values: Iterable[Any] = [item[name] for name in names]
    else:
        values = item if isinstance(item, tuple) else (item,)
    parts = tuple([_array_of(value) for value in values])
    if not parts:
        msg = "an item must have at least one array"
        raise TypeError(msg)
    shapes = tuple([part.shape for part in parts])
    return Form(names, shapes, tuple([part.dtype for part in parts])), parts


def _array_of(value: Any) -> np.ndarray:
    if type(value) is np.ndarray:
        return value
    if not is_masked(type(value)) and not isinstance(value, (str, bytes)):
        array = np.asarray(value)
        if not array.dtype.hasobject or isinstance(value, np.ndarray):
            return array
    msg = (
        "an item is an array, a number, or a tuple or dict of these, not "
        f"{type(value).__name__}"
    )
    raise TypeError(msg)
