"""Sources: bytes that go beside a pickle, and how each gets into a block, or is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from shmexec.memory.leases import BlockKey
from shmexec.memory.views import Loan
from shmexec.wire.messages import Mode


class Source:
    """Bytes to be copied into a block."""

    __slots__ = ("_data", "nbytes")

    def __init__(self, data: memoryview | bytes) -> None:
        self._data: Any = data
        self.nbytes: int = len(data)

    def fill(self, target: np.ndarray) -> None:
        """Copy into ``target``, ``nbytes`` of ``uint8``."""
        target[:] = np.frombuffer(self._data, np.uint8)

    def whole(self) -> np.ndarray | None:
        """The bytes as contiguous ``uint8``, if they are that where they lie."""
        return np.frombuffer(self._data, np.uint8)

    def span(self) -> tuple[int, int] | None:
        """Address and length of the bytes, if they could be used where they are.

        They are in one piece then, in the order in which `fill` would copy them, and
        aligned.
        """
        address = np.frombuffer(self._data, np.uint8).__array_interface__["data"][0]
        # What will be made of them is not known: this suits everything.
        return None if address % 16 else (address, self.nbytes)


class ArraySource(Source):
    """An array to be copied into a block, in one pass whatever its strides are."""

    __slots__ = ("_order",)

    def __init__(self, array: np.ndarray, order: str) -> None:
        self._data = array
        self._order = order
        self.nbytes = array.nbytes

    def fill(self, target: np.ndarray) -> None:
        """Copy into ``target``, ``nbytes`` of ``uint8``."""
        array = self._data
        place = np.ndarray(
            array.shape, array.dtype, target.data, order=cast("Any", self._order)
        )
        np.copyto(place, array)

    def whole(self) -> np.ndarray | None:
        """See `Source.whole`."""
        array: np.ndarray = self._data.view(np.ndarray)
        if not array.flags.forc:
            return None
        flat: np.ndarray = array.ravel(order="K")
        return flat.view(np.uint8)

    def span(self) -> tuple[int, int] | None:
        """See `Source.span`."""
        flags = self._data.flags
        if not (flags.forc and flags.aligned):
            return None
        return self._data.__array_interface__["data"][0], self.nbytes


class StreamSource(Source):
    """Bytes that somebody else writes."""

    __slots__ = ()

    def __init__(self, nbytes: int, fill: Callable[[np.ndarray], object]) -> None:
        self._data = fill
        self.nbytes = nbytes

    def fill(self, target: np.ndarray) -> None:
        """Copy into ``target``, ``nbytes`` of ``uint8``."""
        self._data(target)

    def whole(self) -> None:
        """They lie nowhere yet."""

    def span(self) -> None:
        """They lie nowhere yet."""


class PlacedSource:
    """Bytes that already lie in a leased block: passed by reference.

    Attributes:
        block: The block, or the loan that it is known by; then the call must take a
            lease of its own.
        offset: Where the bytes begin in its arena; ``nbytes`` of them.
        passed: Bytes of the arrays that they are passed for.
        mode: How the receiver may use them.
        first: One of those arrays; keeps them all.
    """

    __slots__ = ("block", "first", "mode", "nbytes", "offset", "passed")

    def __init__(
        self, block: BlockKey | Loan, offset: int, nbytes: int, mode: Mode
    ) -> None:
        self.block = block
        self.offset = offset
        self.nbytes = self.passed = nbytes
        self.mode = mode
        self.first: np.ndarray | None = None

    def extend(self, low: int, high: int, passed: int) -> None:
        """Have it take in ``[low, high)`` of the arena as well."""
        first = min(low, self.offset)
        self.nbytes = max(high, self.offset + self.nbytes) - first
        self.offset = first
        self.passed += passed


class PlacedArray:
    """Stands for an array in a block; arrives as that array, without a copy."""

    __slots__ = ("dtype", "shape", "source")

    def __init__(
        self, source: PlacedSource, dtype: np.dtype, shape: tuple[int, ...]
    ) -> None:
        self.source = source
        self.dtype = dtype
        self.shape = shape


AnySource = Source | PlacedSource
