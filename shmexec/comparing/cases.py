"""All cases, by name."""

from __future__ import annotations

from shmexec.comparing import (
    arrays,
    latency,
    memory,
    programs,
    sharing,
    start,
    threads,
    throughput,
)
from shmexec.comparing.case import Case

_MODULES = (latency, throughput, threads, arrays, sharing, programs, start, memory)

CASES: dict[str, Case] = {
    case.name: case for module in _MODULES for case in module.CASES
}


def choose(names: list[str] | None, *, quick: bool) -> list[Case]:
    """The cases of these names or families; all of them if none are given.

    A quick run leaves some out, unless one is asked for by its own name.

    Raises:
        KeyError: With the first name that is neither.
    """
    families = {case.family for case in CASES.values()}
    wanted = [*families] if names is None else names
    for name in wanted:
        if name not in CASES and name not in families:
            raise KeyError(name)
    return [
        case
        for case in CASES.values()
        if case.name in wanted or (case.family in wanted and (case.quick or not quick))
    ]
