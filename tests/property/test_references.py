"""What refers to memory: whatever the figures, nothing outside of it is ever reached."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies as st

from shmexec.memory.host import Host
from shmexec.memory.lending import HOST
from shmexec.memory.views import Loan
from shmexec.options import segment_kind
from shmexec.wire.pickling import rebuild_array, rebuild_view
from tests.examples import examples

SIZE = 1 << 20
BEGIN = 8192
quick = settings(deadline=None, max_examples=examples(150))

WILD = st.one_of(
    st.integers(-3, 70),
    st.sampled_from(
        [s * 2**n + d for n in (31, 32, 61, 62) for s in (1, -1) for d in (-1, 0, 1)]
    ),
    st.integers(-(2**63), 2**63 - 1),
)
DTYPES = st.sampled_from(
    ["u1", "i4", "f8", "c16", "S3", "V5", "V0", "O", "O,u1", "i4,O"]
)


@pytest.fixture(scope="module")
def memory():
    host = Host(segment_kind(), SIZE, SIZE)
    worker = host.new_worker_arena(HOST)
    host.budget.open(HOST)
    assert host.grant(worker, SIZE // 2)
    yield host, worker
    host.bury(worker, "worker")
    worker.segment.close()
    host.arena.segment.close()


def bounds(array):
    """First byte of an array, and the one after the last, by exact integers."""
    low = high = array.__array_interface__["data"][0]
    for length, stride in zip(array.shape, array.strides, strict=True):
        low += min(0, (length - 1) * stride)
        high += max(0, (length - 1) * stride)
    return low, high + array.itemsize


def is_inside(array, window):
    if not array.size:
        return True
    start = window.__array_interface__["data"][0]
    low, high = bounds(array)
    return start <= low and high <= start + window.nbytes


@pytest.fixture(scope="module")
def received(memory):
    """A buffer, as it comes with a result."""
    host, worker = memory
    loan = host.loan(worker.id, BEGIN, 4096)
    host.accept(worker, loan)
    window = np.asarray(loan)
    del loan
    assert isinstance(window.base, Loan)
    yield window
    del window
    host.settle()


@quick
@given(WILD, WILD)
@example(SIZE - 64, 65)
@example(2**63 - 1, 2**63 - 1)
def test_a_block_is_inside_of_its_arena_and_its_quota(memory, offset, nbytes):
    host, worker = memory
    try:
        loan = host.loan(worker.id, offset, nbytes)
        host.accept(worker, loan)
    except ValueError:
        return
    array = np.asarray(loan)
    del loan
    assert is_inside(array, worker.segment.part(0, SIZE))
    assert nbytes <= worker.quota
    del array
    host.settle()
    assert offset not in worker.live or offset == BEGIN


@quick
@given(WILD, WILD, WILD, st.sampled_from([0, 1, 2, 2**32 - 1]), st.booleans())
def test_only_what_a_holder_has_comes_back(memory, lease, offset, nbytes, arena, right):
    host, _ = memory
    block = host.allocate(HOST, 4096, "worker")
    if right:
        lease = block.lease
    try:
        loan = host.loan(arena, offset, nbytes)
        host.take_back("worker", lease, loan)
    except ValueError:
        host.release([block.lease])
        return
    assert lease == loan.lease == block.lease
    assert arena == host.arena.id
    begin = block.key[1]
    assert begin <= offset
    assert offset + nbytes <= begin + 4096
    del loan
    host.settle()


@quick
@given(DTYPES, st.lists(st.tuples(WILD, WILD), max_size=3), WILD)
@example("u1", [(5, 2**62)], 0)
@example("u1", [(5, -(2**62))], 0)
@example("O", [(2, 8)], 0)
def test_a_view_is_inside_of_what_was_received(received, dtype, axes, begin):
    shape, strides = [length for length, _ in axes], [stride for _, stride in axes]
    try:
        array = rebuild_view(
            received, dtype, tuple(shape), tuple(strides), BEGIN + begin, None
        )
    except (ValueError, OverflowError, TypeError, MemoryError):
        return
    assert not array.dtype.hasobject
    assert is_inside(array, received)


@quick
@given(DTYPES, st.lists(WILD, max_size=3), st.sampled_from("CF"))
@example("O", [2], "C")
@example("V0", [-1], "C")
def test_an_array_is_inside_of_what_was_received(received, dtype, shape, order):
    try:
        array = rebuild_array(received, dtype, tuple(shape), order, None)
    except (ValueError, OverflowError, TypeError, MemoryError):
        return
    assert not array.dtype.hasobject
    assert is_inside(array, received)


def test_the_memory_is_this_users(memory):
    host, worker = memory
    for segment in (host.arena.segment, worker.segment):
        assert os.fstat(segment.descriptor).st_mode & 0o77 == 0
    assert np.all(worker.segment.part(0, 64) == 0)
