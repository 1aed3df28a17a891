"""A machine that has too little memory left: what is returned, waits, and is refused.

The machine's figures are the test's own; all else is real.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import shmexec
from shmexec.runtime import cgroups, guard, monitor
from shmexec.runtime.monitor import Memory
from shmexec.scheduler import state as scheduling
from tests.contract import calls, hoards
from tests.integration import faults
from tests.waiting import wait_until

MB = 1 << 20
GB = 1 << 30


class Machine:
    """Has 16 GB, of which as much is free as the test says."""

    def __init__(self):
        self.free = 10 * GB

    def memory(self):
        return Memory(16 * GB, self.free)


@pytest.fixture
def machine(monkeypatch):
    # Looked at without delay: nothing here waits for a look longer than it must.
    monkeypatch.setattr(guard, "SCARCE", 0.01)
    monkeypatch.setattr(guard, "INTERVAL_AT_MOST", 0.01)
    made = Machine()
    monkeypatch.setattr(monitor, "memory", made.memory)
    return made


@pytest.fixture
def make_executor():
    made = []

    def make(max_workers=2, **settings):
        settings.setdefault("min_free_memory", "1GB")
        made.append(shmexec.Executor(max_workers, **settings))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown(cancel_futures=True)


@pytest.fixture
def paused(make_executor, machine, gate):
    """An executor of three workers, with one call behind the gate, that is paused."""
    executor = make_executor(3)
    executor.broadcast(os.getpid)
    first = executor.submit(hoards.hold_behind, gate, 1)
    gate.arrived()
    machine.free = GB // 2
    with pytest.warns(shmexec.MemoryWarning, match="537 MB of .*=1000 MB") as told:
        assert wait_until(lambda: executor.stats().paused)
        assert wait_until(lambda: told)
    yield executor
    gate.open()
    first.result()


def test_calls_wait_until_there_is_more(paused, machine):
    futures = [paused.submit(abs, -number) for number in range(5)]
    lazy = iter(range(100))
    mapped = paused.map(abs, lazy, buffersize=4, chunksize=1)
    stats = paused.stats()
    assert (stats.running, stats.pending, stats.pauses) == (1, 9, 1)
    assert next(lazy) == 4, "a lazy map reads no further"
    machine.free = 10 * GB
    assert [future.result() for future in futures] == list(range(5))
    assert list(mapped) == [number for number in range(100) if number != 4]
    assert not paused.stats().paused


def test_calls_run_one_at_a_time(paused, gate):
    futures = [paused.submit(abs, -number) for number in range(5)]
    gate.open()
    assert [future.result() for future in futures] == list(range(5))
    assert paused.stats().paused


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(scheduling, "PATIENCE", 0.05)


def test_a_call_that_waits_for_another_does_not_wait_for_ever(impatient, paused, gate):
    futures = [paused.submit(hoards.hold_behind, gate, 1) for _ in range(2)]
    gate.arrived(2)
    gate.open()
    assert all(future.result() for future in futures)


def test_a_large_array_waits_for_calls_to_end(paused, machine):
    submitted = []
    thread = threading.Thread(
        target=lambda: submitted.append(
            paused.submit(faults.total, np.ones(MB, np.uint8))
        )
    )
    thread.start()
    thread.join(0.1)
    assert not submitted
    machine.free = 10 * GB
    thread.join()
    assert submitted[0].result() == MB


# It may come when the test has just ended.
@pytest.mark.filterwarnings("ignore::shmexec.MemoryWarning")
def test_a_large_array_does_not_wait_if_nothing_runs(make_executor, machine):
    executor = make_executor(1)
    machine.free = GB // 2
    for _ in range(3):
        future = executor.submit(faults.total, np.ones(MB, np.uint8))
        assert future.result() == MB
        assert wait_until(lambda: executor.stats().paused)


def test_under_an_event_loop_it_fails_in_figures(paused):
    async def submit():
        paused.submit(faults.total, np.ones(MB, np.uint8))

    with pytest.raises(shmexec.SharedMemoryFull) as caught:
        asyncio.run(submit())
    error = caught.value
    assert isinstance(error, shmexec.MemoryScarce)
    assert (error.needed, error.free, error.used) == (MB, GB // 2, 16 * GB - GB // 2)
    assert (error.budget, error.threshold) == (16 * GB, 10**9)


def test_below_a_quarter_calls_are_refused_until_there_is_more(paused, machine):
    machine.free = GB // 8
    assert wait_until(lambda: paused._pool._guard.refusing)
    with pytest.raises(shmexec.MemoryScarce, match="134 MB of 17180 MB") as caught:
        paused.submit(abs, 1)
    assert (caught.value.needed, caught.value.free) == (0, GB // 8)
    with pytest.raises(shmexec.MemoryScarce):
        next(paused.stream(calls.generate))
    machine.free = 10 * GB
    assert paused.submit(abs, -1).result() == 1, "whoever submits looks anew"


def test_idle_memory_is_returned_first(make_executor, machine, gate):
    executor = make_executor(2)
    result = executor.submit(faults.filled, 40 * MB).result()
    executor.submit(faults.total, result).result()
    del result
    pool = executor._pool
    host = pool.host
    assert host.arena.blocks.committed > 30 * MB
    future = executor.submit(hoards.hold_behind, gate, 1)
    gate.arrived()
    machine.free = 3 * GB // 2
    assert wait_until(lambda: host.arena.blocks.committed < 30 * MB)
    assert not executor.stats().paused
    gate.open()
    future.result()


def test_more_than_eight_workers_are_warned_of_when_memory_gets_scarce(
    make_executor, machine
):
    with pytest.warns(shmexec.MemoryWarning):
        executor = make_executor(9)
    machine.free = GB // 2
    with pytest.warns(shmexec.MemoryWarning, match="9 workers .* left: ") as told:
        assert executor.submit(abs, -1).result() == 1
        assert wait_until(lambda: executor.stats().paused and told)


def test_if_nobody_can_tell_how_much_there_is_nothing_waits(
    paused, machine, monkeypatch
):
    def fail():
        raise OSError

    monkeypatch.setattr(monitor, "memory", fail)
    assert paused.submit(abs, -1).result() == 1
    monkeypatch.setattr(monitor, "memory", machine.memory)


def test_without_a_threshold_it_is_not_minded(make_executor, machine, gate):
    executor = make_executor(2, min_free_memory=0)
    machine.free = 0
    first = executor.submit(hoards.hold_behind, gate, 1)
    gate.arrived()
    assert executor.submit(abs, -1).result() == 1
    gate.open()
    first.result()


def test_an_idle_pool_is_not_looked_at(make_executor, monkeypatch):
    executor = make_executor(2)
    executor.broadcast(os.getpid)
    watch = executor._pool._guard
    assert wait_until(lambda: watch.due is None)
    assert executor._pool.seconds_to_tick() is None


# -- a limit of the system's own -----------------------------------------------------------


def test_the_limit_of_a_real_group_is_respected():
    """In a group made by whoever runs the tests, who names its folder."""
    folder = os.environ.get("SHMEXEC_TEST_CGROUP")
    if folder is None:
        pytest.skip("SHMEXEC_TEST_CGROUP names no folder of a group with a limit")
    program = (
        "import os, sys\n"
        "open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "import shmexec\n"
        "from shmexec.runtime import monitor\n"
        "with shmexec.Executor(1) as ex:\n"
        "    assert ex.submit(abs, -1).result() == 1\n"
        "    stats = ex.stats()\n"
        "    print(monitor.total_bytes(), stats.memory_free, stats.shared_memory_budget)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, folder],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    total, free, budget = map(int, done.stdout.split())
    unified = Path(folder, "memory.max").exists()
    usage = cgroups.tightest((cgroups.Group(folder, unified, True),))
    assert usage is not None
    assert total <= usage.limit
    assert free <= usage.limit
    assert budget <= max(64 * MB, usage.limit // 2)
