"""The loaded script as a session sees it, and what its failures look like in a reply."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import Any, Protocol

from shmexec.cli.serving.jsonrpc import (
    CALL_CANCELLED,
    CALL_FAILED,
    CALL_TIMEOUT,
    NO_MEMORY,
    POOL_BROKEN,
    POOL_CLOSED,
    WORKER_DIED,
    RpcError,
)
from shmexec.errors import (
    CallTimeout,
    PoolBroken,
    PoolClosed,
    RemoteError,
    RemoteTraceback,
    SharedMemoryFull,
    WorkerDied,
)

__all__ = ["Items", "Service", "about", "describe"]


class Items(Protocol):
    """The items of a stream, as they come: a :class:`shmexec.Stream`."""

    def __iter__(self) -> Iterator[Any]:
        """Itself."""

    def __next__(self) -> Any:
        """The next item; raises StopIteration at the end, or what went wrong."""

    def close(self) -> None:
        """Have the generator closed, when it next yields; what has come is dropped."""

    def cancel(self) -> None:
        """Stop the call, from any thread; who waits for an item gets CallStopped."""


class Service(Protocol):
    """What a session asks of the server."""

    def call(
        self,
        function: str,
        args: list[Any],
        kwargs: dict[str, Any],
        timeout: float | None,
    ) -> Future[Any]:
        """Run a function of the script.

        Args:
            function: Its name.
            args: Its arguments.
            kwargs: Those by name.
            timeout: Seconds that it may run. None stands for the server's default.

        Raises:
            RpcError: No such function, or it does not take these arguments.
            ShmexecError: No call can be taken.
        """

    def stream(
        self,
        function: str,
        args: list[Any],
        kwargs: dict[str, Any],
        timeout: float | None,
        buffersize: int,
    ) -> Items:
        """As :meth:`call`, for a generator; it runs ``buffersize`` items ahead."""

    def functions(self) -> list[dict[str, Any]]:
        """The script's functions."""

    def health(self) -> dict[str, Any]:
        """Whether calls can be taken, and how many workers there are."""

    def stats(self) -> dict[str, Any]:
        """Figures about the pool and the server."""

    def shutdown(self) -> None:
        """End the server, as SIGTERM does; returns at once."""


_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (CallTimeout, CALL_TIMEOUT),
    (CancelledError, CALL_CANCELLED),  # CallStopped is one
    (WorkerDied, WORKER_DIED),
    (PoolBroken, POOL_BROKEN),
    (PoolClosed, POOL_CLOSED),
    (SharedMemoryFull, NO_MEMORY),
)


def describe(error: BaseException, code: int = CALL_FAILED) -> RpcError:
    """What a call, or the attempt at one, raised: as a reply.

    Args:
        error: What was raised.
        code: For an exception that has no code of its own.
    """
    if isinstance(error, RpcError):
        return error
    code = next((own for kind, own in _CODES if isinstance(error, kind)), code)
    data = about(error)
    name, text = data["type"], data["message"]
    return RpcError(code, f"{name}: {text}" if text else name, data)


def about(error: BaseException) -> dict[str, str]:
    """Its type (a bare name), its message, its traceback in the worker, or ``""``."""
    name, text = type(error).__qualname__, _text(error)
    traceback = ""
    if isinstance(error, RemoteError):
        name, text = error.type_name.rpartition(".")[2], error.message
        traceback = error.traceback_text
    elif isinstance(error, CallTimeout):
        traceback = error.stack
    elif isinstance(error, WorkerDied):
        traceback = error.fault_text
    elif isinstance(error.__cause__, RemoteTraceback):
        traceback = error.__cause__.text
    elif isinstance(error, CancelledError) and not text:
        text = "the call was cancelled"
    return {"type": name, "message": text, "traceback": traceback}


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  (the user's own method)
        return "(its message cannot be shown)"
