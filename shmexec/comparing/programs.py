"""What is left of a second CPU in programs that people write?"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from shmexec.comparing import work
from shmexec.comparing.caller import Caller
from shmexec.comparing.case import Case
from shmexec.comparing.quantities import memcpy, ping_pong, taken
from shmexec.comparing.sampling import Plan, Sample, check, sample
from shmexec.comparing.sharing import whole_run

_IN_PROCESS = "inprocess"
_ROWS, _COLUMNS = 1_000_000, 10
FRAME = _ROWS * _COLUMNS * 8
_BATCHES, _BATCH = 200, 256


def inference(caller: Caller, plan: Plan) -> Sample:
    """A perceptron of three layers over 200 batches; each worker makes the weights once.

    The inputs are one array, whose parts are passed as is best for the system.
    """
    number = plan.amount(_BATCHES, least=8)
    random = np.random.default_rng(11)
    shape = (number * _BATCH, work.WIDTHS[0])
    inputs = random.standard_normal(shape, dtype=np.float32)
    bounds = [(start, start + _BATCH) for start in range(0, len(inputs), _BATCH)]

    def ask(kept: Any, calls: int) -> list[Any]:
        return caller.parts(kept, work.perceptron, work.perceptron_of, bounds[:calls])

    right = [work.perceptron(inputs[start:stop]) for start, stop in bounds]
    return whole_run(caller, plan, inputs, ask, right)


def _frame(plan: Plan) -> Any:
    import pandas as pd

    rows = plan.amount(_ROWS)
    values = work.pattern(rows * _COLUMNS * 8).reshape(rows, _COLUMNS)
    return pd.DataFrame(values, columns=[f"c{number}" for number in range(_COLUMNS)])


def frame_in(caller: Caller, plan: Plan) -> Sample:
    """A data frame goes in, the mean of each column comes out."""
    frame = _frame(plan)

    def once(token: int) -> float:
        frame.iat[0, 0] = 1000 * token
        start = perf_counter()
        result = caller.call(work.frame_means, frame)
        seconds = perf_counter() - start
        check(np.allclose(result, frame.mean(), rtol=1e-12), "the means are wrong")
        return seconds

    return sample(once, plan)


def frame_there_and_back(caller: Caller, plan: Plan) -> Sample:
    """A data frame goes in, and comes out with one element changed."""
    frame = _frame(plan)

    def once(token: int) -> float:
        frame.iat[-1, 0] = token
        start = perf_counter()
        result = caller.call(work.frame_stamp, frame)
        seconds = perf_counter() - start
        check(result.shape == frame.shape, f"shape {result.shape}")
        check(result.iat[0, 0] == -token, "the first element is wrong")
        same = np.array_equal(result.to_numpy()[1:], frame.to_numpy()[1:])
        check(same, "the result's content is wrong")
        return seconds

    return sample(once, plan)


def slow_import(caller: Caller, plan: Plan) -> Sample:
    """50 calls that need a module which takes 0.3 s to import; seconds for all."""
    number = 50 if not plan.quick else 4
    caller.gather(work.echo, [(token,) for token in range(_WARM_UP)])
    start = perf_counter()
    results = caller.gather(work.import_slow, [(token,) for token in range(number)])
    seconds = perf_counter() - start
    check([*results] == [*range(number)], f"a wrong result: {results!r}")
    return Sample(seconds, None, number)


_WARM_UP = 8

CASES = (
    Case(
        "mlp",
        "programs",
        "perceptron, 200 batches",
        inference,
        nbytes=_BATCHES * _BATCH * work.WIDTHS[0] * 4,
        limit=taken(_IN_PROCESS, "mlp").shared_out(),
        reuses=True,
        prepare=work.layers,
    ),
    Case(
        "frame-in",
        "programs",
        "DataFrame 10⁶ × 10 in, means out",
        frame_in,
        nbytes=FRAME,
        limit=taken(_IN_PROCESS, "frame-in") + memcpy(FRAME),
        quick=False,
    ),
    Case(
        "frame-both",
        "programs",
        "DataFrame there and back",
        frame_there_and_back,
        nbytes=FRAME,
        limit=ping_pong() + 2 * memcpy(FRAME),
        quick=False,
    ),
    Case(
        "import",
        "programs",
        "50 calls that need a 0.3 s import",
        slow_import,
        quick=False,
    ),
)
