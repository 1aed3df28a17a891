"""Runs the README's examples in Python, section by section; in a process of its own.

Takes the README's path, and a folder to be in. The examples use names that a reader would
have (``x``, ``model``, ``ex``); each section gets those below, and what is there for it
alone. A block whose first line is a comment with a file's name is written to that file.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import shmexec

# -- what a reader would have ----------------------------------------------------------

MODEL = """
class Classifier:
    def predict(self, x):
        return x.argmax(axis=1)

def predict(x):
    return x + 1

def generate(x):
    yield from map(str, x.shape)
"""

COMMON = """
import numpy as np
import shmexec

X = np.arange(400_000.0).reshape(400, 1000)
x = np.ones((2, 1024))
weights = np.ones((1024, 3))

def predict(x):
    return x.sum(axis=1)

def f(item):
    return item

class Model:
    def __init__(self, path="weights.npy"):
        self.weights = np.load(path)

    def predict(self, x):
        return x @ self.weights
"""

BEFORE = {
    "Give each worker a model, once": "model = Model()",
    "Chain models: pipelines": "path = 'image.npy'; paths = [path] * 3",
    "Serve single requests in batches": "row = x[0]",
    "Use one array in many calls": """
table = X
def predict(x):
    return x + 1
def fill_rows(board, start, stop):
    board[start:stop] = 1
""",
    "Feed a long iterable without reading it all": """
items = list(range(8))
def huge_generator():
    yield from items
""",
    "Use it from asyncio": "batches = [X[:100], X[100:]]",
    "Context and tracing": """
import contextvars
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export import ConsoleSpanExporter as OTLPSpanExporter
tracer = trace.get_tracer("readme")
def handle(x):
    return x
""",
    "See what workers print": "import logging",
    "See why it hangs": "future = ex.submit(f, x); future.result()",
    "See where the time goes": """
parameters = range(8)
def simulate(parameter):
    return parameter
""",
    "Check types": """
node = ex.actor(Model)
def load(path):
    return len(path)
class Count:
    def process(self, number):
        return number
""",
}
"""What a section's examples have beside the common names."""

AFTER = {
    "Ten lines": "assert y.shape == x.shape and rows.shape == (8000,)\n"
    "assert squares[3] == 9 and (y == np.sqrt(x) + 1).all()",
    "Run a function over many rows": "assert (out == X.sum(axis=1)).all()\n"
    "assert ex.map_batches(predict, np.ones((9, 1024))).shape == (9, 3)",
    "Serve single requests in batches": "assert (result == row @ weights).all()",
    "Use one array in many calls": "assert board.sum() == 500_000",
    "Take items as they are yielded": "assert word == 'COME'",
    "Use it from asyncio": "import asyncio; asyncio.run(main())",
}
"""What is looked at, or done with what they define, when they have run."""

NOT_RUN = {
    "Have it watched by Prometheus": "it listens at a port that may be taken",
    "Past one machine": "there is no such scheduler",
    "Run joblib and scikit-learn on it": "runs with them in tests of its own",
    "Use it with SciPy, emcee, Dask, PyTorch, pandas": "so does this",
    "Limit time, run again, put first": "pid is of a worker of the executor made there",
}
"""Why not."""

BLOCK = re.compile(
    r"^##+ (?P<heading>[^\n]*)$|^```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)


def sections(text: str) -> dict[str, list[str]]:
    """The examples below each heading that has some."""
    found: dict[str, list[str]] = {}
    heading = ""
    for match in BLOCK.finditer(text):
        heading = match["heading"] or heading
        if match["code"] is not None:
            found.setdefault(heading, []).append(match["code"])
    return found


def run(code: str, name: str, names: dict[str, Any]) -> None:
    """Run an example; ``await`` may stand anywhere, as in a notebook."""
    file = re.match(r"# (\w+\.py)\n", code)
    if file:
        Path(file[1]).write_text(code)
        return
    compiled = compile(code, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    if compiled.co_flags & inspect.CO_COROUTINE:
        asyncio.run(eval(compiled, names))
    else:
        exec(compiled, names)


def run_section(heading: str, blocks: list[str]) -> float:
    """Run them in names of their own; the seconds that this took.

    Raises:
        AssertionError: If a call failed that nobody asked about.
    """
    start = time.perf_counter()
    with shmexec.Executor(2) as given:
        names: dict[str, Any] = {"__name__": "__main__", "ex": given}
        for code in (COMMON, BEFORE.get(heading, ""), *blocks, AFTER.get(heading, "")):
            run(code, f"README, {heading!r}", names)
        made = [each for each in names.values() if isinstance(each, shmexec.Executor)]
        for executor in {given, *made}:
            executor.shutdown()
            assert executor.stats().failed == 0, f"a call of {heading!r} failed"
    return time.perf_counter() - start


def main() -> None:
    path, folder = sys.argv[1:]
    text = Path(path).read_text()
    os.chdir(folder)
    sys.path.insert(0, folder)
    np.save("weights.npy", np.ones((1024, 3)))
    np.save("image.npy", np.ones((256, 256)))
    np.save("input.npy", np.ones((3000, 10)))
    Path("model.py").write_text(MODEL)
    for heading, blocks in sections(text).items():
        if heading not in NOT_RUN:
            print(f"{heading}: {run_section(heading, blocks):.2f} s", flush=True)


if __name__ == "__main__":
    main()
