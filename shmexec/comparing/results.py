"""All that a run measured, and how it is looked up."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shmexec.comparing.quantities import BEST_PEER, LIMIT, Quantity, Term
from shmexec.comparing.sampling import Sample
from shmexec.comparing.systems import IN_PROCESS, SYSTEMS

Figures = list[float | None]
"""One for each repeat, None where there is none."""

PEERS = tuple(
    system.name
    for system in SYSTEMS.values()
    if not system.ours and system.name != IN_PROCESS
)


@dataclass(frozen=True)
class Failure:
    """A measurement that gave no figures."""

    system: str
    case: str
    repeat: int
    why: str


def environment() -> dict[str, Any]:
    """The kind of machine, and the versions that matter."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu(),
        "cpus": _usable_cpus(),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "packages": _packages(),
    }


def _packages() -> dict[str, str]:
    from importlib import metadata

    found = {}
    for system in SYSTEMS.values():
        if system.package is not None:
            try:
                found[system.package] = metadata.version(system.package)
            except metadata.PackageNotFoundError:
                continue
    return found


def _memory() -> int:
    """Bytes of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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


@dataclass
class Results:
    """What a run measured.

    ``samples`` and ``limits`` hold one sample for each repeat, None where it failed; if
    the run was interrupted the last are missing. The keys are (case, system), and
    (limit, bytes). Runs that were put together follow each other as repeats.
    """

    workers: int
    repeats: int
    quick: bool
    runs: int = 1
    samples: dict[tuple[str, str], list[Sample | None]] = field(default_factory=dict)
    limits: dict[tuple[str, int], list[Sample | None]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=environment)
    interrupted: bool = False

    def figures(self, system: str, case: str) -> Figures:
        """The median of each repeat."""
        return self._padded(self.samples.get((case, system), []), "p50")

    def tails(self, system: str, case: str) -> Figures:
        """The 99th percentile of each repeat."""
        return self._padded(self.samples.get((case, system), []), "p99")

    def values(self, quantity: Quantity) -> Figures:
        """The value of a sum in each repeat."""
        return [
            quantity.value(partial(self._figure, repeat), self.workers)
            for repeat in range(self.repeats)
        ]

    def _figure(self, repeat: int, term: Term) -> float | None:
        if term.system == LIMIT:
            samples = self.limits.get((term.case, term.nbytes), [])
            return self._padded(samples, "p50")[repeat]
        if term.system == BEST_PEER:
            return self._best_peer(term.case)[repeat]
        return self.figures(term.system, term.case)[repeat]

    def _best_peer(self, case: str) -> Figures:
        """Of the peer whose median is the least: others may be in other runs."""
        measured = [self.figures(peer, case) for peer in PEERS]
        there = [figures for figures in measured if known(figures)]
        best: Figures = min(
            there, key=lambda each: median(each) or 0.0, default=self._padded([], "p50")
        )
        return best

    def _padded(self, samples: list[Sample | None], name: str) -> Figures:
        found = [
            None if sample is None else getattr(sample, name) for sample in samples
        ]
        return found + [None] * (self.repeats - len(found))


def ratios(figures: Figures, to: Figures) -> Figures:
    """Repeat by repeat."""
    return [
        None if one is None or not other else one / other
        for one, other in zip(figures, to, strict=True)
    ]


def known(figures: Iterable[float | None]) -> list[float]:
    """Those that there are."""
    return [figure for figure in figures if figure is not None]


def median(figures: Iterable[float | None]) -> float | None:
    """Of those that there are."""
    return statistics.median(there) if (there := known(figures)) else None


def as_json(results: Results) -> dict[str, Any]:
    """Everything, for other programs; times in seconds, memory in bytes."""
    return {
        "environment": results.environment,
        "workers": results.workers,
        "repeats": results.repeats,
        "runs": results.runs,
        "quick": results.quick,
        "interrupted": results.interrupted,
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
        "absent": results.absent,
    }


def combined(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Several runs as :func:`as_json` gave them, as one whose repeats are all of theirs.

    A system is compared with those of the same repeat, so with those of its own run.
    What the runs say of the machine is taken from the first.

    Raises:
        ValueError: If they are not of one kind.
    """
    first = runs[0]
    whole = {**first, "repeats": 0, "runs": len(runs), "interrupted": False}
    for name in ("samples", "limits", "failures"):
        whole[name] = []
    for name in ("skipped", "absent"):
        # What one run leaves out another may have.
        whole[name] = {
            k: v for k, v in first[name].items() if all(k in r[name] for r in runs)
        }
    for run in runs:
        if (run["workers"], run["quick"]) != (first["workers"], first["quick"]):
            msg = "runs with other numbers of workers, or quick ones, cannot be put together"
            raise ValueError(msg)
        for name in ("samples", "limits", "failures"):
            whole[name] += [
                {**entry, "repeat": entry["repeat"] + whole["repeats"]}
                for entry in run[name]
            ]
        whole["repeats"] += run["repeats"]
        whole["interrupted"] |= run["interrupted"]
    return whole


def from_json(read: dict[str, Any]) -> Results:
    """What :func:`as_json` gave, but for the place of a failed repeat."""
    results = Results(
        read["workers"],
        read["repeats"],
        read["quick"],
        read.get("runs", 1),
        failures=[Failure(**failure) for failure in read["failures"]],
        skipped=read["skipped"],
        absent=read["absent"],
        environment=read["environment"],
        interrupted=read["interrupted"],
    )
    for entry in read["samples"]:
        key = entry["case"], entry["system"]
        _put(results.samples.setdefault(key, []), entry)
    for entry in read["limits"]:
        _put(results.limits.setdefault((entry["limit"], entry["nbytes"]), []), entry)
    for failure in results.failures:
        key = failure.case, failure.system
        if failure.system != LIMIT:
            _fill(results.samples.setdefault(key, []), failure.repeat + 1)
    return results


def _put(samples: list[Sample | None], entry: dict[str, Any]) -> None:
    _fill(samples, entry["repeat"] + 1)
    samples[entry["repeat"]] = Sample(entry["p50"], entry["p99"], entry["calls"])


def _fill(samples: list[Sample | None], length: int) -> None:
    samples += [None] * (length - len(samples))
