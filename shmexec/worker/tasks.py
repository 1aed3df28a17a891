"""What the parent has workers do beside plain calls: chunks of a map, batches."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class FileArray:
    """An array in a file: where, and which file it must be."""

    path: str
    inode: tuple[int, int]
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    mode: str = "r"

    def rows(self, start: int, stop: int) -> FileArray:
        """The same for some rows."""
        stride = self.dtype.itemsize * math.prod(self.shape[1:])
        return FileArray(
            self.path,
            self.inode,
            self.dtype,
            (stop - start, *self.shape[1:]),
            self.offset + start * stride,
            self.mode,
        )

    def open(self) -> np.ndarray:
        """Map it.

        Raises:
            FileNotFoundError: If the path no longer leads to that file.
        """
        status = os.stat(self.path)
        if (status.st_dev, status.st_ino) != self.inode:
            msg = f"{self.path} is no longer the file that was mapped in the parent"
            raise FileNotFoundError(msg)
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        mode: Any = self.mode
        return np.memmap(self.path, self.dtype, mode, self.offset, self.shape)


def run_chunk(fn: Callable[..., Any], items: Sequence[tuple[Any, ...]]) -> Any:
    """Call ``fn`` for each item; (results, None), or the results before an error, and it."""
    from shmexec.worker.main import pickle_error

    results: list[Any] = []
    for item in items:
        try:
            results.append(fn(*item))
        except Exception as error:  # noqa: BLE001  (it is part of the answer)
            return results, bytes(pickle_error(error, skip=1).payload)
    return results, None


def run_batch(
    fn: Callable[..., Any], parts: tuple[Any, ...], rows: int, target: Any
) -> Any:
    """Call ``fn`` on one batch; its result goes into ``target`` or, if None, back.

    Raises:
        ValueError: If the result does not have one row per row of the batch, or not the
            shape and dtype of the target.
    """
    arrays = [part.open() if isinstance(part, FileArray) else part for part in parts]
    result = np.asanyarray(fn(*arrays))
    got = result.shape[0] if result.ndim else None
    if got != rows:
        what = "a scalar" if got is None else f"{got} rows"
        msg = f"the function returned {what} for a batch of {rows} rows"
        raise ValueError(msg)
    if target is None:
        return result
    place = target.open() if isinstance(target, FileArray) else target
    if result.shape != place.shape or result.dtype != place.dtype:
        msg = (
            f"the function returned {result.dtype} of shape {result.shape}, but the "
            f"batches before {place.dtype} of shape (rows, *{place.shape[1:]})"
        )
        raise ValueError(msg)
    place[...] = result
    if isinstance(place, np.memmap):
        place.flush()
    return None
