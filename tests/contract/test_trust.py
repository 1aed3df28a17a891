"""A worker that lies is killed, fails its own call, and harms nobody else.

The parent never reads beyond what it gave a worker, whatever that says.
"""

from __future__ import annotations

import math
import os
import pickle
import stat

import numpy as np
import pytest

import shmexec
from shmexec.runtime import lifecycle, server
from shmexec.wire.messages import Kind
from tests.contract import calls, lies
from tests.waiting import wait_until


@pytest.fixture
def usable(make_executor):
    """An executor that must be usable at the end, with a result that must be right."""
    executor = make_executor(2, timeout=10)
    kept = executor.submit(np.arange, 50_000).result()
    yield executor
    assert executor.submit(calls.add, 1, 2).result() == 3
    assert np.array_equal(executor.submit(calls.same, kept).result(), np.arange(50_000))


@pytest.mark.one_kind
def test_a_worker_that_lies_is_killed(usable):
    told = {name: usable.submit(lies.lie, name) for name in lies.LIES}
    beside = [usable.submit(calls.add, 1, i) for i in range(50)]
    for name, future in told.items():
        assert isinstance(future.exception(), shmexec.WorkerDied), name
    assert [future.result() for future in beside] == list(range(1, 51))


@pytest.mark.one_kind
def test_times_that_are_none(usable):
    """They would be reckoned with for calls to come."""
    for seconds in (math.nan, math.inf, -math.inf, -5e-6):
        for what in ("seconds", "began"):
            error = usable.submit(lies.say_time, **{what: seconds}).exception()
            assert isinstance(error, shmexec.WorkerDied), (what, seconds)


@pytest.mark.one_kind
@pytest.mark.parametrize("kind", [Kind.RESULT, Kind.ERROR])
def test_pickles_that_are_none_fail_that_call(make_executor, kind):
    executor = make_executor(2, timeout=10)
    wrong = [b"", b"\0", b"nonsense", b"\x80\x05K"]
    if kind is Kind.ERROR:
        wrong += [pickle.dumps(each) for each in (None, (1, 2), "fives", (1, 2, 3, 4))]
    futures = [executor.submit(lies.answer_with, int(kind), each) for each in wrong]
    for payload, future in zip(wrong, futures, strict=True):
        error = future.exception()
        if payload == pickle.dumps((1, 2, 3, 4)):
            assert isinstance(error, shmexec.RemoteError)
        else:
            assert isinstance(error, shmexec.SerializationError), payload
    assert executor.submit(calls.add, 1, 2).result() == 3


@pytest.mark.one_kind
def test_arrays_that_reach_further(usable):
    for make, *figures, why in (
        (lies.sent_objects, "O", "objects"),
        (lies.sent_objects, "O,u1", "objects"),
        (lies.sent_strides, (5,), (2**62,), "received"),
        (lies.sent_strides, (5,), (-(2**62),), "received"),
        (lies.sent_strides, (100_001,), (1,), "incompatible"),
        (lies.sent_strides, (2,), (-1,), "incompatible"),
    ):
        error = usable.submit(make, *figures).exception()
        assert isinstance(error, shmexec.SerializationError), figures
        assert why in str(error)


def garbled(executor, seeds, number):
    for seed in seeds:
        future = executor.submit(lies.garble, seed, number)
        # A lie may look like a reply: then its worker gets this call, and is killed in it.
        beside = executor.options(retries=3).submit(calls.add, seed, 1)
        try:
            future.exception()
        except BaseException as error:
            raise AssertionError(f"seed {seed}") from error
        assert beside.result() == seed + 1, f"seed {seed}"


@pytest.mark.one_kind
def test_whatever_a_worker_sends(usable):
    garbled(usable, range(8), 3)


@pytest.mark.stress
def test_whatever_a_worker_sends_for_long(usable):
    garbled(usable, range(100, 100 + int(os.environ.get("SHMEXEC_FUZZ", "300"))), 3)


# -- names and permissions ---------------------------------------------------------------


def private(mode):
    return not stat.S_IMODE(mode) & (stat.S_IRWXG | stat.S_IRWXO)


def test_segments_are_this_users_and_have_no_name(make_executor):
    executor = make_executor(1)
    executor.submit(calls.pid).result()
    [handle] = executor._pool._workers.values()
    host = executor._pool.host
    assert host is lifecycle.host(executor._options.segment)
    for segment in (host.arena.segment, handle.arena.segment):
        status = os.fstat(segment.descriptor)
        assert private(status.st_mode)
        assert status.st_nlink == 0
        assert status.st_uid == os.geteuid()
    log = os.fstat(handle.log.descriptor)
    assert log.st_nlink == 0
    assert private(log.st_mode)


@pytest.mark.one_kind
def test_the_fork_servers_socket_is_in_a_folder_of_this_user(make_executor):
    make_executor(1).submit(calls.pid).result()
    address = server.fork_server()._forkserver_address
    if isinstance(address, bytes) or address.startswith("\0"):
        pytest.fail("anybody can connect to an abstract socket")
    assert wait_until(lambda: os.path.exists(address))
    assert private(os.stat(address).st_mode)
    assert private(os.stat(os.path.dirname(address)).st_mode)
