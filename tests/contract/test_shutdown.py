"""``shutdown``, the context manager, garbage collection and interpreter exit."""

from __future__ import annotations

import gc
import sys
import threading
from concurrent.futures import CancelledError

import psutil
import pytest

import shmexec
from shmexec.memory.host import Host
from shmexec.runtime import lifecycle
from tests.contract import calls
from tests.waiting import wait_until

METHODS = ["fork", "forkserver", "spawn"]


def test_no_call_is_taken_afterwards(fresh_executor):
    fresh_executor.shutdown()
    with pytest.raises(
        RuntimeError, match="cannot schedule new futures after shutdown"
    ):
        fresh_executor.submit(pow, 2, 5)


def test_map_is_refused_too(fresh_executor):
    fresh_executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures"):
        list(fresh_executor.map(abs, [1]))


def test_may_be_repeated(fresh_executor):
    fresh_executor.submit(abs, 1).result()
    fresh_executor.shutdown()
    fresh_executor.shutdown()
    fresh_executor.shutdown(wait=False, cancel_futures=True)


def test_of_an_executor_that_was_never_used(make_executor):
    make_executor().shutdown()
    make_executor().shutdown(wait=False)
    with make_executor():
        pass


@pytest.mark.every_start
def test_submitted_calls_still_run(fresh_executor):
    futures = [fresh_executor.submit(calls.add, i, 1) for i in range(50)]
    fresh_executor.shutdown()
    assert [future.result() for future in futures] == list(range(1, 51))


@pytest.mark.one_kind
def test_as_it_ends_it_can_be_looked_at(make_executor, monkeypatch):
    executor, seen = make_executor(1), []
    close = Host.close_account

    def close_and_look(*args):
        close(*args)
        seen.append((executor.stats().shared_memory_budget, executor.health().state))
        repr(executor)

    monkeypatch.setattr(Host, "close_account", close_and_look)
    executor.submit(abs, 1).result()
    executor.shutdown()
    assert seen == [(0, "closing")]
    assert executor.stats().shared_memory_budget == 0


@pytest.mark.one_kind
def test_others_come_and_go_as_all_are_looked_at(make_executor):
    idle = [make_executor(1)._pool for _ in range(20)]
    over = threading.Event()

    def come_and_go():
        while not over.is_set():
            lifecycle.unregister(idle[0])
            lifecycle.register(idle[0])

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(2_000):
            assert set(idle[1:]) <= set(lifecycle.pools())
    finally:
        over.set()
        thread.join()
        sys.setswitchinterval(before)


@pytest.mark.every_start
def test_afterwards_no_worker_is_left(fresh_executor):
    pids = fresh_executor.broadcast(calls.pid)
    fresh_executor.shutdown()
    assert not any(_runs(pid) for pid in pids)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_context_manager_waits_for_calls(make_executor):
    with make_executor() as executor:
        futures = [executor.submit(calls.same, i) for i in range(20)]
    assert all(future.done() for future in futures)
    with pytest.raises(RuntimeError):
        executor.submit(calls.same, 1)


def test_an_exception_in_the_context_passes_through(make_executor):
    with pytest.raises(KeyError), make_executor() as executor:
        executor.submit(calls.same, 1).result()
        raise KeyError


def test_without_waiting_it_returns_while_calls_run(fresh_executor, gate):
    future = fresh_executor.submit(calls.through, gate, 5)
    gate.arrived()
    fresh_executor.shutdown(wait=False)
    assert not future.done()
    gate.open()
    assert future.result() == 5


def test_results_come_after_a_shutdown_without_waiting(fresh_executor):
    results = fresh_executor.map(abs, range(-5, 5))
    fresh_executor.shutdown(wait=False)
    assert list(results) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]


def test_cancel_futures_cancels_what_has_not_begun(fresh_executor, gate):
    running = [fresh_executor.submit(calls.through, gate, i) for i in range(2)]
    gate.arrived(2)
    pending = [fresh_executor.submit(calls.same, i) for i in range(50)]
    fresh_executor.shutdown(wait=False, cancel_futures=True)
    gate.open()
    fresh_executor.shutdown()
    assert [future.result() for future in running] == [0, 1]
    assert all(future.cancelled() for future in pending)


def test_whoever_waits_for_a_cancelled_future_is_told(fresh_executor, gate):
    running = [fresh_executor.submit(calls.through, gate) for _ in range(2)]
    gate.arrived(2)
    pending = fresh_executor.submit(calls.same, 1)
    seen = []

    def look():
        try:
            seen.append(pending.result(20))
        except CancelledError:
            seen.append("cancelled")

    thread = threading.Thread(target=look)
    thread.start()
    fresh_executor.shutdown(wait=False, cancel_futures=True)
    thread.join()
    gate.open()
    assert seen == ["cancelled"]
    assert [future.result() for future in running] == [None, None]


