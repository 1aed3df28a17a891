"""Blocks of shared memory for calls: one for each argument, or one for many calls."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from shmexec.deadline import Deadline
from shmexec.errors import PoolClosed, SharedMemoryFull
from shmexec.memory.budget import NotOpen
from shmexec.memory.host import Block, Host
from shmexec.memory.views import Loan, Returns, loan_of
from shmexec.runtime import lifecycle
from shmexec.runtime.waiting import may_block
from shmexec.wire.sources import Source

if TYPE_CHECKING:
    from shmexec.runtime.pool import Pool

CALLS = "calls"
"""Holder of the leases that pending and running calls have on their arguments."""

HOLDING_STILL = 5.0
"""Seconds that a submit waits for room which only results in this program can give."""

RECLAIM_WITHIN = 1.0
"""Seconds that one waits for idle workers to give quota back; one may be stopped."""

LOOK = 0.05
"""Seconds after which a thread that waits for room looks by itself."""


class RoomMaker:
    """Gives blocks of the host to calls; waits for room where waiting is allowed.

    Args:
        host: The memory.
        account: Whose budget it is charged to.
        scarcity: Tells why a block of so many bytes should not be made now, if the
            machine has too little memory. If None, all pools are asked.
    """

    def __init__(
        self,
        host: Host,
        account: Hashable,
        scarcity: Callable[[int], SharedMemoryFull | None] | None = None,
    ) -> None:
        self._host = host
        self._account = account
        self._scarcity = scarcity or self._any_scarcity

    @property
    def returns(self) -> Returns:
        """Tells the arrays of this memory from others."""
        return self._host.returns

    def lease(self, loan: Loan) -> Block:
        """A lease for a call on the block of a loan, in any arena.

        Raises:
            ValueError: If that is in memory of another kind.
        """
        if loan.returns is not self.returns:
            msg = "a parcel of a pool with another kind of shared memory"
            raise ValueError(msg)
        with self._host.lock:
            return self._host.lease_too(loan, CALLS)

    def hold(self, block: Block) -> Loan:
        """A block that was placed as the program's own."""
        return self._host.hold(block)

    def give_back(self, blocks: Sequence[Block]) -> None:
        """End the leases of blocks that were placed."""
        if blocks:
            self._host.release([block.lease for block in blocks])

    def place(
        self,
        nbytes: int,
        *,
        may_wait: bool = True,
        source: Source | None = None,
        clear: bool = False,
    ) -> Block:
        """A block leased to :data:`CALLS`.

        It has a copy of ``source`` in it, or zeros if it is to be ``clear``.

        Room that workers have and do not use is used, whatever they do. Then it waits
        while calls in flight may free some, and a little if only results that the
        program still holds could, or streams that it has still to read.

        Who wakes it: whatever discharges the budget, that is a result dropped, a call
        done, a worker's answer, or its death, which leaves nothing it could wait for.
        Results that were dropped are noticed by looking.

        Raises:
            SharedMemoryFull: If the block is larger than the whole budget, or waiting
                is not allowed (in a callback, under an event loop), or did not help.
        """
        host = self._host
        may_wait = may_wait and may_block()
        borrow = not may_wait  # else when idle workers have given what they can
        asked: Deadline | None = None
        deadline: Deadline | None = None
        self._await_memory(nbytes, may_wait=may_wait)
        while True:
            try:
                return host.allocate(
                    self._account, nbytes, CALLS, source, clear=clear, borrow=borrow
                )
            except NotOpen as error:  # another thread shut the pool down meanwhile
                msg = "cannot schedule new futures after shutdown"
                raise PoolClosed(msg) from error
            except SharedMemoryFull as error:
                asked = asked or Deadline(RECLAIM_WITHIN)
                reclaiming = self._reclaim()
                if nbytes > error.budget or not may_wait:
                    raise
                if not borrow and (not reclaiming or asked.passed()):
                    borrow = True
                    continue
                if reclaiming or self._in_flight():
                    deadline = None
                elif deadline is None:
                    deadline = Deadline(HOLDING_STILL)
                elif deadline.passed():
                    raise
            with host.room:
                if host.room.wait(LOOK):
                    deadline = None

    def _pools(self) -> list[Pool]:
        """All that use this memory: each may have what the others need."""
        return [pool for pool in lifecycle.pools() if pool.host is self._host]

    def _reclaim(self) -> bool:
        return any([pool.reclaim() for pool in self._pools()])  # noqa: C419  (of all)

    def _in_flight(self) -> bool:
        return any(pool.in_flight() for pool in self._pools())

    def _any_scarcity(self, nbytes: int) -> SharedMemoryFull | None:
        errors = (pool.scarcity(nbytes) for pool in self._pools())
        return next((error for error in errors if error is not None), None)

    def _await_memory(self, nbytes: int, *, may_wait: bool) -> None:
        """While the machine has too little memory: wait as long as calls are in flight.

        They end, or whoever leads sees that there is more, which this thread looks for.
        If none is in flight nobody would look, and this one may go.
        """
        while (error := self._scarcity(nbytes)) is not None and self._in_flight():
            if not may_wait:
                raise error
            with self._host.room:
                self._host.room.wait(LOOK)


class SharedBlocks:
    """Blocks for arrays of several calls; each is leased to :data:`CALLS`.

    Args:
        room: Makes them.
        host: The memory.
        count: Told what is made, and how many bytes were copied; takes the pool's lock.
    """

    shared = True
    files = True

    def __init__(
        self, room: RoomMaker, host: Host, count: Callable[[int, Block | None], None]
    ) -> None:
        self._room = room
        self._host = host
        self._count = count

    def place(self, nbytes: int, *, may_wait: bool = False) -> Block | None:
        """A block; None if there is no room now.

        Raises:
            SharedMemoryFull: If it may wait for room, and that does not help.
        """
        try:
            block = self._room.place(nbytes, may_wait=may_wait)
        except SharedMemoryFull:
            if may_wait:
                raise
            return None
        self._count(0, block)
        return block

    def count_copied(self, nbytes: int) -> None:
        """Note that so many bytes were copied into a block that :meth:`place` gave."""
        self._count(nbytes, None)

    def can_write(self, array: np.ndarray) -> bool:
        """Whether it is shared ``"r+"``, in this pool's memory."""
        loan = loan_of(array)
        if loan is None or not array.flags.writeable:
            return False
        return loan.mode == "r+" and loan.returns is self._host.returns

    def bytes_of(self, block: Block) -> np.ndarray:
        """Its bytes, writable."""
        return self._host.bytes_of(block)

    def give_back(self, block: Block) -> None:
        """End the lease that :meth:`place` gave."""
        self._room.give_back([block])

    def is_alone(self, block: Block) -> bool:
        """Whether the lease that :meth:`place` gave is the only one."""
        with self._host.lock:
            return self._host.ledger.count(block.key) == 1

    def keep(self, block: Block) -> np.ndarray:
        """Its bytes as the program's own array, for as long as views of it live."""
        return self._host.keep(block)
