"""Results on their way out: handed over where nobody else reaches them, else copied.

A wrong hand-over is silent corruption: the caller would see its result change, or the
worker what it kept. Reference counts cannot tell who else has an array. So the worker
notes where the array lies, pins that memory, drops every reference of its own, and then
looks whether NumPy has freed it. If it has, nobody can reach it; the pin kept it from
being used again. If not, somebody still can, and it is copied from the pinned memory.
An address that C code kept without a reference cannot be seen.

The same goes for an argument that comes back, as it is or changed in place: it is handed
back if the last view of its loan has died.
"""

from __future__ import annotations

from typing import Protocol

from shmexec.memory.arena import Arena
from shmexec.wire.messages import Ref
from shmexec.wire.sources import AnySource, Source
from shmexec.worker.memory import WorkerMemory


class _Claim(Protocol):
    """Memory that might be handed over; holds no reference to its array."""

    def settle(self, memory: WorkerMemory) -> Ref:
        """Hand it over if nobody reaches it, else copy it."""

    def drop(self) -> None:
        """End it without either."""


class _Born:
    """An array that was born in this worker's arena; its block is pinned."""

    def __init__(self, arena: Arena, start: int, offset: int, nbytes: int) -> None:
        self._arena = arena
        self._start = start
        self._offset = offset
        self._nbytes = nbytes

    def settle(self, memory: WorkerMemory) -> Ref:
        start = self._arena.take(self._start, self._offset, self._nbytes)
        if start is not None:
            return memory.hand_over(start, self._offset, self._nbytes)
        try:
            part = self._arena.segment.part(self._offset, self._nbytes)
            return memory.place(Source(part.data))
        finally:
            self.drop()

    def drop(self) -> None:
        self._arena.unpin(self._start)


class _Lent:
    """An argument, or most of it, in whatever arena its block lies."""

    def __init__(self, ref: Ref) -> None:
        self._ref = ref

    def settle(self, memory: WorkerMemory) -> Ref:
        if memory.end_loan(self._ref):
            return self._ref
        # Its lease is still ours, so the bytes are there, whoever else has them.
        return memory.place(Source(memory.bytes_of_loan(self._ref).data))

    def drop(self) -> None:
        """Nothing is held."""


def place_all(memory: WorkerMemory, sources: list[AnySource]) -> tuple[Ref, ...]:
    """Have every source lie in a block that the parent may take over.

    Args:
        memory: The worker's.
        sources: Emptied, since they hold the arrays. Nobody else may hold them by now.

    Returns:
        Where each of them lies, in order.

    Raises:
        SharedMemoryFull: If the parent grants no more room. Nothing is held then.
    """
    placed: dict[int, Ref] = {}
    claims: dict[int, _Claim] = {}
    number = len(sources)
    try:
        for i, source in enumerate(sources):
            assert isinstance(source, Source)
            claim = _claim(memory, source)
            if claim is not None:
                claims[i] = claim
        # The copies first: what they are made from may be views of what is claimed.
        for i, source in enumerate(sources):
            if i not in claims:
                assert isinstance(source, Source)
                placed[i] = memory.place(source)
        if number:
            del source
        sources.clear()
        for i in list(claims):
            placed[i] = claims.pop(i).settle(memory)
    except BaseException:
        memory.take_back(placed.values())
        raise
    finally:
        for claim in claims.values():
            claim.drop()
    return tuple([placed[i] for i in range(number)])


def _claim(memory: WorkerMemory, source: Source) -> _Claim | None:
    span = source.span()
    if span is None:
        return None
    address, nbytes = span
    pinned = memory.arena.pin(address, nbytes)
    if pinned is not None:
        return _Born(memory.arena, *pinned, nbytes)
    lent = memory.loan_around(address, nbytes)
    return None if lent is None else _Lent(lent)
