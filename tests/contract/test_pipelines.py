"""Stages chained: order, bounded buffers, errors with names, flushes, and no copies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
from concurrent.futures import CancelledError
from contextvars import ContextVar

import numpy as np
import pytest

import shmexec
from shmexec import pipelines
from tests.contract import stages
from tests.waiting import wait_until

MB = 1 << 20
WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


@pytest.fixture(scope="module")
def executor(_process_wide_things):
    """Of the usual kind: what differs between kinds is not the pipelines' part."""
    with shmexec.Executor(1) as executor:
        yield executor


@pytest.fixture(scope="module")
def pipe(executor):
    """Three stages that tests leave as they were."""
    with executor.pipeline((stages.Add, 1), stages.Scale, stages.negative) as pipe:
        pipe.submit(0).result()  # its workers are no leak of the first test's
        yield pipe


@contextlib.contextmanager
def opening(gate):
    """Opens it before the pipeline is closed, so that no failure makes that wait."""
    try:
        yield
    finally:
        gate.open()


def notes(error):
    return "\n".join(getattr(error, "__notes__", ()))


# -- items ---------------------------------------------------------------------------------


def test_items_go_through_in_order(pipe):
    assert list(pipe.map(range(20))) == [-2 * (i + 1) for i in range(20)]
    assert list(pipe.map(())) == []
    assert pipe.flush() == []
    futures = [pipe.submit(i) for i in range(5)]
    assert [future.result() for future in futures] == [-2, -4, -6, -8, -10]


@pytest.mark.every_start
def test_every_kind_of_executor(make_executor):
    chain = (stages.Add, 1), (stages.Fails, -1, True), stages.negative
    with make_executor(1).pipeline(*chain) as pipe:
        for _ in range(2):
            results = pipe.map(np.full(MB, i, float) for i in (0, 1, 2, -2, 5, 6))
            for i in range(3):
                result = next(results)
                assert (result == -(i + 1)).all()
                result[:] = 0  # it is the program's own
            with pytest.raises(shmexec.WorkerDied):
                next(results)
            del result


def test_no_array_moves_through_this_process(pipe):
    nbytes, count = 8 * MB, 6
    x = np.zeros(MB)
    for _ in range(2):  # until the workers have their quota
        for result in pipe.map([x] * count):
            del result
    before = figures(pipe)
    for result in pipe.map([x] * count):
        assert (result[::1000] == -2).all()
        del result
    copied_in, copied_out, by_reference = figures(pipe) - before
    assert copied_in.tolist() == [count * nbytes, 0, 0]
    if pipe.stats()[0][0].native:
        # The first stage works in place, the others' results are born where they are.
        assert copied_out.sum() < count * nbytes
        assert copied_out[0] == 0
    else:
        assert copied_out.tolist() == [0, count * nbytes, count * nbytes]
    assert by_reference.tolist() == [0, count * nbytes, count * nbytes]
    assert (x == 0).all()


def figures(pipe):
    rows = [
        [(s.bytes_copied_in, s.bytes_copied_out, s.bytes_by_reference) for s in each]
        for each in pipe.stats()
    ]
    return np.array(rows).sum(axis=1).T


def test_objects_of_the_programs_own_classes(pipe, executor):
    class Own:
        count = 0

        def __init__(self, x):
            self.x = x

        def __iadd__(self, number):
            Own.count += 1
            return Own(self.x + number)

        def __mul__(self, by):
            return Own(self.x * by)

        def __neg__(self):
            return Own(-self.x)

    results = list(pipe.map([Own(np.ones(MB)), Own(2)]))
    assert [type(each) for each in results] == [Own, Own]
    assert (results[0].x == -4).all()
    assert results[1].x == -6
    assert Own.count == 0


def test_async_stages(executor):
    with executor.pipeline(stages.later, stages.negative, stages.later) as pipe:
        assert list(pipe.map(range(4))) == [0, -1, -2, -3]


def test_one_stage(executor):
    with executor.pipeline(stages.Counts) as pipe:
        assert list(pipe.map("ab")) == [("a", 1), ("b", 2)]
        assert list(pipe.map("c")) == [("c", 3)]


