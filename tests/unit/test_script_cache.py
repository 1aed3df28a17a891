"""Keeping results of calls: what is the same call, and where results are kept."""

from __future__ import annotations

import datetime as dt
import enum
import subprocess
import sys
import threading
from collections import OrderedDict
from concurrent.futures import InvalidStateError
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest

import shmexec
from shmexec.runtime.cache import Blob, FolderStore, MemoryStore, make_store
from shmexec.runtime.content import NoDigestError, digest


class Pair(NamedTuple):
    a: int
    b: int


Color = enum.Enum("Color", "RED BLUE")


@dataclass
class Box:
    value: object


class Slots:
    __slots__ = ("a",)

    def __init__(self, a):
        self.a = a


class Subclass(np.ndarray):
    pass


def values():
    """Values of which no two are the same; made anew each time."""
    return [
        None,
        True,
        1,
        1.0,
        2**70,
        -1,
        0.0,
        -0.0,
        float("nan"),
        1j,
        "1",
        "\ud800",
        b"1",
        bytearray(b"1"),
        (),
        (1,),
        [1],
        (1, 2),
        ((1,), 2),
        (1, (2,)),
        {"a": 1, "b": 2},
        {"b": 2, "a": 1},
        OrderedDict(a=1, b=2),
        {1, 2},
        frozenset({1, 2}),
        range(3),
        slice(1, 2),
        Pair(1, 2),
        Color.RED,
        Color.BLUE,
        Box(1),
        Box([1]),
        Box({1, 2}),
        Slots(1),
        Slots(2),
        len,
        digest,
        Box,
        dt.date(2020, 1, 1),
        np.float64(1),
        np.float32(1),
        np.arange(4),
        np.arange(4).reshape(2, 2),
        np.arange(4).reshape(2, 2).T,
        np.arange(4, dtype="i4"),
        np.arange(4, dtype=">i8"),
        np.arange(4)[::2],
        np.zeros(0),
        np.zeros((0, 2)),
        np.array(1),
        np.array([{1, 2}, None], object),
        np.zeros(2, [("a", "i4"), ("b", "f4")]),
        np.zeros(2, [("a", "i4"), ("c", "f4")]),
        np.arange(4).view(Subclass),
        np.ma.array([1, 2], mask=[0, 1]),
        np.ma.array([1, 2]),
        [np.arange(4)],
        np.array(["2020-01-01"], "M8[D]"),
        np.array(["a"]),
        np.dtype("i4"),
    ]


def test_equal_content_has_one_digest_and_no_other_has_it():
    first, again = ([digest(value) for value in values()] for _ in range(2))
    assert first == again
    assert len(set(first)) == len(first)


def test_strides_that_a_worker_does_not_see_do_not_count():
    table = np.arange(12).reshape(3, 4)
    assert digest(table[:, ::2]) == digest(table[:, ::2].copy())
    assert digest(np.asfortranarray(table)) != digest(table)
    assert digest(table[1]) == digest(table[1].copy())


def test_what_is_one_object_twice_is_as_two_equal_ones():
    once, again = [1], [1]
    assert digest([once, once]) == digest([once, again])
    assert digest(Box([once, once])) == digest(Box([once, again]))


def test_arguments_are_told_apart():
    assert digest((1,), {}) != digest((), {"a": 1})
    assert digest("ab", "c") != digest("a", "bc")
    assert digest([1], [2]) != digest([1, 2], [])


def test_circles():
    first, other = [1], [1]
    first.append(first)
    other.append(other)
    assert digest(first) == digest(other)
    box = Box(None)
    box.value = box
    assert digest(box) == digest(box)


def test_lambdas_by_what_they_are():
    def make(number):
        return lambda x: x + number

    assert digest(make(1)) == digest(make(1))
    assert digest(make(1)) != digest(make(2))


def test_other_processes_find_the_same_digest():
    code = (
        "from shmexec.runtime.content import digest\n"
        "print(digest({'b', 'a', 'c'}, {'x': {1.5, None}}, len).hex())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def deep():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "make",
    [threading.Lock, lambda: (i for i in "a"), deep],
    ids=["lock", "generator", "deep"],
)
def test_what_has_no_digest(make):
    with pytest.raises(NoDigestError):
        digest(make())


