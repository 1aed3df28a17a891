"""The other ways to call, measured: scripts, streams, pipelines, single requests.

    python -m benchmarks.ways [--quick]

Each figure is a ratio of two things taken in turn in the same run; medians, and in
brackets the smallest and the largest. Results are checked.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

import shmexec
from shmexec.comparing.limits import ping_pong
from shmexec.comparing.sampling import Plan

SCRIPT = """
import time

time.sleep({seconds})
calls = 0


def count(text):
    global calls
    calls += 1
    if calls == 20:
        raise ValueError("call 20")
    return calls, text
"""

TEXTS = ("plain", "😀🎉", "数据科学", "مرحبا")


class Row(NamedTuple):
    """A line of the table."""

    what: str
    unit: str
    ratios: list[float]
    note: str


def _seconds(fn: Callable[[], object]) -> float:
    started = time.perf_counter()
    fn()
    return time.perf_counter() - started


def _repeated(repeats: int, one: Callable[[], tuple[float, str]]) -> tuple[Any, str]:
    ratios, note = [], ""
    for _ in range(repeats):
        ratio, note = one()
        ratios.append(ratio)
    return ratios, note


# -- scripts -----------------------------------------------------------------------------


def _call_in_process(path: Path, text: str) -> None:
    """One interpreter for one call, as scripts are often driven."""
    code = f"import model; model.count({text!r})"
    subprocess.run([sys.executable, "-c", code], cwd=path.parent, check=True)


def _serve_all(path: Path, calls: int) -> None:
    with shmexec.load(path) as model:
        for i in range(1, calls + 1):
            text = TEXTS[i % len(TEXTS)]
            future = model.count(text)
            if i == 20:
                assert isinstance(future.exception(), ValueError)
            else:
                assert future.result() == (i, text)


def script(folder: Path, plan: argparse.Namespace) -> Iterator[Row]:
    """A script whose import takes 0.3 s, called 50 times; and one of 1.4 s."""
    path = folder / "model.py"
    calls = 20 if plan.quick else 50
    path.write_text(SCRIPT.format(seconds=0.3))

    def one() -> tuple[float, str]:
        ours = _seconds(lambda: _serve_all(path, calls))
        sample = 3 if plan.quick else 10
        each = [_seconds(lambda: _call_in_process(path, "x")) for _ in range(sample)]
        return median(
            each
        ) * calls / ours, f"{calls} calls, {ours * 1000:.0f} ms in all"

    ratios, note = _repeated(plan.repeats, one)
    yield Row("script, import 0.3 s", "× faster than a process per call", ratios, note)

    path.write_text(SCRIPT.format(seconds=1.4).replace("== 20", "== -1"))

    def later() -> tuple[float, str]:
        with shmexec.load(path) as model:
            first = _seconds(lambda: model.count("x").result())
            each = [_seconds(lambda: model.count("x").result()) for _ in range(300)]
        floor = ping_pong(Plan.of(0, quick=True)).p50
        note = f"first {first * 1e3:.2f} ms, then {median(each) * 1e3:.3f} ms"
        return median(each) / floor, note

    ratios, note = _repeated(1 if plan.quick else plan.repeats, later)
    yield Row("later call of it, import 1.4 s", "× a ping-pong", ratios, note)


# -- streams -----------------------------------------------------------------------------


def arrays(count: int, size: int) -> Iterator[np.ndarray]:
    """Arrays of ``size`` float64, each filled with its number."""
    for i in range(count):
        yield np.full(size, float(i))


def stream(_folder: Path, plan: argparse.Namespace) -> Iterator[Row]:
    """1,000 arrays of 1 MB, against making them in this process; and a slow consumer."""
    count, size = (100 if plan.quick else 1000), 1 << 17
    with shmexec.Executor(1) as ex:

        def used() -> None:
            for i, array in enumerate(ex.stream(arrays, count, size)):
                assert array[0] == array[-1] == i

        def here() -> None:
            for i, array in enumerate(arrays(count, size)):
                assert array[0] == array[-1] == i

        used()

        def one() -> tuple[float, str]:
            theirs = _seconds(used)
            return theirs / _seconds(here), f"{theirs / count * 1e6:.0f} µs an array"

        ratios, note = _repeated(plan.repeats, one)
        yield Row("stream of 1 MB arrays", "× the loop in process", ratios, note)

        most = 0
        for i, array in enumerate(ex.stream(arrays, 100, size, buffersize=4)):
            assert array[0] == i
            time.sleep(0.002)
            most = max(most, ex.stats().shared_memory_used)
        yield Row(
            "the same with a slow consumer, buffer of 4",
            "× the buffer, in shared memory (granted by 16 MB)",
            [most / (4 * 8 * size)],
            f"{most / 2**20:.0f} MB at most, of 100 MB that went through",
        )


# -- pipelines ---------------------------------------------------------------------------


class Add:
    """A stage: adds to every element."""

    def __init__(self, number: float) -> None:
        self.number = number

    def process(self, array: np.ndarray) -> np.ndarray:
        """The sum, in a new array."""
        return array + self.number


def pipeline(_folder: Path, plan: argparse.Namespace) -> Iterator[Row]:
    """Three stages on large arrays, against three actors one after the other."""
    size = (1 << 20) if plan.quick else (1 << 23)  # 8 or 64 MB
    items = 6
    array = shmexec.share(np.zeros(size))
    with shmexec.Executor(1) as ex:
        nodes = [ex.actor(Add, number) for number in (1, 2, 3)]
        with ex.pipeline((Add, 1), (Add, 2), (Add, 3)) as pipe:

            def chained() -> None:
                for result in pipe.map(array for _ in range(items)):
                    assert result[0] == result[-1] == 6

            def by_hand() -> None:
                for _ in range(items):
                    result = array
                    for node in nodes:
                        result = node.process(result).result()
                    assert result[0] == result[-1] == 6

            chained()
            by_hand()

            def one() -> tuple[float, str]:
                return _seconds(by_hand) / _seconds(chained), f"{size >> 17} MB arrays"

            ratios, note = _repeated(plan.repeats, one)
    yield Row("pipeline of 3", "× faster than 3 actors in turn", ratios, note)


# -- single requests ---------------------------------------------------------------------

WEIGHTS = np.full((1024, 8), 0.5, np.float32)


def predict(rows: np.ndarray) -> np.ndarray:
    """A small model: rows of 1024 to rows of 8."""
    return rows @ WEIGHTS


def _from_threads(number: int, each: int, call: Callable[[np.ndarray], Any]) -> None:
    row = np.ones((1, 1024), np.float32)

    def client() -> None:
        for _ in range(each):
            result = call(row)
            assert result.shape[-1] == 8
            assert result.ravel()[0] == 512

    threads = [threading.Thread(target=client) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def batcher(_folder: Path, plan: argparse.Namespace) -> Iterator[Row]:
    """64 threads that submit single rows."""
    each = 10 if plan.quick else 50
    with shmexec.Executor(1) as ex, ex.batcher(predict) as single:

        def batched() -> None:
            _from_threads(64, each, lambda row: single(row).result())

        def plain() -> None:
            _from_threads(64, each, lambda row: ex.submit(predict, row).result())

        batched()
        plain()

        def one() -> tuple[float, str]:
            slow, fast = _seconds(plain), _seconds(batched)
            return slow / fast, f"{64 * each / fast:.0f} rows a second"

        ratios, note = _repeated(plan.repeats, one)
    yield Row("rows of 64 threads, batched", "× the rate of submit", ratios, note)


WAYS = (script, stream, pipeline, batcher)


def main(arguments: list[str] | None = None) -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smoke run")
    parser.add_argument("--repeats", type=int, default=5)
    plan = parser.parse_args(arguments)
    if plan.quick:
        plan.repeats = 1
    print("| way | ratio | | |\n|---|--:|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for way in WAYS:
            for row in way(Path(folder), plan):
                low, high = min(row.ratios), max(row.ratios)
                spread = f" ({low:.3g}–{high:.3g})" if len(row.ratios) > 1 else ""
                ratio = f"**{median(row.ratios):.3g}**{spread}"
                print(f"| {row.what} | {ratio} | {row.unit} | {row.note} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
