"""What does it cost to pass an array: in, out, there and back?

Ordinary float64 arrays. A token, another one for each call, proves that the call saw the
array as it was; the whole content is checked, too, without being timed. The previous
result is dropped before the next one is asked for, as a loop over batches does; only the
call itself is timed.

In process nothing is copied, and a forked process inherits its arguments: both is as it
would be in a program.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter

import numpy as np

from shmexec.comparing import work
from shmexec.comparing.caller import Caller
from shmexec.comparing.case import Case
from shmexec.comparing.quantities import Quantity, memcpy, ping_pong
from shmexec.comparing.sampling import MB, Plan, Sample, check, sample

SIZES = {"8KB": 8 << 10, "1MB": MB, "64MB": 64 * MB, "512MB": 512 * MB}

_QUICK = "1MB"
"""The size of arrays in a quick run."""


def title_of(size: str) -> str:
    """With a space before the unit."""
    return f"{size[:-2]} {size[-2:]}"


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


def fresh_out(nbytes: int, caller: Caller, plan: Plan) -> Sample:
    """A number goes in, an array comes out that the call has made."""

    def once(token: int) -> float:
        start = perf_counter()
        result = caller.call(work.fresh, nbytes, token)
        seconds = perf_counter() - start
        check(result.nbytes == nbytes, f"{result.nbytes} bytes, not {nbytes}")
        check(result[-1] == token, f"last element: {result[-1]!r}, not {token}")
        return seconds

    measured = sample(once, plan)
    result = caller.call(work.fresh, nbytes, 7)
    check(bool((result == 7).all()), "the result's content is wrong")
    return measured


def kept_out(nbytes: int, caller: Caller, plan: Plan) -> Sample:
    """A number goes in, an array comes out that the worker keeps as well."""

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
    kept: list[np.ndarray] = []

    def once(token: int) -> float:
        array[-1] = token
        kept.clear()
        start = perf_counter()
        result = caller.call(work.stamp, array)
        seconds = perf_counter() - start
        check(result.nbytes == nbytes, f"{result.nbytes} bytes, not {nbytes}")
        check(result[0] == -token, f"first element: {result[0]!r}, not {-token}")
        check(result[-1] == token, f"last element: {result[-1]!r}, not {token}")
        kept.append(result)
        return seconds

    measured = sample(once, plan)
    right = work.pattern(nbytes)
    check(np.array_equal(kept[0][1:-1], right[1:-1]), "the result's content is wrong")
    return measured


_Measure = Callable[[int, Caller, Plan], Sample]


def _cases(
    family: str, title: str, measure: _Measure, limit: Callable[[int], Quantity]
) -> list[Case]:
    return [
        Case(
            name=f"{family}-{size}",
            family=family,
            title=f"{title_of(size)} {title}",
            measure=partial(measure, nbytes),
            nbytes=nbytes,
            limit=limit(nbytes),
            quick=size == _QUICK,
        )
        for size, nbytes in SIZES.items()
    ]


def _one_copy(nbytes: int) -> Quantity:
    return ping_pong() + memcpy(nbytes)


def _two_copies(nbytes: int) -> Quantity:
    return ping_pong() + 2 * memcpy(nbytes)


CASES = (
    *_cases("in", "in", array_in, _one_copy),
    *_cases("out", "out", fresh_out, _one_copy),
    Case(
        "out-kept-64MB",
        "out",
        "64 MB that the worker keeps, out",
        partial(kept_out, 64 * MB),
        nbytes=64 * MB,
        limit=ping_pong() + memcpy(64 * MB),
        quick=False,
        prepare=partial(work.cached, 64 * MB, 0),
    ),
    *_cases("both", "there and back", there_and_back, _two_copies),
)
