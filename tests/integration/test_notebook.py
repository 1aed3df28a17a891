"""A real notebook kernel: cells are interrupted, and the next ones give right results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")

BEGIN = """
import time
import numpy as np
import shmexec
ex = shmexec.Executor(2)
def slow(x):
    print("item", x, flush=True)
    time.sleep(0.5)
    return x
"""
NEXT = "print(list(ex.map(lambda x: x + 1, range(5))))"


def run(*cells):
    """Run cells in a new kernel; what each printed, and its errors."""
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("kernel.py")],
        input=json.dumps(cells),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def is_short(errors):
    """One traceback, of what the user wrote and one frame below."""
    (error,) = errors
    assert error.count("Traceback (most recent call last)") == 1
    assert "During handling" not in error
    assert len(re.findall(r"^(?:Cell|File) ", error, re.MULTILINE)) <= 3
    return error.strip().splitlines()[-1].startswith("KeyboardInterrupt")


def test_a_map_is_interrupted_and_the_next_cell_works():
    interrupted = ["list(ex.map(slow, range(100)))", "item 3"]
    begun, (printed, errors), after = run([BEGIN, None], interrupted, [NEXT, None])
    assert begun == ["", []]
    assert is_short(errors), errors
    assert "item 3" in printed  # what workers print reaches the cell
    assert after == ["[1, 2, 3, 4, 5]\n", []]


CELLS = [
    "ex.map_batches(lambda b: (slow(0), b)[1], np.arange(99.0), batch_size=1)",
    "ex.submit(lambda: (print('item', flush=True), time.sleep(100))).result()",
    "for _ in ex.stream(lambda: (slow(i) for i in range(99))): pass",
    "for _ in ex.map(slow, range(100), buffersize=4, ordered=False): pass",
    "ex.broadcast(lambda: (print('item', flush=True), time.sleep(100)))",
    "with shmexec.Executor(2) as other: list(other.map(slow, range(20)))",
    "print('item'); shmexec.Executor(2, initializer=slow, initargs=(0,)).submit(id, 0).result()",
]


@pytest.mark.stress
def test_so_is_everything_else_again_and_again():
    cells = [[cell, "item"] for cell in CELLS * 2]
    both = [each for cell in cells for each in (cell, [NEXT, None])]
    results = run([BEGIN, None], *both)
    for cell, (_, errors), after in zip(
        cells, results[1::2], results[2::2], strict=True
    ):
        assert is_short(errors), (cell, errors)
        assert after == ["[1, 2, 3, 4, 5]\n", []], cell
