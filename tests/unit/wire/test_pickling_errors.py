"""Errors of pickling name the culprit's path."""

from __future__ import annotations

import pickle
import threading
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shmexec.errors import SerializationError
from shmexec.wire.explaining import explain
from shmexec.wire.pickling import dump, load

LOCK = threading.Lock()


class Model:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def method(self):
        """A bound method carries its object."""


@dataclass
class Record:
    name: str
    handle: Any


class Recursive:
    def __init__(self):
        self.me = self
        self.lock = LOCK


def nested(levels):
    value = LOCK
    for _ in range(levels):
        value = [value]
    return value


def captures():
    lock = LOCK
    return lambda: lock


def explained(**parts):
    try:
        dump(parts)
    except Exception as error:  # noqa: BLE001  (as the pool does)
        return explain(error, parts, "the call of f")
    raise AssertionError("it can be pickled")


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (LOCK, "arg"),
        ([1, LOCK], "arg[1]"),
        ((1, [2, LOCK]), "arg[1][1]"),
        ({"model": LOCK}, "arg['model']"),
        ({"model": Model(lock=LOCK)}, "arg['model'].lock"),
        ([0, {"model": Model(a=1, lock=LOCK)}], "arg[1]['model'].lock"),
        (Record("x", LOCK), "arg.handle"),
        (SimpleNamespace(inner=Model(lock=LOCK)), "arg.inner.lock"),
        (Model(lock=LOCK).method, "arg.__self__.lock"),
        (captures(), "'lock' captured by arg"),
        (Recursive(), "arg.lock"),
        (np.array([1, LOCK], dtype=object), "arg"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_path_leads_to_the_culprit(value, path):
    error = explained(ok=1, arg=value)
    assert isinstance(error, SerializationError)
    assert isinstance(error, pickle.PicklingError)
    if path == "arg":
        assert error.path.startswith(path)
    else:
        assert error.path == path
        assert "lock" in str(error)
    assert error.path in str(error)
    assert "the call of f" in str(error)


def test_the_first_culprit_in_order_is_named():
    assert explained(a=1, b=LOCK, c=LOCK).path == "b"


def test_a_very_deep_culprit_is_named_as_far_as_one_looked():
    error = explained(arg=nested(20))
    assert error.path.startswith("arg[0]")


def test_what_fails_only_as_a_whole_still_gives_an_error():
    error = explain(ValueError("odd"), {"a": 1}, "the result")
    assert error.path == ""
    assert "ValueError: odd" in str(error)


def test_an_exception_of_a_reduce_is_told():
    class Odd:
        def __reduce__(self):
            raise RuntimeError("not today")

    error = explained(arg={"odd": Odd()})
    assert error.path == "arg['odd']"
    assert "not today" in str(error)


@pytest.mark.parametrize("nbytes", [0, 8, 32 * 1024, 1 << 20])
def test_what_can_be_pickled_comes_back(nbytes):
    array = np.arange(nbytes // 8)
    pickled = dump({"a": (array, array)})
    assert len(pickled.sources) == (1 if nbytes >= 32 * 1024 else 0)
    buffers = []
    for source in pickled.sources:
        target = np.empty(source.nbytes, np.uint8)
        source.fill(target)
        buffers.append(target)
    back = load(pickled.payload, buffers)
    np.testing.assert_array_equal(back["a"][0], array)
    assert back["a"][0] is back["a"][1]
