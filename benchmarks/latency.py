"""What does a call cost that does nothing?"""

from __future__ import annotations

from time import perf_counter

from benchmarks import work
from benchmarks.case import Case
from benchmarks.sampling import Plan, Sample, check, sample
from benchmarks.systems import Caller

_PROBE = 100


def round_trip(caller: Caller, plan: Plan) -> Sample:
    """One call at a time: ask, wait, look."""

    def once(token: int) -> float:
        start = perf_counter()
        result = caller.call(work.echo, token)
        seconds = perf_counter() - start
        check(result == token, f"echo({token}) returned {result!r}")
        return seconds

    return sample(once, plan)


def throughput(caller: Caller, plan: Plan) -> Sample:
    """Ask for thousands of calls, then take all results; seconds per call.

    A system for which that would take long gets fewer calls, a hundred at least.
    """
    at_most = 2 * plan.calls  # each costs less than one that is waited for
    _gather(caller, _PROBE)  # the workers start
    seconds = _gather(caller, _PROBE)
    calls = max(_PROBE, min(at_most, int(_PROBE * plan.seconds / seconds)))
    return Sample(_gather(caller, calls) / calls, None, calls)


def _gather(caller: Caller, calls: int) -> float:
    start = perf_counter()
    results = caller.gather(work.echo, range(calls))
    seconds = perf_counter() - start
    check(results == [*range(calls)], f"echo of 0 to {calls - 1}: a wrong result")
    return seconds


CASES = (
    Case("noop-latency", "noop", "no-op, one at a time", round_trip),
    Case("noop-throughput", "noop", "no-op, many at once, per call", throughput),
)
