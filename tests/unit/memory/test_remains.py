"""Memory of dead workers goes back to the system; what is leased stays."""

from __future__ import annotations

import os

import pytest

from shmexec.memory.allocator import CHUNK
from shmexec.memory.remains import _PIECE, Remains
from shmexec.memory.segment import Segment

SIZE = 4 * _PIECE


KINDS = pytest.mark.parametrize("kind", ["memfd", "posix"])


def make(kind):
    segment = Segment.create(kind, SIZE)
    for offset, nbytes in ((0, 8 * CHUNK), (SIZE - CHUNK, CHUNK)):
        segment.commit(offset, nbytes)
        segment.part(offset, nbytes)[:] = 1
    return segment


def pages(segment):
    return os.fstat(segment.descriptor).st_blocks * 512


@KINDS
def test_all_of_it_goes(kind):
    segment = make(kind)
    assert pages(segment) == 9 * CHUNK
    assert not Remains(segment, [(0, SIZE)]).sweep()
    assert pages(segment) == 0
    segment.close()


@KINDS
def test_what_lies_between_stays(kind):
    segment = make(kind)
    edge = CHUNK + 64
    assert not Remains(segment, [(0, edge), (3 * CHUNK, SIZE - 3 * CHUNK)]).sweep()
    assert segment.part(CHUNK, 2 * CHUNK).all()
    assert not segment.part(0, CHUNK).any()
    assert not segment.part(3 * CHUNK, 5 * CHUNK).any()
    assert not segment.part(SIZE - CHUNK, CHUNK).any()
    segment.close()


@KINDS
def test_it_goes_in_pieces(kind):
    segment = make(kind)
    remains = Remains(segment, [(0, SIZE)])
    steps = 1
    while remains.sweep(0.0):
        steps += 1
        assert (pages(segment) == CHUNK) == (steps <= 4)
    assert steps == 4
    assert pages(segment) == 0
    segment.close()
