"""Bad input to the executor: refused at once, or the failure of one call, with a reason."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import threading

import numpy as np
import pytest

import shmexec
from shmexec.options import CallOptions
from tests.contract import calls

pytestmark = pytest.mark.one_kind

# -- settings --------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, -1, -100])
def test_too_few_workers(number):
    with pytest.raises(ValueError, match="max_workers must be greater than 0"):
        shmexec.Executor(number)


@pytest.mark.parametrize("number", [10**6, 2**70])
def test_too_many_workers(number):
    with pytest.raises(ValueError, match="max_workers"):
        shmexec.Executor(number)


@pytest.mark.parametrize("number", [True, False, 2.0, "2", [2], 1j, np.float64(3)])
def test_workers_that_are_no_integer(number):
    with pytest.raises(TypeError, match="max_workers"):
        shmexec.Executor(number)


def test_numpy_integers_are_integers():
    with shmexec.Executor(np.int64(1)) as executor:
        assert executor._max_workers == 1


@pytest.mark.parametrize("text", ["0", "-1", "two", "", "1.5", "999999"])
def test_bad_workers_in_the_environment(monkeypatch, text):
    monkeypatch.setenv("SHMEXEC_WORKERS", text)
    with pytest.raises(ValueError, match="SHMEXEC_WORKERS"):
        shmexec.Executor()


def test_a_bad_segment_in_the_environment(monkeypatch):
    monkeypatch.setenv("SHMEXEC_SEGMENT", "floppy")
    with pytest.raises(ValueError, match="SHMEXEC_SEGMENT"):
        shmexec.Executor(1)


def test_an_unknown_start_method():
    with pytest.raises(ValueError, match=r"teleport.*forkserver"):
        shmexec.Executor(1, "teleport")
    with pytest.raises(TypeError, match="mp_context"):
        shmexec.Executor(1, 5)


@pytest.mark.parametrize(
    ("setting", "value", "error"),
    [
        ("max_tasks_per_child", 0, ValueError),
        ("max_tasks_per_child", -1, ValueError),
        ("max_tasks_per_child", "3", TypeError),
        ("max_tasks_per_child", 1.5, TypeError),
        ("timeout", 0, ValueError),
        ("timeout", -1, ValueError),
        ("timeout", float("nan"), ValueError),
        ("timeout", "1", TypeError),
        ("retries", -1, ValueError),
        ("retries", True, TypeError),
        ("max_restarts", -1, ValueError),
        ("max_shared_memory", 0, ValueError),
        ("max_shared_memory", "lots", ValueError),
        ("max_shared_memory", 1.5, TypeError),
        ("idle_timeout", -1, ValueError),
        ("threads_per_worker", 0, ValueError),
        ("worker_env", [1], TypeError),
        ("worker_env", {"A": 1}, TypeError),
        ("name", "", TypeError),
        ("initializer", 5, TypeError),
        ("initargs", 5, TypeError),
    ],
)
def test_settings_that_make_no_sense(setting, value, error):
    with pytest.raises(error):
        shmexec.Executor(1, **{setting: value})


@pytest.mark.parametrize("number", [0, True, 1.5])
def test_a_bad_resize(executor, number):
    with pytest.raises((ValueError, TypeError), match="max_workers"):
        executor.resize(number)


@pytest.mark.parametrize(
    "setting", [{"timeout": 0}, {"retries": -1}, {"priority": "x"}]
)
def test_bad_options_of_a_call(executor, setting):
    with pytest.raises((ValueError, TypeError), match=next(iter(setting))):
        executor.options(**setting)


# -- calls -----------------------------------------------------------------------------


@pytest.mark.parametrize("fn", [None, 5, "abs", [abs]])
def test_what_cannot_be_called(executor, fn):
    with pytest.raises(TypeError, match="callable"):
        executor.submit(fn)


def test_submit_after_shutdown(fresh_executor):
    fresh_executor.shutdown()
    with pytest.raises(shmexec.PoolClosed, match="after shutdown"):
        fresh_executor.submit(abs, 1)


def test_a_failing_call_names_the_argument_that_cannot_be_pickled(executor):
    sent = [1, {"model": calls.Record(None, threading.Lock())}]
    with pytest.raises(shmexec.SerializationError) as caught:
        executor.submit(calls.collect, 1, sent).result()
    assert caught.value.path == "args[1][1]['model'].more"
    assert any("in the worker" in note for note in caught.value.__notes__)
    assert isinstance(caught.value, pickle.PicklingError)


def test_an_unpicklable_keyword_argument_is_named(executor):
    with pytest.raises(shmexec.SerializationError, match=r"kwargs\['x'\]"):
        executor.submit(calls.collect, x=threading.Lock()).result()


def test_an_unpicklable_captured_value_is_named(executor):
    lock = threading.Lock()
    with pytest.raises(shmexec.SerializationError, match="'lock' captured by fn"):
        executor.submit(lambda: lock).result()


def test_an_unpicklable_result_is_named(executor):
    error = executor.submit(calls.make_lock).exception()
    assert isinstance(error, shmexec.SerializationError)
    assert error.path == "result['model'][0]"


@pytest.mark.parametrize("what", ["argument", "result"])
def test_what_cannot_even_be_looked_at_is_named_too(executor, what):
    # As objects do that stand for another one: they raise whatever is asked of them.
    if what == "argument":
        future = executor.submit(calls.same, calls.Proxy())
    else:
        future = executor.submit(calls.Proxy)
    name = "args[0]" if what == "argument" else "result"
    with pytest.raises(shmexec.SerializationError, match=r"nobody is bound") as caught:
        future.result()
    assert caught.value.path == name


def test_a_generator_as_result(executor):
    error = executor.submit(calls.generate).exception()
    assert isinstance(error, shmexec.SerializationError)
    assert any("return list(" in note for note in error.__notes__)


def test_a_generator_as_argument(executor):
    with pytest.raises(shmexec.SerializationError, match=r"args\[0\]"):
        executor.submit(calls.same, calls.generate()).result()


def test_an_unpicklable_exception(executor):
    error = executor.submit(calls.raise_lock).exception()
    assert isinstance(error, shmexec.RemoteError)
    assert error.type_name == "tests.contract.calls.ErrorWithLock"
    assert error.message == "has a lock"
    assert "raise ErrorWithLock" in error.traceback_text


def test_an_exception_that_cannot_be_called_back(executor):
    error = executor.submit(calls.raise_two_arguments).exception()
    assert isinstance(error, shmexec.RemoteError)
    assert "this and that" in str(error)


def test_a_result_that_cannot_be_unpickled_here(executor):
    error = executor.submit(calls.make_awkward, "loads", "error").exception()
    assert isinstance(error, shmexec.SerializationError)
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_executors_that_could_not_be_made_leave_nothing(executor):
    # "spawn" starts from nothing: what cannot be pickled cannot be inherited either.
    host = executor._pool.host
    before = len(host.budget._limits)
    for _ in range(3):
        with pytest.raises(shmexec.SerializationError):
            shmexec.Executor(1, "spawn", calls.same, (threading.Lock(),))
    assert len(host.budget._limits) == before


def test_a_call_for_a_worker_that_is_gone_leaves_nothing(make_executor):
    executor = make_executor(1)
    executor.submit(calls.same, 1).result()
    pool = executor._pool
    with pytest.raises(Exception, match="which is gone"):
        pool.submit(calls.same, (np.ones(10_000),), {}, CallOptions(), 999)
    assert not pool.in_flight()
    assert executor.stats().submitted == 1


def test_the_executor_as_argument(executor):
    with pytest.raises(shmexec.SerializationError, match=r"args\[0\]"):
        executor.submit(calls.same, executor).result()


def test_a_future_as_argument(executor):
    future = executor.submit(calls.same, 1)
    with pytest.raises(shmexec.SerializationError, match=r"args\[0\]"):
        executor.submit(calls.same, future).result()


# -- memory ----------------------------------------------------------------------------


def test_arguments_of_the_initializer_larger_than_the_budget(executor, monkeypatch):
    monkeypatch.setattr("shmexec.runtime.room.HOLDING_STILL", 0.1)
    host = executor._pool.host
    before = len(host.budget._limits)
    parts = (np.ones(75_000), np.ones(75_000))  # there is room for either
    with pytest.raises(shmexec.SharedMemoryFull):
        shmexec.Executor(
            1, initializer=calls.collect, initargs=parts, max_shared_memory="1MB"
        )
    assert len(host.budget._limits) == before


def test_an_array_larger_than_the_budget(make_executor):
    executor = make_executor(1, max_shared_memory="1MB")
    with pytest.raises(shmexec.SharedMemoryFull) as caught:
        executor.submit(calls.same, np.ones(1_000_000)).result()
    assert caught.value.needed == 8_000_000
    assert caught.value.budget == 1_000_000
    assert executor.submit(calls.same, np.ones(10_000)).result().sum() == 10_000


def test_a_result_larger_than_the_budget(make_executor):
    executor = make_executor(1, max_shared_memory="1MB")
    future = executor.submit(np.ones, 1_000_000)
    with pytest.warns(shmexec.MemoryWarning, match=r"8000000 bytes.* 1000000 bytes"):
        assert future.result().sum() == 1_000_000
    del future
    assert executor.submit(np.ones, 10_000).result().sum() == 10_000


def test_submit_waits_for_room(make_executor):
    executor = make_executor(1, max_shared_memory="4MB")
    futures = [executor.submit(np.sum, np.ones(100_000)) for _ in range(50)]
    assert [future.result() for future in futures] == [100_000.0] * 50


def test_under_an_event_loop_submit_does_not_wait(make_executor, gate):
    executor = make_executor(1, max_shared_memory="1MB")
    running = executor.submit(calls.through, gate, np.ones(100_000))
    gate.arrived()

    async def main():
        with pytest.raises(shmexec.SharedMemoryFull):
            executor.submit(calls.same, np.ones(100_000))

    asyncio.run(main())
    gate.open()
    assert running.exception(20) is None or isinstance(
        running.exception(), shmexec.SharedMemoryFull
    )


# -- other processes -------------------------------------------------------------------


def _in_forked_child(action):
    """What ``action`` returns in a child of ours, as text."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, str(action()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


