"""Iterators that calls return, plain or asynchronous, a step at a time."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any, Final

from shmexec.worker.loop import awaited, run

END: Final = object()
"""What :meth:`Steps.step` returns when nothing more comes."""


class Steps:
    """An iterator of either kind.

    Args:
        made: What a function returned that is to be streamed.

    Raises:
        TypeError: If it cannot be iterated over.
    """

    def __init__(self, made: Any) -> None:
        made = awaited(made)
        self._plain: Iterator[Any] | None = None
        self._other: AsyncIterator[Any] | None = None
        if isinstance(made, AsyncIterable):
            self._other = aiter(made)
        elif isinstance(made, Iterable):
            self._plain = iter(made)
        else:
            msg = (
                "stream() needs a function that yields or returns something to iterate "
                f"over; this one returned {type(made).__name__}"
            )
            raise TypeError(msg)

    def step(self) -> Any:
        """The next item, or :data:`END`."""
        if self._plain is not None:
            return next(self._plain, END)
        return run(self.astep())

    async def astep(self) -> Any:
        """The next item, or :data:`END`, in the event loop of whoever awaits it."""
        if self._other is None:
            return self.step()
        try:
            return await anext(self._other)
        except StopAsyncIteration:
            return END

    async def aclose(self) -> None:
        """As :meth:`close`, on the loop that runs."""
        other, self._other = self._other, None
        self.close()
        aclose = getattr(other, "aclose", None)
        if aclose is not None:
            await aclose()

    def close(self) -> None:
        """Have a generator run its ``finally``; other iterators are just let go."""
        plain, other = self._plain, self._other
        self._plain, self._other = iter(()), None
        close = getattr(plain, "close", None)
        if close is not None:
            close()
        aclose = getattr(other, "aclose", None)
        if aclose is not None:
            run(_close(aclose))


async def _close(aclose: Any) -> None:
    await aclose()
