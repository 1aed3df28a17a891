"""Ctrl-C: what it stops, what it leaves alone, and that the pool survives it anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import CancelledError, Future as BaseFuture, wait

import numpy as np
import pytest

import shmexec
from shmexec.runtime.leading import READ
from shmexec.runtime.showing import _held
from tests.contract import calls
from tests.contract.models import Counter
from tests.interrupts import Interrupter
from tests.waiting import LONG, wait_until

pytestmark = pytest.mark.one_kind

PLACES = int(os.environ.get("SHMEXEC_TEST_INTERRUPTS", "12"))
"""Places of each way at which it is interrupted in the default run."""


WAITING = ("leading.py", "parts.py", "selectors.py", "futures/_base.py")
"""Files of functions in which the main thread may wait."""


def waits():
    """Whether the main thread waits for a call."""
    frame = sys._current_frames()[threading.main_thread().ident]
    while frame is not None:
        if frame.f_code.co_filename.endswith(WAITING):
            return True
        frame = frame.f_back
    return False


def press(after) -> threading.Thread:
    """Ctrl-C, when something has happened and the main thread waits."""

    def wait_and_press():
        after()
        wait_until(waits)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=wait_and_press)
    thread.start()
    return thread


@contextlib.contextmanager
def interrupted(after):
    """A block that Ctrl-C ends; its traceback must be short."""
    thread = press(after)
    with pytest.raises(KeyboardInterrupt) as caught:
        yield
    thread.join()
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None or error.__suppress_context__
    ours = [entry for entry in caught.traceback if "shmexec/" in str(entry.path)]
    assert len([each for each in ours if "/tests/" not in str(each.path)]) <= 3


def gone(pids):
    return wait_until(lambda: not any(os.path.exists(f"/proc/{p}") for p in pids))


# -- what it stops -----------------------------------------------------------------------


def test_it_stops_the_call_that_is_waited_for(make_executor, gate, make_gate):
    executor, other = make_executor(2), make_gate()
    beside = executor.submit(calls.through, other, "right")
    other.arrived()
    future = executor.submit(calls.through, gate)
    (pid,) = gate.arrived()
    with interrupted(lambda: None):
        future.result()
    with pytest.raises(CancelledError):
        future.result(LONG)
    assert gone([pid])
    other.open()
    assert beside.result(LONG) == "right"
    assert executor.submit(calls.add, 1, 2).result(LONG) == 3


def test_waiting_for_calls_that_shall_go_on(make_executor, gate):
    executor = make_executor(1)
    future = executor.submit(calls.through, gate, "right")
    gate.arrived()
    with interrupted(lambda: None):
        wait([future])
    gate.open()
    assert future.result(LONG) == "right"


@pytest.mark.parametrize("ordered", [True, False])
def test_it_stops_a_map(make_executor, gate, ordered):
    executor = make_executor(2)
    with interrupted(lambda: gate.arrived(2)):
        list(executor.map(calls.through, [gate] * 50, ordered=ordered))
    assert wait_until(lambda: not executor.stats().running + executor.stats().pending)
    assert list(executor.map(calls.same, range(5))) == list(range(5))


def test_it_stops_map_batches(make_executor, gate):
    executor = make_executor(2)
    rows = np.arange(64.0)

    def stay(batch):
        calls.through(gate)
        return batch

    with interrupted(lambda: gate.arrived(2)):
        executor.map_batches(stay, rows, batch_size=1)
    np.testing.assert_array_equal(executor.map_batches(np.sqrt, rows), np.sqrt(rows))


def test_it_stops_a_stream(make_executor, gate):
    executor = make_executor(1)

    def items():
        yield 1
        calls.through(gate)

    stream = executor.stream(items)
    assert next(stream) == 1
    with interrupted(gate.arrived):
        next(stream)
    assert list(stream) == []
    assert executor.submit(calls.add, 1, 2).result(LONG) == 3


def test_it_stops_a_broadcast_and_a_call_of_an_actor(make_executor, gate, make_gate):
    executor = make_executor(2)
    with interrupted(lambda: gate.arrived(2)):
        executor.broadcast(calls.through, gate)
    assert executor.broadcast(calls.add, 1, 2) == [3, 3]
    with executor.actor(Counter) as node:
        second = make_gate()
        with interrupted(second.arrived):
            node.wait(second).result()
        assert node.add().result(LONG) == 1


def test_it_stops_a_task(make_executor, gate):
    executor = make_executor(1)

    async def main():
        await executor.asubmit(calls.through, gate)

    thread = press(gate.arrived)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    thread.join()
    assert executor.submit(calls.add, 1, 2).result(LONG) == 3


def test_it_cancels_an_item_of_a_batcher(make_executor, gate):
    executor = make_executor(1)

    def stay(batch):
        calls.through(gate)
        return batch

    with executor.batcher(stay) as batched:
        first = batched(np.array([4.0]))
        gate.arrived()
        second = batched(np.array([9.0]))
        with interrupted(lambda: None):
            second.result()
        gate.open()
        assert second.cancelled()
        assert float(first.result(LONG)[0]) == 4.0


# -- at the end ----------------------------------------------------------------------------

SCRIPT = """
import signal, sys, threading, time
import shmexec
signal.signal(signal.SIGINT, signal.default_int_handler)
main = threading.main_thread().ident

