"""How long does a row take that a thread asks for, while 63 others ask for theirs?

Each thread asks for one row at a time: its product with a small matrix. By ``submit`` it
is a call of its own; by a batcher, part of one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from shmexec.comparing import work
from shmexec.comparing.case import Case
from shmexec.comparing.sampling import Plan, Sample, check

_THREADS = 64
_ROWS = 100


def submitted(caller: Any, plan: Plan) -> Sample:
    """A call for each row."""
    return _measure(lambda row: caller.call(work.layer, row[None])[0], plan)


def batched(caller: Any, plan: Plan) -> Sample:
    """The same by a batcher."""
    with caller.batcher(work.layer) as batcher:
        return _measure(lambda row: batcher(row).result(), plan)


def _measure(ask: Callable[[np.ndarray], np.ndarray], plan: Plan) -> Sample:
    many = plan.amount(_ROWS)
    rows = np.random.default_rng(5).random((_THREADS, work.LAYER[0]), np.float32)
    right = work.layer(rows)
    wrong: list[int] = []
    ready = threading.Barrier(_THREADS + 1)

    def use(number: int) -> None:
        results = [ask(rows[number])]  # the workers start
        ready.wait()
        results += [ask(rows[number]) for _ in range(many)]
        if not all(np.allclose(each, right[number], 1e-3) for each in results):
            wrong.append(number)

    threads = [threading.Thread(target=use, args=(n,)) for n in range(_THREADS)]
    for thread in threads:
        thread.start()
    ready.wait()
    start = perf_counter()
    for thread in threads:
        thread.join()
    seconds = perf_counter() - start
    check(not wrong, f"rows of threads {wrong}: a wrong result")
    return Sample(seconds / (many * _THREADS), None, many * _THREADS)


CASES = (
    Case(
        "submit-64-threads",
        "threads",
        "64 threads, `submit`, per row",
        submitted,
        only_ours=True,
        quick=False,
    ),
    Case(
        "batcher-64-threads",
        "threads",
        "64 threads, batcher, per row",
        batched,
        only_ours=True,
        quick=False,
    ),
)
