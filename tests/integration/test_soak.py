"""Everything mixed, for as long as one likes: right results, and nothing that grows.

Calls of all ways and of sizes from nothing to 64 MB, and among them calls that raise, die,
are stopped, time out or are cancelled, workers killed at any moment, pools resized, streams
left in the middle. Each result is checked; what fails must have been meant to. Memory,
descriptors, threads and blocks of the second half are those of the first.

``SOAK_SECONDS`` in the environment sets for how long, ``SOAK_SEED`` with which seed; with
``SOAK_STEPS`` a run ends after so many steps, as one with the same seed that failed. For an
hour::

    SOAK_SECONDS=3600 SOAK_SEED=7 pytest -m stress -n 0 -s -o faulthandler_timeout=0 \\
        tests/integration/test_soak.py
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import random
import signal
import threading
import time
from collections import Counter, deque
from concurrent.futures import CancelledError

import numpy as np
import pytest

import shmexec
from shmexec.memory.lending import HOST
from shmexec.runtime import monitor
from shmexec.runtime.room import CALLS
from tests.integration import soaking
from tests.waiting import wait_until

SECONDS = float(os.environ.get("SOAK_SECONDS", "12"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
STEPS = int(os.environ.get("SOAK_STEPS", "0"))

SAMPLES = 40
LARGEST = 64 << 20
"""Bytes of an array; log-uniform below, and few of them large."""

PATIENCE = 120
"""Seconds after which a call that should end is taken to hang."""

PRIVATE_GROWTH = 16 << 20
"""Bytes by which this program's private memory may grow over the second half."""

WORKER_GROWTH = 2 * LARGEST
"""The same for the workers': their malloc keeps what it had for arrays in between."""

ARENA_GROWTH = 2 * LARGEST
"""The same for all arenas together: a few blocks of the largest size."""

ARRAY_CALLS = {
    soaking.plus_one: lambda x: x + 1,
    soaking.plus_one_in_place: lambda x: x + 1,
    soaking.total: soaking.total,
    soaking.evens: soaking.evens,
    soaking.twice: soaking.twice,
}


def same(got, right):
    if isinstance(right, (list, tuple)):
        return len(got) == len(right) and all(map(same, got, right))
    if isinstance(right, dict):
        return got.keys() == right.keys() and all(same(got[k], right[k]) for k in right)
    return np.array_equal(got, right)


