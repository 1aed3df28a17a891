"""What does it cost to pass an array: in, out, there and back?

Ordinary float64 arrays. A token in the last element, another one for each call, proves
that the call saw the array as it was; the whole content is checked in a further call
that is not timed. The previous result is dropped before the next one is asked for, as a
loop over batches does; only the call itself is timed.

In process nothing is copied, and a forked process inherits its arguments: both is as it
would be in a program.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter

import numpy as np

from benchmarks import work
from benchmarks.case import Case
from benchmarks.sampling import MB, Plan, Sample, check, sample
from benchmarks.systems import Caller

SIZES = {"8KB": 8 << 10, "1MB": MB, "64MB": 64 * MB, "512MB": 512 * MB}

_QUICK = MB
"""Bytes of the largest array in a quick run."""


def array_in(nbytes: int, caller: Caller, plan: Plan) -> Sample:
    """An array goes in, a number comes out."""
    array = work.pattern(nbytes)

    def once(token: int) -> float:
        array[-1] = token
        start = perf_counter()
        result = caller.call(work.last, array)
        seconds = perf_counter() - start
        check(result == token, f"last element: {result!r}, not {token}")
        return seconds

    measured = sample(once, plan)
    result, right = caller.call(work.total, array), work.total(array)
    check(result == right, f"sum of the argument: {result!r}, not {right!r}")
    return measured


def array_out(nbytes: int, caller: Caller, plan: Plan) -> Sample:
    """A number goes in, an array comes out that the worker has from an earlier call."""

    def once(token: int) -> float:
        start = perf_counter()
        result = caller.call(work.cached, nbytes, token)
        seconds = perf_counter() - start
        check(result.nbytes == nbytes, f"{result.nbytes} bytes, not {nbytes}")
        check(result[-1] == token, f"last element: {result[-1]!r}, not {token}")
        return seconds

    measured = sample(once, plan)
    result, right = caller.call(work.cached, nbytes, 7), work.pattern(nbytes)
    check(np.array_equal(result[:-1], right[:-1]), "the result's content is wrong")
    return measured


def there_and_back(nbytes: int, caller: Caller, plan: Plan) -> Sample:
    """An array goes in, and comes out with one element changed."""
    array = work.pattern(nbytes)

    def once(token: int) -> float:
        array[-1] = token
        start = perf_counter()
        result = caller.call(work.stamp, array)
        seconds = perf_counter() - start
        check(result.nbytes == nbytes, f"{result.nbytes} bytes, not {nbytes}")
        check(result[0] == -token, f"first element: {result[0]!r}, not {-token}")
        check(result[-1] == token, f"last element: {result[-1]!r}, not {token}")
        return seconds

    measured = sample(once, plan)
    result, right = caller.call(work.stamp, array), work.pattern(nbytes)
    check(np.array_equal(result[1:-1], right[1:-1]), "the result's content is wrong")
    return measured


_Measure = Callable[[int, Caller, Plan], Sample]


def _cases(family: str, title: str, copies: int, measure: _Measure) -> list[Case]:
    return [
        Case(
            name=f"{family}-{size}",
            family=family,
            title=f"{size} {title}",
            measure=partial(measure, nbytes),
            nbytes=nbytes,
            copies=copies,
            quick=nbytes <= _QUICK,
            prepare=partial(work.cached, nbytes, 0) if measure is array_out else None,
        )
        for size, nbytes in SIZES.items()
    ]


CASES = (
    *_cases("in", "array in", 1, array_in),
    *_cases("out", "array out", 1, array_out),
    *_cases("both", "array there and back", 2, there_and_back),
)
