"""What waits to be written to one client, and the thread that writes it."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from shmexec.cli.serving.transport import Client

if TYPE_CHECKING:
    from shmexec.deadline import Deadline

__all__ = ["Outbox", "Reply"]

_ITEMS: Final = 4

Reply = Callable[[], tuple[bytes, int]]
"""Makes a line (empty: none) and how many requests it answers; must not raise."""


class Outbox:
    """Writes lines in the order in which they were put, as the client reads them.

    Replies are turned into bytes one at a time, when their turn comes: until then the
    results stay where they are. How many there can be is bounded by what is in flight.
    Items of streams are bytes already; who puts one waits while four wait.

    Args:
        client: Where to write.
        written: Told by how many requests have been answered.
        lost: Told why the client cannot be written to.
    """

    def __init__(
        self,
        client: Client,
        written: Callable[[int], None],
        lost: Callable[[OSError], None],
    ) -> None:
        self._client = client
        self._written = written
        self._lost = lost
        # Guards what follows, for moments only: the pool's dispatcher puts replies.
        self._changed = threading.Condition()
        self._queue: deque[Reply] = deque()
        self._items = 0
        self._taken = 0
        self._over = False
        # The reading end hangs up when all is given up; nothing is written to it.
        self._given_up, self._giving_up = os.pipe()
        self._writer = threading.Thread(
            target=self._write_all, name="shmexec-serve-writer", daemon=True
        )

    def start(self) -> None:
        """Begin to write."""
        self._writer.start()

    def put(self, reply: Reply) -> None:
        """Have a reply written. Does not wait."""
        with self._changed:
            if not self._over:
                self._queue.append(reply)
                self._changed.notify_all()

    def wait_for_less(self) -> bool:
        """Wait until one of the results that wait here has been let go of.

        Returns:
            False if none waits, or nothing is written any more.
        """
        with self._changed:
            if not self._queue:
                return False
            before = self._taken
            # Woken by the writer, and by close.
            while self._taken == before and not self._over:
                self._changed.wait()
            return not self._over

    def put_item(self, line: bytes) -> bool:
        """Have an item of a stream written, when there is room for it.

        Returns:
            False if nothing is written any more.
        """
        with self._changed:
            # Woken by the writer, and by close.
            while self._items >= _ITEMS and not self._over:
                self._changed.wait()
            if self._over:
                return False
            self._items += 1
            self._queue.append(lambda: self._item(line))
            self._changed.notify_all()
            return True

    def _item(self, line: bytes) -> tuple[bytes, int]:
        with self._changed:
            self._items -= 1
            self._changed.notify_all()
        return line, 0

    def close(self) -> None:
        """Write nothing more; what waits is dropped."""
        with self._changed:
            if self._over:
                return
            self._over = True
            self._queue.clear()
            self._changed.notify_all()
        os.close(self._giving_up)

    def join(self, deadline: Deadline) -> bool:
        """Wait for the thread's end, after :meth:`close`; whether it came in time."""
        if self._writer.ident is not None:  # it was started
            self._writer.join(deadline.remaining())
        if self._writer.is_alive():
            return False
        os.close(self._given_up)
        return True

    def _write_all(self) -> None:
        while (reply := self._next()) is not None:
            line, answered = reply()
            del reply  # it holds the result
            with self._changed:
                self._taken += 1
                self._changed.notify_all()
            try:
                if line and not self._client.write(line + b"\n", self._given_up):
                    return
            except OSError as error:
                self._lost(error)
                return
            del line  # it may be long, and the wait for the next one, too
            if answered:
                self._written(answered)

    def _next(self) -> Reply | None:
        with self._changed:
            # Woken by whoever puts something, and by close.
            while not self._queue and not self._over:
                self._changed.wait()
            return None if self._over else self._queue.popleft()
