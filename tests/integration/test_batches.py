"""``map`` and ``map_batches``: many calls from one."""

from __future__ import annotations

import functools
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import tqdm

import shmexec
from tests.contract import calls
from tests.integration import faults
from tests.waiting import LONG, wait_until

X = np.arange(120.0).reshape(40, 3)
LARGE = np.arange(300_000.0).reshape(-1, 3)


class Counted:
    """An iterable that knows how far it was read."""

    def __init__(self, number):
        self.number = number
        self.read = 0
        self.closed = False

    def __iter__(self):
        for item in range(self.number):
            self.read += 1
            yield item


@pytest.fixture(params=["memfd", "posix"])
def make_executor(request, monkeypatch):
    """How workers start makes no difference here: one way is enough."""
    monkeypatch.setenv("SHMEXEC_SEGMENT", request.param)
    with ExitStack() as stack:
        yield lambda max_workers=2, **settings: stack.enter_context(
            shmexec.Executor(max_workers, **settings)
        )


EITHER = ["memfd", "posix", "in_process"]


@contextmanager
def _executor(kind):
    with pytest.MonkeyPatch.context() as patch:
        if kind != "in_process":
            patch.setenv("SHMEXEC_SEGMENT", kind)
        executor = shmexec.Executor(2, in_process=kind == "in_process")
    with executor:
        yield executor


@pytest.fixture(scope="module", params=EITHER)
def either(request):
    """Executors with workers, and one without; shared, and left as they were."""
    with _executor(request.param) as executor:
        executor.broadcast(calls.pid)
        yield executor


@pytest.fixture(params=EITHER)
def fresh_either(request):
    """The same for one test; for those that have workers replaced."""
    with _executor(request.param) as executor:
        yield executor


@pytest.fixture(autouse=True)
def _no_monitor(monkeypatch):
    """The thread that tqdm keeps for the process is no leak of ours."""
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)


# -- map ---------------------------------------------------------------------------------


def test_map_is_eager_by_default(either):
    items = Counted(20)
    results = either.map(calls.same, items)
    assert items.read == 20
    assert list(results) == list(range(20))


@pytest.mark.parametrize("chunksize", [None, 1, 3])
def test_map_with_buffersize_reads_only_so_far_ahead(either, chunksize):
    items = Counted(50)
    results = either.map(calls.same, items, buffersize=4, chunksize=chunksize)
    assert items.read <= 4
    for taken in range(1, 11):
        assert next(results) == taken - 1
        assert items.read <= taken + 4
    results.close()
    assert items.read <= 15


def test_map_of_an_endless_iterable(either):
    def count():
        n = 0
        while True:
            yield n
            n += 1

    results = either.map(calls.same, count(), buffersize=3)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    results.close()


@pytest.mark.parametrize("buffersize", [None, 2])
def test_map_in_order(either, buffersize):
    for chunksize in (None, 1, 7, 1000):
        results = either.map(
            calls.add,
            range(30),
            range(100, 140),
            chunksize=chunksize,
            buffersize=buffersize,
        )
        assert list(results) == [100 + 2 * n for n in range(30)]


def test_map_unordered_gives_what_is_done_first(make_executor, gate):
    executor = make_executor(2)

    def wait_for_first(n, gate=gate):
        if n == 0:
            calls.through(gate)
        return n

    results = executor.map(wait_for_first, range(5), ordered=False)
    first = [next(results) for _ in range(4)]
    assert set(first) == {1, 2, 3, 4}
    gate.open()
    assert list(results) == [0]


@pytest.mark.parametrize("chunksize", [None, 4])
def test_map_unordered_loses_nothing(either, chunksize):
    results = either.map(calls.same, range(30), ordered=False, chunksize=chunksize)
    assert sorted(results) == list(range(30))


def test_map_of_many_tiny_items_is_put_into_chunks(make_executor):
    executor = make_executor(2)
    assert list(executor.map(calls.same, range(3000))) == list(range(3000))
    assert executor.stats().submitted < 1500


