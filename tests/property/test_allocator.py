"""BlockAllocator against a model: sets of used lines and of committed chunks."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shmexec.memory.allocator import ALIGNMENT, CHUNK, BlockAllocator
from tests.allocators import ALLOCATORS
from tests.examples import examples

# Few sizes collide often; the odd ones reach every kind of bin and partial chunk.
SIZES = st.one_of(
    st.sampled_from([1, 64, 1000, CHUNK - 64, CHUNK, CHUNK + 64, 3 * CHUNK]),
    st.integers(1, 6 * CHUNK),
)

PICKS = st.integers(0, 99)
ARENAS = st.one_of(st.just(24 * CHUNK), st.integers(ALIGNMENT, 24 * CHUNK))


def rounded(nbytes):
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def chunks_of(runs):
    return [
        c
        for start, length in runs
        for c in range(start // CHUNK, -(-(start + length) // CHUNK))
    ]


class Blocks(RuleBasedStateMachine):
    allocator_type = BlockAllocator

    @initialize(size=ARENAS)
    def start(self, size):
        self.size = size
        self.blocks = self.allocator_type(size)
        self.live = {}
        self.committed = set()

    def picked(self, pick):
        return sorted(self.live)[pick % len(self.live)]

    def chunk_bytes(self, chunk):
        return min(CHUNK, self.size - chunk * CHUNK)

    def gaps(self):
        """The free extents, from the live blocks alone."""
        position = 0
        for offset in sorted(self.live):
            yield position, offset - position
            position = offset + self.live[offset]
        yield position, self.size // ALIGNMENT * ALIGNMENT - position

    def idle_chunks(self):
        busy = chunks_of(self.live.items())
        return self.committed - set(busy)

    @rule(nbytes=SIZES)
    def allocate(self, nbytes):
        offset = self.blocks.allocate(nbytes)
        need = rounded(nbytes)
        if offset is None:
            assert all(length < need for _, length in self.gaps())
            return
        assert offset % ALIGNMENT == 0
        assert any(s <= offset and offset + need <= s + n for s, n in self.gaps())
        assert self.blocks.size_of(offset) == need
        self.live[offset] = need

    @precondition(lambda self: self.live)
    @rule(pick=PICKS)
    def free(self, pick):
        offset = self.picked(pick)
        assert self.blocks.free(offset) == self.live.pop(offset)

    @precondition(lambda self: self.live)
    @rule(pick=PICKS)
    def free_and_allocate_again(self, pick):
        """The newest hole is reused, unless merging made it a part of a larger one."""
        offset = self.picked(pick)
        nbytes = self.live[offset]
        merged = [
            (s, n)
            for s, n in self.gaps()
            if n and (s + n == offset or s == offset + nbytes)
        ]
        if not merged:
            self.blocks.free(offset)
            assert self.blocks.allocate(nbytes) == offset

    @rule(nbytes=SIZES)
    def same_size_loop(self, nbytes):
        offsets = set()
        for _ in range(3):
            offset = self.blocks.allocate(nbytes)
            offsets.add(offset)
            if offset is not None:
                self.blocks.free(offset)
        assert len(offsets) == 1

    @precondition(lambda self: self.live)
    @rule(pick=PICKS)
    def commit(self, pick):
        offset = self.picked(pick)
        nbytes = self.live[offset]
        touched = set(chunks_of([(offset, nbytes)]))
        fresh = chunks_of(self.blocks.fresh_runs(offset, nbytes))
        assert sorted(touched - self.committed) == fresh
        self.blocks.mark_committed(offset, nbytes)
        assert self.blocks.fresh_runs(offset, nbytes) == []
        self.committed |= touched

    @rule(keep=st.integers(0, 4 * CHUNK), most=st.integers(0, 4))
    def punch(self, keep, most):
        idle = self.idle_chunks()
        runs = self.blocks.idle_runs(keep)
        listed = chunks_of(runs)
        assert len(listed) == len(set(listed))
        assert set(listed) <= idle
        left = sum(map(self.chunk_bytes, idle - set(listed)))
        assert left >= min(keep, sum(map(self.chunk_bytes, idle)))
        assert not listed or left < keep + CHUNK
        for start, length in runs[:most]:
            self.blocks.mark_punched(start, length)
            self.committed -= set(chunks_of([(start, length)]))

    @rule()
    def free_all(self):
        """All that was used is one extent again."""
        for offset in self.live:
            self.blocks.free(offset)
        self.live.clear()
        whole = self.size // ALIGNMENT * ALIGNMENT
        assert self.blocks.allocate(whole) == 0
        assert self.blocks.free(0) == whole

    @invariant()
    def agrees_with_the_model(self):
        if not hasattr(self, "blocks"):
            return
        self.blocks.validate()
        assert self.blocks.used == sum(self.live.values())
        assert self.blocks.live_blocks == len(self.live)
        assert self.blocks.committed == sum(map(self.chunk_bytes, self.committed))
        assert self.blocks.idle == sum(map(self.chunk_bytes, self.idle_chunks()))


THOROUGH = settings(deadline=None, max_examples=examples(150), stateful_step_count=50)


@pytest.mark.parametrize("allocator_type", ALLOCATORS)
def test_any_sequence_of_calls_agrees_with_the_model(allocator_type):
    machine = type("Machine", (Blocks,), {"allocator_type": allocator_type})
    run_state_machine_as_test(machine, settings=THOROUGH)


@pytest.mark.parametrize("allocator_type", ALLOCATORS)
@settings(deadline=None, max_examples=examples(25))
@given(
    live=st.integers(1, 12),
    least=st.integers(1, 4 * CHUNK),
    rng=st.randoms(use_true_random=False),
)
def test_drifting_sizes_stay_within_a_bounded_part_of_the_arena(
    allocator_type, live, least, rng
):
    """However long sizes drift, the high-water mark stays near what was live at once."""
    blocks = allocator_type(1 << 40)
    held, peak = [], 0
    for _ in range(600):
        if len(held) == live:
            blocks.free(held.pop(rng.randrange(live)))
        held.append(blocks.allocate(rng.randint(least, 2 * least)))
        peak = max(peak, blocks.used)
    # Holes between blocks cannot all be filled; three times is ample for random sizes.
    assert blocks.high_water <= 3 * peak
