"""A write to a read-only argument: NumPy's own error, and what to do about it."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import shmexec
from shmexec.worker.notes import note_read_only
from tests.contract import calls

pytestmark = pytest.mark.one_kind

ROWS = np.arange(30_000.0).reshape(-1, 3)


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "x.npy", ROWS)
    return tmp_path / "x.npy"


def _map(path):
    return np.load(path, mmap_mode="r")


def _note(caught):
    [note] = [n for n in caught.value.__notes__ if n.startswith("Read-only")]
    return note


def fill(x, value=0):
    x[...] = value


def add_into(x, y):
    return np.add(x, y, out=x)


def make_writable(x):
    x.flags.writeable = True


def sort(*arrays):
    arrays[1].sort()


def write_inside(data, *, where):
    data["a"][1][...] = 0


def take_view(pair):
    return memoryview(pair[0])[:1].cast("B")[0] + fill(pair[1].T[1:])


class Odd(ValueError):
    """Cannot be rebuilt from its arguments."""

    def __init__(self, one, other):
        super().__init__("assignment destination is read-only")


def raise_odd(x):
    raise Odd(1, 2)


@pytest.mark.parametrize(
    ("fn", "args", "wanted"),
    [
        (fill, "x", "x (argument 0, float64 (10000, 3))"),
        (add_into, "xy", "x (argument 0, float64 (10000, 3)). To"),
        (add_into, "xx", "x (argument 0, float64 (10000, 3)). To"),
        (make_writable, "x", "x = x.copy()"),
        (sort, "yx", "arrays[1] (argument 1, float64 (10000, 3))"),
        (np.copyto, "xy", "dst (argument 0, float64 (10000, 3))"),
        (np.ndarray.sort, "x", "argument 0, float64 (10000, 3)"),
    ],
)
def test_the_note(executor, path, fn, args, wanted):
    mapped = _map(path)
    values = {"x": mapped, "y": ROWS}
    with pytest.raises(ValueError, match=r"read-only|WRITEABLE") as caught:
        executor.submit(fn, *(values[name] for name in args)).result()
    note = _note(caught)
    assert wanted in note
    assert "copy" in note
    assert 'mode="r+"' in note
    assert 'mode="c"' in note
    assert note in str(caught.value.__cause__)


def test_the_path_to_nested_arrays(executor, path):
    mapped = _map(path)
    data = {"a": [1, mapped[5:]], "b": mapped[:, 0]}
    with pytest.raises(ValueError, match="read-only") as caught:
        executor.submit(write_inside, data, where=[mapped[:7]]).result()
    note = _note(caught)
    assert "data['a'][1] (in argument 0, float64 (9995, 3))" in note
    assert "data['b'] (in argument 0, float64 (10000,))" in note
    assert "where[0] (in keyword argument, float64 (7, 3))" in note


def test_by_keyword_and_captured(executor, path):
    mapped = _map(path)
    with pytest.raises(ValueError, match="read-only") as caught:
        executor.submit(fill, x=mapped).result()
    assert "x (keyword argument, float64 (10000, 3))" in _note(caught)

    def inner():
        mapped[0] = 1

    with pytest.raises(ValueError, match="read-only") as caught:
        executor.submit(inner).result()
    assert "'mapped' captured by inner (part of the function, " in _note(caught)


def test_in_map_and_batches(fresh_executor, path):
    executor = fresh_executor  # a failing batch may end a worker
    mapped = _map(path)
    with pytest.raises(ValueError, match="read-only") as caught:
        list(executor.map(fill, [mapped, mapped[:9]], chunksize=2))
    assert "x (argument 0, float64 (10000, 3))" in _note(caught)
    for array in (ROWS, mapped):
        with pytest.raises(ValueError, match="read-only") as caught:
            executor.map_batches(fill, array, batch_size=4_000)
        assert "x (argument 0, float64 (4000, 3))" in _note(caught)


def test_in_process(path):
    mapped = _map(path)
    with shmexec.Executor(in_process=True) as executor:
        with pytest.raises(ValueError, match="read-only") as caught:
            executor.submit(fill, mapped).result()
        assert "x (argument 0, float64 (10000, 3))" in _note(caught)


def test_an_exception_that_cannot_be_rebuilt_has_it_too(executor, path):
    mapped = _map(path)
    with pytest.raises(shmexec.RemoteError) as caught:
        executor.submit(raise_odd, mapped).result()
    assert "x (argument 0, float64 (10000, 3))" in caught.value.traceback_text


def test_other_errors_are_left_alone(executor):
    with pytest.raises(ValueError, match="invalid literal") as caught:
        executor.submit(int, "read").result()
    assert not hasattr(caught.value, "__notes__")
    with pytest.raises(ZeroDivisionError) as caught:
        executor.submit(calls.ten_by, 0).result()
    assert not hasattr(caught.value, "__notes__")

    def own():
        np.broadcast_to(1.0, 3)[0] = 2

    with pytest.raises(ValueError, match="read-only") as caught:
        executor.submit(own).result()
    assert not hasattr(caught.value, "__notes__")


def _frozen(n):
    array = np.zeros(n)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("fn", "args", "wanted"),
    [
        (lambda: None, ([_frozen(2)],), "args[0][0] (in argument 0, "),
        (len, (_frozen(2),), "obj (argument 0, float64 (2,))"),
        (dict.fromkeys, (_frozen(2),), "argument 0"),
        (functools.partial(fill, value=3), (_frozen(2),), "x (argument 0"),
        (fill, ([_frozen(n) for n in range(12)],), "x[9] (in argument 0, float64 (9,)), and 2 more."),
    ],
)  # fmt: skip
def test_names_of_arguments(fn, args, wanted):
    error = ValueError("output array is read-only")
    note_read_only(error, fn, args, {})
    note_read_only(error, fn, args, {})
    [note] = error.__notes__
    assert wanted in note


def test_looking_for_arrays_ends():
    circle = [list(range(10_000))]
    circle.append(circle)
    error = ValueError("output array is read-only")
    note_read_only(error, fill, (circle,), {"more": [circle] * 500})
    assert not hasattr(error, "__notes__")
