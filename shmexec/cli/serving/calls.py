"""A request on its way through a session, and what its reply is made of."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

from shmexec.cli.serving import jsonrpc
from shmexec.cli.serving.files import open_array
from shmexec.cli.serving.jsonrpc import INTERNAL_ERROR, INVALID_PARAMS, Id, RpcError
from shmexec.cli.serving.service import describe
from shmexec.cli.serving.values import SaveArray, read_values, write_value

__all__ = ["Batch", "Call", "outcome", "read_arguments", "stop_running", "success"]


class Batch:
    """The replies to a batch, which go out together; the writer's alone."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._missing = size
        self._replies: list[bytes] = []

    def add(self, reply: bytes) -> tuple[bytes, int]:
        """Keep a reply (empty: none); with the last one, all that is to be written."""
        self._missing -= 1
        if reply:
            self._replies.append(reply)
        if self._missing:
            return b"", 0
        return jsonrpc.batch(self._replies) if self._replies else b"", self.size


class Call:
    """A request, from when it was read to when its reply is written."""

    def __init__(self, identity: Id, batch: Batch | None, *, silent: bool) -> None:
        self.id = identity
        self.batch = batch
        self.silent = silent
        self._lock = threading.Lock()
        self._stop: Callable[[], object] | None = None
        self._over = self._cancelled = False

    def started(self, stop: Callable[[], object]) -> None:
        """It was submitted, and ``stop`` stops it: at once, if that was asked for."""
        with self._lock:
            self._stop = None if self._over else stop
            cancelled = self._cancelled
        if cancelled:
            stop()

    def cancel(self) -> bool:
        """Stop it, now or when it is submitted; whether it was not over."""
        with self._lock:
            if self._over:
                return False
            self._cancelled = True
            stop = self._stop
        if stop is not None:
            stop()
        return True

    def check(self) -> None:
        """Raise CancelledError if it was cancelled."""
        if self._cancelled:
            raise CancelledError

    def end(self) -> None:
        """Let go of what would stop it: the future's callback must not hold itself."""
        with self._lock:
            self._over = True
            self._stop = None


def read_arguments(
    args: list[Any], kwargs: dict[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments with their arrays; those that were read already stay as they are.

    Raises:
        RpcError: One cannot be read.
    """
    by_name: Any = read_values(kwargs, open_array, "params.kwargs")
    if not isinstance(by_name, dict):
        msg = "params.kwargs must have names, and not be an array"
        raise RpcError(INVALID_PARAMS, msg)
    return read_values(args, open_array, "params.args"), by_name


def stop_running(future: Future[Any]) -> None:
    """Cancel a call of the pool, also if it runs."""
    future.cancel(running=True)  # type: ignore[call-arg]


def outcome(identity: Id, future: Future[Any], save: SaveArray | None) -> bytes:
    """The reply to a call that is done."""
    try:
        result = future.result()
    except BaseException as error:  # noqa: BLE001  (SystemExit, too: the call's own)
        return jsonrpc.failure(identity, describe(error))
    return success(identity, result, save)


def success(identity: Id, result: object, save: SaveArray | None) -> bytes:
    """The reply with a result, or with an error if JSON cannot write it."""
    try:
        return jsonrpc.success(identity, write_value(result, save, "result"))
    except Exception as error:  # noqa: BLE001  (it becomes the reply)
        return jsonrpc.failure(identity, describe(error, INTERNAL_ERROR))