def test_map_of_nothing(either):
    assert list(either.map(calls.same, [])) == []


@pytest.mark.parametrize("chunksize", [1, 4])
def test_an_exception_comes_at_its_place(either, chunksize):
    results = either.map(calls.ten_by, [5, 2, 0, 1], chunksize=chunksize)
    assert [next(results), next(results)] == [2, 5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_closing_the_iterator_cancels_what_has_not_begun(make_executor, gate):
    executor = make_executor(1)
    results = executor.map(calls.through, [gate] * 6)
    gate.arrived()
    gate.open(1)
    next(results)
    results.close()
    assert wait_until(lambda: executor.stats().cancelled >= 4)
    gate.open()


def test_the_timeout_of_map(make_executor, gate):
    executor = make_executor(1)
    results = executor.map(calls.through, [gate], timeout=0.05)
    with pytest.raises(TimeoutError):
        next(results)
    gate.open()


@pytest.mark.parametrize("name", ["chunksize", "buffersize"])
def test_bad_settings_of_map(name):
    with shmexec.Executor(1) as executor:
        for value, error in [
            (0, ValueError),
            (-1, ValueError),
            (1.5, TypeError),
            (True, TypeError),
        ]:
            with pytest.raises(error, match=name):
                executor.map(calls.same, [1], **{name: value})


def test_a_function_that_is_none(make_executor):
    executor = make_executor(1)
    with pytest.raises(TypeError, match="callable"):
        executor.map(3, [1])
    with pytest.raises(TypeError, match="callable"):
        executor.map_batches(3, X)


def test_a_killed_chunk_is_retried(make_executor, tmp_path):
    path = tmp_path / "left"
    path.write_text("1")
    executor = make_executor(1)
    results = executor.options(retries=1).map(faults.once, [str(path)] * 4, chunksize=4)
    assert len(list(results)) == 4


def test_map_shows_progress(either, capsys):
    assert list(either.map(calls.same, range(7), progress=True)) == list(range(7))
    assert "7/7" in capsys.readouterr().err


# -- map_batches -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array", [X, LARGE, LARGE[::-1], np.asfortranarray(LARGE), LARGE[:, ::2]]
)
def test_batches_are_put_together(either, array):
    for batch_size in (None, 9_999, 10**9):
        result = either.map_batches(faults.half, array, batch_size=batch_size)
        np.testing.assert_array_equal(result, array / 2)
        result[0] = 7  # it is the caller's
        assert array[0, 0] != 7


