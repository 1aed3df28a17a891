"""A result goes on to another worker: right, without a copy, and nothing stays leased."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import numpy as np
import pytest

import shmexec
from shmexec.memory.lending import HOST
from shmexec.runtime.room import CALLS
from tests.contract import calls, parcels
from tests.waiting import wait_until

N = 200_000


@pytest.fixture(scope="module")
def pair(_shared_kind, _process_wide_things):
    """Two executors of one worker each."""
    method, kind = _shared_kind
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("SHMEXEC_SEGMENT", kind)
        made = [stack.enter_context(shmexec.Executor(1, method)) for _ in "12"]
        for executor in made:
            for _ in range(3):  # has it ask for quota: arrays are born there then
                executor.submit(np.ones, 8 * N).result()
        yield made


def send(executor, parcel, *call, seal=True, **options):
    fn, *args = call
    view = executor.options(**options)
    return executor._pool.submit(
        parcels.on, (fn, parcel, *args), {}, view._call_options, sealed=seal
    )


def copied(*executors):
    stats = [executor.stats() for executor in executors]
    return (
        sum(each.bytes_copied_in for each in stats),
        sum(each.bytes_copied_out for each in stats),
        sum(each.bytes_by_reference for each in stats),
    )


def run(pair, value, *fns):
    """Through both workers in turn; the last one's result is opened here."""
    parcel = pair[0]._pool.seal(value)
    for i, fn in enumerate(fns):
        last = i == len(fns) - 1
        parcel = send(pair[i % 2], parcel, fn, seal=not last).result()
    return parcel


def test_nothing_is_copied_on_the_way(pair):
    parcel = pair[0]._pool.seal(np.zeros(N))
    before = copied(*pair)
    for i in range(5):  # in the parent's arena, in another worker's, in its own
        fn = parcels.another if i == 2 else parcels.add_one
        parcel = send(pair[i % 2], parcel, fn).result()
    result = send(pair[0], parcel, calls.same, seal=False).result()
    del parcel
    assert (result == 5).all()
    assert result.flags.writeable
    added = [b - a for a, b in zip(before, copied(*pair), strict=True)]
    if pair[0].stats().native:
        assert added == [0, 0, 5 * 8 * N]
    else:
        assert added == [0, 8 * N, 5 * 8 * N]


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (parcels.most, lambda x: x[: len(x) * 3 // 4]),
        (parcels.thinned, lambda x: x[::2]),
        (calls.same, lambda x: x),
    ],
)
def test_a_result_that_is_a_view_of_the_argument(pair, fn, expected):
    x = np.arange(N, dtype=float)
    got = run(pair, x, parcels.another, fn, parcels.add_one, fn, parcels.another)
    np.testing.assert_array_equal(got, expected(expected(x)) + 3)


def test_views_of_one_block(pair):
    x = np.arange(N, dtype=float)
    one, two, whole = run(pair, x, parcels.another, parcels.parts, calls.same)
    np.testing.assert_array_equal(np.concatenate([one, two]), x + 1)
    np.testing.assert_array_equal(whole, x + 1)
    whole[:] = 0
    np.testing.assert_array_equal(np.concatenate([one, two]), x + 1)


def test_a_worker_that_keeps_what_it_returns(pair):
    parcel = run_sealed(pair, np.full(N, 5.0), parcels.another, parcels.keep)
    result = send(pair[0], parcel, parcels.add_one, seal=False).result()
    assert pair[1].submit(parcels.kept).result() == 6
    assert (result == 7).all()


def run_sealed(pair, value, *fns):
    parcel = pair[0]._pool.seal(value)
    for i, fn in enumerate(fns):
        parcel = send(pair[i % 2], parcel, fn).result()
    return parcel


@pytest.mark.parametrize(
    "value",
    [
        None,
        (1, "two", {"three": 4.0}),
        list(range(100_000)),  # its pickle lies in a block
        b"x" * 32_700,  # one that just fits into a message
        [np.arange(n) for n in (3, 10_000, 0, 20_000)],
        np.arange(20_000).astype(object),
    ],
    ids=["None", "small", "large pickle", "nearly large", "many", "objects"],
)
def test_any_value(pair, value):
    got = run(pair, value, calls.same, calls.same, calls.same)
    assert type(got) is type(value)
    if type(value) is list and len(value) < 10:
        assert all(map(np.array_equal, got, value))
    else:
        assert np.array_equal(got, value)


def test_as_many_buffers_as_a_message_takes(pair):
    value = [np.full(4096, i, float) for i in range(520)] + [list(range(30_000))]
    before = copied(*pair)[0]
    got = run(pair, value, calls.same, calls.same)
    assert got[-1] == value[-1]
    assert all(map(np.array_equal, got[:-1], value))
    # Those beyond are in the pickle, which is copied as the first argument only.
    assert copied(*pair)[0] - before <= sum(x.nbytes for x in value[:-1]) + 800_000


def test_what_is_shared_stays_so_on_the_first_way(pair):
    shared = shmexec.share(np.ones(N))
    before = copied(*pair)
    parcel = pair[0]._pool.seal((shared, 1))
    writable, total = send(pair[0], parcel, _first, seal=False).result()
    assert (writable, total) == (False, N)
    assert copied(*pair)[:2] == before[:2]
    parcel = send(pair[0], pair[0]._pool.seal(shared), calls.same).result()
    assert send(pair[1], parcel, parcels.flags, seal=False).result() == (True, N)
    assert (shared == 1).all()


def _first(pair):
    return parcels.flags(pair[0])


