"""Pipelines: stages in workers of their own, and the iterator over what comes out.

Each stage is an actor. How items get from one to the next is in
:mod:`shmexec.runtime.conveyor`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from shmexec.actors import Actor, make_actor
from shmexec.closing import AsyncClosing, Closing, close_apart
from shmexec.errors import SerializationError, SharedMemoryFull
from shmexec.figures import Stats
from shmexec.options import WORKERS_AT_MOST, CallOptions, Options, positive_int
from shmexec.runtime.conveyor import Conveyor, Replica, Ticket
from shmexec.scheduler.flow import Entry
from shmexec.wire.explaining import explain
from shmexec.worker.stages import Builder

if TYPE_CHECKING:
    from shmexec.runtime.inline import InlinePool
    from shmexec.runtime.pool import Pool

__all__ = ["Pipeline", "Results", "Stage", "make_pipeline"]


In = TypeVar("In")
Out = TypeVar("Out")


class Stage:
    """A stage of a pipeline, with settings; see :meth:`Executor.pipeline`.

    Args:
        make: A class, or a function of one item.
        *args: Arguments for the class.
        replicas: How many instances of it work on items, each in a worker. Items keep
            their order all the same.
        **kwargs: Keyword arguments for the class.

    Raises:
        TypeError: If it is neither a class nor a function, or a function with arguments.
        ValueError: If there are no replicas.

    Example:
        >>> import numpy as np, shmexec
        >>> shmexec.Stage(np.sqrt, replicas=2)
        <shmexec.Stage sqrt, 2 replicas>
    """

    def __init__(
        self,
        make: Any,
        /,
        *args: Any,
        replicas: int = 1,
        **kwargs: Any,
    ) -> None:
        if not callable(make):
            msg = f"a stage is made of a class or a function, not of {make!r}"
            raise TypeError(msg)
        if isinstance(make, type):
            if not (callable(getattr(make, "process", None)) or _is_called(make)):
                msg = (
                    f"{make.__qualname__} has neither process(item) nor __call__(item): "
                    "a stage needs one of them"
                )
                raise TypeError(msg)
        elif args or kwargs:
            msg = (
                f"stage {_name_of(make)}: only a class can be given arguments; "
                "use functools.partial for a function"
            )
            raise TypeError(msg)
        self.make: Any = make
        self.args: tuple[Any, ...] | None = args if isinstance(make, type) else None
        self.kwargs: dict[str, Any] = kwargs
        self.replicas: int = positive_int("replicas", replicas, WORKERS_AT_MOST)
        self.name: str = _name_of(make)

    @property
    def flushes(self) -> bool:
        """Whether it is to be flushed at the end of a stream.

        Example:
            >>> shmexec.Stage(np.sqrt).flushes
            False
        """
        return self.args is not None and callable(getattr(self.make, "flush", None))

    def __repr__(self) -> str:
        many = "" if self.replicas == 1 else f", {self.replicas} replicas"
        return f"<shmexec.Stage {self.name}{many}>"


def _is_called(cls: type) -> bool:
    return any("__call__" in vars(each) for each in cls.__mro__)


def _name_of(make: Any) -> str:
    make = getattr(make, "func", make)  # of a partial
    name: str | None = getattr(make, "__qualname__", getattr(make, "__name__", None))
    return (name or type(make).__qualname__).rpartition("<locals>.")[2]


class _Station(NamedTuple):
    """A stage and the actor that it is."""

    name: str
    flushes: bool
    actor: Actor[Any]

    @property
    def replicas(self) -> Sequence[Replica]:
        """Its instances."""
        return self.actor._replicas  # noqa: SLF001

    def close(self, *, wait: bool) -> None:
        """See `Actor.close`."""
        self.actor.close(wait)


class Results(Closing, Iterator[Out], AsyncIterator[Out]):
    """What :meth:`Pipeline.map` returns: iterate over it, once.

    ``for`` and ``async for`` alike. Leaving the loop, dropping the iterator or
    :meth:`close` drops what is under way; the pipeline goes on with other items.

    Example:
        >>> with ex.pipeline(abs) as pipe, pipe.map([-1, -2]) as results:
        ...     next(results), list(results)
        (1, [2])
    """

    def __init__(
        self, conveyor: Conveyor, source: Iterator[Any] | AsyncIterator[Any]
    ) -> None:
        self._over = True
        self._conveyor = conveyor
        self._source = source
        self._numbers = count()
        self._stream = conveyor.begin()
        self._over = False

    def __next__(self) -> Out:
        if isinstance(self._source, AsyncIterator):
            msg = "items come from an asynchronous iterator: use `async for`"
            raise TypeError(msg)
        while not self._over:
            while self._may_read():
                self._read(self._source)
            entry = self._take()
            if entry is not None:
                return self._opened(entry, StopIteration)
            try:
                with self._conveyor.lock:
                    # Woken by whatever moves on.
                    self._conveyor.changed.wait_for(self._has_news)
            except KeyboardInterrupt as interrupt:
                self.close()
                raise interrupt.with_traceback(None) from None
        raise StopIteration

    async def __anext__(self) -> Out:
        try:
            while not self._over:
                while self._may_read():
                    await self._aread()
                entry = self._take()
                if entry is not None:
                    return self._opened(entry, StopAsyncIteration)
                await self._conveyor.news(self._has_news)
        except asyncio.CancelledError:
            self.close()
            raise
        raise StopAsyncIteration

    def _may_read(self) -> bool:
        """Whether there is room for another item; a place is reserved for it then."""
        with self._conveyor.lock:
            stream = self._stream
            return not (stream.has_end or stream.dropped) and self._conveyor.reserve()

    def _has_news(self) -> bool:
        stream = self._stream
        reads = not stream.has_end and self._conveyor.flow.has_room
        return stream.came is not None or stream.dropped or reads

    def _read(self, source: Iterator[Any]) -> None:
        entries: list[Entry] = []
        try:
            entries += self._entries(next(source))
        except StopIteration:
            entries.append(self._end())
        except Exception as error:  # noqa: BLE001  (it is raised at its place)
            entries += self._failed(error)
        finally:
            self._conveyor.enter(*entries)

    async def _aread(self) -> None:
        entries: list[Entry] = []
        try:
            source = self._source
            item = (
                await anext(source)
                if isinstance(source, AsyncIterator)
                else next(source)
            )
            try:
                entries += self._entries(item)
            except SharedMemoryFull:
                # There it may wait for room.
                entries += await asyncio.to_thread(self._entries, item)
        except (StopIteration, StopAsyncIteration):
            entries.append(self._end())
        except Exception as error:  # noqa: BLE001
            entries += self._failed(error)
        finally:
            self._conveyor.enter(*entries)

    def _entries(self, item: Any) -> list[Entry]:
        ticket = Ticket(next(self._numbers))
        return [self._conveyor.sealed(self._stream, ticket, item)]

    def _failed(self, error: Exception) -> list[Entry]:
        return [Entry(self._stream, error=error), self._end()]

    def _end(self) -> Entry:
        return Entry(self._stream, ends=True)

    def _take(self) -> Entry | None:
        """What came, if something did."""
        stream = self._stream
        with self._conveyor.lock:
            stream.wanted = stream.came is None
        self._conveyor.advance()
        with self._conveyor.lock:
            if stream.dropped:
                self._over = True
                self._conveyor.check_open()
            entry, stream.came = stream.came, None
            return entry

    def _opened(self, entry: Entry, stop: type[Exception]) -> Out:
        if entry.ends:
            self._over = True
            with self._conveyor.lock:
                self._conveyor.active = None
            raise stop
        if entry.error is None:
            value: Out = entry.value
            return value
        self.close()
        try:
            raise entry.error
        finally:
            del entry  # its traceback refers to this frame

    def close(self) -> None:
        """Drop what is under way. Does not wait for it; harmless at the end.

        The stages are flushed all the same, so that nothing of this comes up later.

        Example:
            >>> with ex.pipeline(abs) as pipe:
            ...     results = pipe.map(range(1_000_000))
            ...     next(results)
            ...     results.close()
            0
        """
        if not self._over:
            self._over = True
            self._conveyor.leave(self._stream)

    async def aclose(self) -> None:
        """As :meth:`close`; ``contextlib.aclosing`` calls it.

        Example:
            >>> from contextlib import aclosing
            >>> async def main():
            ...     async with ex.pipeline(abs) as pipe, aclosing(pipe.map([-1, -2])) as results:
            ...         return await anext(results)
            >>> asyncio.run(main())
            1
        """
        self.close()

    def __del__(self) -> None:
        if not self._over and not sys.is_finalizing():
            # A finalizer takes no lock: this thread may have it.
            self._stream.forsaken = True
            close_apart(partial(self._conveyor.leave, self._stream))


class Pipeline(AsyncClosing, Generic[In, Out]):
    """Stages in workers of their own, chained; made by :meth:`Executor.pipeline`.

    Items go from worker to worker by reference: their arrays never come to this
    process in between. Items keep their order. Before each stage at most ``buffersize``
    of them wait.

    If a stage raises, or its worker dies, that item fails, with a note that names stage
    and item; other items go on. A worker that died is replaced, and its instance built
    anew: its state starts afresh.

    At the end of each stream the method ``flush()`` of the first stage is called, if it
    has one, once for each replica. What it returns or yields, if not None, goes on to
    the other stages, which are flushed thereafter in their turn.

    Dropping the pipeline, or shutting its executor down, closes it.

    Example:
        >>> with ex.pipeline(np.sqrt, np.negative) as pipe:
        ...     [float(y) for y in pipe.map([1.0, 4.0])], float(pipe.submit(9.0).result())
        ([-1.0, -2.0], -3.0)
    """

    def __init__(self, stations: Sequence[_Station], conveyor: Conveyor) -> None:
        self._stations = stations
        self._conveyor = conveyor

    def map(self, items: Iterable[In] | AsyncIterable[In]) -> Results[Out]:
        """Send items through all stages; an iterator over the results, in order.

        It reads items only as far as there is room for them, while a result is asked for.
        After the last one the stages are flushed. There is one such iterator at a time.

        If an item fails, its exception is raised at its place and the iterator is
        finished. What is then under way is dropped, as it is when the iterator is left
        early; the stages are flushed, and that is dropped too.

        Args:
            items: The items; if asynchronous, the results are for ``async for`` only.

        Raises:
            RuntimeError: If another one is not finished.
            PoolClosed: After :meth:`close`.

        Example:
            >>> with ex.pipeline(abs) as pipe:
            ...     list(pipe.map(range(-2, 1)))
            [2, 1, 0]
        """
        source: Iterator[Any] | AsyncIterator[Any]
        source = aiter(items) if isinstance(items, AsyncIterable) else iter(items)
        return Results(self._conveyor, source)

    def submit(self, item: In) -> Future[Out]:
        """Send one item; a future of what the last stage makes of it.

        Arrays behave as if they were copied when this returns. Waits while there is no
        room before the first stage: items keep their order, so results of :meth:`map`
        that nobody takes hold it up, too. (Take them in another thread, or first.) The
        future can be cancelled until its item begins.

        Raises:
            QueueFull: If there is no room, in a callback or under an event loop.
            SharedMemoryFull: If there is no room in shared memory and waiting cannot help.
            PoolClosed: After :meth:`close`.

        Example:
            >>> with ex.pipeline(abs) as pipe:
            ...     pipe.submit(-2).result()
            2
        """
        return self._conveyor.submit(item)

    def flush(self) -> list[Out]:
        """Flush the stages, behind all items so far; what comes out.

        Example:
            >>> class Total:
            ...     total = 0
            ...     def process(self, item):
            ...         self.total += item
            ...         return self.total
            ...     def flush(self):
            ...         return f"{self.total} in all"
            >>> with ex.pipeline(Total) as pipe:
            ...     pipe.submit(1).result(), pipe.submit(2).result(), pipe.flush()
            (1, 3, ['3 in all'])
        """
        return list(self.map(()))

    @property
    def replicas(self) -> int:
        """How many workers it has; none once it is closed.

        Example:
            >>> with ex.pipeline(shmexec.Stage(abs, replicas=2), len) as pipe:
            ...     pipe.replicas
            3
        """
        if self._conveyor.closed:
            return 0
        return sum(len(station.replicas) for station in self._conveyor.stations)

    def stats(self) -> tuple[tuple[Stats, ...], ...]:
        """For each stage, the figures of each replica, as :meth:`Executor.stats`.

        Example:
            >>> with ex.pipeline(abs) as pipe:
            ...     _ = pipe.submit(-2).result()
            ...     [[replica.done for replica in stage] for stage in pipe.stats()]
            [[1]]
        """
        return tuple(station.actor.stats() for station in self._stations)

    def _dump(self) -> str:
        """See `Executor.dump`."""
        return "\n".join(station.actor._dump() for station in self._stations)  # noqa: SLF001

    def close(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more items; those submitted still go through, then the workers end.

        An iterator that is being read is dropped.

        Args:
            wait: Return only when all is done and the workers are gone.
            cancel_futures: Cancel items that no stage has begun with.

        Example:
            >>> pipe = ex.pipeline(abs)
            >>> future = pipe.submit(-2)
            >>> pipe.close()
            >>> future.result()
            2
        """
        self._conveyor.close(cancel=cancel_futures)
        if wait:
            self._conveyor.wait_for_end()

    def _pools(self) -> list[Pool | InlinePool]:
        """See `Executor._pools`."""
        return [pool for station in self._stations for pool in station.actor._pools()]  # noqa: SLF001

    def _halt(self) -> None:
        for station in self._stations:
            station.actor._halt()  # noqa: SLF001

    def __repr__(self) -> str:
        names = " -> ".join(station.name for station in self._stations)
        return f"<shmexec.Pipeline {names}>"

    def _repr_html_(self) -> str:
        """For notebooks; of a closed pipeline, too."""
        from shmexec.panels import panel

        return "".join(
            panel(f"Stage {number}: {each.name}", each.actor._glimpses())  # noqa: SLF001
            for number, each in enumerate(self._stations, 1)
        )


