"""Whatever fails on its way, in whichever process: the call ends, the pool goes on.

What CPython calls the deadlock tests. An ``Awkward`` object raises, calls ``sys.exit``
or ends the process when it is pickled or unpickled.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

import shmexec
from shmexec.deadline import Deadline
from tests.contract import calls
from tests.contract.calls import Awkward
from tests.waiting import wait_until


@pytest.fixture
def pool(fresh_executor):
    """An executor that must be usable at the end of the test."""
    yield fresh_executor
    assert fresh_executor.submit(calls.add, 1, 2).result(20) == 3


def _error(pool, fn, *args):
    return pool.submit(fn, *args).exception(20)


# -- on the way to the worker ----------------------------------------------------------


def test_an_error_when_an_argument_is_pickled(pool):
    with pytest.raises(pickle.PicklingError, match="awkward"):
        pool.submit(calls.same, Awkward("dumps", "error")).result(20)


def test_an_error_when_an_argument_is_unpickled(pool):
    error = _error(pool, calls.same, Awkward("loads", "error"))
    assert isinstance(error, ZeroDivisionError)


def test_an_exit_when_an_argument_is_unpickled(pool):
    error = _error(pool, calls.same, Awkward("loads", "exit"))
    assert isinstance(error, (SystemExit, BrokenProcessPool))


def test_a_crash_when_an_argument_is_unpickled(pool):
    error = _error(pool, calls.same, Awkward("loads", "crash"))
    assert isinstance(error, shmexec.WorkerDied)
    assert error.exitcode == 3


# -- in the call -----------------------------------------------------------------------


def test_an_error_in_the_call(pool):
    assert isinstance(_error(pool, calls.raise_division), ZeroDivisionError)


def test_a_crash_with_large_arguments_waiting(pool, gate):
    large = np.ones(2_000_000)
    crash = pool.submit(calls.kill_me, 9, large)
    others = [pool.submit(np.sum, large) for _ in range(10)]
    assert isinstance(crash.exception(20), shmexec.WorkerDied)
    assert [other.result(20) for other in others] == [2_000_000.0] * 10


# -- on the way back -------------------------------------------------------------------


def test_an_error_when_a_result_is_pickled(pool):
    error = _error(pool, calls.make_awkward, "dumps", "error")
    assert isinstance(error, pickle.PicklingError)


def test_an_exit_when_a_result_is_pickled(pool):
    error = _error(pool, calls.make_awkward, "dumps", "exit")
    assert isinstance(error, (SystemExit, pickle.PicklingError))


def test_a_crash_when_a_result_is_pickled(pool):
    error = _error(pool, calls.make_awkward, "dumps", "crash")
    assert isinstance(error, shmexec.WorkerDied)


@pytest.mark.parametrize("what", ["error", "exit"])
def test_a_failure_when_a_result_is_unpickled_here(pool, what):
    error = _error(pool, calls.make_awkward, "loads", what)
    assert isinstance(error, pickle.PicklingError)
    assert "result" in str(error)


@pytest.mark.parametrize("at", ["dumps", "loads"])
@pytest.mark.parametrize("what", ["error", "exit"])
def test_a_failure_when_an_exception_travels(pool, at, what):
    error = _error(pool, calls.raise_awkward, at, what)
    assert isinstance(error, shmexec.RemoteError)
    assert error.type_name.endswith("AwkwardError")


def test_a_crash_when_an_exception_is_pickled(pool):
    error = _error(pool, calls.raise_awkward, "dumps", "crash")
    assert isinstance(error, shmexec.WorkerDied)


# -- the ways are full -----------------------------------------------------------------


def test_pickles_larger_than_any_pipe(pool):
    text = "x" * 3_000_000
    assert pool.submit(len, text).result(20) == len(text)
    assert pool.submit(calls.same, text).result(20) == text


def test_many_calls_while_both_workers_are_busy(pool, gate):
    # gh-105829: more calls than any pipe could hold, before anybody reads.
    running = [pool.submit(calls.through, gate) for _ in range(2)]
    gate.arrived(2)
    futures = [pool.submit(calls.same, b"x" * 10_000) for _ in range(500)]
    gate.open()
    assert all(len(future.result(20)) == 10_000 for future in futures)
    assert all(future.done() for future in running)


def test_many_calls_from_callbacks(pool):
    done = threading.Event()
    left = [200]

    def again(future):
        left[0] -= 1
        if left[0]:
            pool.submit(calls.same, left[0]).add_done_callback(again)
        else:
            done.set()

    pool.submit(calls.same, 0).add_done_callback(again)
    assert done.wait(20)


def test_shutdown_while_a_worker_crashes(make_executor):
    executor = make_executor()
    futures = [executor.submit(calls.leave_at_once)]
    futures += [executor.submit(calls.same, i) for i in range(10)]
    executor.shutdown()
    assert isinstance(futures[0].exception(), shmexec.WorkerDied)
    assert [future.result() for future in futures[1:]] == list(range(10))


@pytest.mark.every_start
def test_dozens_of_crashes_in_a_row(pool):
    futures = [
        pool.submit(calls.leave_at_once if i % 3 == 0 else calls.same, i)
        for i in range(15)
    ]
    for i, future in enumerate(futures):
        if i % 3:
            assert future.result(20) == i
        else:
            assert future.exception(20).exitcode == i


def test_a_callback_may_wait_for_calls_that_need_a_worker_of_their_own(make_executor):
    executor = make_executor(2)
    executor.submit(pow, 2, 2).result()  # one worker is there
    found = []

    def follow_up(_):
        more = [executor.submit(pow, 2, n) for n in (3, 4)]
        found.extend(future.result(20) for future in more)

    first = executor.submit(pow, 2, 2)
    first.add_done_callback(follow_up)
    first.result()
    assert wait_until(lambda: len(found) == 2)
    assert found == [8, 16]


def test_a_long_callback_holds_nobody_up(make_executor):
    executor = make_executor(2)
    executor.submit(pow, 2, 2).result()
    leave = threading.Event()
    entered = threading.Event()

    def linger(_):
        entered.set()
        leave.wait(20)

    first = executor.submit(pow, 2, 2)
    first.add_done_callback(linger)
    wait_until(entered.is_set)
    try:
        # Both workers are needed, and the second one is not there yet.
        both = executor.broadcast(pow, 2, 3)
    finally:
        leave.set()
    assert both == [8, 8]


def test_a_callback_that_waits_is_not_left_by_the_thread_that_reads(
    make_executor, make_gate
):
    """The dispatcher is in that callback: nobody else is there to read the reply."""
    executor = make_executor(2)
    executor.broadcast(calls.pid)
    first, second = make_gate(), make_gate()
    inside, go_on, done = (threading.Event() for _ in range(3))

    def wait_for_another(_future):
        inside.set()
        assert go_on.wait(20)
        executor.submit(calls.through, second).result(20)
        done.set()

    executor.submit(calls.pid).add_done_callback(wait_for_another)
    assert inside.wait(20)
    other = executor.submit(calls.through, first)
    reader = threading.Thread(target=other.result)
    reader.start()
    leading = executor._pool.leading
    assert wait_until(leading._lead.locked)
    go_on.set()
    assert wait_until(lambda: leading._followers)
    second.arrived()
    first.open()
    reader.join(20)
    second.open()
    assert done.wait(10)


def test_an_interrupt_between_reading_a_reply_and_handling_it(make_executor):
    executor = make_executor(1)
    executor.submit(calls.pid).result()
    pool = executor._pool
    process = pool.process

    def interrupted(*, ticking):
        if pool.has_unread() and threading.current_thread() is threading.main_thread():
            pool.process = process
            raise KeyboardInterrupt
        process(ticking=ticking)

    pool.process = interrupted
    for i in range(1000):
        future = executor.submit(calls.add, i, 1)
        try:
            future._drive(20)  # `result` would stop the call
        except KeyboardInterrupt:  # this thread had read it
            break
    else:
        pytest.fail("this thread never read a reply")
    waits: list[float | None] = []
    poll = pool.leading.poller.poll
    pool.leading.poller.poll = lambda wait: (waits.append(wait), poll(wait))[1]
    assert future.result(20) == i + 1
    assert not waits or waits[0] == 0  # it may have been handled meanwhile


def test_an_interrupt_while_state_changes_loses_nothing(make_executor):
    executor = make_executor(2)
    pids = sorted(executor.broadcast(calls.pid))
    pool = executor._pool
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    futures = [executor.submit(calls.same, i) for i in range(5)]
    with pytest.raises(KeyboardInterrupt), pool._lock, pool._whole:
        # Counted wrongly, and none of them known to run: what may be half changed.
        pool._machine._state.pending = 77
        for worker in pool._machine.workers.values():
            worker.call = None
        raise KeyboardInterrupt
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    assert [future.result(20) for future in futures] == list(range(5))
    pool._machine.validate()
    assert sorted(executor.broadcast(calls.pid)) == pids


def test_no_interrupt_leaves_a_future_locked(make_executor, gate):
    class Interrupted(threading.Condition):
        def __enter__(self):
            super().__enter__()
            raise KeyboardInterrupt  # what Ctrl-C may do, as it is no C code

    executor = make_executor(1)
    future = executor.submit(calls.through, gate, "right")
    future._made = Interrupted(future._lock)
    leading = executor._pool.leading

    def follow():
        while not future.settled:  # it may come back before, to try to lead
            leading._follow(future, Deadline(20))

    waits = threading.Thread(target=follow)
    waits.start()
    gate.open()
    waits.join(20)
    assert not waits.is_alive()
    assert future.result(20) == "right"
