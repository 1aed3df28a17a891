"""``shmexec.share`` of objects: pickled once, rebuilt once per worker, forgotten in time."""

from __future__ import annotations

import gc
import os
import pickle
import threading

import numpy as np
import pytest

import shmexec
from shmexec.wire import objects
from tests.contract import calls
from tests.waiting import wait_until

pytestmark = pytest.mark.one_kind

N = 50_000


class Model:
    """Counts how often it was pickled and rebuilt, in the process where it was."""

    pickled = 0
    built = 0

    def __init__(self):
        self.weights = np.arange(float(N))
        self.bias = np.ones(3)
        self.notes = {"calls": 0}

    def __getstate__(self):
        Model.pickled += 1
        return self.__dict__

    def __setstate__(self, state):
        Model.built += 1
        self.__dict__ = state


class Refuses:
    """Cannot be rebuilt."""

    def __init__(self, large):
        self.large = large

    def __setstate__(self, state):
        raise LookupError("not here")


def predict(model, x):
    return float(model.weights[x] + model.bias[0])


def look(model):
    model.notes["calls"] += 1
    return os.getpid(), id(model), Model.built, model.notes["calls"]


def layout(value):
    return (
        type(value).__name__,
        value["large"].flags.writeable,
        value["large"].sum(),
        value["small"].tolist(),
    )


def same_inside(one, more):
    return one is more["x"][0], type(one).__name__


def write(model):
    model.weights[0] = 1


def add_one(rows, model):
    return rows + model.bias[0]


def kept_model():
    return type(calls.kept()).__name__, float(calls.kept().weights[5])


def built_here():
    gc.collect()
    return len(objects._built)


@pytest.fixture
def model():
    Model.pickled = 0
    return Model()


def test_the_function_gets_the_object(executor, model):
    handle = shmexec.share(model)
    assert handle.value is model
    assert executor.submit(predict, handle, 7).result() == 8
    assert executor.submit(predict, x=9, model=handle).result() == 10
    results = [executor.submit(predict, handle, x) for x in range(20)]
    assert [future.result() for future in results] == [x + 1 for x in range(20)]
    assert Model.pickled == 1
    assert list(executor.map(predict, [handle] * 9, range(9), chunksize=2)) == [
        x + 1 for x in range(9)
    ]
    assert Model.pickled == 1


def test_it_is_rebuilt_once_per_worker(fresh_executor, model):
    handle = shmexec.share(model)
    seen = [fresh_executor.submit(look, handle).result() for _ in range(8)]
    for pid in {seen[0] for seen in seen}:
        mine = [each for each in seen if each[0] == pid]
        assert len({each[1] for each in mine}) == 1
        assert {each[2] for each in mine} == {1}
        # What a call changes stays in that worker.
        assert [each[3] for each in mine] == list(range(1, len(mine) + 1))
    assert model.notes["calls"] == 0


def test_later_changes_in_the_parent_are_not_seen(executor):
    value = {"large": np.ones(N), "small": np.zeros(2)}
    handle = shmexec.share(value)
    value["large"][:] = 5
    value["small"][:] = 5
    assert executor.submit(layout, handle).result() == ("dict", False, N, [0, 0])


def test_at_any_depth(executor, model):
    handle = shmexec.share(model)
    more = {"x": [handle], "y": (1, {"z": handle})}
    assert executor.submit(same_inside, handle, more).result() == (True, "Model")
    assert executor.submit(lambda: handle.weights[3]).result() == 3


def test_nothing_is_copied(fresh_executor, model):
    handle = shmexec.share(model)
    for x in range(10):
        fresh_executor.submit(predict, handle, x).result()
    stats = fresh_executor.stats()
    assert stats.bytes_copied_in == 0
    assert stats.bytes_by_reference >= 10 * model.weights.nbytes


def test_a_write_to_its_arrays_is_refused(executor, model):
    handle = shmexec.share(model)
    with pytest.raises(ValueError, match="read-only") as caught:
        executor.submit(write, handle).result()
    assert (
        "model.weights (in argument 0, float64 (50000,))" in caught.value.__notes__[0]
    )


def test_a_large_pickle_without_arrays(executor):
    value = {str(n): n for n in range(20_000)}
    handle = shmexec.share(value)
    assert executor.submit(len, handle).result() == 20_000


def test_in_batches_and_the_initializer(make_executor, model):
    handle = shmexec.share(model)
    executor = make_executor(1, initializer=calls.keep, initargs=(handle,))
    assert executor.submit(kept_model).result() == ("Model", 5)
    rows = np.arange(40.0)[:, None]
    result = executor.map_batches(lambda x: add_one(x, handle), rows, batch_size=7)
    np.testing.assert_array_equal(result, rows + 1)


def test_shared_arrays_and_objects_in_it(fresh_executor, model):
    executor = fresh_executor
    shared = shmexec.share(np.full(N, 2.0))
    common = shmexec.zeros(4)
    inner = shmexec.share(model)
    handle = shmexec.share({"a": shared[5:], "b": common, "m": inner})

    def use(value, model):
        value["b"][1] = 3
        return value["a"].sum(), value["a"].flags.writeable, value["m"] is model

    total = 2.0 * (N - 5)
    assert executor.submit(use, handle, inner).result() == (total, False, True)
    assert common.tolist() == [0, 3, 0, 0]


