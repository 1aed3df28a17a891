"""The parent's side of shared memory: its arena, those of its workers, and the ledger.

One :class:`Host` per process, shared by all its executors. Its lock guards the arena,
the ledger, the budget and the tables below; it is held for bookkeeping only, never
while bytes are copied, and nothing else is locked inside it. Whoever holds a pool's
lock may take it; never the other way round.

A block is freed by its owner when its last lease ends. Leases of the parent's own views
end through :attr:`Host.returns`, which finalizers fill and :meth:`Host.settle` empties.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Hashable
from typing import NamedTuple

import numpy as np

from shmexec import limits
from shmexec.memory.allocator import ALIGNMENT
from shmexec.memory.arena import RETAIN, Arena, Content
from shmexec.memory.births import SHARED, Births
from shmexec.memory.budget import Budget
from shmexec.memory.forks import Forks
from shmexec.memory.leases import BlockKey, Ledger
from shmexec.memory.lending import HOST, Lending
from shmexec.memory.native import NativeArena
from shmexec.memory.remains import Remains
from shmexec.memory.segment import Kind, Segment
from shmexec.memory.views import Loan, Returns, lend
from shmexec.memory.worker_arena import WorkerArena, punch_inner


class Block(NamedTuple):
    """A block of the parent's arena with the lease that keeps it for its maker."""

    key: BlockKey
    lease: int
    nbytes: int
    faulted: bool = False
    """Whether it took memory that was not in use before."""


