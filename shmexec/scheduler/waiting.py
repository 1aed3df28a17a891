"""Calls that wait for a worker, in the order in which they get one.

A higher priority comes first; within one, first come, first served. A call that is for
one worker waits apart from the others. One that is cancelled while it waits is left in
its place, and passed over when its turn comes; when most places are of such calls they
are cleared, so that no queue grows while calls come and are cancelled behind a long one.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Container, Hashable, Iterator, Mapping

from shmexec.scheduler.entities import Call
from shmexec.scheduler.records import CallState

_BITS = 64
_NUMBER = (1 << _BITS) - 1

LEFT_AT_LEAST = 1024
"""Places of calls that wait no more, before the others are moved up."""


def place_of(number: int, priority: int) -> int:
    """A call's place in the queue: the lower, the earlier.

    For the usual priority it is the call's number itself: very many may wait, and this
    way none of them needs a tuple.
    """
    return number if not priority else (-priority << _BITS) + number


def priority_of(place: int) -> int:
    """The priority of the call that has this place."""
    return -(place >> _BITS)


class Waiting:
    """The numbers of pending calls.

    Args:
        calls: Those that are not finished, by number.
    """

    def __init__(self, calls: Mapping[int, Call]) -> None:
        self._calls = calls
        self.queue: list[int] = []  # places; see place_of
        self._left = 0  # of calls that do not wait any more
        # By worker. Any of them may leave, and the first one goes: at no cost.
        self.pinned: dict[int, OrderedDict[int, None]] = {}

    def add(self, call: Call) -> None:
        """Give a pending call its place, which is its old one if it had one before."""
        if call.pinned is None:
            heapq.heappush(self.queue, call.order)
        else:
            self.pinned.setdefault(call.pinned, OrderedDict())[call.id] = None

    def _at(self, place: int) -> Call | None:
        """The call of a place, if it still waits."""
        call = self._calls.get(place & _NUMBER)
        return call if call is not None and call.state is CallState.PENDING else None

    def take(self) -> Call | None:
        """The next call that any worker may run."""
        queue = self.queue
        while queue:
            call = self._at(heapq.heappop(queue))
            if call is not None:
                return call
            self._left -= 1
        return None

    def take_alike(self, kind: Hashable, at_most: int) -> list[Call]:
        """The next calls as long as they are of this kind."""
        found: list[Call] = []
        queue = self.queue
        while queue and len(found) < at_most:
            call = self._at(queue[0])
            if call is None:
                self._left -= 1
            elif call.kind == kind:
                found.append(call)
            else:
                break
            heapq.heappop(queue)
        return found

    def take_pinned(self, free: Container[int]) -> Iterator[tuple[int, Call]]:
        """Calls whose own worker is free, which is looked at anew for each."""
        for number, waiting in list(self.pinned.items()):
            while waiting and number in free:
                yield number, self._calls[waiting.popitem(last=False)[0]]
            if not waiting:
                del self.pinned[number]

    def count(self) -> int:
        """How many wait for any worker."""
        return len(self.queue) - self._left

    def count_pinned(self) -> int:
        """How many wait for a worker of their own."""
        return sum(map(len, self.pinned.values()))

    def leave(self, call: Call) -> None:
        """A call that had a place is not wanted any more."""
        if call.pinned is not None:
            del self.pinned[call.pinned][call.id]
            return
        self._left += 1
        queue = self.queue
        # Each time at least half of it goes: a step or two for each call that left.
        if self._left >= LEFT_AT_LEAST and self._left * 2 > len(queue):
            queue[:] = [place for place in queue if self._at(place) is not None]
            heapq.heapify(queue)
            self._left = 0

    def clear(self) -> None:
        """None of them is wanted any more."""
        self.queue.clear()
        self._left = 0
        self.pinned.clear()

    def fill(self, calls: list[Call]) -> None:
        """These are all that wait."""
        self.clear()
        for call in calls:
            self.add(call)

    def abandon(self, worker: int) -> list[Call]:
        """Calls that waited for a worker which is gone."""
        return [self._calls[number] for number in self.pinned.pop(worker, ())]
