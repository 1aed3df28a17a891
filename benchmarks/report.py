"""From samples to a table: medians over the repeats, their spread, and ratios.

Ratios are taken within a repeat, where both figures come from the same minute, and their
median is shown. They carry over to other machines better than times do.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.case import Case
from benchmarks.child import LIMIT
from benchmarks.limits import MEMCPY, PING_PONG, PING_PONG_ONE_CPU
from benchmarks.sampling import Sample
from benchmarks.systems import FORK_PER_CALL, SYSTEMS

NONE = "-"


@dataclass(frozen=True)
class Failure:
    """A measurement that gave no figures."""

    system: str
    case: str
    repeat: int
    why: str


@dataclass
class Results:
    """All that a run measured.

    ``samples`` and ``limits`` hold one sample for each repeat, None where it failed.
    The keys are (case, system), and (limit, bytes).
    """

    workers: int
    repeats: int
    quick: bool
    samples: dict[tuple[str, str], list[Sample | None]] = field(default_factory=dict)
    limits: dict[tuple[str, int], list[Sample | None]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


Times = list[float | None]


def p50s(samples: Iterable[Sample | None]) -> Times:
    """The median of each repeat."""
    return [None if sample is None else sample.p50 for sample in samples]


def limit_of(case: Case, results: Results) -> tuple[str, Times]:
    """What bounds the case, and its seconds in each repeat."""
    ping_pong = p50s(results.limits.get((PING_PONG, 0), []))
    if not case.copies:
        return PING_PONG, ping_pong
    memcpy = p50s(results.limits.get((MEMCPY, case.nbytes), []))
    name = MEMCPY if case.copies == 1 else f"{case.copies} {MEMCPY}"
    return f"{PING_PONG} + {name}", [
        None if one is None or other is None else one + case.copies * other
        for one, other in zip(ping_pong, memcpy, strict=True)
    ]


def ratios(times: Times, to: Times) -> Times:
    """Repeat by repeat."""
    return [
        None if one is None or not other else one / other
        for one, other in zip(times, to, strict=bool(to))
    ]


def markdown(results: Results, cases: Sequence[Case]) -> str:
    """The table, what it says about the machine, and what went wrong."""
    lines = [
        *_heading(results),
        "",
        "| case | system | ratio to limit | to fork per call | time | spread | p99 |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for case in cases:
        lines += _rows(case, results)
    notes = [f"- {case} skipped: {why}" for case, why in results.skipped.items()] + [
        f"- FAILED: {f.system}, {f.case}, repeat {f.repeat + 1}: {f.why}"
        for f in results.failures
    ]
    return "\n".join([*lines, *([""] if notes else []), *notes]) + "\n"


def _heading(results: Results) -> list[str]:
    machine = environment()
    kind = "A quick run: fewer calls, small arrays. " if results.quick else ""
    how = (
        f"{kind}Medians over {results.repeats} interleaved repeats, each in a fresh "
        f"process; {results.workers} workers, one BLAS thread each. Less is better. "
        "Ratios compare figures of the same repeat, smallest to largest in brackets. "
        "Times, their spread and the 99th percentile are absolute, and this machine's."
    )
    where = (
        f"{machine['date']}; {machine['cpu']}, {machine['cpus']} CPUs; "
        f"{machine['system']}; Python {machine['python']}, NumPy {machine['numpy']}."
    )
    return [how, "", where]


def _rows(case: Case, results: Results) -> list[str]:
    if case.name in results.skipped:
        return []
    name, limit = limit_of(case, results)
    per_call = p50s(results.samples.get((case.name, FORK_PER_CALL), []))
    rows = [_row(case.title, f"*limit: {name}*", limit, limit, per_call, [])]
    if not case.copies:
        one_cpu = p50s(results.limits.get((PING_PONG_ONE_CPU, 0), []))
        rows.append(
            _row(case.title, f"*{PING_PONG_ONE_CPU}*", one_cpu, limit, per_call, [])
        )
    for key, system in SYSTEMS.items():
        samples = results.samples.get((case.name, key))
        if samples is not None:
            p99s = [s.p99 for s in samples if s is not None]
            rows.append(
                _row(case.title, system.title, p50s(samples), limit, per_call, p99s)
            )
    return rows


def _row(
    title: str, system: str, times: Times, limit: Times, per_call: Times, p99s: Times
) -> str:
    known = [time for time in times if time is not None]
    spread = f"{duration(min(known))} to {duration(max(known))}" if known else NONE
    cells = [
        title,
        system,
        _ratio(ratios(times, limit), spread=True),
        _ratio(ratios(times, per_call)),
        duration(_median(times, None)) if known else "FAILED",
        spread,
        duration(_median(p99s, None)),
    ]
    return f"| {' | '.join(cells)} |"


def _median(values: Times, default: Any) -> Any:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else default


def _ratio(values: Times, *, spread: bool = False) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    middle, least, most = map(
        _two_digits, (statistics.median(known), min(known), max(known))
    )
    return f"{middle} ({least} to {most})" if spread and least != most else middle


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def duration(seconds: float | None) -> str:
    """Three digits and a unit."""
    if seconds is None:
        return NONE
    value, unit = seconds * 1e6, "µs"
    if seconds >= 1:
        value, unit = seconds, "s"
    elif seconds >= 1e-3:
        value, unit = seconds * 1e3, "ms"
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"


def environment() -> dict[str, Any]:
    """The kind of machine, and the versions that matter."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu(),
        "cpus": _usable_cpus(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def as_json(results: Results) -> dict[str, Any]:
    """Everything, for other programs; times in seconds."""
    return {
        "environment": environment(),
        "workers": results.workers,
        "repeats": results.repeats,
        "quick": results.quick,
        "samples": [
            {"case": case, "system": system, "repeat": repeat, **asdict(sample)}
            for (case, system), samples in results.samples.items()
            for repeat, sample in enumerate(samples)
            if sample is not None
        ],
        "limits": [
            {"limit": name, "nbytes": nbytes, "repeat": repeat, **asdict(sample)}
            for (name, nbytes), samples in results.limits.items()
            for repeat, sample in enumerate(samples)
            if sample is not None
        ],
        "failures": [asdict(failure) for failure in results.failures],
        "skipped": results.skipped,
    }


def label(system: str, case: str) -> str:
    """How a measurement is called while it runs."""
    return f"{LIMIT}: {case}" if system == LIMIT else f"{case}, {system}"
