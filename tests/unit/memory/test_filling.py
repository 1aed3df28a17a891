"""Filling blocks of an arena: fresh, recycled and mixed, and when memory is short."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from shmexec.errors import SharedMemoryFull
from shmexec.memory.allocator import CHUNK
from shmexec.memory.arena import WRITE_FROM, Arena
from shmexec.memory.host import Host
from shmexec.memory.segment import Segment
from shmexec.wire.sources import ArraySource, Source

SIZE = 64 << 20
KINDS = ["memfd", "posix"] if hasattr(os, "memfd_create") else ["posix"]


every_kind = pytest.mark.parametrize("kind", KINDS)


_opened: list[Segment] = []


@pytest.fixture(autouse=True)
def _closed():
    yield
    while _opened:
        _opened.pop().close()


# No fixtures: pytest would keep their values, and with them the mappings, for too long.
def new_arena(kind):
    made = Arena(1, Segment.create(kind, SIZE))
    _opened.append(made.segment)
    return made


def new_host():
    made = Host(KINDS[0], SIZE, SIZE)
    made.budget.open("account")
    _opened.append(made.arena.segment)
    return made


def put(arena, source):
    """Reserve, fill and mark, as the host does; the block's offset."""
    reserved = arena.reserve(source.nbytes)
    assert reserved is not None
    offset, fresh = reserved
    arena.fill(offset, source, fresh)
    if fresh:
        arena.blocks.mark_committed(offset, source.nbytes)
    return offset


def noise(nbytes, seed=0):
    return np.random.default_rng(seed).integers(0, 256, nbytes, np.uint8)


@every_kind
@pytest.mark.parametrize(
    "nbytes", [64, CHUNK, WRITE_FROM - 1, WRITE_FROM, 2 * WRITE_FROM + 17, 9_000_001]
)
@pytest.mark.parametrize("before", [0, 64, CHUNK, CHUNK + 64])
def test_neighbours_keep_their_bytes(kind, nbytes, before):
    arena = new_arena(kind)
    blocks = []
    for seed, size in enumerate((before, nbytes, nbytes, 100)):
        if size:
            data = noise(size, seed)
            blocks.append((put(arena, Source(data.data)), data))
    for offset, data in blocks:
        np.testing.assert_array_equal(arena.segment.part(offset, len(data)), data)


@every_kind
def test_a_block_between_recycled_and_fresh_memory(kind):
    arena = new_arena(kind)
    first = put(arena, Source(noise(WRITE_FROM + 100).data))
    arena.free(first)
    data = noise(5 * WRITE_FROM, 1)
    offset = put(arena, Source(data.data))
    assert offset == first
    np.testing.assert_array_equal(arena.segment.part(offset, len(data)), data)
    # And once more, now that all of it was written but not all of it mapped.
    arena.free(offset)
    data = noise(5 * WRITE_FROM, 2)
    assert put(arena, Source(data.data)) == first
    np.testing.assert_array_equal(arena.segment.part(offset, len(data)), data)


@every_kind
def test_what_counts_as_committed_has_memory(kind):
    arena = new_arena(kind)
    put(arena, Source(noise(64).data))
    put(arena, Source(noise(3 * WRITE_FROM + 100).data))
    backed = os.fstat(arena.segment.descriptor).st_blocks * 512
    assert backed >= arena.blocks.committed


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("what", ["plain", "readonly", "swapped", "fields", "strided"])
def test_arrays_of_all_kinds(what, order):
    arena = new_arena(KINDS[0])
    array = np.asarray(
        noise(4 * WRITE_FROM).view(np.int64).reshape(1024, -1), order=order
    )
    if what == "readonly":
        array.flags.writeable = False
    elif what == "swapped":
        array = array.astype(">i8", order=order)
    elif what == "fields":
        array = array.view([("a", "i4"), ("b", "i4")]) if order == "C" else array
    elif what == "strided":
        array = array[:, ::2]
    offset = put(arena, ArraySource(array, order))
    part = arena.segment.part(offset, array.nbytes)
    found = np.ndarray(array.shape, array.dtype, part.data, order=order)
    np.testing.assert_array_equal(found, array)


@pytest.mark.skipif(KINDS == ["posix"], reason="the file is not written to here")
def test_no_memory_left(monkeypatch):
    host = new_host()

    def refuse(*_args):
        raise OSError(errno.ENOSPC, "none left")

    source = Source(noise(4 * WRITE_FROM).data)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse)
        with pytest.raises(SharedMemoryFull, match="none left"):
            host.allocate("account", source.nbytes, "me", source)
    assert not host.ledger.held_by("me")
    assert host.budget.used("account") == 0
    block = host.allocate("account", source.nbytes, "me", source)
    np.testing.assert_array_equal(host.bytes_of(block), source.whole())


def test_an_interrupted_copy_holds_nothing():
    host = new_host()

    class Interrupted(Source):
        def whole(self):
            raise KeyboardInterrupt

    source = Interrupted(noise(4 * WRITE_FROM).data)
    with pytest.raises(KeyboardInterrupt):
        host.allocate("account", source.nbytes, "me", source)
    assert not host.ledger.held_by("me")
    assert host.budget.used("account") == 0