def test_replicas_keep_the_order(executor, gate):
    stage = shmexec.Stage(stages.Waits, gate, replicas=2, at=0)
    made = executor.pipeline(stage, stages.negative, buffersize=4)
    with made as pipe, opening(gate):
        futures = [pipe.submit(i) for i in range(4)]
        gate.arrived()
        # The other replica has done what comes behind, and it waits its turn.
        assert wait_until(lambda: pipe.stats()[0][1].done >= 3)
        assert not any(future.done() for future in futures)
        gate.open()
        assert [future.result() for future in futures] == [0, -1, -2, -3]
        assert pipe.replicas == 3
    assert pipe.replicas == 0


# -- buffers -------------------------------------------------------------------------------


def test_a_slow_stage_holds_up_an_endless_source(make_executor, gate):
    executor = make_executor(1)
    read = itertools.count()
    seen = []

    def source():
        for number in read:
            seen.append(number)
            yield np.full(MB // 8, number, float)

    slow = (stages.Waits, gate)
    with executor.pipeline(stages.same, stages.same, slow) as pipe, opening(gate):
        results = pipe.map(source())
        assert not seen  # nothing is read before a result is asked for
        came = []
        reader = threading.Thread(target=lambda: came.append(next(results)))
        reader.start()
        gate.arrived()
        # Before the first stage wait 2, before the others 2 and the one that is done in
        # the stage before and cannot go on; one is in the last stage.
        assert wait_until(lambda: len(seen) == 9)
        flow = pipe._conveyor.flow
        assert wait_until(lambda: [len(line) for line in flow._lines] == [2, 3, 3, 1])
        assert wait_until(lambda: all(stage.idle for stage in flow._stages[:2]))
        assert len(seen) == 9
        gate.open(1)
        reader.join()
        assert (came[0] == 0).all()
        gate.open()
        assert (next(results) == 1).all()
        results.close()


def test_buffersize(executor, gate):
    made = executor.pipeline((stages.Waits, gate), buffersize=1)
    with made as pipe, opening(gate):
        futures = [pipe.submit(i) for i in range(2)]
        gate.arrived()
        entered = threading.Event()

        def submit():
            futures.append(pipe.submit(2))
            entered.set()

        thread = threading.Thread(target=submit)
        thread.start()
        assert not entered.wait(0.05)
        gate.open()
        thread.join()
        assert [future.result() for future in futures] == [0, 1, 2]


def test_where_waiting_is_not_allowed_a_full_buffer_is_an_error(executor, gate):
    async def submit():
        return [pipe.submit(i) for i in range(9)]

    made = executor.pipeline((stages.Waits, gate), buffersize=1)
    with made as pipe, opening(gate):
        pipe.submit(0)
        gate.arrived()
        with pytest.raises(shmexec.QueueFull, match="1 items wait"):
            asyncio.run(submit())
        gate.open()
        assert pipe.submit(5).result() == 5


# -- the end of a stream -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("yields", [("kept", 0), ("kept", 1), ("kept", 2)]),
        ("returns", [[0, 1, 2]]),
        ("awaits", [[0, 1, 2]]),
        ("async", [("kept", 0), ("kept", 1), ("kept", 2)]),
        ("nothing", []),
    ],
)
def test_a_stage_gives_what_it_kept_at_the_end(executor, how, expected):
    with executor.pipeline(stages.same, (stages.Keeps, how), stages.same) as pipe:
        for _ in range(2):
            assert list(pipe.map(range(3))) == [0, 1, 2, *expected]
        pipe.submit(7).result()
        assert len(pipe.flush()) == min(len(expected), 1)


def test_each_stage_is_flushed_behind_those_before_it(make_executor):
    executor = make_executor(1)
    first = shmexec.Stage(stages.Keeps, replicas=2)
    with executor.pipeline(first, stages.Keeps, stages.same) as pipe:
        items = ["a", "b", "c"]
        results = list(pipe.map(items))
        assert results[:3] == items
        flushed = results[3:6]
        assert sorted(flushed) == [("kept", each) for each in items]
        # The second stage kept what the first one flushed, too; as arrays.
        last = [tuple(x) if isinstance(x, np.ndarray) else x for _, x in results[6:]]
        assert last == [*items, *flushed]


