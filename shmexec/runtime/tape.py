"""Where a profile's calls are noted: one row of fixed size for each.

A tape takes :data:`ROW_BYTES` for each call, and what the names of functions, exceptions
and workers take, each noted once, and :data:`NAMES_AT_MOST` of either at most. If it is full the latest calls take the places of the
earliest.
"""

from __future__ import annotations

import math
import struct
import threading
from enum import IntEnum
from typing import Any, NamedTuple, Protocol

import numpy as np

CALLS_AT_MOST = 100_000_000
"""Rows of the largest tape."""

COPIED_AT_ONCE = 10_000
"""Rows that are copied while nobody can note a call: about 1 MB."""


class Outcome(IntEnum):
    """What became of a call."""

    DONE = 0
    FAILED = 1
    CANCELLED = 2
    TIMED_OUT = 3
    WORKER_DIED = 4
    APART = 5  # its pool is broken, and has a fallback: see `shmexec.fallback`
    RUNNING = 6  # these two: when the tape was stopped
    PENDING = 7

    @property
    def text(self) -> str:
        """In words."""
        return self.name.lower().replace("_", " ")


NEVER = math.nan


class Row(NamedTuple):
    """One call. Times are those of ``time.monotonic``, nan if there is none."""

    call: int
    outcome: int
    packed: bool
    attempts: int
    queued: float
    sent: float
    began: float
    seconds: float
    replied: float
    packing: float
    placing: float
    copied_in: int
    passed_in: int
    again: int
    copied_out: int
    passed_out: int


def unsent(outcome: Outcome, queued: float, replied: float) -> Row:
    """A call that no worker was sent."""
    times = (queued, NEVER, NEVER, 0.0, replied, 0.0, 0.0)
    return Row(0, outcome, False, 0, *times, 0, 0, 0, 0, 0)


def here(call: int, outcome: Outcome, began: float, ended: float) -> Row:
    """A call that ran in this process."""
    times = (began, began, began, ended - began, ended, 0.0, 0.0)
    return Row(call, outcome, False, 1, *times, 0, 0, 0, 0, 0)


_ROW = struct.Struct("<IiiQBBH7d5Q")
_FIELDS = ("name", "worker", "error", *Row._fields)
_FORMATS = ("u4", "i4", "i4", "u8", "u1", "?", "u2", *["f8"] * 7, *["u8"] * 5)
DTYPE = np.dtype(list(zip(_FIELDS, (f"<{f}" for f in _FORMATS), strict=True)))
"""The rows as NumPy sees them; before each :class:`Row` what it is about, as numbers."""

ROW_BYTES = _ROW.size


class Who(NamedTuple):
    """A worker."""

    pool: str
    number: int
    """In its pool, from 1; 0 for this process, where ``in_process=True``."""
    pid: int | None
    """Process id, None if it is not known any more."""


NAMES_AT_MOST = 1 << 16
"""Names, and workers, that a tape tells from each other."""


class _Names(dict[object, int]):
    """Numbers things in the order in which they come.

    Args:
        others: Stands for all that come when there are too many.
    """

    def __init__(self, others: object) -> None:
        super().__init__()
        self._others = others

    def __missing__(self, key: object) -> int:
        if len(self) >= NAMES_AT_MOST:
            key = self._others
        number = self[key] = self.get(key, len(self))
        return number


class Recorded(Protocol):
    """A pool whose calls are noted on a tape."""

    def flush_recording(self) -> None:
        """Have on it all that are finished."""

    def stop_recording(self, tape: Tape) -> None:
        """Note how far the others are, and no more."""


class Tape:
    """See the module. Several pools may write to it; its lock is the innermost of all.

    Args:
        max_calls: Calls that it has room for.
    """

    def __init__(self, max_calls: int) -> None:
        self._max_calls = max_calls
        self._lock = threading.Lock()
        self._data = bytearray()
        self._names, self._errors = _Names("others"), _Names("others")
        self._workers = _Names(Who("others", 0, None))
        self._pools: list[Recorded] | None = []  # None: it was stopped
        self.count = 0
        """Calls that were noted, also those whose rows were written over."""

    def add(
        self,
        row: tuple[Any, ...],
        name: str,
        error: str = "",
        who: Who | None = None,
    ) -> None:
        """Note a call.

        Args:
            row: A :class:`Row`, or a plain tuple of as much, which is made sooner.
            name: Of the function.
            error: The type of the exception, if any.
            who: Where it ran.
        """
        with self._lock:
            data = _ROW.pack(
                self._names[name],
                -1 if who is None else self._workers[who],
                self._errors[error] if error else -1,
                *row,
            )
            if self.count < self._max_calls:
                self._data += data
            else:
                at = self.count % self._max_calls * ROW_BYTES
                self._data[at : at + ROW_BYTES] = data
            self.count += 1

    def adopt(self, pool: Recorded) -> bool:
        """A pool is about to write to it; false if it does, or shall not any more.

        It holds on to the pool until it is stopped: an actor that is dropped meanwhile
        has still something to tell.
        """
        with self._lock:
            if self._pools is None or any(each is pool for each in self._pools):
                return False
            self._pools.append(pool)
            return True

    def flush(self) -> None:
        """Have all calls on it that are finished."""
        for pool in list(self._pools or ()):
            pool.flush_recording()

    def stop(self) -> None:
        """Have calls that are not finished noted as that, and then no more."""
        with self._lock:
            pools, self._pools = self._pools, None
        for pool in pools or ():
            pool.stop_recording(self)

    def read(self) -> Recording:
        """What was noted so far."""
        data, done, count = bytearray(), 0, 1
        while done < count:
            # A part at a time: who waits for the lock to note a call has its pool's.
            with self._lock:
                count = self.count
                oldest = max(0, count - self._max_calls)
                if (
                    done < oldest
                ):  # at the begin, or others have written over what is next
                    data, done = bytearray(), oldest
                at = done % self._max_calls
                end = min(at + COPIED_AT_ONCE, at + count - done, self._max_calls)
                data += self._data[at * ROW_BYTES : end * ROW_BYTES]
                done += end - at
        with self._lock:
            names, errors, workers = (
                tuple(each) for each in (self._names, self._errors, self._workers)
            )
        rows = np.frombuffer(data, DTYPE)[-self._max_calls :]
        return Recording(rows, names, errors, workers, count - len(rows))  # type: ignore[arg-type]


class Recording(NamedTuple):
    """What is on a tape."""

    rows: np.ndarray
    """Of :data:`DTYPE`, in the order in which calls were done."""
    names: tuple[str, ...]
    errors: tuple[str, ...]
    workers: tuple[Who, ...]
    lost: int
    """Calls whose rows were written over."""