def test_every_batch_size(either):
    for batch_size in (1, 7, 39, 40, 41):
        seen = []
        result = either.map_batches(
            faults.half, X, batch_size=batch_size, progress=seen.append
        )
        np.testing.assert_array_equal(result, X / 2)
        assert sum(seen) == 40
        assert len(seen) == -(-40 // batch_size)
        assert all(rows == batch_size for rows in seen[:-1])


def test_batches_are_read_only_views(make_executor):
    executor = make_executor()
    assert executor.map_batches(faults.is_read_only, LARGE, batch_size=20_000).all()
    stats = executor.stats()
    assert stats.bytes_by_reference >= LARGE.nbytes
    assert stats.bytes_copied_in == LARGE.nbytes  # once, for all batches


def test_a_memmap_goes_by_its_path(make_executor, tmp_path):
    np.save(tmp_path / "x.npy", LARGE)
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    executor = make_executor()
    assert executor.map_batches(faults.kind_of, array, batch_size=9_999).all()
    result = executor.map_batches(faults.half, array, batch_size=9_999)
    np.testing.assert_array_equal(result, LARGE / 2)
    part = executor.map_batches(faults.half, array[5000:70_000], batch_size=9_999)
    np.testing.assert_array_equal(part, LARGE[5000:70_000] / 2)
    assert executor.stats().bytes_copied_in == 0


def test_other_views_of_a_memmap(make_executor, tmp_path):
    np.save(tmp_path / "x.npy", LARGE)
    executor = make_executor()
    for mode in ("r", "c", "r+"):
        array = np.load(tmp_path / "x.npy", mmap_mode=mode)
        for view, right in [
            (array, LARGE),
            (array[::3], LARGE[::3]),
            (array[:, 1:], LARGE[:, 1:]),
            (array[::-1], LARGE[::-1]),
        ]:
            result = executor.map_batches(faults.half, view, batch_size=9_999)
            np.testing.assert_array_equal(result, right / 2)


def test_a_memmap_whose_file_was_replaced(make_executor, tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, LARGE)
    array = np.load(path, mmap_mode="r")
    path.rename(tmp_path / "moved.npy")
    np.save(path, np.zeros_like(LARGE))
    executor = make_executor()
    try:
        result = executor.map_batches(faults.half, array, batch_size=9_999)
    except FileNotFoundError:
        return
    np.testing.assert_array_equal(result, LARGE / 2)


@pytest.mark.parametrize("array", [X, LARGE])
def test_out_is_an_array(either, array):
    out = np.full_like(array, -1)
    assert either.map_batches(faults.half, array, batch_size=9_999, out=out) is out
    np.testing.assert_array_equal(out, array / 2)


def test_out_is_a_memmap(either, tmp_path):
    path = tmp_path / "out.npy"
    out = np.lib.format.open_memmap(path, "w+", LARGE.dtype, LARGE.shape)
    assert either.map_batches(faults.half, LARGE, batch_size=9_999, out=out) is out
    out.flush()
    del out
    np.testing.assert_array_equal(np.load(path), LARGE / 2)


def test_out_is_a_callable(either, tmp_path):
    asked = []

    def make(shape, dtype):
        asked.append((shape, dtype))
        return np.lib.format.open_memmap(tmp_path / "out.npy", "w+", dtype, shape)

    either.map_batches(faults.half, LARGE, batch_size=9_999, out=make)
    assert asked == [(LARGE.shape, LARGE.dtype)]
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), LARGE / 2)


@pytest.mark.parametrize(
    ("out", "error"),
    [
        (np.empty((39, 3)), ValueError),
        (np.empty(()), ValueError),
        (np.empty((40, 2)), ValueError),
        (np.empty((40, 3), np.float32), ValueError),
        (np.broadcast_to(np.float64(0), (40, 3)), ValueError),
        ([0] * 40, TypeError),
    ],
    ids=["rows", "scalar", "shape", "dtype", "read-only", "list"],
)
def test_a_bad_out(fresh_either, out, error):
    with pytest.raises(error, match="out"):
        fresh_either.map_batches(faults.half, X, out=out)


def _in_place(x, out=None):
    """Says by the value whether it was given a place of the pool's or the user's."""
    if out is None:
        return np.zeros(x.shape)
    np.multiply(x, 2, out=out)
    return out


def _must_be_given(x, out):
    return np.multiply(x, 2, out=out)


def _ignores_it(x, out=None):
    return x * 2.0


def _returns_none(x, out=None):
    if out is None:
        return x * 2.0
    out[...] = 1
    return None


def _its_last_argument_is_something_else(x, out):
    return x * out


