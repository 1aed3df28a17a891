"""Results on their way from worker to worker: the parent passes them on unopened.

A :class:`Parcel` is what the parent has of such a result: its pickle, and the loans of
the blocks beside it. Given to a call, at any depth, it arrives as the object that was
returned, on the very same blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shmexec.wire import foreign
from shmexec.wire.pickling import load
from shmexec.wire.sources import PlacedSource


class Parcel:
    """An object that stays pickled in this process.

    It is given to one call: that may write to its blocks. Its leases end when it dies,
    and when the views of whoever it was delivered to have died.

    Attributes:
        payload: The pickle; None if the last one of the sources is.
        sources: Where the buffers lie.
        objects: Shared objects in it, see :mod:`shmexec.wire.objects`.
    """

    __slots__ = ("objects", "payload", "sources")

    def __init__(
        self,
        payload: bytes | None,
        sources: Sequence[PlacedSource],
        objects: Sequence[Any] = (),
    ) -> None:
        self.payload = payload
        self.sources = sources
        self.objects = objects


def _reduce_parcel(parcel: Parcel, buffers: Any) -> Any:
    buffers.objects.extend(parcel.objects)
    return open_parcel, (parcel.payload, *map(buffers.hole, parcel.sources))


def open_parcel(payload: bytes | None, *buffers: Any) -> Any:
    """The object in a parcel; called where it is delivered."""
    if payload is None:
        *buffers, payload = buffers  # type: ignore[assignment]
    return load(payload, buffers)


class ForWorker:
    """In a worker: a result that another worker is to open. Arrives as its value."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


def _reduce_for_worker(result: ForWorker, buffers: Any) -> Any:
    buffers.for_worker = True
    return _same, (result.value,)


def _same(value: Any) -> Any:
    return value


foreign.reducers[Parcel] = _reduce_parcel
foreign.reducers[ForWorker] = _reduce_for_worker
