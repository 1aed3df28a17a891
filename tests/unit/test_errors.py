"""Errors travel between processes, so they must survive pickling whole."""

from __future__ import annotations

import pickle

import pytest

import shmexec
from shmexec import errors

EXAMPLES = [
    errors.RemoteTraceback("text"),
    errors.RemoteError("mod.Odd", "message", "traceback"),
    errors.SerializationError("message", "args[0].lock"),
    errors.WorkerDied("m", pid=3, exitcode=-9, memory=5, fault_text="stack"),
    errors.CallTimeout("message", seconds=2.5, stack="stack"),
    errors.CallStopped("message", stack="stack"),
    errors.PoolBroken("message", ("one", "two")),
    errors.SharedMemoryFull("message", needed=9, used=4, budget=10),
    errors.MemoryScarce("message", needed=9, used=4, budget=10, threshold=7),
    errors.PoolClosed("message"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_an_error_survives_pickling(error):
    error.add_note("batch 3")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.__dict__ == error.__dict__
    assert again.__notes__ == ["batch 3"]


def test_shared_memory_full_says_what_is_free():
    assert errors.SharedMemoryFull("m", needed=9, used=4, budget=10).free == 6


def test_every_public_name_can_be_imported():
    for name in shmexec.__all__:
        assert getattr(shmexec, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = shmexec.nothing
