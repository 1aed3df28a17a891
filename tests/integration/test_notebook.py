"""A real notebook kernel: interrupts, output, displays, modules that are edited."""

from __future__ import annotations

import json
import os
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
    ran = json.loads(done.stdout)
    return [(cell["printed"], cell["errors"], cell["shown"]) for cell in ran]


def is_short(errors):
    """One traceback, of what the user wrote and one frame below."""
    (error,) = errors
    assert error.count("Traceback (most recent call last)") == 1
    assert "During handling" not in error
    assert len(re.findall(r"^(?:Cell|File) ", error, re.MULTILINE)) <= 3
    return error.strip().splitlines()[-1].startswith("KeyboardInterrupt")


def test_a_map_is_interrupted_and_the_next_cell_works():
    interrupted = ["list(ex.map(slow, range(100)))", "item 3"]
    begun, (printed, errors, _), after = run([BEGIN], interrupted, [NEXT])
    assert begun == ("", [], [])
    assert is_short(errors), errors
    assert "item 3" in printed  # what workers print reaches the cell
    assert after == ("[1, 2, 3, 4, 5]\n", [], [])


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
    both = [each for cell in cells for each in (cell, [NEXT])]
    results = run([BEGIN], *both)
    for cell, (_, errors, _), after in zip(
        cells, results[1::2], results[2::2], strict=True
    ):
        assert is_short(errors), (cell, errors)
        assert after == ("[1, 2, 3, 4, 5]\n", [], []), cell


# -- output --------------------------------------------------------------------------------

LATE = """
import os, logging, threading
logging.basicConfig(format="logged %(message)s")
def late(name, path):
    print(name, "begins", flush=True)
    with open(path) as file:  # a pipe that another cell opens
        file.read()
    print(name, "ends")
    os.write(2, f"{name} wrote\\n".encode())
    logging.getLogger("cell").warning(name)
    return name
class Node:
    async def speak(self, name, path):
        print(name, "begins", flush=True)
        await asyncio.to_thread(open(path).read)
        print(name, "ends")
"""


def pipes(path, *names):
    for name in names:
        os.mkfifo(path / name)
    return [str(path / name) for name in names]


def test_output_goes_to_the_cell_that_submitted(tmp_path):
    one, two, three = pipes(tmp_path, "one", "two", "three")
    cells = run(
        [BEGIN + LATE],
        [f"one = ex.submit(late, 'one', {one!r})"],
        ["wait", 1, "one begins"],
        [f"two = ex.submit(late, 'two', {two!r})"],
        ["wait", 2, "two begins"],
        # Another cell waits for the first one's call, and its own thread reads.
        [f"open({one!r}, 'w').close(); print('got', one.result())"],
        ["print(ex.submit(lambda: print('mine') or 4).result())"],
        # Nobody waits: the dispatcher reads, when no cell runs.
        [f"open({two!r}, 'w').close()"],
        ["wait", 2, "two wrote"],
        ["wait", 2, "logged two"],
        ["list(ex.map(lambda i: print('item', i), range(3)))"],
        ["for _ in ex.stream(lambda: (print('step', i) for i in range(3))): pass"],
        ["from threading import Thread; it = ex.map(print, ['a', 'b'], buffersize=1)"],
        ["for _ in it: print('got')"],
    )
    printed = [lines for lines, errors, _ in cells]
    assert not any(errors for _, errors, _ in cells)
    ended = "{0} begins\n{0} ends\n{0} wrote\nlogged {0}\n"
    assert sorted(printed[1].splitlines()) == sorted(ended.format("one").splitlines())
    assert sorted(printed[2].splitlines()) == sorted(ended.format("two").splitlines())
    assert printed[3] == "got one\n"
    assert printed[4] == "mine\n4\n"
    assert printed[5] == ""
    assert sorted(printed[6].splitlines()) == ["item 0", "item 1", "item 2"]
    assert printed[7] == "step 0\nstep 1\nstep 2\n"