def test_flushed_arrays_are_not_copied_here(executor):
    with executor.pipeline(stages.Keeps, stages.same) as pipe:
        x = np.arange(MB, dtype=float)
        one, (_, two) = pipe.map([x])
        np.testing.assert_array_equal(two, x)
        assert figures(pipe)[0].tolist() == [8 * MB, 0]


def test_a_flush_that_fails(executor):
    with executor.pipeline(stages.same, (stages.Keeps, "fails"), stages.Counts) as pipe:
        results = pipe.map("ab")
        assert [next(results), next(results)] == [("a", 1), ("b", 2)]
        with pytest.raises(ZeroDivisionError) as caught:
            next(results)
        assert "stage 2 of 3 (Keeps), while it was flushed" in notes(caught.value)
        assert list(results) == []
        assert pipe.submit("c").result() == ("c", 3)


def test_a_stream_that_is_left_early_leaves_nothing_to_the_next(executor):
    with executor.pipeline(stages.same, stages.Keeps) as pipe:
        for result in pipe.map(itertools.count()):
            if result == 5:
                break
        assert wait_until(lambda: pipe._conveyor.flow.empty)
        assert list(pipe.map([7])) == [7, ("kept", 7)]
        with pipe.map(itertools.count()) as results:
            next(results)
        assert list(pipe.map([8])) == [8, ("kept", 8)]


def test_one_iterator_at_a_time(pipe):
    results = pipe.map(range(3))
    with pytest.raises(RuntimeError, match="another iterator"):
        pipe.map(range(3))
    assert pipe.submit(1).result() == -4
    assert list(results) == [-2, -4, -6]
    assert list(pipe.map([0])) == [-2]


