"""How figures are told: families of cases, units, and what ratios are taken to."""

from __future__ import annotations

from shmexec.comparing.case import Case
from shmexec.comparing.quantities import LIMIT
from shmexec.comparing.results import Figures, Results
from shmexec.comparing.systems import SHARE, SHMEXEC, SYSTEMS

NONE = "-"

FAMILIES = {
    "noop": "Calls that do nothing",
    "threads": "Single rows from many threads",
    "in": "An array in",
    "out": "An array out, made by the call",
    "both": "An array there and back",
    "shared": "An array that is ready for many calls",
    "reuse": "One array, many calls, with all it takes to share it",
    "programs": "Whole programs",
    "start": "Start",
    "memory": "Memory (PSS)",
}


def ours(case: Case) -> str:
    """The system that others are compared with."""
    return SHARE if case.reuses else SHMEXEC


def unit_of(case: Case, results: Results) -> tuple[str, Figures]:
    """What ratios in this case are taken to: its name, and its figure in each repeat."""
    if case.limit:
        return str(case.limit), results.values(case.limit)
    return SYSTEMS[ours(case)].title, results.figures(ours(case), case.name)


def digits(value: float) -> str:
    """Two digits that count, as a plain number."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


def amount(value: float | None, case: Case) -> str:
    """In the case's unit."""
    if case.of_bytes and value is not None:
        return f"{value / 2**20:.0f} MB"
    return duration(value)


def duration(seconds: float | None) -> str:
    """Three digits and a unit."""
    if seconds is None:
        return NONE
    value, unit = seconds * 1e6, "µs"
    if abs(seconds) >= 1:
        value, unit = seconds, "s"
    elif abs(seconds) >= 1e-3:
        value, unit = seconds * 1e3, "ms"
    size = abs(value)
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2}f} {unit}"


def label(system: str, case: str) -> str:
    """How a measurement is called while it runs."""
    return f"{LIMIT}: {case}" if system == LIMIT else f"{case}, {system}"
