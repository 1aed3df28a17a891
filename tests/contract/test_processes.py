"""What a pool of processes must do beside any executor's duties."""

from __future__ import annotations

import gc
import os
import signal
import sys
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

import shmexec
from shmexec.memory.views import loan_of
from tests.contract import calls
from tests.waiting import wait_until


@pytest.mark.every_start
def test_a_killed_worker_fails_its_call(fresh_executor, gate):
    future = fresh_executor.submit(calls.stay, gate)
    os.kill(gate.arrived()[0], signal.SIGKILL)
    with pytest.raises(BrokenProcessPool, match="SIGKILL"):
        future.result(20)


def test_memory_of_a_killed_worker_goes_back_but_not_what_is_in_use(fresh_executor):
    executor = fresh_executor
    kept = executor.submit(np.full, 1 << 17, 7.0).result()
    dropped = executor.submit(np.full, 1 << 22, 1.0).result()
    pid = executor.submit(calls.pid).result()
    # The parent's mapping keeps the memory; its descriptor tells how much there is.
    segment = loan_of(kept)._mapping
    one = kept.nbytes + dropped.nbytes
    assert taken(segment) >= one
    del dropped
    os.kill(pid, signal.SIGKILL)
    assert executor.submit(calls.pid).result(20) != pid
    assert wait_until(lambda: taken(segment) < one // 2)
    assert (kept == 7).all()


def taken(segment):
    """Bytes of memory that a segment takes."""
    return os.fstat(segment.descriptor).st_blocks * 512


def test_a_worker_killed_while_idle_is_no_loss(make_executor):
    executor = make_executor(1)
    pid = executor.submit(calls.pid).result()
    os.kill(pid, signal.SIGKILL)
    assert executor.submit(calls.pid).result(20) != pid


def test_no_more_workers_than_allowed(fresh_executor):
    pids = list(fresh_executor.map(calls.pid, range(50), chunksize=1))
    assert len(set(pids)) <= 2


def test_one_worker_for_each_waiting_call(fresh_executor, gate):
    futures = [fresh_executor.submit(calls.through, gate) for _ in range(5)]
    assert len(set(gate.arrived(2))) == 2
    assert len(fresh_executor.stats().workers) == 2
    gate.open()
    assert [future.result() for future in futures] == [None] * 5


def test_workers_start_only_when_needed(fresh_executor):
    assert fresh_executor.stats().workers == ()
    fresh_executor.submit(calls.same, 1).result()
    assert len(fresh_executor.stats().workers) == 1


def test_an_idle_worker_is_used_again(make_executor):
    executor = make_executor(4)
    pids = {executor.submit(calls.pid).result() for _ in range(10)}
    assert len(pids) == 1


def test_the_traceback_of_the_worker_is_shown(executor):
    error = executor.submit(calls.nested_error).exception()
    assert type(error) is ValueError
    assert type(error.__cause__) is shmexec.RemoteTraceback
    text = str(error.__cause__)
    assert "raise ZeroDivisionError" in text
    assert 'raise ValueError("outer") from error' in text


def test_the_traceback_is_printed_with_the_exception(executor, capsys):
    try:
        executor.submit(calls.nested_error).result()
    except ValueError:
        sys.excepthook(*sys.exc_info())
    assert 'raise ValueError("outer") from error' in capsys.readouterr().err


def test_arguments_and_results_are_collected_in_the_worker(executor, tmp_path):
    log = tmp_path / "log"
    pid = executor.submit(calls.pid_and, calls.Noting(str(log))).result()[0]
    gc.collect()
    assert wait_until(lambda: log.exists() and str(pid) in log.read_text())


@pytest.mark.every_start
def test_after_max_tasks_a_worker_is_replaced(make_executor):
    executor = make_executor(1, max_tasks_per_child=3)
    pids = [executor.submit(calls.pid).result() for _ in range(7)]
    assert len(set(pids)) == 3
    assert pids[0] == pids[1] == pids[2] != pids[3] == pids[4] == pids[5] != pids[6]


def test_max_tasks_of_one(make_executor):
    executor = make_executor(max_tasks_per_child=1)
    futures = [executor.submit(calls.pid) for _ in range(8)]
    assert len({future.result(20) for future in futures}) == 8


def test_max_tasks_count_failed_calls_too(make_executor):
    executor = make_executor(1, max_tasks_per_child=2)
    first = executor.submit(calls.pid).result()
    assert executor.submit(calls.ten_by, 0).exception() is not None
    assert executor.submit(calls.pid).result() != first


def test_shutdown_with_pending_calls_and_max_tasks(make_executor):
    executor = make_executor(1, max_tasks_per_child=1)
    futures = [executor.submit(calls.same, i) for i in range(5)]
    executor.shutdown()
    assert [future.result() for future in futures] == list(range(5))


def test_leaving_the_context_ends_all_processes(make_executor):
    with make_executor() as executor:
        assert list(executor.map(abs, range(-5, 5))) == [5, 4, 3, 2, 1, 0, 1, 2, 3, 4]
        assert len(executor.stats().workers) >= 1
    assert executor.stats().workers == ()


def test_the_default_number_of_workers_is_known(make_executor, monkeypatch):
    monkeypatch.setenv("SHMEXEC_WORKERS", "3")
    assert make_executor(None)._max_workers == 3


def test_environment_folder_and_path_are_those_of_now(make_executor, tmp_path):
    (tmp_path / "late_module.py").write_text("value = 17")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHMEXEC_TEST_LATE", "yes")
        patch.chdir(tmp_path)
        patch.syspath_prepend(tmp_path)
        executor = make_executor(1)
        assert executor.submit(os.getenv, "SHMEXEC_TEST_LATE").result() == "yes"
        assert executor.submit(os.getcwd).result() == str(tmp_path)
        import late_module

        assert executor.submit(getattr, late_module, "value").result() == 17


def test_two_executors_do_not_disturb_each_other(make_executor, gate):
    one, other = make_executor(), make_executor()
    future = one.submit(calls.through, gate, 1)
    gate.arrived()
    assert other.submit(calls.same, 2).result() == 2
    other.shutdown()
    gate.open()
    assert future.result() == 1
