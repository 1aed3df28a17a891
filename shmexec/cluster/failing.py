"""How a call's failure travels through Dask, which must know that it failed."""

from __future__ import annotations

import pickle

import cloudpickle

from shmexec.errors import RemoteError
from shmexec.runtime.calls import rebuild_error


class CallFailed(Exception):
    """What a task of Dask raises for a call that failed.

    Args:
        payload: The exception, packed.
        from_call: Whether user code raised it; else the node's pool did.
        text: What Dask shows.
    """

    def __init__(self, payload: bytes, from_call: bool, text: str = "") -> None:
        if from_call and not text:
            text = pickle.loads(payload)[2]
        super().__init__(payload, from_call, text)

    def __str__(self) -> str:
        return str(self.args[2])

    def __repr__(self) -> str:
        return f"CallFailed: {self}"  # Dask logs it

    def error(self) -> BaseException:
        """The exception itself."""
        payload, from_call, text = self.args
        if from_call:
            return rebuild_error(payload)
        try:
            error = pickle.loads(payload)
        except Exception:  # noqa: BLE001  (its class is not here)
            return RemoteError("the node's error", text, text)
        assert isinstance(error, BaseException)
        return error


def failure_of(error: BaseException) -> CallFailed:
    """What to raise for an error of the node's pool."""
    text = f"{type(error).__name__}: {error}"
    try:
        return CallFailed(cloudpickle.dumps(error), False, text)
    except Exception:  # noqa: BLE001  (whatever it holds)
        plain = RemoteError(type(error).__name__, str(error), text)
        return CallFailed(pickle.dumps(plain), False, text)
