"""A pool's streams: how far each may run ahead, and that nobody reads one any more.

The caller holds the pool's lock, for all of it but :attr:`Crediting.dropped`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from shmexec.runtime.calls import PackedCall
from shmexec.runtime.sending import Sending
from shmexec.runtime.tables import Tables
from shmexec.scheduler import records as r


class Crediting:
    """See the module.

    Args:
        tables: The pool's.
        sending: Tells workers.
        handle: Tells the scheduler of an event, and does what it says.
    """

    def __init__(
        self, tables: Tables, sending: Sending, handle: Callable[[r.Event], None]
    ) -> None:
        self._calls = tables.calls
        self._handle = handle
        self.give = sending.give_credit
        self.dropped: deque[int] = deque()
        """Streams without a consumer: finalizers append to it."""

    def close(self, number: int) -> None:
        """Nobody wants more of a stream."""
        call = self._calls.get(number)
        if call is not None:
            call.items = None
            self._end(call)

    def close_dropped(self) -> None:
        """The same for those that finalizers told of."""
        while self.dropped:
            self.close(self.dropped[0])
            self.dropped.popleft()

    def end_all(self) -> None:
        """Have all end: one that is not read to its end would keep the pool alive."""
        for call in [call for call in self._calls.values() if call.credit]:
            self._end(call)

    def _end(self, call: PackedCall) -> None:
        call.closed = True
        self._handle(r.Cancelled(call.number))  # if it has not begun
        self.give(call.number, 0)
