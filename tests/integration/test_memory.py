"""One budget for arguments and results: waits, errors with numbers, recycling, return."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import warnings
from contextlib import ExitStack

import numpy as np
import pytest

import shmexec
from shmexec.runtime import lifecycle, monitor
from tests.contract import calls
from tests.integration import faults
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

MB = 1 << 20


@pytest.fixture(params=["memfd", "posix"])
def make_executor(request, monkeypatch):
    """How workers start makes no difference here: one way is enough."""
    monkeypatch.setenv("SHMEXEC_SEGMENT", request.param)
    with ExitStack() as stack:
        yield lambda max_workers=2, **settings: stack.enter_context(
            shmexec.Executor(max_workers, **settings)
        )


@pytest.fixture
def make_small(make_executor):
    """Executors with a budget of 64 MiB."""

    def make(max_workers=2, **settings):
        return make_executor(max_workers, max_shared_memory=64 * MB, **settings)

    return make


# -- over the budget ---------------------------------------------------------------------


def test_an_array_larger_than_the_budget_fails_at_once(make_small):
    executor = make_small()
    with pytest.raises(shmexec.SharedMemoryFull) as caught:
        executor.submit(faults.total, np.empty(65 * MB, np.uint8))
    error = caught.value
    assert isinstance(error, MemoryError)
    assert (error.needed, error.used, error.free) == (65 * MB, 0, 64 * MB)
    assert error.budget == 64 * MB
    for number in (65 * MB, 64 * MB):
        assert str(number) in str(error)
    assert "max_shared_memory" in str(error)
    assert executor.submit(faults.total, faults.filled(60 * MB)).result() == 60 * MB


def test_a_failed_submit_holds_nothing(make_small):
    executor = make_small()
    with pytest.raises(shmexec.SharedMemoryFull):
        executor.submit(calls.collect, np.empty(40 * MB), np.empty(40 * MB))
    assert executor.stats().shared_memory_used == 0
    assert executor.stats().submitted == 0


def test_a_result_larger_than_the_budget_comes_with_a_warning(make_small):
    executor = make_small(1)
    with pytest.warns(shmexec.MemoryWarning, match=f"{65 * MB} .* {64 * MB} ") as seen:
        result = executor.submit(faults.filled, 65 * MB, 7).result()
    assert len(seen) == 1
    assert result.nbytes == 65 * MB
    assert (result == 7).all()
    assert executor.stats().shared_memory_used >= 65 * MB
    del result
    assert executor.submit(faults.total, faults.filled(20 * MB)).result() == 20 * MB
    assert executor.stats().shared_memory_used <= 64 * MB


def test_the_warning_as_an_error_fails_the_call(make_small):
    executor = make_small(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", shmexec.MemoryWarning)
        error = executor.submit(faults.filled, 65 * MB).exception()
    assert isinstance(error, shmexec.MemoryWarning)
    assert executor.submit(faults.filled, 60 * MB).result().nbytes == 60 * MB


def test_a_result_larger_than_the_machine_has_fails_its_call(make_small, monkeypatch):
    monkeypatch.setattr(monitor, "available_bytes", lambda: 65 * MB)
    executor = make_small(1)
    error = executor.submit(faults.filled, 65 * MB).exception()
    assert isinstance(error, shmexec.SharedMemoryFull)
    assert error.needed == 65 * MB
    assert error.budget == 64 * MB
    assert str(65 * MB) in str(error)
    assert executor.submit(faults.filled, 60 * MB).result().nbytes == 60 * MB
    assert executor.stats().worker_deaths == 0


def test_a_result_beside_held_results_fails_its_call(make_small):
    executor = make_small()
    held = [executor.submit(faults.filled, 20 * MB, n).result() for n in (1, 2)]
    error = executor.submit(faults.filled, 40 * MB).exception()
    assert isinstance(error, shmexec.SharedMemoryFull)
    assert [array[0] for array in held] == [1, 2]
    held.clear()
    assert executor.submit(faults.filled, 40 * MB, 3).result()[-1] == 3


# -- back-pressure -----------------------------------------------------------------------


def test_submit_waits_for_room_and_goes_on_when_calls_finish(make_small, gate):
    executor = make_small(1)
    first = executor.submit(faults.total_behind, gate, faults.filled(40 * MB))
    gate.arrived()
    submitted = []

    def submit_more():
        submitted.append(executor.submit(faults.total, faults.filled(30 * MB)))

    thread = threading.Thread(target=submit_more)
    thread.start()
    thread.join(0.1)
    assert not submitted, "there was no room"
    gate.open()
    thread.join()
    assert first.result() == 40 * MB
    assert submitted[0].result() == 30 * MB


def test_many_times_the_budget_passes_through(make_small):
    executor = make_small()
    futures = [executor.submit(faults.total, faults.filled(10 * MB)) for _ in range(30)]
    assert [future.result() for future in futures] == [10 * MB] * 30


def test_submit_waits_for_results_that_another_thread_drops(make_small):
    executor = make_small(1)
    held = [executor.submit(faults.filled, 50 * MB).result()]
    timer = threading.Timer(0.1, held.clear)
    timer.start()
    assert executor.submit(faults.total, faults.filled(50 * MB)).result() == 50 * MB
    timer.join()


@pytest.mark.stress
def test_submit_does_not_wait_for_ever_for_results_that_stay(make_small):
    executor = make_small(1)
    held = executor.submit(faults.filled, 50 * MB).result()
    with pytest.raises(shmexec.SharedMemoryFull, match="still alive"):
        executor.submit(faults.total, faults.filled(50 * MB))
    del held


def test_in_a_callback_submit_raises_instead(make_small, gate):
    executor = make_small(2)
    first = executor.submit(faults.total_behind, gate, faults.filled(40 * MB))
    errors = []

    def submit_more(_future):
        try:
            executor.submit(faults.total, faults.filled(40 * MB))
        except shmexec.SharedMemoryFull as error:
            errors.append(error)

    executor.submit(calls.same, 1).add_done_callback(submit_more)
    assert wait_until(lambda: errors), "it waited, or there was room"
    assert errors[0].used >= 40 * MB
    gate.open()
    assert first.result() == 40 * MB


def test_under_an_event_loop_submit_raises_instead(make_small, gate):
    executor = make_small(1)

    async def main():
        first = executor.submit(faults.total_behind, gate, faults.filled(40 * MB))
        with pytest.raises(shmexec.SharedMemoryFull):
            executor.submit(faults.total, faults.filled(40 * MB))
        gate.open()
        return await asyncio.wrap_future(first)

    assert asyncio.run(main()) == 40 * MB


def test_a_thread_beside_an_event_loop_may_wait(make_small, gate):
    executor = make_small(1)

    def submit_twice():
        first = executor.submit(faults.total_behind, gate, faults.filled(40 * MB))
        gate.arrived()
        gate.open()
        return first, executor.submit(faults.total, faults.filled(40 * MB))

    async def main():
        futures = await asyncio.to_thread(submit_twice)
        return [await asyncio.wrap_future(future) for future in futures]

    assert asyncio.run(main()) == [40 * MB, 40 * MB]


# -- quotas of workers ---------------------------------------------------------------------


def test_an_idle_worker_gives_its_quota_to_a_busy_one(make_small, make_gate):
    executor = make_small(2)
    gates = [make_gate(), make_gate()]
    one = executor.submit(faults.filled_behind, gates[0], 50 * MB, 1)
    two = executor.submit(faults.filled_behind, gates[1], 50 * MB, 2)
    for each in gates:
        each.arrived()
    gates[0].open()
    assert one.result()[0] == 1
    del one  # its worker still has the quota
    gc.collect()
    gates[1].open()
    assert two.result()[0] == 2
    assert executor.stats().failed == 0


def test_arguments_use_what_an_idle_worker_had(make_small):
    executor = make_small(1)
    assert executor.submit(faults.filled, 60 * MB).result()[0] == 1
    assert executor.submit(faults.total, faults.filled(60 * MB)).result() == 60 * MB


def test_a_dead_workers_quota_comes_back(make_small):
    executor = make_small(1)
    for _ in range(3):
        assert executor.submit(faults.filled, 60 * MB).result()[0] == 1
        executor.submit(calls.kill_me).exception()
    assert wait_until(lambda: executor.stats().shared_memory_used == 0)


def test_results_of_a_dead_worker_count_as_long_as_they_live(make_small):
    executor = make_small(1)
    held = executor.submit(faults.filled, 50 * MB, 7).result()
    executor.submit(calls.kill_me).exception()
    executor.submit(calls.same, 1).result()
    assert executor.stats().shared_memory_used >= 50 * MB
    error = executor.submit(faults.filled, 30 * MB).exception()
    assert isinstance(error, shmexec.SharedMemoryFull)
    assert held.min() == held.max() == 7
    del held
    assert executor.submit(faults.filled, 50 * MB).result()[0] == 1


# -- recycling -------------------------------------------------------------------------------


def test_result_blocks_are_recycled(make_executor):
    executor = make_executor(1)
    places = set()
    for n in range(12):
        result = executor.submit(faults.filled, MB, n).result()
        assert result[0] == n
        places.add(faults.address(result))
        del result
    # One may be on its way back while the next result is made.
    assert len(places) <= 2


def test_argument_blocks_are_recycled(make_executor):
    executor = make_executor(1)
    array = faults.filled(MB)
    places = {executor.submit(faults.address, array).result() for _ in range(12)}
    assert len(places) <= 2


def test_a_held_result_is_never_overwritten(make_executor):
    executor = make_executor()
    held = [executor.submit(faults.filled, 100_000, n).result() for n in range(40)]
    for n, array in enumerate(held):
        assert array.min() == array.max() == n
        array[:] = 255 - n
    assert all(array[0] == 255 - n for n, array in enumerate(held))


def test_a_view_keeps_its_block(make_executor):
    executor = make_executor(1)
    part = executor.submit(faults.filled, MB, 7).result()[1000:1010]
    for n in range(5):
        executor.submit(faults.filled, MB, n).result()
    assert (part == 7).all()


def test_an_argument_that_is_a_result_is_copied(make_executor):
    executor = make_executor(1)
    array = executor.submit(faults.filled, MB, 7).result()
    future = executor.submit(faults.total, array)
    array[:] = 0
    assert future.result() == 7 * MB


def test_memory_does_not_grow_with_drifting_sizes(make_small):
    executor = make_small(1)
    for n in range(60):
        nbytes = 8 * MB + n * 70_000
        assert executor.submit(faults.filled, nbytes).result().nbytes == nbytes
        assert executor.submit(faults.total, faults.filled(nbytes)).result() == nbytes
    assert executor.stats().shared_memory_used <= 64 * MB


def test_idle_memory_goes_back_to_the_system(make_executor):
    executor = make_executor(1)
    executor.submit(faults.total, faults.filled(40 * MB)).result()
    host = executor._pool.host
    blocks = host.arena.blocks

    def on_disk():
        return os.fstat(host.arena.segment.descriptor).st_blocks * 512

    def nothing_lives():
        host.settle()
        return not blocks.live_blocks

    assert wait_until(nothing_lives)
    assert on_disk() >= 40 * MB, "at first it is kept, to be used again"
    with host.lock:
        host.arena.trim(keep=0)
    assert on_disk() < MB
    assert executor.submit(faults.total, faults.filled(40 * MB)).result() == 40 * MB
    assert on_disk() >= 40 * MB


# -- figures ---------------------------------------------------------------------------------


def test_stats(make_executor, gate):
    executor = make_executor(2, name="figures", max_shared_memory=64 * MB)
    before = executor.stats()
    assert before.workers == ()
    assert before.submitted == before.shared_memory_used == 0
    held = executor.submit(faults.filled, 2 * MB).result()
    executor.submit(faults.total, faults.filled(MB)).result()
    executor.submit(calls.ten_by, 0).exception()
    running = executor.submit(calls.through, gate)
    also = executor.submit(calls.through, gate)
    pending = [executor.submit(calls.same, 1) for _ in range(2)]
    pids = set(gate.arrived(2))
    pending[1].cancel()
    stats = executor.stats()
    assert stats.name == "figures"
    assert stats.max_workers == 2
    assert (stats.submitted, stats.pending, stats.running) == (7, 1, 2)
    assert (stats.done, stats.failed, stats.cancelled) == (2, 1, 1)
    assert stats.worker_deaths == 0
    assert stats.bytes_copied_in == MB
    assert stats.bytes_copied_out == 2 * MB
    assert stats.bytes_by_reference == 0
    assert 2 * MB <= stats.shared_memory_used <= stats.shared_memory_budget == 64 * MB
    assert {worker.pid for worker in stats.workers} == pids
    assert {worker.state for worker in stats.workers} == {"busy"}
    assert sum(worker.calls for worker in stats.workers) == 3
    assert sum(worker.arena_bytes for worker in stats.workers) == held.nbytes
    assert all(worker.private_bytes > MB for worker in stats.workers)
    with pytest.raises(AttributeError):
        stats.done = 9
    gate.open()
    running.result(), also.result(), pending[0].result()
    assert "figures" in repr(executor)


def test_stats_after_shutdown(make_executor):
    executor = make_executor(1)
    executor.submit(calls.same, 1).result()
    executor.shutdown()
    stats = executor.stats()
    assert stats.workers == ()
    assert (stats.submitted, stats.done) == (1, 1)
    assert stats.shared_memory_used == 0


def test_private_memory_leaves_the_arena_out(make_executor):
    executor = make_executor(1)
    executor.submit(calls.same, 1).result()
    [before] = executor.stats().workers  # a forked one has what the parent had
    array = faults.filled(100 * MB)
    assert executor.submit(faults.total, array).result() == 100 * MB
    [worker] = executor.stats().workers
    assert worker.private_bytes < before.private_bytes + 50 * MB


# -- the warning -----------------------------------------------------------------------------


def test_more_than_eight_workers_warn_once_with_numbers():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        executor = shmexec.Executor(12)
        executor.resize(16)
        executor.resize(20)
    executor.shutdown()
    assert caught[0].category is shmexec.MemoryWarning
    assert len(caught) == 1
    text = str(caught[0].message)
    assert text.startswith("12 workers ")
    assert " MB of private memory" in text
    assert " GB left" in text
    assert caught[0].filename == __file__


def test_growing_past_eight_measures_the_workers_there_are():
    executor = shmexec.Executor(2)
    executor.submit(calls.same, 1).result()
    with pytest.warns(shmexec.MemoryWarning, match="measured in 1 running worker"):
        executor.resize(9)
    executor.shutdown()


def test_eight_workers_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        executor = shmexec.Executor(8)
        executor.resize(4)
        executor.resize(8)
        executor.shutdown()


def test_the_warning_is_seen_without_any_option():
    code = "import shmexec; shmexec.Executor(9)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "MemoryWarning: 9 workers" in done.stderr


def test_pools_share_the_budget_of_the_process(make_small):
    one, two = make_small(1), make_small(1)
    held = one.submit(faults.filled, 50 * MB).result()
    assert two.submit(faults.filled, 50 * MB).result().nbytes == held.nbytes
    kind = one._options.segment
    assert one._pool.host is two._pool.host is lifecycle._hosts[kind]


AFTERWARDS = """
import os, sys
import numpy as np
import shmexec

def arenas():
    links = (f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd"))
    found = (os.stat(each) for each in links if "memfd" in os.path.realpath(each))
    return {each.st_ino: each.st_blocks * 512 for each in found}

with shmexec.Executor(1) as executor:
    total = executor.submit(np.sum, np.ones(8 << 20)).result()
    results = [executor.submit(np.ones, 4 << 20).result() for _ in range(3)]
assert total == 8 << 20
before = arenas()
assert sum(before.values()) >= 3 * 32 << 20
assert all(result.sum() == 4 << 20 for result in results)
del results
print(len(before) - len(arenas()), sum(arenas().values()) <= 17 << 20)
"""


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="counts memory files")
def test_results_that_outlive_the_last_pool_are_given_back(run_script):
    done = run_script(AFTERWARDS)
    assert not done.stderr
    arenas, few_pages = done.stdout.split()
    assert int(arenas) >= 1
    assert few_pages == "True"  # also of arguments
