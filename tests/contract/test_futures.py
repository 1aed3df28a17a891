"""Futures: callbacks, cancellation, states, time-outs."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import CancelledError, Future, InvalidStateError

import pytest

import shmexec
from tests.contract import calls
from tests.waiting import wait_until

pytestmark = pytest.mark.one_kind


def _calls_back(future):
    seen: list[Future] = []
    done = threading.Event()

    def callback(which):
        seen.append(which)
        done.set()

    future.add_done_callback(callback)
    assert done.wait(20)
    return seen


def test_a_callback_gets_the_future(executor):
    future = executor.submit(calls.same, 5)
    assert _calls_back(future) == [future]
    assert future.result() == 5


def test_a_callback_is_called_with_nobody_waiting(executor, gate):
    future = executor.submit(calls.through, gate, 5)
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert not done.is_set()
    gate.open()
    assert done.wait(20)


def test_a_callback_of_a_failed_call(executor):
    future = executor.submit(calls.ten_by, 0)
    assert _calls_back(future) == [future]
    assert isinstance(future.exception(), ZeroDivisionError)


def test_a_callback_of_a_cancelled_call(executor, gate):
    running = [executor.submit(calls.through, gate) for _ in range(2)]
    gate.arrived(2)
    future = executor.submit(calls.same, 1)
    seen = []
    future.add_done_callback(seen.append)
    assert future.cancel()
    assert seen == [future]
    gate.open()
    assert [call.result() for call in running] == [None, None]


def test_callbacks_are_called_in_order(executor, gate):
    future = executor.submit(calls.through, gate)
    seen = []
    done = threading.Event()
    for i in range(5):
        future.add_done_callback(lambda _, i=i: seen.append(i))
    future.add_done_callback(lambda _: done.set())
    gate.open()
    assert done.wait(20)
    assert seen == list(range(5))


def test_a_late_callback_is_called_at_once(executor):
    future = executor.submit(calls.same, 1)
    future.result()
    seen = []
    future.add_done_callback(seen.append)
    assert seen == [future]


def test_an_exception_in_a_callback_is_logged_and_hurts_nobody(executor, gate, caplog):
    future = executor.submit(calls.through, gate, 5)
    done = threading.Event()

    def fails(_):
        raise ValueError("doh!")

    future.add_done_callback(fails)
    future.add_done_callback(lambda _: done.set())
    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        gate.open()
        assert done.wait(20)
    assert "exception calling callback" in caplog.text
    assert "doh!" in caplog.text
    assert future.result() == 5
    assert executor.submit(calls.same, 6).result() == 6


def test_a_callback_may_submit_and_wait(executor):
    seen = []
    done = threading.Event()

    def callback(future):
        seen.append(executor.submit(calls.add, future.result(), 1).result(20))
        done.set()

    executor.submit(calls.same, 1).add_done_callback(callback)
    assert done.wait(30)
    assert seen == [2]


def test_a_pending_call_can_be_cancelled(executor, gate, tmp_path):
    running = [executor.submit(calls.through, gate) for _ in range(2)]
    gate.arrived(2)
    log = tmp_path / "log"
    future = executor.submit(calls.note, str(log), "x")
    assert future.cancel()
    assert future.cancel()
    assert future.cancelled()
    assert future.done()
    with pytest.raises(CancelledError):
        future.result()
    with pytest.raises(CancelledError):
        future.exception()
    gate.open()
    assert [call.result() for call in running] == [None, None]
    assert executor.submit(calls.same, 1).result() == 1
    assert not log.exists()


def test_a_running_call_cannot_be_cancelled_by_plain_cancel(executor, gate):
    future = executor.submit(calls.through, gate, 5)
    gate.arrived()
    assert not future.cancel()
    assert not future.cancelled()
    gate.open()
    assert future.result() == 5


def test_a_done_call_cannot_be_cancelled(executor):
    future = executor.submit(calls.same, 5)
    future.result()
    assert not future.cancel()
    assert future.result() == 5


@pytest.mark.every_start
def test_a_running_call_can_be_stopped(fresh_executor, gate):
    future = fresh_executor.submit(calls.stay, gate)
    gate.arrived()
    assert future.cancel(running=True)
    with pytest.raises(shmexec.CallStopped):
        future.result(20)
    assert isinstance(future.exception(), CancelledError)
    assert fresh_executor.submit(calls.same, 1).result(20) == 1


def test_running_and_done_tell_the_state(executor, gate):
    first = [executor.submit(calls.through, gate) for _ in range(2)]
    gate.arrived(2)
    pending = executor.submit(calls.same, 1)
    assert [f.running() for f in first] == [True, True]
    assert not pending.running()
    assert not pending.done()
    gate.open()
    assert pending.result() == 1
    assert pending.done()
    assert not pending.running()
    assert [f.result() for f in first] == [None, None]


def test_result_and_exception_time_out(executor, gate):
    future = executor.submit(calls.through, gate, 5)
    for timeout in (0, 0.01):
        with pytest.raises(TimeoutError):
            future.result(timeout=timeout)
        with pytest.raises(TimeoutError):
            future.exception(timeout=timeout)
    gate.open()
    assert future.result(timeout=20) == 5
    assert future.exception() is None


def test_a_result_may_be_asked_for_again(executor):
    future = executor.submit(calls.same, [1])
    assert future.result() is future.result()


def test_the_repr_tells_the_state(executor, gate):
    future = executor.submit(calls.through, gate, 5)
    gate.arrived()
    assert "running" in repr(future)
    gate.open()
    future.result()
    assert "finished returned int" in repr(future)


def test_a_future_of_its_own_is_a_plain_one():
    future = shmexec.Future()
    assert future.set_running_or_notify_cancel()
    future.set_result(1)
    with pytest.raises(InvalidStateError, match="FINISHED"):
        future.set_result(2)
    with pytest.raises(InvalidStateError, match="FINISHED"):
        future.set_exception(ValueError())
    assert future.result() == 1


def test_a_thread_in_result_sees_a_cancel_by_another(executor, gate):
    running = [executor.submit(calls.through, gate) for _ in range(2)]
    gate.arrived(2)
    future = executor.submit(calls.same, 1)
    seen = []

    def look():
        try:
            future.result(20)
        except CancelledError:
            seen.append("cancelled")

    thread = threading.Thread(target=look)
    thread.start()
    future.cancel()
    assert wait_until(lambda: seen == ["cancelled"])
    thread.join()
    gate.open()
    assert [call.result() for call in running] == [None, None]