class Host:
    """All shared memory of this process.

    Attributes:
        capacity: Bytes that can be had at most, whatever the budget.
    """

    def __init__(self, kind: Kind, arena_bytes: int, budget: int) -> None:
        self.kind = kind
        self.lock = threading.Lock()
        # Who waits for room is woken by whatever discharges the budget.
        self.room = threading.Condition(self.lock)
        self.returns = Returns()
        self.ledger = Ledger()
        self._ids = itertools.count(1)
        self.arena = Arena(next(self._ids), Segment.create(kind, arena_bytes))
        size = self.arena.segment.size
        self.capacity, why = limits.capacity(kind, size)
        self.budget = Budget(min(budget, self.capacity))
        self.budget.open(SHARED)
        self.forked = False
        self._pokes: tuple[Callable[[], object], ...] = ()
        self.returns.poke = self._poke
        self._account_of: dict[int, Hashable] = {}
        self._workers: dict[int, WorkerArena] = {}
        self._forks: Forks[Hashable] = Forks()
        self._families: dict[Hashable, int] = {}
        self.births = Births(self._make_births, self.budget, self._tell_of_room)
        self.lending = Lending(
            self.budget,
            self.births,
            self._workers,
            self.ledger,
            self.capacity,
            why if min(self.capacity, size) < budget else "",
            self._poke,
        )

    # -- accounts ----------------------------------------------------------------------

    def open_account(
        self, account: Hashable, family: Hashable, limit: int | None
    ) -> None:
        """Open an account for a pool.

        Args:
            account: Its name.
            family: The pools that share the limit: those of one executor.
            limit: In bytes. One that is higher than the total limit raises that, as far
                as the system goes along.
        """
        with self.lock:
            wanted = min(limit or 0, self.capacity)
            if wanted > self.budget.limit():
                self.budget.raise_limit(wanted)
            members = self._families.get(family, 0)
            if not members:
                self.budget.open(family, limit)
            self._families[family] = members + 1
            self.budget.open(account, within=family)

    def close_account(self, account: Hashable, family: Hashable) -> None:
        """Close it; what its blocks take counts as long as they live."""
        with self.lock:
            self.budget.close(account)
            self._families[family] -= 1
            if not self._families[family]:
                del self._families[family]
                self.budget.close(family)

    # -- blocks of this process ------------------------------------------------------

    def allocate(
        self,
        account: Hashable,
        nbytes: int,
        holder: Hashable,
        source: Content | None = None,
        *,
        clear: bool = False,
        borrow: bool = False,
    ) -> Block:
        """A block of the parent's arena, committed, leased to ``holder``.

        Args:
            account: Whose budget it is charged to.
            nbytes: Its size.
            holder: Who has the lease.
            source: What is copied into it; other bytes are of any value.
            clear: They are to be zero.
            borrow: Use also the room that busy workers have but do not need now.

        Raises:
            SharedMemoryFull: If the account or the machine has no room for it now.
        """
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        with self.lock:
            self._settle()
            if not self.lending.charge(account, size) and not (
                borrow and self.lending.borrow(account, size)
            ):
                raise self.lending.full(account, nbytes)
            reserved = self.arena.reserve(size)
            if reserved is None:
                self.budget.discharge(account, size)
                if size > self.arena.segment.size:
                    raise self.lending.full(account, nbytes, "the arena is smaller")
                raise self.lending.full(account, nbytes, "the arena is too fragmented")
            offset, fresh = reserved
            if fresh and self.arena.blocks.committed > self.budget.limit():
                self.arena.trim(keep=0)
            self._account_of[offset] = account
            key = (self.arena.id, offset)
            lease = self.ledger.lease(key, holder)
        try:
            if source is None:
                self.arena.back(fresh)
            else:
                self.arena.fill(offset, source, fresh)
        except BaseException as error:
            self.release([lease])
            if isinstance(error, MemoryError):
                raise self.lending.full(account, nbytes, str(error)) from error
            raise
        if fresh:
            with self.lock:
                self.arena.blocks.mark_committed(offset, size)
        if clear:
            self._clear(offset, nbytes, fresh)
        return Block(key, lease, nbytes, bool(fresh))

    def _clear(self, offset: int, nbytes: int, fresh: list[tuple[int, int]]) -> None:
        """Zero what was used before; pages that are fresh are zero."""
        end = offset + nbytes
        for start, length in [*fresh, (end, 0)]:
            if offset < start:
                self.arena.segment.part(offset, start - offset)[:] = 0
            offset = min(start + length, end)

    def bytes_of(self, block: Block) -> np.ndarray:
        """The bytes of a block of this process, writable, for as long as it is leased.

        The array keeps the mapping alive but not the block.
        """
        segment, offset = self.arena.segment, block.key[1]
        segment.populate(offset, block.nbytes)  # it may have been written to only
        return segment.part(offset, block.nbytes)

    def view(self, block: Block, *, readonly: bool = False) -> np.ndarray:
        """The bytes of a block; its lease ends when the last view of them dies."""
        place = (*block.key, block.nbytes)
        segment = self.arena.segment
        return lend(segment, place, block.lease, self.returns, readonly=readonly)

    def add_poke(self, poke: Callable[[], object]) -> None:
        """Have this called by finalizers of views, in addition to others."""
        with self.lock:
            self._pokes = (*self._pokes, poke)

    def remove_poke(self, poke: Callable[[], object]) -> None:
        """Have it called no more.

        With the last one goes who would give idle pages back later: they go now.
        """
        with self.lock:
            before = self._pokes
            self._pokes = tuple(each for each in before if each != poke)
        if before and not self._pokes:
            self.trim()

    def _poke(self) -> None:
        pokes = self._pokes
        for poke in pokes:
            poke()
        if not pokes:
            self._settle_nowait()

    def _settle_nowait(self) -> None:
        """Settle in a finalizer, since no pool runs whose thread would.

        The lock is taken only if it is free. Else somebody is at work here, maybe this
        very thread; what this one would have done is done with the next. Another thread
        may be quicker, but waits for nothing while it has it. (``acquire`` could be
        interrupted as it returns, with the lock taken for good.)
        """
        while self.returns.ended and not self.lock.locked():
            with self.lock:
                self._settle()
                blocks = self.arena.blocks
                if blocks.committed > blocks.used + 2 * RETAIN:
                    self.arena.trim()

    # -- leases ------------------------------------------------------------------------

    def lease(self, key: BlockKey, holder: Hashable) -> int:
        """One lease more on a block that has one already. The caller holds the lock."""
        return self.ledger.lease(key, holder)

    def lease_too(self, loan: Loan, holder: Hashable) -> Block:
        """One lease more on the block of a living loan. The caller holds the lock."""
        key = self.ledger.block_of(loan.lease)
        assert key is not None, "a loan lives without a lease"
        return Block(key, self.ledger.lease(key, holder), loan.nbytes)

    def release(self, leases: list[int]) -> None:
        """End leases; frees the blocks that have none left."""
        with self.lock:
            self._release(leases)

    def release_of(self, holder: Hashable, leases: tuple[int, ...]) -> None:
        """End leases that a worker says it has; those of others are left alone."""
        with self.lock:
            holder_of = self.ledger.holder_of
            self._release([each for each in leases if holder_of(each) == holder])

    def _release(self, leases: list[int]) -> None:
        for lease in leases:
            key = self.ledger.release(lease)
            if key is not None:
                self._free(key)

    def settle(self) -> None:
        """End the leases whose views have died."""
        with self.lock:
            self._settle()

    def _settle(self) -> None:
        ended = self.returns.ended
        while ended:
            self._release([ended.popleft()])
        if self._forks.pins:
            self._unpin()

    def _free(self, key: BlockKey) -> None:
        arena, offset = key
        if arena == self.arena.id:
            self._free_own(offset)
            return
        births = self.births.arena
        if births is not None and arena == births.id:
            births.unpin(offset)
            return
        worker = self._workers[arena]
        nbytes = worker.remove(offset)
        if worker.alive:
            worker.frees.append(offset)
        else:
            punch_inner(worker.segment, offset, nbytes)
            self.budget.discharge(worker.account, nbytes)
            self.room.notify_all()
            if not worker.live:
                self._drop(worker)

    def _free_own(self, offset: int) -> None:
        self.budget.discharge(self._account_of.pop(offset), self.arena.free(offset))
        self.room.notify_all()

    def hold(self, block: Block) -> Loan:
        """Take a block over from its maker as this program's, without a view of it."""
        with self.lock:
            self.ledger.move(block.lease, HOST)
        return self.result_loan((*block.key, block.nbytes), block.lease)

    def keep(self, block: Block, *, readonly: bool = False) -> np.ndarray:
        """Take a block over from its maker as an array of this program's own."""
        with self.lock:
            self.ledger.move(block.lease, HOST)
        return self.view(block, readonly=readonly)

    # -- arrays of this program that are born in shared memory -------------------------

    def open_births(self) -> NativeArena:
        """An arena for arrays to be born in, with quota; ends with `close_births`.

        Its quota is half of the room there is, and taken back when others need it:
        NumPy cannot wait for room, and leaves to malloc what finds none.
        """
        with self.lock:
            self._settle()
            return self.births.open()

    def close_births(self) -> None:
        """No more arrays are to be born; those that live stay as they are."""
        with self.lock:
            self.births.close()

    def _make_births(self) -> NativeArena:
        segment = Segment.create(self.kind, self.arena.segment.size)
        return NativeArena(next(self._ids), segment)

    def _tell_of_room(self) -> None:
        self.room.notify_all()

    def adopt(
        self, address: int, nbytes: int, *, readonly: bool = False
    ) -> np.ndarray | None:
        """The bytes of an array that was born here, with a lease; None of any other.

        They must be most of the array's memory, which stays until the array and all
        leases are gone.
        """
        births = self.births.arena
        if births is None:
            return None
        with self.lock:
            pinned = births.pin(address, nbytes)
            if pinned is None:
                return None
            start, offset = pinned
            key = (births.id, start)
            if self.ledger.count(key):
                births.unpin(start)  # one pin serves all leases
            lease = self.ledger.lease(key, HOST)
        place = (births.id, offset, nbytes)
        return lend(births.segment, place, lease, self.returns, readonly=readonly)

    # -- arenas of workers -------------------------------------------------------------

    def new_worker_arena(self, account: Hashable) -> WorkerArena:
        """Make the segment that a worker will own; the parent makes, the worker uses.

        So its descriptor never has to travel back, and the parent inherits the memory
        of a dead worker without being told.
        """
        segment = Segment.create(self.kind, self.arena.segment.size)
        with self.lock:
            worker = WorkerArena(next(self._ids), segment, account)
            self._workers[worker.id] = worker
        return worker

    def grant(self, worker: WorkerArena, nbytes: int, *, borrow: bool = False) -> bool:
        """Raise a worker's quota; False if there is no room for it now.

        Args:
            worker: Whose.
            nbytes: By how much.
            borrow: Use also the room that other workers have but do not need now.
        """
        with self.lock:
            self._settle()
            account = worker.account
            if not self.lending.charge(account, nbytes) and not (
                borrow and self.lending.borrow(account, nbytes, but=worker)
            ):
                return False
            worker.quota += nbytes
            return True

    def grant_beyond(self, worker: WorkerArena, nbytes: int) -> None:
        """Raise a worker's quota past all limits, for one result larger than they are."""
        with self.lock:
            self.budget.charge_beyond(worker.account, nbytes)
            worker.quota += nbytes

    def grant_spare(self, worker: WorkerArena, nbytes: int) -> bool:
        """Raise a worker's quota if half of the room is left to others afterwards."""
        with self.lock:
            self._settle()
            plenty = nbytes <= self.budget.free(worker.account) // 2
        return plenty and self.grant(worker, nbytes)

    def returned(
        self, worker: WorkerArena, nbytes: int, *, all_it_can: bool = False
    ) -> None:
        """A worker gave quota back, after punching it out."""
        with self.lock:
            nbytes = max(0, min(nbytes, worker.quota - worker.leased))
            worker.quota -= nbytes
            if all_it_can:
                worker.kept = 0
                worker.kept = max(0, worker.slack - worker.freed)
            self.budget.discharge(worker.account, nbytes)
            self.room.notify_all()

    def loan(self, arena: int, offset: int, nbytes: int) -> Loan:
        """A loan that has no lease yet, of bytes in an arena.

        Raises:
            ValueError: If there is no such arena, or they are not inside of it.
        """
        try:
            segment = self.segment_of(arena)
        except KeyError:
            msg = f"worker sent a block of arena {arena}, which does not exist"
            raise ValueError(msg) from None
        if offset < 0 or nbytes <= 0 or offset + nbytes > segment.size:
            msg = f"worker sent a block [{offset}, +{nbytes}) outside of its arena"
            raise ValueError(msg)
        place = (arena, offset, nbytes)
        return Loan(segment, place, 0, self.returns, readonly=False)

    def is_leased(self, loan: Loan) -> bool:
        """Whether a loan has its lease."""
        with self.lock:
            return self.ledger.block_of(loan.lease) is not None

    def take_back(self, holder: Hashable, lease: int, loan: Loan) -> None:
        """An argument that a worker returns as it is: its lease becomes the loan's.

        Args:
            holder: The worker.
            lease: The one that it has on the argument's block.
            loan: Of what it returns; has no lease yet.

        Raises:
            ValueError: If the lease is not the holder's, or the range not in its block.
        """
        offset, nbytes = loan.offset, loan.nbytes
        with self.lock:
            key = self.ledger.block_of(lease)
            if (
                key is None
                or key[0] != loan.arena
                or self.ledger.holder_of(lease) != holder
                or not key[1] <= offset
                or offset + nbytes > key[1] + self._size_of(key)
            ):
                msg = f"worker returned [{offset}, +{nbytes}) by lease {lease}, not its own"
                raise ValueError(msg)
            self.ledger.move(lease, HOST)
            loan.lease = lease

    def _size_of(self, key: BlockKey) -> int:
        """Bytes of a leased block that may be given to a worker as its own."""
        arena, offset = key
        if arena == self.arena.id:
            return self.arena.blocks.size_of(offset)
        worker = self._workers.get(arena)
        return 0 if worker is None else worker.live[offset]

    def accept(self, worker: WorkerArena, loan: Loan) -> None:
        """Take a result block over from a worker, for a loan that has no lease yet.

        Raises:
            ValueError: If it was taken over before, or the worker had no quota for it.
        """
        offset = loan.offset
        with self.lock:
            if offset in worker.live:
                msg = f"worker sent the block at {offset} twice"
                raise ValueError(msg)
            size = -(-loan.nbytes // ALIGNMENT) * ALIGNMENT
            if worker.leased + size > worker.quota:
                msg = (
                    f"worker sent {loan.nbytes} bytes, past its quota of {worker.quota}"
                )
                raise ValueError(msg)
            lease = self.ledger.lease((worker.id, offset), HOST)
            worker.add(offset, size)
            loan.lease = lease

    def result_loan(self, place: tuple[int, int, int], lease: int) -> Loan:
        """Bytes by arena, offset and length; their lease, ours, ends with the loan."""
        segment = self.segment_of(place[0])
        return Loan(segment, place, lease, self.returns, readonly=False)

    def bury(self, worker: WorkerArena, holder: Hashable) -> Remains | None:
        """A worker was reaped: end its leases, inherit its arena.

        Called only after the process is gone: until then it may still write.

        Returns:
            Memory to be given back to the system, soon; None if it was buried before.
        """
        with self.lock:
            for key in self.ledger.drop_holder(holder):
                self._free(key)
            if not worker.alive:
                return None
            self.budget.discharge(worker.account, worker.bury())
            remains = worker.remains()
            if not worker.live:
                self._drop(worker)
            self.room.notify_all()
            return remains

    def _drop(self, worker: WorkerArena) -> None:
        """Let a dead worker's arena go, here and in the workers that were given it."""
        del self._workers[worker.id]
        worker.segment.close()
        told = False
        for other in self._workers.values():
            if worker.id in other.visited:
                other.visited.discard(worker.id)
                other.gone.append(worker.id)
                told = True
        if told:
            self._poke()  # so that pools that are idle tell theirs

    def segment_of(self, arena: int) -> Segment:
        """The segment of an arena that has a leased block."""
        for own in (self.arena, self.births.arena):
            if own is not None and arena == own.id:
                return own.segment
        return self._workers[arena].segment

    # -- housekeeping ------------------------------------------------------------------

    def trim(self) -> int:
        """Give all idle pages of the parent's arena back to the system."""
        with self.lock:
            self._settle()
            if not self.births.wanted:
                self.births.shrink(0)
            return self.arena.trim(keep=0)

    def before_fork(self) -> None:
        """Keep every block that a forked child might look at, until it is gone."""
        self.lock.acquire()
        self._settle()
        note = self.births.note_fork()
        if not note and not self.ledger.held_by(HOST):
            return
        holder = "fork", next(self._ids)
        try:
            self._forks.pin(holder, note)
        except OSError:
            self._keep_forks()
            return
        self.ledger.pin(HOST, holder)

    def after_fork_in_parent(self) -> None:
        """Let the children alone hold the pipe open."""
        self._forks.release()
        self.lock.release()

    def after_fork_in_child(self) -> None:
        """A child neither allocates nor frees here; it may read what it inherited."""
        self.forked = True
        self.returns.poke = None
        self.lock = threading.Lock()
        self.room = threading.Condition(self.lock)

    def _unpin(self) -> None:
        for holder in self._forks.collect():
            for key in self.ledger.drop_holder(holder):
                self._free(key)
        self._keep_forks()

    def _keep_forks(self) -> None:
        self.births.keep_forks(self._forks.last_note)
