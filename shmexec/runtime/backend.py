"""What the ways of calling are written against: a pool, or one without processes."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future as BaseFuture
from typing import Any, Protocol

import numpy as np

from shmexec.options import CallOptions
from shmexec.wire.messages import Mode
from shmexec.wire.sources import PlacedArray, PlacedSource


class Feeder(Protocol):
    """Gathers what will be calls of a pool."""

    def feed_last(self, *, cancel: bool) -> None:
        """The pool will be closed: submit, or cancel, what was gathered."""

    def disown(self, error: BaseException) -> None:
        """In a forked child: fail what was gathered, without a word to anybody."""


class Blocks(Protocol):
    """Gives shared memory for arrays of several calls, to be filled in place."""

    @property
    def shared(self) -> bool:
        """Whether there are blocks at all."""

    @property
    def files(self) -> bool:
        """Whether calls can open the files that this process can."""

    def place(self, nbytes: int, *, may_wait: bool = False) -> Any:
        """A block of shared memory, None if there is no room or no sharing.

        If it may wait for room, it raises SharedMemoryFull where that does not help.
        """

    def bytes_of(self, block: Any) -> np.ndarray:
        """Its bytes."""

    def count_copied(self, nbytes: int) -> None:
        """Note that bytes of an argument were copied into a block."""

    def can_write(self, array: np.ndarray) -> bool:
        """Whether calls that are given this array write to it itself, not to a copy."""

    def give_back(self, block: Any) -> None:
        """Let the block go."""

    def is_alone(self, block: Any) -> bool:
        """Whether nobody else has the block, or can get it."""

    def keep(self, block: Any) -> np.ndarray:
        """Take the block over as an array."""


class Backend(Protocol):
    """Where calls run."""

    feeders: weakref.WeakSet[Feeder]
    """Who is told before it takes no more calls."""

    def add_feeder(self, feeder: Feeder) -> None:
        """Note who is to be told, and be ready for what comes of it at the very end."""

    @property
    def blocks(self) -> Blocks:
        """Memory for the arrays of its calls."""

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        worker: int | None = None,
    ) -> BaseFuture[Any]:
        """Run a call."""

    def width(self) -> int:
        """How many calls may run at once."""


def placed_rows(
    block: Any,
    array: np.ndarray,
    start: int,
    stop: int,
    mode: Mode,
    begin: int = 0,
) -> PlacedArray:
    """Rows of an array that lies, C-contiguous, in a block, from byte ``begin`` on."""
    stride = row_bytes(array)
    place = block.key[1] + begin + start * stride
    source = PlacedSource(block.key, place, (stop - start) * stride, mode)
    return PlacedArray(source, array.dtype, (stop - start, *array.shape[1:]))


def row_bytes(array: np.ndarray) -> int:
    """Bytes of one row of a C-contiguous array."""
    return array.dtype.itemsize * math.prod(array.shape[1:])
