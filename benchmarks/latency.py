"""What does a call cost that does nothing?"""

from __future__ import annotations

from time import perf_counter

from benchmarks import work
from benchmarks.caller import Caller
from benchmarks.case import Case
from benchmarks.quantities import ping_pong
from benchmarks.sampling import Plan, Sample, check, sample


def round_trip(caller: Caller, plan: Plan) -> Sample:
    """One call at a time: ask, wait, look."""

    def once(token: int) -> float:
        start = perf_counter()
        result = caller.call(work.echo, token)
        seconds = perf_counter() - start
        check(result == token, f"echo({token}) returned {result!r}")
        return seconds

    return sample(once, plan)


CASES = (
    Case("noop-latency", "noop", "one call", round_trip, limit=ping_pong(), tail=True),
)
