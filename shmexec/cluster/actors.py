"""Actors on a cluster: each replica is a Dask actor, which holds a local one on its node.

If the node dies, so does the instance: calls of it fail from then on, since its state is
lost. (A worker that dies is replaced on the node, as ever.) What a method is given goes
with the call, and what it returns comes here at once.

What runs on the client's loop is cancelled at the loop's end: whoever waits is told.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from shmexec.actors import Actor
from shmexec.cluster.node import NodeActor
from shmexec.cluster.packing import PackedCall
from shmexec.cluster.streams import (
    ClusterStream,
    actor_of,
    ask,
    client_gone,
    lost,
    running,
)
from shmexec.errors import PoolClosed
from shmexec.runtime.futures import Future
from shmexec.worker.remote import call_method

if TYPE_CHECKING:
    from shmexec.cluster.calls import Calls
    from shmexec.figures import Stats
    from shmexec.options import CallOptions
    from shmexec.runtime.backend import Feeder


class _Replica:
    """One instance, as an :class:`~shmexec.actors.Actor` wants it.

    Args:
        calls: Of the executor.
        options: Of its calls.
        settings: For :meth:`shmexec.Executor.actor`.
        name: Of the class.
        call: Of the class.
    """

    def __init__(
        self,
        calls: Calls,
        options: CallOptions,
        settings: Mapping[str, Any],
        name: str,
        call: PackedCall,
    ) -> None:
        self._calls = calls
        self._loop = calls.client.loop
        self._remote = calls.submit_actor(
            NodeActor, calls.name, options, dict(settings), name, call=call
        )
        self._numbers = itertools.count()
        # Held while a call gets its number and its place on the loop.
        self._lock = threading.Lock()
        self._unfinished: set[Future[Any]] = set()
        self._closed: Future[Any] | None = None
        self._actor: asyncio.Future[Any] | None = None  # on the loop only
        self.feeders: weakref.WeakSet[Feeder] = weakref.WeakSet()

    def submit(
        self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Future[Any]:
        """Call a method."""
        call = PackedCall(None, call_method, (method, *args), dict(kwargs))
        future = running()
        with self._lock:
            self._check_open()
            self._unfinished.add(future)
            self._loop.add_callback(self._run, next(self._numbers), call, future)
        return future

    def stream(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        buffersize: int,
    ) -> ClusterStream:
        """Call a method that yields."""
        call = PackedCall(None, call_method, (method, *args), dict(kwargs))
        opened: Future[Any] = running()
        with self._lock:
            self._check_open()
            number = next(self._numbers)
            self._loop.add_callback(self._open, number, call, opened, buffersize)
        opened.result()
        return ClusterStream(self._calls, self._remote, buffersize, number)

    def _check_open(self) -> None:
        if self._closed is not None:
            msg = "the actor is closed, or its executor is: make another one"
            raise PoolClosed(msg)
        if self._gone():
            raise client_gone()

    def _gone(self) -> bool:
        """Whether the client was closed: a loop that has ended says nothing, ever."""
        return self._calls.client.status in {"closing", "closed"}

    async def _tell(self, method: str, *args: Any) -> Any:
        if self._actor is None:
            self._actor = asyncio.ensure_future(actor_of(self._calls, self._remote))
        return await ask(self._calls, await self._actor, method, *args)

    async def _run(self, number: int, call: PackedCall, future: Future[Any]) -> None:
        try:
            cargo = await self._tell("call", number, call.cargo)
            value = await asyncio.wrap_future(self._calls.helpers.submit(cargo.open))
            future.set_result(value)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
            future.set_exception(lost(error))
        finally:
            self._unfinished.discard(future)

    async def _open(
        self, number: int, call: PackedCall, opened: Future[Any], buffersize: int
    ) -> None:
        try:
            await self._tell("open", number, call.cargo, buffersize)
            opened.set_result(None)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
            opened.set_exception(lost(error))

    def unfinished(self) -> float:
        """Calls that are under way."""
        return len(self._unfinished)

    def state(self) -> str:
        """See :attr:`shmexec.Actor.state`."""
        if self._closed is not None:
            return "closed" if self._closed.done() else "closing"
        if self._remote.status == "pending":
            return "starting"
        try:
            return str(self._ask("state"))
        except Exception:  # noqa: BLE001  (the node is gone)
            return "failed"

    def stats(self) -> Stats:
        """Figures of the instance's pool."""
        figures: Stats = self._ask("stats")
        return figures

    def _ask(self, method: str, *args: Any) -> Any:
        """Call a method of the node's; its answer, or its loss, ends that."""
        answer = self._begin(method, *args)
        return answer.result()

    def _begin(self, method: str, *args: Any) -> Future[Any]:
        answer = running()
        if self._gone():
            answer.set_exception(client_gone())
            return answer

        async def ask() -> None:
            try:
                answer.set_result(await self._tell(method, *args))
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
                answer.set_exception(lost(error))

        self._loop.add_callback(ask)
        return answer

    def dump(self) -> str:
        """See :meth:`shmexec.Executor.dump`."""
        return f"actor on a node: {self.state()}\n"

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        """Close it; calls that were made still run."""
        with self._lock:
            if self._closed is None:
                self._closed = self._begin("close", next(self._numbers), cancel_futures)
        if wait:
            self._closed.exception()  # if the node is gone, so is the instance

    def halt(self) -> None:
        """Close it at once."""
        self.shutdown(wait=False, cancel_futures=True)

    def abandon(self) -> None:
        """Nobody has the handle any more."""
        self.shutdown(wait=False, cancel_futures=False)


def make_actor(
    calls: Calls,
    options: CallOptions,
    cls: object,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    replicas: int,
    settings: Mapping[str, Any],
    owner: object,
) -> Actor[Any]:
    """Build instances on nodes; see :meth:`shmexec.Executor.actor`."""
    if not callable(cls):
        msg = f"an actor is made of a class, not {cls!r}"
        raise TypeError(msg)
    calls.check_open()
    name = str(getattr(cls, "__qualname__", type(cls).__qualname__))
    call = PackedCall(calls.inputs, cls, args, kwargs)
    made: list[Any] = [
        _Replica(calls, options, settings, name, call) for _ in range(replicas)
    ]
    return Actor(name, cls, made, owner)
