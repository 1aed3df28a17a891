"""How long until the first result?

From before the system's package is imported to the result of a NumPy function; Python
and NumPy run by then. How long it takes to close is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from time import perf_counter

import numpy as np

from shmexec.comparing import work
from shmexec.comparing.caller import Caller
from shmexec.comparing.case import Case
from shmexec.comparing.sampling import Plan, Sample, check, sample

Opening = Callable[[], AbstractContextManager[Caller]]


def first(opening: Opening, _plan: Plan) -> Sample:
    """The first of a program."""
    return Sample(_until_result(opening), None, 1)


def following(opening: Opening, plan: Plan) -> Sample:
    """Another one in the same program, after the one before was closed."""
    few = Plan(calls=9, seconds=plan.seconds, least=1, warm_up=1)
    return sample(lambda _token: _until_result(opening), few)


def _until_result(opening: Opening) -> float:
    array = np.arange(100, dtype=np.float64)
    start = perf_counter()
    with opening() as caller:
        result = caller.call(work.total, array)
        seconds = perf_counter() - start
    check(result == 4950, f"sum of 0 to 99: {result!r}")
    return seconds


CASES = (
    Case(
        "start-first",
        "start",
        "start to first result",
        first,
        opens=True,
        needs_workers=True,
        quick=False,
    ),
    Case(
        "start-next",
        "start",
        "the next one in the program",
        following,
        opens=True,
        needs_workers=True,
    ),
)
