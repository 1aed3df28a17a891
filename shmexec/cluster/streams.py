"""Streams from a cluster: a coroutine here asks the node for item after item.

It runs on the loop of Dask's client and asks as long as the consumer gives credit. Who
wakes it: the node's answer, or the loss of the node, which Dask tells; the consumer, who
gives credit or closes the stream; the executor's shutdown, which closes it; the end of the
loop, which cancels the coroutine.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from concurrent.futures import Future as BaseFuture
from typing import TYPE_CHECKING, Any

from shmexec.cluster.failing import CallFailed
from shmexec.errors import ClusterError, PoolClosed, WorkerDied
from shmexec.runtime.futures import Future
from shmexec.runtime.streams import Stream

if TYPE_CHECKING:
    from distributed import Future as DaskFuture

    from shmexec.cluster.calls import Calls


class Pump:
    """What a stream has in the place of a pool.

    Args:
        calls: Of the executor.
        remote: The Dask actor that has the stream.
        items: Futures of what came, and of what comes next.
        ahead: Items that may come before the consumer takes any.
        number: Of the stream there.
    """

    def __init__(
        self,
        calls: Calls,
        remote: DaskFuture[Any],
        items: deque[Future[Any]],
        ahead: int,
        number: int,
    ) -> None:
        self._calls = calls
        self._remote = remote
        self._items = items
        self._number = number
        # All of these are touched on the client's loop only.
        self._credit = ahead
        self._closed: bool | None = None  # else whether it was cancelled
        self._wake = asyncio.Event()
        self.ended: Future[Any] = running()
        calls.pumps.add(self)
        calls.client.loop.add_callback(self._run)

    # -- what the stream calls, in any thread ----------------------------------------

    def give_credit(self, _call: int, number: int) -> None:
        """So many more items may come."""
        self._calls.client.loop.add_callback(self._add, number)

    def close_stream(self, _call: int) -> None:
        """Nobody wants more."""
        self._calls.client.loop.add_callback(self._end, False)

    drop_stream = close_stream

    def cancel_stream(self) -> None:
        """The same, and a step that is under way shall be stopped."""
        self._calls.client.loop.add_callback(self._end, True)

    # -- on the loop -----------------------------------------------------------------

    def _add(self, number: int) -> None:
        self._credit += number
        self._wake.set()

    def _end(self, cancel: bool) -> None:
        if self._closed is None:
            self._closed = cancel
        self._wake.set()

    async def _run(self) -> None:
        actor = None
        try:
            actor = await actor_of(self._calls, self._remote)
            while await self._may_take():
                if not await self._take(actor):
                    return
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
            self._items[-1].set_exception(lost(error))  # whoever iterates gets it
        finally:
            try:
                if self._closed is not None:
                    await self._say_closed(actor)
            finally:
                del self._remote  # Dask lets go of the actor
                self._calls.pumps.discard(self)
                self.ended.set_result(None)

    async def _may_take(self) -> bool:
        while self._credit <= 0 and self._closed is None:
            self._wake.clear()
            await self._wake.wait()
        return self._closed is None

    async def _take(self, actor: Any) -> bool:
        """Get an item, or the end."""
        asked = asyncio.ensure_future(ask(self._calls, actor, "take", self._number))
        woken = asyncio.ensure_future(self._closing())
        await asyncio.wait((asked, woken), return_when=asyncio.FIRST_COMPLETED)
        woken.cancel()
        if not asked.done():
            asked.cancel()
            return False
        cargo = asked.result()
        self._credit -= 1
        if cargo is None:
            self._items[-1].set_result(None)
            return False
        opened = self._calls.helpers.submit(cargo.open)
        value = await asyncio.wrap_future(opened)
        future = self._items[-1]
        self._items.append(running())
        future.set_result(value)
        return True

    async def _closing(self) -> None:
        while self._closed is None:
            self._wake.clear()
            await self._wake.wait()

    async def _say_closed(self, actor: Any) -> None:
        if actor is not None:
            # If the node or the client is gone, so is the stream.
            with contextlib.suppress(Exception, asyncio.CancelledError):
                await ask(self._calls, actor, "end", self._number, self._closed)
        if not self._items[-1].done():
            msg = "the executor was shut down before the stream had ended"
            self._items[-1].set_exception(PoolClosed(msg))


class ClusterStream(Stream[Any]):
    """A :class:`shmexec.Stream` whose generator runs on a node."""

    def __init__(
        self, calls: Calls, remote: DaskFuture[Any], buffersize: int, number: int = 0
    ) -> None:
        items = deque([running()])
        self._pump = Pump(calls, remote, items, buffersize, number)
        pool: Any = self._pump
        super().__init__(pool, 0, items, buffersize)

    def cancel(self) -> None:
        """Stop the call also in the middle of a step; its worker is replaced then."""
        if not self._ended:
            self._ended = True
            self._pump.cancel_stream()


def running() -> Future[Any]:
    """A future that only whoever made it resolves."""
    future: Future[Any] = Future()
    future.begin()
    return future


def client_gone() -> ClusterError:
    """What to raise if the client was closed before what goes through it."""
    return ClusterError(
        "the executor's client is closed: nothing can be asked of nodes"
    )


async def actor_of(calls: Calls, remote: DaskFuture[Any]) -> Any:
    """The handle of a Dask actor, once it was made; on the client's loop."""
    made: BaseFuture[Any] = calls.helpers.submit(remote.result)
    return await asyncio.wrap_future(made)


async def ask(calls: Calls, actor: Any, method: str, *args: Any) -> Any:
    """Call a method of a Dask actor; on the client's loop."""
    with calls.client.as_current():  # it looks for one when it is first used
        answer = getattr(actor, method)(*args)
    return await answer


def lost(error: BaseException) -> BaseException:
    """What to raise for what Dask says of an actor, or the end of the client's loop."""
    if isinstance(error, CallFailed):
        return error.error()
    if isinstance(error, asyncio.CancelledError):
        return client_gone()
    msg = f"the node that held it is gone: {type(error).__name__}: {error}"
    return WorkerDied(msg)
