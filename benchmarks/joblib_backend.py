"""scikit-learn on shmexec's joblib backend, beside loky's.

    python -m benchmarks.joblib_backend [--quick] [--repeats N] [--megabytes N]

Each figure comes from a fresh process that runs one case on one of both: with the start
of the workers; once they are there; and again while its memory is watched. The two take turns. Scores must be the same. Memory is the most that all
processes of it took at a time (PSS, which counts what several of them map once), without
what the program had before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from shmexec.comparing import memory

BACKENDS = ("shmexec", "loky")

_WATCHED = 2.0
"""Seconds at least, so that there are enough looks."""


class Figures(NamedTuple):
    """What one process measured: seconds, seconds, bytes, and what came out."""

    first: float
    later: float
    most: float
    score: float


def _data(megabytes: float, columns: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = int(megabytes * 1e6 / columns / 4)
    x = rng.random((rows, columns), dtype=np.float32)
    y = (x[:, :8].sum(axis=1) + rng.normal(0, 0.5, rows) > 4).astype(int)
    return x, y


def _column_sums(x: np.ndarray, start: int) -> float:
    return float(x[:, start : start + 8].sum())


def tasks(megabytes: float) -> Callable[[], float]:
    """16 tasks that look at some columns each: what it costs to pass the matrix."""
    from joblib import Parallel, delayed

    x, _ = _data(megabytes, 1000)

    def run() -> float:
        sums = Parallel(n_jobs=2)(
            delayed(_column_sums)(x, start) for start in range(0, 128, 8)
        )
        return float(sum(sums))

    return run


def forest(megabytes: float) -> Callable[[], float]:
    """A random forest of 8 trees."""
    from sklearn.ensemble import RandomForestClassifier

    x, y = _data(megabytes, 1000)
    model = RandomForestClassifier(8, max_depth=5, n_jobs=2, random_state=0)

    def run() -> float:
        return float(model.fit(x, y).score(x[:2000], y[:2000]))

    return run


def search(megabytes: float) -> Callable[[], float]:
    """A grid search: 2 candidates, 3 folds."""
    from sklearn.model_selection import GridSearchCV
    from sklearn.naive_bayes import GaussianNB

    x, y = _data(megabytes, 1000)
    grid = {"var_smoothing": [1e-9, 1e-1]}

    def run() -> float:
        found = GridSearchCV(GaussianNB(), grid, cv=3, n_jobs=2, refit=False)
        return float(found.fit(x, y).best_score_)

    return run


CASES: dict[str, tuple[Callable[[float], Callable[[], float]], float, str]] = {
    "tasks": (tasks, 1.0, "16 tasks, some columns each"),
    "forest": (forest, 0.1, "`RandomForestClassifier`, 8 trees"),
    "search": (search, 1.0, "`GridSearchCV`, 2 × 3 fits"),
    "small-forest": (forest, 0.016, "`RandomForestClassifier`, 8 trees"),
    "small-search": (search, 0.016, "`GridSearchCV`, 2 × 3 fits"),
}


def measure(case: str, backend: str, megabytes: float) -> Figures:
    """In a process of its own: one case on one backend."""
    import joblib

    import shmexec.integrations.joblib  # noqa: F401  (registers it)

    prepare, share, _ = CASES[case]
    run = prepare(megabytes * share)
    before = memory.pss({os.getpid()})
    with joblib.parallel_config(backend=backend):
        seconds, scores = [], []
        for _ in range(2):
            started = time.perf_counter()
            scores.append(run())
            seconds.append(time.perf_counter() - started)
        with memory.watched() as most:  # it takes time, too
            started = time.perf_counter()
            while time.perf_counter() - started < _WATCHED:
                scores.append(run())
            took = most() - before
    assert len(set(scores)) == 1, scores
    return Figures(*seconds, took, scores[0])


def measure_apart(case: str, backend: str, megabytes: float) -> Figures:
    """The same in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.joblib_backend"]
    command += ["--one", case, backend, "--megabytes", str(megabytes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return Figures(*json.loads(done.stdout.splitlines()[-1]))


def _spread(values: list[float], show: str = "{:.2f}") -> str:
    least, most = show.format(min(values)), show.format(max(values))
    return f"{show.format(median(values))} ({least}–{most})"


def _rows(figures: dict[tuple[str, str], list[Figures]], megabytes: float) -> Any:
    for case, (_, share, title) in CASES.items():
        ours, theirs = (figures[case, backend] for backend in BACKENDS)
        if not ours:
            continue
        assert len({each.score for each in (*ours, *theirs)}) == 1, case
        size = f"{megabytes * share:.0f} MB"
        cells = [title, size]
        for field in ("first", "later"):
            pairs = [
                (getattr(one, field), getattr(other, field))
                for one, other in zip(ours, theirs, strict=True)
            ]
            cells += [f"{median(one for one, _ in pairs):.2f} s"]
            cells += [_spread([other / one for one, other in pairs]) + " ×"]
        cells += [f"{median(each.most for each in ours) / 1e6:.0f} MB"]
        ratios = [b.most / a.most for a, b in zip(ours, theirs, strict=True)]
        yield [*cells, _spread(ratios) + " ×"]


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one repeat, 40 MB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=500.0)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    plan = parser.parse_args()
    if plan.one:
        print(json.dumps(measure(*plan.one, plan.megabytes)))
        return 0
    if plan.quick:
        plan.repeats, plan.megabytes = 1, 40.0
    figures: dict[tuple[str, str], list[Figures]] = {
        (case, backend): [] for case in CASES for backend in BACKENDS
    }
    for number in range(plan.repeats):
        for case in plan.cases:
            for backend in BACKENDS[:: 1 if number % 2 else -1]:
                found = measure_apart(case, backend, plan.megabytes)
                figures[case, backend].append(found)
                print(case, backend, found, file=sys.stderr)
    print("| | matrix | first | loky | later | loky | memory | loky |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for cells in _rows(figures, plan.megabytes):
        print("|", " | ".join(cells), "|")
    return 0


if __name__ == "__main__":
    sys.exit(main())
