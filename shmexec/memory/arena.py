"""The owner's side of a segment: blocks with pages behind them.

Not thread-safe: who shares an arena between threads holds a lock around everything but
:meth:`Arena.back` and the copying itself, which touch only what they were given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import numpy as np

from shmexec.memory.allocator import CHUNK, BlockAllocator
from shmexec.memory.segment import Segment

if TYPE_CHECKING:
    from shmexec.memory import _native

    Allocator = BlockAllocator | _native.BlockAllocator

RETAIN = 16 << 20
"""Bytes of idle pages that an arena keeps when it is trimmed."""

WRITE_FROM = 1 << 20
"""Bytes of fresh memory from which on it is filled by writing to the file."""


class Content(Protocol):
    """Bytes that are to be copied into a block."""

    nbytes: int

    def fill(self, target: np.ndarray) -> None:
        """Copy into ``target``, ``nbytes`` of ``uint8``."""

    def whole(self) -> np.ndarray | None:
        """The bytes as contiguous ``uint8``, if they are that where they lie."""


class Arena:
    """A segment and the allocator of its blocks.

    Attributes:
        id: Number of the arena, unique among those of one parent process.
    """

    quota = 0
    """Bytes that blocks may take in all, for arenas that have a quota."""

    def __init__(
        self, arena_id: int, segment: Segment, blocks: Allocator | None = None
    ) -> None:
        self.id = arena_id
        self.segment = segment
        self.blocks: Allocator = blocks or BlockAllocator(segment.size)

    def reserve(self, nbytes: int) -> tuple[int, list[tuple[int, int]]] | None:
        """A block and the runs of it that :meth:`back` must commit; None if full."""
        offset = self.blocks.allocate(nbytes)
        if offset is None:
            return None
        return offset, self.blocks.fresh_runs(offset, nbytes)

    def back(self, fresh: list[tuple[int, int]]) -> None:
        """Commit the fresh runs of a reserved block; MemoryError if there is none.

        They are to be marked afterwards, not before: a neighbour that is reserved
        meanwhile then commits a chunk that both share twice, but never not at all.
        """
        for start, length in fresh:
            self.segment.commit(start, length)

    def fill(self, offset: int, source: Content, fresh: list[tuple[int, int]]) -> None:
        """Copy a source into a reserved block, and do what :meth:`back` does.

        One thread does it: where this was measured, two filled a core more each and
        copied no faster, from 1 MB to 512 MB, neither into warm nor into fresh pages.

        Raises:
            MemoryError: If there is none.
        """
        end = offset + source.nbytes
        data = source.whole() if fresh and self.segment.kind == "memfd" else None
        written = [] if data is None else list(_inner(fresh, offset, end))
        if data is None or not written:
            self.back(fresh)
            # What was written last time is not mapped yet.
            self.segment.populate(offset, source.nbytes)
            source.fill(self.segment.part(offset, source.nbytes))
            return
        position = offset
        for first, last in [*written, (end, end)]:
            if position < first:
                part = data[position - offset : first - offset]
                self.segment.commit(position, first - position)
                self.segment.part(position, first - position)[:] = part
            if first < last:
                self.segment.write(first, data[first - offset : last - offset])
            position = last

    def free(self, offset: int) -> int:
        """Recycle a block; returns its size in bytes."""
        return self.blocks.free(offset)

    def trim(self, keep: int = RETAIN) -> int:
        """Punch idle pages beyond ``keep`` bytes; returns how many bytes went."""
        return self._trim(keep)

    def _trim(self, keep: int) -> int:
        gone = 0
        for start, length in self.blocks.idle_runs(keep):
            self.segment.punch(start, length)
            self.blocks.mark_punched(start, length)
            gone += length
        return gone

    # -- arrays born here: only with the native part, see NativeArena --------------------

    def enter(self) -> object:
        """Have NumPy make large arrays here, in this context; pass it to `leave`."""
        return None

    def leave(self, before: object) -> None:
        """End what `enter` began."""

    @contextmanager
    def away(self) -> Iterator[None]:
        """Have NumPy make arrays in ordinary memory, in this context."""
        yield

    def pin(self, _address: int, _nbytes: int) -> tuple[int, int] | None:
        """Pin the block of the array that has these bytes; (start, offset) or None.

        The caller drops the array, then tries `take`; if that fails, it ends with `unpin`.
        """
        return None

    def take(self, start: int, offset: int, nbytes: int) -> int | None:
        """Own a pinned block if nobody reaches it any more; the block's new start."""
        raise NotImplementedError

    def unpin(self, start: int) -> None:
        """End a pin; the block is free if its array died meanwhile."""
        raise NotImplementedError

    def note_fork(self) -> int:
        """Keep the arrays that a forked child will see; 0 if there are none."""
        return 0

    def keep_forks(self, note: int) -> None:
        """Recycle arrays that only children before this note saw; all, if it is 0."""

    def missed(self) -> int:
        """Most bytes at once that had no room here since last asked."""
        return 0


def _inner(
    fresh: list[tuple[int, int]], start: int, end: int
) -> Iterator[tuple[int, int]]:
    """The whole chunks of fresh runs within a range, where they are many.

    Of a chunk written in part, the rest would have no memory and yet count as committed.
    """
    start, end = -(-start // CHUNK) * CHUNK, end // CHUNK * CHUNK
    for run, length in fresh:
        first, last = max(run, start), min(run + length, end)
        if last - first >= WRITE_FROM:
            yield first, last
