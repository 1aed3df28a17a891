"""``shmexec demo``: the same batches serially, in one process per call, and pooled.

Every way runs the same function on the same rows; the table has what was measured, and
says where a figure is an estimate.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

from shmexec.cli.output import one_line, print_error, print_table
from shmexec.options import cpu_count

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

__all__ = ["demo", "predict", "serve_one_call"]

_FEATURES, _HIDDEN, _CLASSES = 256, 512, 16
_SEED = 20_240
_TOLERANCE = 1e-5
_FORK = "fork"
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
_HEAD = (
    "",
    "seconds",
    "rows/s",
    "vs serial",
    "vs fork per call",
    "equal to serial",
)


@dataclass(frozen=True, slots=True)
class _Way:
    """One line of the table."""

    name: str
    seconds: float
    equal: str
    rows: int


class Perceptron:
    """Three dense layers, tanh between them and softmax behind, float32.

    Args:
        seed: Of the weights.
    """

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        widths = (_FEATURES, _HIDDEN, _HIDDEN, _CLASSES)
        self._weights = [
            random.standard_normal((n, m), dtype=np.float32) / np.float32(n**0.5)
            for n, m in pairwise(widths)
        ]

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """Class probabilities, shape ``(rows, 16)``, of a batch ``(rows, 256)``."""
        *hidden, last = self._weights
        for weights in hidden:
            batch = np.tanh(batch @ weights)
        scores = batch @ last
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(scores / scores.sum(axis=1, keepdims=True))


@cache
def _model() -> Perceptron:
    return Perceptron(_SEED)


def predict(batch: np.ndarray) -> np.ndarray:
    """The function that all ways run; a process makes the model with its first call."""
    return _model()(batch)


def serve_one_call() -> None:
    """A fresh interpreter's whole life: an array on stdin, the result on stdout."""
    batch = np.load(io.BytesIO(sys.stdin.buffer.read()))
    np.save(sys.stdout.buffer, predict(batch))


def demo(options: argparse.Namespace) -> int:
    """Carry the command out.

    Args:
        options: Parsed arguments: rows, workers, batch_size, quick.

    Returns:
        0 if all ways agree, else 1.
    """
    try:
        return _compare(options)
    except KeyboardInterrupt:
        print_error("demo", "interrupted")
        return 130
    except Exception as error:  # noqa: BLE001  (a person reads it: one line, no stack)
        print_error("demo", f"{type(error).__name__}: {one_line(str(error))}")
        return 1


