"""Where this executor deliberately differs from ``ProcessPoolExecutor``.

- One death does not break the pool: it fails the call that ran, the worker is replaced.
- A call whose worker died before it began is not lost: it runs in another worker.
- ``max_tasks_per_child`` is allowed with the start method fork.
- Workers start as calls need them, under every start method.
- What cannot be pickled fails its call with an error that names the culprit.
- An argument that cannot be unpickled in the worker, or a result that cannot be unpickled
  here, fails its call alone.
- ``shutdown(cancel_futures=True)`` also cancels calls whose worker is only starting.
- The message after shutdown names the executor: it is a ``RuntimeError`` all the same.
- ``sys.exit`` while an argument is unpickled is that call's exception: nobody dies.
- ``__main__`` is never imported in a worker: no main guard, and lambdas work.
- ``mp_context`` may be the name of a start method.
- ``RemoteTraceback`` is public; the cause's text is the same.
- There is no limit of 61 workers on any platform, but a warning about memory.
"""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures.process import BrokenProcessPool

import pytest

import shmexec
from tests.contract import calls
from tests.contract.calls import Awkward

pytestmark = pytest.mark.one_kind


@pytest.mark.every_start
def test_one_death_does_not_break_the_pool(fresh_executor, gate):
    dying = fresh_executor.submit(calls.stay, gate)
    pid = gate.arrived()[0]
    others = [fresh_executor.submit(calls.add, i, 1) for i in range(20)]
    os.kill(pid, signal.SIGKILL)
    assert isinstance(dying.exception(20), BrokenProcessPool)
    assert [other.result(20) for other in others] == list(range(1, 21))
    assert fresh_executor.submit(calls.same, 1).result(20) == 1


def test_the_death_of_all_workers_at_once_does_not_either(fresh_executor, gate):
    dying = [fresh_executor.submit(calls.stay, gate) for _ in range(2)]
    waiting = fresh_executor.submit(calls.same, 1)
    for pid in gate.arrived(2):
        os.kill(pid, signal.SIGKILL)
    assert all(isinstance(f.exception(20), shmexec.WorkerDied) for f in dying)
    assert waiting.result(20) == 1


def test_the_error_tells_which_signal_ended_the_worker(fresh_executor):
    error = fresh_executor.submit(calls.kill_me, signal.SIGKILL).exception(20)
    assert error.exitcode == -signal.SIGKILL
    assert "SIGKILL" in str(error)
    assert "possibly out of memory" in str(error)
    error = fresh_executor.submit(calls.kill_me, signal.SIGSEGV).exception(20)
    assert error.exitcode == -signal.SIGSEGV
    assert "SIGSEGV" in str(error)


def test_a_call_that_had_not_begun_is_not_lost(make_executor):
    executor = make_executor(1)
    pid = executor.submit(calls.pid).result()
    os.kill(pid, signal.SIGSTOP)
    future = executor.submit(calls.pid)
    os.kill(pid, signal.SIGKILL)
    assert future.result(20) != pid


def test_max_tasks_per_child_with_fork():
    with shmexec.Executor(1, "fork", max_tasks_per_child=1) as executor:
        pids = {executor.submit(calls.pid).result() for _ in range(3)}
    assert len(pids) == 3


@pytest.mark.every_start
def test_workers_start_as_calls_need_them(make_executor):
    executor = make_executor(4)
    assert executor.stats().workers == ()
    executor.submit(calls.same, 1).result()
    assert len(executor.stats().workers) == 1


def test_what_cannot_be_pickled_is_named(executor):
    error = executor.submit(calls.same, [threading.Lock()]).exception()
    assert isinstance(error, shmexec.SerializationError)
    assert error.path == "args[0][0]"


def test_a_result_that_cannot_be_unpickled_fails_its_call_alone(fresh_executor):
    future = fresh_executor.submit(calls.make_awkward, "loads", "error")
    assert isinstance(future.exception(), shmexec.SerializationError)
    assert fresh_executor.submit(calls.same, 1).result() == 1


def test_an_exit_while_unpickling_kills_nobody(make_executor):
    executor = make_executor(1)
    pid = executor.submit(calls.pid).result()
    error = executor.submit(calls.same, Awkward("loads", "exit")).exception()
    assert isinstance(error, SystemExit)
    assert executor.submit(calls.pid).result() == pid


def test_a_start_method_may_be_given_by_name():
    with shmexec.Executor(1, "forkserver") as executor:
        assert executor.submit(abs, -1).result() == 1


def test_more_than_eight_workers_give_one_warning_with_figures():
    with pytest.warns(shmexec.MemoryWarning, match=r"\d") as caught:
        executor = shmexec.Executor(9)
    executor.resize(12)
    executor.shutdown()
    assert len(caught) == 1
