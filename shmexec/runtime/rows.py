"""Items that gather as the rows of arrays in one block, to become arguments of a call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from shmexec.memory.allocator import ALIGNMENT
from shmexec.options import INLINE_LIMIT
from shmexec.runtime.backend import Backend, placed_rows
from shmexec.wire.messages import Mode

SMALL_ROW = 16 * 1024
"""Bytes of a row that is copied without letting other threads run meanwhile."""


class Form(NamedTuple):
    """What items have in common that can be stacked: a key for grouping.

    Attributes:
        names: Of the arrays, if an item is a dict of them; sorted.
        shapes: Of each array of an item.
        dtypes: Of each.
    """

    names: tuple[str, ...] | None
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]

    def sizes(self) -> list[int]:
        """Bytes of each array of an item."""
        return [
            dtype.itemsize * math.prod(shape)
            for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        ]

    def row_bytes(self) -> int:
        """Bytes of one item."""
        return sum(self.sizes())


class Rows:
    """Room for a number of items, in a block if they are large, and those written there.

    Attributes:
        form: Of the items.
        are_small: Whether an item is copied so quickly that a lock may be held meanwhile.
        capacity: How many there is room for.
    """

    def __init__(self, backend: Backend, form: Form, capacity: int) -> None:
        self._backend = backend
        self.form = form
        self.are_small = 0 < form.row_bytes() <= SMALL_ROW
        self.capacity = capacity
        self._block: Any = None
        self._begins: list[int] = []
        self._arrays: list[np.ndarray] = []
        self._bytes: list[tuple[memoryview, int] | None] = []

    @classmethod
    def make(
        cls, backend: Backend, form: Form, capacity: int, *, may_wait: bool
    ) -> Rows | None:
        """Room for so many; None if there is none in shared memory now.

        Args:
            backend: Gives the block.
            form: Of the items.
            capacity: How many.
            may_wait: Wait for calls to end that have memory, if this thread may wait.

        Raises:
            SharedMemoryFull: If waiting would not help, or is not possible here.
        """
        rows = cls(backend, form, capacity)
        end = 0
        for size in form.sizes():
            rows._begins.append(end)
            end += -(-capacity * size // ALIGNMENT) * ALIGNMENT
        objects = any(dtype.hasobject for dtype in form.dtypes)
        data: Any = None
        # Without a block the rows are ordinary arrays, which are copied when they are
        # sent.
        if end >= INLINE_LIMIT and backend.blocks.shared and not objects:
            rows._block = backend.blocks.place(end, may_wait=may_wait)
            if rows._block is None:
                return None
            data = backend.blocks.bytes_of(rows._block).data
        for begin, shape, dtype in zip(
            rows._begins, form.shapes, form.dtypes, strict=True
        ):
            part = None if data is None else data[begin:]
            rows._add(np.ndarray((capacity, *shape), dtype, part))
        return rows

    def _add(self, array: np.ndarray) -> None:
        self._arrays.append(array)
        stride = array.strides[0]
        if array.dtype.hasobject or not self.are_small:
            self._bytes.append(None)
        else:
            flat = array.reshape(-1).view(np.uint8)
            self._bytes.append((flat.data, stride))

    def write(self, row: int, parts: Sequence[np.ndarray]) -> None:
        """Copy the arrays of an item into their places."""
        for array, flat, part in zip(self._arrays, self._bytes, parts, strict=True):
            if flat is None:
                array[row] = part
            else:
                # NumPy would let other threads run in the middle of a copy of 1 µs, and
                # each of them may keep this one waiting for longer than that.
                data, stride = flat
                data[row * stride : (row + 1) * stride] = part.tobytes()

    def take_over(self, other: Rows, start: int, stop: int) -> None:
        """Copy some rows of another to the same places here."""
        for array, old in zip(self._arrays, other._arrays, strict=True):
            array[start:stop] = old[start:stop]

    def compact(self, kept: Sequence[int]) -> None:
        """Move these rows, given in order, to the front."""
        for row, old in enumerate(kept):
            if row != old:
                for array in self._arrays:
                    array[row] = array[old]

    def arguments(self, count: int, mode: Mode) -> list[Any]:
        """What to pass for the first rows: one argument per array."""
        if self._block is None:
            return [array[:count] for array in self._arrays]
        self._backend.blocks.count_copied(
            sum(array[:count].nbytes for array in self._arrays)
        )
        return [
            placed_rows(self._block, array, 0, count, mode, begin)
            for array, begin in zip(self._arrays, self._begins, strict=True)
        ]

    def can_be_used_again(self) -> bool:
        """Whether it is a block that no worker and no result has any more."""
        return self._block is not None and self._backend.blocks.is_alone(self._block)

    def close(self) -> None:
        """Let the block go; nothing is written any more. A worker may still have it."""
        block, self._block = self._block, None
        self._arrays, self._bytes = [], []
        if block is not None:
            self._backend.blocks.give_back(block)
