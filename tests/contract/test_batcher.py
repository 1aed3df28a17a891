"""``batcher``: single items in, calls on batches of them."""

from __future__ import annotations

import asyncio
import gc
import os
import queue
import threading
import weakref
from concurrent.futures import CancelledError
from typing import Any, NamedTuple

import numpy as np
import pytest

import shmexec
from tests.contract import calls
from tests.waiting import LONG, wait_until

pytestmark = pytest.mark.one_kind

LARGE = 50_000  # bytes and more: a row that is copied outside of the lock


class Pair(NamedTuple):
    a: Any
    b: Any


@pytest.fixture
def here():
    """An executor without processes: for what happens before there are any."""
    with shmexec.Executor(in_process=True) as executor:
        yield executor


@pytest.fixture
def busy(make_executor, gate):
    """Make a batcher of an executor with one worker, which is at work until the gate opens.

    Its function returns what ``fn`` does, after it has passed the gate.
    """
    made = []

    def make(fn=calls.same, executor=None, **settings):
        executor = executor or make_executor(1)

        def run(*args, **kwargs):
            gate.wait()
            return fn(*args, **kwargs)

        batcher = executor.batcher(run, **settings)
        made.append(batcher)
        return batcher

    yield make
    gate.open()
    for batcher in made:
        batcher.close()


def occupy(batcher, gate):
    """Have the worker at work on a batch of one."""
    first = batcher(np.zeros(0))
    gate.arrived()
    return first


def in_threads(number, fn):
    threads = [threading.Thread(target=fn, args=(i,)) for i in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)


# -- results -----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 1_000, 20_000])
def test_each_thread_gets_the_result_of_its_items(executor, size):
    results = {}

    with executor.batcher(lambda x: x * 2, max_batch_size=16) as double:

        def use(thread):
            futures = [double(np.full(size, thread * 100.0 + i)) for i in range(20)]
            results[thread] = [future.result(LONG) for future in futures]

        in_threads(8, use)
        stats = double.stats()

    for thread in range(8):
        for i, result in enumerate(results[thread]):
            assert result.shape == (size,)
            assert (result == (thread * 100 + i) * 2).all()
    assert stats.items == 160
    assert sum(n * many for n, many in stats.batch_sizes.items()) == 160
    assert max(stats.batch_sizes) <= 16
    assert (stats.waiting, stats.running, stats.failed) == (0, 0, 0)


@pytest.mark.every_start
def test_what_waits_while_the_worker_is_busy_is_one_batch(busy, gate):
    batcher = busy(lambda x: [len(x)] * len(x))
    first = occupy(batcher, gate)
    futures = [batcher(np.arange(3.0)) for _ in range(10)]
    gate.open()
    assert first.result(LONG) == 1
    assert [future.result(LONG) for future in futures] == [10] * 10
    assert batcher.stats().batch_sizes == {1: 1, 10: 1}


def test_no_batch_is_larger_than_it_may_be(busy, gate):
    batcher = busy(lambda x: [len(x)] * len(x), max_batch_size=4)
    occupy(batcher, gate)
    futures = [batcher(np.arange(3.0)) for _ in range(10)]
    gate.open()
    assert [future.result(LONG) for future in futures] == [4] * 8 + [2] * 2