def test_it_is_forgotten(fresh_executor, model):
    executor = fresh_executor
    # Before anything is shared: a forked worker keeps what there was.
    executor.broadcast(calls.pid)
    before = _shared_bytes(executor)
    handles = [shmexec.share({"large": np.full(N, n)}) for n in range(3)]
    for handle in handles:
        assert executor.broadcast(lambda value: int(value["large"][0]), handle)
    assert executor.broadcast(built_here) == [3, 3]
    del handle, handles[1:]
    assert wait_until(lambda: executor.broadcast(built_here) == [1, 1])
    handles.clear()
    assert wait_until(lambda: executor.broadcast(built_here) == [0, 0])
    assert wait_until(lambda: _shared_bytes(executor) == before)


def _shared_bytes(executor):
    host = executor._pool.host
    host.settle()
    return host.budget.used("shared")


def test_memory_comes_back_without_further_calls(fresh_executor, model):
    fresh_executor.broadcast(calls.pid)
    before = _shared_bytes(fresh_executor)
    handle = shmexec.share(model)
    fresh_executor.submit(predict, handle, 0).result()
    assert _shared_bytes(fresh_executor) > before + model.weights.nbytes
    del handle
    assert wait_until(lambda: _shared_bytes(fresh_executor) == before)


def test_a_handle_that_is_dropped_with_calls_pending(make_executor, make_gate, model):
    executor, gate = make_executor(1), make_gate()
    first = executor.submit(calls.through, gate)
    gate.arrived()
    handle = shmexec.share(model)
    futures = [executor.submit(predict, handle, x) for x in range(3)]
    del handle
    gc.collect()
    gate.open()
    first.result()
    assert [future.result() for future in futures] == [1, 2, 3]


def test_a_new_worker_gets_it_too(fresh_executor, model):
    handle = shmexec.share(model)
    assert fresh_executor.submit(predict, handle, 1).result() == 2
    with pytest.raises(shmexec.WorkerDied):
        fresh_executor.submit(os._exit, 3).result()
    for x in range(4):
        assert fresh_executor.submit(predict, handle, x).result() == x + 1


def test_one_that_cannot_be_rebuilt_fails_its_calls_only(executor):
    handle = shmexec.share(Refuses(np.ones(N)))
    for _ in range(2):
        with pytest.raises(
            shmexec.SerializationError, match="Refuses cannot be rebuilt"
        ):
            executor.submit(calls.same, handle).result()
    assert executor.submit(calls.same, 1).result() == 1


def test_one_that_cannot_be_pickled():
    value = {"a": [1, {"lock": threading.Lock()}]}
    with pytest.raises(
        shmexec.SerializationError, match=r"object\['a'\]\[1\]\['lock'\]"
    ):
        shmexec.share(value)


@pytest.mark.parametrize("mode", ["r+", "c", "w"])
def test_other_modes(mode):
    with pytest.raises(ValueError, match="mode"):
        shmexec.share({"a": 1}, mode)


def test_more_than_a_worker_keeps(make_executor):
    executor = make_executor(1)
    handles = [shmexec.share([n]) for n in range(objects.KEPT_AT_MOST + 5)]
    for _ in range(2):
        got = [executor.submit(calls.same, handle).result() for handle in handles]
        assert got == [[n] for n in range(len(handles))]
    assert executor.submit(built_here).result() == objects.KEPT_AT_MOST


def test_in_process_and_forked_for_each_call(model):
    handle = shmexec.share(model)
    array = np.ones(N)
    for executor in (
        shmexec.Executor(in_process=True),
        shmexec.ForkPerCallExecutor(2),
    ):
        with executor:
            assert executor.submit(predict, handle, 3).result() == 4
            more = {"x": [handle]}
            assert executor.submit(same_inside, handle, more).result() == (
                True,
                "Model",
            )
            assert executor.submit(lambda: handle.weights[3]).result() == 3
            assert executor.submit(lambda x: x.sum(), array).result() == N
            assert list(executor.map(predict, [handle] * 3, range(3))) == [1, 2, 3]
    with shmexec.Executor(in_process=True) as executor:
        assert executor.submit(calls.same, handle).result() is model
        assert executor.submit(calls.same, array).result() is array
        lock = threading.Lock()
        assert executor.submit(calls.same, lock).result() is lock
        with pytest.raises(shmexec.SerializationError, match="lock"):
            executor.submit(calls.same, [handle, lock]).result()


def test_a_handle_elsewhere(model):
    handle = shmexec.share(model)
    assert type(pickle.loads(pickle.dumps(handle))) is Model
    assert "Model" in repr(handle)
    assert shmexec.share(handle) is handle


def test_another_kind_of_memory_than_the_pool_s(monkeypatch, model):
    monkeypatch.setenv("SHMEXEC_SEGMENT", "posix")
    handle = shmexec.share(model)
    monkeypatch.setenv("SHMEXEC_SEGMENT", "memfd")
    with shmexec.Executor(1) as executor:
        assert executor.submit(predict, handle, 3).result() == 4