def _compare(options: argparse.Namespace) -> int:
    rows = options.rows or (16_384 if options.quick else 131_072)
    workers = options.workers
    size = min(options.batch_size, rows)
    # Noise is as good as data here: the arithmetic takes as long.
    data = np.random.default_rng(1).standard_normal((rows, _FEATURES), np.float32)
    predict(data[:size])  # the model is made and BLAS has its threads before the clock
    batches = [data[start : start + size] for start in range(0, rows, size)]

    threads = max(1, cpu_count() // workers)

    free, serial = _timed(lambda: np.concatenate(list(map(predict, batches))))
    # What runs side by side must share the CPUs, as the pool's workers do by default;
    # with equal thread counts the results can be compared bit by bit.
    with threadpool_limits(threads):
        run = _Run(data, batches, workers, threads)
        ways = run.all_ways(options.quick)
    ways.insert(0, _Way("serial", serial, _equality(free, run.expected), rows))

    title = (
        f"{_FEATURES}-{_HIDDEN}-{_HIDDEN}-{_CLASSES} perceptron, {rows:,} rows "
        f"({data.nbytes / 1e6:.0f} MB) in {len(batches)} batches of {size}; "
        f"{workers} workers on {cpu_count()} CPUs"
    )
    by_fork = next(way for way in ways if way.name.endswith(_FORK)).seconds
    print_table(title, _HEAD, [_line(way, serial, by_fork) for way in ways])
    print(
        "'vs' is how many times as fast. 'serial' has BLAS threads on all CPUs; each "
        f"process of the others has {threads}.\n"
        "'equal' compares with the serial run of that many threads: BLAS may round "
        "otherwise with more.\n"
        "'estimated' is measured on a few calls and scaled to all batches."
    )
    wrong = [way.name for way in ways if way.equal == "NO"]
    if wrong:
        print_error("demo", f"differs from the serial result: {', '.join(wrong)}")
        return 1
    return 0


def _timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def _equality(result: np.ndarray, expected: np.ndarray) -> str:
    if np.array_equal(result, expected):
        return "yes, every bit"
    if result.shape == expected.shape and np.allclose(
        result, expected, rtol=_TOLERANCE, atol=1e-7
    ):
        return f"within {_TOLERANCE:g}"
    return "NO"


def _line(way: _Way, serial: float, baseline: float) -> tuple[str, ...]:
    return (
        way.name,
        f"{way.seconds:.2f}",
        f"{way.rows / way.seconds:,.0f}",
        f"{serial / way.seconds:.2f} x",
        f"{baseline / way.seconds:.2f} x",
        way.equal,
    )


class _Run:
    """The ways whose processes have the same number of BLAS threads."""

    def __init__(
        self, data: np.ndarray, batches: list[np.ndarray], workers: int, threads: int
    ) -> None:
        self._data = data
        self._batches = batches
        self._workers = workers
        self._threads = threads
        self.expected = np.empty(0)

    def all_ways(self, quick: bool) -> list[_Way]:
        """Run them, the reference first."""
        self.expected, seconds = _timed(
            lambda: np.concatenate(list(map(predict, self._batches)))
        )
        name = f"serial, {self._threads} BLAS thread{'s' * (self._threads > 1)}"
        return [
            _Way(name, seconds, "-", len(self.expected)),
            self._by_fork(),
            self._by_new_python(self._workers * (1 if quick else 4)),
            *self._by_pool(),
        ]

    def _by_fork(self) -> _Way:
        from shmexec.forkpercall import ForkPerCallExecutor

        with ForkPerCallExecutor(self._workers) as executor:
            result, seconds = _timed(
                lambda: np.concatenate(list(executor.map(predict, self._batches)))
            )
        return self._way(f"one process per call: {_FORK}", seconds, result)

    def _by_new_python(self, calls: int) -> _Way:
        """What a call costs that must start Python, import NumPy and make the model."""
        # A last batch with fewer rows would not stand for the others.
        full = [b for b in self._batches if len(b) == len(self._batches[0])][:calls]
        one = partial(_fresh_interpreter, self._threads)
        with ThreadPoolExecutor(self._workers) as threads:
            result, seconds = _timed(
                lambda: np.concatenate(list(threads.map(one, full)))
            )
        name = "one process per call: new Python"
        if len(full) < len(self._batches):
            name += f" (estimated from {len(full)} calls)"
            seconds *= len(self._batches) / len(full)
        return self._way(name, seconds, result)

    def _by_pool(self) -> list[_Way]:
        from shmexec.executor import Executor  # not at the top: a new Python need not

        ways = []
        with Executor(
            self._workers, threads_per_worker=self._threads, name="shmexec-demo"
        ) as executor:
            run = partial(
                executor.map_batches,
                predict,
                self._data,
                batch_size=len(self._batches[0]),
            )
            for name in ("shmexec pool, start included", "shmexec pool, once started"):
                result, seconds = _timed(run)
                ways.append(self._way(name, seconds, result))
                del result  # so that its memory is there for the next one
        return ways

    def _way(self, name: str, seconds: float, result: np.ndarray) -> _Way:
        """A line of the table; ``result`` may be of the first rows only."""
        equal = _equality(result, self.expected[: len(result)])
        return _Way(name, seconds, equal, len(self.expected))


def _fresh_interpreter(threads: int, batch: np.ndarray) -> np.ndarray:
    message = io.BytesIO()
    np.save(message, batch)
    code = f"from {__name__} import serve_one_call; serve_one_call()"
    done = subprocess.run(  # noqa: S603  (this very module, in this very Python)
        [sys.executable, "-c", code],
        input=message.getvalue(),
        capture_output=True,
        check=False,
        env={**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))},
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        msg = f"a fresh Python failed: {last}"
        raise RuntimeError(msg)
    return np.asarray(np.load(io.BytesIO(done.stdout)))