def test_callbacks_of_cancelled_futures_may_use_the_executor(fresh_executor, gate):
    running = [fresh_executor.submit(calls.through, gate) for _ in range(2)]
    gate.arrived(2)
    seen = []

    def callback(future):
        with pytest.raises(RuntimeError):
            fresh_executor.submit(abs, 1)
        seen.append(future.cancelled())

    fresh_executor.submit(calls.same, 1).add_done_callback(callback)
    fresh_executor.shutdown(wait=False, cancel_futures=True)
    gate.open()
    fresh_executor.shutdown()
    assert seen == [True]
    assert all(future.done() for future in running)


def test_in_one_thread_while_others_submit(make_executor):
    # bpo-12456: a call is either refused or done, it never hangs.
    executor = make_executor()
    executor.submit(abs, 1).result()
    futures = []

    def use():
        try:
            while True:
                futures.append(executor.submit(calls.same, 1))
        except RuntimeError:
            return

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert wait_until(lambda: len(futures) > 20)
    executor.shutdown()
    for thread in threads:
        thread.join()
    assert all(future.result(20) == 1 for future in futures)


def test_in_a_callback(fresh_executor):
    done = threading.Event()

    def callback(_):
        fresh_executor.shutdown()
        done.set()

    fresh_executor.submit(calls.same, 1).add_done_callback(callback)
    assert done.wait(20)


def test_after_a_call_was_cancelled_while_pending(fresh_executor, gate):
    # gh-94440: such a future must not keep the pool from ending.
    running = [fresh_executor.submit(calls.through, gate) for _ in range(2)]
    gate.arrived(2)
    assert fresh_executor.submit(calls.same, 1).cancel()
    gate.open()
    fresh_executor.shutdown()
    assert all(future.done() for future in running)


def test_after_an_unpicklable_call(fresh_executor):
    fresh_executor.submit(calls.same, 1).result()
    with pytest.raises(Exception, match="pickle"):
        fresh_executor.submit(calls.same, threading.Lock()).result()
    fresh_executor.shutdown()


def test_a_collected_executor_ends_its_workers(start_method, make_executor):
    executor = shmexec.Executor(2, start_method)
    future = executor.submit(calls.same, 3)
    pids = executor.broadcast(calls.pid)
    del executor
    gc.collect()
    assert future.result() == 3
    assert wait_until(lambda: not any(_runs(pid) for pid in pids))


def test_a_finalizer_does_not_wait_for_a_thread(start_method, monkeypatch):
    """An interrupt that comes meanwhile would be lost, and so would the shutdown."""
    executor = shmexec.Executor(2, start_method)
    node = executor.actor(calls.Thing)
    assert node.method().result() == calls.Thing().method()
    starters, start = [], threading.Thread.start

    def note(thread):
        starters.append(threading.get_ident())
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", note)
    before = set(lifecycle.pools())
    del executor, node
    gc.collect()
    assert wait_until(lambda: before.isdisjoint(lifecycle.pools()))
    assert starters
    assert threading.get_ident() not in starters


# -- the end of the interpreter --------------------------------------------------------

AT_EXIT = """
import sys, shmexec
from tests.contract import calls
executor = shmexec.Executor(2, sys.argv[1])
executor.submit(calls.note, sys.argv[2], "apple")
executor.submit(print, "pear", flush=True)
"""


@pytest.mark.parametrize("method", METHODS)
def test_calls_finish_when_the_program_ends(run_script, tmp_path, method):
    log = tmp_path / "log"
    ended = run_script(AT_EXIT, method, str(log))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "pear\n", "")
    assert log.read_text() == "apple\n"


AFTER_EXIT = """
import atexit, sys
@atexit.register
def run_last():
    try:
        executor.submit(id, None)
    except RuntimeError as error:
        print(error)
import shmexec
executor = shmexec.Executor(2, sys.argv[1])
executor.submit(id, 42).result()
"""


@pytest.mark.parametrize("method", METHODS)
def test_no_call_is_taken_when_the_program_ends(run_script, method):
    ended = run_script(AFTER_EXIT, method)
    assert "cannot schedule new futures" in ended.stdout
    assert (ended.returncode, ended.stderr) == (0, "")


LEFT_OPEN = """
import sys, shmexec, numpy as np
executor = shmexec.Executor(2, sys.argv[1])
result = executor.submit(np.ones, 100_000).result()
error = executor.submit(divmod, 1, 0).exception()
future = executor.submit(np.sum, result)
future.add_done_callback(lambda f: print(f.result(), flush=True))
"""


@pytest.mark.parametrize(
    ("method", "kind"), [("fork", "posix"), ("forkserver", "memfd"), ("spawn", "memfd")]
)
def test_a_program_that_forgets_shutdown_ends_cleanly(
    run_script, method, kind, monkeypatch
):
    monkeypatch.setenv("SHMEXEC_SEGMENT", kind)
    ended = run_script(LEFT_OPEN, method)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "100000.0\n", "")


GH_83386 = """
import sys, shmexec
def main():
    executor = shmexec.Executor(2, sys.argv[1])
    executor.submit(print, "apple", flush=True)
    executor.shutdown(wait=False)
main()
"""


@pytest.mark.parametrize("method", METHODS)
def test_shutdown_without_waiting_at_the_end_of_a_program(run_script, method):
    ended = run_script(GH_83386, method)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "apple\n", "")
