"""Blocks lent out as NumPy memory, with word sent back when the last view has died.

A :class:`Loan` is what the arrays made from a block have as their ``base``. It is no
ndarray itself, since NumPy shortens chains of views down to the first object that is
not one: whatever view the user keeps, it keeps the loan.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable

import numpy as np

from shmexec.memory.segment import Segment


class Returns:
    """Where loans report that they ended; read by whoever owns the ledger.

    A finalizer may run inside any allocation of any thread, also in one that holds a
    lock, so it takes none: it appends, and at most pokes a descriptor.
    """

    __slots__ = ("ended", "poke")

    def __init__(self) -> None:
        self.ended: deque[int] = deque()
        self.poke: Callable[[], object] | None = None


class Loan:
    """A leased block as an object with an array interface."""

    __slots__ = ("__array_interface__", "_lease", "_returns", "_segment")

    def __init__(
        self,
        segment: Segment,
        offset: int,
        nbytes: int,
        lease: int,
        returns: Returns,
        *,
        readonly: bool,
    ) -> None:
        self.__array_interface__ = {
            "data": (segment.address + offset, readonly),
            "shape": (nbytes,),
            "typestr": "|u1",
            "version": 3,
        }
        self._segment = segment  # keeps the mapping
        self._lease = lease
        self._returns = returns

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if finalizing():
            return
        returns = self._returns
        returns.ended.append(self._lease)
        if returns.poke is not None:
            returns.poke()


def lend(
    segment: Segment,
    offset: int,
    nbytes: int,
    lease: int,
    returns: Returns,
    *,
    readonly: bool = False,
) -> np.ndarray:
    """The block as ``uint8`` array; ``returns`` is told when its last view has died.

    Raises:
        ValueError: If the range is not inside the segment (a corrupted message).
    """
    if offset < 0 or nbytes < 0 or offset + nbytes > segment.size:
        msg = f"block [{offset}, {offset + nbytes}) lies outside its {segment.size}"
        raise ValueError(msg)
    segment.populate(offset, nbytes)
    return np.asarray(Loan(segment, offset, nbytes, lease, returns, readonly=readonly))
