"""Whether a notebook's cell runs, where none does."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType, SimpleNamespace

import pytest

from shmexec.runtime import cells
from shmexec.runtime.waiting import may_block


@pytest.fixture
def _imported(monkeypatch):
    """The kernel's package is there, as in programs that only import it."""
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    app = SimpleNamespace(initialized=lambda: False)
    module = SimpleNamespace(IPKernelApp=app)
    monkeypatch.setitem(sys.modules, "ipykernel.kernelapp", module)


async def ask():
    return cells.runs_cell(), may_block()


@pytest.mark.usefixtures("_imported")
def test_an_event_loop_is_no_cell():
    assert asyncio.run(ask()) == (False, False)
    assert may_block()
    assert not cells.is_kernel()


@pytest.mark.usefixtures("_imported")
def test_a_callback_of_a_loop_is_none_either():
    async def main():
        came = asyncio.get_running_loop().create_future()
        came.get_loop().call_soon(lambda: came.set_result(cells.runs_cell()))
        return await came

    assert asyncio.run(main()) is False


@pytest.mark.usefixtures("_imported")
def test_a_coroutine_of_the_kernels_is_one():
    names = {"__name__": "ipykernel.kernelbase", "runs_cell": cells.runs_cell}
    exec("async def shell(): return runs_cell()", names)
    assert asyncio.run(names["shell"]()) is True


def test_without_ipython_nothing_is_watched(monkeypatch):
    monkeypatch.delitem(sys.modules, "IPython.core.getipython", raising=False)
    before = len(cells._shells)
    cells.attend()
    assert len(cells._shells) == before