def tell_when_it_ends():
    while True:
        frame = sys._current_frames().get(main)
        while frame is not None:
            if frame.f_code.co_name == "join" and "leading" in frame.f_code.co_filename:
                print("ends", flush=True)
                return
            frame = frame.f_back
        time.sleep(0.005)

threading.Thread(target=tell_when_it_ends, daemon=True).start()

def stay(name):
    print(name, flush=True)
    time.sleep(1000)

{body}
"""


class Program:
    """A program in a group of its own, as a terminal has it."""

    def __init__(self, body: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT.format(body=body)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def reads(self, *lines: str) -> None:
        """It prints these next, in any order."""
        found = [self.process.stdout.readline().strip() for _ in lines]
        assert sorted(found) == sorted(lines)

    def press(self) -> None:
        """Ctrl-C: all processes of the group get it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def ends(self) -> str:
        """What it printed as errors; nothing else may be left of it."""
        _, errors = self.process.communicate(timeout=2 * LONG)
        with pytest.raises(ProcessLookupError):
            wait_until(lambda: os.killpg(self.process.pid, 0))
        return errors


def test_a_second_press_ends_the_shutdown():
    program = Program("""
with shmexec.Executor(1) as ex:
    left = ex.submit(stay, "runs")
    more = [ex.submit(stay, "never") for _ in range(3)]
    try:
        time.sleep(1000)
    except KeyboardInterrupt:
        pass
""")
    program.reads("runs")
    program.press()
    program.reads("ends")
    program.press()
    errors = program.ends()
    assert errors.count("Traceback") == 1, errors
    assert errors.strip().endswith("KeyboardInterrupt")
    assert program.process.returncode == -signal.SIGINT


def test_and_the_end_of_a_program():
    program = Program("""
ex = shmexec.Executor(1)
ex.submit(stay, "runs")
ex.submit(stay, "never")
""")
    program.reads("runs", "ends")
    program.press()
    errors = program.ends()
    assert errors.count("Traceback") == 1, errors


def test_workers_print_nothing_also_as_they_start():
    program = Program("""
print("begins", flush=True)
ex = shmexec.Executor(1, mp_context="spawn", initializer=stay, initargs=("starts",))
try:
    ex.submit(pow, 2, 2).result()
except KeyboardInterrupt:
    ex.shutdown()
""")
    program.reads("begins")
    program.reads("starts")
    program.press()
    program.reads("ends")
    program.press()
    errors = program.ends()
    assert errors.count("Traceback") <= 2, errors
    assert "worker" not in errors


