"""BlockAllocator: one idea per test. Random sequences are in tests/property."""

from __future__ import annotations

import random

import pytest

from shmexec.memory.allocator import ALIGNMENT, CHUNK
from tests.allocators import ALLOCATORS

MB = 1 << 20


@pytest.fixture(params=ALLOCATORS)
def allocator_type(request):
    return request.param


@pytest.fixture
def blocks(allocator_type):
    allocator = allocator_type(16 * MB)
    yield allocator
    allocator.validate()


def filled(allocator, *sizes):
    return [allocator.allocate(nbytes) for nbytes in sizes]


def test_sizes_are_rounded_up_to_the_alignment(blocks):
    offset = blocks.allocate(1)
    assert blocks.size_of(offset) == ALIGNMENT
    assert blocks.used == ALIGNMENT
    assert blocks.allocate(ALIGNMENT + 1) % ALIGNMENT == 0


@pytest.mark.parametrize("nbytes", [0, -1])
def test_an_empty_block_is_refused(blocks, nbytes):
    with pytest.raises(ValueError, match="cannot allocate"):
        blocks.allocate(nbytes)


@pytest.mark.parametrize("size", [-1, 0, ALIGNMENT - 1])
def test_an_arena_has_room_for_a_block(allocator_type, size):
    with pytest.raises(ValueError, match="too small"):
        allocator_type(size)


def test_a_tail_shorter_than_the_alignment_is_not_used(allocator_type):
    allocator = allocator_type(2 * ALIGNMENT - 1)
    assert allocator.allocate(ALIGNMENT) == 0
    assert allocator.allocate(1) is None


def test_a_full_arena_gives_none_and_changes_nothing(blocks):
    blocks.allocate(16 * MB)
    assert blocks.allocate(1) is None
    assert (blocks.used, blocks.live_blocks) == (16 * MB, 1)


def test_more_than_the_arena_gives_none(blocks):
    assert blocks.allocate(1 << 60) is None


def test_the_whole_arena_can_be_had_after_all_is_freed(blocks):
    for offset in filled(blocks, MB, 5, 3 * MB, 700):
        blocks.free(offset)
    assert blocks.used == 0
    assert blocks.allocate(16 * MB) == 0


def test_free_returns_the_rounded_size(blocks):
    assert blocks.free(blocks.allocate(100)) == 128


@pytest.mark.parametrize("offset", [64, -64, 1 << 50])
def test_an_unknown_offset_is_an_error_and_changes_nothing(blocks, offset):
    blocks.allocate(1000)
    with pytest.raises(ValueError, match="cannot free"):
        blocks.free(offset)
    with pytest.raises(ValueError, match="cannot measure"):
        blocks.size_of(offset)
    assert blocks.live_blocks == 1


def test_a_block_is_freed_once(blocks):
    offset = blocks.allocate(1000)
    blocks.free(offset)
    with pytest.raises(ValueError, match="freed before"):
        blocks.free(offset)


def test_neighbours_on_both_sides_merge(blocks):
    first, second, third, _guard = filled(blocks, MB, MB, MB, 64)
    blocks.free(first)
    blocks.free(third)
    blocks.free(second)
    assert blocks.allocate(3 * MB) == first


def test_the_last_block_freed_is_the_first_reused(blocks):
    one, _a, two, _b, three, _c = filled(blocks, *[MB, 64] * 3)
    for offset in (two, three, one):
        blocks.free(offset)
    assert filled(blocks, MB, MB, MB) == [one, three, two]


def test_a_size_freed_and_asked_for_again_keeps_its_offset(blocks):
    filled(blocks, 3 * MB, 64)
    blocks.free(0)
    offset = blocks.allocate(MB)
    for _ in range(5):
        blocks.free(offset)
        assert blocks.allocate(MB) == offset


def test_used_space_comes_before_never_touched_space(blocks):
    big, _guard = filled(blocks, 4 * MB, 64)
    blocks.free(big)
    high_water = blocks.high_water
    filled(blocks, *[MB] * 4)
    assert blocks.high_water == high_water


def test_a_fit_that_is_not_among_the_newest_is_found(allocator_type):
    allocator = allocator_type(16 * MB)
    # All of these share a bin, and only the first can hold the larger request.
    offsets = filled(allocator, 1200, *[64, 1088] * 20, 64)
    holes = [offsets[0], *offsets[2::2]]
    for offset in holes:
        allocator.free(offset)
    assert allocator.allocate(1200) == offsets[0]


def test_a_block_grows_out_of_the_free_extent_below_the_top(blocks):
    blocks.free(blocks.allocate(MB))
    assert blocks.allocate(2 * MB) == 0


@pytest.mark.parametrize("live", [1, 8, 64])
def test_drifting_sizes_do_not_walk_through_the_arena(allocator_type, live):
    allocator = allocator_type(100 << 30)
    rng, held, peak = random.Random(live), [], 0
    for _ in range(5000):
        if len(held) == live:
            allocator.free(held.pop(rng.randrange(live)))
        held.append(allocator.allocate(rng.randrange(32 << 10, 8 * MB)))
        peak = max(peak, allocator.used)
    assert allocator.high_water <= 2 * peak


