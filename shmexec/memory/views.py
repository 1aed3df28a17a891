"""Blocks lent out as NumPy memory, with word sent back when the last view has died.

A :class:`Loan` is what the arrays made from a block have as their ``base``. It is no
ndarray itself, since NumPy shortens chains of views down to the first object that is
not one: whatever view the user keeps, it keeps the loan.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from shmexec.memory.segment import PrivatePages, Segment

Sharing = Literal["r", "r+", "c"]
"""How arrays on a block are shared: read-only, writable, or copied where written."""


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
    """A leased block as an object with an array interface.

    Attributes:
        arena: Number of the block's arena.
        offset: Where the bytes begin in the arena; ``nbytes`` of them. The block may begin
            before.
        lease: Ends with the loan; 0 before there is one.
        address: Where they begin in this process.
        mode: How the block is shared with workers; None if it is not. One lease of this
            process has one loan, so this holds for all arrays on the block.
        returns: Whose it is: one per owner of a ledger.
    """

    __slots__ = (
        "__array_interface__",
        "_mapping",
        "address",
        "arena",
        "lease",
        "mode",
        "nbytes",
        "offset",
        "returns",
    )

    def __init__(
        self,
        mapping: Segment | PrivatePages,
        place: tuple[int, int, int],
        lease: int,
        returns: Returns,
        *,
        readonly: bool,
    ) -> None:
        self.arena, self.offset, self.nbytes = place
        self.address = mapping.address + self.offset
        self.mode: Sharing | None = None
        self.__array_interface__ = {
            "data": (self.address, readonly),
            "shape": (self.nbytes,),
            "typestr": "|u1",
            "version": 3,
        }
        self._mapping = mapping  # is kept
        self.lease = lease
        self.returns = returns

    def populate(self) -> None:
        """Have the bytes mapped."""
        self._mapping.populate(self.offset, self.nbytes)

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if finalizing():
            return
        returns = self.returns
        if not self.lease:
            return
        returns.ended.append(self.lease)
        if returns.poke is not None:
            returns.poke()


def lend(
    segment: Segment | PrivatePages,
    place: tuple[int, int, int],
    lease: int,
    returns: Returns,
    *,
    readonly: bool = False,
) -> np.ndarray:
    """A block as ``uint8`` array; ``returns`` is told when its last view has died.

    Args:
        segment: Where it lies.
        place: Number of the arena, offset there and length in bytes.
        lease: What ``returns`` is told.
        returns: Of whoever owns the lease.
        readonly: Whether the array is to be.

    Raises:
        ValueError: If the range is not inside the segment (a corrupted message).
    """
    _, offset, nbytes = place
    if offset < 0 or nbytes < 0 or offset + nbytes > segment.size:
        msg = f"block [{offset}, {offset + nbytes}) lies outside its {segment.size}"
        raise ValueError(msg)
    return view_of(Loan(segment, place, lease, returns, readonly=readonly))


def view_of(loan: Loan) -> np.ndarray:
    """The bytes of a loan, which ends when the last view of them has died."""
    loan.populate()
    return np.asarray(loan)


def check_inside(array: np.ndarray, begin: int, nbytes: int) -> np.ndarray:
    """Refuse an array that was made on received bytes and is more than these.

    NumPy's own check counts in machine integers, which a damaged stride makes overflow;
    and it takes bytes for references to objects.

    Args:
        array: What was made.
        begin: Where its first element was said to be, in bytes.
        nbytes: How many were received.

    Raises:
        ValueError: If it reaches beyond them, or holds objects.
    """
    if array.dtype.hasobject:
        msg = f"an array of objects ({array.dtype}) cannot lie in shared memory"
        raise ValueError(msg)
    low, high = begin, begin + array.itemsize
    for length, stride in zip(array.shape, array.strides, strict=True):
        if not length:
            return array  # it has no elements
        if stride < 0:
            low += (length - 1) * stride
        else:
            high += (length - 1) * stride
    if low < 0 or high > nbytes:
        msg = f"an array over bytes [{low}, {high}) of {nbytes} that were received"
        raise ValueError(msg)
    return array


def loan_of(array: np.ndarray) -> Loan | None:
    """The loan that an array, a view of a view perhaps, lies on."""
    base: Any = array.base
    # The second is what NumPy's stride tricks put between.
    while isinstance(base, np.ndarray) or type(base).__name__ == "DummyArray":
        base = base.base
    return base if isinstance(base, Loan) else None


def span(array: np.ndarray, loan: Loan) -> tuple[int, int, int] | None:
    """Where an array lies in its loan's arena: its first element, and first and last byte.

    Offsets in the arena, the last one past the end. None if it leaves the loan, as
    ``as_strided`` can make it.
    """
    begin = array.__array_interface__["data"][0] - loan.address
    low, high = begin, begin + array.nbytes
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        high = begin + array.itemsize
        for length, stride in zip(array.shape, array.strides, strict=True):
            reach = (length - 1) * stride
            if reach < 0:
                low += reach
            else:
                high += reach
    if low < 0 or high > loan.nbytes:
        return None
    return begin + loan.offset, low + loan.offset, high + loan.offset
