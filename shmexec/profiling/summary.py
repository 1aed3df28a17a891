"""Where the time of a profile went. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from shmexec.limits import amount
from shmexec.profiling.table import Table, covered
from shmexec.runtime.tape import Outcome

SHOWN = 8
"""Functions that are shown."""


@dataclass(frozen=True, slots=True)
class FunctionSummary:
    """The calls of one function; times in seconds."""

    name: str
    calls: int
    running: float
    """That all its calls ran."""
    median: float
    """That one ran; nan if none did."""
    longest: float
    waiting: float
    """That they waited for a worker, all together."""
    copied_in: int
    """Bytes."""
    copied_out: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Where the time of a profile went; made by :meth:`shmexec.Profile.summary`.

    ``str()`` of it is a report. Times are seconds, summed over calls unless said
    otherwise: with two workers there are two seconds of running in each second.
    """

    seconds: float
    """How long the profile took."""
    calls: int
    outcomes: Mapping[str, int]
    """How many calls were ``done``, ``failed``, ``cancelled``, ``timed out``, ...; only
    those that there were."""
    errors: Mapping[str, int]
    """How often which type of exception was raised."""
    workers: int
    """That were up, at most so many at a time."""
    packing: float
    """That this process pickled and copied arguments (and waited for room for them)."""
    waiting: float
    """That calls waited for a worker, those in packs also for others of their pack."""
    sending: float
    """From sending a call to its begin in the worker."""
    running: float
    """That calls ran: arguments unpickled, function, result pickled."""
    placing: float
    """That workers copied results (and waited for room for them)."""
    returning: float
    """From there to the moment when this process saw the reply."""
    busy: float
    """Share of the workers' time in which they ran calls or copied results."""
    queue: float
    """Share of the profile's time in which calls waited for a worker."""
    copied_in: int
    """Bytes of arguments that were copied."""
    by_reference_in: int
    """Bytes of arguments that were passed without a copy."""
    copied_again: int
    """Bytes of ``copied_in`` of arrays that earlier calls were given, too."""
    copied_out: int
    """Bytes of results that were copied."""
    by_reference_out: int
    """Bytes of results that were handed over without a copy."""
    functions: tuple[FunctionSummary, ...]
    """By the time that they ran, longest first."""
    advice: tuple[str, ...]
    """What to change, if anything."""
    lost: int
    """Earlier calls that were not kept, and are in none of these figures."""

    def __str__(self) -> str:
        return "\n".join(_report(self))


def seconds(value: float) -> str:
    """A duration, to be read."""
    if not np.isfinite(value):
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µs"


def summarize(table: Table, advice: tuple[str, ...]) -> Summary:
    """The summary of a table.

    Args:
        table: The calls.
        advice: See :mod:`~shmexec.profiling.advice`.
    """
    ran = table.ran
    alone, packed = ran & ~table.packed, ran & table.packed
    waited = np.where(table.packed, table.began, table.sent) - table.queued
    returning = table.replied - table.ended - table.placing
    running = float((table.ended - table.began)[ran].sum())
    placing = float(table.placing.sum())
    outcomes = Counter(Outcome(each).text for each in table.outcome)
    errors = Counter(table.errors[each] for each in table.error if each >= 0)
    capacity = worker_count(table) * table.facts.seconds
    inside = table.facts.seconds
    sent = np.isfinite(table.sent)
    return Summary(
        seconds=inside,
        calls=len(table),
        outcomes=MappingProxyType(dict(outcomes)),
        errors=MappingProxyType(dict(errors)),
        workers=worker_count(table),
        packing=float(table.packing.sum()),
        waiting=float(np.nansum(waited[alone]) + np.nansum(waited[packed])),
        sending=float((table.began - table.sent)[alone].sum()),
        running=running,
        placing=placing,
        returning=float(np.maximum(0.0, returning[ran]).sum()),
        busy=busy_seconds(table) / capacity if capacity else 0.0,
        queue=min(
            1.0, covered(np.maximum(0.0, table.queued[sent]), table.sent[sent]) / inside
        )
        if inside
        else 0.0,
        copied_in=int(table.copied_in.sum()),
        by_reference_in=int(table.passed_in.sum()),
        copied_again=int(table.again.sum()),
        copied_out=int(table.copied_out.sum()),
        by_reference_out=int(table.passed_out.sum()),
        functions=_functions(table, waited),
        advice=advice,
        lost=table.lost,
    )


