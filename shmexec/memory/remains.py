"""What a dead worker leaves: memory that goes back to the system, piece by piece.

That takes half a second per GB, and until then the parent's own mapping keeps it. So it
is not done where the worker's end is noted, under locks and before its replacement is
started, but afterwards, by whoever has time.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections import deque
from collections.abc import Iterable
from functools import cache
from typing import Any

from shmexec.deadline import Deadline
from shmexec.memory.allocator import CHUNK
from shmexec.memory.segment import Segment

_PIECE = 16 << 20
"""Bytes at once."""


class Remains:
    """Parts of a dead worker's arena that nobody leases.

    Nothing is made there any more, so that no lock is needed: what is leased by others
    stays, and what they give back meanwhile is seen to by the host.

    Args:
        segment: The arena's; its mapping is kept until this has gone.
        gaps: Offsets, in order, and bytes from there.
    """

    def __init__(self, segment: Segment, gaps: Iterable[tuple[int, int]]) -> None:
        self._segment = segment
        self._gaps = deque(gaps)
        # The segment's own is closed as soon as nothing is leased. If there are too many
        # open files, the mapping's end has to do: it gives all back that nobody keeps.
        self._descriptor = -1
        with contextlib.suppress(OSError):
            self._descriptor = os.dup(segment.descriptor)

    def sweep(self, seconds: float | None = None) -> bool:
        """Give memory back, for about so long or until all is; whether there is more."""
        deadline = Deadline(seconds)
        while self._gaps:
            start, length = self._gaps.popleft()
            data = self._first_page(start)
            if data is None:
                self._gaps.clear()
            elif data < start + length:
                end = start + length
                start = max(start, data // CHUNK * CHUNK)
                _remove(self._segment, start, min(end - start, _PIECE))
                if end - start > _PIECE:
                    self._gaps.appendleft((start + _PIECE, end - start - _PIECE))
                if deadline.passed():
                    break
        if not self._gaps:
            self._close()
        return bool(self._gaps)

    def _first_page(self, offset: int) -> int | None:
        """Where the first memory is from here on; None if there is no more."""
        try:
            return os.lseek(self._descriptor, offset, os.SEEK_DATA)
        except OSError:
            return None

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = _close


def _remove(segment: Segment, offset: int, nbytes: int) -> None:
    """Give back the whole pages of a range, while other threads go on.

    ``mmap.madvise`` would have all of them wait.
    """
    first, last = -(-offset // CHUNK) * CHUNK, (offset + nbytes) // CHUNK * CHUNK
    if last > first and hasattr(mmap, "MADV_REMOVE"):
        _madvise()(segment.address + first, last - first, mmap.MADV_REMOVE)


@cache
def _madvise() -> Any:
    import ctypes

    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
