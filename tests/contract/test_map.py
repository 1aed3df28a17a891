"""``map``: many calls, results in order."""

from __future__ import annotations

import itertools
import weakref
from concurrent.futures import CancelledError

import pytest

from tests.contract import calls
from tests.waiting import wait_until

pytestmark = pytest.mark.one_kind


def test_gives_results_in_order(executor):
    assert list(executor.map(pow, range(10), range(10))) == [i**i for i in range(10)]


def test_the_shortest_iterable_ends_it(executor):
    assert list(executor.map(calls.add, [1, 2, 3], [10, 20])) == [11, 22]


def test_of_nothing_is_nothing(executor):
    assert list(executor.map(calls.same, [])) == []


@pytest.mark.parametrize("chunksize", [1, 2, 3, 6, 40, 100])
def test_chunks_change_nothing(executor, chunksize):
    results = executor.map(pow, range(40), itertools.repeat(2), chunksize=chunksize)
    assert list(results) == [i**2 for i in range(40)]


@pytest.mark.parametrize("chunksize", [0, -1])
def test_a_chunk_has_at_least_one_item(executor, chunksize):
    with pytest.raises(ValueError, match="chunksize"):
        executor.map(pow, range(4), range(4), chunksize=chunksize)


@pytest.mark.parametrize("chunksize", [1, 4])
def test_an_exception_comes_in_its_place(executor, chunksize):
    results = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5], chunksize=chunksize)
    assert [next(results), next(results)] == [(0, 1), (0, 1)]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_ends_after_an_exception(executor):
    results = executor.map(calls.ten_by, [0, 1])
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


def test_submits_before_anybody_takes_a_result(executor, gate):
    results = executor.map(calls.through, [gate, gate], [1, 2])
    gate.arrived(2)
    gate.open()
    assert list(results) == [1, 2]


def test_times_out_counted_from_its_call(executor, gate):
    results = executor.map(calls.through, [gate], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    gate.open()


def test_what_was_done_is_given_before_the_timeout(executor, gate):
    results = executor.map(lambda g: g and g.wait(), [None, gate], timeout=0.5)
    assert next(results) is None
    with pytest.raises(TimeoutError):
        next(results)
    gate.open()


@pytest.mark.parametrize("chunksize", [None, 1])
def test_unpicklable_items_fail(executor, chunksize):
    import pickle
    import threading

    with pytest.raises(pickle.PicklingError):
        list(executor.map(calls.same, [threading.Lock()], chunksize=chunksize))


def test_the_function_must_be_callable(executor):
    with pytest.raises(TypeError, match="callable"):
        executor.map(5, [1])


def test_leaving_early_cancels_what_has_not_begun(executor, gate, tmp_path):
    log = tmp_path / "log"
    log.touch()

    def note_after(gate, text):
        if gate is not None:
            gate.wait()
            calls.note(str(log), text)

    gates = [None, *[gate] * 9]
    results = executor.map(note_after, gates, "xabcdefghi", chunksize=1)
    assert next(results) is None
    gate.arrived(2)
    results.close()
    gate.open()
    assert executor.submit(calls.same, 1).result() == 1
    assert len(log.read_text().split()) <= 2


def test_a_cancelled_current_future_raises(executor, gate):
    blockers = [executor.submit(calls.through, gate) for _ in range(2)]
    gate.arrived(2)
    future = executor.submit(calls.same, 1)
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result()
    gate.open()
    assert [blocker.result() for blocker in blockers] == [None, None]


def test_items_are_read_lazily_with_a_buffersize(executor):
    read = []

    def items():
        for i in range(100):
            read.append(i)
            yield i

    results = executor.map(calls.same, items(), buffersize=3, chunksize=1)
    assert next(results) == 0
    assert 1 <= len(read) <= 5
    assert list(results) == list(range(1, 100))


def test_results_may_come_as_they_are_done(executor, gate):
    gates = [gate, None]
    results = executor.map(
        lambda g: "late" if g and not g.wait() else "early",
        gates,
        ordered=False,
        chunksize=1,
    )
    assert next(results) == "early"
    gate.open()
    assert list(results) == ["late"]


def test_a_taken_result_is_let_go(executor):
    for thing in executor.map(calls.same, [calls.Thing() for _ in range(4)]):
        alive = weakref.ref(thing)
        del thing
        assert wait_until(lambda alive=alive: alive() is None, 1)