# -- anywhere ------------------------------------------------------------------------------


by_hand = pytest.mark.skipif(
    "INTERRUPT_EVERYWHERE" not in os.environ,
    reason="also strikes where, as the README says, something may be lost",
)


def one(executor):
    assert executor.submit(calls.add, 1, 2).result() == 3


def several(executor):
    futures = [executor.submit(calls.same, i) for i in range(5)]
    assert [future.result() for future in futures] == list(range(5))


def cancelled(executor):
    futures = [executor.submit(calls.same, i) for i in range(4)]
    for future in futures[1:]:
        future.cancel()
    futures[0].result()


def streamed(executor):
    assert list(executor.stream(range, 3)) == [0, 1, 2]


def mapped(executor):
    assert list(executor.map(calls.same, range(6), chunksize=2)) == list(range(6))


WAYS = [one, several, cancelled, streamed, mapped]


def strike_at(executor, way, places):
    """Interrupt it at these places; the pool must be as good as new each time."""
    for at in places:
        others = [executor.submit(calls.same, i) for i in range(3)]
        interrupter = Interrupter(at)
        with contextlib.suppress(KeyboardInterrupt):
            interrupter.run(lambda: way(executor))
        where = f"{at}: {interrupter.where}"
        assert [future.result(LONG) for future in others] == [0, 1, 2], where
        assert executor.submit(calls.add, 1, 2).result(LONG) == 3, where
    pool = executor._pool

    def nothing_is_left():
        gc.collect()
        stats = executor.stats()
        return not stats.pending and not stats.running

    assert wait_until(nothing_is_left)
    with pool._lock, pool._whole:
        pool._machine.validate()
        assert not pool._calls


def count(executor, way):
    interrupter = Interrupter(0)
    interrupter.run(lambda: way(executor))
    return interrupter.seen


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupt_at_some_places(make_executor, way):
    executor = make_executor(2)
    executor.broadcast(calls.pid)
    way(executor)
    seen = count(executor, way)
    chosen = random.Random(way.__name__).sample(range(1, seen + 1), min(PLACES, seen))
    strike_at(executor, way, sorted(chosen))


@by_hand
@pytest.mark.parametrize("way", WAYS)
def test_an_interrupt_at_every_place(make_executor, way):
    executor = make_executor(2)
    executor.broadcast(calls.pid)
    way(executor)
    strike_at(executor, way, range(1, count(executor, way) + 1))


@pytest.mark.one_kind
def test_who_looks_at_a_pool_does_not_leave_it_locked():
    lock = threading.Lock()

    def look():
        with _held(lock):
            pass

    places = Interrupter(0)
    places.run(look)
    # 3.12 was seen to have none.
    assert places.seen or sys.version_info[:2] == (3, 12)
    for at in range(1, places.seen + 1):
        with pytest.raises(KeyboardInterrupt):
            Interrupter(at).run(look)
        gc.collect()
        assert not lock.locked(), at


def interrupt_often(executor, presses, seed):
    """Real signals into a loop of calls that take no time."""
    number = random.Random(seed)
    ready = False  # a press would be caught
    left = presses

    def press_on():
        nonlocal left, ready
        while left:
            while not ready:
                time.sleep(0.0005)
            ready = False
            time.sleep(number.uniform(0.0005, 0.01))
            left -= 1
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    kept = [executor.submit(calls.same, i) for i in range(20)]
    presser = threading.Thread(target=press_on)
    presser.start()
    came = 0
    while presser.is_alive():
        with contextlib.suppress(KeyboardInterrupt):  # one while the last is caught
            try:
                while presser.is_alive():
                    ready = True  # each time: an interrupt may end in a finalizer
                    futures = [executor.submit(calls.same, i) for i in range(4)]
                    assert [future.result() for future in futures] == [0, 1, 2, 3]
            except (KeyboardInterrupt, CancelledError):
                came += 1
    presser.join()
    assert came
    assert [future.result(LONG) for future in kept] == list(range(20))
    assert executor.submit(calls.add, 1, 2).result(LONG) == 3


