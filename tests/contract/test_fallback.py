"""Calls of a pool that cannot start, or breaks, run in a process each if asked for."""

from __future__ import annotations

import gc
import os
import sys
import threading
import warnings
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest

import shmexec
from shmexec import fallback
from tests.contract import calls
from tests.waiting import LONG, wait_until

pytestmark = pytest.mark.one_kind


@pytest.fixture
def break_on_start(make_executor):
    """Executors of which no worker can start."""

    def make(max_workers=2, **settings):
        settings = {"max_restarts": 0, "fallback": "process-per-call", **settings}
        return make_executor(
            max_workers, initializer=os._exit, initargs=(3,), **settings
        )

    return make


@pytest.fixture
def breakable(make_executor, tmp_path):
    """An executor with one worker, and what makes the next one's start break it."""
    path = tmp_path / "die"

    def make(max_workers=2, **settings):
        settings = {"max_restarts": 0, "fallback": "process-per-call", **settings}
        executor = make_executor(
            max_workers, initializer=calls.die_if, initargs=(str(path),), **settings
        )
        executor.submit(calls.pid).result()
        return executor, path.touch

    return make


def warned_once():
    return pytest.warns(shmexec.FallbackWarning, match="broken")


def fallbacks(caught):
    """The warnings that are of this; Python may warn of forks beside threads."""
    return [each for each in caught if each.category is shmexec.FallbackWarning]


def test_without_it_calls_fail(break_on_start):
    executor = break_on_start(fallback=None)
    with pytest.raises(shmexec.PoolBroken):
        executor.submit(calls.same, 1).result(LONG)


@pytest.mark.every_start
def test_calls_run_in_a_fresh_process_each_with_one_warning(break_on_start):
    executor = break_on_start()
    with warned_once() as caught:
        futures = [executor.submit(calls.pid) for _ in range(5)]
        pids = {future.result(LONG) for future in futures}
        pids.add(executor.submit(calls.pid).result(LONG))
    assert len(pids) == 6
    assert os.getpid() not in pids
    assert len(fallbacks(caught)) == 1
    figures = executor.stats()
    assert (figures.submitted, figures.done, figures.failed) == (6, 6, 0)
    assert (figures.pending, figures.running, figures.cancelled) == (0, 0, 0)


def test_arguments_of_all_kinds_arrive(break_on_start):
    executor = break_on_start()
    large, small = np.arange(50_000.0), np.arange(3)
    text = "x" * 100_000
    shared, board = shmexec.share(large), shmexec.zeros(large.shape)
    handle = shmexec.share({"a": large, "b": [1, 2]})
    with warned_once():
        futures = [
            executor.submit(calls.write_to, large, 1),
            executor.submit(lambda x, y: (x + 1, y), small, y=text),
            executor.submit(calls.write_to, board, 7),
            executor.submit(calls.same, handle),
            executor.submit(calls.same, [shared[::2], shared.reshape(2, -1)]),
            executor.submit(calls.later, 5),
        ]
        large[:] = -1  # after it was submitted: seen by none
        assert futures[0].result(LONG) == shared.sum()
        assert (large == -1).all()
        plus_one, same = futures[1].result(LONG)
        assert (plus_one == small + 1).all()
        assert same == text
        futures[2].result(LONG)
        assert (board == 7).all()
        back = futures[3].result(LONG)
        assert (back["a"] == shared).all()
        assert back["b"] == [1, 2]
        views = futures[4].result(LONG)
        assert (views[0] == shared[::2]).all()
        assert (views[1] == shared.reshape(2, -1)).all()
        assert futures[5].result(LONG) == 5
    with pytest.raises(ValueError, match="read-only"):
        executor.submit(calls.write_to, shared, 1).result(LONG)
    del futures, handle, shared, board
    gc.collect()


