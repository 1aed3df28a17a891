"""The initializer: runs once in each worker, before its first call."""

from __future__ import annotations

import multiprocessing
from concurrent.futures.process import BrokenProcessPool

import pytest

import shmexec
from tests.contract import calls

pytestmark = pytest.mark.every_start


def test_runs_in_each_worker(make_executor):
    executor = make_executor(initializer=lambda: calls.STATE.update(x=5))
    assert executor.broadcast(calls.get_state, "x") == [5, 5]


def test_gets_its_arguments(make_executor):
    executor = make_executor(initializer=calls.note_start, initargs=("a", [1]))
    assert executor.submit(calls.get_state, "start").result() == ("a", [1])


def test_its_state_stays_in_its_worker(make_executor):
    executor = make_executor(initializer=lambda: calls.STATE.update(x=5))
    assert executor.submit(calls.get_state, "x").result() == 5
    assert "x" not in calls.STATE


def test_if_it_fails_the_pool_is_broken_and_says_why(make_executor):
    executor = make_executor(
        initializer=calls.fail, initargs=(ValueError("no such model"),)
    )
    with pytest.raises(BrokenProcessPool, match="no such model"):
        executor.submit(calls.same, 1).result()
    with pytest.raises(BrokenProcessPool, match="no such model") as caught:
        executor.submit(calls.same, 1)
    assert isinstance(caught.value, shmexec.PoolBroken)


def test_if_it_fails_all_pending_calls_fail(make_executor):
    executor = make_executor(initializer=calls.fail, initargs=(ValueError("x"),))
    futures = []
    try:
        futures += [executor.submit(calls.same, i) for i in range(20)]
    except BrokenProcessPool:
        pass
    for future in futures:
        with pytest.raises(BrokenProcessPool):
            future.result()


@pytest.mark.parametrize("how", [calls.leave_at_once, calls.leave, calls.kill_me])
def test_if_it_ends_the_process_the_pool_is_broken(make_executor, how):
    executor = make_executor(1, initializer=how, max_restarts=1)
    with pytest.raises(BrokenProcessPool):
        executor.submit(calls.same, 1).result()


def test_a_lock_of_multiprocessing_may_be_its_argument(make_executor, start_method):
    lock = multiprocessing.get_context(start_method).Lock()
    executor = make_executor(
        1, initializer=lambda lock: calls.STATE.update(lock=lock), initargs=(lock,)
    )
    with lock:
        assert not executor.submit(calls.try_lock).result()
    assert executor.submit(calls.try_lock).result()


def test_must_be_callable():
    with pytest.raises(TypeError, match="initializer"):
        shmexec.Executor(1, initializer=5)