@pytest.mark.parametrize("array", [X, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("fn", [_in_place, _must_be_given, _ignores_it])
@pytest.mark.parametrize("order", ["C", "F", "rows"])
def test_a_function_that_takes_out(either, fn, array, order):
    out = np.full_like(array, -1, order="F" if order == "F" else "C")
    if order == "rows":
        out = np.full((len(array), 7), -1.0)[:, 2 : 2 + array.shape[1]]
    result = either.map_batches(fn, array, out=out, batch_size=9_999)
    assert result is out
    np.testing.assert_array_equal(out, array * 2)


@pytest.mark.parametrize("array", [X, LARGE], ids=["small", "large"])
def test_a_ufunc_writes_in_place(either, array):
    np.testing.assert_array_equal(either.map_batches(np.sqrt, array), np.sqrt(array))
    out = np.empty(array.shape, np.float32)
    assert either.map_batches(np.add, array, array, out=out) is out
    np.testing.assert_array_equal(out, (array * 2).astype(np.float32))


def test_the_probe_tells_what_the_place_must_be(make_executor):
    """The first batches come back, all others are written where they belong."""
    executor = make_executor(1)
    result = executor.map_batches(_in_place, LARGE, batch_size=9_999)
    assert not result[:9_999].any()
    np.testing.assert_array_equal(result[9_999:], LARGE[9_999:] * 2)
    assert executor.stats().bytes_copied_out == 9_999 * 24


def test_out_of_a_file_is_written_by_the_workers(make_executor, tmp_path):
    executor = make_executor()
    for order in (False, True):
        out = np.lib.format.open_memmap(
            tmp_path / "out.npy", "w+", LARGE.dtype, LARGE.shape, fortran_order=order
        )
        executor.map_batches(_must_be_given, LARGE, batch_size=9_999, out=out)
        np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), LARGE * 2)
        part = out[50:-50]
        executor.map_batches(np.negative, LARGE[50:-50], batch_size=9_999, out=part)
        np.testing.assert_array_equal(out[50:-50], -LARGE[50:-50])
        np.testing.assert_array_equal(out[:50], LARGE[:50] * 2)
    assert executor.stats().bytes_copied_out == 0


@pytest.mark.parametrize("fn", [_must_be_given, _ignores_it, np.negative])
def test_out_of_shared_memory_is_written_by_the_workers(make_executor, fn):
    executor = make_executor()
    right = -LARGE if fn is np.negative else LARGE * 2
    for out in (
        shmexec.zeros(LARGE.shape),
        shmexec.zeros(LARGE.shape, order="F"),
        shmexec.zeros((len(LARGE), 7))[:, 2:5],
    ):
        assert executor.map_batches(fn, LARGE, batch_size=9_999, out=out) is out
        np.testing.assert_array_equal(out, right)
    assert executor.stats().bytes_copied_out == 0
    with pytest.raises(ValueError, match="overlaps array 0"):
        executor.map_batches(fn, out[::-1], out=out)


def test_out_shared_in_memory_of_another_kind(monkeypatch, make_executor):
    executor = make_executor()
    kinds = {"memfd", "posix"} - {executor._pool.host.kind}
    monkeypatch.setenv("SHMEXEC_SEGMENT", kinds.pop())
    out = shmexec.zeros(LARGE.shape)
    executor.map_batches(np.negative, LARGE, batch_size=9_999, out=out)
    np.testing.assert_array_equal(out, -LARGE)


def test_what_is_not_the_place_is_looked_at(fresh_either):
    with pytest.raises(ValueError, match="return out"):
        fresh_either.map_batches(_returns_none, X, out=np.empty_like(X))
    with pytest.raises(ValueError, match=r"shape \(5,"):
        fresh_either.map_batches(_ignores_it, X, batch_size=5, out=np.empty((40, 2)))


def test_out_may_be_another_argument(either):
    """Its place is taken, or it was bound: then it is not ours to give."""
    weights = np.arange(40.0)[:, None]
    right = X * weights
    result = either.map_batches(
        _its_last_argument_is_something_else, X, weights, out=np.empty_like(X)
    )
    np.testing.assert_array_equal(result, right)
    bound = functools.partial(_its_last_argument_is_something_else, out=3)
    np.testing.assert_array_equal(either.map_batches(bound, X), X * 3)


def test_a_function_that_must_be_given_out_when_there_is_none(make_executor):
    executor = make_executor()
    for out in (None, np.empty):
        with pytest.raises(TypeError, match="pass an array as out="):
            executor.map_batches(_must_be_given, X, out=out)
    assert executor.stats().submitted == 0


