"""What has a ``close()``, as a context manager."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closing:
    """Closed at the end of a ``with`` block."""

    def close(self) -> None:
        """Let go of whatever it holds."""
        raise NotImplementedError

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
