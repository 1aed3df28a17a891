"""A call that must stop does, whatever it does, and its slot is free at once."""

from __future__ import annotations

from concurrent.futures import CancelledError, wait

import pytest

import shmexec
from tests.contract import calls
from tests.integration import faults
from tests.integration.faults import is_gone
from tests.waiting import wait_until

SHORT = 0.1


def warm_up(executor):
    """Have a worker started, and know the functions: the time-out is not for that."""
    executor.options(timeout=20).submit(is_gone, 1).result()


@pytest.mark.parametrize("hang", faults.HANGS, ids=lambda fn: fn.__name__)
def test_a_timeout_stops_the_call(make_executor, gate, hang):
    executor = make_executor(1)
    warm_up(executor)
    error = executor.options(timeout=0.2).submit(hang, gate).exception()
    assert isinstance(error, shmexec.CallTimeout)
    assert isinstance(error, TimeoutError)
    assert error.seconds == 0.2
    assert "0.2 s" in str(error)
    assert hang.__name__ in str(error)
    if hang is not faults.block_signals:
        assert f"in {hang.__name__}" in error.stack
    [pid] = gate.arrived()
    assert wait_until(lambda: is_gone(pid))
    assert executor.submit(calls.same, 1).result() == 1


def test_four_hanging_calls_in_a_row_leave_a_usable_pool(make_executor, gate):
    executor = make_executor(1, timeout=SHORT, max_restarts=3)
    # One of them gives in to no signal but the last, the other to none that Python sees.
    for hang in (faults.ignore_everything, faults.stuck_in_c) * 2:
        error = executor.submit(hang, gate).exception()
        assert isinstance(error, shmexec.CallTimeout)
    assert executor.options(timeout=20).submit(calls.same, "right").result() == "right"
    stats = executor.stats()
    assert stats.worker_deaths == 0
    assert stats.failed == 4


def test_the_slot_is_free_before_the_hanging_worker_has_ended(make_executor, gate):
    executor = make_executor(1)
    hanging = executor.options(timeout=SHORT).submit(faults.ignore_everything, gate)
    assert executor.submit(calls.same, "next").result() == "next"
    assert isinstance(hanging.exception(), shmexec.CallTimeout)


def test_the_time_spent_waiting_does_not_count(make_executor, gate):
    executor = make_executor(1)
    first = executor.submit(calls.through, gate, 1)
    second = executor.options(timeout=SHORT).submit(calls.same, 2)
    gate.arrived()
    assert wait([second], timeout=3 * SHORT).not_done
    gate.open()
    assert (first.result(), second.result()) == (1, 2)


def test_a_call_in_time_is_not_disturbed(make_executor):
    executor = make_executor(1, timeout=20)
    pids = {executor.submit(calls.pid).result() for _ in range(5)}
    assert len(pids) == 1


def test_the_timeout_of_result_leaves_the_call_alone(make_executor, gate):
    executor = make_executor(1)
    future = executor.submit(calls.through, gate, "right")
    gate.arrived()
    with pytest.raises(TimeoutError) as caught:
        future.result(timeout=0.01)
    assert not isinstance(caught.value, shmexec.CallTimeout)
    assert future.running()
    gate.open()
    assert future.result() == "right"


def test_a_timeout_with_nobody_waiting(make_executor, gate):
    executor = make_executor(1, timeout=SHORT)
    done = []
    executor.submit(faults.sleep_for_ever, gate).add_done_callback(done.append)
    assert wait_until(lambda: done)
    assert isinstance(done[0].exception(), shmexec.CallTimeout)


def test_several_time_out_together(make_executor, gate):
    executor = make_executor(2, timeout=0.2)
    futures = [executor.submit(faults.sleep_for_ever, gate) for _ in range(4)]
    assert all(isinstance(f.exception(), shmexec.CallTimeout) for f in futures)


def test_a_timeout_is_not_retried(make_executor, gate):
    executor = make_executor(1, timeout=SHORT, retries=3)
    warm_up(executor)
    error = executor.submit(faults.sleep_for_ever, gate).exception()
    assert isinstance(error, shmexec.CallTimeout)
    assert len(gate.arrived(1)) == 1


# -- cancel ------------------------------------------------------------------------------


def test_cancel_a_pending_call(make_executor, gate):
    executor = make_executor(1)
    first = executor.submit(calls.through, gate, 1)
    gate.arrived()
    second, third = executor.submit(calls.same, 2), executor.submit(calls.same, 3)
    assert second.cancel()
    assert second.cancelled()
    gate.open()
    assert (first.result(), third.result()) == (1, 3)
    with pytest.raises(CancelledError):
        second.result()
    assert executor.stats().cancelled == 1


def test_plain_cancel_does_not_stop_a_running_call(make_executor, gate):
    executor = make_executor(1)
    future = executor.submit(calls.through, gate, 1)
    gate.arrived()
    assert not future.cancel()
    gate.open()
    assert future.result() == 1


@pytest.mark.parametrize("hang", faults.HANGS, ids=lambda fn: fn.__name__)
def test_cancel_running_stops_the_call(make_executor, gate, hang):
    executor = make_executor(1)
    future = executor.submit(hang, gate)
    [pid] = gate.arrived()
    assert future.cancel(running=True)
    error = future.exception()
    assert isinstance(error, shmexec.CallStopped)
    assert isinstance(error, CancelledError)
    with pytest.raises(CancelledError):
        future.result()
    assert wait_until(lambda: is_gone(pid))
    assert executor.submit(calls.same, 1).result() == 1
    assert executor.stats().worker_deaths == 0


def test_cancel_running_of_a_pending_call_drops_it(make_executor, gate):
    executor = make_executor(1)
    first = executor.submit(calls.through, gate, 1)
    gate.arrived()
    second = executor.submit(calls.same, 2)
    assert second.cancel(running=True)
    assert second.cancelled()
    gate.open()
    assert first.result() == 1


def test_cancel_running_after_the_end_does_nothing(make_executor):
    executor = make_executor(1)
    future = executor.submit(calls.same, 1)
    future.result()
    assert not future.cancel(running=True)
    assert future.result() == 1


def test_cancelling_one_leaves_the_others(make_executor, make_gate):
    executor = make_executor(2)
    gates = [make_gate(), make_gate()]
    one, other = (executor.submit(calls.through, gate, 1) for gate in gates)
    for each in gates:
        each.arrived()
    assert one.cancel(running=True)
    assert isinstance(one.exception(), shmexec.CallStopped)
    gates[1].open()
    assert other.result() == 1


def test_shutdown_waits_for_a_call_that_is_being_stopped(make_executor, gate):
    executor = make_executor(1)
    future = executor.submit(faults.ignore_everything, gate)
    [pid] = gate.arrived()
    future.cancel(running=True)
    executor.shutdown()
    assert is_gone(pid)
    assert future.done()
