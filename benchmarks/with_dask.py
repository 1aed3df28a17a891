"""Dask on one machine, measured: ``scheduler=ex`` beside Dask's own schedulers.

    python -m benchmarks.with_dask [--quick]

All take turns in one run, with two workers each, and every result is checked against the
threads'. ``processes`` is Dask's own as it is by default, which starts its processes for
each computation; "processes, kept" is the same with a ``ProcessPoolExecutor`` that lasts;
``by_reference`` is of ``shmexec.integrations.dask``.
Times are medians, and in brackets the smallest and the largest.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from statistics import median
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd

import shmexec
from shmexec.integrations.dask import by_reference

WORKERS = 2
OURS = "scheduler=ex"


def cases(quick: bool) -> dict[str, Any]:
    """What is computed, by name."""
    rng = np.random.default_rng(20)
    side = 1000 if quick else 5000
    matrix = rng.random((side, side))
    chunked = da.from_array(matrix, chunks=(side // 8, side))
    made = da.random.default_rng(21).random((side, side), chunks=(side // 8, side))
    rows = 50_000 if quick else 4_000_000
    table = pd.DataFrame(
        {
            "key": rng.integers(0, 1000, rows),
            "x": rng.random(rows),
            "y": rng.random(rows),
        }
    )
    frame = dd.from_pandas(table, npartitions=8)
    found = {
        f"array of {matrix.nbytes / 1e6:.0f} MB, std by column": chunked.std(axis=0),
        f"DataFrame of {rows:,} rows, groupby, means": frame.groupby("key").mean(),
        "array, made in chunks of random numbers, std": made.std(axis=0),
        "array, in other chunks, then summed": made.rechunk((side, side // 8)).sum(0),
        "DataFrame, a Python function for each row": frame["key"]
        .map(_digits, meta=("key", int))
        .sum(),
    }
    return dict(list(found.items())[:2]) if quick else found


def _digits(number: int) -> int:
    return sum(map(int, str(number)))


def _checked(result: Any, wanted: Any) -> None:
    if hasattr(wanted, "sort_index"):
        result, wanted = result.sort_index(), wanted.sort_index()
    np.testing.assert_allclose(np.asarray(result), np.asarray(wanted), rtol=1e-12)


def measure(
    what: Any, ways: dict[str, dict[str, Any]], repeats: int, warm_up: int
) -> dict[str, list[float]]:
    """Seconds of each way, in turns; those of ``warm_up`` turns are not counted."""
    wanted = what.compute(scheduler="threads", num_workers=WORKERS)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(warm_up + repeats):
        for way, how in ways.items():
            started = time.perf_counter()
            result = what.compute(**how)
            took = time.perf_counter() - started
            _checked(result, wanted)
            del result
            if turn >= warm_up:
                seconds[way].append(took)
    return seconds


def _shown(seconds: list[float]) -> str:
    each = [f"{1000 * s:.3g}" for s in (median(seconds), min(seconds), max(seconds))]
    return f"{each[0]} ms ({each[1]}–{each[2]})"


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--repeats", type=int, default=5)
    plan = parser.parse_args(arguments)
    repeats, warm_up = (1, 0) if plan.quick else (plan.repeats, 1)
    spawn = multiprocessing.get_context("spawn")
    with (
        shmexec.Executor(WORKERS) as ex,
        ProcessPoolExecutor(WORKERS, mp_context=spawn) as kept,
    ):
        ways: dict[str, dict[str, Any]] = {
            OURS: {"scheduler": ex},
            "by_reference(ex)": {"scheduler": by_reference(ex)},
            "threads": {"scheduler": "threads", "num_workers": WORKERS},
            "processes, kept": {"scheduler": "processes", "pool": kept},
            "processes": {"scheduler": "processes", "num_workers": WORKERS},
        }
        print(f"Dask {dask.__version__}, {WORKERS} workers, {repeats} repeats\n")
        others = [way for way in ways if way != OURS]
        print(f"| | `{OURS}` | {' | '.join(f'`{way}`' for way in others)} |")
        print("|---|--:|" + "--:|" * len(others))
        for name, what in cases(plan.quick).items():
            seconds = measure(what, ways, repeats, warm_up)
            ours = median(seconds[OURS])
            cells = [f"{median(seconds[way]) / ours:.3g} ×" for way in others]
            print(
                f"| {name} | {_shown(seconds[OURS])} | {' | '.join(cells)} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
