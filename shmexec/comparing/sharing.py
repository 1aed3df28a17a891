"""What does an array cost that many calls use?

A system that has a way to make such an input ready uses it; for others it is an ordinary
argument of every call. Where whole runs are timed, making it ready is part of them, and
a run starts with an array that no call has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from shmexec.comparing import work
from shmexec.comparing.arrays import SIZES, title_of
from shmexec.comparing.caller import Caller
from shmexec.comparing.case import Case
from shmexec.comparing.quantities import memcpy, ping_pong, taken
from shmexec.comparing.sampling import MB, Plan, Sample, check, sample

_IN_PROCESS = "inprocess"
_PAGE = 512  # elements of float64
_PROBE = 4
_ROUNDS = 3
_PATIENCE = 2.5
"""Times ``Plan.seconds`` that a whole run may take; a longer one is cut, and scaled."""


def shared_in(nbytes: int, caller: Caller, plan: Plan) -> Sample:
    """A call that looks at one element of an array which is ready for it."""
    array = work.pattern(nbytes)
    array[-1] = 123
    kept = caller.keep(array)

    def once(token: int) -> float:
        start = perf_counter()
        result = caller.call(work.last_and, kept, token)
        seconds = perf_counter() - start
        check(tuple(result) == (123, token), f"{result!r}, not {(123, token)}")
        return seconds

    measured = sample(once, plan)
    result = caller.call(work.total, kept)
    check(result == work.total(array), f"sum of the argument: {result!r}")
    return measured


def plus_one(nbytes: int, caller: Caller, plan: Plan) -> Sample:
    """``x + token``; the caller then reads one element of each page of the result."""
    array = work.pattern(nbytes)
    kept = caller.keep(array)
    pages = array[::_PAGE]
    right = float(pages.sum())

    def once(token: int) -> float:
        start = perf_counter()
        result = caller.call(work.plus, kept, token)
        found = float(result[::_PAGE].sum())
        seconds = perf_counter() - start
        wanted = right + token * len(pages)
        check(found == wanted, f"sum over pages: {found!r}, not {wanted!r}")
        check(result.nbytes == nbytes, f"{result.nbytes} bytes, not {nbytes}")
        return seconds

    return sample(once, plan)


Ask = Callable[[Any, int], Sequence[Any]]
"""Takes what ``keep`` gave and a number of calls; makes them, gives their results."""


def whole_run(
    caller: Caller, plan: Plan, array: np.ndarray, ask: Ask, right: Sequence[Any]
) -> Sample:
    """Seconds to make an input ready and to run all calls on it.

    Args:
        caller: Of the system.
        plan: How long it may take.
        array: The input.
        ask: Makes calls.
        right: What all of them should return.
    """
    warm = caller.keep(array.copy())
    ask(warm, _PROBE)
    start = perf_counter()
    ask(warm, _PROBE)
    each = (perf_counter() - start) / _PROBE
    del warm
    calls = len(right)
    if each * calls > _PATIENCE * plan.seconds:
        calls = min(calls, max(_PROBE, int(_PATIENCE * plan.seconds / each)))
    times: list[float] = []
    while len(times) < _ROUNDS and sum(times) < plan.seconds:
        times.append(_run(caller, array.copy(), ask, right, calls))
    return Sample(float(np.median(times)), None, calls)


def _run(
    caller: Caller, array: np.ndarray, ask: Ask, right: Sequence[Any], calls: int
) -> float:
    start = perf_counter()
    kept = caller.keep(array)
    ready = perf_counter()
    results = ask(kept, calls)
    end = perf_counter()
    check(len(results) == calls, f"{len(results)} results of {calls} calls")
    for number, (result, wanted) in enumerate(zip(results, right, strict=False)):
        same = np.allclose(result, wanted, rtol=1e-4, atol=1e-6)
        check(same, f"the result of call {number} is wrong")
    return ready - start + (end - ready) * len(right) / calls


def used_by_many(
    nbytes: int, calls: int, fn: Callable[..., Any], caller: Caller, plan: Plan
) -> Sample:
    """All calls use the whole array."""
    array = work.pattern(plan.amount(nbytes))

    def ask(kept: Any, number: int) -> list[Any]:
        return caller.gather(fn, [(kept, token) for token in range(number)])

    alone = fn(array, 0)[0]
    return whole_run(caller, plan, array, ask, [(alone, n) for n in range(calls)])


def slices(nbytes: int, number: int, caller: Caller, plan: Plan) -> Sample:
    """Each call uses another part."""
    array = work.pattern(plan.amount(nbytes))
    size = len(array) // number
    bounds = [(start, start + size) for start in range(0, size * number, size)]

    def ask(kept: Any, calls: int) -> list[Any]:
        return caller.parts(kept, work.wave, work.wave_of, bounds[:calls])

    right = [work.wave(array[start:stop]) for start, stop in bounds]
    return whole_run(caller, plan, array, ask, right)


def _half_and_a_copy(name: str, nbytes: int) -> Any:
    return taken(_IN_PROCESS, name).shared_out() + memcpy(nbytes)


CASES = (
    *(
        Case(
            name=f"shared-{size}",
            family="shared",
            title=f"{title_of(size)} shared, in",
            measure=partial(shared_in, nbytes),
            nbytes=nbytes,
            limit=ping_pong(),
            reuses=True,
            needs_sharing=True,
            quick=size == "1MB",
        )
        for size, nbytes in SIZES.items()
    ),
    *(
        Case(
            name=f"plus-{size}",
            family="shared",
            title=f"`x + 1`, {title_of(size)}, used",
            measure=partial(plus_one, SIZES[size]),
            nbytes=SIZES[size],
            limit=taken(_IN_PROCESS, f"plus-{size}"),
            reuses=True,
            quick=False,
        )
        for size in ("64MB", "512MB")
    ),
    Case(
        "reuse-512MB",
        "reuse",
        "512 MB used by 20 calls",
        partial(used_by_many, 512 * MB, 20, work.last_and),
        nbytes=512 * MB,
        limit=20 * ping_pong() + memcpy(512 * MB),
        reuses=True,
        quick=False,
    ),
    Case(
        "broadcast-256MB",
        "reuse",
        "256 MB summed by 64 calls",
        partial(used_by_many, 256 * MB, 64, work.total_and),
        nbytes=256 * MB,
        limit=_half_and_a_copy("broadcast-256MB", 256 * MB),
        reuses=True,
        quick=False,
    ),
    Case(
        "slices-160MB",
        "reuse",
        "100 slices of 160 MB",
        partial(slices, 160 * MB, 100),
        nbytes=160 * MB,
        limit=_half_and_a_copy("slices-160MB", 160 * MB),
        reuses=True,
    ),
)