# -- failures ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("dies", [False, True])
def test_an_error_names_stage_and_item(executor, stage, dies):
    chain = [stages.same, stages.same, stages.same]
    chain[stage] = (stages.Fails, 3, dies)
    kind = shmexec.WorkerDied if dies else KeyError
    x = np.ones(MB // 8)
    with executor.pipeline(*chain) as pipe:
        results = pipe.map(i * x for i in itertools.count())
        assert [next(results)[0] for _ in range(3)] == [0, 1, 2]
        with pytest.raises(kind) as caught:
            next(results)
        assert notes(caught.value) == f"stage {stage + 1} of 3 (Fails), item 3"
        assert list(results) == []
        # The instance was flushed, or built anew; the others go on.
        ok = list(pipe.map([x]))
        assert (ok[0] == 1).all()
        assert ok[1] == "1 items"


def test_one_of_those_submitted_fails(executor):
    with executor.pipeline(stages.same, (stages.Fails, 2), stages.same) as pipe:
        futures = [pipe.submit(i) for i in range(4)]
        error = futures[2].exception()
        assert isinstance(error, KeyError)
        assert "stage 2 of 3 (Fails), item 2" in notes(error)
        assert [futures[i].result() for i in (0, 1, 3)] == [0, 1, 3]


def test_an_item_that_cannot_be_sent(pipe):
    results = pipe.map([1, threading.Lock(), 2])
    assert next(results) == -4
    with pytest.raises(shmexec.SerializationError) as caught:
        next(results)
    assert notes(caught.value) == "item 1, before stage 1 of 3 (Add)"
    with pytest.raises(shmexec.SerializationError):
        pipe.submit(threading.Lock()).result()
    assert pipe.submit(1).result() == -4


def test_a_source_that_fails_does_so_behind_its_items(pipe):
    def source():
        yield 0
        raise LookupError

    results = pipe.map(source())
    assert next(results) == -2
    with pytest.raises(LookupError):
        next(results)
    assert list(results) == []


def test_a_stage_that_cannot_be_built(executor):
    with executor.pipeline(stages.same, stages.CannotBeBuilt, stages.same) as pipe:
        with pytest.raises(shmexec.PoolBroken, match="no such weights") as caught:
            list(pipe.map(range(100)))
        assert "stage 2 of 3 (CannotBeBuilt), item 0" in notes(caught.value)
        with pytest.raises(shmexec.PoolBroken):
            pipe.submit(1).result()


def test_a_time_out(executor, gate):
    limited = executor.options(timeout=0.2)
    made = limited.pipeline(stages.same, (stages.Waits, gate, 1))
    with made as pipe, opening(gate):
        futures = [pipe.submit(i) for i in range(3)]
        error = futures[1].exception()
        assert isinstance(error, shmexec.CallTimeout)
        assert notes(error).endswith("stage 2 of 2 (Waits), item 1")
        assert [futures[0].result(), futures[2].result()] == [0, 2]


def test_what_is_no_stage(executor):
    with pytest.raises(TypeError, match="needs a stage"):
        executor.pipeline()
    with pytest.raises(TypeError, match="not of 5"):
        executor.pipeline(stages.same, 5)
    with pytest.raises(TypeError, match="neither process"):
        executor.pipeline(dict)
    with pytest.raises(TypeError, match="negative: only a class"):
        executor.pipeline((stages.negative, 1))
    with pytest.raises(ValueError, match="replicas"):
        shmexec.Stage(stages.Scale, replicas=0)
    with pytest.raises(ValueError, match="buffersize"):
        executor.pipeline(stages.same, buffersize=0)
    with pytest.raises(shmexec.SerializationError) as caught:
        executor.pipeline(stages.same, (stages.Scale, [1, threading.Lock()]))
    assert "stage 2 of 2 (Scale): args[0][1]" in str(caught.value)


# -- leaving -------------------------------------------------------------------------------


def test_cancelling(executor, gate):
    made = executor.pipeline((stages.Waits, gate, 0), stages.Counts)
    with made as pipe, opening(gate):
        first, second, third = [pipe.submit(i) for i in range(3)]
        gate.arrived()
        assert second.cancel()
        assert not first.cancel()
        gate.open()
        assert first.result() == (0, 1)
        assert third.result() == (2, 2)
        with pytest.raises(CancelledError):
            second.result()


def test_closing_finishes_what_was_submitted(make_executor, gate):
    executor = make_executor(1)
    pipe = executor.pipeline((stages.Waits, gate, 0), stages.negative)
    futures = [pipe.submit(i) for i in range(3)]
    gate.arrived()
    pipe.close(wait=False)
    with pytest.raises(shmexec.PoolClosed):
        pipe.submit(3)
    with pytest.raises(shmexec.PoolClosed):
        pipe.map([3])
    gate.open()
    executor.shutdown()
    assert [future.result() for future in futures] == [0, -1, -2]
    with pytest.raises(shmexec.PoolClosed):
        executor.pipeline(stages.same)


def test_closing_cancels_if_told_to(make_executor, gate):
    executor = make_executor(1)
    pipe = executor.pipeline((stages.Waits, gate, 0), stages.negative)
    futures = [pipe.submit(i) for i in range(3)]
    gate.arrived()
    executor.shutdown(wait=False, cancel_futures=True)
    gate.open()
    pipe.close()
    assert futures[0].result() == 0
    assert all(future.cancelled() for future in futures[1:])


def test_closing_drops_what_is_read(executor):
    pipe = executor.pipeline(stages.same, stages.Keeps)
    results = pipe.map(itertools.count())
    assert next(results) == 0
    pipe.close()
    with pytest.raises(shmexec.PoolClosed):
        next(results)
    assert list(results) == []
    pipe.close()


def test_a_pipeline_that_is_dropped(executor):
    x = np.ones(MB // 8)
    pipe = executor.pipeline(stages.same, stages.Keeps)
    results = pipe.map([x] * 4)  # so few that there is room for one more unread
    assert (next(results) == 1).all()
    future = pipe.submit(3)
    del pipe, results
    assert future.result() == 3


def test_the_next_map_needs_not_wait_for_what_a_finalizer_began(executor, monkeypatch):
    monkeypatch.setattr(pipelines, "close_apart", lambda _close: None)
    with executor.pipeline(stages.same, stages.Keeps) as pipe:
        assert next(pipe.map([1, 2])) == 1
        assert next(pipe.map([3, 4])) == 3


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_in_a_forked_child_items_fail(executor, gate):
    with executor.pipeline(stages.same, (stages.Waits, gate)) as pipe, opening(gate):
        results = pipe.map(iter([1, 2]))
        future = pipe.submit(1)
        gate.arrived()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert isinstance(future.exception(1), shmexec.PoolClosed)
                for use in (
                    lambda: next(results),
                    lambda: pipe.submit(1),
                    lambda: pipe.map([1]),
                    pipe.flush,
                ):
                    with pytest.raises(shmexec.PoolClosed, match="parent of this"):
                        use()
                pipe.close()
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        gate.open()
        assert future.result() == 1
        assert list(results) == [1, 2]


def test_no_interrupt_leaves_its_lock_held(executor):
    class Interrupted(threading.Condition):
        def __enter__(self):
            super().__enter__()
            raise KeyboardInterrupt  # what Ctrl-C may do, as it is no C code

    with executor.pipeline(stages.same, stages.Keeps) as pipe:
        conveyor = pipe._conveyor
        conveyor.changed = Interrupted(conveyor.lock)
        assert pipe.submit(1).result() == 1
        assert next(pipe.map([2, 3])) == 2
        pipe.flush()


def test_the_life_of_a_stage(executor, tmp_path):
    path = tmp_path / "life"
    with executor.pipeline((stages.Life, str(path))) as pipe:
        assert list(pipe.map("ab")) == ["a", "b"]
    lines = path.read_text().splitlines()
    assert lines == ["init", "initialize", "process a", "process b", "flush", "cleanup"]


def test_every_stage_has_the_senders_context(make_executor):
    executor = make_executor(1, context=(WHO,))
    chain = (stages.Reads, WHO), (stages.Reads, WHO)
    with executor.pipeline(*chain, buffersize=8) as pipe:
        futures = []
        for name in "ab":
            WHO.set(name)
            futures.append(pipe.submit(0))
        assert [future.result() for future in futures] == ["0 a a", "0 b b"]
        WHO.set("c")
        results = pipe.map([1])
        assert list(results) == ["1 c c", "end c c", "end c"]


# -- other ways ----------------------------------------------------------------------------


def test_async_for(pipe):
    async def numbers():
        for i in range(5):
            await asyncio.sleep(0)
            yield i

    async def read(items):
        return [result async for result in pipe.map(items)]

    for _ in range(2):
        assert asyncio.run(read(numbers())) == [-2, -4, -6, -8, -10]
    assert asyncio.run(read(range(3))) == [-2, -4, -6]
    with pytest.raises(TypeError, match="async for"):
        next(pipe.map(numbers()))
    assert wait_until(lambda: pipe._conveyor.active is None)


def test_a_cancelled_task_leaves_the_pipeline(make_executor, gate):
    async def main():
        async with executor.pipeline((stages.Waits, gate, 1), stages.same) as pipe:
            came, first = [], asyncio.Event()

            async def read():
                async for each in pipe.map(itertools.count()):
                    came.append(each)
                    first.set()

            task = asyncio.create_task(read())
            await asyncio.to_thread(gate.arrived)
            await first.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.open()
            assert came == [0]
            return [each async for each in pipe.map([5, 6])]

    executor = make_executor(1)
    assert asyncio.run(main()) == [5, 6]


def test_in_process():
    with (
        shmexec.Executor(in_process=True) as executor,
        executor.pipeline((stages.Add, 1), stages.Keeps, stages.later) as pipe,
    ):
        assert list(pipe.map(range(3))) == [1, 2, 3, *[("kept", i) for i in (1, 2, 3)]]
        assert pipe.submit(4).result() == 5
        with pytest.raises(TypeError):
            list(pipe.map(["a"]))
        assert list(pipe.map(range(500)))[499] == 500
