"""Very many of everything: calls that wait, workers, pools one beside or after another.

The default tests take a few thousand; what is marked ``stress``, more. In full::

    OVERLOAD_CALLS=1000000 OVERLOAD_WORKERS=200 OVERLOAD_EXECUTORS=10000 \\
        pytest -m stress -n 0 -s -o faulthandler_timeout=0 tests/integration/test_overload.py
"""

from __future__ import annotations

import concurrent.futures
import gc
import os
import random
import statistics
import sys
import threading
import time
import tracemalloc
import weakref
from multiprocessing import process, util

import psutil
import pytest

import shmexec
from shmexec.runtime import lifecycle, monitor
from tests.contract import calls, models
from tests.waiting import wait_until

CALLS = int(os.environ.get("OVERLOAD_CALLS", "50000"))
WORKERS = int(os.environ.get("OVERLOAD_WORKERS", "40"))
EXECUTORS = int(os.environ.get("OVERLOAD_EXECUTORS", "1500"))

BYTES_OF_A_CALL = 900
"""That a pending call of next to nothing takes, at most. (The README says as much.)"""

pytestmark = pytest.mark.one_kind


@pytest.fixture
def blocked(make_executor, make_gate):
    """An executor whose one worker is busy until the gate opens."""
    executor, gate = make_executor(1), make_gate()
    executor.submit(calls.same, 0).result()  # so it is known
    executor.submit(calls.through, gate, None)
    gate.arrived()
    return executor, gate


def tables_of(executor):
    """What the pool has in its tables."""
    pool = executor._pool
    machine = pool._machine
    waiting = machine._state.waiting
    return {
        "calls": len(pool._calls),
        "outcomes": len(pool._outcomes),
        "scheduled": len(machine.calls),
        "waiting": waiting.count() + waiting.count_pinned(),
    }


# -- what one call takes -------------------------------------------------------------


def test_a_pending_call_takes_little(blocked):
    executor, gate = blocked
    count = 3000
    futures = [executor.submit(calls.same, n) for n in range(100)]
    tracemalloc.start()
    try:
        futures += [executor.submit(calls.same, n) for n in range(100, count)]
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken / (count - 100) <= BYTES_OF_A_CALL
    gate.open()
    assert [future.result() for future in futures] == list(range(count))


def test_waiting_for_many_at_once_takes_little(blocked):
    executor, gate = blocked
    futures = [executor.submit(calls.same, n) for n in range(3000)]
    tracemalloc.start()
    try:
        concurrent.futures.wait(futures, 0.001)
        gc.collect()
        snapshot = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    # Not what other threads of the tests do meanwhile.
    where = ("*/shmexec/*", "*/concurrent/*", "*/threading.py")
    ours = snapshot.filter_traces([tracemalloc.Filter(True, name) for name in where])
    taken = sum(each.size for each in ours.statistics("filename"))
    assert taken / len(futures) <= 100, [str(s) for s in ours.statistics("lineno")[:3]]
    gate.open()
    done = concurrent.futures.as_completed(futures)
    assert sorted(future.result() for future in done) == list(range(3000))


@pytest.mark.parametrize("way", ["each", "shutdown"])
def test_what_is_cancelled_leaves_nothing(blocked, way):
    executor, gate = blocked
    options = [executor.options(priority=each) for each in (-1, 0, 1)]
    chance = random.Random(1)
    futures = [chance.choice(options).submit(calls.same, n) for n in range(4000)]
    told = []
    for future in futures[::7]:
        future.add_done_callback(told.append)
    chance.shuffle(futures)
    if way == "each":
        assert all(future.cancel() for future in futures)
        assert tables_of(executor) == {
            "calls": 1,  # that in the gate
            "outcomes": 0,
            "scheduled": 1,
            "waiting": 0,
        }
        assert len(executor._pool._machine._state.waiting.queue) < 3000
    else:
        executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    assert wait_until(lambda: len(told) == len(range(0, 4000, 7)))
    gate.open()
    if way == "each":
        assert executor.submit(calls.same, 5).result() == 5


