"""What forked children of this process may look at, kept until they are gone.

User code may fork. Its child sees this process's shared memory as it goes on changing:
a block that is freed and used again would change under the child's eyes. So what is
leased at a fork is pinned for its children, which hold the writing end of a pipe.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class _Pin(NamedTuple, Generic[T]):
    pipe: int
    kept: T
    note: int


class Forks(Generic[T]):
    """Pins, one for each fork that has children left.

    ``T`` is what tells the owner which leases are kept for them.
    """

    def __init__(self) -> None:
        self.pins: list[_Pin[T]] = []
        self._writer: int | None = None

    def pin(self, kept: T, note: int) -> None:
        """To be called before a fork.

        Args:
            kept: What :meth:`collect` returns when the children are gone.
            note: The arena's own, see :meth:`keep_forks` there.

        Raises:
            OSError: If there can be no more pipes; nothing is pinned then.
        """
        reader, self._writer = os.pipe()
        self.pins.append(_Pin(reader, kept, note))

    def release(self) -> None:
        """To be called in the parent after a fork: the children alone hold the pipe."""
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None

    def collect(self) -> list[T]:
        """What was kept for children that are gone."""
        closed = _closed([pin.pipe for pin in self.pins])
        gone = [pin for pin in self.pins if pin.pipe in closed]
        for pin in gone:
            self.pins.remove(pin)
            os.close(pin.pipe)
        return [pin.kept for pin in gone]

    def last_note(self) -> int:
        """The latest of those that still count, 0 if there is none."""
        return max((pin.note for pin in self.pins), default=0)


def _closed(pipes: Iterable[int]) -> set[int]:
    """Reading ends whose writing end no process has any more.

    Forked children hold those: one reads as ended when the last child is gone, or has
    called exec. Not by ``select``, which takes no descriptors from 1024 on.
    """
    poll = select.poll()
    for pipe in pipes:
        poll.register(pipe, select.POLLIN)
    return {pipe for pipe, _ in poll.poll(0)}
