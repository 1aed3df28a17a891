"""Calls that are finished, as far as they are remembered: for their stories."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from shmexec.scheduler.entities import Call
from shmexec.scheduler.records import CallState

KEPT = 1000
"""Calls that are kept of either kind: of about half a kilobyte each."""


class Memory:
    """The latest calls that went well, and the latest of those that did not.

    Apart, so that what went wrong is still known when thousands went well since.
    """

    __slots__ = ("_others", "_well", "watch")

    def __init__(self) -> None:
        self._well: deque[Call] = deque(maxlen=KEPT)
        self._others: deque[Call] = deque(maxlen=KEPT)
        self.watch: Callable[[Call], object] | None = None
        """Told of each call that is finished."""

    def keep(self, call: Call) -> None:
        """A call has just finished."""
        # On the busiest path: no more than this.
        history = call.history
        if call.state is CallState.DONE and history is not None and len(history) == 1:
            self._well.append(call)
        else:
            self._others.append(call)
        if self.watch is not None:
            self.watch(call)

    def find(self, number: int) -> Call | None:
        """The call of this number, if it is remembered."""
        for kept in (self._others, self._well):
            for call in kept:
                if call.id == number:
                    return call
        return None
