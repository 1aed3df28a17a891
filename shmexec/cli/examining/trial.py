"""Whether a pool really works here, which only a pool can show."""

from __future__ import annotations

import time

from shmexec.cli.examining.findings import Finding

TRY_WITHIN = 30.0
"""Seconds that each call of it may take."""

_SIZE = 1_000_000


def try_pool() -> Finding:
    """Start a worker and run one call on an array there and back."""
    import numpy as np

    from shmexec.executor import Executor

    array = np.arange(_SIZE, dtype=np.uint8)
    began = time.perf_counter()
    try:
        with Executor(1, timeout=TRY_WITHIN, name="shmexec-doctor") as executor:
            result = executor.submit(np.add, array, 1).result(timeout=TRY_WITHIN)
            first = time.perf_counter()
            executor.submit(np.add, array, 1).result(timeout=TRY_WITHIN)
            seconds = time.perf_counter() - first
        if not np.array_equal(result, array + 1):
            return _failed("the result of a call was wrong")
    except Exception as error:  # noqa: BLE001  (what is wrong is what is asked)
        return _failed(f"{type(error).__name__}: {error}")
    return Finding(
        "pool",
        "a pool",
        f"starts in {first - began:.2f} s; 1 MB there and back takes "
        f"{seconds * 1000:.1f} ms",
        data={"start_seconds": first - began, "call_seconds": seconds},
    )


def _failed(why: str) -> Finding:
    advice = (
        "mend what this says, then what is above; Executor(in_process=True) runs calls "
        "in the program itself meanwhile"
    )
    return Finding("pool", "a pool", f"does not work: {why}", "bad", advice)
