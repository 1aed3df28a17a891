"""Calls that end on the cluster after they were cancelled here."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest

from shmexec.cluster.calls import Calls
from shmexec.cluster.futures import Future
from shmexec.cluster.inputs import Inputs
from shmexec.options import CallOptions


@pytest.fixture
def calls():
    client = SimpleNamespace(status="closed")
    made = Calls(client, "x", Inputs(client, keep=0, direct=None))
    yield made
    made.helpers.shutdown()


@pytest.mark.parametrize("status", ["finished", "error"])
def test_a_cancelled_call_counts_once(calls, status):
    future = Future(calls, None, CallOptions())
    told = []
    future.add_done_callback(told.append)
    future.remote = SimpleNamespace(status=status, exception=ValueError)
    assert future.cancel()
    calls._landed(weakref.ref(future), future.remote)
    assert future.cancelled()
    assert (calls.cancelled, calls.done, calls.failed) == (1, 0, 0)
    assert told == [future]


def test_so_does_one_that_lands_again(calls):
    future = Future(calls, None, CallOptions())
    future.remote = SimpleNamespace(status="finished")
    for _ in range(2):
        calls._landed(weakref.ref(future), future.remote)
    assert (calls.cancelled, calls.done, calls.failed) == (0, 1, 0)
