"""Runs a comparison: who takes part in what, and in which order.

Each measurement is a process of its own, one after the other. Figures are compared within
a repeat, so what is compared is measured together there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import psutil

from shmexec.comparing import fresh
from shmexec.comparing.case import Case
from shmexec.comparing.quantities import LIMIT, Term
from shmexec.comparing.results import Failure, Results
from shmexec.comparing.sampling import Sample
from shmexec.comparing.systems import SYSTEMS
from shmexec.comparing.wording import amount, duration, label

TIMEOUT, QUICK_TIMEOUT = 120.0, 30.0
"""Seconds for each measurement."""

COPIES_IN_MEMORY = 8
"""So many of a case's arrays must fit into memory: pipes keep several copies."""

Step = tuple[int, str, str, int]
"""Repeat, system, case, bytes."""


def present(wanted: Iterable[str], results: Results) -> list[str]:
    """Those systems that this machine has; of the others it is noted why not."""
    systems = []
    for name in wanted:
        if (why := SYSTEMS[name].missing()) is not None:
            results.absent[name] = why
        else:
            systems.append(name)
    return systems


def leave_out(cases: Sequence[Case], results: Results) -> None:
    """Skip what does not fit into memory: swapping would be all it measured."""
    free = psutil.virtual_memory().available
    for case in cases:
        if not results.quick and case.nbytes * COPIES_IN_MEMORY > free:
            results.skipped[case.name] = f"only {free >> 20} MB of memory are free"


def measure(
    systems: Sequence[str],
    cases: Sequence[Case],
    results: Results,
    *,
    timeout: float | None = None,
    limits: Callable[[Case], Iterable[Term]] | None = None,
    say: Callable[[int, int, str], object],
) -> None:
    """Make all measurements; what Ctrl-C leaves is kept.

    Args:
        systems: Their names; they are there.
        cases: What is asked.
        results: Where the figures go.
        timeout: Seconds for each measurement. Default: 120, 30 for a quick run.
        limits: What must be measured to judge a case. Default: its own limit.
        say: Told after each one: how many are done, of how many, and what it was.
    """
    if timeout is None:
        timeout = QUICK_TIMEOUT if results.quick else TIMEOUT
    todo = [*_schedule(systems, cases, results, limits or _own_limits)]
    try:
        for done, step in enumerate(todo, 1):
            say(done, len(todo), _take(step, cases, results, timeout))
    except KeyboardInterrupt:
        results.interrupted = True


def _take(step: Step, cases: Sequence[Case], results: Results, timeout: float) -> str:
    """One measurement; what is to be said of it."""
    repeat, system, name, nbytes = step
    sample: Sample | None = None
    try:
        sample = fresh.measure(
            system,
            name,
            nbytes=nbytes,
            workers=results.workers,
            quick=results.quick,
            timeout=timeout,
            environment={} if system == LIMIT else SYSTEMS[system].environment,
        )
        if system == LIMIT:
            said = duration(sample.p50)
        else:
            said = amount(sample.p50, next(c for c in cases if c.name == name))
    except fresh.Failed as failed:
        said = f"FAILED: {failed}"
        results.failures.append(Failure(system, name, repeat, str(failed)))
    if system == LIMIT:
        results.limits.setdefault((name, nbytes), []).append(sample)
    else:
        results.samples.setdefault((name, system), []).append(sample)
    return f"{label(system, name)}: {said}"


def _schedule(
    systems: Sequence[str],
    cases: Sequence[Case],
    results: Results,
    limits: Callable[[Case], Iterable[Term]],
) -> Iterator[Step]:
    """All steps, so that what is compared is measured together.

    Within a repeat the systems take turns in each case, each time beginning with another
    one; the limits are taken just before the first case that needs them.
    """
    for repeat in range(results.repeats):
        known: set[tuple[str, int]] = set()
        for case in cases:
            if case.name in results.skipped:
                continue
            there = [name for name in systems if SYSTEMS[name].takes_part(case)]
            for term in limits(case) if there else ():
                if (term.case, term.nbytes) not in known:
                    known.add((term.case, term.nbytes))
                    yield repeat, LIMIT, term.case, term.nbytes
            first = repeat % max(1, len(there))
            for system in there[first:] + there[:first]:
                yield repeat, system, case.name, case.nbytes


def _own_limits(case: Case) -> Iterator[Term]:
    return (term for term in case.limit.terms if term.system == LIMIT)