# In a program of its own: an interrupt may come while the test is between two lines.
OFTEN = """
import sys
import shmexec
from tests.contract.test_interrupts import interrupt_often
with shmexec.Executor(2) as executor:
    interrupt_often(executor, int(sys.argv[1]), 1)
print("right")
"""


def test_interrupts_by_the_dozen(run_script):
    done = run_script(OFTEN, "40")
    assert done.stdout == "right\n", done.stderr


@by_hand
def test_interrupts_by_the_hundred(run_script):
    done = run_script(OFTEN, "500")
    assert done.stdout == "right\n", done.stderr


def test_a_pool_that_was_interrupted_can_be_ended(make_executor):
    executor = make_executor(2)
    futures = [executor.submit(calls.same, i) for i in range(8)]
    with pytest.raises(KeyboardInterrupt), executor._pool._lock, executor._pool._whole:
        raise KeyboardInterrupt
    executor.shutdown()
    assert [future.result() for future in futures] == list(range(8))
    with pytest.raises(shmexec.PoolClosed):
        executor.submit(pow, 2, 2)


def test_mending_lets_go_of_a_call_that_was_cancelled_before_it_was_sent(make_executor):
    executor = make_executor(1)
    executor.submit(calls.pid).result()
    pool = executor._pool
    with pool._lock, pool._whole:
        pool._machine._state.idle.clear()  # so that the next call waits
    future = executor.submit(calls.pid)
    assert BaseFuture.cancel(future)  # the pool was not told yet
    with pytest.raises(KeyboardInterrupt), pool._lock, pool._whole:
        raise KeyboardInterrupt
    with pool._lock, pool._whole:
        assert not pool._machine.calls
        pool._machine.validate()


@contextlib.contextmanager
def leads(pool):
    """This thread leads, as one that waits for a call does."""
    leading = pool.leading
    while not leading._lead.acquire(timeout=0.01):
        leading._claimed = True
        leading.waker.wake()
    try:
        yield
    finally:
        leading._lead.release()


def test_a_death_that_was_just_being_noted_is_not_lost(
    make_executor, gate, monkeypatch
):
    executor = make_executor(1)
    future = executor.submit(calls.through, gate)
    (pid,) = gate.arrived()
    pool = executor._pool
    leading, poller = pool.leading, pool.leading.poller
    (handle,) = pool._workers.values()
    sentinel = handle.process.sentinel
    remove = poller.remove

    def strike(descriptor):
        remove(descriptor)
        raise KeyboardInterrupt

    with leads(pool):
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: sentinel in dict(poller.poll(0)))
        monkeypatch.setattr(poller, "remove", strike)
        with pytest.raises(KeyboardInterrupt):
            pool.take(sentinel, READ)
        monkeypatch.undo()
    leading.wake()
    with pytest.raises(shmexec.WorkerDied):
        future.result(LONG)


class StruckOnce(deque):
    """Raises an interrupt in place of what is appended first."""

    struck = False
    kept = 0

    def append(self, each):
        if not self.struck:
            self.struck = True
            raise KeyboardInterrupt
        self.kept += 1
        super().append(each)


def test_memory_of_a_dead_worker_is_not_lost(make_executor):
    executor = make_executor(1)
    pid = executor.submit(calls.pid).result()
    pool = executor._pool
    (handle,) = pool._workers.values()
    pool._roster.remains = remains = StruckOnce()
    with leads(pool):
        os.kill(pid, signal.SIGKILL)
        poller = pool.leading.poller
        assert wait_until(lambda: handle.process.sentinel in dict(poller.poll(0)))
        pool.take(handle.process.sentinel, READ)
        with pytest.raises(KeyboardInterrupt):
            pool.process(ticking=False)
    pool.leading.wake()
    assert wait_until(lambda: remains.kept and not remains)
    assert executor.submit(calls.add, 1, 2).result(LONG) == 3