@pytest.mark.parametrize("large", [False, True])
def test_an_out_that_overlaps(make_executor, tmp_path, large):
    executor = make_executor()
    whole = np.zeros((40_000 if large else 40, 6))
    for array, out in [
        (whole, whole),
        (whole[:-1], whole[1:]),
        (whole[:, :4], whole[:, 2:]),
        (whole, whole[::-1]),
    ]:
        with pytest.raises(ValueError, match="overlaps array 1"):
            executor.map_batches(np.add, array * 1, array, out=out)
    np.save(tmp_path / "x.npy", whole)
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    out = np.load(tmp_path / "x.npy", mmap_mode="r+")
    with pytest.raises(ValueError, match="overlaps array 0"):
        executor.map_batches(np.negative, array, out=out)
    assert executor.stats().submitted == 0
    # Interleaved, but apart.
    executor.map_batches(np.exp, whole[:, ::2], out=whole[:, 1::2])
    np.testing.assert_array_equal(whole[:, 1::2], 1)


@pytest.mark.parametrize(
    "out", [np.empty((40, 2)), np.empty((40, 3), int), np.empty((40, 3), bool)]
)
def test_an_out_that_a_ufunc_cannot_write_to(make_executor, out):
    executor = make_executor()
    with pytest.raises(ValueError, match="out does not take what sqrt gives"):
        executor.map_batches(np.sqrt, X, out=out)
    assert executor.stats().submitted == 0


@pytest.mark.parametrize(
    ("fn", "error", "text", "note"),
    [
        (faults.too_few, ValueError, "4 rows for a batch of 5", "batch 0, rows 0:5"),
        (np.sum, ValueError, "scalar", "batch 0, rows 0:5"),
        (faults.other_shape_for_later, ValueError, "shape", "batch 2, rows 10:15"),
        (faults.other_dtype_for_later, ValueError, "float32", "batch 2, rows 10:15"),
        (faults.fail_at_13, ZeroDivisionError, "unlucky", "batch 2, rows 10:15"),
    ],
    ids=["rows", "scalar", "shape", "dtype", "raises"],
)
@pytest.mark.parametrize("repeat", [1, 20_000])
def test_errors_name_the_batch(fresh_either, fn, error, text, note, repeat):
    rows = np.repeat(np.arange(40.0), repeat)[:, None] * [1, 1]
    size = 5 * repeat
    with pytest.raises(error, match=text if repeat == 1 else None) as caught:
        fresh_either.map_batches(fn, rows, batch_size=size)
    [note_] = [n for n in caught.value.__notes__ if n.startswith("batch")]
    if repeat == 1:
        assert note.split(",")[0] == note_.split(",")[0]
    # It goes on working, and nothing is left under way.
    np.testing.assert_array_equal(fresh_either.map_batches(faults.half, X), X / 2)


def test_several_inputs(either):
    weights = np.arange(len(LARGE), dtype=np.float64)
    result = either.map_batches(faults.weighted, LARGE, weights, batch_size=9_999)
    np.testing.assert_array_equal(result, LARGE * weights[:, None])


def test_different_lengths(either):
    with pytest.raises(ValueError, match="40, 39"):
        either.map_batches(faults.weighted, X, np.ones(39))


def test_a_scalar_input(either):
    with pytest.raises(ValueError, match="scalar"):
        either.map_batches(faults.half, np.float64(3))


def test_an_empty_input_gives_an_empty_result_of_the_right_kind(either):
    result = either.map_batches(faults.half, np.empty((0, 3), np.float32))
    assert result.shape == (0, 3)
    assert result.dtype == np.float32


def test_a_bad_batch_size(either):
    for batch_size, error in [(0, ValueError), (-1, ValueError), (2.5, TypeError)]:
        with pytest.raises(error, match="batch_size"):
            either.map_batches(faults.half, X, batch_size=batch_size)


