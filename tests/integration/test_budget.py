"""Room that a busy worker has and does not use: nobody else fails for want of it.

As long as results and arguments that are alive, with what is asked for, are within the
budget, nothing fails, whoever has quota.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack

import numpy as np
import pytest

import shmexec
from shmexec.runtime import lifecycle
from tests.contract import calls
from tests.integration import faults
from tests.integration.test_limits import may_mount
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

MB = 1 << 20


@pytest.fixture
def make_small():
    """Executors with a budget of 64 MiB."""
    with ExitStack() as stack:
        yield lambda max_workers=2, **settings: stack.enter_context(
            shmexec.Executor(max_workers, max_shared_memory=64 * MB, **settings)
        )


@pytest.fixture
def busy(make_small, make_gate):
    """An executor of two workers; one runs a call, and has 60 of the 64 MiB."""
    executor = make_small(2)
    gates = [make_gate(), make_gate()]
    running = executor.submit(faults.filled_behind, gates[0], 8 * MB, 5)
    gates[0].arrived()  # so that the other worker gets what comes now
    assert executor.submit(faults.filled, 60 * MB).result()[0] == 1
    gc.collect()
    again = executor.submit(faults.filled_behind, gates[1], 20 * MB, 7)
    gates[1].arrived()
    gates[0].open()
    assert running.result()[0] == 5
    del running
    gc.collect()
    yield executor
    gates[1].open()
    assert (again.result() == 7).all()
    del again
    assert wait_until(lambda: executor.stats().shared_memory_used <= 64 * MB)


def test_a_result_finds_room_beside_a_busy_worker(busy):
    for value in (1, 2):
        result = busy.submit(faults.filled, 60 * MB, value).result()
        assert result[0] == result[-1] == value
        del result


def test_past_the_budget_it_says_what_is_in_use(busy):
    held = busy.submit(faults.filled, 30 * MB, 3).result()
    error = busy.submit(faults.filled, 40 * MB).exception()
    assert isinstance(error, shmexec.SharedMemoryFull)
    assert (error.needed, error.budget) == (40 * MB, 64 * MB)
    assert 30 * MB <= error.used < 64 * MB
    assert error.free < error.needed
    assert (held == 3).all()


def test_an_argument_finds_room_beside_a_busy_worker(busy):
    assert busy.submit(faults.total, faults.filled(60 * MB)).result() == 60 * MB


def test_an_argument_does_under_an_event_loop(busy):
    async def main():
        future = busy.submit(faults.total, faults.filled(60 * MB))
        return await asyncio.wrap_future(future)

    assert asyncio.run(main()) == 60 * MB


def test_an_argument_does_in_a_callback(busy):
    made = []

    def submit_more(_future):
        made.append(busy.submit(faults.total, faults.filled(60 * MB)))

    busy.submit(calls.same, 1).add_done_callback(submit_more)
    assert wait_until(lambda: made), "it waited, or raised"
    assert made[0].result() == 60 * MB


def test_a_shared_array_does(busy):
    with pytest.raises(shmexec.SharedMemoryFull):
        busy.submit(faults.total, np.empty(65 * MB, np.uint8))
    assert busy.submit(faults.total, shmexec.share(np.ones(60 * MB, "b"))).result() > 0


def test_a_stopped_worker_keeps_nobody_from_room(make_small, make_gate, monkeypatch):
    """It was asked for what it has, and does not answer."""
    monkeypatch.setattr("shmexec.runtime.room.RECLAIM_WITHIN", 0.1)
    monkeypatch.setattr("shmexec.runtime.quotas.RECLAIM_WITHIN", 0.1)
    executor, gate = make_small(2), make_gate()
    one = executor.submit(faults.filled_behind, gate, 60 * MB, 1)
    gate.arrived()
    other = executor.submit(os.getpid).result()
    (stopped,) = set(executor._pool.pids()) - {other}
    gate.open()
    assert one.result()[0] == 1
    del one
    os.kill(stopped, signal.SIGSTOP)
    try:
        gates = [make_gate(), make_gate()]  # for both: the stopped one gets the first
        futures = [
            executor.submit(faults.filled_behind, each, 60 * MB) for each in gates
        ]
        gates[1].arrived()
        gates[1].open()
        assert futures[1].result()[0] == 1
        del futures[1]
        gc.collect()
        assert executor.submit(faults.total, faults.filled(60 * MB)).result() == 60 * MB
    finally:
        os.kill(stopped, signal.SIGCONT)
    gates[0].open()
    assert futures[0].result()[0] == 1


def test_submit_waits_no_longer_for_a_worker_that_dies(make_small, make_gate):
    executor, gate = make_small(1), make_gate()
    first = executor.submit(faults.total_behind, gate, faults.filled(40 * MB))
    gate.arrived()
    timer = threading.Timer(0.1, os.kill, (executor._pool.pids()[0], signal.SIGKILL))
    timer.start()
    second = executor.submit(faults.total, faults.filled(40 * MB))
    assert isinstance(first.exception(), shmexec.WorkerDied)
    assert second.result() == 40 * MB
    timer.join()


# -- streams -------------------------------------------------------------------------------


def large_items(number, nbytes):
    for n in range(number):
        yield np.full(nbytes, n, np.uint8)


def test_calls_beside_an_open_stream(make_small):
    """Its worker gives back, between items, what it does not need."""
    executor = make_small(2)
    stream = executor.stream(large_items, 12, 8 * MB, buffersize=2)
    for n, item in enumerate(stream):
        assert item[0] == item[-1] == n
        del item
        if n % 4 == 0:
            result = executor.submit(faults.filled, 30 * MB, n).result()
            assert result[0] == n
            del result
            assert executor.submit(faults.total, faults.filled(30 * MB)).result()


def test_items_use_the_room_of_those_that_were_dropped(make_small):
    """The worker hears of them in the middle of its call, when it needs room."""
    executor = make_small(1)
    for n, item in enumerate(executor.stream(large_items, 6, 30 * MB, buffersize=1)):
        assert item[0] == item[-1] == n
        del item


def test_to_submit_while_a_stream_fills_the_budget_raises(make_small, monkeypatch):
    monkeypatch.setattr("shmexec.runtime.room.HOLDING_STILL", 0.2)
    executor = make_small(1)
    stream = executor.stream(large_items, 4, 15 * MB, buffersize=3)
    assert next(stream)[0] == 0

    def in_results():
        return sum(each.arena_bytes for each in executor.stats().workers)

    assert wait_until(lambda: in_results() >= 45 * MB)  # three that nobody reads
    with pytest.raises(shmexec.SharedMemoryFull):
        executor.submit(faults.total, faults.filled(40 * MB))
    assert [item[0] for item in stream] == [1, 2, 3]


# -- the worker's own ------------------------------------------------------------------------


def in_a_circle(nbytes):
    array = np.ones(nbytes, np.uint8)
    circle = [array]
    circle.append(circle)
    return array.sum()


def test_what_awaits_collection_in_the_worker_is_no_obstacle(make_small):
    executor = make_small(1)
    executor.submit(faults.filled, 60 * MB).result()  # so that arrays are born there
    assert executor.submit(in_a_circle, 50 * MB).result() == 50 * MB
    assert executor.submit(faults.filled, 60 * MB, 3).result()[0] == 3


# -- one executor, several pools -------------------------------------------------------------


class Maker:
    """Makes arrays."""

    def make(self, nbytes, value):
        return faults.filled(nbytes, value)


def test_an_executors_limit_is_for_its_actors_too(make_small):
    executor = make_small(1)
    with executor.actor(Maker) as actor, executor.actor(Maker) as other:
        held = [actor.make(30 * MB, 1).result(), other.make(30 * MB, 2).result()]
        error = executor.submit(faults.filled, 30 * MB).exception()
        assert isinstance(error, shmexec.SharedMemoryFull)
        assert isinstance(actor.make(30 * MB, 3).exception(), shmexec.SharedMemoryFull)
        assert [array[0] for array in held] == [1, 2]
        held.clear()
        # What the actors have still, nobody needs.
        assert executor.submit(faults.filled, 60 * MB, 3).result()[0] == 3
        assert executor.submit(faults.total, faults.filled(60 * MB)).result()


def test_executors_have_limits_of_their_own(make_small):
    one, other = make_small(1), make_small(1)
    held = [each.submit(faults.filled, 60 * MB).result() for each in (one, other)]
    assert [len(array) for array in held] == [60 * MB] * 2


class Slowly:
    """Makes arrays, several at a time."""

    async def make(self, nbytes, value):
        await asyncio.sleep(0.001)
        return faults.filled(nbytes, value)


def echo(array):
    return array


@pytest.mark.stress
@pytest.mark.parametrize(("kind", "native"), [("memfd", "1"), ("posix", "0")])
def test_nothing_fails_as_long_as_what_lives_fits(
    make_small, monkeypatch, kind, native
):
    """Calls, an actor and a stream; what they may have at once is within the budget."""
    monkeypatch.setenv("SHMEXEC_SEGMENT", kind)
    monkeypatch.setenv("SHMEXEC_NATIVE", native)
    executor, rng = make_small(3), random.Random(kind)
    step = 4 * MB
    with executor.actor(Slowly, max_concurrency=3) as actor:
        items = iter(executor.stream(large_items, 40, step, buffersize=1))
        last = next(items)  # an item that is held, one that waits, one that is made
        room, held, running = 64 * MB - 4 * step, [], []
        for n in range(100):
            nbytes = rng.choice([MB, step, 2 * step, 4 * step, 5 * step])
            way = rng.randrange(4)
            if way == 0:
                last = next(items)
                assert last[0] == last[-1]
                continue
            cost = 2 * nbytes if way == 1 else nbytes
            while sum(map(len, held)) + sum(c for _, c in running) + cost > room:
                if running and (not held or rng.random() < 0.5):
                    held.append(running.pop(0)[0].result())
                else:
                    del held[rng.randrange(len(held))]
            if way == 1:
                future = executor.submit(echo, np.full(nbytes, n % 256, np.uint8))
            elif way == 2:
                future = actor.make(nbytes, n % 256)
            else:
                future = executor.submit(faults.filled, nbytes, n % 256)
            running.append((future, cost))
            del future  # it has its result
        for future, _ in running:
            assert future.result() is not None
        items.close()
        del last


# -- memory that nobody needs ----------------------------------------------------------------


def on_disk(host):
    """Bytes of shared memory that the system has given to this program and its workers."""
    return sum(map(on_disk_in, [host.arena, *host._workers.values()]))


def on_disk_in(arena):
    return os.fstat(arena.segment.descriptor).st_blocks * 512


def mapped(pid):
    """Bytes of shared memory in a process's resident set."""
    with open(f"/proc/{pid}/status") as file:
        (line,) = (line for line in file if line.startswith("RssShmem"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc here")
@pytest.mark.parametrize("kind", ["memfd", "posix"])
def test_in_idleness_what_is_left_is_what_lives(make_small, monkeypatch, kind):
    monkeypatch.setenv("SHMEXEC_SEGMENT", kind)
    monkeypatch.setattr("shmexec.runtime.quotas.TRIM_AFTER", 0.3)
    executor, rng = make_small(2), random.Random(1)
    before = mapped(os.getpid())
    held = []
    for n in range(120):
        nbytes = int(32768 * 256 ** rng.random())
        held.append(executor.submit(faults.filled, nbytes, n).result())
        assert executor.submit(faults.total, held[-1][:100_000]).result() >= 0
        while sum(array.nbytes for array in held) > 40 * MB:
            held.pop(rng.randrange(len(held)))
    while sum(array.nbytes for array in held) > 10 * MB:
        held.pop(rng.randrange(len(held)))
    host = executor._pool.host
    pids = [os.getpid(), *executor._pool.pids()]

    def left():
        return max(on_disk(host), mapped(pids[0]) - before, *map(mapped, pids[1:]))

    def lives():
        return sum(array.nbytes for array in held)

    assert left() > 1.5 * lives(), "as long as something goes on it is kept"
    assert wait_until(lambda: left() <= 1.1 * lives()), (left(), lives())
    assert all(array.min() == array.max() for array in held)
    del held[::2]  # in idleness
    assert wait_until(lambda: left() <= 1.1 * lives()), (left(), lives())
    assert all(array.min() == array.max() for array in held)


def test_results_that_outlive_their_executor_go_when_they_are_dropped():
    with shmexec.Executor(1) as executor:
        held = [executor.submit(faults.filled, MB, n).result() for n in range(3)]
    host = lifecycle.host(shmexec.stats().segment)
    assert [array[0] for array in held] == [0, 1, 2]
    del held[1]
    assert on_disk(host) < 3 * MB
    held.clear()
    assert not host._workers


def test_without_an_executor_shared_arrays_go_when_they_are_dropped():
    host = lifecycle.host(shmexec.stats().segment)
    before = on_disk(host)
    shared = [shmexec.share(np.ones(48 * MB, np.uint8)) for _ in range(2)]
    assert on_disk(host) >= before + 96 * MB
    shared.clear()
    assert on_disk(host) <= max(before, 32 * MB)
    assert host.budget.used() == 0


def test_a_new_executor_keeps_its_memory_whoever_was_short_of_some_before(busy):
    host = busy._pool.host
    before = host.lending.strains
    assert busy.submit(faults.total, faults.filled(60 * MB)).result() == 60 * MB
    assert host.lending.strains > before
    with shmexec.Executor(1) as executor:
        array = faults.filled(48 * MB)
        assert executor.submit(faults.total, array).result() == 48 * MB
        assert not wait_until(lambda: on_disk_in(host.arena) < 48 * MB, 0.5)


def test_with_its_last_executor_a_program_gives_back_what_is_idle():
    with shmexec.Executor(1) as executor:
        executor.submit(faults.total, np.ones(48 * MB, np.uint8)).result()
        host = executor._pool.host
        assert on_disk(host) >= 48 * MB
    assert on_disk(host) <= 32 * MB


FILLS_THE_FILE_SYSTEM = """
import os
import numpy as np
from shmexec.errors import SharedMemoryFull
from shmexec.memory import native
from shmexec.memory.arena import Arena
from shmexec.memory.host import Host
from shmexec.memory.segment import Segment
from shmexec.wire.sources import Source

MB = 1 << 20
host = Host("posix", 1 << 30, 1 << 30)
host.budget.open("account")
content = Source(np.ones(MB + 7, np.uint8).data)
other = os.open("/dev/shm/other", os.O_RDWR | os.O_CREAT)
os.posix_fallocate(other, 0, 8 * MB)  # after the host has looked how much there is
blocks = []
try:
    while True:
        blocks.append(host.allocate("account", content.nbytes, "holder", content))
except SharedMemoryFull as error:
    assert "/dev/shm" in str(error), error
    assert error.needed == content.nbytes and error.used < error.budget
assert 5 <= len(blocks) <= 8, len(blocks)
assert all((host.bytes_of(block) == 1).all() for block in blocks)
assert host.budget.used() == host.arena.blocks.used

pure = Arena(8, Segment.create("posix", 1 << 30))
_, fresh = pure.reserve(8 * MB)
try:
    pure.back(fresh)
    raise AssertionError
except MemoryError:
    pass

host.release([block.lease for block in blocks])
host.trim()
if native.is_built():
    arena = native.NativeArena(7, Segment.create("posix", 1 << 30))
    arena.quota = 1 << 29
    before, held = arena.enter(), []
    for n in range(40):
        held.append((np.zeros if n % 2 else np.ones)(MB // 2 + 64 * n, np.uint8))
        held[n][:] = n
    arena.leave(before)
    assert all((array == n).all() for n, array in enumerate(held))
    start = arena.segment.address
    inside = [start <= each.ctypes.data < start + arena.segment.size for each in held]
    assert 10 <= sum(inside) < 20, "what finds no room comes from malloc"
print("fine")
"""


def test_a_full_file_system_is_an_error_and_no_bus_error():
    if not may_mount():
        pytest.skip("mounting file systems is not allowed here")
    steps = 'mount -t tmpfs -o size=16m tmpfs /dev/shm && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", steps, "sh", sys.executable]
    done = subprocess.run(
        [*command, "-c", FILLS_THE_FILE_SYSTEM],
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
