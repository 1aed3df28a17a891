"""What has a ``close()``, as a context manager; and what is closed by a finalizer."""

from __future__ import annotations

import _thread
import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Closing(ABC):
    """Closed at the end of a ``with`` block."""

    @abstractmethod
    def close(self) -> None:
        """Let go of whatever it holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClosing(Closing):
    """The same, also for ``async with``."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        """Close, without blocking the event loop."""
        import asyncio

        await asyncio.to_thread(self.close)


def close_apart(close: Callable[[], object]) -> None:
    """Have a thread do what a finalizer may not: take a lock, and wait.

    A finalizer may come in the midst of anything, and an interrupt that strikes in one is
    lost: Python prints it and goes on. So this does not even wait until the thread has
    begun, as :meth:`threading.Thread.start` does. As the interpreter ends there are no
    threads any more, and nothing is done: what is left is closed by handlers of its own.
    """
    with contextlib.suppress(RuntimeError):
        _thread.start_new_thread(_begin, (close,))


def _begin(close: Callable[[], object]) -> None:
    # By a real thread, which the interpreter waits for as it ends. Given whether it is a
    # daemon, it does not ask for the current one, of which threading would make a record.
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=close, daemon=False).start()
