"""What runs in the process of a Dask worker: a node, and its one pool.

A node's pool is made when its first call comes. Calls of Dask's threads go through it, so
that as many run at once as the node has threads; what Dask keeps for the node, inputs and
results, lies in shared memory and is given to calls without a copy. No user code runs in
this process, and nothing of the user's is unpickled here but the pool's settings.

If the node is killed, its workers die with it, as those of any pool.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from distributed import Worker, WorkerPlugin, get_worker

from shmexec.cluster.cargo import Cargo
from shmexec.cluster.connecting import refuse_in_process
from shmexec.cluster.failing import CallFailed, failure_of
from shmexec.executor import Executor, OptionsView
from shmexec.figures import Stats
from shmexec.options import CallOptions
from shmexec.runtime.futures import Future
from shmexec.runtime.streams import Stream
from shmexec.wire.objects import Shared
from shmexec.worker import remote
from shmexec.worker.remote import Sealed

_OF_LIMIT = 0.75
"""Of the memory limit that Dask has for a node, what its pool may share."""


class Node(WorkerPlugin):  # type: ignore[misc]  # Dask's classes are not looked at
    """One executor's pool on one node.

    Args:
        name: Of the executor among all that use the cluster.
        settings: For :class:`shmexec.Executor`; by default it has as many workers as the
            node has threads.
    """

    def __init__(self, name: str, settings: Mapping[str, Any]) -> None:
        self.name = name
        self._settings = dict(settings)

    def setup(self, worker: Worker) -> None:
        """Called when the node joins."""
        self._threads = worker.state.nthreads
        self._address = worker.address
        self._budget = _budget(worker)
        # Guards the next three; held while the pool is made, which waits for nobody.
        self._lock = threading.Lock()
        self._executor: Executor | None = None
        self._closed = False
        self._streams = 0
        self.running: dict[str, Future[Any]] = {}

    async def teardown(self, worker: Worker) -> None:
        """Called when the executor is shut down, or the node leaves."""
        with self._lock:
            executor, self._executor, self._closed = self._executor, None, True
        if executor is not None:
            # Calls that still run belong to nobody any more.
            for future in list(self.running.values()):
                future.cancel(running=True)
            await asyncio.to_thread(executor.shutdown, cancel_futures=True)

    def executor(self) -> Executor:
        """The pool, made if this is the first call.

        Raises:
            ClusterError: If this is no process of its own.
        """
        with self._lock:
            if self._closed:
                msg = f"node {self._address}: the executor was shut down"
                raise RuntimeError(msg)
            if self._executor is None:
                refuse_in_process(self._address)  # it may have come later
                settings = {"max_workers": self._threads, **self._settings}
                if settings["max_shared_memory"] is None:
                    settings["max_shared_memory"] = self._budget
                self._executor = Executor(**settings)
            return self._executor

    def stats(self) -> tuple[int, int, Any]:
        """Process id, threads, and figures of the pool, if there is one."""
        with self._lock:
            executor = self._executor
        figures = None if executor is None else executor.stats()
        return os.getpid(), self._threads, figures

    def count_stream(self, change: int) -> None:
        """A stream was opened, or has ended: it has a worker beside those of calls.

        Dask does not know that it runs, and sends as many calls as ever.
        """
        executor = self.executor() if change > 0 else self._executor
        with self._lock:
            self._streams += change
            if executor is not None and not self._closed:
                executor.resize(self._threads + self._streams)

    def view(self, options: CallOptions) -> OptionsView:
        """The pool with the settings of a call."""
        return self.executor().options(
            timeout=options.timeout, retries=options.retries, priority=options.priority
        )

    def run(
        self, key: str, options: CallOptions, call: np.ndarray, given: Sequence[Any]
    ) -> Cargo:
        """Run a call and wait for it; its worker or the time-out ends that."""
        future = self.view(options).submit(remote.run, call, given)
        self.running[key] = future
        try:
            return cargo_of(future.result())
        finally:
            self.running.pop(key, None)

    def stop(self, key: str) -> None:
        """Stop a call if it runs here."""
        future = self.running.get(key)
        if future is not None:
            future.cancel(running=True)


def _budget(worker: Worker) -> int | None:
    """Shared memory for a node's pool: more than Dask lets results take.

    From 0.6 of its limit on, as Dask's default is, it moves them to its disk.
    """
    limit = worker.memory_manager.memory_limit
    return int(_OF_LIMIT * limit) if limit else None


def cargo_of(sealed: remote.Sealed) -> Cargo:
    """What came of a call.

    Raises:
        CallFailed: If that is an exception.
    """
    if sealed.form == "error":
        raise CallFailed(sealed.data.tobytes(), from_call=True)
    return Cargo(*sealed)


def node_of(name: str, worker: Worker | None = None) -> Node:
    """The node of an executor, in this process."""
    worker = worker or get_worker()
    found = worker.plugins.get(name)
    if found is None:
        msg = f"{worker.address} is no node of executor {name!r}: that was shut down"
        raise RuntimeError(msg)
    assert isinstance(found, Node)
    return found


def _given(
    call: Cargo | None, parts: Sequence[Cargo]
) -> tuple[np.ndarray, list[Sealed | Shared[None]]]:
    """A call, and what is beside it, as workers get them."""
    if call is None:
        call, *parts = parts
    return call.placed(), [part.part() for part in parts]


def run_call(
    name: str,
    key: str,
    options: CallOptions,
    call: Cargo | None,
    parts: Sequence[Cargo],
) -> Cargo:
    """Run a call; what Dask executes in one of its threads.

    Args:
        name: Of the executor.
        key: Of the call.
        options: Its settings.
        call: The call; None if it is the first one of the parts.
        parts: What it needs.

    Raises:
        CallFailed: Whatever it fails with.
    """
    try:
        return node_of(name).run(key, options, *_given(call, parts))
    except CallFailed:
        raise
    except BaseException as error:
        raise failure_of(error) from None


def run_everywhere(
    name: str, call: Cargo | None, parts: Sequence[Cargo]
) -> list[Cargo]:
    """Run a call once in each worker of this node.

    Raises:
        CallFailed: If it fails in one.
    """
    try:
        executor = node_of(name).executor()
        return [*map(cargo_of, executor.broadcast(remote.run, *_given(call, parts)))]
    except CallFailed:
        raise
    except BaseException as error:
        raise failure_of(error) from None


def stop_call(name: str, key: str, dask_worker: Worker) -> None:
    """Stop a call if it runs here; what Dask runs on all nodes."""
    node = dask_worker.plugins.get(name)
    if isinstance(node, Node):
        node.stop(key)


def stats_of(name: str, dask_worker: Worker) -> tuple[int, int, Any]:
    """Figures of this node; what Dask runs on all nodes."""
    return node_of(name, dask_worker).stats()


class NodeStream:
    """A call that yields, on its node: a Dask actor, asked for item after item.

    Args:
        name: Of the executor.
        options: Of the call.
        buffersize: Items that the worker may be ahead.
        call: The call; None if it is the first one of the parts.
        parts: What it needs.
    """

    def __init__(
        self,
        name: str,
        options: CallOptions,
        buffersize: int,
        call: Cargo | None,
        parts: Sequence[Cargo],
    ) -> None:
        self._counted = False
        data, given = _given(call, parts)
        self._node = node_of(name)
        self._node.count_stream(1)
        self._counted = True
        pool = self._node.view(options)
        self._stream = pool.stream(remote.iterate, data, given, buffersize=buffersize)

    async def take(self, _number: int) -> Cargo | None:
        """The next item, None at the end.

        Raises:
            CallFailed: If there is an exception in its place.
        """
        try:
            item = await _next_of(self._stream)
        except CallFailed:
            self._uncount()
            raise
        if item is None:
            self._uncount()
        return item

    async def end(self, _number: int, cancel: bool) -> None:
        """Have the generator closed; or stop it, also in the middle of a step."""
        _end(self._stream, cancel)
        self._uncount()

    def _uncount(self) -> None:
        counted, self._counted = self._counted, False
        if counted:
            self._node.count_stream(-1)

    def __del__(self) -> None:
        """Whoever wanted it is gone."""
        self._uncount()


class NodeActor:
    """An instance in a worker of a node: a Dask actor.

    Args:
        name: Of the executor.
        options: Of its calls.
        settings: For :meth:`shmexec.Executor.actor`.
        cls: What the class is called.
        call: Of the class; None if it is the first one of the parts.
        parts: What that needs.
    """

    def __init__(
        self,
        name: str,
        options: CallOptions,
        settings: Mapping[str, Any],
        cls: str,
        call: Cargo | None,
        parts: Sequence[Cargo],
    ) -> None:
        data, given = _given(call, parts)
        pool = node_of(name).view(options)
        self._actor = pool.actor(remote.RemoteInstance, cls, data, given, **settings)
        self._next = 0
        self._turn = asyncio.Condition()
        self._streams: dict[int, Stream[Any]] = {}

    async def call(self, number: int, call: Cargo) -> Cargo:
        """Call a method; ``number`` counts the calls of this actor from 0."""
        start = partial(self._actor.call, "run")
        future = await self._enter(number, start, call)
        try:
            return cargo_of(await asyncio.wrap_future(future))
        except CallFailed:
            raise
        except Exception as error:
            raise failure_of(error) from None

    async def open(self, number: int, call: Cargo, buffersize: int) -> None:
        """Call a method that yields; that number is the stream's."""
        start = partial(self._actor.stream, "iterate", buffersize=buffersize)
        self._streams[number] = await self._enter(number, start, call)

    async def _enter(
        self, number: int, start: Callable[[np.ndarray], Any], call: Cargo
    ) -> Any:
        """Submit a call when its turn has come: messages may overtake one another.

        The call before wakes it; if the message of that one was lost, so was the
        connection to whoever waits for this one.
        """
        async with self._turn:
            await self._turn.wait_for(lambda: self._next == number)
            try:
                # It may have to wait for room in shared memory.
                return await asyncio.to_thread(start, call.placed())
            except Exception as error:
                raise failure_of(error) from None
            finally:
                self._next += 1
                self._turn.notify_all()

    async def take(self, number: int) -> Cargo | None:
        """The next item of a stream, None at the end.

        Raises:
            CallFailed: If there is an exception in its place.
        """
        try:
            item = await _next_of(self._streams[number])
        except CallFailed:
            self._streams.pop(number, None)
            raise
        if item is None:
            self._streams.pop(number, None)
        return item

    async def end(self, number: int, cancel: bool) -> None:
        """Have a stream closed, or stopped, if it has not ended by itself."""
        stream = self._streams.pop(number, None)
        if stream is not None:
            _end(stream, cancel)

    async def state(self) -> str:
        """See :attr:`shmexec.Actor.state`."""
        return self._actor.state

    async def stats(self) -> Stats:
        """See :meth:`shmexec.Actor.stats`."""
        return self._actor.stats()[0]

    async def close(self, number: int, cancel_futures: bool) -> None:
        """Close it, after the calls before; returns when its worker is gone."""
        async with self._turn:
            await self._turn.wait_for(lambda: self._next == number)
        await asyncio.to_thread(self._actor.close, cancel_futures=cancel_futures)


async def _next_of(stream: Stream[Any]) -> Cargo | None:
    try:
        return cargo_of(await anext(stream))
    except StopAsyncIteration:
        return None
    except CallFailed:
        raise
    except Exception as error:
        raise failure_of(error) from None


def _end(stream: Stream[Any], cancel: bool) -> None:
    if cancel:
        stream.cancel()
    else:
        stream.close()
