"""What workers do now, and where calls were that had to stop."""

from __future__ import annotations

import io
import os
import signal
import threading

import pytest

import shmexec
from shmexec.runtime import faultlog, showing
from shmexec.scheduler import slots
from tests.contract import calls, hangs
from tests.waiting import LONG, wait_until


def dump(executor):
    file = io.StringIO()
    executor.dump(file)
    return file.getvalue()


def arrived_in(executor, gate, name):
    """A dump of a worker that is in this function: it has gone there before."""
    gate.arrived()
    assert wait_until(lambda: f"in {name}" in dump(executor)), dump(executor)
    return dump(executor)


def let_time_pass(pool):
    """All calls that run have run for as long as they may."""
    with pool._lock:
        for worker in pool._machine.workers.values():
            for timed in (worker, *worker.flight.values()):
                if timed.stop_at is not None:
                    timed.stop_at = 0.0
    pool.leading.wake()


def test_it_shows_calls_and_stacks(make_executor, gate):
    executor = make_executor(1, timeout=1000, name="mine")
    running = executor.submit(hangs.in_python, gate)
    arrived_in(executor, gate, "innermost")
    pending = [executor.options(priority=p).submit(calls.same, p) for p in (0, 2, 2)]
    text = dump(executor)
    [pid] = [worker.pid for worker in executor.stats().workers]
    assert text.startswith("executor 'mine': busy\n")
    assert (
        "calls pending: 3 (2 of priority 2, 1 of priority 0), the oldest for " in text
    )
    assert f"worker 1 (pid {pid}), busy for " in text
    assert " MB of private memory\n" in text
    assert "call 1 of in_python, for " in text
    assert "of 1000 s that it may take" in text
    names = [text.index(f"in {name}\n") for name in ("innermost", "outer", "in_python")]
    assert names == sorted(names), "the innermost call comes first"
    gate.open()
    assert running.result() == "undisturbed"
    assert [future.result() for future in pending] == [0, 2, 2]


@pytest.mark.one_kind
def test_by_default_it_goes_to_stderr(make_executor, capsys):
    make_executor(1).dump()
    assert "no call pending" in capsys.readouterr().err


@pytest.mark.one_kind
def test_of_an_idle_worker_and_after_shutdown(make_executor):
    executor = make_executor(1)
    executor.submit(calls.pid).result()
    assert "worker 1 (pid" in dump(executor)
    assert "idle for" in dump(executor)
    executor.shutdown()
    assert ": closed\n" in dump(executor)


def test_c_code_that_holds_the_gil(make_executor, gate):
    executor = make_executor(1)
    future = executor.submit(hangs.in_c_with_the_gil, gate)
    arrived_in(executor, gate, "in_c_with_the_gil")
    future.cancel(running=True)
    assert "in in_c_with_the_gil" in future.exception().stack


@pytest.mark.one_kind
def test_system_calls_go_on(make_executor, gate):
    executor = make_executor(2)
    reading = executor.submit(hangs.read_in_c, gate)
    sleeping = executor.submit(hangs.sleep_for, gate, 0.3)
    gate.arrived(2)
    for _ in range(5):
        dump(executor)
    gate.open()
    assert sleeping.result() >= 0.3
    assert reading.result() == (1, 0)


@pytest.mark.one_kind
def test_handlers_of_the_call_are_not_called(make_executor, gate):
    executor = make_executor(1)
    future = executor.submit(hangs.handling, gate)
    arrived_in(executor, gate, "handling")
    gate.open()
    assert future.result() == []


@pytest.mark.one_kind
def test_a_call_without_handlers_lives_on(make_executor, gate):
    executor = make_executor(1)
    future = executor.submit(hangs.without_handlers, gate)
    gate.arrived()
    assert "has taken the handler of signal" in dump(executor)
    gate.open()
    assert future.result() is None
    assert executor.stats().worker_deaths == 0


