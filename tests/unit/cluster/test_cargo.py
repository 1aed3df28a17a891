"""What is moved between machines: how it is sealed, pickled, opened; and failures."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest

from shmexec.cluster.cargo import Cargo
from shmexec.cluster.failing import CallFailed, failure_of
from shmexec.cluster.packing import PackedCall
from shmexec.errors import CallTimeout, RemoteError, SerializationError
from shmexec.worker import remote


def _moved(cargo):
    buffers = []
    data = pickle.dumps(cargo, 5, buffer_callback=buffers.append)
    assert len(data) < 1000
    return pickle.loads(data, buffers=[bytearray(each.raw()) for each in buffers])


@pytest.mark.parametrize("value", [np.arange(10_000.0), {"a": [np.ones(5000)]}, None])
def test_what_is_moved_is_what_was_sealed(value):
    opened = _moved(Cargo(*remote.seal(value))).open()
    np.testing.assert_equal(opened, value)


def test_what_is_opened_can_be_written_to():
    value = np.arange(10_000.0)
    value.flags.writeable = False
    opened = Cargo(*remote.seal(value)).open()
    opened[0] = 1
    nested = Cargo(*remote.seal([np.ones(10_000)])).open()
    nested[0][0] = 2


def test_in_shared_memory_it_lies_once():
    cargo = Cargo("array", np.arange(10_000.0))
    part = cargo.part()
    assert part.data is cargo.part().data
    assert not part.data.flags.writeable


def _answer(fn, *args, parts=()):
    call = PackedCall(None, fn, args, {})
    sealed = remote.run(call.cargo.data, parts)
    if sealed.form == "error":
        raise CallFailed(sealed.data.tobytes(), True)
    return Cargo(*sealed).open()


def test_a_call_is_opened_and_run():
    assert _answer(lambda x, y: x + y, 1, 2) == 3


def test_its_failure_is_the_calls_own():
    def fail():
        raise KeyError("x")

    with pytest.raises(CallFailed) as caught:
        _answer(fail)
    failed = pickle.loads(pickle.dumps(caught.value))
    assert "in fail" in str(failed)
    assert isinstance(failed.error(), KeyError)
    assert "in fail" in str(failed.error().__cause__)


def test_errors_of_a_pool_stay_what_they_are():
    failed = failure_of(CallTimeout("late", seconds=2.0, stack="here"))
    error = pickle.loads(pickle.dumps(failed)).error()
    assert isinstance(error, CallTimeout)
    assert (str(error), error.seconds, error.stack) == ("late", 2.0, "here")


def test_errors_that_cannot_be_pickled_are_told():
    error = failure_of(ValueError(threading.Lock())).error()
    assert isinstance(error, RemoteError)
    assert error.type_name == "ValueError"


def test_what_cannot_be_pickled_is_named():
    with pytest.raises(SerializationError) as caught:
        PackedCall(None, len, ([threading.Lock()],), {})
    assert caught.value.path == "args[0][0]"