def test_an_array_that_others_write_to_has_no_digest():
    board = shmexec.zeros(10)
    with pytest.raises(NoDigestError):
        digest([board])
    assert digest(shmexec.share(np.zeros(10))) == digest(np.zeros(10))


def test_handles_are_what_they_stand_for():
    assert digest(shmexec.share({"a": 1})) == digest({"a": 1})


# -- blobs -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.arange(5.0),
        np.arange(6).reshape(2, 3).T,
        np.arange(10)[::3],
        np.zeros(0),
        np.array([None, "a"], object),
        np.broadcast_to(np.arange(3), (2, 3)),
    ],
)
def test_each_value_of_a_blob_is_its_own_and_writable(array):
    blob = Blob.of({"x": array})
    first, second = blob.value()["x"], blob.value()["x"]
    assert np.array_equal(first, array)
    assert first.flags.writeable
    if first.size:
        first.flat[0] = 9
    assert np.array_equal(second, array)


def test_what_cannot_be_pickled_has_no_blob():
    assert Blob.of(threading.Lock()) is None
    assert Blob.of(lambda: 5).value()() == 5


def test_who_resolves_a_call_again_keeps_nothing():
    kept = []
    future = shmexec.Future()
    future.keep = kept.append
    future.add_done_callback(lambda done: kept.append(done.result() + 1))
    future.set_result(1)
    with pytest.raises(InvalidStateError):
        future.set_result(None)
    assert kept == [1, 2]


# -- stores ----------------------------------------------------------------------------


def test_memory_drops_what_was_not_used_longest():
    blob = Blob.of(np.zeros(1000))
    store = MemoryStore(3 * blob.nbytes)
    for key in (b"a", b"b", b"c"):
        store.put(key, blob)
    assert store.get(b"a") is not None
    store.put(b"d", blob)
    assert [store.get(key) is not None for key in (b"a", b"b", b"c", b"d")] == [
        True,
        False,
        True,
        True,
    ]


def test_memory_does_not_keep_what_is_larger_than_its_limit():
    small, large = Blob.of(1), Blob.of(np.zeros(1000))
    store = MemoryStore(5000)
    store.put(b"a", small)
    store.put(b"b", large)
    assert store.get(b"a") is small
    assert store.get(b"b") is None


def test_memory_counts_a_key_that_is_put_again_once():
    blob = Blob.of(np.zeros(100))
    store = MemoryStore(2 * blob.nbytes)
    for _ in range(10):
        store.put(b"a", blob)
    store.put(b"b", blob)
    assert store.get(b"a") is not None
    assert store._used == 2 * blob.nbytes


def test_a_folder_keeps_results_for_others(tmp_path):
    folder = tmp_path / "a" / "b"
    FolderStore(folder).put(b"key", Blob.of({"x": np.arange(1000)}))
    value = FolderStore(folder).get(b"key").value()
    assert np.array_equal(value["x"], np.arange(1000))
    assert FolderStore(folder).get(b"other") is None
    assert not [*folder.glob("*.unfinished")]


@pytest.mark.parametrize("at", [0, 20, 60, -1])
def test_a_damaged_file_is_as_none(tmp_path, at):
    store = FolderStore(tmp_path)
    store.put(b"key", Blob.of(np.arange(100)))
    (path,) = (each for each in tmp_path.rglob("*") if each.is_file())
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert store.get(b"key") is None
    for length in range(0, len(data), 50):
        path.write_bytes(data[:length])
        assert store.get(b"key") is None
    store.put(b"key", Blob.of(5))
    assert store.get(b"key").value() == 5


def test_a_folder_that_goes_away_is_told_once(tmp_path):
    folder = tmp_path / "folder"
    store = FolderStore(folder)
    folder.rmdir()
    folder.touch()
    with pytest.warns(RuntimeWarning, match="cannot be kept"):
        store.put(b"key", Blob.of(5))
    store.put(b"key", Blob.of(5))
    assert store.get(b"key") is None


def test_settings(tmp_path):
    assert make_store(None) is None
    assert isinstance(make_store(1000), MemoryStore)
    assert make_store("2KB")._limit == 2000
    assert isinstance(make_store(tmp_path), FolderStore)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_store(tmp_path / "file")
    for wrong in ("folder", 0, -5, ""):
        with pytest.raises(ValueError, match="cache"):
            make_store(wrong)
    for wrong in (1.5, True, object()):
        with pytest.raises(TypeError, match="cache"):
            make_store(wrong)
