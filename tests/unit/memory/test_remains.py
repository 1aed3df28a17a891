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
    segment = make(kind)  # with memory at both ends
    remains = Remains(segment, [(0, SIZE)])
    assert remains.sweep(0.0)
    assert pages(segment) == CHUNK
    assert not remains.sweep(0.0)
    assert pages(segment) == 0
    segment.close()


@KINDS
def test_it_needs_no_descriptor_of_the_segment(kind):
    segment = make(kind)
    descriptor = os.dup(segment.descriptor)
    remains = Remains(segment, [(0, SIZE)])
    segment.close()
    del segment
    assert not remains.sweep()
    assert os.fstat(descriptor).st_blocks == 0
    os.close(descriptor)
