"""``stream``: the items of a generator, as they are yielded."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest

import shmexec
from tests.contract import calls
from tests.waiting import wait_until


def count(n):
    yield from range(n)


async def acount(n):
    for i in range(n):
        await asyncio.sleep(0)
        yield i


def fail_after(n):
    yield from range(n)
    raise ValueError("no more")


async def afail_after(n):
    for i in range(n):
        yield i
    raise ValueError("no more")


def noted(folder, n):
    """Leaves a file for each item it has made, and one when it is closed."""
    try:
        for i in range(n):
            (folder / f"item-{i}").touch()
            yield i
    finally:
        (folder / "closed").touch()


async def anoted(folder, n):
    try:
        for i in range(n):
            (folder / f"item-{i}").touch()
            yield i
    finally:
        await asyncio.sleep(0)
        (folder / "closed").touch()


def arrays(n, size):
    for i in range(n):
        yield np.full(size, float(i))


def kept(n, size):
    array = np.zeros(size)
    for i in range(n):
        array[:] = i
        yield array


def dies_after(n):
    yield from range(n)
    os.kill(os.getpid(), signal.SIGKILL)


def hangs_after(n):
    yield from range(n)
    time.sleep(60)


class Countdown:
    """An iterator that is no generator."""

    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return self

    def __next__(self):
        if not self.n:
            raise StopIteration
        self.n -= 1
        return self.n


async def collect(stream):
    return [item async for item in stream]


BOTH = pytest.mark.parametrize("fn", [count, acount])


@BOTH
@pytest.mark.parametrize("buffersize", [1, 2, 16, 1000])
def test_all_items_come_in_order(executor, fn, buffersize):
    assert list(executor.stream(fn, 100, buffersize=buffersize)) == [*range(100)]
    assert list(executor.stream(fn, 0, buffersize=buffersize)) == []


@BOTH
def test_they_can_be_awaited(executor, fn):
    assert asyncio.run(collect(executor.stream(fn, 40, buffersize=3))) == [*range(40)]


def test_what_is_iterable_can_be_streamed(executor):
    assert list(executor.stream(Countdown, 3)) == [2, 1, 0]
    assert list(executor.stream(lambda: "abc")) == ["a", "b", "c"]
    with pytest.raises(TypeError, match="returned int"):
        next(executor.stream(pow, 2, 3))


def test_a_stream_ends_once(executor):
    stream = executor.stream(count, 1)
    assert [next(stream), next(stream, None), next(stream, None)] == [0, None, None]


@pytest.mark.parametrize("fn", [fail_after, afail_after])
def test_an_error_comes_after_the_items_before_it(executor, fn):
    stream = executor.stream(fn, 3, buffersize=2)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no more") as caught:
        next(stream)
    assert "fail_after" in str(caught.value.__cause__)
    assert list(stream) == []
    assert executor.submit(pow, 2, 3).result() == 8


def test_the_first_item_comes_before_the_second_is_made(make_executor, tmp_path):
    stream = make_executor(1).stream(noted, tmp_path, 3, buffersize=1)
    assert next(stream) == 0
    # Taking it gave credit for the next; but not for the one behind that.
    wait_until((tmp_path / "item-1").exists)
    assert not (tmp_path / "item-2").exists()
    assert list(stream) == [1, 2]


def test_the_worker_is_no_more_than_the_buffer_ahead(make_executor, tmp_path):
    executor = make_executor(1)
    stream = executor.stream(noted, tmp_path, 100, buffersize=4)
    taken = [next(stream) for _ in range(10)]
    wait_until((tmp_path / "item-13").exists)
    assert taken == [*range(10)]
    assert not (tmp_path / "item-14").exists()
    assert list(stream) == [*range(10, 100)]


@pytest.mark.parametrize("fn", [noted, anoted])
@pytest.mark.parametrize("how", ["close", "drop", "with", "aclose"])
def test_leaving_early_closes_the_generator_and_frees_the_worker(
    make_executor, tmp_path, fn, how
):
    executor = make_executor(1)
    stream = executor.stream(fn, tmp_path, 1000, buffersize=2)
    assert next(stream) == 0
    if how == "close":
        stream.close()
        assert list(stream) == []
    elif how == "with":
        with stream:
            pass
    elif how == "aclose":
        asyncio.run(stream.aclose())
    else:
        del stream
        gc.collect()
    assert executor.submit(pow, 2, 3).result() == 8  # by the same worker
    assert (tmp_path / "closed").exists()
    assert not (tmp_path / "item-900").exists()


def test_one_that_has_not_begun_never_does(make_executor, gate, tmp_path):
    executor = make_executor(1)
    first = executor.submit(calls.through, gate)
    stream = executor.stream(noted, tmp_path, 3)
    stream.close()
    gate.open()
    first.result()
    assert executor.submit(pow, 2, 3).result() == 8
    assert not (tmp_path / "item-0").exists()


def test_what_its_finally_raises_harms_nobody(make_executor):
    def generate():
        try:
            yield 1
            yield 2
        finally:
            raise ValueError

    executor = make_executor(1)
    with executor.stream(generate, buffersize=1) as stream:
        assert next(stream) == 1
    assert executor.submit(pow, 2, 3).result() == 8


def test_an_item_that_cannot_be_pickled_ends_it(executor):
    def generate():
        yield 1
        yield threading.Lock()

    stream = executor.stream(generate)
    assert next(stream) == 1
    with pytest.raises(shmexec.SerializationError, match="item"):
        next(stream)
    assert executor.submit(pow, 2, 3).result() == 8


def test_arrays_are_the_consumers_own(executor):
    found = list(executor.stream(arrays, 20, 50_000, buffersize=3))
    assert all((array == i).all() for i, array in enumerate(found))
    found[3][:] = -1
    assert (found[4] == 4).all()


def test_an_array_that_the_generator_changes_later_is_as_it_was_yielded(executor):
    for i, array in enumerate(executor.stream(kept, 20, 50_000, buffersize=5)):
        assert (array == i).all()


def test_memory_is_bounded_by_the_buffer(make_executor):
    size = 1 << 17  # 1 MB
    executor = make_executor(1)
    most = 0
    for i, array in enumerate(executor.stream(arrays, 200, size, buffersize=4)):
        assert array[0] == array[-1] == i
        if i >= 190:  # not before: to look makes memory known that was given back
            most = max(most, executor.stats().shared_memory_used)
    # Of 200 MB: the buffer's, the one in hand, the one that is made, and quota to spare.
    assert most <= 32 << 20


def test_the_worker_that_dies_fails_it_after_its_items(make_executor):
    executor = make_executor(1)
    stream = executor.stream(dies_after, 3)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(shmexec.WorkerDied, match="dies_after"):
        next(stream)
    assert executor.submit(pow, 2, 3).result() == 8


def test_it_is_not_retried(make_executor):
    executor = make_executor(1, retries=3)
    with pytest.raises(shmexec.WorkerDied):
        list(executor.stream(dies_after, 1))


def test_its_time_out_ends_it(make_executor):
    executor = make_executor(1)
    list(executor.stream(count, 1))  # it knows this module: that takes its time
    stream = executor.options(timeout=2).stream(hangs_after, 2)
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(shmexec.CallTimeout):
        next(stream)
    assert executor.submit(pow, 2, 3).result() == 8


def test_cancel_stops_it_in_the_middle_of_a_step(make_executor):
    executor = make_executor(1)
    stream = executor.stream(hangs_after, 1)
    assert next(stream) == 0
    stream.cancel()
    assert executor.submit(pow, 2, 3).result() == 8


def test_a_cancelled_task_stops_its_stream(make_executor):
    executor = make_executor(1)

    async def main():
        stream = executor.stream(hangs_after, 1)
        assert await anext(stream) == 0
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return await executor.asubmit(pow, 2, 3)

    assert asyncio.run(main()) == 8


def test_an_interrupt_as_an_item_comes_ends_it(make_executor, monkeypatch, tmp_path):
    executor = make_executor(1)
    stream = executor.stream(noted, tmp_path, 1000, buffersize=2)
    first = stream._items[0]
    assert wait_until(first.done)

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(first, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    monkeypatch.undo()
    assert list(stream) == []
    assert executor.submit(pow, 2, 3).result() == 8


def test_shutdown_closes_it(make_executor, tmp_path):
    executor = make_executor(1)
    stream = executor.stream(noted, tmp_path, 1000, buffersize=2)
    assert next(stream) == 0
    executor.shutdown()
    assert (tmp_path / "closed").exists()
    with pytest.raises(shmexec.PoolClosed, match="before the stream had ended"):
        list(stream)


def test_one_that_waits_for_a_worker_is_cancelled_by_shutdown(make_executor, gate):
    executor = make_executor(1)
    first = executor.submit(calls.through, gate)
    stream = executor.stream(count, 3)
    executor.shutdown(wait=False)
    gate.open()
    first.result()
    with pytest.raises(CancelledError):
        next(stream)


def test_one_that_was_sent_does_not_begin_after_shutdown(make_executor, tmp_path):
    executor = make_executor(1)
    pid = executor.submit(calls.pid).result()
    os.kill(pid, signal.SIGSTOP)
    stream = executor.stream(noted, tmp_path, 1000, buffersize=2)
    executor.shutdown(wait=False)
    os.kill(pid, signal.SIGKILL)  # it had not begun, and would go to another worker
    executor.shutdown()
    with pytest.raises(CancelledError):
        next(stream)
    assert not (tmp_path / "item-0").exists()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_has_no_part_in_it(make_executor):
    stream = make_executor(1).stream(count, 50, buffersize=2)
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with stream, pytest.raises(shmexec.PoolClosed, match="parent of this"):
                list(stream)
            stream._ended = False
            stream.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert list(stream) == [*range(3, 50)]


def test_it_keeps_its_executor(make_executor):
    def stream():
        with_no_other_reference = shmexec.Executor(1)
        return with_no_other_reference.stream(count, 50, buffersize=1)

    assert list(stream()) == [*range(50)]
    gc.collect()


def test_many_at_once_each_with_its_own_items(executor):
    wrong = []

    def use(n):
        if list(executor.stream(count, n, buffersize=3)) != [*range(n)]:
            wrong.append(n)

    threads = [threading.Thread(target=use, args=(n,)) for n in range(20, 28)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_bad_buffersize_is_refused(executor):
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="buffersize"):
            executor.stream(count, 3, buffersize=wrong)
    with pytest.raises(TypeError, match="buffersize"):
        executor.stream(count, 3, buffersize="many")
    with pytest.raises(TypeError, match="callable"):
        executor.stream(count(3))


def test_no_room_for_an_item_ends_it(make_executor):
    executor = make_executor(1, max_shared_memory="4MB")
    stream = executor.stream(arrays, 8, 1 << 17, buffersize=8)
    held = []
    with pytest.raises(shmexec.SharedMemoryFull):
        held.extend(stream)
    del held, stream
    assert executor.submit(pow, 2, 3).result() == 8


def test_in_this_process():
    with shmexec.Executor(in_process=True) as executor:
        assert list(executor.stream(count, 3)) == [0, 1, 2]
        assert list(executor.stream(acount, 3)) == [0, 1, 2]
        assert asyncio.run(collect(executor.stream(acount, 3))) == [0, 1, 2]
        assert executor.submit(calls.double_later, 4).result() == 8