@pytest.mark.one_kind
def test_blocked_signals_are_told_or_another_thread_takes_it(make_executor, gate):
    executor = make_executor(1)
    future = executor.submit(hangs.with_signals_blocked, gate)
    gate.arrived()
    texts = dump(executor), dump(executor)
    future.cancel(running=True)
    for text in texts:
        assert "(it blocks signals)" in text or "in with_signals_blocked" in text


@pytest.mark.one_kind
def test_a_stopped_worker_is_told(make_executor, gate):
    executor = make_executor(2)
    stopped = executor.submit(hangs.in_python, gate)
    [pid] = gate.arrived()
    other = executor.submit(hangs.in_python, gate)
    gate.arrived()
    os.kill(pid, signal.SIGSTOP)
    assert wait_until(lambda: "it is stopped" in dump(executor))
    assert dump(executor).count("in innermost") == 1
    os.kill(pid, signal.SIGCONT)
    assert wait_until(lambda: dump(executor).count("in innermost") == 2)
    gate.open()
    assert (stopped.result(), other.result()) == ("undisturbed", "undisturbed")


@pytest.mark.every_start
def test_an_initializer_that_hangs(make_executor, gate):
    executor = make_executor(1, initializer=hangs.in_python, initargs=(gate,))
    future = executor.submit(calls.same, 1)
    # Until its process runs there is nothing to see, and that is said.
    assert wait_until(lambda: "starting: its process" in dump(executor))
    text = arrived_in(executor, gate, "innermost")
    assert "starting" in text
    gate.open()
    assert future.result() == 1


@pytest.mark.one_kind
def test_coroutines_are_shown(make_executor, gate):
    executor = make_executor(1)
    future = executor.submit(hangs.in_a_coroutine, gate)
    text = arrived_in(executor, gate, "awaits_for_ever")
    at = text.index("in awaits_for_ever\n")
    assert text.index("in in_a_coroutine\n") > at
    assert "\4" not in text
    future.cancel(running=True)
    assert "in awaits_for_ever" in future.exception().stack


@pytest.mark.one_kind
def test_actors_are_shown(make_executor, gate):
    executor = make_executor(1)
    node = executor.actor(hangs.Waits, max_concurrency=3)
    futures = [node.work(gate) for _ in range(2)]
    gate.arrived()
    assert wait_until(lambda: dump(executor).count("in deep\n") == 2)
    text = dump(executor)
    assert "actor Waits (shmexec-Waits-0): busy" in text
    assert "call 1 of work, for " in text
    assert "call 2 (most recent call first):" in text
    for future in futures:
        future.cancel(running=True)


@pytest.mark.one_kind
def test_pipelines_are_shown(make_executor, gate):
    executor = make_executor(1)
    with executor.pipeline(hangs.in_python) as pipe:
        future = pipe.submit(gate)
        arrived_in(executor, gate, "innermost")
        gate.open()
        assert future.result() == "undisturbed"


def test_in_process():
    with shmexec.Executor(in_process=True) as executor:
        node = executor.actor(hangs.Waits)
        text = dump(executor)
        assert "calls run in this process" in text
        assert "in test_in_process" in text
        assert "actor Waits: ready" in text
        del node
    assert "closed" in dump(executor)


@pytest.mark.one_kind
def test_a_broken_pool_says_why(make_executor):
    executor = make_executor(1, initializer=calls.fail, initargs=(OSError("no disk"),))
    executor.submit(calls.same, 1).exception()
    assert ": failed\n" in dump(executor)
    assert "no disk" in dump(executor)


