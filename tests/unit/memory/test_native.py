"""The NumPy data handler on an arena: where arrays are born, and what becomes of them."""

from __future__ import annotations

import contextvars
import gc
import os
import random
import threading

import numpy as np
import pytest

from shmexec.memory import native
from shmexec.memory.allocator import CHUNK
from shmexec.memory.segment import Segment
from shmexec.options import INLINE_LIMIT

if not native.is_built():
    pytest.skip("the native part was not built", allow_module_level=True)

MB = 1 << 20
_ARENAS: dict[str, native.NativeArena] = {}


@pytest.fixture(params=["memfd", "posix"])
def arena(request, _process_wide_things):
    """An arena of 64 MiB. Such arenas are for ever, so the tests share them."""
    kind = request.param
    if kind not in _ARENAS:
        _ARENAS[kind] = native.NativeArena(1, Segment.create(kind, 64 * MB))
    arena = _ARENAS[kind]
    arena.quota = 32 * MB
    arena.missed()
    yield arena
    gc.collect()
    arena.native.keep_forks(0)
    assert arena.native.born_bytes == 0
    assert arena.blocks.used == 0
    arena.blocks.validate()
    arena.trim(0)


@pytest.fixture(scope="module", autouse=True)
def _arenas_stay(_process_wide_things):
    # Made before the first test looks at what it leaves behind.
    for kind in ("memfd", "posix"):
        _ARENAS.setdefault(kind, native.NativeArena(1, Segment.create(kind, 64 * MB)))


def inside(arena, fn):
    """Run something with the handler set."""
    before = arena.enter()
    try:
        return fn()
    finally:
        arena.leave(before)


def address(array):
    return array.__array_interface__["data"][0]


def is_born(arena, array):
    return 0 <= address(array) - arena.segment.address < arena.segment.size


def test_large_arrays_are_born_in_the_arena_and_small_ones_are_not(arena):
    def make():
        return np.ones(INLINE_LIMIT, np.uint8), np.ones(INLINE_LIMIT - 1, np.uint8)

    large, small = inside(arena, make)
    assert is_born(arena, large)
    assert not is_born(arena, small)
    assert arena.native.born_bytes == INLINE_LIMIT
    assert address(large) % 64 == 0
    assert not is_born(arena, np.ones(INLINE_LIMIT, np.uint8))