def test_map_and_map_batches_work(break_on_start):
    executor = break_on_start()
    rows = np.arange(100_000.0).reshape(1000, 100)
    with warned_once():
        assert list(executor.map(calls.add, range(5), range(5))) == [0, 2, 4, 6, 8]
    assert list(executor.map(calls.same, range(9), chunksize=4)) == [*range(9)]
    out = executor.map_batches(np.negative, rows, batch_size=300)
    assert (out == -rows).all()


def test_errors_are_those_of_the_calls(break_on_start):
    executor = break_on_start()
    with warned_once():
        with pytest.raises(KeyError, match="x"):
            executor.submit(calls.fail, KeyError("x")).result(LONG)
    with pytest.raises(shmexec.SerializationError, match=r"args\[0\]"):
        executor.submit(calls.same, threading.Lock()).result(LONG)
    with pytest.raises(shmexec.SerializationError, match="result"):
        executor.submit(threading.Lock).result(LONG)
    with pytest.raises(shmexec.WorkerDied, match="exit code 3") as caught:
        executor.submit(calls.leave_at_once).result(LONG)
    assert caught.value.exitcode == 3
    assert executor.stats().failed == 4 - 1  # what was not pickled was no call


def test_calls_that_wait_when_it_breaks_run_and_the_one_that_runs_goes_on(
    breakable, gate
):
    executor, break_it = breakable()
    running = executor.submit(calls.through, gate, "here")
    gate.arrived()
    break_it()
    with warned_once() as caught:
        waiting = [executor.submit(calls.same, i) for i in range(4)]
        assert [future.result(LONG) for future in waiting] == [0, 1, 2, 3]
        assert not running.done()
        gate.open()
        assert running.result(LONG) == "here"
    assert len(fallbacks(caught)) == 1
    assert executor.stats().done == 6


def test_a_call_that_had_begun_is_never_repeated(breakable, gate, tmp_path):
    executor, break_it = breakable()
    path = tmp_path / "runs"

    def begin_then_die(barrier):
        calls.count(path)
        barrier.wait()
        os._exit(3)

    running = executor.submit(begin_then_die, gate)
    gate.arrived()
    break_it()
    with warned_once():
        assert executor.submit(calls.same, 1).result(LONG) == 1
    gate.open()
    with pytest.raises(shmexec.WorkerDied):
        running.result(LONG)
    with pytest.raises(shmexec.WorkerDied):
        executor.submit(calls.count_and_die, path).result(LONG)
    assert path.read_text() == ".."


def test_each_call_runs_once_if_it_breaks_among_them(breakable, tmp_path):
    executor, break_it = breakable(3, idle_timeout=60)
    paths = [[tmp_path / f"{i}-{j}" for j in range(15)] for i in range(3)]
    futures = []

    def submit(mine):
        futures.extend([executor.submit(calls.count, path, 5) for path in mine])

    threads = [threading.Thread(target=submit, args=(mine,)) for mine in paths]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", shmexec.FallbackWarning)
        break_it()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert [future.result(LONG) for future in futures] == [5] * 45
    assert {path.read_text() for mine in paths for path in mine} == {"."}


def test_a_failing_initializer_is_no_reason(make_executor):
    executor = make_executor(
        initializer=calls.fail,
        initargs=(ValueError("no such model"),),
        fallback="process-per-call",
    )
    with pytest.raises(shmexec.PoolBroken, match="no such model"):
        executor.submit(calls.same, 1).result(LONG)
    with pytest.raises(shmexec.PoolBroken, match="no such model"):
        executor.submit(calls.same, 1)


def test_streams_and_broadcast_have_nobody_to_go_to(break_on_start):
    executor = break_on_start()
    for _ in range(2):
        with pytest.raises(shmexec.PoolBroken):
            list(executor.stream(range, 3))
    with pytest.raises(shmexec.PoolBroken):
        executor.broadcast(calls.pid)
    with pytest.raises(shmexec.PoolBroken):
        executor.broadcast(calls.pid)


