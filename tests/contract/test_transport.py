"""What arrives is what was sent: every dtype and layout, there and back, small and large.

Small ones travel in the message, large ones through shared memory; no one should be
able to tell which.
"""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest

from tests.contract import calls
from tests.contract.calls import Record

SMALL, LARGE = 40, 40_000
SIZES = pytest.mark.parametrize("n", [SMALL, LARGE], ids=["small", "large"])


def _numbers(n, dtype=float):
    return np.arange(n).astype(dtype)


DTYPES = {
    name: lambda n, name=name: _numbers(n, name)
    for name in [
        "bool",
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
        "int64",
        "uint64",
        "float16",
        "float32",
        "float64",
        "longdouble",
        "complex64",
        "complex128",
        "clongdouble",
        ">i4",
        ">f8",
    ]
}
DTYPES |= {
    "bytes": lambda n: np.array([b"ab", b"c"] * (n // 2)),
    "text": lambda n: np.array(["äb", "c"] * (n // 2)),
    "void": lambda n: _numbers(n).view("V8"),
    "datetime64": lambda n: _numbers(n, "i8").astype("datetime64[ms]"),
    "timedelta64": lambda n: _numbers(n, "i8").astype("timedelta64[D]"),
    "structured": lambda n: np.array(
        [(1, 2.5, "x"), (3, 4.5, "y")] * (n // 2),
        dtype=[("a", "i2"), ("b", "f8"), ("c", "U3")],
    ),
    "aligned": lambda n: np.zeros(n, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "subarrays": lambda n: np.ones(n, np.dtype([("a", "f4", (2, 3))])),
    "object": lambda n: np.array([{"a": 1}, None, "x", 2.5] * (n // 4), dtype=object),
    "structured object": lambda n: np.array(
        [(1, "x"), (2, None)] * (n // 2), dtype=[("a", "i4"), ("b", object)]
    ),
}

LAYOUTS = {
    "C": lambda n: _numbers(n).reshape(4, -1),
    "Fortran": lambda n: np.asfortranarray(_numbers(n).reshape(4, -1)),
    "Fortran 3d": lambda n: np.asfortranarray(_numbers(n).reshape(2, 2, -1)),
    "permuted": lambda n: _numbers(n).reshape(2, 2, -1).transpose(1, 2, 0),
    "reversed": lambda n: _numbers(n)[::-1],
    "reversed columns": lambda n: _numbers(n).reshape(4, -1)[:, ::-1],
    "every second": lambda n: _numbers(2 * n)[::2],
    "block of rows": lambda n: _numbers(2 * n).reshape(-1, 4)[:, 1:3],
    "field": lambda n: DTYPES["structured"](4 * n)["b"],
    "broadcast": lambda n: np.broadcast_to(np.arange(4.0), (n, 4)),
    "sliding window": lambda n: np.lib.stride_tricks.sliding_window_view(
        _numbers(n), 5
    ),
    "real part": lambda n: _numbers(2 * n, complex).real,
    "unaligned": lambda n: np.zeros(8 * n + 1, "u1")[1:].view("f8"),
    "read-only": lambda n: _frozen(_numbers(n)),
    "of bytes": lambda n: np.frombuffer(bytes(8 * n), "f8"),
    "many dimensions": lambda n: _numbers(n).reshape((1,) * 30 + (n,)),
}

NOTHING = {
    "0-d": lambda n: np.array(3.5),
    "0-d object": lambda n: np.array({"a": 1}, dtype=object),
    "empty": lambda n: np.empty(0),
    "empty rows": lambda n: np.empty((n, 0, 3), "i2"),
    "empty Fortran": lambda n: np.empty((0, 3), order="F"),
    "no bytes each": lambda n: np.empty(n, "V0"),
    "scalar": lambda n: np.float32(2.5),
    "structured scalar": lambda n: DTYPES["structured"](4)[0],
}


def _frozen(array):
    array.flags.writeable = False
    return array


def _same(one, other):
    assert type(one) is type(other)
    assert one.dtype == other.dtype
    assert one.shape == other.shape
    np.testing.assert_array_equal(one, other)


@SIZES
@pytest.mark.parametrize("kind", DTYPES)
def test_every_dtype(executor, kind, n):
    array = DTYPES[kind](n)
    _same(executor.submit(calls.same, array).result(), array)


@SIZES
@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout(executor, kind, n):
    array = LAYOUTS[kind](n)
    result = executor.submit(calls.same, array).result()
    _same(result, array)
    assert result.flags.writeable
    if array.flags.f_contiguous:
        assert result.flags.f_contiguous


@SIZES
@pytest.mark.parametrize("kind", LAYOUTS)
def test_the_worker_sees_what_was_sent(executor, kind, n):
    array = LAYOUTS[kind](n)
    seen = executor.submit(calls.look_at, array).result()
    assert seen == calls.look_at(array) | {"writeable": True}


@pytest.mark.parametrize("kind", NOTHING)
def test_arrays_of_little_or_nothing(executor, kind):
    array = NOTHING[kind](LARGE)
    _same(executor.submit(calls.same, array).result(), array)


# -- subclasses ------------------------------------------------------------------------


@SIZES
def test_masked_arrays(executor, n):
    array = np.ma.masked_greater(_numbers(n), 3)
    array.fill_value = -7
    result = executor.submit(calls.same, array).result()
    assert type(result) is np.ma.MaskedArray
    np.testing.assert_array_equal(result.mask, array.mask)
    np.testing.assert_array_equal(result.filled(), array.filled())
    assert result.fill_value == -7
    assert executor.submit(np.ma.sum, array).result() == 6


@SIZES
def test_a_masked_array_without_mask(executor, n):
    result = executor.submit(calls.same, np.ma.array(_numbers(n))).result()
    assert result.mask is np.ma.nomask


@SIZES
def test_a_hard_mask_stays_hard(executor, n):
    array = np.ma.array(_numbers(n), mask=[True] * n, hard_mask=True)
    assert executor.submit(calls.same, array).result().hardmask


@SIZES
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_matrices(executor, n):
    matrix = np.matrix(_numbers(n).reshape(4, -1))
    result = executor.submit(calls.same, matrix).result()
    _same(result, matrix)
    assert (result @ result.T).shape == (4, 4)


@SIZES
def test_record_arrays(executor, n):
    array = DTYPES["structured"](n).view(np.recarray)
    result = executor.submit(calls.same, array).result()
    _same(result, array)
    assert result.b[0] == 2.5


@SIZES
def test_a_subclass_with_attributes(executor, n):
    array = calls.WithUnit.make(_numbers(n), "metre")
    result = executor.submit(calls.same, array).result()
    _same(result, array)
    assert result.unit == "metre"


@SIZES
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_memory_maps_arrive_as_arrays(executor, tmp_path, mode, n):
    path = tmp_path / "data"
    _numbers(n).tofile(path)
    mapped = np.memmap(path, float, mode)
    total, name = executor.submit(calls.total_and_type, mapped).result()
    assert total == _numbers(n).sum()
    result = executor.submit(calls.same, mapped).result()
    np.testing.assert_array_equal(result, _numbers(n))
    result[:] = 0
    np.testing.assert_array_equal(np.fromfile(path), _numbers(n))


def test_a_worker_does_not_write_through_a_memory_map(executor, tmp_path):
    path = tmp_path / "data"
    _numbers(LARGE).tofile(path)
    mapped = np.memmap(path, float, "r+")
    executor.submit(calls.fill, mapped, -1).result()
    np.testing.assert_array_equal(np.fromfile(path), _numbers(LARGE))


# -- inside of other things ------------------------------------------------------------


@SIZES
@pytest.mark.parametrize(
    "wrap",
    [
        lambda a: (a, a + 1),
        lambda a: [a, [a + 1, (a + 2,)]],
        lambda a: {"x": a, "y": {"z": a + 1}},
        lambda a: Record(a, {"more": [a + 1]}),
    ],
    ids=["tuple", "list", "dict", "dataclass"],
)
def test_at_any_depth(executor, wrap, n):
    sent = wrap(_numbers(n))
    result = executor.submit(calls.same, sent).result()
    assert type(result) is type(sent)
    _same_deep(result, sent)


def _same_deep(one, other):
    if isinstance(one, np.ndarray):
        _same(one, other)
    elif dataclasses.is_dataclass(one):
        _same_deep(vars(one), vars(other))
    elif isinstance(one, dict):
        assert list(one) == list(other)
        _same_deep(list(one.values()), list(other.values()))
    else:
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            _same_deep(left, right)


@SIZES
def test_in_keyword_arguments(executor, n):
    args, kwargs = executor.submit(calls.collect, _numbers(n), x=_numbers(n)).result()
    _same(args[0], kwargs["x"])


def test_hundreds_in_one_call(executor):
    arrays = [np.full(5_000, i, float) for i in range(600)]
    result = executor.submit(calls.same, arrays).result()
    assert [array[0] for array in result] == list(range(600))


@SIZES
def test_data_frames(make_executor, n):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": _numbers(n), "b": _numbers(n, "i4"), "c": ["x"] * n})
    executor = make_executor(1)
    pd.testing.assert_frame_equal(executor.submit(calls.same, frame).result(), frame)
    changed = executor.submit(calls.set_item, frame, "a", 0.0).result()
    assert changed["a"].sum() == 0
    assert frame["a"].sum() > 0


@SIZES
@pytest.mark.parametrize("layout", ["csr", "csc", "coo", "bsr"])
def test_sparse_matrices(make_executor, layout, n):
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.random_array(
        (n, 50), density=0.2, format=layout, rng=np.random.default_rng(1)
    )
    executor = make_executor(1)
    result = executor.submit(calls.same, matrix).result()
    assert type(result) is type(matrix)
    assert abs(result - matrix).sum() == 0
    assert (result @ np.ones(50)).shape == (n,)


@pytest.mark.parametrize("size", [100, 32 * 1024, 5_000_000])
def test_pickles_of_any_size(executor, size):
    values = list(range(size // 10))
    text = "é" * (size // 2)
    assert executor.submit(calls.same, [values, text]).result() == [values, text]


@pytest.mark.parametrize("size", [0, 10, 100_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_of_any_size(executor, kind, size):
    result = executor.submit(calls.same, kind(size)).result()
    assert type(result) is kind
    assert result == kind(size)


# -- as if it was copied ---------------------------------------------------------------


@SIZES
def test_the_callee_may_write_and_the_caller_does_not_see_it(executor, n):
    array = _numbers(n)
    assert executor.submit(calls.fill, array, -1).result().sum() == -n
    np.testing.assert_array_equal(array, _numbers(n))


@SIZES
def test_the_caller_may_write_after_submit(executor, gate, n):
    array = _numbers(n)
    blocked = [executor.submit(calls.through, gate) for _ in range(2)]
    future = executor.submit(calls.same, array)
    array[:] = -1
    gate.open()
    np.testing.assert_array_equal(future.result(), _numbers(n))
    assert [call.result() for call in blocked] == [None, None]


@SIZES
def test_read_only_arguments_arrive_writable(executor, n):
    array = _frozen(_numbers(n))
    assert executor.submit(calls.fill, array, 5).result()[0] == 5
    assert array[1] == 1


@SIZES
def test_results_are_writable_and_my_own(executor, n):
    array = _numbers(n)
    one = executor.submit(calls.same, array).result()
    other = executor.submit(calls.same, array).result()
    one[:] = 7
    np.testing.assert_array_equal(other, array)
    assert one.flags.writeable


@SIZES
def test_a_result_that_the_worker_keeps_does_not_change(executor, n):
    result = executor.submit(calls.kept_array, n).result()
    executor.broadcast(calls.change_kept)
    np.testing.assert_array_equal(result, np.ones(n))


@SIZES
def test_an_argument_that_the_worker_keeps_does_not_change(make_executor, n):
    executor = make_executor(1)
    executor.submit(calls.keep, _numbers(n)).result()
    for i in range(5):
        executor.submit(calls.same, np.full(n, -float(i))).result()
    np.testing.assert_array_equal(executor.submit(calls.kept).result(), _numbers(n))


@SIZES
def test_one_object_given_twice_stays_one(executor, n):
    array = _numbers(n)
    assert executor.submit(calls.are_same, array, array).result()
    first, second = executor.submit(calls.twice, array).result()
    assert first is second


@SIZES
def test_results_outlive_the_executor(make_executor, n):
    with make_executor() as executor:
        result = executor.submit(calls.same, _numbers(n)).result()
    gc.collect()
    np.testing.assert_array_equal(result, _numbers(n))
    result[:] = 3
    assert result.sum() == 3 * n


def test_results_outlive_their_worker(make_executor):
    executor = make_executor(1)
    result = executor.submit(calls.same, _numbers(LARGE)).result()
    assert executor.submit(calls.kill_me).exception(20) is not None
    executor.submit(calls.same, np.zeros(LARGE)).result()
    np.testing.assert_array_equal(result, _numbers(LARGE))


def test_a_slice_of_a_result_keeps_it(executor):
    part = executor.submit(calls.same, _numbers(LARGE)).result()[-3:]
    for _ in range(5):
        executor.submit(calls.same, np.zeros(LARGE)).result()
    np.testing.assert_array_equal(part, _numbers(LARGE)[-3:])


def test_results_held_by_the_hundred_stay_different(executor):
    results = list(executor.map(np.full, [5_000] * 300, range(300)))
    assert [int(result[-1]) for result in results] == list(range(300))


MAIN_CLASS = """
import sys, shmexec
class Model:
    count = 0
    def __init__(self):
        self.x = 1
def work():
    Model.count += 5
    return Model()
executor = shmexec.Executor(1, sys.argv[1])
Model.count = 1
executor.submit(lambda: None).result()
result = executor.submit(work).result()
print(type(result) is Model, Model.count, result.x)
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.every_start
def test_results_do_not_write_class_attributes_back(run_script, method):
    ended = run_script(MAIN_CLASS, method)
    assert (ended.stdout, ended.stderr) == ("True 1 1\n", "")