# -- very many calls -----------------------------------------------------------------


def costs(items, work):
    """CPU time of this thread for each item, in each hundredth of them."""
    size = max(1, len(items) // 100)
    found = []
    for start in range(0, len(items), size):
        before = time.thread_time()
        for item in items[start : start + size]:
            work(item)
        found.append((time.thread_time() - before) / size)
    return found


def check_flat(name, seconds):
    """The last ones take about as long as the first ones."""
    first, last = statistics.median(seconds[:20]), statistics.median(seconds[-20:])
    print(f"{name}: {first * 1e6:.1f} us, then {last * 1e6:.1f} us")  # noqa: T201  (-s)
    assert last <= 4 * first, (name, seconds)


@pytest.mark.stress
@pytest.mark.parametrize("priorities", [(0,), (-1, 0, 2)], ids=["plain", "priorities"])
def test_submit_and_cancel_take_no_longer_for_very_many(blocked, priorities):
    executor, gate = blocked
    options = [executor.options(priority=each) for each in priorities]
    futures = []

    def submit(number):
        one = options[number % len(options)]
        futures.append(one.submit(calls.same, number))

    check_flat("submit", costs(range(CALLS), submit))
    executor.submit(calls.same, -1).cancel()
    gc.collect()
    check_flat("cancel", costs(futures, lambda future: future.cancel()))
    assert all(future.cancelled() for future in futures)
    assert tables_of(executor)["calls"] == 1
    gate.open()


@pytest.mark.stress
def test_very_many_calls_are_right(blocked):
    executor, gate = blocked
    called = []
    futures = []
    for number in range(CALLS):
        futures.append(executor.submit(calls.same, number))
        if number % 3 == 0:
            futures[-1].add_done_callback(called.append)
    gate.open()
    assert all(future.result() == n for n, future in enumerate(futures))
    assert wait_until(lambda: len(called) == len(range(0, CALLS, 3)))
    assert not any(tables_of(executor).values())


@pytest.mark.stress
def test_very_many_callbacks_of_one_future(blocked):
    executor, gate = blocked
    future = executor.submit(calls.same, 1)
    called = []
    for number in range(CALLS):
        future.add_done_callback(lambda _, number=number: called.append(number))
    gate.open()
    assert future.result() == 1
    assert wait_until(lambda: len(called) == CALLS)
    assert called == list(range(CALLS))


@pytest.mark.stress
def test_shutdown_cancels_very_many(blocked):
    executor, gate = blocked
    futures = [executor.submit(calls.same, number) for number in range(CALLS)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    gate.open()
    executor.shutdown()
    assert not any(tables_of(executor).values())


@pytest.mark.stress
def test_a_lazy_map_over_very_many_holds_few(make_executor):
    executor = make_executor()
    most = 0
    items = executor.map(calls.same, range(CALLS // 5), buffersize=32)
    for number, item in enumerate(items):
        assert item == number
        most = max(most, tables_of(executor)["calls"])
    assert most <= 33


@pytest.mark.stress
def test_many_streams_and_calls_of_an_actor_wait(make_executor):
    executor = make_executor()
    many = CALLS // 25
    streams = [executor.stream(calls.generate) for _ in range(many)]
    for stream in streams:
        assert list(stream) == [1]
    streams = [executor.stream(calls.generate) for _ in range(many)]
    del stream, streams  # unread
    assert wait_until(lambda: not tables_of(executor)["calls"])
    with executor.actor(models.Counter) as counter:
        futures = [counter.add(1) for _ in range(many)]
        assert [future.result() for future in futures] == list(range(1, many + 1))
        for future in [counter.add(1) for _ in range(many)]:
            future.cancel()


@pytest.mark.stress
def test_many_threads_submit_at_once(make_executor):
    executor = make_executor()
    start = threading.Barrier(64)
    right = []

    def run(thread):
        start.wait()
        futures = [
            executor.submit(calls.same, (thread, n)) for n in range(CALLS // 200)
        ]
        right.append(
            all(future.result() == (thread, n) for n, future in enumerate(futures))
            and all(
                executor.submit(calls.same, n).result() == n
                for n in range(CALLS // 1000)
            )
        )

    threads = [threading.Thread(target=run, args=(each,)) for each in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 64


# -- many workers, many pools ---------------------------------------------------------


@pytest.mark.stress
@pytest.mark.filterwarnings("ignore::shmexec.MemoryWarning")
def test_many_workers(make_executor):
    me = psutil.Process()
    gc.collect()
    before = me.num_fds()
    executor = make_executor(WORKERS)
    assert len(set(executor.broadcast(os.getpid))) == WORKERS
    each = (me.num_fds() - before) / WORKERS
    assert each <= 13, "the README says how many descriptors a worker takes"
    numbers = range(10 * WORKERS)
    assert list(executor.map(calls.same, numbers, chunksize=1)) == list(numbers)
    executor.shutdown()
    assert me.num_fds() <= before


@pytest.mark.stress
def test_many_pools_beside_each_other(make_executor):
    executors = [make_executor(1) for _ in range(WORKERS)]
    futures = [
        executor.submit(calls.same, number)
        for _ in range(3)
        for number, executor in enumerate(executors)
    ]
    found = [future.result() for future in futures]
    assert found == list(range(WORKERS)) * 3
    for executor in executors:
        executor.shutdown(wait=False)
    for executor in executors:
        executor.shutdown()


def kept():
    """What this process keeps, by what could leak with an executor."""
    gc.collect()
    hosts = [host for host in lifecycle._hosts.values() if not host.forked]
    for host in hosts:
        host.settle()
    found = {
        "pools": len(lifecycle._pools),
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "children": len(process._children),
        "processes": len(process._dangling),
        "finalizers": len(util._finalizer_registry),
        "things to do after a fork": len(util._afterfork_registry),
        "weakref finalizers": len(weakref.finalize._registry),
        "things to do at exit": len(threading._threading_atexits),
        "pokes": sum(len(host._pokes) for host in hosts),
        "leases": sum(len(host.ledger) for host in hosts),
        "blocks": sum(host.arena.blocks.live_blocks for host in hosts),
        "arenas": sum(len(host._workers) for host in hosts),
        "bytes charged": sum(host.budget.used() for host in hosts),
    }
    if sys.version_info < (3, 13):
        found["locks of threads"] = len(threading._shutdown_locks)
    return found


def more_objects(than):
    gc.collect()
    return len(gc.get_objects()) - than


def use(executor, *, call):
    if call:
        assert executor.submit(calls.same, 1).result() == 1


def close(executor, way):
    if way == "shutdown":
        executor.shutdown()
    elif way == "later":
        executor.shutdown(wait=False)


@pytest.mark.stress
@pytest.mark.parametrize("way", ["shutdown", "later", "drop"])
@pytest.mark.parametrize("call", [False, True], ids=["unused", "used"])
def test_executors_one_after_another_leave_nothing(way, call):
    count = EXECUTORS // 75 if call else EXECUTORS

    def run(number):
        for _ in range(number):
            executor = shmexec.Executor(1)
            use(executor, call=call)
            close(executor, way)
            del executor
        gc.collect()
        assert wait_until(lambda: not lifecycle._pools)

    run(count // 2 + 10)
    wait_until(lambda: kept()["threads"] == 1)
    before, memory = kept(), monitor.private_bytes(os.getpid())
    objects = len(gc.get_objects())
    run(count)
    assert wait_until(lambda: kept() == before), (kept(), before)
    grown = monitor.private_bytes(os.getpid()) - memory
    print(f"{count} executors: {grown} bytes more")  # noqa: T201  (-s)
    # What the allocators keep comes and goes; a kilobyte for each does not.
    assert grown <= (2 << 20) + 100 * count, grown
    # A thread that has ended may still let go of what it had.
    assert wait_until(lambda: more_objects(objects) <= 100 + count // 10), more_objects(
        0
    )
