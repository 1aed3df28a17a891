"""Arrays that NumPy makes in an arena, against a model: what each should hold."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shmexec.memory import native
from shmexec.memory.segment import Segment
from shmexec.options import INLINE_LIMIT
from tests.examples import examples

if not native.is_built():
    pytest.skip("the native part was not built", allow_module_level=True)

MB = 1 << 20
SIZES = st.integers(INLINE_LIMIT - 100, 10 * INLINE_LIMIT)
PICKS = st.integers(0, 99)
# One for all examples: such arenas are for ever.
ARENA: list[native.NativeArena] = []


def address(array):
    return array.__array_interface__["data"][0]


class Births(RuleBasedStateMachine):
    """Arrays, pinned blocks and owned blocks; each is filled with a value of its own."""

    @initialize(quota=st.sampled_from([MB, 4 * MB, 64 * MB]))
    def start(self, quota):
        self.arena = ARENA[0]
        # As new, so that all examples begin alike: one free extent, punched as a whole.
        blocks = self.arena.blocks
        whole = blocks.allocate(blocks.size)
        blocks.mark_committed(whole, blocks.size)
        blocks.free(whole)
        self.arena.trim(0)
        assert blocks.high_water == blocks.committed == 0
        self.arena.quota = quota
        self.value = 0
        self.arrays = []
        self.pinned = []
        self.owned = []

    def next_value(self):
        self.value = self.value % 250 + 1
        return self.value

    def make(self, fn):
        before = self.arena.enter()
        try:
            return fn()
        finally:
            self.arena.leave(before)

    @rule(n=SIZES)
    def full(self, n):
        value = self.next_value()
        self.arrays.append((self.make(lambda: np.full(n, value, np.uint8)), value))

    @rule(n=SIZES)
    def zeros(self, n):
        array = self.make(lambda: np.zeros(n, np.uint8))
        assert not array.any()
        value = self.next_value()
        array[:] = value
        self.arrays.append((array, value))

    @precondition(lambda self: self.arrays)
    @rule(pick=PICKS)
    def drop(self, pick):
        self.arrays.pop(pick % len(self.arrays))

    @precondition(lambda self: self.arrays)
    @rule(pick=PICKS, n=SIZES)
    def resize(self, pick, n):
        array, value = self.arrays[pick % len(self.arrays)]
        had = array.size
        array.resize(n, refcheck=False)
        assert (array[: min(n, had)] == value).all()
        assert not array[had:].any()
        array[:] = value

    @precondition(lambda self: self.arrays)
    @rule(pick=PICKS, skip=st.sampled_from([0, 1, 64, 1000]))
    def pin(self, pick, skip):
        array, value = self.arrays[pick % len(self.arrays)]
        nbytes = array.size - skip
        pin = self.arena.pin(address(array) + skip, nbytes)
        inside = 0 <= address(array) - self.arena.segment.address < 64 * MB
        # In place resized ones may have become less than half of their block.
        assert pin is None or inside
        if pin is not None:
            assert pin[1] == address(array) + skip - self.arena.segment.address
            self.pinned.append((*pin, nbytes, value))

    @precondition(lambda self: self.pinned)
    @rule(pick=PICKS)
    def take(self, pick):
        start, offset, nbytes, value = self.pinned[pick % len(self.pinned)]
        alive = any(
            start <= address(array) - self.arena.segment.address < start + 1
            for array, _ in self.arrays
        )
        taken = self.arena.take(start, offset, nbytes)
        gone = any(start <= each < start + 1 for each, *_ in self.owned)
        assert (taken is None) == (alive or gone)
        if taken is None:
            return
        self.pinned.remove((start, offset, nbytes, value))
        still = [pin for pin in self.pinned if pin[0] == start]
        for pin in still:
            self.pinned.remove(pin)
            self.arena.unpin(pin[0])
        self.owned.append((taken, offset, nbytes, value))

    @precondition(lambda self: self.pinned)
    @rule(pick=PICKS)
    def unpin(self, pick):
        start, *_ = self.pinned.pop(pick % len(self.pinned))
        self.arena.unpin(start)

    @rule(n=SIZES)
    def allocate(self, n):
        reserved = self.arena.reserve(n)
        if reserved is None:
            return
        offset, fresh = reserved
        self.arena.back(fresh)
        self.arena.blocks.mark_committed(offset, n)
        value = self.next_value()
        self.arena.segment.part(offset, n)[:] = value
        self.owned.append((offset, offset, n, value))

    @precondition(lambda self: self.owned)
    @rule(pick=PICKS)
    def free(self, pick):
        self.arena.free(self.owned.pop(pick % len(self.owned))[0])

    @rule(keep=st.sampled_from([0, MB]))
    def trim(self, keep):
        self.arena.trim(keep)

    @invariant()
    def everything_holds_what_it_should(self):
        if not hasattr(self, "arena"):
            return
        self.arena.blocks.validate()
        for array, value in self.arrays:
            assert (array == value).all()
        for _, offset, nbytes, value in self.owned:
            assert (self.arena.segment.part(offset, nbytes) == value).all()

    def teardown(self):
        if not hasattr(self, "arena"):
            return
        self.arrays.clear()
        for start, *_ in self.pinned:
            self.arena.unpin(start)
        for start, *_ in self.owned:
            self.arena.free(start)
        gc.collect()
        assert self.arena.blocks.used == 0
        assert self.arena.native.born_bytes == 0
        self.arena.blocks.validate()


@pytest.fixture(scope="module", autouse=True)
def _arena(_process_wide_things):
    ARENA.append(native.NativeArena(1, Segment.create("memfd", 64 * MB)))


def test_no_array_ever_sees_another():
    run_state_machine_as_test(
        Births,
        settings=settings(
            deadline=None, max_examples=examples(40), stateful_step_count=40
        ),
    )
