"""Memory-mapped files: what was opened read-only travels by path, never by bytes."""

from __future__ import annotations

import os
import tracemalloc

import numpy as np
import pytest

import shmexec
from shmexec.memory.files import in_file
from tests.contract import calls
from tests.integration import faults

pytestmark = pytest.mark.slow

VALUES = np.arange(120_000.0).reshape(-1, 4)


@pytest.fixture
def path(tmp_path):
    name = tmp_path / "x.npy"
    np.save(name, VALUES)
    return name


@pytest.fixture(scope="module", params=["memfd", "posix"])
def pool(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHMEXEC_SEGMENT", request.param)
        executor = shmexec.Executor(1)
    with executor:
        executor.submit(calls.pid).result()
        yield executor


@pytest.fixture
def copied(pool):
    """Bytes that went to the worker in this test: copied, and by reference."""
    before = pool.stats()

    def figures():
        now = pool.stats()
        return (
            now.bytes_copied_in - before.bytes_copied_in,
            now.bytes_by_reference - before.bytes_by_reference,
        )

    return figures


def look(array):
    """What a worker sees: values, type, and whether it may write."""
    return array.copy(), type(array).__name__, array.flags.writeable, array.strides


def look_inside(value):
    return [look(array) for array in (value["x"][0], value["y"])]


def kept_sum():
    return calls.kept().sum()


VIEWS = {
    "whole": lambda a: a,
    "rows": lambda a: a[100:20_000],
    "every third": lambda a: a[::3],
    "backwards": lambda a: a[::-1, ::-1],
    "column": lambda a: a[:, 1],
    "transposed": lambda a: a.T,
    "reshaped": lambda a: a.reshape(3, -1),
    "of bytes": lambda a: a.view(np.uint8),
    "plain": np.asarray,
    "plain, twice": lambda a: np.asarray(np.asarray(a[5:])[:, 1:])[::2],
    "broadcast": lambda a: np.broadcast_to(a[7], (50_000, 4)),
    "small": lambda a: a[17, 1:3],
    "0-d": lambda a: a[3, 3:].reshape(()),
}


@pytest.mark.parametrize("view", VIEWS)
def test_any_view_goes_by_path(pool, path, view, copied):
    array = VIEWS[view](np.load(path, mmap_mode="r"))
    values, name, writable, strides = pool.submit(look, array).result()
    np.testing.assert_array_equal(values, array)
    assert name == type(array).__name__
    assert not writable
    assert strides == array.strides
    assert copied() == (0, array.nbytes)


def test_at_any_depth_and_in_what_is_captured(pool, path, copied):
    array = np.load(path, mmap_mode="r")
    value = {"x": [array[5:]], "y": np.asarray(array)[:, 2]}
    for (values, _, writable, _), right in zip(
        pool.submit(look_inside, value).result(),
        (array[5:], array[:, 2]),
        strict=True,
    ):
        np.testing.assert_array_equal(values, right)
        assert not writable
    assert pool.submit(lambda: float(array.sum())).result() == VALUES.sum()
    assert copied()[0] == 0


def test_by_keyword_in_map_and_to_the_initializer(path):
    array = np.load(path, mmap_mode="r")
    with shmexec.Executor(1, initializer=calls.keep, initargs=(array,)) as pool:
        values, *_ = pool.submit(look, array=array[9:]).result()
        np.testing.assert_array_equal(values, array[9:])
        assert list(pool.map(np.sum, array[:300])) == list(VALUES[:300].sum(axis=1))
        assert pool.submit(kept_sum).result() == VALUES.sum()
        assert pool.stats().bytes_copied_in == 0


def test_a_subclass_keeps_its_class(pool, path):
    array = np.load(path, mmap_mode="r").view(np.recarray)
    values, name, writable, _ = pool.submit(look, array).result()
    assert (name, writable) == ("recarray", False)
    np.testing.assert_array_equal(values, VALUES)


def test_fortran_order_with_a_header(pool, tmp_path, copied):
    np.save(tmp_path / "f.npy", np.asfortranarray(VALUES))
    array = np.load(tmp_path / "f.npy", mmap_mode="r")
    assert array.flags.f_contiguous
    values, _, _, strides = pool.submit(look, array).result()
    np.testing.assert_array_equal(values, VALUES)
    assert strides == array.strides
    result = pool.map_batches(faults.half, array, batch_size=7_777)
    np.testing.assert_array_equal(result, VALUES / 2)
    assert copied()[0] == 0


def test_an_offset_beyond_the_first_page(pool, tmp_path, copied):
    path = tmp_path / "raw"
    path.write_bytes(bytes(12_345) + VALUES.tobytes())
    array = np.memmap(path, float, "r", 12_345, VALUES.shape)
    values, *_ = pool.submit(look, array[3:]).result()
    np.testing.assert_array_equal(values, VALUES[3:])
    assert copied()[0] == 0


@pytest.mark.parametrize("mode", ["r+", "c"])
def test_other_modes_are_copied(pool, path, mode, copied):
    array = np.load(path, mmap_mode=mode)
    array[0] = 5
    values, name, writable, _ = pool.submit(look, array).result()
    np.testing.assert_array_equal(values, array)
    assert (name, writable) == ("ndarray", True)
    assert copied()[0] == array.nbytes


def test_what_comes_back_is_ones_own(pool, path):
    array = np.load(path, mmap_mode="r")
    result = pool.submit(calls.same, array).result()
    result[:] = 0
    np.testing.assert_array_equal(np.load(path), VALUES)


def test_a_worker_cannot_write_to_it(pool, path):
    array = np.load(path, mmap_mode="r")
    with pytest.raises(ValueError, match="read-only"):
        pool.submit(calls.fill, array, 1).result()


def test_a_deleted_file_is_copied(pool, path):
    array = np.load(path, mmap_mode="r")
    path.unlink()
    values, *_ = pool.submit(look, array).result()
    np.testing.assert_array_equal(values, VALUES)
    np.save(path, VALUES + 1)
    values, *_ = pool.submit(look, array).result()
    np.testing.assert_array_equal(values, VALUES)


@pytest.mark.parametrize("how", ["replaced", "gone", "truncated"])
def test_a_file_that_changes_under_a_waiting_call(pool, path, gate, how):
    array = np.load(path, mmap_mode="r")
    first = pool.submit(calls.through, gate)
    gate.arrived()
    waiting = pool.submit(look, array)
    if how == "truncated":
        os.truncate(path, 1000)
    else:
        path.unlink()
    if how == "replaced":
        # Its inode is not free for reuse: it is mapped here.
        np.save(path, VALUES + 1)
    gate.open()
    first.result()
    error = ValueError if how == "truncated" else FileNotFoundError
    with pytest.raises(error, match=r"x\.npy"):
        waiting.result()
    assert pool.submit(calls.same, 1).result() == 1


def test_a_file_that_is_another_while_a_worker_holds_the_first(path, tmp_path):
    other = tmp_path / "other.npy"
    with shmexec.Executor(1) as pool:
        pool.submit(calls.keep, np.load(path, mmap_mode="r")).result()
        np.save(other, VALUES + 1)
        other.rename(path)
        array = np.load(path, mmap_mode="r")
        values, *_ = pool.submit(look, array).result()
        np.testing.assert_array_equal(values, VALUES + 1)
        assert pool.submit(kept_sum).result() == VALUES.sum()


def test_a_file_that_grew(pool, tmp_path):
    path = tmp_path / "raw"
    VALUES.tofile(path)
    pool.submit(calls.keep, np.memmap(path, float, "r")).result()
    with open(path, "ab") as file:
        file.write(VALUES.tobytes())
    array = np.memmap(path, float, "r")
    values, *_ = pool.submit(look, array).result()
    np.testing.assert_array_equal(values, np.tile(VALUES.ravel(), 2))


def test_many_views_share_one_mapping(pool, path):
    rows = list(np.load(path, mmap_mode="r"))[:5_000]

    def mappings(_):
        with open("/proc/self/maps") as maps:
            return sum(line.rstrip().endswith("x.npy") for line in maps)

    assert pool.submit(mappings, rows).result() == 1


def test_a_descriptor_s_path_means_nothing_elsewhere(pool, path):
    with open(path, "rb") as file:
        array = np.load(f"/proc/self/fd/{file.fileno()}", mmap_mode="r")
    values, *_ = pool.submit(look, array).result()
    np.testing.assert_array_equal(values, VALUES)


def test_pickling_takes_no_memory(path):
    array = np.load(path, mmap_mode="r")
    tracemalloc.start()
    try:
        from shmexec.wire.pickling import dump

        pickled = dump(array)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert len(pickled.payload) < 1000
    assert not pickled.sources


def test_overlap_in_a_file(path):
    array = np.load(path, mmap_mode="r")
    one, other = in_file(array[:100]), in_file(array[100:200])
    assert not one.overlaps(other)
    assert not other.overlaps(one)
    assert in_file(array[::-1]).overlaps(one)
    assert one.rows(10, 20).overlaps(one)
    assert not one.rows(10, 20).overlaps(one.rows(20, 30))
    assert in_file(array[::-1]).rows(0, 3).span() == in_file(array[-3:]).span()
