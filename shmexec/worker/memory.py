"""A worker's memory: its own arena for results, and views of the parent's.

One thread uses it, the loop's; only finalizers run elsewhere, and they just append to
``returns.ended``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from select import select

import numpy as np

from shmexec.errors import SharedMemoryFull
from shmexec.memory.allocator import ALIGNMENT
from shmexec.memory.arena import Arena
from shmexec.memory.segment import Segment
from shmexec.memory.views import Returns, lend
from shmexec.wire.messages import Mode, Ref
from shmexec.wire.pickling import Source
from shmexec.worker.setup import WorkerConfig

WantQuota = Callable[[int, int], tuple[int, int, int]]
"""Asks the parent for bytes, for a result of so many; returns (granted, used, budget)."""


class WorkerMemory:
    """See the module."""

    def __init__(self, config: WorkerConfig, want_quota: WantQuota) -> None:
        kind = config.segment_kind
        self.arena = Arena(
            config.own_arena, Segment(kind, config.own_segment.number, config.own_size)
        )
        writable = config.parent_segment.number
        self._parent_id = config.parent_arena
        # Twice: what is shared read-only is so by page protection.
        self._readable = Segment(
            kind, os.dup(writable), config.parent_size, readonly=True
        )
        self._writable = Segment(kind, writable, config.parent_size)
        self.returns = Returns()
        self.quota = 0
        self.copied = 0
        self._want_quota = want_quota
        self._live: set[int] = set()
        self._pins: list[tuple[int, frozenset[int]]] = []
        self._fork_pipe: tuple[int, int] | None = None
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._after_fork_in_parent,
            after_in_child=self._after_fork_in_child,
        )

    # -- arguments -------------------------------------------------------------------

    def borrow(self, refs: tuple[Ref, ...]) -> list[np.ndarray]:
        """The buffers of a message as ``uint8`` arrays, as their modes say."""
        return [self._borrow(ref) for ref in refs]

    def _borrow(self, ref: Ref) -> np.ndarray:
        if ref.arena != self._parent_id:
            msg = f"a buffer lies in arena {ref.arena}, which is not known here"
            raise ValueError(msg)
        self._live.add(ref.lease)
        readonly = ref.mode == Mode.SHARED
        view = lend(
            self._readable if readonly else self._writable,
            ref.offset,
            ref.nbytes,
            ref.lease,
            self.returns,
            readonly=readonly,
        )
        return view.copy() if ref.mode == Mode.COPY else view

    def ended(self) -> list[int]:
        """Leases whose views have died since last asked."""
        if self._pins:
            self._unpin()
        pinned = frozenset().union(*(leases for _, leases in self._pins))
        ended: list[int] = []
        kept: list[int] = []
        queue = self.returns.ended
        while queue:
            lease = queue.popleft()
            (kept if lease in pinned else ended).append(lease)
        self._live.difference_update(ended)
        queue.extend(kept)
        return ended

    # -- results ---------------------------------------------------------------------

    def place(self, source: Source) -> Ref:
        """Copy a source into a block of this worker's arena.

        Raises:
            SharedMemoryFull: If the parent grants no more room.
        """
        nbytes = source.nbytes
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        blocks = self.arena.blocks
        missing = blocks.used + size - self.quota
        if missing > 0:
            granted, used, budget = self._want_quota(missing, nbytes)
            self.quota += granted
            if granted < missing:
                msg = (
                    f"no room for a result of {nbytes} bytes: {used} of {budget} bytes "
                    "of shared memory are in use. Drop results, or raise "
                    "max_shared_memory="
                )
                raise SharedMemoryFull(msg, needed=nbytes, used=used, budget=budget)
        reserved = self.arena.reserve(size)
        if reserved is None:
            msg = f"no room for a result of {nbytes} bytes: the arena is fragmented"
            raise SharedMemoryFull(
                msg, needed=nbytes, used=blocks.used, budget=self.arena.segment.size
            )
        offset, fresh = reserved
        if blocks.committed + sum(length for _, length in fresh) > self.quota:
            self.arena.trim(max(0, self.quota - blocks.used))
        try:
            self.arena.back(fresh)
        except MemoryError as error:
            blocks.free(offset)
            raise SharedMemoryFull(
                str(error), needed=nbytes, used=blocks.used, budget=self.quota
            ) from error
        if fresh:
            blocks.mark_committed(offset, size)
        source.fill(self.arena.segment.part(offset, nbytes))
        self.copied += nbytes
        return Ref(0, self.arena.id, offset, nbytes)

    def free(self, offsets: tuple[int, ...]) -> None:
        """The parent has no view of these results any more."""
        for offset in offsets:
            self.arena.free(offset)

    def give_back(self) -> int:
        """Return idle pages to the system; returns the quota that is not needed now."""
        self.arena.trim(0)
        surplus = self.quota - self.arena.blocks.used
        self.quota -= surplus
        return surplus

    # -- user code that forks ----------------------------------------------------------

    def _before_fork(self) -> None:
        if self._live:
            self._fork_pipe = os.pipe()
            self._pins.append((self._fork_pipe[0], frozenset(self._live)))

    def _after_fork_in_parent(self) -> None:
        if self._fork_pipe is not None:
            os.close(self._fork_pipe[1])
            self._fork_pipe = None

    def _after_fork_in_child(self) -> None:
        # The child keeps the writing end: when it ends, the parent reads so.
        self.returns = Returns()

    def _unpin(self) -> None:
        ready = select([pipe for pipe, _ in self._pins], [], [], 0)[0]
        for pin in [pin for pin in self._pins if pin[0] in ready]:
            self._pins.remove(pin)
            os.close(pin[0])
