"""A real notebook kernel: interrupts, output, displays, and modules that are edited.

The tests share one kernel and one executor in it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.waiting import APART

pytest.importorskip("jupyter_client")
pytest.importorskip("ipykernel")

pytestmark = pytest.mark.slow

BEGIN = """
import asyncio, logging, os, time
import numpy as np
import shmexec
logging.basicConfig(format="logged %(message)s")
ex = shmexec.Executor(2)
def slow(x):
    print("item", x, flush=True)
    time.sleep(0.5)
    return x
"""
NEXT = "print(list(ex.map(lambda x: x + 1, range(5))))"


class Cell(NamedTuple):
    """What came of a cell so far."""

    number: int
    printed: str
    errors: list[str]
    shown: list[dict[str, str]]


class Kernel:
    """Runs cells; see :mod:`tests.integration.kernel`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("kernel.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        APART.add(self.process.pid)
        self.cells: list[Cell] = []

    def _tell(self, *command: object) -> None:
        print(json.dumps(command), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "the kernel does not answer; see stderr"
        self.cells = [
            Cell(number, each["printed"], each["errors"], each["shown"])
            for number, each in enumerate(json.loads(answer))
        ]

    def run(self, code: str, interrupt_at: str | None = None) -> Cell:
        """Run a cell, and interrupt it when it has printed that."""
        self._tell("run", code, interrupt_at)
        return self.cells[-1]

    def print(self, code: str) -> str:
        """Run a cell that does not fail; what it prints."""
        cell = self.run(code)
        assert not cell.errors, cell.errors[0]
        return cell.printed

    def wait(self, cell: Cell, text: str) -> None:
        """Wait until a cell has printed something, whichever runs."""
        self._tell("wait", cell.number, text)

    def lines(self, cell: Cell) -> list[str]:
        """What it has printed by now, sorted."""
        return sorted(self.cells[cell.number].printed.splitlines())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()
        APART.discard(self.process.pid)


@pytest.fixture(scope="module")
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    try:
        assert kernel.print(BEGIN) == ""
        yield kernel
    finally:
        kernel.close()


# -- interrupts ----------------------------------------------------------------------------


def is_short(errors):
    """One traceback, of what the user wrote and one frame below."""
    (error,) = errors
    assert error.count("Traceback (most recent call last)") == 1
    assert "During handling" not in error
    assert len(re.findall(r"^(?:Cell|File) ", error, re.MULTILINE)) <= 3
    return error.strip().splitlines()[-1].startswith("KeyboardInterrupt")


def test_a_map_is_interrupted_and_the_next_cell_works(kernel):
    cell = kernel.run("list(ex.map(slow, range(100)))", "item 3")
    assert is_short(cell.errors), cell.errors
    assert "item 3" in cell.printed  # what workers print reaches the cell
    assert kernel.print(NEXT) == "[1, 2, 3, 4, 5]\n"


CELLS = [
    "ex.map_batches(lambda b: (slow(0), b)[1], np.arange(99.0), batch_size=1)",
    "ex.submit(lambda: (print('item', flush=True), time.sleep(100))).result()",
    "for _ in ex.stream(lambda: (slow(i) for i in range(99))): pass",
    "for _ in ex.map(slow, range(100), buffersize=4, ordered=False): pass",
    "ex.broadcast(lambda: (print('item', flush=True), time.sleep(100)))",
    "with shmexec.Executor(2) as other: list(other.map(slow, range(20)))",
    "f = shmexec.Executor(2, initializer=time.sleep, initargs=(99,)).submit(id, 0)\nprint('item'); f.result()",
]


@pytest.mark.stress
def test_so_is_everything_else_again_and_again(kernel):
    for cell in CELLS * 2:
        errors = kernel.run(cell, "item").errors
        assert is_short(errors), (cell, errors)
        assert kernel.print(NEXT) == "[1, 2, 3, 4, 5]\n"


# -- output --------------------------------------------------------------------------------

LATE = """
def late(name, path):
    print(name, "begins", flush=True)
    open(path).read()  # a pipe, until another cell opens it
    print(name, "ends")
    os.write(2, f"{name} wrote\\n".encode())
    logging.getLogger("cell").warning(name)
    return name
"""


def ended(name):
    return sorted([f"{name} begins", f"{name} ends", f"{name} wrote", f"logged {name}"])


def test_output_comes_to_the_cell_that_submitted(kernel, tmp_path):
    one, two = (str(tmp_path / name) for name in ("one", "two"))
    os.mkfifo(one)
    os.mkfifo(two)
    kernel.run(LATE)
    first = kernel.run(f"one = ex.submit(late, 'one', {one!r})")
    kernel.wait(first, "one begins")
    second = kernel.run(f"two = ex.submit(late, 'two', {two!r})")
    kernel.wait(second, "two begins")
    # Another cell waits for the first one's call, and its own thread reads.
    third = kernel.run(f"open({one!r}, 'w').close(); print('got', one.result())")
    assert kernel.lines(third) == ["got one"]
    assert kernel.lines(first) == ended("one")
    # Nobody waits: the dispatcher reads, while no cell runs.
    assert kernel.print(f"open({two!r}, 'w').close()") == ""
    kernel.wait(second, "logged two")
    kernel.wait(second, "two wrote")
    assert kernel.lines(second) == ended("two")


def test_so_it_does_whatever_the_way_of_calling(kernel):
    assert kernel.print("print(ex.submit(print, 'one').result())") == "one\nNone\n"
    printed = kernel.print("list(ex.map(lambda i: print('item', i), range(3)))")
    assert sorted(printed.splitlines()) == ["item 0", "item 1", "item 2"]
    code = "for _ in ex.stream(lambda: (print('step', i) for i in range(3))): pass"
    assert kernel.print(code) == "step 0\nstep 1\nstep 2\n"
    # What a lazy map submits first is the cell's that made it, the rest the reader's.
    made = kernel.run("each = ex.map(print, 'abcdef', buffersize=1)")
    kernel.wait(made, "a")
    assert kernel.print("list(each)").splitlines() == ["b", "c", "d", "e", "f"]
    # Of several calls in flight in one actor, text is of the one begun last.
    code = "class Node:\n    async def say(self, x): print(x)\n"
    code += "node = ex.actor(Node, max_concurrency=2)"
    assert kernel.print(code) == ""
    assert kernel.print("node.say('hello').result()") == "hello\n"


# -- room ----------------------------------------------------------------------------------

FULL = """
small = shmexec.Executor(2, max_shared_memory="32MB")
futures = [small.submit(np.sum, np.ones(1_000_000)) for _ in range(20)]
"""
SUM = "print(sum(future.result() for future in futures))"


def test_a_plain_cell_waits_for_room_and_one_that_awaits_does_not(kernel):
    assert kernel.print(FULL + SUM) == "20000000.0\n"
    (error,) = kernel.run("await asyncio.sleep(0)\n" + FULL).errors
    assert "SharedMemoryFull" in error
    assert kernel.print(SUM) == "20000000.0\n"


# -- code that changes ---------------------------------------------------------------------


def test_functions_and_classes_are_defined_again(kernel):
    for version in ("first", "second"):
        define = f"""
def inner(): return {version!r}
def outer(): return inner()
class Thing:
    def what(self): return {version!r}
thing = Thing()
"""
        ask = "print(*(f.result() for f in [ex.submit(outer), ex.submit(thing.what),"
        ask += " ex.submit(lambda: Thing().what()), ex.submit(lambda t: t, thing)]))"
        kernel.run(define)
        words = kernel.print(ask).split()
        assert words[:3] == [version] * 3
        same = "print(type(ex.submit(lambda t: t, thing).result()) is Thing)"
        assert kernel.print(same) == "True\n"


HELPER = "unit = 1\n\ndef helped():\n    return 'one'\n"
MODULE = """
import helper{n} as helper
from helper{n} import helped

def remember(value):
    global remembered
    remembered = value

def ask(x=0):
    return "one", helper.helped(), helped(), remembered

class Node:
    def __init__(self): self.calls = 0
    def ask(self):
        self.calls += 1
        return "one", self.calls
"""
IMPORT = """
import edited{n} as edited
from edited{n} import ask
mine = shmexec.Executor(2, initializer=edited.remember, initargs=(7,))
mine.broadcast(abs, 1)  # workers that start later would import what is in the file then
node = mine.actor(edited.Node)
%load_ext autoreload
"""
ASK = """
print(*mine.submit(edited.ask).result(), *mine.submit(lambda: ask()).result())
print(*list(mine.map(ask, range(2)))[1], *node.ask().result())
"""


def answer(module, helper, calls):
    one = f"{module} {helper} {helper} 7"
    return f"{one} {one}\n{one} {module} {calls}\n"


@pytest.mark.parametrize(("n", "mode"), [(1, "2"), (2, "2-"), (3, "3")])
def test_edited_modules_are_reloaded_in_workers(kernel, tmp_path, n, mode):
    """By IPython's newer way of reloading, by its older one, and with new names."""
    helper, module = tmp_path / f"helper{n}.py", tmp_path / f"edited{n}.py"
    code = MODULE.format(n=n)
    helper.write_text(HELPER)
    module.write_text(code)
    kernel.print(f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    kernel.run(IMPORT.format(n=n))
    kernel.print(f"%autoreload {mode}")
    assert kernel.print(ASK) == answer("one", "one", 1)
    # What the function calls is edited, not the function.
    helper.write_text(HELPER.replace("one", "second"))
    assert kernel.print(ASK) == answer("one", "second", 2)
    module.write_text(code.replace("one", "third"))
    assert kernel.print(ASK) == answer("third", "second", 3)
    # One that cannot be loaded leaves all as it was, here and in workers that have been
    # told of the one before, as they are with their next call.
    kernel.print("_ = mine.broadcast(edited.ask)")
    module.write_text(code.replace("one", "fourth") + "raise OSError\n")
    printed = kernel.print(ASK)
    told = "".join(line + "\n" for line in printed.splitlines() if " second " in line)
    assert told == answer("third", "second", 4)
    assert "cannot be reloaded here" not in printed
    module.write_text(code.replace("one", "fifth"))
    assert kernel.print(ASK) == answer("fifth", "second", 5)
    kernel.print("%autoreload 0\nmine.shutdown()")


# -- displays ------------------------------------------------------------------------------


def test_an_executor_is_displayed(kernel):
    (shown,) = kernel.run("ex.broadcast(abs, 1)\nex").shown
    assert shown["text/plain"].startswith("<shmexec.Executor 'shmexec': ready, 2 of 2")
    assert "private memory" in shown["text/html"]


PROGRESS = """
done = ex.map_batches(np.sqrt, np.ones(99), batch_size=9, progress=True)
print(len(list(ex.map(abs, range(7), progress=True))))
"""


def test_progress_is_shown_by_the_notebooks_own_bars(kernel):
    cell = kernel.run(PROGRESS)
    assert cell.printed.endswith("7\n")
    assert not cell.errors
    widgets = [each for each in cell.shown if "widget-view+json" in " ".join(each)]
    try:
        import ipywidgets  # noqa: F401
    except ImportError:
        assert "99/99" in cell.printed  # text on stderr
    else:
        assert len(widgets) == 2
