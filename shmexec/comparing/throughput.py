"""How many calls that do nothing per second? Shown as seconds per call.

A system for which the full number would take long gets fewer calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter

from shmexec.comparing import work
from shmexec.comparing.caller import Caller
from shmexec.comparing.case import Case
from shmexec.comparing.quantities import ping_pong
from shmexec.comparing.sampling import Plan, Sample, check

_FIRST = 4
_PROBES = (10, 300, 5000)
_SUBMITS = 10_000
_ITEMS = 100_000


def submits(caller: Caller, plan: Plan) -> Sample:
    """Ask for 10,000 calls, then take all results."""

    def ask(tokens: range) -> list[int]:
        return caller.gather(work.echo, [(token,) for token in tokens])

    return _measure(ask, _SUBMITS, plan)


def plain_map(caller: Caller, plan: Plan) -> Sample:
    """``map`` over 100,000 items, without saying how to chunk them."""
    return _measure(lambda tokens: caller.map(work.echo, tokens), _ITEMS, plan)


def chunked_map(caller: Caller, plan: Plan) -> Sample:
    """The same in as many chunks as is best for the system."""
    return _measure(lambda tokens: caller.map_chunked(work.echo, tokens), _ITEMS, plan)


def _measure(ask: Callable[[range], Iterable[int]], full: int, plan: Plan) -> Sample:
    full = plan.amount(full)
    _timed(ask, _FIRST)  # the workers start
    many, seconds = _FIRST, 0.0
    for many in _PROBES:
        seconds = _timed(ask, many)
        if seconds > plan.seconds / 10:  # the next one would take too long
            break
    fits = int(many * plan.seconds / seconds)
    if fits <= many:
        return Sample(seconds / many, None, many)
    many = min(full, fits)
    return Sample(_timed(ask, many) / many, None, many)


def _timed(ask: Callable[[range], Iterable[int]], calls: int) -> float:
    tokens = range(calls)
    start = perf_counter()
    results = [*ask(tokens)]
    seconds = perf_counter() - start
    check(results == [*tokens], f"echo of 0 to {calls - 1}: a wrong result")
    return seconds


CASES = (
    Case(
        "noop-submit",
        "noop",
        "submit × 10,000, per call",
        submits,
        limit=ping_pong(),
    ),
    Case(
        "noop-map",
        "noop",
        "map of 100,000, per item",
        plain_map,
        limit=ping_pong(),
        quick=False,
    ),
    Case(
        "noop-map-chunked",
        "noop",
        "map in chunks, per item",
        chunked_map,
        limit=ping_pong(),
    ),
)
