"""Any view of a shared array arrives equal, by reference, and reads the same memory.

Both sides are played here: the array is pickled as for a call, and loaded on a second,
read-only mapping of the segment, as in a worker.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, strategies as st

import shmexec
from shmexec.memory.segment import Borrowed
from shmexec.memory.views import Returns, lend
from shmexec.options import segment_kind
from shmexec.runtime import lifecycle
from shmexec.wire.messages import Mode
from shmexec.wire.pickling import dump, load
from shmexec.wire.sources import PlacedSource

DTYPES = ["u1", "i2", ">i4", "f8", "c16", "S3", "U2", "M8[s]", "i1,f4", "V5"]
SIZE = 5040


@pytest.fixture(scope="module")
def here():
    """Memory of this process, and the worker's view of it."""
    host = lifecycle.host(segment_kind())
    segment = host.arena.segment
    there = Borrowed(host.kind, os.dup(segment.descriptor), segment.size)
    for readonly in (True, False):
        there.segment(readonly=readonly)  # now, so that no test is blamed for it
    yield host, there
    there.close()


def shared_array(dtype: str, mode: str) -> np.ndarray:
    data = np.random.default_rng(1).integers(0, 100, SIZE * 8, "u1")
    dtype = np.dtype(dtype)
    data = data[: data.size // dtype.itemsize * dtype.itemsize]
    if dtype.kind == "U":
        data = (data.view("u4") * 0 + 65).view("u1")[: data.size // 8 * 8]
    return shmexec.share(data.view(dtype), mode)


# Recipes rather than views, since hypothesis keeps what it draws.
RECIPE = st.lists(
    st.tuples(
        st.sampled_from(["slice", "reshape", "transpose", "field", "other"]),
        st.lists(st.integers(0, 1 << 16), min_size=9, max_size=9),
    ),
    max_size=4,
)
STEPS = [1, 1, 2, 3, 7, -1, -2, -5]


def view_of(array, recipe):
    """A view made in several steps."""
    for kind, numbers in recipe:
        if kind == "slice":
            array = array[
                tuple(
                    _slice(length, numbers[3 * axis : 3 * axis + 3])
                    for axis, length in enumerate(array.shape)
                )
            ]
        elif kind == "reshape" and array.size and array.flags.c_contiguous:
            divisors = [n for n in range(1, 13) if array.size % n == 0]
            array = array.reshape(divisors[numbers[0] % len(divisors)], -1)
        elif kind == "transpose":
            axes = sorted(range(array.ndim), key=lambda axis: numbers[axis])
            array = array.transpose(axes)
        elif kind == "field" and array.dtype.names:
            array = array[array.dtype.names[numbers[0] % 2]]
        elif kind == "other" and array.flags.c_contiguous and array.itemsize % 2 == 0:
            array = array.view("u2")
    return array


def _slice(length, numbers):
    start, stop = sorted(number % (length + 1) for number in numbers[:2])
    part = range(start, stop)[:: STEPS[numbers[2] % len(STEPS)]]
    if not part:
        return slice(0, 0)
    return slice(part.start, part.stop if part.stop >= 0 else None, part.step)


def carried(host, there, pickled):
    """What a worker makes of a pickle."""
    returns = Returns()
    buffers = []
    for lease, source in enumerate(pickled.sources):
        assert isinstance(source, PlacedSource), "not by reference"
        place = (host.arena.id, source.offset, source.nbytes)
        readonly = source.mode == Mode.SHARED
        segment = (
            there.private(*place[1:])
            if source.mode == Mode.COPY_ON_WRITE
            else there.segment(readonly=readonly)
        )
        buffers.append(lend(segment, place, lease, returns, readonly=readonly))
    return load(pickled.payload, buffers)


@given(
    st.lists(RECIPE, min_size=1, max_size=4),
    st.sampled_from(DTYPES),
    st.sampled_from(["r", "r+", "c"]),
)
def test_any_views_arrive(here, recipes, dtype, mode):
    host, there = here
    array = shared_array(dtype, mode)
    given_views = [view_of(array, recipe) for recipe in recipes]
    pickled = dump(given_views, returns=host.returns)
    for source in pickled.sources:
        low = array.base.base.offset
        assert low <= source.offset
        assert source.offset + source.nbytes <= low + array.nbytes
    assert len(pickled.sources) <= 1, "one window for all views of a block"
    assert sum(s.passed for s in pickled.sources) == sum(
        view.nbytes for view in {id(view): view for view in given_views}.values()
    ), "each object is passed once"
    arrived = carried(host, there, pickled)
    for one, other in zip(given_views, arrived, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.tobytes() == other.tobytes()
        if one.nbytes:
            assert one.strides == other.strides
            assert other.flags.writeable == (mode != "r")
    del arrived, other


@given(RECIPE, st.sampled_from(["f8", "i1,f4"]))
def test_writes_arrive_where_they_belong(here, recipe, dtype):
    host, there = here
    array = shared_array(dtype, "r+")
    view = view_of(array, recipe)
    arrived = carried(host, there, dump(view, returns=host.returns))
    if not view.nbytes:
        return
    before = array.tobytes()
    kept = view.copy()
    arrived[...] = np.zeros((), view.dtype)
    assert view.tobytes() == np.zeros_like(view).tobytes()
    arrived[...] = kept
    assert array.tobytes() == before


@given(RECIPE, st.sampled_from(DTYPES))
def test_what_can_be_written_to_is_copied(here, recipe, dtype):
    host, _ = here
    array = shared_array(dtype, "r+")
    view = view_of(array, recipe)
    shmexec.share(array)
    if view is array:
        return
    pickled = dump(view, returns=host.returns)
    assert not any(isinstance(source, PlacedSource) for source in pickled.sources)
    np.testing.assert_array_equal(load(pickled.payload, _copies(pickled)), view)


def _copies(pickled):
    for source in pickled.sources:
        target = np.empty(source.nbytes, "u1")
        source.fill(target)
        yield target
