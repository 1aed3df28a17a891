"""A worker's memory: its own arena for results, and views of the parent's.

One thread uses it, the loop's; only finalizers run elsewhere, and they just append to
``returns.ended``.
"""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from shmexec.deadline import now
from shmexec.errors import SharedMemoryFull
from shmexec.memory import native
from shmexec.memory.allocator import ALIGNMENT
from shmexec.memory.arena import Arena
from shmexec.memory.forks import Forks
from shmexec.memory.segment import Borrowed, Segment
from shmexec.memory.views import Returns, lend
from shmexec.wire.messages import Mode, Ref, encode_counts
from shmexec.wire.sources import Source
from shmexec.worker.line import Grant
from shmexec.worker.setup import WorkerConfig

WantQuota = Callable[[int, int], Grant]
"""Asks the parent for bytes, for a result of so many."""


ASK_AGAIN_AFTER = 100
"""Calls with too little room that pass after spare quota was refused."""


_own: Arena | None = None
"""Of this process, if it is a worker."""


def lasting_arrays() -> AbstractContextManager[None]:
    """Where a call makes what outlives it: in private memory, not in what is shared."""
    return nullcontext() if _own is None else _own.away()


class WorkerMemory:
    """See the module."""

    def __init__(self, config: WorkerConfig, want_quota: WantQuota) -> None:
        self._kind = kind = config.segment_kind
        make = native.NativeArena if config.native else Arena
        self.arena: Arena = make(
            config.own_arena, Segment(kind, config.own_segment.number, config.own_size)
        )
        global _own
        _own = self.arena
        # What arguments may lie in.
        self._arenas = {
            config.parent_arena: Borrowed(
                kind, config.parent_segment.number, config.parent_size
            ),
            config.own_arena: Borrowed(
                kind, os.dup(config.own_segment.number), config.own_size
            ),
        }
        self.returns = Returns()
        self.copied = 0
        self.placing = 0.0  # seconds
        self._counted = (0, 0, 0.0)
        self._want_quota = want_quota
        self._calls_to_next_ask = 0
        self._live: dict[int, Ref] = {}
        # Results that do not start where their block does.
        self._starts: dict[int, int] = {}
        self._forks: Forks[frozenset[int]] = Forks()
        os.register_at_fork(
            before=self._before_fork,
            after_in_parent=self._forks.release,
            after_in_child=self._after_fork_in_child,
        )

    # -- arguments -------------------------------------------------------------------

    def borrow(self, refs: tuple[Ref, ...]) -> list[np.ndarray]:
        """The buffers of a message as ``uint8`` arrays, as their modes say."""
        self._live.update([(ref.lease, ref) for ref in refs])
        views: list[np.ndarray] = []
        try:
            views.extend(map(self._borrow, refs))
        except BaseException:
            # The others have no view that could tell of their end.
            self.returns.ended.extend([ref.lease for ref in refs[len(views) :]])
            raise
        return views

    def meet(self, arena: int, descriptor: int, size: int) -> None:
        """Another worker's arena, which arguments may lie in from now on."""
        self._arenas[arena] = Borrowed(self._kind, descriptor, size)

    def forget(self, arenas: tuple[int, ...]) -> None:
        """Arenas that are gone: nothing of them is leased any more."""
        for arena in arenas:
            gone = self._arenas.pop(arena, None)
            if gone is not None:
                gone.close()

    def _borrow(self, ref: Ref) -> np.ndarray:
        arena = self._arenas.get(ref.arena)
        if arena is None:
            msg = (
                "the memory of a shared array did not arrive: too many open files here"
            )
            raise OSError(errno.EMFILE, msg)
        # What is shared read-only is so by page protection, in a mapping of its own.
        readonly = ref.mode == Mode.SHARED
        view = lend(
            arena.private(ref.offset, ref.nbytes)
            if ref.mode == Mode.COPY_ON_WRITE
            else arena.segment(readonly=readonly),
            (ref.arena, ref.offset, ref.nbytes),
            ref.lease,
            self.returns,
            readonly=readonly,
        )
        return view.copy() if ref.mode == Mode.COPY else view

    def ended(self) -> list[int]:
        """Leases whose views have died since last asked."""
        if not (self.returns.ended or self._forks.pins):
            return []
        if self._forks.pins:
            self._forks.collect()
            self.arena.keep_forks(self._forks.last_note())
        pinned = self._pinned()
        ended: list[int] = []
        kept: list[int] = []
        queue = self.returns.ended
        while queue:
            lease = queue.popleft()
            (kept if lease in pinned else ended).append(lease)
        for lease in ended:
            self._live.pop(lease, None)
        queue.extend(kept)
        return ended

    def _pinned(self) -> frozenset[int]:
        return frozenset().union(*(pin.kept for pin in self._forks.pins))

    def loan_around(self, address: int, nbytes: int) -> Ref | None:
        """The private argument that these bytes are most of, if they are of one."""
        for ref in self._live.values():
            if ref.mode != Mode.PRIVATE:
                continue
            offset = address - self._arenas[ref.arena].segment(readonly=False).address
            if (
                ref.offset <= offset
                and offset + nbytes <= ref.offset + ref.nbytes
                and 2 * nbytes >= ref.nbytes
            ):
                return ref._replace(offset=offset, nbytes=nbytes)
        return None

    def end_loan(self, ref: Ref) -> bool:
        """Whether nobody reaches an argument any more; it is the parent's again then.

        Asked after the call's own references are gone.
        """
        if ref.lease not in self.returns.ended or ref.lease in self._pinned():
            return False
        self.returns.ended.remove(ref.lease)
        del self._live[ref.lease]
        return True

    def bytes_of_loan(self, ref: Ref) -> np.ndarray:
        """The bytes of an argument; they stay until its lease was sent back."""
        segment = self._arenas[ref.arena].segment(readonly=False)
        return segment.part(ref.offset, ref.nbytes)

    def new_counts(self) -> bytes:
        """Its :class:`~shmexec.wire.messages.Counts` so far; nothing if as last time."""
        blocks = self.arena.blocks
        counts = blocks.blocks_recycled, blocks.blocks_faulted, self.placing
        if counts == self._counted:
            return b""
        self._counted = counts
        return encode_counts(*counts)

    # -- results ---------------------------------------------------------------------

    def place(self, source: Source) -> Ref:
        """Copy a source into a block of this worker's arena.

        Raises:
            SharedMemoryFull: If the parent grants no more room.
        """
        started = now()
        nbytes = source.nbytes
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        blocks = self.arena.blocks
        if blocks.used + size > self.arena.quota:
            self._get_quota(size, nbytes)
        reserved = self.arena.reserve(size)
        if reserved is None:
            msg = f"no room for a result of {nbytes} bytes: the arena is fragmented"
            raise SharedMemoryFull(
                msg, needed=nbytes, used=blocks.used, budget=self.arena.segment.size
            )
        offset, fresh = reserved
        if blocks.committed + sum(length for _, length in fresh) > self.arena.quota:
            self.arena.trim(max(0, self.arena.quota - blocks.used))
        try:
            self.arena.back(fresh)
        except MemoryError as error:
            blocks.free(offset)
            raise SharedMemoryFull(
                str(error), needed=nbytes, used=blocks.used, budget=self.arena.quota
            ) from error
        if fresh:
            blocks.mark_committed(offset, size)
        source.fill(self.arena.segment.part(offset, nbytes))
        self.copied += nbytes
        self.placing += now() - started
        return Ref(0, self.arena.id, offset, nbytes)

    def _get_quota(self, size: int, nbytes: int) -> None:
        """Have enough for a block of ``size``, for a result of ``nbytes``.

        Each round but the last has made the need smaller.
        """
        arena, collected = self.arena, False
        while (missing := arena.blocks.used + size - arena.quota) > 0:
            grant = self._want_quota(missing, nbytes)
            arena.quota += grant.nbytes
            if grant.again or grant.nbytes >= missing:
                continue
            if not collected:
                collected = True
                gc.collect()  # arrays in circles
                if arena.blocks.used + size - arena.quota < missing:
                    continue
            msg = (
                f"no room for a result of {nbytes} bytes: {grant.used} of "
                f"{grant.budget} bytes of shared memory are in use. Drop results, or "
                "raise max_shared_memory="
            )
            raise SharedMemoryFull(
                msg, needed=nbytes, used=grant.used, budget=grant.budget
            )

    def hand_over(self, start: int, offset: int, nbytes: int) -> Ref:
        """A result that was born in this arena, in the block at ``start``."""
        if start != offset:
            self._starts[offset] = start
        return Ref(0, self.arena.id, offset, nbytes)

    def free(self, offsets: tuple[int, ...]) -> None:
        """The parent has no view of these results any more."""
        for offset in offsets:
            self.arena.free(self._starts.pop(offset, offset))

    def take_back(self, refs: Iterable[Ref]) -> None:
        """Free results that will not be sent after all."""
        for ref in refs:
            if ref.lease:  # an argument
                self.returns.ended.append(ref.lease)
            else:
                self.free((ref.offset,))

    def make_room(self) -> None:
        """Between calls: ask for quota if arrays of the last one found no room here.

        The answer comes at once. After a refusal some calls pass before it asks again.
        """
        missed = self.arena.missed()
        if not missed:
            return
        missing = self.arena.blocks.used + missed - self.arena.quota
        if missing <= 0:
            return
        if self._calls_to_next_ask > 0:
            self._calls_to_next_ask -= 1
            return
        grant = self._want_quota(missing, 0)
        self.arena.quota += grant.nbytes
        if not grant.nbytes:
            self._calls_to_next_ask = ASK_AGAIN_AFTER

    def give_back(self) -> int:
        """Return idle pages to the system; returns the quota that is not needed now."""
        gc.collect()  # arrays in circles, and what views of arguments they keep
        self.arena.trim(0)
        surplus = self.arena.quota - self.arena.blocks.used
        self.arena.quota -= surplus
        return surplus

    # -- user code that forks ----------------------------------------------------------

    def _before_fork(self) -> None:
        note = self.arena.note_fork()
        if self._live or note:
            self._forks.pin(frozenset(self._live), note)

    def _after_fork_in_child(self) -> None:
        # The child keeps the writing end: when it ends, the parent reads so.
        self.returns = Returns()
