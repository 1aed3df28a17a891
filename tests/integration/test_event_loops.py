"""Under other people's event loops: ``run_in_executor``, ``wrap_future``, anyio, trio."""

from __future__ import annotations

import asyncio

import anyio
import anyio.to_thread
import numpy as np
import pytest

import shmexec
from tests.contract import calls
from tests.waiting import LONG


def double(x):
    return 2 * x


@pytest.fixture(scope="module")
def ex():
    with shmexec.Executor(1) as executor:
        executor.submit(calls.pid).result()
        yield executor


@pytest.fixture
def fresh_ex():
    with shmexec.Executor(1) as executor:
        yield executor


async def in_executor(ex, fn, *args):
    """As the README has it, for any event loop that anyio runs on."""
    future = ex.submit(fn, *args)
    try:
        return await anyio.to_thread.run_sync(future.result, abandon_on_cancel=True)
    except anyio.get_cancelled_exc_class():
        future.cancel(running=True)
        raise


def test_run_in_executor(ex):
    async def main():
        loop = asyncio.get_running_loop()
        array = await loop.run_in_executor(ex, double, np.ones(100_000))
        assert (array == 2).all()
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(ex, divmod, 1, 0)

    asyncio.run(main())


def test_what_waits_is_cancelled_with_its_task_and_what_runs_goes_on(ex, gate):
    async def main():
        loop = asyncio.get_running_loop()
        runs = loop.run_in_executor(ex, calls.through, gate, 1)
        await asyncio.to_thread(gate.arrived)
        waits = ex.submit(calls.pid)
        task = asyncio.wrap_future(waits)
        task.cancel()
        runs.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)  # the loop tells the call's own future now
        gate.open()
        return waits

    assert asyncio.run(main()).cancelled()
    assert ex.submit(calls.add, 1, 2).result() == 3


def test_anyio(ex):
    async def one(number, found):
        found.append(await in_executor(ex, calls.add, number, np.ones(50_000)))

    async def main():
        found = []
        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(one, number, found)
        assert sorted(array[-1] for array in found) == [1, 2, 3, 4, 5]

    anyio.run(main)


def test_a_cancelled_scope_stops_the_call(fresh_ex, gate):
    async def main():
        with anyio.fail_after(LONG):
            async with anyio.create_task_group() as group:
                group.start_soon(in_executor, fresh_ex, calls.stay, gate)
                await anyio.to_thread.run_sync(gate.arrived)
                group.cancel_scope.cancel()

    anyio.run(main)
    # The only worker, or the one in its place, is free.
    assert fresh_ex.submit(calls.add, 1, 2).result(LONG) == 3


def test_trio(run_script):
    pytest.importorskip("trio")
    # In a program of its own, since trio keeps its threads for a while.
    done = run_script(TRIO)
    assert done.stdout == "42\nTrue\n", done.stderr


TRIO = """
import time

import anyio, shmexec
from tests.integration.test_event_loops import in_executor

async def main(ex):
    print(await in_executor(ex, abs, -42))
    async with anyio.create_task_group() as group:
        group.start_soon(in_executor, ex, time.sleep, 60)
        while not ex.stats().running:
            await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    print(ex.submit(pow, 2, 3).result(20) == 8)

with shmexec.Executor(1) as ex:
    anyio.run(main, ex, backend="trio")
"""


def test_asubmit_under_anyio_is_stopped_with_its_scope(fresh_ex, gate):
    async def main():
        with anyio.fail_after(LONG):
            async with anyio.create_task_group() as group:
                group.start_soon(fresh_ex.asubmit, calls.stay, gate)
                await anyio.to_thread.run_sync(gate.arrived)
                group.cancel_scope.cancel()

    anyio.run(main)
    assert fresh_ex.submit(calls.add, 1, 2).result(LONG) == 3