def make_pipeline(
    options: Options,
    call: CallOptions,
    stages: Sequence[Any],
    buffersize: int,
    owner: object,
) -> Pipeline[Any, Any]:
    """See :meth:`Executor.pipeline`, which calls it.

    Args:
        options: The executor's.
        call: Of the calls of the stages.
        stages: As the user gives them.
        buffersize: As the user gives it.
        owner: The executor.
    """
    if not stages:
        msg = "a pipeline needs a stage"
        raise TypeError(msg)
    size = positive_int("buffersize", buffersize)
    known = [_as_stage(each) for each in stages]
    stations: list[_Station] = []
    try:
        for index, stage in enumerate(known):
            # In one process nothing is passed on sealed.
            last = options.in_process or index + 1 == len(known)
            actor = _make_actor(options, call, stage, last=last)
            stations.append(_Station(stage.name, stage.flushes, actor))
    except BaseException as error:
        for station in stations:
            station.close(wait=False)
        if isinstance(error, SerializationError):
            number = len(stations)
            what = f"stage {number + 1} of {len(known)} ({known[number].name})"
            raise _explained(error, known[number], what) from error.__cause__
        raise
    return Pipeline(stations, Conveyor(stations, size, owner))


def _explained(
    error: SerializationError, stage: Stage, what: str
) -> SerializationError:
    """The same error in terms of what the stage was made of."""
    parts: dict[str, Any] = {stage.name: stage.make}
    parts |= {f"args[{i}]": arg for i, arg in enumerate(stage.args or ())}
    parts |= {f"kwargs[{key!r}]": value for key, value in stage.kwargs.items()}
    return explain(error.__cause__ or error, parts, what)


def _as_stage(given: Any) -> Stage:
    if isinstance(given, Stage):
        return given
    return Stage(*given) if isinstance(given, tuple) and given else Stage(given)


def _make_actor(
    options: Options, call: CallOptions, stage: Stage, *, last: bool
) -> Actor[Any]:
    builder = Builder(stage.name, stage.make, stage.args, stage.kwargs, last=last)
    return make_actor(
        options,
        call,
        builder,
        (),
        {},
        replicas=stage.replicas,
        max_concurrency=1,
        initialize_timeout=None,
        owner=None,  # the conveyor has it
    )
