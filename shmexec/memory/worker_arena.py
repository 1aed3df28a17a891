"""What the parent knows of the arenas of its workers, whose memory it inherits."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from shmexec.memory.allocator import CHUNK
from shmexec.memory.remains import Remains
from shmexec.memory.segment import Segment


@dataclass(slots=True)
class WorkerArena:
    """One of them; the lock of the :class:`Host` guards it."""

    id: int
    segment: Segment
    account: Hashable
    quota: int = 0
    kept: int = 0
    """Of the quota, what the worker could not give back when asked, since its last reply:
    its program holds arrays there."""
    freed: int = 0
    """Bytes of results that were dropped since it was last asked for what it can spare: it
    may not know of them in its answer."""
    live: dict[int, int] = field(default_factory=dict)
    """Blocks that hold results, and their sizes; change it by `add` and `remove` only."""
    leased: int = 0
    """Bytes of those."""
    frees: deque[int] = field(default_factory=deque)
    alive: bool = True
    visited: set[int] = field(default_factory=set)
    """Arenas of other workers that this one was given."""
    gone: deque[int] = field(default_factory=deque)
    """Those among them that are no more: it is to forget them."""

    @property
    def slack(self) -> int:
        """Bytes of quota that hold no result, and might be had back."""
        return self.quota - self.leased - self.kept

    def add(self, offset: int, nbytes: int) -> None:
        """A block holds a result."""
        self.live[offset] = nbytes
        self.leased += nbytes

    def remove(self, offset: int) -> int:
        """Nobody reads it any more; returns its size."""
        nbytes = self.live.pop(offset)
        self.leased -= nbytes
        self.freed += nbytes
        return nbytes

    def bury(self) -> int:
        """Its worker is gone: what is not leased is of no use.

        Returns:
            Bytes of its quota that are free now.
        """
        self.alive = False
        self.frees.clear()
        return max(0, self.quota - self.leased)

    def remains(self) -> Remains:
        """Everything that nobody leases."""
        gaps = []
        start = 0
        for offset in [*sorted(self.live), self.segment.size]:
            gaps.append((start, offset - start))
            start = offset + self.live.get(offset, 0)
        return Remains(self.segment, gaps)


def punch_inner(segment: Segment, offset: int, nbytes: int) -> None:
    """Punch the whole pages of a block; those it shares with neighbours stay."""
    first, last = -(-offset // CHUNK) * CHUNK, (offset + nbytes) // CHUNK * CHUNK
    if last > first:
        segment.punch(first, last - first)
