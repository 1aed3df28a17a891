"""What one worker has taken over time: its memory at a start, at most, and per call.

Pure: whoever looks at the worker says what it has seen.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

GROWTH_AT_LEAST = 32 << 20
"""Bytes that a worker must have grown by before anybody is told."""

CALLS_AT_LEAST = 12
"""Calls before which nobody is told: the first ones load modules and fill caches."""

MARKS = 4
"""Moments between calls that are compared."""

_SPREAD = 1.5
"""Each of them comes after so many times the calls of the one before."""


class Growth(NamedTuple):
    """Memory that comes with every call and stays."""

    calls: int
    """In how many calls it was seen."""
    nbytes: int
    """How much they have left behind."""


class Footprint:
    """Private memory of one worker, in bytes.

    Attributes:
        now: When last looked at, None if never.
        baseline: After its start, None until then.
        peak: The most that was seen.
    """

    __slots__ = ("_marks", "baseline", "now", "peak")

    def __init__(self) -> None:
        self.now: int | None = None
        self.baseline: int | None = None
        self.peak: int | None = None
        self._marks: list[tuple[int, int]] = []  # (calls, bytes), between calls

    def start(self, nbytes: int) -> None:
        """It is initialised, and has had no call yet."""
        self.see(nbytes)
        self.baseline = nbytes

    def see(self, nbytes: int) -> None:
        """It has so much now, perhaps in the midst of a call."""
        self.now = nbytes
        self.peak = max(nbytes, self.peak or 0)

    @property
    def growth(self) -> int | None:
        """What it has more than after its start."""
        if self.now is None or self.baseline is None:
            return None
        return self.now - self.baseline

    def is_due(self, calls: int) -> bool:
        """Whether to look between calls, when it has done so many."""
        last = self._marks[-1][0] if self._marks else 0
        return calls >= max(last + 1, last * _SPREAD)

    def mark(self, calls: int, nbytes: int) -> Growth | None:
        """It has so much between calls; returns how it grows, if it does so steadily.

        That is, as fast per call between any two of the last marks, give or take half:
        what fills a cache, or is loaded once, gets slower.
        """
        if not self.is_due(calls):
            return None
        marks = self._marks
        marks.append((calls, nbytes))
        del marks[:-MARKS]
        grown = nbytes - marks[0][1]
        if calls < CALLS_AT_LEAST or len(marks) < MARKS or grown < GROWTH_AT_LEAST:
            return None
        rates = [
            (later[1] - before[1]) / (later[0] - before[0])
            for before, later in pairwise(marks)
        ]
        if min(rates) < max(rates) / 2:
            return None
        return Growth(calls - marks[0][0], grown)
