"""Arenas on the native part, where it was built and is wanted.

``_native.c`` says how it works; without it everything does, with one copy more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType

from shmexec.memory.arena import Arena
from shmexec.memory.segment import Segment
from shmexec.options import INLINE_LIMIT


@cache
def _module() -> ModuleType | None:
    try:
        from shmexec.memory import _native
    except ImportError:  # it was not built: no compiler, or SHMEXEC_NATIVE=0
        return None
    return _native


def is_built() -> bool:
    """Whether the native part can be used."""
    return _module() is not None


class NativeArena(Arena):
    """An arena whose allocator also serves NumPy, on any thread.

    It is never unmapped: arrays may be born in it, and outlive it.
    """

    def __init__(self, arena_id: int, segment: Segment) -> None:
        from shmexec.memory import _native

        self._set_handler = _native.set_handler
        blocks = _native.BlockAllocator(segment.size)
        blocks.attach(
            segment.address,
            segment.descriptor,
            segment.kind == "posix",
            INLINE_LIMIT,
            segment,
        )
        self.native = blocks
        # What is set before any array is born here: NumPy's own.
        self._ordinary = blocks.enter()
        self._set_handler(self._ordinary)
        super().__init__(arena_id, segment, blocks)

    @property
    def quota(self) -> int:
        """Bytes that blocks may take in all; arrays are born here as far as it reaches."""
        return self.native.quota

    @quota.setter
    def quota(self, nbytes: int) -> None:
        self.native.quota = nbytes

    def back(self, fresh: list[tuple[int, int]]) -> None:
        """Commit the fresh runs of a reserved block; MemoryError if there is none."""
        for start, length in fresh:
            self.native.commit(start, length)

    def _trim(self, keep: int) -> int:
        # In one step, since other threads may have arrays born here meanwhile.
        return self.native.trim(keep)

    def enter(self) -> object:
        """See `Arena.enter`."""
        return self.native.enter()

    def leave(self, before: object) -> None:
        """See `Arena.leave`."""
        self._set_handler(before)

    @contextmanager
    def away(self) -> Iterator[None]:
        """See `Arena.away`."""
        before = self.native.enter()  # to learn which one is set
        self._set_handler(self._ordinary)
        try:
            yield
        finally:
            self._set_handler(before)

    def pin(self, address: int, nbytes: int) -> tuple[int, int] | None:
        """See `Arena.pin`."""
        return self.native.pin(address, nbytes)

    def take(self, start: int, offset: int, nbytes: int) -> int | None:
        """See `Arena.take`."""
        return self.native.take(start, offset, nbytes)

    def unpin(self, start: int) -> None:
        """See `Arena.unpin`."""
        self.native.unpin(start)

    def note_fork(self) -> int:
        """See `Arena.note_fork`."""
        return self.native.note_fork() if self.native.born_bytes else 0

    def keep_forks(self, note: int) -> None:
        """See `Arena.keep_forks`."""
        self.native.keep_forks(note)

    def missed(self) -> int:
        """See `Arena.missed`."""
        nbytes = self.native.missed_peak
        if nbytes:
            self.native.reset_missed()
        return nbytes
