"""What does a call cost that does nothing?"""

from __future__ import annotations

from time import perf_counter

from shmexec.comparing import work
from shmexec.comparing.caller import Caller
from shmexec.comparing.case import Case
from shmexec.comparing.quantities import ping_pong
from shmexec.comparing.sampling import Plan, Sample, check, sample


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