class Soak:
    """Steps, drawn by chance, and what comes of them.

    Attributes:
        pending: Of what was submitted: the future, the right result, and what kind of
            errors it may end with instead.
        kept: Results, which live for a while, as in real programs.
        done: How often each step was taken, and how often each error came.
    """

    def __init__(self, executor, folder, seed):
        self.executor = executor
        self.chance = random.Random(seed)
        self.source = np.random.default_rng(seed).integers(
            0, 100, 2 * LARGEST, np.uint8
        )
        self.pending = deque()
        self.kept = deque(maxlen=5)
        self.done = Counter()
        path = folder / "soaked.py"
        path.write_text(soaking.SCRIPT)
        self.script = executor.script(path)
        self.steps = {
            self.submit: 30,
            self.submit_array: 30,
            self.submit_coroutine: 3,
            self.map: 4,
            self.map_lazily: 2,
            self.map_batches: 2,
            self.stream: 3,
            self.leave_stream: 2,
            self.actor: 1,
            self.batcher: 2,
            self.share: 3,
            self.call_script: 4,
            self.asynchronous: 1,
            self.call_back: 3,
            self.prefer: 3,
            self.fail: 3,
            self.die: 2,
            self.kill_any: 1,
            self.time_out: 1,
            self.cancel: 3,
            self.stop: 1,
            self.resize: 1,
            self.other_pool: 0.3,
        }

    def step(self):
        (step,) = self.chance.choices(list(self.steps), list(self.steps.values()))
        self.done[step.__name__] += 1
        step()
        while len(self.pending) > self.chance.randrange(12):
            self.check()

    def drain(self):
        while self.pending:
            self.check()

    def check(self):
        future, right, may_fail = self.pending.popleft()
        try:
            got = future.result(PATIENCE)
        except may_fail as error:
            self.done[type(error).__name__] += 1
            return
        assert right is not None, f"it should have failed with one of {may_fail}"
        assert same(got, right), (got, right)
        self.kept.append(got)

    def expect(self, future, right, *may_fail):
        self.pending.append((future, right, may_fail))

    def array(self, largest=LARGEST):
        """Most of them small."""
        share = self.chance.random() ** 2
        size = int(largest**share) if self.chance.random() > 0.02 else 0
        start = self.chance.randrange(LARGEST)
        return self.source[start : start + size]

    # -- what works ------------------------------------------------------------------

    def submit(self):
        for _ in range(self.chance.choice((1, 1, 1, 200))):
            number = self.chance.randrange(10**9)
            self.expect(self.executor.submit(soaking.same, number), number)

    def submit_array(self):
        x = self.array()
        function = self.chance.choice(list(ARRAY_CALLS))
        future = self.executor.submit(function, x)
        self.expect(future, ARRAY_CALLS[function](x))

    def submit_coroutine(self):
        x = self.array(1 << 20)
        self.expect(self.executor.submit(soaking.later, x), x)

    def map(self):
        count = self.chance.choice((0, 3, 50, 2000))
        assert list(self.executor.map(soaking.same, range(count))) == list(range(count))

    def map_lazily(self):
        items = [self.array(1 << 20) for _ in range(20)]
        ordered = self.chance.random() < 0.5
        found = self.executor.map(soaking.total, items, buffersize=4, ordered=ordered)
        right = list(map(soaking.total, items))
        if self.chance.random() < 0.3:  # the others are not wanted
            assert next(iter(found)) in right
            return
        assert list(found) == right if ordered else sorted(found) == sorted(right)

    def map_batches(self):
        x = self.array(4 << 20)
        x = x[: len(x) // 8 * 8].reshape(-1, 8)
        size = self.chance.choice((None, 1 + len(x) // 5))
        if len(x):
            found = self.executor.map_batches(soaking.plus_one, x, batch_size=size)
            assert same(found, x + 1)

    def stream(self):
        count, size = self.chance.randrange(30), self.chance.choice((10, 100_000))
        stream = self.executor.stream(soaking.arrays, count, size, buffersize=4)
        for number, item in enumerate(stream):
            assert same(item, np.full(size, number, np.uint8))
            count -= 1
        assert not count

    def leave_stream(self):
        stream = self.executor.stream(soaking.arrays, 10**6, 50_000)
        for number in range(self.chance.randrange(5)):
            assert same(next(stream), np.full(50_000, number, np.uint8))
        if self.chance.random() < 0.5:
            stream.close()

    def actor(self):
        with self.executor.actor(soaking.Model, 3) as model:
            x = self.array(1 << 20).astype(np.int64)
            futures = [model.step(x) for _ in range(10)]
            for number, future in enumerate(futures):
                assert same(future.result(PATIENCE), (number + 1, x * 3))

    def batcher(self):
        rows = [self.array(1 << 16)[:8] for _ in range(100)]
        rows = [np.resize(row, 8) if len(row) else np.ones(8, np.uint8) for row in rows]
        with self.executor.batcher(soaking.plus_one, max_batch_size=16) as batched:
            futures = [batched(row) for row in rows]
            for future, row in zip(futures, rows, strict=True):
                assert same(future.result(PATIENCE), row + 1)

    def share(self):
        x = self.array(16 << 20)
        shared = shmexec.share(x)
        for factor in range(3):
            future = self.executor.submit(soaking.scaled, shared[1:], np.uint8(factor))
            self.expect(future, x[1:] * np.uint8(factor))

    def call_script(self):
        number = self.chance.randrange(1000)
        self.expect(self.script.predict(number), number + 3)

    def asynchronous(self):
        items = [self.array(1 << 17) for _ in range(10)]

        async def run():
            calls = [self.executor.asubmit(soaking.plus_one, x) for x in items]
            return await asyncio.gather(*calls)

        assert same(asyncio.run(run()), [x + 1 for x in items])

    def call_back(self):
        came = threading.Event()

        def resubmit(future):
            with contextlib.suppress(shmexec.PoolClosed):
                self.executor.submit(soaking.same, future.result())
            came.set()

        self.executor.submit(soaking.same, 5).add_done_callback(resubmit)
        assert came.wait(PATIENCE)

    def prefer(self):
        options = self.executor.options(
            priority=self.chance.randrange(-3, 3), retries=1, timeout=PATIENCE
        )
        x = self.array(1 << 20)
        self.expect(options.submit(soaking.plus_one, x), x + 1)

    # -- what fails ------------------------------------------------------------------

    def fail(self):
        x = self.array(1 << 18)
        self.expect(self.executor.submit(soaking.refuse, x), None, ValueError)

    def die(self):
        how = self.chance.choice(("exit", "SIGKILL", "SIGSEGV", "SIGTERM"))
        future = self.executor.submit(soaking.die, how)
        self.expect(future, None, shmexec.WorkerDied)

    def kill_any(self):
        """What runs may be hit; all else goes on."""
        pids = self.executor._pool.pids()
        if pids:
            # Whatever is pending now may be what runs.
            self.pending = deque(
                (future, right, (*may_fail, shmexec.WorkerDied))
                for future, right, may_fail in self.pending
            )
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.chance.choice(pids), signal.SIGKILL)
            # It is over before streams and maps go on, which would be hit as well.
            self.drain()

    def time_out(self):
        options = self.executor.options(timeout=0.02)
        self.expect(options.submit(soaking.nap, 1000), None, shmexec.CallTimeout)

    def cancel(self):
        x = self.array(1 << 18)
        futures = [self.executor.submit(soaking.plus_one, x) for _ in range(30)]
        self.chance.shuffle(futures)
        for future in futures[:20]:
            if not future.cancel():
                self.expect(future, x + 1)
        for future in futures[20:]:
            self.expect(future, x + 1)

    def stop(self):
        future = self.executor.submit(soaking.nap, 1000)
        if self.chance.random() < 0.7:
            assert wait_until(future.running)
        future.cancel(running=True)
        self.expect(future, None, CancelledError)

    def resize(self):
        self.executor.resize(self.chance.randrange(1, 5))

    def other_pool(self):
        with shmexec.Executor(1) as other:
            x = self.array(1 << 20)
            assert same(other.submit(soaking.plus_one, x).result(PATIENCE), x + 1)


class Sampler:
    """What there is when nothing is under way, over the run."""

    def __init__(self, executor):
        self._pool = executor._pool
        self.series = {}

    def take(self):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        pool, host = self._pool, self._pool.host
        assert wait_until(lambda: not self.leases()), self.leases()
        handles = list(pool._workers.values())
        # A worker that was stopped is being collected, and another may start meanwhile:
        # what is still there after a while was left.
        most = max(self.series.get("descriptors", (1 << 30,)))
        wait_until(lambda: descriptors_beside(pool) <= most, 3)
        private = [monitor.private_bytes(handle.process.pid) for handle in handles]
        arenas = [handle.arena.segment for handle in handles]
        self._note("private", monitor.private_bytes(os.getpid()))
        self._note("private of a worker", max((p for p in private if p), default=0))
        self._note("arena", _pages(host.arena.segment))
        self._note("arenas of workers", sum(map(_pages, arenas)))
        self._note("threads", threading.active_count())
        self._note("descriptors", descriptors_beside(pool))
        self._note("objects", len(gc.get_objects()))
        self._note("arenas", len(host._workers) - len(handles))

    def leases(self):
        """Of results, and of calls: there are neither."""
        host = self._pool.host
        host.settle()
        with host.lock:
            held = host.ledger.held_by
            return len(held(HOST)) + len(held(CALLS)) + len(self._pool._calls)

    def _note(self, name, value):
        self.series.setdefault(name, []).append(value)

    def growth(self, name):
        """By what the highest of the second half exceeds the highest of the first.

        What is kept on purpose (recycled blocks, warm allocators) is reached early.
        """
        values = self.series[name]
        half = len(values) // 2
        return max(values[half:]) - max(values[:half])


def descriptors_beside(pool):
    """How many there are but for those of its workers."""
    return len(os.listdir("/proc/self/fd")) - 12 * len(pool._workers)


def _pages(segment):
    return (
        os.fstat(segment.descriptor).st_blocks * 512 if segment.descriptor >= 0 else 0
    )


LIMITS = {
    "private": PRIVATE_GROWTH,
    "private of a worker": WORKER_GROWTH,
    "arena": ARENA_GROWTH,
    "arenas of workers": 4 * ARENA_GROWTH,
    "threads": 1,
    "descriptors": 8,
    "objects": 3000,
    "arenas": 1,
}


@pytest.mark.stress
@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="arenas are not files here")
def test_everything_mixed(tmp_path, record_property):
    with shmexec.Executor(2) as executor:
        soak = Soak(executor, tmp_path, SEED)
        sampler = Sampler(executor)
        start = time.monotonic()
        steps, part = 0, 0.0
        try:
            while part < 1:
                soak.step()
                steps += 1
                gone = time.monotonic() - start
                part = steps / STEPS if STEPS else gone / SECONDS
                # The first tenth is to warm up.
                taken = len(sampler.series.get("private", ()))
                if part > 0.1 + 0.9 * taken / SAMPLES:
                    soak.drain()
                    soak.kept.clear()
                    sampler.take()
        except BaseException as error:
            error.add_note(f"SOAK_SEED={SEED} SOAK_STEPS={steps + 1}: {soak.done}")
            raise
        soak.drain()
        soak.kept.clear()
    took = time.monotonic() - start
    # To be seen with -s.
    print(f"seed {SEED}: {steps} steps in {took:.0f} s: {dict(soak.done)}")  # noqa: T201
    for name, values in sampler.series.items():
        grown = sampler.growth(name)
        figures = f"{values[0]} to {values[-1]}, highest {max(values)}, grew by {grown}"
        record_property(name, figures)
        print(f"{name}: {figures}")  # noqa: T201
    for name, limit in LIMITS.items():
        assert sampler.growth(name) <= limit, (SEED, steps, name, sampler.series[name])