def _refusal(executor):
    try:
        executor.submit(abs, 1)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    return "taken"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_submit_in_a_forked_child(executor):
    assert executor.submit(calls.same, 1).result() == 1
    text = _in_forked_child(lambda: _refusal(executor))
    assert text.startswith("PoolClosed")
    assert "parent" in text
    assert executor.submit(calls.same, 2).result() == 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_may_make_its_own(executor):
    def use():
        with shmexec.Executor(1, "fork") as own:
            return own.submit(np.sum, np.ones(10_000)).result()

    assert executor.submit(calls.same, 1).result() == 1
    assert _in_forked_child(use) == "10000.0"
    assert executor.submit(calls.same, 2).result() == 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_that_just_ends_hurts_nobody(executor, gate):
    future = executor.submit(calls.through, gate, np.ones(10_000))
    gate.arrived()
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join()
    assert child.exitcode == 0
    child.close()
    gate.open()
    assert future.result().sum() == 10_000


WORKERS_COPY = """
import sys, shmexec
executor = shmexec.Executor(2, "fork")
def work():
    try:
        executor.submit(abs, 1)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
try:
    print(executor.submit(work).result())
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


def test_a_call_that_uses_the_executor_it_runs_in(run_script):
    ended = run_script(WORKERS_COPY)
    assert ended.stderr == ""
    assert "executor" in ended.stdout.lower()
    assert ended.stdout.startswith(("SerializationError", "PoolClosed"))


def test_a_worker_may_have_a_pool_of_its_own(make_executor):
    def nested(method):
        with shmexec.Executor(1, method) as own:
            return own.submit(abs, -3).result()

    # The time-out shows where it hangs, should it.
    executor = make_executor(1, timeout=10)
    assert executor.submit(nested, "forkserver").result() == 3


# -- shapes of map -----------------------------------------------------------------------


def test_map_without_iterables(executor):
    assert list(executor.map(calls.collect)) == []


def test_map_of_what_cannot_be_iterated(executor):
    with pytest.raises(TypeError):
        list(executor.map(abs, 5))


def test_an_iterable_that_fails_halfway(executor):
    def items():
        yield 1
        raise KeyError("halfway")

    with pytest.raises(KeyError, match="halfway"):
        list(executor.map(abs, items()))
    assert executor.submit(calls.same, 1).result() == 1


@pytest.mark.parametrize("size", [0, -1])
def test_a_buffersize_without_room(executor, size):
    with pytest.raises(ValueError, match="buffersize"):
        list(executor.map(abs, [1], buffersize=size))
