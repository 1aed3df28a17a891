"""Very many array calls of random sizes: right results, and memory that stays flat.

``SOAK_CALLS`` in the environment sets how many. The full soak, which takes minutes::

    SOAK_CALLS=100000 pytest -m stress -s -o faulthandler_timeout=0 \\
        tests/integration/test_memory_soak.py
"""

from __future__ import annotations

import gc
import os
import random
from collections import deque

import numpy as np
import pytest

import shmexec
from shmexec.runtime import monitor

CALLS = int(os.environ.get("SOAK_CALLS", "5000"))
SAMPLES = 80
SMALLEST, LARGEST = 1 << 10, 4 << 20
"""Bytes of an array; log-uniform in between."""

PRIVATE_GROWTH = 8 << 20
"""Bytes that the private memory of a process may grow by over the second half."""

ARENA_GROWTH = 32 << 20
"""The same for an arena: a few blocks of the largest size more than in the first."""


def plus_one(x):
    return x + 1


def plus_one_in_place(x):
    x += 1
    return x


def total(x):
    return int(x.sum(dtype=np.int64))


def evens(x):
    return x[::2]


def twice(x):
    return [x, {"same": x, "more": x + 1}]


KINDS = {
    plus_one: lambda x: x + 1,
    plus_one_in_place: lambda x: x + 1,
    total: total,
    evens: evens,
    twice: twice,
}


def same(got, right):
    if isinstance(right, list):
        more = right[1]
        return same(got[0], right[0]) and all(same(got[1][k], more[k]) for k in more)
    return np.array_equal(got, right)


class Sampler:
    """What each process and each arena takes, in bytes, over the run."""

    def __init__(self, executor):
        self._pool = executor._pool
        self.series: dict[str, list[int]] = {}

    def take(self):
        gc.collect()
        self._pool.host.settle()
        self._note("parent", monitor.private_bytes(os.getpid()))
        self._note("parent's arena", _pages(self._pool.host.arena.segment))
        for number, handle in self._pool._workers.items():
            self._note(f"worker {number}", monitor.private_bytes(handle.process.pid))
            self._note(f"arena of worker {number}", _pages(handle.arena.segment))

    def _note(self, name, nbytes):
        self.series.setdefault(name, []).append(nbytes)

    def growth(self):
        """By what the highest of the second half exceeds the highest of the first.

        What is kept on purpose (recycled blocks, warm allocators) is reached early.
        """
        grown = {}
        for name, values in self.series.items():
            half = len(values) // 2
            grown[name] = max(values[half:]) - max(values[:half])
        return grown

    def slope(self, name):
        """Of a straight line through the second half, in bytes per half."""
        values = self.series[name][len(self.series[name]) // 2 :]
        return np.polyfit(np.linspace(0, 1, len(values)), values, 1)[0]


def _pages(segment):
    return os.fstat(segment.descriptor).st_blocks * 512


@pytest.mark.stress
@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="arenas are not files here")
@pytest.mark.parametrize("seed", [1])
def test_memory_stays_flat(seed, record_property):
    chance = random.Random(seed)
    source = np.random.default_rng(seed).integers(0, 100, 2 * LARGEST, np.uint8)
    functions = list(KINDS)
    pending: deque = deque()
    kept: deque = deque(maxlen=10)  # results live for a while, as in real programs

    def next_result():
        future, right = pending.popleft()
        got = future.result(60)
        assert same(got, right)
        kept.append(got)

    with shmexec.Executor(2) as executor:
        executor.broadcast(os.getpid)
        sampler = Sampler(executor)
        for n in range(CALLS):
            if n % (CALLS // SAMPLES) == 0 and n >= CALLS // 10:
                sampler.take()
            size = int(SMALLEST * (LARGEST / SMALLEST) ** chance.random())
            start = chance.randrange(LARGEST)
            x = source[start : start + size]
            function = chance.choice(functions)
            pending.append((executor.submit(function, x), KINDS[function](x)))
            while len(pending) > chance.randrange(8):
                next_result()
        while pending:
            next_result()
        kept.clear()
        sampler.take()
        stats = executor.stats()
    assert stats.done == CALLS + 2
    assert stats.worker_deaths == 0
    grown = sampler.growth()
    for name, values in sampler.series.items():
        figures = f"{values[0]} to {values[-1]}, highest {max(values)} bytes"
        record_property(name, f"{figures}, second half grew {grown[name]}")
        print(f"{name}: {figures}, second half grew by {grown[name]}")  # noqa: T201  (-s)
        limit = ARENA_GROWTH if "arena" in name else PRIVATE_GROWTH
        assert grown[name] <= limit, (name, values)
        assert sampler.slope(name) <= limit, (name, values)
