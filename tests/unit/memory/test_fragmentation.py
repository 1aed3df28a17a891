"""Blocks that come and go in many ways: there is room as long as the budget has some.

The budget counts bytes in blocks, so what could fail is to find them in one piece: an
arena's address space is larger than the budget for that. Seeded; by hand, other seeds and
numbers of blocks with ``SHMEXEC_TEST_SEED`` and ``SHMEXEC_TEST_BLOCKS``.
"""

from __future__ import annotations

import math
import os
import random

import pytest

from shmexec.memory.allocator import BlockAllocator
from shmexec.runtime.lifecycle import ROOMIER
from tests.allocators import ALLOCATORS

BUDGET = 1 << 30
LEAST, MOST = 32 << 10, 64 << 20
SEED = int(os.environ.get("SHMEXEC_TEST_SEED", "1"))
BLOCKS = int(os.environ.get("SHMEXEC_TEST_BLOCKS", "300000"))


# -- sizes, by how far the test has come ---------------------------------------------------


def any_size(rng, _done):
    return rng.randint(LEAST, MOST)


def any_magnitude(rng, _done):
    return int(LEAST * (MOST / LEAST) ** rng.random())


def drifting(rng, done):
    centre = LEAST * (MOST / LEAST) ** (0.5 + 0.5 * math.sin(12 * done))
    return min(MOST, max(LEAST, int(centre * rng.uniform(0.8, 1.25))))


def growing(_rng, done):
    return int(LEAST * (MOST / LEAST) ** (20 * done % 1))


def largest_among_least(rng, _done):
    return MOST if rng.random() < 0.02 else LEAST


def powers_and_more(rng, _done):
    return min(MOST, (LEAST << rng.randint(0, 11)) + rng.choice([0, 64]))


# -- which blocks are freed when there are too many ----------------------------------------


def oldest(live, _rng):
    return [live.pop(0)]


def newest(live, rng):
    return [live.pop(-min(len(live), 1 + int(rng.expovariate(1 / 3))))]


def any_block(live, rng):
    at = rng.randrange(len(live))
    live[at], live[-1] = live[-1], live[at]
    return [live.pop()]


def every_other(live, rng):
    """A comb: none of the gaps touches another one."""
    live.sort()
    gone = live[1::2] or live[:]
    live[:] = live[::2] if len(live) > 1 else []
    rng.shuffle(live)
    return gone


SIZES = [
    any_size,
    any_magnitude,
    drifting,
    growing,
    largest_among_least,
    powers_and_more,
]
ORDERS = [oldest, newest, any_block, every_other]


class Memory:
    """An allocator, used as a host does, with 30 % of the budget kept free."""

    def __init__(self, make):
        self.blocks = make(ROOMIER * BUDGET)
        self.live = []
        self.used = 0
        self.most = 0
        """Bytes that had memory behind them when all that could be had been returned."""

    def run(self, number, size_of, freed_by, rng):
        for n in range(number):
            nbytes = size_of(rng, n / number)
            while self.used + nbytes > 0.7 * BUDGET:
                self.free(freed_by(self.live, rng))
            self.allocate(nbytes)

    def allocate(self, nbytes):
        blocks = self.blocks
        offset = blocks.allocate(nbytes)
        assert offset is not None, f"no room for {nbytes} bytes beside {self.used}"
        if blocks.fresh_runs(offset, nbytes):
            blocks.mark_committed(offset, nbytes)
            if blocks.committed > BUDGET:
                self.trim()
                self.most = max(self.most, blocks.committed)
        nbytes = blocks.size_of(offset)
        self.live.append((offset, nbytes))
        self.used += nbytes

    def free(self, gone):
        for offset, nbytes in gone:
            self.blocks.free(offset)
            self.used -= nbytes

    def trim(self):
        for offset, nbytes in self.blocks.idle_runs():
            self.blocks.mark_punched(offset, nbytes)

    def check(self):
        self.blocks.validate()
        assert self.blocks.used == self.used == sum(n for _, n in self.live)
        self.trim()
        assert self.blocks.committed <= 1.1 * self.used
        self.free(self.live)
        self.trim()
        assert self.blocks.committed == self.blocks.live_blocks == 0


def churn(make, number, size_of, freed_by):
    rng = random.Random(f"{SEED} {size_of.__name__} {freed_by.__name__}")
    memory = Memory(make)
    memory.run(number, size_of, freed_by, rng)
    assert memory.most <= BUDGET
    memory.check()


@pytest.mark.parametrize("freed_by", ORDERS)
@pytest.mark.parametrize("size_of", SIZES)
@pytest.mark.parametrize("make", ALLOCATORS)
def test_there_is_room_while_some_is_free(make, size_of, freed_by):
    churn(make, 500 if make is BlockAllocator else 3000, size_of, freed_by)


@pytest.mark.stress
@pytest.mark.parametrize("size_of", SIZES)
def test_very_many_blocks_find_room_while_some_is_free(size_of):
    make = ALLOCATORS[-1].values[0]
    for freed_by in ORDERS:
        churn(make, BLOCKS // len(SIZES) // len(ORDERS), size_of, freed_by)


@pytest.mark.parametrize("make", ALLOCATORS)
def test_the_worst_program_known_finds_room(make):
    """Robson's: of each size it keeps what spoils the most room for twice that size."""
    memory = Memory(make)
    least = LEAST if make is not BlockAllocator else 8 * LEAST
    nbytes, at = least, 0
    while nbytes <= MOST:
        while memory.used + nbytes <= 0.7 * BUDGET:
            memory.allocate(nbytes)
        period = 2 * nbytes
        at = max(
            (at, at + nbytes),
            key=lambda place: _spoilt(_across(memory.live, place, period), period),
        )
        kept = _across(memory.live, at, period)
        keep = set(kept)
        memory.free([block for block in memory.live if block not in keep])
        memory.live = kept
        nbytes *= 2
    assert memory.blocks.high_water > 2 * BUDGET, "it was not that bad"
    assert memory.most <= BUDGET
    memory.blocks.validate()


def _across(live, place, period):
    """The blocks that lie across a place which comes again and again."""
    return [(start, size) for start, size in live if (place - start) % period < size]


def _spoilt(blocks, period):
    """Bytes that are of no use for blocks of that size, if these stay."""
    return sum(period - size for _, size in blocks)
