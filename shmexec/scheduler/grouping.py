"""Which items of a batcher run together, and when: decides, purely.

A batch *waits* from its first item until it is taken to be run; while it waits and has
room it is *open*, and the next item of its key joins it. Keys tell what can be stacked.
At most ``width`` batches run at once, so what comes meanwhile gathers.

A waiting batch is ready if it is full, or was shut, or its first item has waited for
``max_delay``, or the queue is full, or nothing more will come. Of those that are ready the one runs
first that was opened first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar


class Batch:
    """Items that run together.

    Attributes:
        key: What tells which items can be stacked.
        number: Counts batches, in the order in which they were opened.
        opened: When the first item came.
        size: Items that joined.
        live: Those of them that were not cancelled while it waited.
        taken: Whether it waits no more.
    """

    def __init__(self, key: Hashable, number: int, opened: float) -> None:
        self.key = key
        self.number = number
        self.opened = opened
        self.size = 0
        self.live = 0
        self.taken = False


B = TypeVar("B", bound=Batch)


class Grouping(Generic[B]):
    """See the module. Its caller has the lock, and tells the time.

    Args:
        make: Makes a batch from its key, its number and the time.
        max_size: Items per batch at most.
        max_delay: Seconds for which a batch may wait for more items while it could run.
        max_queue: Items that may wait; more are not to join.
    """

    def __init__(
        self,
        make: Callable[[Hashable, int, float], B],
        max_size: int,
        max_delay: float,
        max_queue: int,
    ) -> None:
        self._make = make
        self.max_size = max_size
        self.max_delay = max_delay
        self.max_queue = max_queue
        self._number = 0
        self._waits: dict[int, B] = {}  # by number, so the oldest comes first
        # Those that are full or shut, as a heap; some may have been taken.
        self._full: list[int] = []
        self._open: dict[Hashable, B] = {}
        self.waiting = 0
        self.running = 0
        self.closed = False

    def has_room(self) -> bool:
        """Whether one more item may join."""
        return self.waiting < self.max_queue

    def open_batch(self, key: Hashable) -> B | None:
        """The batch that the next item of this key joins, None if it opens one."""
        return self._open.get(key)

    def join(self, key: Hashable, now: float) -> B:
        """Have an item join; its place in the batch is ``size - 1``.

        The caller has seen that there is room, and that it is not closed.
        """
        batch = self._open.get(key)
        if batch is None:
            self._number += 1
            batch = self._make(key, self._number, now)
            self._open[key] = self._waits[batch.number] = batch
        batch.size += 1
        batch.live += 1
        self.waiting += 1
        if batch.size == self.max_size:
            del self._open[key]
            heapq.heappush(self._full, batch.number)
        return batch

    def shut(self) -> None:
        """Let no more items join the batches that wait: memory is short."""
        for batch in self._open.values():
            heapq.heappush(self._full, batch.number)
        self._open.clear()

    def cancel(self, batch: B) -> bool:
        """An item of the batch was cancelled; whether the batch is gone with it."""
        if batch.taken:
            return False
        batch.live -= 1
        self.waiting -= 1
        if batch.live:
            return False
        self._remove(batch)
        return True

    def take(self, now: float, width: int) -> B | None:
        """The batch that is to run now, if there is one; then it counts as running."""
        if self.running >= width:
            return None
        batch = self._first_ready(now)
        if batch is not None:
            self._remove(batch)
            self.waiting -= batch.live
            self.running += 1
        return batch

    def take_all(self) -> list[B]:
        """All that waits, to run whatever runs already; nothing more will come."""
        self.closed = True
        batches = list(self._waits.values())
        for batch in batches:
            self._remove(batch)
            self.waiting -= batch.live
        self.running += len(batches)
        return batches

    def finished(self) -> None:
        """A batch that ran has ended."""
        assert self.running > 0
        self.running -= 1

    def close(self) -> None:
        """Nothing more will come: what waits is ready."""
        self.closed = True

    def due(self, width: int) -> float | None:
        """When to ask again if nothing happens; None if that is of no use."""
        if self.running >= width or not self._waits:
            return None
        return next(iter(self._waits.values())).opened + self.max_delay

    def _first_ready(self, now: float) -> B | None:
        oldest = next(iter(self._waits.values()), None)
        if oldest is None:
            return None
        hurry = self.closed or not self.has_room()
        if hurry or now >= oldest.opened + self.max_delay:
            return oldest
        while self._full:
            batch = self._waits.get(self._full[0])
            if batch is not None:
                return batch
            heapq.heappop(self._full)
        return None

    def _remove(self, batch: B) -> None:
        batch.taken = True
        del self._waits[batch.number]
        if self._open.get(batch.key) is batch:
            del self._open[batch.key]

    def validate(self) -> None:
        """Check what always holds; for tests."""
        waits = list(self._waits.values())
        assert self.waiting == sum(batch.live for batch in waits)
        assert self.waiting <= self.max_queue
        assert self.running >= 0
        assert [batch.number for batch in waits] == sorted(self._waits)
        for batch in waits:
            assert not batch.taken
            assert 0 < batch.live <= batch.size <= self.max_size
            is_open = self._open.get(batch.key) is batch
            assert is_open != (batch.number in self._full)
            assert not (is_open and batch.size == self.max_size)
        assert all(batch.number in self._waits for batch in self._open.values())