def test_lists_and_object_arrays(either):
    result = either.map_batches(faults.half, [[1, 2], [3, 4], [5, 6]], batch_size=2)
    np.testing.assert_array_equal(result, [[0.5, 1], [1.5, 2], [2.5, 3]])
    objects = np.array([1, "two", None, (3,)], dtype=object)
    result = either.map_batches(calls.same, objects, batch_size=3)
    assert list(result) == list(objects)


def test_more_than_the_budget_still_works(make_executor):
    executor = make_executor(max_shared_memory="1MB")
    result = executor.map_batches(faults.half, LARGE, batch_size=2_000)
    np.testing.assert_array_equal(result, LARGE / 2)


def test_progress_is_shown(either, capsys):
    either.map_batches(faults.half, X, batch_size=7, progress=True)
    assert "40/40" in capsys.readouterr().err


def test_progress_without_tqdm(either, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"shmexec\[progress\]"):
        either.map_batches(faults.half, X, progress=True)


def test_an_exception_of_progress_ends_it(fresh_either):
    def report(_rows):
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fresh_either.map_batches(faults.half, LARGE, batch_size=9_999, progress=report)
    np.testing.assert_array_equal(fresh_either.map_batches(faults.half, X), X / 2)


def test_a_killed_batch_is_retried(make_executor, tmp_path):
    path = tmp_path / "left"
    path.write_text("1")
    rows = np.arange(40.0)[:, None]
    paths = np.tile(np.frombuffer(str(path).encode(), np.uint8), (40, 1))
    result = (
        make_executor()
        .options(retries=1)
        .map_batches(faults.die_at_13, rows, paths, batch_size=5)
    )
    np.testing.assert_array_equal(result, rows)
    assert path.read_text() == "0"


def test_a_killed_batch_without_retries_names_it(make_executor, tmp_path):
    path = tmp_path / "left"
    path.write_text("1")
    rows = np.arange(40.0)[:, None]
    paths = np.tile(np.frombuffer(str(path).encode(), np.uint8), (40, 1))
    executor = make_executor()
    with pytest.raises(shmexec.WorkerDied) as caught:
        executor.map_batches(faults.die_at_13, rows, paths, batch_size=5)
    assert "batch 2, rows 10:15" in caught.value.__notes__
    np.testing.assert_array_equal(executor.map_batches(faults.half, X), X / 2)


@pytest.mark.parametrize("repeat", [1, 20_000])
def test_a_batch_that_hangs_times_out(make_executor, repeat):
    rows = np.repeat(np.arange(40.0), repeat)[:, None]
    executor = make_executor()
    executor.broadcast(calls.pid)
    with pytest.raises(shmexec.CallTimeout) as caught:
        executor.options(timeout=0.5).map_batches(
            faults.hang_at_13, rows, batch_size=5 * repeat
        )
    assert f"batch 2, rows {10 * repeat}:{15 * repeat}" in caught.value.__notes__


def test_when_a_batch_has_failed_no_other_one_runs_any_more(make_executor, make_gate):
    failing, hanging = make_gate(), make_gate()

    def fn(x):
        if x[0, 0] == 0:
            failing.wait()
            raise ZeroDivisionError
        faults.ignore_everything(hanging)

    executor = make_executor(2)
    with ThreadPoolExecutor(1) as thread:
        failed = thread.submit(executor.map_batches, fn, X, batch_size=20)
        [pid] = hanging.arrived()
        failing.open()
        assert isinstance(failed.exception(LONG), ZeroDivisionError)
    assert faults.is_gone(pid), "it could still write into the output"


def test_a_result_outlives_the_executor():
    with shmexec.Executor(2) as executor:
        result = executor.map_batches(faults.half, LARGE, batch_size=9_999)
    np.testing.assert_array_equal(result, LARGE / 2)
