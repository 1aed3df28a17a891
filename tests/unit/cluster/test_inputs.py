"""Inputs of a cluster, with a client that only notes what it is given."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import CancelledError

import numpy as np
import pytest

import shmexec
from shmexec.cluster import inputs as module
from shmexec.cluster.inputs import Inputs, is_constant, name_of

N = 1000


class FakeFuture:
    lost = False

    def cancelled(self):
        return self.lost


class FakeClient:
    def __init__(self):
        self.scattered = {}
        self.futures = weakref.WeakValueDictionary()

    def scatter(self, data, direct, hash):  # noqa: A002  (Dask's name)
        assert not hash
        ((key, cargo),) = data.items()
        self.scattered[key] = cargo.data.copy()
        future = self.futures[key] = FakeFuture()
        return {key: future}


@pytest.fixture
def client():
    return FakeClient()


@pytest.fixture
def inputs(client):
    return Inputs(client, keep=10**9, direct=None)


def test_equal_arrays_are_sent_once(inputs, client):
    x = np.arange(N)
    first, second = inputs.add_array(x), inputs.add_array(x.copy())
    assert first.remote() is second.remote()
    assert len(client.scattered) == inputs.sent == inputs.reused == 1
    assert inputs.bytes_sent == x.nbytes


@pytest.mark.parametrize("other", [np.arange(N) + 1, np.arange(N).astype("f8")])
def test_others_are_sent_by_themselves(inputs, client, other):
    inputs.add_array(np.arange(N)).remote()
    inputs.add_array(other).remote()
    assert len(client.scattered) == 2


def test_what_is_sent_is_what_the_array_was(inputs, client):
    x = np.arange(N)
    need = inputs.add_array(x)
    x[:] = 0
    need.remote()
    assert (*client.scattered.values(),)[0][5] == 5


def test_a_lost_input_is_sent_again_under_another_name(inputs, client):
    x = np.arange(N)
    need = inputs.add_array(x)
    need.remote().lost = True
    x[:] = 0
    assert not need.remote().cancelled()
    one, other = client.scattered.values()
    assert np.array_equal(one, other)


def test_a_lost_input_that_no_call_needs_is_copied_anew(inputs, client):
    x = np.arange(N)
    inputs.add_array(x).remote().lost = True
    inputs.add_array(x).remote()
    assert len(client.scattered) == 2
    assert inputs.reused == 1


def test_inputs_stay_for_later_calls_up_to_a_limit(client):
    inputs = Inputs(client, keep=2 * 8 * N, direct=None)
    for value in range(3):
        inputs.add_array(np.full(N, value)).remote()
    gc.collect()
    assert len(client.futures) == 2
    inputs.add_array(np.full(N, 2)).remote()
    assert inputs.sent == 3
    inputs.add_array(np.full(N, 0)).remote()
    assert inputs.sent == 4


def test_what_a_call_needs_is_not_dropped(client):
    inputs = Inputs(client, keep=0, direct=None)
    need = inputs.add_array(np.arange(N))
    need.remote()
    assert len(client.futures) == 1
    del need
    gc.collect()
    assert not client.futures


def test_what_cannot_change_is_neither_copied_nor_looked_at_again(
    inputs, monkeypatch, tmp_path
):
    shared = shmexec.share(np.arange(N))
    np.save(tmp_path / "x.npy", np.arange(N) + 1)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    looked = []
    name_of = module.name_of
    monkeypatch.setattr(module, "name_of", lambda x: looked.append(x) or name_of(x))
    for array in (shared, mapped):
        for _ in range(2):
            assert np.shares_memory(inputs.add_array(array).cargo.data, array)
    assert len(looked) == 2


def test_which_arrays_cannot_change(tmp_path):
    plain = np.arange(N)
    frozen = plain.view()
    frozen.flags.writeable = False
    shared = shmexec.share(plain)
    np.save(tmp_path / "x.npy", plain)
    writable = np.load(tmp_path / "x.npy", mmap_mode="r+")
    arrays = (plain, frozen, shared, shared[3:], writable, shmexec.empty(N))
    assert [is_constant(x) for x in arrays] == [False, False, True, True, False, False]


def test_what_is_lent_is_not_copied_as_long_as_that_lasts(inputs, client):
    x = np.arange(2 * N)
    with inputs.lend([x]):
        need = inputs.add_array(x[:N])
        assert np.shares_memory(need.cargo.data, x)
        other = inputs.add_array(np.arange(N))
        assert not np.shares_memory(other.cargo.data, x)
        assert need.remote() is other.remote()
        need.remote().lost = True
        need.remote()
    x[:] = 0
    other.remote().lost = True
    with pytest.raises(CancelledError):
        need.remote()
    other.remote()
    one, two, three = client.scattered.values()
    assert np.array_equal(one, two)
    assert np.array_equal(two, three)


@pytest.mark.parametrize(
    "other",
    [
        np.arange(6.0).reshape(2, 3).astype("f4"),
        np.arange(6.0).reshape(3, 2),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6.0).reshape(2, 3)[::-1],
        np.arange(6.0).reshape(2, 3).view([("a", "f8")]),
    ],
)
def test_arrays_that_differ_have_other_names(other):
    x = np.arange(6.0).reshape(2, 3)
    assert name_of(other) != name_of(x) == name_of(np.repeat(x, 2, 0)[::2])