@pytest.mark.parametrize("nbytes", [8, 4_000, LARGE])
def test_items_are_as_they_were_when_they_were_submitted(busy, gate, nbytes):
    batcher = busy()
    occupy(batcher, gate)
    item = np.zeros(nbytes // 8)
    futures = []
    for i in range(20):
        item[:] = i
        futures.append(batcher(item))
    item[:] = -1
    gate.open()
    for i, future in enumerate(futures):
        assert (future.result(LONG) == i).all()


def test_the_arrays_are_the_functions_own(executor):
    def change(x):
        x += 1
        return x

    with executor.batcher(change) as batcher:
        item = np.zeros(LARGE // 8)
        result = batcher(item).result(LONG)
    assert (result == 1).all()
    assert result.flags.writeable
    assert (item == 0).all()


@pytest.mark.parametrize("nbytes", [8, LARGE])
def test_items_of_several_arrays(executor, nbytes):
    a, b = np.arange(nbytes // 8, dtype=float), np.arange(3)

    with executor.batcher(lambda a, b: (a * 2, b.sum(axis=1))) as batcher:
        for item in (a, b), Pair(a, b), {"b": b, "a": a}, {"a": a, "b": b}:
            doubled, total = batcher(item).result(LONG)
            assert (doubled == a * 2).all()
            assert total == 3
    with executor.batcher(lambda a, b: {"a": a, "b": b}) as batcher:
        result = batcher({"b": b, "a": a}).result(LONG)
        assert (result["a"] == a).all()
        assert (result["b"] == b).all()


def test_numbers_and_lists_are_items(executor):
    with executor.batcher(lambda x: x + x) as batcher:
        assert batcher(3).result(LONG) == 6
        assert batcher(1.5).result(LONG) == 3.0
        assert batcher(np.float32(2)).result(LONG).dtype == np.float32
        assert batcher([1, 2]).result(LONG).tolist() == [2, 4]
        assert batcher(np.array([], dtype=int)).result(LONG).shape == (0,)
        assert batcher(np.array([{}, "x"], object)[1:]).result(LONG).tolist() == ["xx"]


@pytest.mark.parametrize(
    "item", ["text", b"bytes", None, object(), (), {}, {1: 2}, (1, "a"), [1, None]]
)
def test_other_things_are_none(here, item):
    with here.batcher(calls.same) as batcher:
        with pytest.raises(TypeError, match="item"):
            batcher(item)
        with pytest.raises(TypeError, match="item"):
            batcher(np.ma.masked_array([1, 2], [0, 1]))
        assert batcher.stats().items == 0


def test_dates_and_records_and_strided_arrays(executor):
    day = np.array(["2020-01-01", "2021-02-03"], "M8[D]")
    record = np.array([(1, 2.5)], dtype=[("i", "i4"), ("x", "f8")])
    text = np.array("abc")
    turned = np.arange(12.0).reshape(3, 4).T
    with executor.batcher(calls.same) as batcher:
        for item in day, record, text, turned, turned[::-2], np.array(1 + 2j):
            result = batcher(item).result(LONG)
            assert np.asarray(result).dtype == item.dtype
            assert np.array_equal(result, item)


def test_shapes_and_dtypes_go_apart_oldest_first(busy, gate):
    batcher = busy(lambda x: [(x.shape, x.dtype.char)] * len(x))
    occupy(batcher, gate)
    order = []
    for item in np.ones(2), np.ones(3), np.ones(2), np.ones(2, "f"), np.ones(3):
        future = batcher(item)
        future.add_done_callback(lambda future: order.append(future.result()))
    gate.open()
    batcher.close()
    assert order == [((2, 2), "d")] * 2 + [((2, 3), "d")] * 2 + [((1, 2), "f")]


def test_functions_that_are_no_python_functions(executor):
    with executor.batcher(np.sqrt) as root:
        assert root(4.0).result(LONG) == 2.0


def test_results_are_views_of_one(busy, gate):
    batcher = busy()
    occupy(batcher, gate)
    futures = [batcher(np.full(LARGE // 8, float(i))) for i in range(3)]
    gate.open()
    a, b, _ = [future.result(LONG) for future in futures]
    address = [x.__array_interface__["data"][0] for x in (a, b)]
    assert address[1] - address[0] == a.nbytes


# -- errors --------------------------------------------------------------------------------


def test_an_error_is_that_of_all_items_each_with_its_own(busy, gate):
    batcher = busy(lambda x: calls.fail(KeyError("no", 1)))
    futures = [occupy(batcher, gate)]
    futures += [batcher(1.0) for _ in range(5)]
    gate.open()
    errors = [future.exception(LONG) for future in futures]
    assert [type(error) for error in errors] == [KeyError] * 6
    assert [error.args for error in errors] == [("no", 1)] * 6
    assert len({id(error) for error in errors}) == 6
    assert errors[-1].__notes__ == ["a batch of 5 items failed with it"]
    assert "calls.py" in str(errors[-1].__cause__)
    assert batcher.stats().failed == 6


def test_an_exception_that_cannot_be_copied_is_shared(here):
    class OddError(Exception):
        def __init__(self, a, b):
            super().__init__("odd")

    error = OddError(1, 2)
    with here.batcher(
        lambda _: calls.fail(error), max_delay=1000, max_queue=3
    ) as batcher:
        futures = [batcher(1.0) for _ in range(3)]
        assert all(future.exception(LONG) is error for future in futures)


@pytest.mark.parametrize("as_array", [False, True])
def test_one_item_fails_alone(busy, gate, as_array):
    def check(x):
        results = [ValueError(f"not {v}") if v == 2 else v * 10 for v in x]
        return np.array(results, object) if as_array else results

    batcher = busy(check)
    gate.open()
    futures = [batcher(float(i)) for i in range(5)]
    assert [f.result(LONG) for f in futures if f is not futures[2]] == [0, 10, 30, 40]
    with pytest.raises(ValueError, match=r"not 2.0"):
        futures[2].result(LONG)
    assert batcher.stats().failed == 1


@pytest.mark.parametrize(
    "result",
    [
        np.zeros(2),
        np.zeros(()),
        [1, 2],
        (np.zeros(3), np.zeros(2)),
        {"a": np.zeros(2)},
        (),
        {},
        5,
        None,
        "abc",
    ],
)
def test_a_result_that_cannot_be_split_is_an_error(here, result):
    with here.batcher(lambda _: result, max_delay=1000, max_queue=3) as batcher:
        for future in [batcher(1.0) for _ in range(3)]:
            with pytest.raises(ValueError, match="a batch of 3 items"):
                future.result(LONG)


def test_a_worker_killed_in_mid_batch(busy, gate):
    def die(x):
        if len(x) == 4:
            calls.kill_me()
        return x

    batcher = busy(die)
    first = occupy(batcher, gate)
    doomed = [batcher(1.0) for _ in range(4)]
    gate.open()
    for future in doomed:
        with pytest.raises(shmexec.WorkerDied) as caught:
            future.result(LONG)
        assert caught.value.exitcode == -9
        assert "a batch of 4 items" in caught.value.__notes__[-1]
    assert first.result(LONG).shape == (0,)
    assert batcher(2.0).result(LONG) == 2


def test_a_batch_may_run_again_on_the_same_items(make_executor, tmp_path):
    mark = tmp_path / "mark"

    def die_once(x):
        x += 1
        if not mark.exists():
            mark.touch()
            calls.kill_me()
        return x

    executor = make_executor(1)
    with executor.options(retries=1).batcher(die_once) as batcher:
        assert (batcher(np.zeros(LARGE // 8)).result(LONG) == 1).all()


def test_a_batch_that_takes_too_long(make_executor, gate):
    executor = make_executor(1)
    with executor.options(timeout=0.2).batcher(lambda _: calls.stay(gate)) as batcher:
        with pytest.raises(shmexec.CallTimeout) as caught:
            batcher(1.0).result(LONG)
    assert caught.value.seconds == 0.2


def test_a_function_that_cannot_be_pickled(make_executor):
    lock = threading.Lock()
    with make_executor(1).batcher(lambda x: lock and x) as batcher:
        for _ in range(3):
            with pytest.raises(shmexec.SerializationError, match="lock"):
                batcher(1.0).result(LONG)


def test_a_pool_that_cannot_start(make_executor):
    executor = make_executor(1, max_restarts=1, initializer=os._exit, initargs=(3,))
    with executor.batcher(calls.same) as batcher:
        for _ in range(3):
            with pytest.raises(shmexec.PoolBroken):
                batcher(1.0).result(LONG)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"max_batch_size": 0}, ValueError),
        ({"max_batch_size": 1.5}, TypeError),
        ({"max_delay": -1}, ValueError),
        ({"max_delay": float("nan")}, ValueError),
        ({"max_delay": "1"}, TypeError),
        ({"max_queue": 0}, ValueError),
        ({"on_full": "drop"}, ValueError),
    ],
)
def test_settings_are_checked(here, settings, error):
    with pytest.raises(error, match=next(iter(settings))):
        here.batcher(calls.same, **settings)
    with pytest.raises(TypeError, match="callable"):
        here.batcher(3)


# -- cancelling --------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [8, LARGE])
def test_cancelled_items_are_dropped(busy, gate, nbytes):
    batcher = busy(lambda x: [(float(row[0]), len(x)) for row in x])
    occupy(batcher, gate)
    futures = [batcher(np.full(nbytes // 8, float(i))) for i in range(9)]
    gone = [0, 3, 4, 8]
    assert all(futures[i].cancel() for i in gone)
    assert futures[0].cancel()  # again
    gate.open()
    batcher.close()
    for i, future in enumerate(futures):
        if i in gone:
            assert future.cancelled()
        else:
            assert future.result(LONG) == (i, 5)
    stats = batcher.stats()
    assert (stats.cancelled, stats.items) == (4, 10)
    assert stats.batch_sizes == {1: 1, 5: 1}


def test_a_batch_of_cancelled_items_does_not_run(busy, gate):
    batcher = busy(max_batch_size=2)
    occupy(batcher, gate)
    futures = [batcher(1.0) for _ in range(5)]
    assert all(future.cancel() for future in futures)
    assert batcher.stats().waiting == 0
    last = batcher(2.0)
    gate.open()
    assert last.result(LONG) == 2
    assert batcher.stats().batches == 2


def test_who_waits_for_an_item(busy, gate):
    batcher = busy()
    occupy(batcher, gate)
    future, gone = batcher(1.0), batcher(2.0)
    for wait in future.result, future.exception:
        with pytest.raises(TimeoutError):
            wait(0.01)
        with pytest.raises(TimeoutError):
            wait(0)
    assert not future._waiters
    seen = []

    def use(thread):
        try:
            (gone if thread else future).result(LONG)
        except CancelledError:
            seen.append("cancelled")
        else:
            seen.append("done")

    threads = [threading.Thread(target=use, args=(i,)) for i in (0, 0, 1, 1)]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: len(future._waiters) == len(gone._waiters) == 2)
    gone.cancel()
    assert wait_until(lambda: seen == ["cancelled"] * 2)
    gate.open()
    for thread in threads:
        thread.join(LONG)
    assert seen[2:] == ["done"] * 2


def test_memory_is_given_back_if_the_last_item_is_cancelled(make_executor):
    executor = make_executor(1)
    with executor.batcher(
        lambda x: x[:, 0], max_delay=1000, max_batch_size=2
    ) as batcher:
        item = np.ones(LARGE // 8)
        pair = [batcher(item), batcher(item)]
        last = batcher(item)
        assert [future.result(LONG) for future in pair] == [1, 1]
        last.cancel()
        assert wait_until(lambda: not batcher._gatherer._unsettled)
        assert not batcher._gatherer._spares


def test_an_item_that_runs_is_not_cancelled(busy, gate):
    batcher = busy()
    first = occupy(batcher, gate)
    assert first.running()
    assert not first.cancel()
    assert not first.cancel(running=True)
    gate.open()
    assert first.result(LONG).shape == (0,)


# -- the queue ---------------------------------------------------------------------------------


def test_a_full_queue_refuses(busy, gate):
    batcher = busy(max_queue=3, on_full="refuse")
    occupy(batcher, gate)
    futures = [batcher(1.0) for _ in range(3)]
    with pytest.raises(shmexec.QueueFull, match="3 items wait") as caught:
        batcher(1.0)
    assert caught.value.limit == 3
    assert isinstance(caught.value, queue.Full)
    futures[1].cancel()
    futures[1] = batcher(2.0)
    with pytest.raises(shmexec.QueueFull):
        batcher(1.0)
    gate.open()
    assert [future.result(LONG) for future in futures] == [1, 2, 1]


def test_a_full_queue_waits(busy, gate):
    batcher = busy(max_queue=3, max_batch_size=2)
    occupy(batcher, gate)
    results = []

    def use(thread):
        results.append(batcher(float(thread)).result(LONG))

    threads = [threading.Thread(target=use, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: len(batcher._gatherer._gates) == 17)
    assert batcher.stats().waiting == 3
    gate.open()
    for thread in threads:
        thread.join(LONG)
    assert sorted(results) == list(range(20))


def test_who_waits_for_room_is_told_of_the_end(busy, gate):
    batcher = busy(max_queue=1)
    occupy(batcher, gate)
    batcher(1.0)
    errors = []

    def use():
        with pytest.raises(shmexec.PoolClosed, match="the batcher was closed"):
            batcher(2.0)
        errors.append(None)

    thread = threading.Thread(target=use)
    thread.start()
    assert wait_until(lambda: batcher._gatherer._gates)
    batcher.close(wait=False)
    thread.join(LONG)
    assert errors == [None]


def test_nobody_waits_in_a_callback_or_under_an_event_loop(busy, gate):
    batcher = busy(max_queue=1)
    raised = []

    def more(_):
        futures.append(batcher(1.0))
        try:
            while True:
                futures.append(batcher(2.0))
        except shmexec.QueueFull as error:
            raised.append(error)

    futures = []
    first = occupy(batcher, gate)
    first.add_done_callback(more)
    gate.open(1)
    assert wait_until(lambda: raised)

    async def main():
        with pytest.raises(shmexec.QueueFull):
            while True:
                futures.append(batcher(2.0))

    asyncio.run(main())
    gate.open()
    for future in futures:
        assert future.result(LONG) in (1, 2)


# -- time --------------------------------------------------------------------------------------


def test_a_batch_waits_for_more_items(here):
    with here.batcher(lambda x: [len(x)] * len(x), max_delay=0.4) as batcher:
        futures = [batcher(1.0) for _ in range(7)]
        assert [future.result(LONG) for future in futures] == [7] * 7


def test_a_full_batch_waits_no_longer(executor):
    with executor.batcher(
        lambda x: [len(x)] * len(x), max_delay=1000, max_batch_size=4
    ) as batcher:
        late, soon = batcher(1.0), [batcher(2) for _ in range(8)]
        assert [future.result(LONG) for future in soon] == [4] * 8
        assert not late.running()
    assert late.result() == 1


def test_a_full_queue_does_not_wait_for_more(executor):
    with executor.batcher(calls.same, max_delay=1000, max_queue=3) as batcher:
        assert [batcher(1.0) for _ in range(3)][-1].result(LONG) == 1


def test_closing_ends_the_delay(executor):
    batcher = executor.batcher(calls.same, max_delay=1000)
    future = batcher(1.0)
    assert not future.running()
    batcher.close()
    assert future.done()
    assert future.result() == 1


# -- the end -----------------------------------------------------------------------------------


def test_closed_it_takes_no_more(busy, gate):
    batcher = busy()
    first = occupy(batcher, gate)
    waiting = batcher(1.0)
    batcher.close(wait=False)
    with pytest.raises(shmexec.PoolClosed, match="takes no more items"):
        batcher(1.0)
    gate.open()
    batcher.close()
    assert first.done()
    assert waiting.result() == 1


@pytest.mark.parametrize("delay", [0, 1000])
def test_shutting_the_executor_down_runs_what_waits(make_executor, gate, delay):
    executor = make_executor(1)
    batcher = executor.batcher(
        lambda x: gate.wait() or x, max_batch_size=2, max_delay=delay
    )
    futures = [batcher(float(i)) for i in range(7)]
    gate.open()
    executor.shutdown()
    assert [future.result(0) for future in futures] == list(range(7))
    with pytest.raises(shmexec.PoolClosed, match="shut down"):
        batcher(1.0)
    batcher.close()


def test_shutting_down_may_cancel_what_waits(make_executor, gate):
    executor = make_executor(1)
    batcher = executor.batcher(lambda x: gate.wait() or x)
    first = occupy(batcher, gate)
    futures = [batcher(float(i)) for i in range(7)]
    ending = threading.Thread(
        target=executor.shutdown, kwargs={"wait": False, "cancel_futures": True}
    )
    ending.start()
    ending.join(LONG)
    assert all(future.cancelled() for future in futures)
    with pytest.raises(CancelledError):
        futures[0].result(LONG)
    gate.open()
    assert first.result(LONG).shape == (0,)


@pytest.mark.parametrize("delay", [0, 1000])
def test_dropped_with_items_that_wait_it_runs_them(make_executor, gate, delay):
    executor = make_executor(1)
    batcher = executor.batcher(lambda x: gate.wait() or x, max_delay=delay)
    futures = [batcher(float(i)) for i in range(7)]
    gatherer = weakref.ref(batcher._gatherer)
    del batcher
    gate.open()
    assert [future.result(LONG) for future in futures] == list(range(7))
    del futures
    assert wait_until(lambda: (gc.collect() and gatherer() is None) or not gatherer())


def test_it_keeps_its_executor(make_executor):
    batcher = shmexec.Executor(1).batcher(calls.same)
    gc.collect()
    assert batcher(1.0).result(LONG) == 1
    batcher.close()


def test_a_program_that_ends_runs_what_waits(run_script):
    done = run_script(
        """
import shmexec
batcher = shmexec.Executor(1).batcher(lambda x: x * 2, max_delay=1000)
for i in range(3):
    batcher(i).add_done_callback(lambda future: print(future.result(), flush=True))
"""
    )
    assert done.stdout.split() == ["0", "2", "4"], done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("half", ["before", "behind"])
def test_an_interrupt_as_a_batch_is_taken_fails_that_batch(
    make_executor, monkeypatch, half
):
    with make_executor(1).batcher(calls.same) as batcher:
        gatherer = batcher._gatherer
        hand_out = gatherer._hand_out

        def interrupted(batch):
            monkeypatch.undo()
            if half == "behind":
                hand_out(batch)
            raise KeyboardInterrupt

        monkeypatch.setattr(gatherer, "_hand_out", interrupted)
        with pytest.raises(KeyboardInterrupt):
            batcher(1.0)
        assert [batcher(x).result(LONG) for x in (2.0, 3.0)] == [2.0, 3.0]
        assert wait_until(lambda: batcher.stats().running == 0)
        assert (batcher.stats().waiting, batcher.stats().failed) == (0, 1)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_in_a_forked_child_items_fail(make_executor, gate):
    executor = make_executor(1)
    batcher = executor.batcher(lambda x: gate.wait() or x)
    first, waiting = occupy(batcher, gate), batcher(1.0)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for future in first, waiting:
                assert isinstance(future.exception(1), shmexec.PoolClosed)
            try:
                batcher(1.0)
            except shmexec.PoolClosed:
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    gate.open()
    assert waiting.result(LONG) == 1
    batcher.close()


# -- asyncio -----------------------------------------------------------------------------------


async def until(condition):
    for _ in range(100_000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("it did not happen")


def test_tasks_get_their_results(executor):
    async def main(batcher):
        async def ask(i):
            return await batcher.acall(np.full(10, float(i)))

        results = await asyncio.gather(*(ask(i) for i in range(50)))
        assert [int(result[0]) for result in results] == list(range(50))
        assert (await asyncio.wrap_future(batcher(1.0))) == 1

    with executor.batcher(calls.same, max_batch_size=8, max_queue=5) as batcher:
        asyncio.run(main(batcher))
        asyncio.run(main(batcher))
    assert batcher.stats().items == 102


def test_cancelling_a_task_drops_its_item(busy, gate):
    batcher = busy(max_queue=2)
    occupy(batcher, gate)

    async def main():
        tasks = [asyncio.create_task(batcher.acall(float(i))) for i in range(4)]
        await until(lambda: len(batcher._gatherer._gates) == 2)
        tasks[0].cancel()  # waits in the queue
        tasks[3].cancel()  # waits for room
        done = await asyncio.gather(tasks[0], tasks[3], return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in done)
        # The other one has taken the place.
        await until(lambda: batcher.stats().waiting == 2)
        gate.open()
        assert await asyncio.gather(tasks[1], tasks[2]) == [1, 2]

    asyncio.run(main())
    assert batcher.stats().cancelled == 1


def test_tasks_are_refused_if_that_was_asked_for(busy, gate):
    batcher = busy(max_queue=1, on_full="refuse")
    occupy(batcher, gate)
    batcher(1.0)

    async def main():
        with pytest.raises(shmexec.QueueFull):
            await batcher.acall(1.0)

    asyncio.run(main())


# -- others ------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0, 0.01])
def test_in_process(delay):
    executor = shmexec.Executor(in_process=True)
    pids = []

    def run(x):
        pids.append(os.getpid())
        return x * 2

    with executor.batcher(run, max_delay=delay, max_batch_size=5) as batcher:
        results = {}

        def use(thread):
            results[thread] = [batcher(float(i)).result(LONG) for i in range(10)]

        in_threads(4, use)
    assert all(results[i] == [2.0 * n for n in range(10)] for i in range(4))
    assert set(pids) == {os.getpid()}
    executor.shutdown()


@pytest.mark.parametrize("delay", [0, 1000])
def test_where_memory_is_short_batches_are_small(make_executor, delay):
    executor = make_executor(1, max_shared_memory="64MB")
    keep = executor.submit(np.ones, 6_000_000).result(LONG)
    with executor.batcher(lambda x: x.sum(axis=1), max_delay=delay) as batcher:
        futures = [batcher(np.full(600_000, float(i))) for i in range(12)]
    assert [f.result() for f in futures] == [i * 6e5 for i in range(12)]
    del keep


def test_an_item_for_which_there_is_no_memory(make_executor):
    executor = make_executor(1, max_shared_memory="1MB")
    with executor.batcher(calls.same) as batcher:
        with pytest.raises(shmexec.SharedMemoryFull):
            batcher(np.zeros(1_000_000))
        assert batcher(1.0).result(LONG) == 1


def test_blocks_are_recycled_and_given_back(executor):
    with executor.batcher(lambda x: x[:, :1]) as batcher:
        for _ in range(20):
            futures = [batcher(np.ones(5_000)) for _ in range(8)]
            for future in futures:
                future.result(LONG)
    stats = executor.stats()
    assert stats.blocks_recycled > stats.blocks_faulted
