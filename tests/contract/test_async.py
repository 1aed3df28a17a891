"""Coroutines on both sides: in the worker, and where calls are awaited."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading

import numpy as np
import pytest

import shmexec
from tests.contract import calls
from tests.waiting import wait_until

pytestmark = pytest.mark.one_kind

_state: dict[str, object] = {}


async def loop_id():
    return id(asyncio.get_running_loop())


async def fail():
    await asyncio.sleep(0)
    raise ZeroDivisionError("later")


async def leave():
    raise SystemExit(3)


async def double(x):
    await asyncio.sleep(0)
    return 2 * x


async def start_background(path):
    async def tick():
        await asyncio.sleep(0.05)
        path.touch()

    _state["task"] = asyncio.ensure_future(tick())


async def hang(folder):
    try:
        (folder / str(os.getpid())).touch()
        await asyncio.sleep(60)
    finally:
        (folder / "ended").touch()


def test_a_coroutine_function_is_awaited_in_the_worker(executor):
    assert executor.submit(calls.double_later, 4).result() == 8
    array = executor.submit(calls.double_later, np.ones(50_000)).result()
    assert (array == 2).all()


def test_so_it_is_in_map_and_in_batches(executor):
    assert list(executor.map(double, range(20))) == [2 * x for x in range(20)]
    assert list(executor.map(double, range(20), chunksize=5)) == [*range(0, 40, 2)]
    rows = np.arange(1000.0).reshape(100, 10)
    assert (executor.map_batches(double, rows) == 2 * rows).all()
    assert executor.broadcast(double, 3)[0] == 6


def test_each_worker_has_one_loop(make_executor):
    executor = make_executor(1)
    assert len({executor.submit(loop_id).result() for _ in range(5)}) == 1


def test_its_exception_is_the_calls(executor):
    with pytest.raises(ZeroDivisionError, match="later") as caught:
        executor.submit(fail).result()
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(SystemExit):
        executor.submit(leave).result()
    assert executor.submit(double, 2).result() == 4


def test_what_a_call_leaves_on_the_loop_goes_on(make_executor, tmp_path):
    executor = make_executor(1)
    executor.submit(start_background, tmp_path / "ticked").result()
    # Nobody calls: the worker waits for its next message.
    wait_until((tmp_path / "ticked").exists)
    assert executor.submit(pow, 2, 3).result() == 8


def test_what_is_still_on_the_loop_at_the_end_is_cancelled(make_executor, tmp_path):
    def begin():
        return start()

    async def start():
        _state["task"] = asyncio.ensure_future(hang(tmp_path))
        await asyncio.sleep(0)

    with make_executor(1) as executor:
        executor.submit(begin).result()
    assert (tmp_path / "ended").exists()


def test_user_code_may_have_loops_of_its_own(make_executor):
    def run():
        return asyncio.run(double(2))

    executor = make_executor(1)
    assert [executor.submit(run).result() for _ in range(3)] == [4, 4, 4]
    assert executor.submit(double, 3).result() == 6
    assert executor.submit(run).result() == 4


@pytest.mark.parametrize("name", ["self", "fn", "submit_call", "options"])
def test_no_keyword_is_taken_by_asubmit(executor, name):
    result = asyncio.run(executor.asubmit(calls.collect, **{name: 5}))
    assert result == ((), {name: 5})


def test_asubmit_gives_the_result_or_raises(executor):
    async def main():
        assert await executor.asubmit(pow, 2, 5) == 32
        assert await executor.asubmit(double, 5) == 10
        assert await executor.options(priority=1).asubmit(pow, 2, exp=5) == 32
        with pytest.raises(ZeroDivisionError):
            await executor.asubmit(calls.ten_by, 0)
        return await asyncio.gather(*[executor.asubmit(pow, x, 2) for x in range(50)])

    assert asyncio.run(main()) == [x**2 for x in range(50)]


def test_a_second_loop_and_another_thread_use_the_same_pool(make_executor):
    executor = make_executor(1)
    results = []

    def use():
        results.append(asyncio.run(executor.asubmit(pow, 2, 5)))

    for _ in range(2):
        use()
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert results == [32] * 4


def test_a_cancelled_task_cancels_what_waits(make_executor, gate):
    executor = make_executor(1)

    async def main():
        first = asyncio.ensure_future(executor.asubmit(calls.through, gate, 1))
        await asyncio.to_thread(gate.arrived, 1)
        second = asyncio.ensure_future(executor.asubmit(pow, 2, 5))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.open()
        assert await first == 1

    asyncio.run(main())
    assert executor.stats().cancelled == 1


@pytest.mark.parametrize("fn", [hang, calls.touch_and_sleep])
def test_ten_cancelled_tasks_stop_their_calls(make_executor, tmp_path, fn):
    executor = make_executor(2)

    async def main():
        tasks = [
            asyncio.ensure_future(executor.asubmit(fn, tmp_path)) for _ in range(10)
        ]
        await asyncio.to_thread(wait_until, lambda: len([*tmp_path.iterdir()]) >= 2)
        for task in tasks:
            task.cancel()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in found)
        return await asyncio.gather(*[executor.asubmit(pow, 2, 5) for _ in range(4)])

    assert asyncio.run(main()) == [32] * 4


def test_amap_keeps_the_order_and_reads_no_further_than_needed(executor):
    read = []

    def source():
        for x in range(30):
            read.append(x)
            yield x

    async def main():
        found = []
        async for result in executor.amap(double, source(), buffersize=3):
            found.append(result)
            assert len(read) <= len(found) + 3
        return found

    assert asyncio.run(main()) == [2 * x for x in range(30)]


def test_amap_of_asynchronous_iterables_and_as_they_are_done(executor):
    async def source():
        for x in range(10):
            await asyncio.sleep(0)
            yield x

    async def main():
        pairs = [r async for r in executor.amap(pow, source(), [2] * 20)]
        unordered = [r async for r in executor.amap(double, source(), ordered=False)]
        return pairs, sorted(unordered)

    assert asyncio.run(main()) == ([x**2 for x in range(10)], [*range(0, 20, 2)])


def test_leaving_amap_early_stops_its_calls(make_executor, tmp_path):
    executor = make_executor(1)

    def first_then_hang(x):
        return x if x == 0 else calls.touch_and_sleep(tmp_path)

    async def main():
        results = executor.amap(first_then_hang, range(100), buffersize=4)
        async with contextlib.aclosing(results):
            async for result in results:
                assert result == 0
                break
        return await executor.asubmit(pow, 2, 5)

    assert asyncio.run(main()) == 32


def test_amap_raises_what_a_call_raised(executor):
    async def main():
        found = []
        with pytest.raises(ZeroDivisionError):
            async for result in executor.amap(calls.ten_by, [1, 2, 0, 5]):
                found.append(result)
        return found

    assert asyncio.run(main()) == [10, 5]


def test_an_executor_in_async_with(make_executor):
    async def main():
        async with make_executor(1) as executor:
            assert await executor.asubmit(pow, 2, 5) == 32
        with pytest.raises(shmexec.PoolClosed):
            executor.submit(pow, 2, 5)

    asyncio.run(main())


def test_asubmit_waits_for_room_and_the_loop_goes_on(make_executor):
    executor = make_executor(1, max_shared_memory="8MB")
    array = np.ones(400_000)  # 3.2 MB

    async def main():
        found = await asyncio.gather(
            *[executor.asubmit(np.sum, array) for _ in range(8)]
        )
        with pytest.raises(shmexec.SharedMemoryFull):
            await executor.asubmit(np.sum, np.ones(2_000_000))
        return found

    assert asyncio.run(main()) == [400_000.0] * 8


def in_a_thread_of_the_call():
    """Runs a coroutine in an executor of its own, in another thread."""
    came = []

    def run():
        with shmexec.Executor(in_process=True) as executor:
            came.append(executor.submit(double, 4).result())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return came


def test_the_first_event_loop_of_a_worker_may_be_another_threads(make_executor):
    executor = make_executor(1)
    assert executor.submit(in_a_thread_of_the_call).result() == [8]
    assert executor.submit(double, 5).result() == 10
