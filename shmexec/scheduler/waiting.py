"""Calls that wait for a worker, in the order in which they get one.

A higher priority comes first; within one, first come, first served. A call that is for
one worker waits apart from the others. One that is cancelled, or fails, while it waits
is left in its place, and passed over when its turn comes.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Hashable, Iterator, Mapping

from shmexec.scheduler.entities import Call
from shmexec.scheduler.records import CallState


class Waiting:
    """The numbers of pending calls.

    Args:
        calls: Those that are not finished, by number.
    """

    def __init__(self, calls: Mapping[int, Call]) -> None:
        self._calls = calls
        self.queue: list[tuple[int, int]] = []  # (-priority, id)
        self.pinned: dict[int, list[int]] = {}  # by worker

    def add(self, call: Call) -> None:
        """Give a pending call its place, which is its old one if it had one before."""
        if call.pinned is None:
            heapq.heappush(self.queue, call.order)
        else:
            self.pinned.setdefault(call.pinned, []).append(call.id)

    def take(self) -> Call | None:
        """The next call that any worker may run."""
        queue, calls = self.queue, self._calls
        while queue:
            call = calls.get(heapq.heappop(queue)[1])
            if call is not None and call.state is CallState.PENDING:
                return call
        return None

    def take_alike(self, kind: Hashable, at_most: int) -> list[Call]:
        """The next calls as long as they are of this kind."""
        found: list[Call] = []
        queue, calls = self.queue, self._calls
        while queue and len(found) < at_most:
            call = calls.get(queue[0][1])
            if call is not None and call.state is CallState.PENDING:
                if call.kind != kind:
                    break
                found.append(call)
            heapq.heappop(queue)
        return found

    def take_pinned(self, free: Container[int]) -> Iterator[tuple[int, Call]]:
        """Calls whose own worker is free, which is looked at anew for each."""
        for number, waiting in list(self.pinned.items()):
            while waiting and number in free:
                call = self._calls.get(waiting.pop(0))
                if call is not None and call.state is CallState.PENDING:
                    yield number, call
            if not waiting:
                del self.pinned[number]

    def count_pinned(self) -> int:
        """How many wait for a worker of their own."""
        return sum(map(len, self.pinned.values()))

    def unpin(self, call: Call) -> None:
        """A call for one worker is not wanted any more.

        It must not be counted among those that wait for it.
        """
        if call.pinned is not None:
            self.pinned[call.pinned].remove(call.id)

    def abandon(self, worker: int) -> list[Call]:
        """Calls that waited for a worker which is gone."""
        calls = (self._calls.get(call) for call in self.pinned.pop(worker, ()))
        return [c for c in calls if c is not None and c.state is CallState.PENDING]