def test_the_handler_is_that_of_this_context_only(arena):
    found = []

    def make():
        thread = threading.Thread(target=lambda: found.append(np.ones(MB)))
        thread.start()
        thread.join()
        contextvars.Context().run(lambda: found.append(np.ones(MB)))
        return np.ones(MB // 8)

    assert is_born(arena, inside(arena, make))
    assert not any(is_born(arena, array) for array in found)


def test_memory_is_recycled(arena):
    def make():
        first = np.ones(MB, np.uint8)
        where = address(first)
        del first
        return where, address(np.ones(MB, np.uint8))

    one, other = inside(arena, make)
    assert one == other
    assert arena.blocks.blocks_recycled


def test_zeros_are_zero_also_in_memory_that_was_used(arena):
    rng = random.Random(1)

    def run():
        for _ in range(200):
            n = rng.randrange(INLINE_LIMIT, MB)
            assert not np.zeros(n, np.uint8).any()
            np.full(rng.randrange(INLINE_LIMIT, MB), 255, np.uint8)

    inside(arena, run)


def test_zeros_take_never_touched_pages_or_are_left_to_malloc(arena):
    arena.trim(0)
    zeros = inside(arena, lambda: np.zeros(MB, np.uint8))
    assert is_born(arena, zeros)
    del zeros
    arena.quota = MB
    # The quota is taken by warm pages, which would have to be cleared.
    assert not is_born(arena, inside(arena, lambda: np.zeros(MB, np.uint8)))
    assert is_born(arena, inside(arena, lambda: np.empty(MB, np.uint8)))


def test_over_quota_arrays_come_from_malloc_and_are_counted(arena):
    arena.quota = MB

    def make():
        arrays = [np.ones(MB, np.uint8) for _ in range(3)]
        arrays.pop()
        arrays.append(np.ones(MB, np.uint8))
        return arrays

    arrays = inside(arena, make)
    assert [is_born(arena, array) for array in arrays] == [True, False, False]
    assert arena.missed() == 2 * MB
    assert arena.missed() == 0


def test_resizing_keeps_the_contents(arena):
    def run():
        a = np.arange(INLINE_LIMIT)
        for n in (3 * INLINE_LIMIT, INLINE_LIMIT // 4, 10, 2 * INLINE_LIMIT):
            old = a.copy()
            a.resize(n, refcheck=False)
            kept = min(n, old.size)
            assert (a[:kept] == old[:kept]).all()
            assert not a[kept:].any()
        return a

    inside(arena, run)


def test_arrays_die_after_the_handler_was_left(arena):
    array = inside(arena, lambda: np.ones(MB))
    assert arena.native.born_bytes
    array.resize(2 * MB, refcheck=False)
    assert (array[:MB] == 1).all()
    del array
    assert arena.native.born_bytes == 0


def test_many_threads_with_and_without_the_interpreter_lock(arena):
    """NumPy sorts and adds without it; what they make must not overlap."""
    failed = []

    def run(number):
        rng = random.Random(number)
        held = []
        for i in range(150):
            value = number * 1000 + i
            a = np.full(rng.randrange(INLINE_LIMIT // 8, MB // 8), float(value))
            held.append((value, a if i % 3 else np.sort(a)))
            if len(held) > 4:
                held.pop(rng.randrange(len(held)))
            failed.extend(v for v, a in held if not (a == v).all())

    def start():
        return [
            threading.Thread(target=contextvars.copy_context().run, args=(run, n))
            for n in range(4)
        ]

    threads = inside(arena, start)
    for thread in threads:
        thread.start()
    for _ in range(50):
        arena.trim(0)
    for thread in threads:
        thread.join()
    assert not failed


# -- pins ------------------------------------------------------------------------------------


def test_a_pinned_block_is_owned_once_its_array_is_gone(arena):
    array = inside(arena, lambda: np.ones(MB, np.uint8))
    start, offset = arena.pin(address(array), array.nbytes)
    assert start == offset
    assert arena.take(start, offset, MB) is None
    del array
    assert arena.native.born_bytes == MB
    assert arena.take(start, offset, MB) == start
    assert arena.native.born_bytes == 0
    assert arena.blocks.used == MB
    assert arena.take(start, offset, MB) is None, "it is handed over once"
    assert arena.free(start) == MB


def test_a_pinned_block_whose_array_lives_stays_its_own(arena):
    array = inside(arena, lambda: np.ones(MB, np.uint8))
    start, offset = arena.pin(address(array), array.nbytes)
    assert arena.take(start, offset, MB) is None
    arena.unpin(start)
    assert (array == 1).all()
    with pytest.raises(ValueError, match="cannot free"):
        arena.free(start)
    with pytest.raises(ValueError, match="cannot unpin"):
        arena.unpin(start)


def test_a_pin_ends_after_the_array(arena):
    array = inside(arena, lambda: np.ones(MB, np.uint8))
    start, _ = arena.pin(address(array), array.nbytes)
    del array
    assert arena.blocks.used == MB
    arena.unpin(start)
    assert arena.blocks.used == 0


def test_a_pinned_block_is_not_used_again(arena):
    array = inside(arena, lambda: np.ones(MB, np.uint8))
    where = address(array)
    start, offset = arena.pin(where, array.nbytes)
    del array
    assert address(inside(arena, lambda: np.ones(MB, np.uint8))) != where
    assert arena.take(start, offset, MB) == start
    assert address(inside(arena, lambda: np.ones(MB, np.uint8))) != where
    arena.free(start)


def test_the_ends_of_a_block_that_nobody_needs_are_free_again(arena):
    array = inside(arena, lambda: np.ones(MB, np.uint8))
    part = array[200:-300]
    start, offset = arena.pin(address(part), part.nbytes)
    assert offset == start + 200
    nbytes = part.nbytes
    del array, part
    taken = arena.take(start, offset, nbytes)
    assert taken == start + 192
    arena.blocks.validate()
    assert arena.blocks.used <= nbytes + 128
    arena.free(taken)


def test_only_most_of_a_born_block_can_be_pinned(arena):
    array = inside(arena, lambda: np.ones(MB, np.uint8))
    where = address(array)
    assert arena.pin(where, MB // 2 - 1) is None
    assert arena.pin(where, MB + 1) is None
    assert arena.pin(where + MB // 2 + 1, MB // 2) is None
    assert arena.pin(1 << 20, MB) is None
    owned, _ = arena.reserve(MB)
    assert arena.pin(arena.segment.address + owned, MB) is None
    arena.free(owned)


def test_of_two_pins_one_is_taken_and_the_other_can_still_be_read(arena):
    array = inside(arena, lambda: np.ones(MB, np.uint8))
    one = arena.pin(address(array), MB)
    other = arena.pin(address(array) + 100, MB - 100)
    del array
    assert arena.take(*one, MB) == one[0]
    assert arena.take(*other, MB - 100) is None
    assert (arena.segment.part(other[1], MB - 100) == 1).all()
    arena.unpin(other[0])
    assert arena.blocks.used == MB
    arena.free(one[0])


# -- forks ------------------------------------------------------------------------------------


def test_what_a_forked_child_sees_is_neither_recycled_nor_handed_over(arena):
    array = inside(arena, lambda: np.ones(MB, np.uint8))
    where = address(array)
    note = arena.note_fork()
    assert note
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    later = inside(arena, lambda: np.ones(MB, np.uint8))
    start, offset = arena.pin(where, MB)
    del array
    assert arena.take(start, offset, MB) is None
    arena.unpin(start)
    assert address(inside(arena, lambda: np.ones(MB, np.uint8))) != where
    del later
    assert arena.native.born_bytes == MB, "what came after the fork is recycled"
    arena.keep_forks(note)
    assert arena.native.born_bytes == MB
    arena.keep_forks(0)
    assert arena.native.born_bytes == 0
    assert arena.note_fork() == 0, "no array lives"


def test_a_forked_child_neither_allocates_nor_frees_here(arena):
    array = inside(arena, lambda: np.ones(MB, np.uint8))
    answer, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            before = arena.blocks.used
            made = inside(arena, lambda: np.ones(MB, np.uint8))
            good = not is_born(arena, made) and arena.blocks.allocate(64) is None
            array[:] = 2
            array.resize(2 * MB, refcheck=False)
            good = good and not is_born(arena, array) and array[:MB].min() == 2
            del array
            good = good and arena.blocks.used == before
            os.write(said, b"y" if good else b"n")
        finally:
            os._exit(0)
    os.close(said)
    assert os.read(answer, 1) == b"y"
    os.close(answer)
    os.waitpid(pid, 0)
    assert (array == 1).all(), "what the child writes stays there"


def test_fresh_pages_are_committed_before_use(arena):
    arena.trim(0)
    array = inside(arena, lambda: np.empty(16 * CHUNK, np.uint8))
    assert arena.blocks.committed >= 16 * CHUNK
    offset = address(array) - arena.segment.address
    assert arena.blocks.fresh_runs(offset, array.nbytes) == []
    assert os.fstat(arena.segment.descriptor).st_blocks * 512 >= 16 * CHUNK


def test_idle_pages_stay_within_the_quota(arena):
    arena.quota = 4 * MB

    def run():
        rng = random.Random(2)
        held = []
        for _ in range(300):
            held.append(np.ones(rng.randrange(INLINE_LIMIT, MB), np.uint8))
            if len(held) > 3:
                held.pop(rng.randrange(3))
            assert arena.blocks.committed <= arena.quota + 4 * CHUNK

    inside(arena, run)
