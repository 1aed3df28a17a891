"""Blocks of shared memory for calls: one for each argument, or one for many calls."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from shmexec.deadline import Deadline
from shmexec.errors import SharedMemoryFull
from shmexec.memory.host import Block, Host
from shmexec.memory.views import Loan, Returns, loan_of
from shmexec.runtime.waiting import may_block
from shmexec.wire.sources import Source

CALLS = "calls"
"""Holder of the leases that pending and running calls have on their arguments."""

HOLDING_STILL = 5.0
"""Seconds that a submit waits for room which only results in this program can give."""

LOOK = 0.05
"""Seconds after which a thread that waits for room looks by itself."""


class RoomMaker:
    """Gives blocks of the host to calls; waits for room where waiting is allowed."""

    def __init__(
        self,
        host: Host,
        account: Hashable,
        reclaim: Callable[[], bool],
        in_flight: Callable[[], bool],
    ) -> None:
        self._host = host
        self._account = account
        self._reclaim = reclaim
        self._in_flight = in_flight

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

        Waits while calls in flight may free room, and a little if only results that
        the program still holds could.

        Raises:
            SharedMemoryFull: If the block is larger than the whole budget, or waiting
                is not allowed (in a callback, under an event loop), or did not help.
        """
        host = self._host
        deadline: Deadline | None = None
        while True:
            try:
                return host.allocate(self._account, nbytes, CALLS, source, clear=clear)
            except SharedMemoryFull as error:
                if nbytes > error.budget or not may_wait or not may_block():
                    raise
                reclaiming = self._reclaim()
                if reclaiming or self._in_flight():
                    deadline = None
                elif deadline is None:
                    deadline = Deadline(HOLDING_STILL)
                elif deadline.passed():
                    raise
            # Woken by whatever discharges the budget; results that died since are
            # noticed by looking.
            with host.room:
                host.room.wait(LOOK)


class SharedBlocks:
    """Blocks for arrays of several calls; each is leased to :data:`CALLS`.

    Args:
        room: Makes them.
        host: The memory.
        count: Told what is made, and how many bytes were copied; takes the pool's lock.
    """

    shared = True

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
