"""The calls of a profile as columns, on one clock and in lanes. Pure.

All times are seconds since the profile began; before that if negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shmexec.runtime.tape import Outcome, Recording, Who

TOLERANCE = 1e-6
"""Seconds by which clocks that are one may seem to differ, since numbers are rounded."""


class PoolFacts(NamedTuple):
    """What a profile knows of a pool beside its calls."""

    name: str
    max_workers: int
    workers: int
    """That were up, at the begin or at the end of the profile."""
    up: int
    """That were up when it began."""


class Facts(NamedTuple):
    """What a profile knows beside the calls."""

    seconds: float
    """How long it took; so far, if it is not over."""
    pools: tuple[PoolFacts, ...]
    threads: int
    """BLAS and OpenMP threads of each worker."""
    cpus: int
    native: bool


class Table(NamedTuple):
    """Calls in the order in which they were queued; columns of equal length.

    Times are nan where there is none.
    """

    facts: Facts
    names: tuple[str, ...]
    errors: tuple[str, ...]
    workers: tuple[Who, ...]
    lost: int
    """Earlier calls that are not in here."""
    call: np.ndarray
    name: np.ndarray
    """Index into ``names``."""
    worker: np.ndarray
    """Index into ``workers``, -1 if it was never sent."""
    error: np.ndarray
    """Index into ``errors``, -1 if none."""
    outcome: np.ndarray
    packed: np.ndarray
    """Whether it went to its worker with others."""
    attempts: np.ndarray
    queued: np.ndarray
    sent: np.ndarray
    began: np.ndarray
    ended: np.ndarray
    """In the worker, its result pickled but not copied yet."""
    replied: np.ndarray
    packing: np.ndarray
    """Seconds before it was queued: its arguments were pickled and copied."""
    placing: np.ndarray
    """Seconds after it ended: its results were copied."""
    copied_in: np.ndarray
    passed_in: np.ndarray
    again: np.ndarray
    copied_out: np.ndarray
    passed_out: np.ndarray

    def __len__(self) -> int:
        """Calls."""
        return len(self.call)

    @property
    def ran(self) -> np.ndarray:
        """Which calls ran, and when is known."""
        mask: np.ndarray = np.isfinite(self.began) & np.isfinite(self.replied)
        return mask


def make_table(recording: Recording, facts: Facts, start: float) -> Table:
    """Bring what was recorded into order.

    Args:
        recording: From the tape.
        facts: Of the profile.
        start: When it began, by the clock of the tape.
    """
    rows = recording.rows[np.argsort(recording.rows["queued"], kind="stable")]
    columns = {name: rows[name] for name in rows.dtype.names or ()}
    seconds = columns.pop("seconds")
    for name in ("queued", "sent", "began", "replied"):
        columns[name] = columns[name] - start
    began = columns["began"] + _offsets(columns, seconds, len(recording.workers))
    # Whatever a clock says: a call begins after it was sent, and ends before its reply.
    ended = np.minimum(began + seconds, columns["replied"])
    columns["began"] = np.minimum(np.maximum(began, columns["sent"]), ended)
    unfinished = np.isin(columns["outcome"], (Outcome.RUNNING, Outcome.PENDING))
    ended[unfinished] = np.nan
    return Table(
        facts,
        recording.names,
        recording.errors,
        recording.workers,
        recording.lost,
        ended=ended,
        **columns,
    )


def _offsets(
    columns: dict[str, np.ndarray], seconds: np.ndarray, workers: int
) -> np.ndarray:
    """What is to be added to the times of each call's worker, to have them on our clock.

    Nothing where all processes have one clock, as on Linux and macOS. Else no call can
    have begun before it was sent, nor ended after its reply came: in the middle of what
    all calls of a worker leave room for is the offset of its clock.
    """
    least = columns["sent"] - columns["began"]
    most = columns["replied"] - columns["began"] - seconds
    found = np.zeros(len(seconds))
    known = np.isfinite(least) & np.isfinite(most)
    for worker in range(workers):
        own = known & (columns["worker"] == worker)
        if own.any():
            low, high = least[own].max(), most[own].min()
            if low > TOLERANCE or high < -TOLERANCE:
                found[columns["worker"] == worker] = (low + high) / 2
    return found


def lanes(begins: Sequence[float], ends: Sequence[float]) -> list[int]:
    """For intervals in the order of their begins: a lane each, without overlaps.

    A worker that runs one call at a time has one lane.
    """
    free: list[float] = []  # when each lane is
    found = []
    for begin, end in zip(begins, ends, strict=True):
        lane = next(
            (i for i, at in enumerate(free) if at <= begin + TOLERANCE), len(free)
        )
        if lane == len(free):
            free.append(end)
        free[lane] = max(end, begin)
        found.append(lane)
    return found


def covered(begins: np.ndarray, ends: np.ndarray) -> float:
    """Seconds in which at least one of the intervals is under way."""
    if not len(begins):
        return 0.0
    order = np.argsort(begins, kind="stable")
    starts, stops = begins[order], np.maximum.accumulate(ends[order])
    # A gap is where the next one begins after all before have ended.
    gaps = np.maximum(0.0, starts[1:] - stops[:-1]).sum()
    return float(stops[-1] - starts[0] - gaps)
