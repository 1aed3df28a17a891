"""How often a thing is measured, and what is kept of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

MB = 1 << 20

P99_FROM = 100
"""Samples below which a 99th percentile means nothing."""


class WrongResult(Exception):
    """A call returned something else than it should have."""


@dataclass(frozen=True)
class Plan:
    """How much to measure in one process.

    Attributes:
        calls: Timed calls at most.
        seconds: Of timed calls, about; a slow system makes fewer of them.
        least: Timed calls at least, however slow.
        warm_up: Calls before those: workers started, code imported, pages mapped.
    """

    calls: int
    seconds: float
    least: int
    warm_up: int

    @classmethod
    def of(cls, nbytes: int, *, quick: bool) -> Plan:
        """What is right for arrays of this size; 0 for no array."""
        if nbytes >= 16 * MB:
            return cls(5, 0.5, 2, 2) if quick else cls(20, 3.0, 3, 4)
        if quick:
            return cls(400, 0.2, 10, 20)
        return cls(5000, 2.0, 50, 200)


@dataclass(frozen=True)
class Sample:
    """What one process measured: seconds per call.

    Attributes:
        p50: Their median, or the mean if calls were not timed one by one.
        p99: Their 99th percentile; None if there were too few.
        calls: How many were timed.
    """

    p50: float
    p99: float | None
    calls: int


def sample(once: Callable[[int], float], plan: Plan) -> Sample:
    """Measure.

    Args:
        once: Makes one call, checks its result, returns the seconds that the call alone
            took. Its argument differs each time.
        plan: How often.
    """
    for token in range(plan.warm_up):
        once(-1 - token)
    times: list[float] = []
    end = perf_counter() + plan.seconds
    while len(times) < plan.calls:
        if len(times) >= plan.least and perf_counter() >= end:
            break
        times.append(once(1 + len(times)))
    p99 = statistics.quantiles(times, n=100)[-1] if len(times) >= P99_FROM else None
    return Sample(statistics.median(times), p99, len(times))


def check(right: bool, what: str) -> None:
    """Raise :class:`WrongResult` unless it is right."""
    if not right:
        raise WrongResult(what)