def test_a_shared_object_goes_along(pair):
    model = shmexec.share({"weights": np.ones(N)})
    parcel = pair[0]._pool.seal([model, 2])
    got = send(pair[0], parcel, _weigh, seal=False).result()
    assert got == 2 * N


def _weigh(item):
    return float(item[0]["weights"].sum()) * item[1]


def test_an_error_is_raised_here(pair):
    future = send(pair[0], pair[0]._pool.seal(np.ones(N)), _fail)
    assert isinstance(future.exception(), ZeroDivisionError)
    future = send(pair[0], pair[0]._pool.seal(1), _unpicklable)
    assert isinstance(future.exception(), shmexec.SerializationError)


def _fail(x):
    raise ZeroDivisionError


def _unpicklable(x):
    return threading.Lock()


def test_what_cannot_be_sealed_says_so(pair):
    with pytest.raises(shmexec.SerializationError, match="the item"):
        pair[0]._pool.seal([np.ones(N), threading.Lock()])


def test_classes_that_one_worker_knows(pair):
    box = run(pair, np.ones(N), parcels.boxed, calls.same, calls.same)
    assert (box.x == 1).all()
    assert type(box).made_in != os.getpid()


def test_a_class_of_the_program_is_not_written_over(pair):
    class Box:
        count = 0

        def __init__(self, x):
            self.x = x

    pair[1].submit(parcels.know, Box(0)).result()
    parcel = pair[0]._pool.seal(5)
    future = pair[0]._pool.submit(
        parcels.on, (_mark, parcel, Box), {}, pair[0]._options.call, sealed=True
    )
    count, same = send(pair[1], future.result(), parcels.count_of, seal=False).result()
    assert (count, same) == (0, True)
    assert Box.count == 0
    pair[1].submit(parcels.forget).result()


def _mark(x, cls):
    return parcels.marked(cls, x)


def test_a_dropped_parcel_ends_its_leases(pair):
    parcel = run_sealed(pair, np.ones(N), parcels.another, parcels.another)
    assert leases(*pair)
    del parcel
    assert not leases(*pair)


# -- deaths ------------------------------------------------------------------------------


@pytest.fixture
def fresh_pair(make_executor):
    """Two that a test may break."""
    return [make_executor(1), make_executor(1)]


def test_the_sender_dies_after_its_reply(fresh_pair):
    one, two = fresh_pair
    x = np.arange(N, dtype=float)
    parcel = send(one, one._pool.seal(x), parcels.another).result()
    kill(one)
    result = send(two, parcel, parcels.add_one, seal=False).result()
    del parcel
    np.testing.assert_array_equal(result, x + 2)
    assert one.submit(calls.same, 1).result() == 1


def kill(executor):
    (worker,) = executor.stats().workers
    os.kill(worker.pid, signal.SIGKILL)
    assert wait_until(lambda: executor.stats().worker_deaths)


def test_the_receiver_dies_before(fresh_pair):
    one, two = fresh_pair
    two.submit(calls.same, 1).result()
    parcel = send(one, one._pool.seal(np.ones(N)), parcels.another).result()
    kill(two)
    result = send(two, parcel, parcels.add_one, seal=False).result()
    assert (result == 3).all()


def test_the_receiver_dies_with_it(fresh_pair, gate):
    one, two = fresh_pair
    parcel = send(one, one._pool.seal(np.ones(N)), parcels.another).result()
    future = send(two, parcel, parcels.stay, gate)
    del parcel
    (pid,) = gate.arrived()
    os.kill(pid, signal.SIGKILL)
    assert isinstance(future.exception(), shmexec.WorkerDied)
    assert wait_until(lambda: not leases(one, two))


def leases(*executors):
    """What is leased on behalf of these, and of this program."""
    (host,) = {executor._pool.host for executor in executors}
    host.settle()
    handles = [w for ex in executors for w in ex._pool._workers.values()]
    holders = [HOST, CALLS, *(handle.holder for handle in handles)]
    with host.lock:
        return [
            (each, host.ledger.held_by(each))
            for each in holders
            if host.ledger.held_by(each)
        ]


def test_the_receiver_dies_after_its_reply(fresh_pair):
    one, two = fresh_pair
    parcel = send(one, one._pool.seal(np.ones(N)), parcels.another).result()
    parcel = send(two, parcel, parcels.add_one).result()  # in the arena of one
    kill(two)
    kill(one)
    result = send(two, parcel, parcels.add_one, seal=False).result()
    assert (result == 4).all()


def test_a_call_that_runs_again_gets_it_as_it_was(fresh_pair, tmp_path):
    path = tmp_path / "left"
    path.write_text("2")
    one, two = fresh_pair
    parcel = send(one, one._pool.seal(np.ones(N)), parcels.another).result()
    future = send(two, parcel, parcels.spoil_and_die, str(path), retries=2, seal=False)
    assert future.result() == 2 * N


def test_a_cancelled_call_keeps_nothing(fresh_pair, gate):
    one, two = fresh_pair
    running = two.submit(calls.through, gate)
    gate.arrived()
    parcel = send(one, one._pool.seal(np.ones(N)), parcels.another).result()
    future = send(two, parcel, parcels.add_one)
    del parcel
    assert future.cancel()
    gate.open()
    running.result()
    assert not leases(one, two)


def test_memory_of_another_kind_is_refused(make_executor, monkeypatch):
    one = make_executor(1)
    parcel = one._pool.seal(np.ones(N))
    kind = "memfd" if one._pool.host.kind == "posix" else "posix"
    monkeypatch.setenv("SHMEXEC_SEGMENT", kind)
    two = make_executor(1)
    with pytest.raises(ValueError, match="another kind"):
        send(two, parcel, calls.same)