@pytest.mark.filterwarnings("ignore::shmexec.FallbackWarning")
class TestFutures:
    def test_time_outs_hold(self, break_on_start, gate):
        executor = break_on_start(1)
        stuck = executor.options(timeout=0.2).submit(calls.stay, gate)
        gate.arrived()
        with pytest.raises(shmexec.CallTimeout, match=r"timeout of 0\.2 s") as caught:
            stuck.result(LONG)
        assert caught.value.seconds == 0.2
        assert executor.submit(calls.same, 1).result(LONG) == 1

    def test_one_that_waits_can_be_cancelled(self, break_on_start, gate, tmp_path):
        executor = break_on_start(1)
        first = executor.submit(calls.through, gate)
        gate.arrived()
        path = tmp_path / "runs"
        large = np.zeros(50_000)  # its memory is given back in any case
        futures = [executor.submit(calls.count, path, large) for _ in range(3)]
        assert futures[0].cancel()
        assert futures[2].cancel()
        assert futures[2].cancel()
        done, _ = wait(futures, LONG, "FIRST_COMPLETED")
        assert futures[0] in done
        assert not first.cancel()
        gate.open()
        assert not futures[1].result(LONG).any()
        with pytest.raises(CancelledError):
            futures[0].result(LONG)
        assert first.result(LONG) is None
        assert path.read_text() == "."
        assert wait_until(lambda: executor.stats().cancelled == 2)

    def test_one_that_was_cancelled_before_it_broke_stays_so(
        self, breakable, gate, tmp_path
    ):
        executor, break_it = breakable(1)
        executor.resize(1)
        running = executor.submit(calls.through, gate)
        gate.arrived()
        path = tmp_path / "runs"
        waiting = executor.submit(calls.count, path)
        assert waiting.cancel()
        break_it()
        executor.resize(2)
        executor.submit(calls.same, 1).result(LONG)
        gate.open()
        running.result(LONG)
        assert waiting.cancelled()
        assert not path.exists()

    def test_one_that_runs_can_be_stopped(self, break_on_start, gate):
        executor = break_on_start()
        stuck = executor.submit(calls.stay, gate)
        gate.arrived()
        assert stuck.running()
        assert stuck.cancel(running=True)
        with pytest.raises(shmexec.CallStopped):
            stuck.result(LONG)

    def test_callbacks_are_called(self, break_on_start):
        executor = break_on_start()
        called = threading.Event()
        executor.submit(calls.same, 1).add_done_callback(lambda _: called.set())
        assert called.wait(LONG)

    def test_several_threads_wait_for_their_own(self, break_on_start):
        executor = break_on_start()
        results = []

        def one(i):
            results.append(executor.submit(calls.same, i).result(LONG))

        threads = [threading.Thread(target=one, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
        assert sorted(results) == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore::shmexec.FallbackWarning")
class TestShutdown:
    def test_waits_for_processes(self, break_on_start, tmp_path):
        executor = break_on_start(1)
        path = tmp_path / "runs"
        futures = [executor.submit(calls.count, path) for _ in range(3)]
        executor.shutdown()
        assert path.read_text() == "..."
        assert all(future.done() for future in futures)
        with pytest.raises(shmexec.PoolClosed):
            executor.submit(calls.same, 1)

    def test_may_cancel_what_waits(self, break_on_start, gate, tmp_path):
        executor = break_on_start(1)
        first = executor.submit(calls.through, gate)
        gate.arrived()
        path = tmp_path / "runs"
        waiting = executor.submit(calls.count, path)
        executor.shutdown(wait=False, cancel_futures=True)
        assert waiting.cancelled()
        gate.open()
        executor.shutdown()
        assert first.done()
        assert not path.exists()

    def test_calls_that_wait_for_the_first_worker_run_after_it(self, break_on_start):
        executor = break_on_start()
        futures = [executor.submit(calls.same, i) for i in range(3)]
        executor.shutdown(wait=False)
        assert [future.result(LONG) for future in futures] == [0, 1, 2]

    def test_a_program_ends_when_its_calls_are_done(self, run_script):
        done = run_script(
            "import os, warnings, shmexec\n"
            "warnings.simplefilter('ignore')\n"
            "ex = shmexec.Executor(2, initializer=os._exit, initargs=(3,),\n"
            "    max_restarts=0, fallback='process-per-call')\n"
            "for i in range(3):\n"
            "    ex.submit(print, 'call', flush=True)\n"
        )
        assert done.returncode == 0
        assert done.stderr == ""
        if sys.version_info < (3, 12):
            assert done.stdout.split() == ["call"] * 3
        else:  # it forks no process any more once the program ends
            assert set(done.stdout.split()) <= {"call"}


def test_a_warning_made_an_error_fails_one_call_which_does_not_run(
    break_on_start, tmp_path
):
    executor = break_on_start()
    path = tmp_path / "runs"
    with warnings.catch_warnings():
        warnings.simplefilter("error", shmexec.FallbackWarning)
        with pytest.raises(shmexec.FallbackWarning):
            executor.submit(calls.count, path).result(LONG)
        assert executor.submit(calls.count, path, 5).result(LONG) == 5
    assert path.read_text() == "."


class TestPoolThatCannotBeMade:
    @pytest.fixture
    def executor(self, make_executor, monkeypatch):
        def fail(_options):
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(fallback, "RescuingPool", fail)
        executor = make_executor(fallback="process-per-call")
        with pytest.warns(shmexec.FallbackWarning, match="Too many open files"):
            assert executor.submit(calls.pid).result(LONG) != os.getpid()
        return executor

    def test_calls_run(self, executor):
        large = np.arange(50_000.0)
        future = executor.submit(lambda x, text: (x.sum(), text), large, "y" * 50_000)
        total = large.sum()
        large[:] = 0
        assert future.result(LONG) == (total, "y" * 50_000)
        assert list(executor.map(calls.same, range(4))) == [0, 1, 2, 3]
        rows = np.arange(100_000.0).reshape(1000, 100)
        assert (executor.map_batches(np.negative, rows, batch_size=300) == -rows).all()

    def test_failures_are_those_of_the_calls(self, executor, gate):
        with pytest.raises(KeyError):
            executor.submit(calls.fail, KeyError("x")).result(LONG)
        with pytest.raises(shmexec.SerializationError, match=r"args\[0\]"):
            executor.submit(calls.same, threading.Lock()).result(LONG)
        with pytest.raises(shmexec.CallTimeout):
            executor.options(timeout=0.1).submit(calls.stay, gate).result(LONG)
        with pytest.raises(shmexec.PoolBroken, match="Too many open files"):
            executor.broadcast(calls.pid)
        with pytest.raises(shmexec.PoolBroken, match="Too many open files"):
            list(executor.stream(range, 3))
        assert executor.stats().failed == 2

    def test_it_can_be_shut_down(self, executor, gate):
        futures = [executor.submit(calls.through, gate) for _ in range(3)]
        gate.arrived(2)
        executor.shutdown(wait=False, cancel_futures=True)
        assert [future.cancelled() for future in futures] == [False, False, True]
        assert futures[0].cancel(running=True)
        gate.open()
        executor.shutdown()
        assert futures[1].result(LONG) is None
        with pytest.raises(shmexec.CallStopped):
            futures[0].result(LONG)
        with pytest.raises(shmexec.PoolClosed):
            executor.submit(calls.same, 1)


@pytest.mark.parametrize(
    ("value", "error"), [("threads", ValueError), (True, TypeError), (5, TypeError)]
)
def test_only_what_is_known_is_taken(value, error):
    with pytest.raises(error, match="fallback"):
        shmexec.Executor(1, fallback=value)
