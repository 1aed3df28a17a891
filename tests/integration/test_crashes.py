"""A worker may end at any moment, in any way: one call is hit, the pool goes on."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import threading
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

import shmexec
from shmexec import faultpoints
from shmexec.runtime import workers
from tests.contract import calls
from tests.integration import faults
from tests.integration.faults import is_gone
from tests.waiting import LONG, wait_until


def idle_pid(executor):
    """The worker that the next call goes to."""
    return executor.submit(calls.pid).result()


def stopped(pid):
    """Stop a process; returns when it is."""
    os.kill(pid, signal.SIGSTOP)

    def is_stopped():
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        )

    assert wait_until(is_stopped)


# -- in mid-call -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGABRT", "SIGBUS"])
def test_a_signal_is_named(fresh_executor, name):
    number = getattr(signal, name)
    error = fresh_executor.submit(calls.kill_me, number).exception()
    assert isinstance(error, shmexec.WorkerDied)
    assert isinstance(error, BrokenProcessPool)
    assert error.exitcode == -number
    assert name in str(error)
    assert "kill_me" in str(error)
    assert str(error.pid) in str(error)
    assert ("possibly out of memory" in str(error)) == (name == "SIGKILL")


def test_a_segfault_tells_where(fresh_executor):
    error = fresh_executor.submit(faults.segfault).exception()
    assert isinstance(error, shmexec.WorkerDied)
    assert error.exitcode == -signal.SIGSEGV
    assert "SIGSEGV" in str(error)
    assert "Segmentation fault" in error.fault_text
    assert "in segfault" in error.fault_text
    assert "in segfault" in str(error)


def test_os_exit_gives_the_code(fresh_executor):
    error = fresh_executor.submit(calls.leave_at_once, 7).exception()
    assert isinstance(error, shmexec.WorkerDied)
    assert error.exitcode == 7
    assert "code 7" in str(error)


def test_os_exit_with_0_is_a_death_too(fresh_executor):
    error = fresh_executor.submit(calls.leave_at_once, 0).exception()
    assert isinstance(error, shmexec.WorkerDied)
    assert error.exitcode == 0


def test_sys_exit_is_an_exception_of_the_call(fresh_executor):
    pid = idle_pid(fresh_executor)
    error = fresh_executor.submit(calls.leave, 5).exception()
    assert isinstance(error, SystemExit)
    assert error.code == 5
    assert idle_pid(fresh_executor) == pid, "the worker goes on"


def test_keyboard_interrupt_is_an_exception_of_the_call(fresh_executor):
    pid = idle_pid(fresh_executor)
    error = fresh_executor.submit(calls.interrupt).exception()
    assert isinstance(error, KeyboardInterrupt)
    assert idle_pid(fresh_executor) == pid


def test_a_sigint_from_the_terminal_does_not_reach_a_call(fresh_executor, gate):
    future = fresh_executor.submit(calls.through, gate, "right")
    [pid] = gate.arrived()
    os.kill(pid, signal.SIGINT)
    gate.open()
    assert future.result() == "right"
    assert idle_pid(fresh_executor) == pid


def test_the_other_calls_go_on(fresh_executor, gate):
    stays = fresh_executor.submit(calls.through, gate, "right")
    [other] = gate.arrived()
    assert isinstance(
        fresh_executor.submit(calls.kill_me).exception(), shmexec.WorkerDied
    )
    assert not stays.done()
    waiting = [fresh_executor.submit(calls.same, n) for n in range(5)]
    assert [future.result() for future in waiting] == list(range(5))
    gate.open()
    assert stays.result() == "right"
    assert fresh_executor.submit(calls.same, 1).result() == 1
    assert other in {w.pid for w in fresh_executor.stats().workers}


def test_one_of_many_is_killed_from_outside(fresh_executor, make_gate):
    gates = [make_gate(), make_gate()]
    futures = [
        fresh_executor.submit(calls.through, gate, n) for n, gate in enumerate(gates)
    ]
    [victim], [other] = gates[0].arrived(), gates[1].arrived()
    os.kill(victim, signal.SIGKILL)
    error = futures[0].exception()
    assert isinstance(error, shmexec.WorkerDied)
    assert error.pid == victim
    gates[1].open()
    assert futures[1].result() == 1
    assert fresh_executor.stats().worker_deaths == 1
    assert other != victim


def test_arguments_of_a_killed_call_are_freed(fresh_executor):
    array = np.ones(1 << 20)
    for _ in range(3):
        error = fresh_executor.submit(calls.kill_me, signal.SIGKILL, array).exception()
        assert isinstance(error, shmexec.WorkerDied)
    assert wait_until(lambda: fresh_executor.stats().shared_memory_used == 0)


def test_results_outlive_the_worker_that_made_them(fresh_executor):
    result = fresh_executor.submit(faults.filled, 1 << 20, 7).result()
    fresh_executor.submit(calls.kill_me).exception()
    fresh_executor.submit(faults.filled, 1 << 20, 9).result()
    assert result.min() == result.max() == 7
    result[:] = 8
    assert result.sum() == 8 << 20


def test_callbacks_of_a_killed_call_run(fresh_executor, gate):
    done = []
    future = fresh_executor.submit(calls.through, gate)
    future.add_done_callback(done.append)
    os.kill(gate.arrived()[0], signal.SIGKILL)
    assert wait_until(lambda: done == [future])
    assert isinstance(future.exception(), shmexec.WorkerDied)


def test_killed_in_a_map_hits_that_item(fresh_executor):
    results = fresh_executor.map(calls.kill_me, [signal.SIGKILL])
    with pytest.raises(shmexec.WorkerDied):
        next(results)
    assert list(fresh_executor.map(calls.same, range(4))) == list(range(4))


def test_every_worker_dies_at_once(fresh_executor, gate):
    futures = [fresh_executor.submit(calls.through, gate) for _ in range(2)]
    more = [fresh_executor.submit(calls.same, n) for n in range(4)]
    for pid in gate.arrived(2):
        os.kill(pid, signal.SIGKILL)
    assert all(isinstance(f.exception(), shmexec.WorkerDied) for f in futures)
    assert [future.result() for future in more] == list(range(4))


def test_more_deaths_than_restarts_do_not_break_the_pool(make_executor):
    executor = make_executor(1, max_restarts=2)
    for _ in range(6):
        assert isinstance(
            executor.submit(calls.kill_me).exception(), shmexec.WorkerDied
        )
    assert executor.submit(calls.same, 1).result() == 1


# -- idle, starting, reading -----------------------------------------------------------------


def test_a_worker_killed_while_idle_costs_no_call(fresh_executor):
    for _ in range(6):
        pid = idle_pid(fresh_executor)
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: is_gone(pid))  # noqa: B023  (called at once)
        assert idle_pid(fresh_executor) != pid
    assert fresh_executor.stats().worker_deaths == 6


def test_a_call_sent_to_a_dying_worker_is_not_lost(fresh_executor):
    """It may take the call from its socket and die before it begins."""
    for _ in range(20):
        pid = idle_pid(fresh_executor)
        os.kill(pid, signal.SIGKILL)
        assert idle_pid(fresh_executor) != pid


def test_a_call_that_its_worker_never_read_is_not_lost(make_executor):
    executor = make_executor(1)
    pid = idle_pid(executor)
    stopped(pid)
    future = executor.submit(calls.pid)
    array = executor.submit(faults.total, np.ones(100_000, np.uint8))
    assert not future.done()
    os.kill(pid, signal.SIGKILL)
    assert future.result() != pid
    assert array.result() == 100_000


def test_an_unread_call_by_value_is_not_lost(make_executor):
    executor = make_executor(1)
    pid = idle_pid(executor)
    stopped(pid)
    array = np.arange(50_000)
    future = executor.submit(lambda x: int(x.sum()), array)
    os.kill(pid, signal.SIGKILL)
    assert future.result() == array.sum()


def test_an_unread_call_costs_no_retry_and_calls_stay_in_order(make_executor, tmp_path):
    executor = make_executor(1)
    log = tmp_path / "log"
    pid = idle_pid(executor)
    stopped(pid)

    def note(number, path=str(log)):
        with open(path, "a") as file:
            file.write(f"{number}\n")

    futures = [executor.submit(note, number) for number in range(5)]
    os.kill(pid, signal.SIGKILL)
    for future in futures:
        future.result()
    assert log.read_text().split() == list("01234")


def test_a_stopped_worker_that_goes_on_has_lost_nothing(make_executor):
    executor = make_executor(1)
    pid = idle_pid(executor)
    stopped(pid)
    future = executor.submit(calls.pid)
    os.kill(pid, signal.SIGCONT)
    assert future.result() == pid


def test_a_worker_that_hangs_in_its_initializer_can_be_killed(make_executor, gate):
    executor = make_executor(1, initializer=calls.through, initargs=(gate,))
    future = executor.submit(calls.same, "right")
    os.kill(gate.arrived()[0], signal.SIGKILL)
    gate.open()
    assert future.result() == "right"


# -- starts that fail ------------------------------------------------------------------------


@pytest.mark.parametrize("by_value", [False, True])
def test_an_initializer_that_kills_its_process_breaks_the_pool(make_executor, by_value):
    code = 9
    dies = (lambda: os._exit(code)) if by_value else calls.leave_at_once
    initargs = () if by_value else (code,)
    executor = make_executor(1, initializer=dies, initargs=initargs, max_restarts=1)
    futures = [executor.submit(calls.same, n) for n in range(3)]
    for future in futures:
        error = future.exception()
        assert isinstance(error, shmexec.PoolBroken)
        assert isinstance(error, BrokenProcessPool)
        assert len(error.reasons) == 2
        assert all("code 9" in reason for reason in error.reasons)
        assert "code 9" in str(error)
    with pytest.raises(shmexec.PoolBroken, match="code 9"):
        executor.submit(calls.same, 1)


@pytest.mark.parametrize("by_value", [False, True])
def test_an_initializer_that_raises_breaks_the_pool_at_once(make_executor, by_value):
    def by_hand(error):
        raise error

    executor = make_executor(
        initializer=by_hand if by_value else calls.fail,
        initargs=(ValueError("bad day"),),
    )
    error = executor.submit(calls.same, 1).exception()
    assert isinstance(error, shmexec.PoolBroken)
    assert len(error.reasons) == 1
    assert "ValueError: bad day" in error.reasons[0]
    assert "Traceback" in error.reasons[0]
    with pytest.raises(shmexec.PoolBroken, match="bad day"):
        executor.submit(calls.same, 1)
    with pytest.raises(shmexec.PoolBroken):
        executor.map(calls.same, [1])


@pytest.mark.one_kind
@pytest.mark.parametrize(
    ("step", "number"),
    [
        *(("pair", 1), ("pair", 2), ("pair", 3)),
        *(("FaultLog", 1), ("_output", 1), ("WorkerProcess", 1)),
    ],
)
def test_a_start_that_fails_half_way_leaves_nothing(
    make_executor, monkeypatch, step, number
):
    steps, real = itertools.count(1), getattr(workers, step)

    def fails_once(*args, **settings):
        if next(steps) == number:
            raise OSError(errno.EMFILE, "too many open files")
        return real(*args, **settings)

    monkeypatch.setattr(workers, step, fails_once)
    executor = make_executor(1)
    assert executor.submit(calls.same, 1).result() == 1


@pytest.mark.every_start
def test_no_descriptors_for_the_next_worker_until_others_give_them_back(
    make_executor, monkeypatch
):
    tries = []
    monkeypatch.setattr(faultpoints, "hook", lambda point, _: tries.append(point))
    executor = make_executor(1, max_restarts=1)
    pid = idle_pid(executor)
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not executor.stats().workers)
    tries.clear()
    with faults.no_descriptors():
        future = executor.submit(calls.same, 1)
        assert wait_until(lambda: tries.count("parent.starting") > 3)
        assert not future.done()
    assert future.result(20) == 1


def test_an_initializer_with_sys_exit_breaks_the_pool(make_executor):
    executor = make_executor(1, initializer=calls.leave, initargs=(4,))
    error = executor.submit(calls.same, 1).exception()
    assert isinstance(error, shmexec.PoolBroken)


def test_a_broken_pool_shuts_down(make_executor):
    executor = make_executor(initializer=calls.fail, initargs=(ValueError("x"),))
    executor.submit(calls.same, 1).exception()
    executor.shutdown()
    with pytest.raises((shmexec.PoolClosed, shmexec.PoolBroken)):
        executor.submit(calls.same, 1)


def test_an_initializer_runs_in_each_worker_that_replaces_another(
    make_executor, tmp_path
):
    path = str(tmp_path / "log")

    def note():
        with open(path, "a") as file:
            file.write("x")

    executor = make_executor(1, initializer=note)
    for _ in range(3):
        executor.submit(calls.kill_me).exception()
    executor.submit(calls.same, 1).result()
    assert Path(path).read_text() == "xxxx"


# -- retries ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("deaths", "retries"), [(1, 1), (2, 2), (2, 5)])
def test_retries_make_up_for_deaths(make_executor, tmp_path, deaths, retries):
    path = tmp_path / "left"
    path.write_text(str(deaths))
    executor = make_executor(1, retries=retries)
    assert executor.submit(faults.once, str(path)).result() > 0
    assert executor.stats().worker_deaths == deaths


def test_retries_end(make_executor, tmp_path):
    path = tmp_path / "left"
    path.write_text("3")
    executor = make_executor(1)
    error = executor.options(retries=2).submit(faults.once, str(path)).exception()
    assert isinstance(error, shmexec.WorkerDied)
    assert path.read_text() == "0"


def test_a_retry_sees_its_arguments_as_they_were(make_executor, tmp_path):
    path = tmp_path / "left"
    path.write_text("1")
    executor = make_executor(1, retries=1)
    array = np.ones(100_000)
    future = executor.submit(faults.die_on_first_run, array, str(path))
    assert future.result() == 100_000


def test_exceptions_are_not_retried(make_executor, tmp_path):
    path = str(tmp_path / "log")

    def note_and_raise():
        with open(path, "a") as file:
            file.write("x")
        raise ValueError("no")

    executor = make_executor(1, retries=3)
    assert isinstance(executor.submit(note_and_raise).exception(), ValueError)
    assert Path(path).read_text() == "x"


# -- children of workers -----------------------------------------------------------------------


def kill_noted(path):
    with contextlib.suppress(OSError, ValueError):
        os.kill(int(path.read_text()), signal.SIGKILL)


def test_a_program_started_by_a_call_does_not_hold_up_the_end(make_executor, tmp_path):
    executor = make_executor(1)
    path = tmp_path / "pid"
    try:
        worker = executor.submit(faults.with_subprocess, str(path)).result()
        executor.shutdown()
        assert is_gone(worker)
    finally:
        kill_noted(path)


def test_a_forked_child_that_returns_from_the_call_gives_no_second_reply(
    fresh_executor,
):
    for n in range(3):
        assert fresh_executor.submit(faults.come_back_as_two, n).result() == n
    assert fresh_executor.stats().worker_deaths == 0


def test_forks_among_thousands_of_open_files(make_executor, tmp_path):
    executor = make_executor(1)
    result = executor.submit(faults.filled, 1 << 20).result()
    with faults.many_files():
        child = os.fork()  # it may look at the result
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        assert executor.submit(calls.same, result).result().sum() == 1 << 20
    array = np.ones(1 << 20, np.uint8)
    assert executor.submit(faults.fork_among_many_files, array).result() == 1 << 20
    assert executor.submit(calls.same, 1).result() == 1
    assert executor.stats().worker_deaths == 0


class Endless:
    """What a dead worker left, of which there is always more."""

    def __init__(self):
        self.enough = threading.Event()
        self.pieces = 0

    def sweep(self, seconds=None):
        self.pieces += 1
        return not self.enough.is_set()


def test_calls_end_while_memory_of_a_dead_worker_is_given_back(make_executor):
    executor = make_executor(1)
    executor.submit(calls.pid).result()
    remains, done = Endless(), threading.Event()
    executor._pool._roster.remains.append(remains)
    executor._pool.leading.wake()
    try:
        assert wait_until(lambda: remains.pieces)
        future = executor.submit(calls.add, 1, 2)
        future.add_done_callback(lambda _: done.set())
        assert done.wait(LONG)
    finally:
        remains.enough.set()
    assert wait_until(lambda: not executor._pool._roster.remains)
