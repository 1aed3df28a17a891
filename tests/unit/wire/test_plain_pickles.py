"""What takes the short way through the pickler arrives as what takes the long one."""

from __future__ import annotations

import pickle

import cloudpickle
import numpy as np
import pytest

from shmexec.wire import pickling
from shmexec.wire.pickling import dump, dump_arguments, load

CLASS = type("Local", (), {"__module__": "__main__", "x": 1})
RECURSIVE: list[object] = [1]
RECURSIVE.append(RECURSIVE)
ARRAYS = [
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.arange(20)[::3],
    np.arange(12).reshape(3, 4)[:, ::2],
    np.array(5),
    np.empty((0, 3)),
    np.array([True, False]),
    np.arange(3, dtype=">i4"),
    np.array([1 + 2j]),
    np.array(["a", "bc"]),
    np.array(["2026-01-01"], "datetime64[D]"),
    np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]),
    np.zeros(2, np.dtype("f8", metadata={"unit": "m"})),
    np.array([None, "x"], object),
    np.broadcast_to(np.arange(3), (2, 3)),
]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        2.5,
        "text",
        b"bytes",
        np.float64(1.5),
        np.int64(3),
        (1, "a", (2, [3, {"k": (None, 4.0)}])),
        {"a": {"b": [1, 2]}, 3: "c"},
        [*range(1000)],
        bytearray(b"x"),
        {1, 2},
        1j,
        ((((((1,),),),),),),
    ],
    ids=repr,
)
def test_round_trip(value):
    back = load(dump(value).payload, ())
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        pytest.param((1, "a", None), True, id="atoms"),
        pytest.param([1, (2, {"k": 3})], True, id="nested"),
        pytest.param((lambda: 1,), False, id="lambda"),
        pytest.param([CLASS], False, id="class"),
        pytest.param({CLASS: 1}, False, id="class as key"),
        pytest.param((CLASS(),), False, id="instance"),
        pytest.param([np.ones(3)], False, id="array"),
        pytest.param([[0] * 1000], False, id="long"),
        pytest.param(RECURSIVE, False, id="recursive"),
    ],
)
def test_only_what_is_plain_takes_the_short_way(value, plain, monkeypatch):
    def forbidden(*_args):
        raise AssertionError("the short way")

    with monkeypatch.context() as patch:
        patch.setattr(pickling.pickle, "dumps", forbidden)
        if plain:
            with pytest.raises(AssertionError):
                dump(value)
        else:
            dump(value)


def test_a_class_of_main_goes_by_value():
    data = bytes(dump_arguments((CLASS(),), {}).payload)
    assert b"Local" in data
    assert pickle.loads(data)[0][0].x == 1


def test_the_same_object_twice_stays_one():
    value = [1]
    (one, other), _ = load(dump_arguments((value, value), {}).payload, ())
    assert one is other


@pytest.mark.parametrize(
    "array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}{a.strides}"
)
def test_small_arrays(array):
    back = load(dump(array).payload, ())
    assert back.dtype == array.dtype
    assert back.dtype.metadata == array.dtype.metadata
    assert back.shape == array.shape
    assert np.array_equal(back, array)
    assert back.flags.writeable
    assert back.flags.f_contiguous == array.flags.f_contiguous or not (array.flags.forc)
    expected = cloudpickle.loads(cloudpickle.dumps(array))
    assert type(back) is type(expected)
