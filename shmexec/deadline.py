"""Time: one monotonic clock, and deadlines that several waits share."""

from __future__ import annotations

import time
from typing import overload

now = time.monotonic


class Deadline:
    """A point in time, or never; ``remaining()`` is what a wait still may take."""

    __slots__ = ("_at",)

    def __init__(self, seconds: float | None) -> None:
        self._at = None if seconds is None else now() + seconds

    def remaining(self) -> float | None:
        """Seconds left, at least 0; None if there is no limit."""
        return None if self._at is None else max(0.0, self._at - now())

    @overload
    def within(self, seconds: float) -> float: ...
    @overload
    def within(self, seconds: float | None) -> float | None: ...
    def within(self, seconds: float | None) -> float | None:
        """What a wait of so many seconds, None for any time, may take of them."""
        left = self.remaining()
        return (
            seconds if left is None else min(left, left if seconds is None else seconds)
        )

    def passed(self) -> bool:
        """Whether the time is up."""
        return self._at is not None and now() >= self._at
