"""What a node keeps of an actor's streams."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from shmexec.cluster.failing import CallFailed
from shmexec.cluster.node import NodeActor
from shmexec.worker.remote import Sealed


class FakeStream:
    def __init__(self, *items):
        self._items = list(items)
        self.closed = False

    async def __anext__(self):
        if not self._items:
            raise StopAsyncIteration
        item = self._items.pop(0)
        if isinstance(item, Exception):
            raise item
        return item

    def close(self):
        self.closed = True


ITEM = Sealed("object", np.zeros(1, np.uint8))


@pytest.fixture
def actor():
    made = object.__new__(NodeActor)
    made._streams = {0: FakeStream(ITEM), 1: FakeStream(KeyError("x")), 2: FakeStream()}
    return made


def test_streams_that_end_by_themselves_are_forgotten(actor):
    async def take_all():
        assert await actor.take(0) is not None
        assert await actor.take(0) is None
        with pytest.raises(CallFailed):
            await actor.take(1)
        await actor.end(0, cancel=False)  # it was on its way

    asyncio.run(take_all())
    assert [*actor._streams] == [2]


def test_one_that_is_ended_is_closed(actor):
    stream = actor._streams[2]
    asyncio.run(actor.end(2, cancel=False))
    assert stream.closed
    assert 2 not in actor._streams