@pytest.mark.one_kind
def test_from_many_threads_at_once(make_executor, gate):
    executor = make_executor(2)
    futures = [executor.submit(hangs.in_python, gate) for _ in range(2)]
    gate.arrived(2)
    texts = []
    threads = [
        threading.Thread(target=lambda: texts.append(dump(executor))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [text.count("in innermost") for text in texts] == [2] * 6
    gate.open()
    assert {future.result() for future in futures} == {"undisturbed"}


@pytest.mark.one_kind
def test_the_log_does_not_grow(make_executor, monkeypatch, gate):
    monkeypatch.setattr(faultlog, "_REWIND_FROM", 4000)
    executor = make_executor(1)
    future = executor.submit(hangs.in_python, gate)
    arrived_in(executor, gate, "innermost")
    [handle] = executor._pool._workers.values()
    sizes = []
    for _ in range(20):
        assert "in innermost" in dump(executor)
        sizes.append(faultlog.text_end(handle.log.descriptor) - faultlog.TEXT_AT)
    assert max(sizes) < 8000
    # Where it was at its end is not mixed up with what was shown before.
    future.cancel(running=True)
    assert future.exception().stack.count("in innermost") == 1


@pytest.mark.one_kind
def test_a_death_is_not_told_by_what_was_shown_before(make_executor, gate):
    executor = make_executor(1)
    future = executor.submit(hangs.in_python, gate)
    arrived_in(executor, gate, "innermost")
    [worker] = executor.stats().workers
    os.kill(worker.pid, signal.SIGKILL)
    assert future.exception().fault_text == ""


@pytest.mark.one_kind
def test_a_lock_that_is_held_does_not_hold_it_up(make_executor, monkeypatch):
    monkeypatch.setattr(showing, "_LOCKED_WITHIN", 0.05)
    executor = make_executor(1)
    with executor._pool._lock:
        assert "has held its lock" in dump(executor)


@pytest.mark.one_kind
def test_in_a_forked_child(make_executor):
    executor = make_executor(1)
    executor.submit(calls.pid).result()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, f"{dump(executor)}{executor.health().state}".encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        text = file.read()
    os.waitpid(child, 0)
    assert "belongs to the parent of this process" in text
    assert text.endswith("closed")


@pytest.mark.one_kind
def test_in_a_child_that_was_forked_while_the_lock_was_held(make_executor):
    executor = make_executor(1)
    future = executor.submit(calls.pid)
    future.result()
    with executor._pool._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(int(LONG))  # which ends it if it hangs
            try:
                told = executor.health().state, str(executor.story(future))
                os._exit(0 if told[0] == "closed" else 1)
            finally:
                os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


# -- where calls were that had to stop ---------------------------------------------------


@pytest.mark.parametrize(
    ("hang", "where"),
    [
        (hangs.in_python, "innermost"),
        (hangs.in_c_with_the_gil, "in_c_with_the_gil"),
        (hangs.in_a_thread, "innermost"),
        (hangs.in_a_coroutine, "awaits_for_ever"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
@pytest.mark.one_kind
def test_a_timeout_tells_where_it_was(make_executor, gate, hang, where):
    executor = make_executor(1, timeout=1000)
    future = executor.submit(hang, gate)
    arrived_in(executor, gate, where)
    let_time_pass(executor._pool)
    error = future.exception()
    assert isinstance(error, shmexec.CallTimeout)
    assert f"in {where}\n" in error.stack


@pytest.mark.one_kind
@pytest.mark.parametrize("slots_", [1, 4])
def test_also_in_an_actor(make_executor, monkeypatch, gate, slots_):
    monkeypatch.setattr(slots, "CANCEL_WITHIN", LONG)
    executor = make_executor(1)
    node = executor.options(timeout=1000).actor(hangs.Waits, max_concurrency=slots_)
    future = node.work(gate)
    arrived_in(executor, gate, "deep")
    let_time_pass(node._replicas[0].pool)
    error = future.exception()
    assert isinstance(error, shmexec.CallTimeout)
    assert "in deep" in error.stack


@pytest.mark.one_kind
@pytest.mark.parametrize("slots_", [1, 4])
def test_and_of_a_call_that_was_stopped(make_executor, monkeypatch, gate, slots_):
    monkeypatch.setattr(slots, "CANCEL_WITHIN", LONG)
    executor = make_executor(1)
    node = executor.actor(hangs.Waits, max_concurrency=slots_)
    future = node.work(gate)
    arrived_in(executor, gate, "deep")
    future.cancel(running=True)
    error = future.exception()
    assert isinstance(error, shmexec.CallStopped)
    assert "in deep" in error.stack
