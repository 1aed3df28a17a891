"""How often a thing is measured, and what is kept of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

MB = 1 << 20

P99_FROM = 100
"""Samples below which a 99th percentile means nothing."""

_SHRINK = 64
_HARD_STOP = 10
"""Times ``Plan.seconds`` after which not even ``Plan.least`` is waited for."""


class WrongResult(Exception):
    """A call returned something else than it should have."""


@dataclass(frozen=True)
class Plan:
    """How much to measure in one process.

    Attributes:
        calls: Timed calls at most.
        seconds: Of timed calls, about; a slow system makes fewer of them.
        least: Timed calls at least, unless they take a multiple of ``seconds``.
        warm_up: Calls before those: workers started, code imported, pages mapped. Fewer
            if they take half of ``seconds``; one at least.
        quick: Whether fixed amounts of work are made smaller, too.
    """

    calls: int
    seconds: float
    least: int
    warm_up: int
    quick: bool = False

    @classmethod
    def of(cls, nbytes: int, *, quick: bool) -> Plan:
        """What is right for arrays of this size; 0 for no array."""
        if quick:
            large = nbytes >= 16 * MB
            return cls(3, 0.1, 1, 1, True) if large else cls(200, 0.1, 5, 5, True)
        if nbytes >= 16 * MB:
            return cls(20, 0.8, 3, 3)
        return cls(5000, 0.6, 20, 100)

    def amount(self, full: int, *, least: int = 1) -> int:
        """So much work, or a small part of it in a quick run."""
        return max(least, full // _SHRINK) if self.quick else full


@dataclass(frozen=True)
class Sample:
    """What one process measured: seconds (or bytes) per call.

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
    start = perf_counter()
    for token in range(plan.warm_up):
        once(-1 - token)
        if perf_counter() - start > plan.seconds / 2:
            break
    times: list[float] = []
    start = perf_counter()
    while len(times) < plan.calls:
        passed = perf_counter() - start
        enough = 1 if passed >= _HARD_STOP * plan.seconds else plan.least
        if len(times) >= enough and passed >= plan.seconds:
            break
        times.append(once(1 + len(times)))
    p99 = statistics.quantiles(times, n=100)[-1] if len(times) >= P99_FROM else None
    return Sample(statistics.median(times), p99, len(times))


def check(right: bool, what: str) -> None:
    """Raise :class:`WrongResult` unless it is right."""
    if not right:
        raise WrongResult(what)