def test_a_fresh_range_must_be_committed_in_whole_chunks(blocks):
    assert blocks.fresh_runs(CHUNK + 64, 64) == [(CHUNK, CHUNK)]
    assert blocks.fresh_runs(CHUNK - 64, 128) == [(0, 2 * CHUNK)]


def test_only_what_is_not_committed_is_fresh(blocks):
    blocks.mark_committed(CHUNK, CHUNK)
    assert blocks.fresh_runs(0, 3 * CHUNK) == [(0, CHUNK), (2 * CHUNK, CHUNK)]
    assert blocks.fresh_runs(CHUNK, CHUNK) == []


def test_runs_end_with_the_arena(allocator_type):
    allocator = allocator_type(CHUNK + 100)
    assert allocator.fresh_runs(0, CHUNK + 100) == [(0, CHUNK + 100)]
    allocator.mark_committed(CHUNK, 100)
    assert allocator.committed == 100
    assert allocator.idle_runs() == [(CHUNK, 100)]


def test_committing_twice_counts_once(blocks):
    blocks.mark_committed(0, 1)
    blocks.mark_committed(0, CHUNK + 1)
    assert blocks.committed == 2 * CHUNK


def test_a_chunk_shared_with_a_live_block_is_not_idle(blocks):
    first, _second = filled(blocks, CHUNK + 64, CHUNK)
    blocks.mark_committed(0, 3 * CHUNK)
    assert blocks.idle_runs() == []
    blocks.free(first)
    assert blocks.idle_runs() == [(0, CHUNK)]
    assert blocks.idle == CHUNK


def test_a_chunk_across_the_top_is_idle_with_the_extent_below(blocks):
    offset = blocks.allocate(CHUNK + 64)
    blocks.mark_committed(offset, CHUNK + 64)
    blocks.free(offset)
    assert blocks.idle_runs() == [(0, 2 * CHUNK)]


def test_idle_runs_of_the_largest_extents_come_first(blocks):
    small, _a, large, _b = filled(blocks, *[CHUNK, CHUNK, 3 * CHUNK, CHUNK])
    blocks.mark_committed(0, 6 * CHUNK)
    blocks.free(small)
    blocks.free(large)
    assert blocks.idle_runs() == [(large, 3 * CHUNK), (small, CHUNK)]


def test_the_kept_bytes_are_those_that_are_reused_first(blocks):
    small, _a, large, _b = filled(blocks, *[CHUNK, CHUNK, 3 * CHUNK, CHUNK])
    blocks.mark_committed(0, 6 * CHUNK)
    blocks.free(small)
    blocks.free(large)
    # The small extent, and the lower part of the large one, rounded up to chunks.
    assert blocks.idle_runs(keep=CHUNK + 1) == [(large + CHUNK, 2 * CHUNK)]
    assert blocks.idle_runs(keep=4 * CHUNK) == []


def test_punched_memory_is_fresh_again(blocks):
    blocks.mark_committed(0, 4 * CHUNK)
    blocks.mark_punched(CHUNK, 2 * CHUNK)
    assert blocks.committed == 2 * CHUNK
    assert blocks.fresh_runs(0, 4 * CHUNK) == [(CHUNK, 2 * CHUNK)]


def test_a_chunk_punched_in_part_still_has_memory(blocks):
    blocks.mark_committed(0, CHUNK)
    blocks.mark_punched(64, CHUNK - 64)
    assert blocks.committed == CHUNK


def test_punching_up_to_the_top_lowers_it(blocks):
    _live, tail = filled(blocks, CHUNK, 4 * CHUNK)
    blocks.mark_committed(0, 5 * CHUNK)
    blocks.free(tail)
    blocks.mark_punched(3 * CHUNK, 2 * CHUNK)
    assert blocks.high_water == 3 * CHUNK
    blocks.mark_punched(CHUNK, 2 * CHUNK)
    assert blocks.high_water == CHUNK


@pytest.mark.parametrize("span", [(-64, 64), (0, 0), (0, 17 * MB), (16 * MB, 1)])
@pytest.mark.parametrize("name", ["fresh_runs", "mark_committed", "mark_punched"])
def test_a_range_outside_the_arena_is_an_error(blocks, name, span):
    with pytest.raises(ValueError, match="no part of an arena"):
        getattr(blocks, name)(*span)


def test_blocks_are_counted_by_whether_they_needed_new_pages(blocks):
    offset = blocks.allocate(CHUNK)
    assert (blocks.blocks_recycled, blocks.blocks_faulted) == (0, 1)
    blocks.mark_committed(offset, CHUNK)
    blocks.free(offset)
    blocks.allocate(CHUNK)
    assert (blocks.blocks_recycled, blocks.blocks_faulted) == (1, 1)
    blocks.allocate(64)
    assert (blocks.blocks_recycled, blocks.blocks_faulted) == (1, 2)
