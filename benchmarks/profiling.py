"""What it costs to profile: calls with and without, in turns.

    python -m benchmarks.profiling [--quick]

For each length of a call: the time from submitting many to the last result, profiled, as
a share of that without, and the CPU time that this process takes more for each call.
Medians of pairs taken one right after the other, and their quartiles in brackets: on a
machine that is busy otherwise single pairs tell nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Sequence

import shmexec


def spin(seconds: float) -> None:
    """Be busy for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def once(ex: shmexec.Executor, calls: int, seconds: float) -> tuple[float, float]:
    """Time and CPU time of this process, for each call."""
    wall, cpu = time.perf_counter(), time.process_time()
    futures = [ex.submit(spin, seconds) for _ in range(calls)]
    for future in futures:
        future.result()
    return (
        (time.perf_counter() - wall) / calls,
        (time.process_time() - cpu) / calls,
    )


def profiled(ex: shmexec.Executor, calls: int, seconds: float) -> tuple[float, float]:
    """The same, recorded; each of the calls must be."""
    with ex.profile() as profile:
        found = once(ex, calls, seconds)
    assert len(profile) == calls
    return found


def spread(values: Sequence[float], scale: float, digits: int) -> str:
    """The median and the quartiles."""
    low, middle, high = (
        f"{value * scale:.{digits}f}" for value in statistics.quantiles(values, n=4)
    )
    return f"{middle} ({low} to {high})"


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--workers", type=int, default=1)
    quick = (options := parser.parse_args(arguments)).quick
    print("| calls of | time, % more | CPU here, µs more for each | of |")
    print("|---|--:|--:|--:|")
    with contextlib.ExitStack() as stack:
        ex = stack.enter_context(shmexec.Executor(options.workers))
        for seconds, calls in ((0.0, 500), (1e-3, 50), (10e-3, 5)):
            number = max(3, calls // 10) if quick else calls
            once(ex, number, seconds)
            pairs = []
            for turn in range(3 if quick else 100):
                ways = (once, profiled) if turn % 2 else (profiled, once)
                found = {way: way(ex, number, seconds) for way in ways}
                pairs.append((found[once], found[profiled]))
            slower = [(on[0] / off[0] - 1) for off, on in pairs]
            more = [on[1] - off[1] for off, on in pairs]
            own = statistics.median(off[1] for off, _ in pairs)
            print(
                f"| {seconds * 1e3:g} ms | {spread(slower, 100, 2)} | "
                f"{spread(more, 1e6, 1)} | {own * 1e6:.0f} µs |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