def worker_count(table: Table) -> int:
    """How many workers there were, at most so many at a time."""
    used = Counter(
        table.workers[each].pool for each in np.unique(table.worker[table.worker >= 0])
    )
    known = {pool.name: pool for pool in table.facts.pools}
    count = 0
    for name in {*used, *known}:
        pool = known.get(name)
        if pool is None:  # of an actor that is gone
            count += used[name]
        else:
            count += min(pool.max_workers, max(used[name], pool.workers))
    return count


def busy_seconds(table: Table) -> float:
    """Seconds in which workers had something to do, each for itself."""
    total = 0.0
    ran = table.ran
    last = table.facts.seconds
    for worker in range(len(table.workers)):
        own = ran & (table.worker == worker)
        begins = np.clip(table.began[own], 0.0, last)
        ends = np.clip(table.ended[own] + table.placing[own], 0.0, last)
        total += covered(begins, ends)
    return total


def _functions(table: Table, waited: np.ndarray) -> tuple[FunctionSummary, ...]:
    ran, took = table.ran, table.ended - table.began
    found = []
    for index, name in enumerate(table.names):
        own = table.name == index
        if not own.any():
            continue
        times = took[own & ran]
        found.append(
            FunctionSummary(
                name,
                int(own.sum()),
                float(times.sum()),
                float(np.median(times)) if len(times) else float("nan"),
                float(times.max()) if len(times) else float("nan"),
                float(np.nansum(waited[own])),
                int(table.copied_in[own].sum()),
                int(table.copied_out[own].sum()),
            )
        )
    return tuple(sorted(found, key=lambda each: -each.running))


def _report(found: Summary) -> list[str]:
    outcomes = ", ".join(f"{n:,} {what}" for what, n in found.outcomes.items())
    many = "" if found.workers == 1 else "s"
    on = f"on {found.workers} worker{many}"
    lines = [
        f"{found.calls:,} calls in {seconds(found.seconds)} {on}: {outcomes or 'none'}"
    ]
    if found.errors:
        each = ", ".join(f"{name} {n:,} times" for name, n in found.errors.items())
        lines.append(f"raised: {each}")
    if found.lost:
        lines.append(f"{found.lost:,} earlier calls were not kept (max_calls)")
    if not found.calls:
        return lines
    lines += ["", *_times(found), "", *_bytes(found), "", *_by_function(found)]
    lines += ["", "What to change:"] if found.advice else []
    lines += [f"- {text}" for text in found.advice]
    return lines


def _times(found: Summary) -> list[str]:
    parts = (
        ("packing arguments, here", found.packing),
        ("waiting for a worker", found.waiting),
        ("on the way there", found.sending),
        ("running", found.running),
        ("copying results", found.placing),
        ("on the way back", found.returning),
    )
    total = sum(value for _, value in parts) or 1.0
    lines = ["Where the time of the calls went:"]
    lines += [
        f"  {what:<24}{seconds(value):>9}  {value / total:6.1%}  {_bar(value / total)}"
        for what, value in parts
    ]
    lines.append(
        f"Workers were busy {found.busy:.0%} of the time, idle {1 - found.busy:.0%}; "
        f"calls waited for one {found.queue:.0%} of the time."
    )
    return [line.rstrip() for line in lines]


def _bar(share: float) -> str:
    return "█" * round(share * 24)


def _bytes(found: Summary) -> list[str]:
    text = (
        f"Arguments: {amount(found.copied_in)} copied, "
        f"{amount(found.by_reference_in)} by reference. "
        f"Results: {amount(found.copied_out)} copied, "
        f"{amount(found.by_reference_out)} handed over."
    )
    return [text]


def _by_function(found: Summary) -> list[str]:
    head = ("calls", "ran", "median", "longest", "copied in", "copied out")
    lines = [f"{'function':<24}" + "".join(f"{text:>12}" for text in head)]
    for each in found.functions[:SHOWN]:
        figures = (
            f"{each.calls:,}",
            seconds(each.running),
            seconds(each.median),
            seconds(each.longest),
            amount(each.copied_in),
            amount(each.copied_out),
        )
        name = each.name if len(each.name) < 24 else f"…{each.name[-22:]}"
        lines.append(f"{name:<24}" + "".join(f"{text:>12}" for text in figures))
    if len(found.functions) > SHOWN:
        lines.append(f"and {len(found.functions) - SHOWN} other functions")
    return lines
