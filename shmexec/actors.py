"""Actors: an instance of a class in a worker of its own, and the handle of it.

Each replica is a private pool of one worker, whose initializer builds the instance; so a
worker that dies is replaced, and the instance rebuilt, as in any pool. Which replica gets
a call is decided here, everything else by the pool.
"""

from __future__ import annotations

import inspect
import threading
import traceback
import warnings
import weakref
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from dataclasses import replace
from functools import partial
from typing import (
    Any,
    Concatenate,
    Generic,
    NoReturn,
    ParamSpec,
    Protocol,
    TypeVar,
    overload,
)

from shmexec import aio
from shmexec.closing import AsyncClosing
from shmexec.errors import SerializationError
from shmexec.figures import Glimpse, Stats
from shmexec.options import (
    CREDIT_AT_MOST,
    WORKERS_AT_MOST,
    ActorOptions,
    CallOptions,
    Options,
    positive_int,
    seconds_or_none,
)
from shmexec.runtime import reports
from shmexec.runtime.backend import Feeder
from shmexec.runtime.futures import Future
from shmexec.runtime.inline import InlinePool
from shmexec.runtime.pool import Pool
from shmexec.runtime.streams import Stream
from shmexec.wire.explaining import explain
from shmexec.worker.actor import Instance, build, call_method, unknown_method

__all__ = ["Actor", "make_actor"]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_NEAREST_FIRST = ("busy", "ready", "starting", "closing", "failed", "closed")


class Actor(AsyncClosing, Generic[T]):
    """Instances of a class, each in a worker of its own; see :meth:`Executor.actor`.

    Methods are called as attributes: ``node.process(x)`` returns a :class:`Future` at
    once. Calls run one after the other in each replica, in the order in which they were
    made. If there are several replicas each call goes to the one that has the fewest
    unfinished calls. :meth:`call` is for methods whose names this handle uses itself.

    ``async`` methods are awaited on the worker's one event loop; generator methods give a
    :class:`Stream` at once.

    If its worker dies the running call fails with :class:`shmexec.WorkerDied`, the
    instance is rebuilt from its arguments, and later calls go on with that: its state
    starts afresh.

    Dropping the handle, or shutting the executor down, closes the actor: calls that were
    made still run, then the instances' ``cleanup()``, if they have one.

    Example:
        >>> from collections import Counter
        >>> with ex.actor(Counter, "abca") as node:
        ...     node.update("bb").result()
        ...     node.most_common(1).result()
        [('b', 3)]
    """

    def __init__(
        self,
        name: str,
        cls: Callable[..., Any],
        replicas: list[_Replica],
        owner: object,
    ) -> None:
        self._name = name
        self._owner = owner  # the executor would close it if it was dropped
        self._methods = _Methods(cls) if isinstance(cls, type) else None
        self._replicas = replicas
        self._choosing = threading.Lock()  # guards the next two
        self._entering = [0] * len(replicas)  # calls on their way into each
        self._turn = 0
        self._finalizer = weakref.finalize(self, _abandon, replicas)
        self._finalizer.atexit = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            msg = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(msg)
        if self._methods is not None:
            self._methods.check(self._name, name)
        return partial(self.call, name)

    @overload
    def call(
        self,
        method: Callable[Concatenate[T, P], Coroutine[Any, Any, R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Future[R]: ...

    @overload
    def call(  # type: ignore[overload-overlap]  # a result may be anything
        self,
        method: Callable[Concatenate[T, P], Iterator[R] | AsyncIterator[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Stream[R]: ...

    @overload
    def call(
        self,
        method: Callable[Concatenate[T, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Future[R]: ...

    @overload
    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any: ...

    def call(
        self, method: str | Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        """Call a method by its name, or by what the class has under that.

        ``node.call(Model.process, x)`` is ``node.process(x)``, but type checkers know
        what it takes and what comes back, which attributes of ``node`` cannot tell them.

        Args:
            method: Its name. Any attribute of the instance that can be called will do.
                Or a method of the class, or of a base class of it: then the instance's
                own of that name is called.
            *args: Its arguments, as for :meth:`Executor.submit`.
            **kwargs: Its keyword arguments.

        Returns:
            A :class:`Future`; for a generator function of the class, plain or ``async``,
            what :meth:`stream` returns.

        Raises:
            PoolBroken: If the instance could not be built.
            PoolClosed: After :meth:`close`, or the executor's shutdown.

        Example:
            >>> from collections import Counter
            >>> with ex.actor(Counter, "abca") as node:
            ...     node.call("total").result(), node.call(Counter.total).result()
            (4, 4)
        """
        name = _name_of(method)
        if self._methods is not None and self._methods.yields(name):
            return self.stream(name, *args, **kwargs)
        return self._submit(name, args, kwargs)

    @overload
    async def acall(
        self,
        method: Callable[Concatenate[T, P], Coroutine[Any, Any, R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...

    @overload
    async def acall(
        self,
        method: Callable[Concatenate[T, P], R],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...

    @overload
    async def acall(self, method: str, /, *args: Any, **kwargs: Any) -> Any: ...

    async def acall(
        self, method: str | Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        """As :meth:`call`, and await the result.

        If the awaiting task is cancelled, so is the call; if it runs it is stopped.

        Example:
            >>> from collections import Counter
            >>> async def main():
            ...     async with ex.actor(Counter, "abca") as node:
            ...         return await node.acall("total")
            >>> asyncio.run(main())
            4
        """
        future = await aio.submit(self._submit, _name_of(method), args, kwargs)
        return await aio.result_of(future)

    @overload
    def stream(
        self,
        method: Callable[Concatenate[T, ...], Iterable[R] | AsyncIterable[R]],
        /,
        *args: Any,
        buffersize: int,
        **kwargs: Any,
    ) -> Stream[R]: ...

    @overload
    def stream(
        self,
        method: Callable[Concatenate[T, P], Iterable[R] | AsyncIterable[R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Stream[R]: ...

    @overload
    def stream(
        self, method: str, /, *args: Any, buffersize: int = 16, **kwargs: Any
    ) -> Stream[Any]: ...

    def stream(  # type: ignore[misc]  # no method can be given its own `buffersize`
        self,
        method: str | Callable[..., Any],
        /,
        *args: Any,
        buffersize: int = 16,
        **kwargs: Any,
    ) -> Stream[Any]:
        """Call a method that yields, or returns something to iterate over.

        Methods that are generator functions of the class do so when they are called as
        others are.

        Args:
            method: Its name, or what the class has under that, see :meth:`call`.
            *args: Its arguments.
            buffersize: How many items it may be ahead of the consumer.
            **kwargs: Its keyword arguments.

        Returns:
            An iterator, also an asynchronous one; see :meth:`Executor.stream`.

        Example:
            >>> from collections import Counter
            >>> with ex.actor(Counter, "abca") as node:
            ...     list(node.stream("elements"))
            ['a', 'a', 'b', 'c']
        """
        ahead = positive_int("buffersize", buffersize, CREDIT_AT_MOST)
        name = _name_of(method)
        index = self._enter()
        try:
            stream = self._replicas[index].stream(name, args, kwargs, ahead)
        finally:
            self._leave(index)
        return stream.keep_alive(self)

    def _submit(
        self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Future[Any]:
        index = self._enter()
        try:
            return self._replicas[index].submit(method, args, kwargs)
        finally:
            self._leave(index)

    def _enter(self) -> int:
        """The replica that the next call goes to."""
        if len(self._replicas) == 1:
            return 0
        with self._choosing:
            # Equals take turns. One that has failed is the last choice.
            self._turn += 1
            count = len(self._replicas)
            order = [(self._turn + i) % count for i in range(count)]
            index = min(order, key=self._load)
            self._entering[index] += 1
            return index

    def _load(self, index: int) -> float:
        each = self._replicas[index]
        return each.unfinished() + self._entering[index]

    def _leave(self, index: int) -> None:
        if len(self._replicas) > 1:
            with self._choosing:
                self._entering[index] -= 1

    @property
    def state(self) -> str:
        """What the actor is at.

        ``"starting"``: instances are being built, or will be for the next call, since
        their workers ended. ``"ready"``, ``"busy"``: no call, or some, are unfinished.
        ``"failed"``: they could not be built; calls raise :class:`PoolBroken`.
        ``"closing"``: calls that were made still run, or ``cleanup()`` does.
        ``"closed"``: the workers have ended.

        Of several replicas the state is the one nearest to use: ready or busy if one is.

        Example:
            >>> node = ex.actor(list)
            >>> node.close()
            >>> node.state
            'closed'
        """
        states = {each.state() for each in self._replicas}
        return next(state for state in _NEAREST_FIRST if state in states)

    @property
    def replicas(self) -> int:
        """How many instances there are, each in a worker.

        Example:
            >>> with ex.actor(list, replicas=2) as node:
            ...     node.replicas
            2
        """
        return len(self._replicas)

    def stats(self) -> tuple[Stats, ...]:
        """Figures of each replica, as :meth:`Executor.stats` has them.

        Example:
            >>> with ex.actor(list, [1, 2]) as node:
            ...     node.copy().result()
            ...     [replica.done for replica in node.stats()]
            [1, 2]
            [1]
        """
        return tuple(each.stats() for each in self._replicas)

    def close(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; those that were made still run, then ``cleanup()``.

        What ``cleanup()`` raises is warned of. If it takes longer than 10 s its worker
        is killed.

        Args:
            wait: Return only when all is done and the workers are gone.
            cancel_futures: Cancel calls that have not begun.

        Example:
            >>> node = ex.actor(list, [1, 2])
            >>> future = node.copy()
            >>> node.close()
            >>> future.result()
            [1, 2]
        """
        self._finalizer.detach()
        for each in self._replicas:  # so that they end at the same time
            each.shutdown(wait=False, cancel_futures=cancel_futures)
        if wait:
            for each in self._replicas:
                each.shutdown(wait=True, cancel_futures=cancel_futures)

    def _dump(self) -> str:
        """See `Executor.dump`. No public name: it would hide a method's."""
        return "\n".join(each.dump() for each in self._replicas)

    def _pools(self) -> list[Pool | InlinePool]:
        """See `Executor._pools`."""
        return [each.pool for each in self._replicas]

    def _halt(self) -> None:
        for each in self._replicas:
            each.halt()

    def __reduce__(self) -> NoReturn:
        msg = (
            "an Actor cannot be pickled: its calls come from the program that made it; "
            "return what is to be called next instead"
        )
        raise TypeError(msg)

    def __dir__(self) -> Iterable[str]:
        return [*super().__dir__(), *(self._methods.names() if self._methods else ())]

    def __repr__(self) -> str:
        number = len(self._replicas)
        many = "" if number == 1 else f", {number} replicas"
        return f"<shmexec.Actor of {self._name}: {self.state}{many}>"

    def _glimpses(self) -> list[Glimpse]:
        """What displays show of each replica. No public name: as `_dump`."""
        return [each.glimpse() for each in self._replicas]

    def _repr_html_(self) -> str:
        """For notebooks; of an actor that is closed or failed, too."""
        from shmexec.panels import panel

        return panel(f"Actor of {self._name}", self._glimpses())


def _name_of(method: str | Callable[..., Any]) -> str:
    name = method if isinstance(method, str) else getattr(method, "__name__", None)
    if not isinstance(name, str):
        msg = f"a method is given by its name, or as Class.method, not as {method!r}"
        raise TypeError(msg)
    return name


class _Methods:
    """What the parent knows of a class."""

    def __init__(self, cls: type) -> None:
        self._cls = cls
        self._yields: dict[str, bool] = {}

    def check(self, cls: str, name: str) -> None:
        """Raise AttributeError if instances have no such method."""
        method = inspect.getattr_static(self._cls, name, None)
        if callable(method) or isinstance(method, (staticmethod, classmethod)):
            return
        if hasattr(self._cls, "__getattr__"):
            return  # it may have what it likes
        if method is not None:
            msg = (
                f"{cls}.{name} is no method: add one that returns it, "
                f"or node.call({name!r}, ...) if instances make it one"
            )
            raise AttributeError(msg)
        msg = (
            f"{unknown_method(cls, name, self.names())}. What only instances have is "
            f"called by node.call({name!r}, ...)"
        )
        raise AttributeError(msg)

    def yields(self, name: str) -> bool:
        """Whether the method is a generator function, plain or ``async``."""
        known = self._yields.get(name)
        if known is None:
            method = getattr(self._cls, name, None)
            known = inspect.isgeneratorfunction(method)
            known = self._yields[name] = known or inspect.isasyncgenfunction(method)
        return known

    def names(self) -> list[str]:
        """Public methods."""
        return [
            name
            for name in dir(self._cls)
            if not name.startswith("_") and callable(getattr(self._cls, name, None))
        ]


class _Replica(Protocol):
    """One instance and where it lives."""

    feeders: weakref.WeakSet[Feeder]

    @property
    def pool(self) -> Pool | InlinePool: ...

    def submit(
        self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Future[Any]: ...

    def submit_sealed(self, method: str, *item: Any) -> Future[Any]:
        """As `submit`, of what `seal` or a call like this one gave; gives such, too."""

    def seal(self, item: Any) -> Any: ...

    def stream(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        buffersize: int,
    ) -> Stream[Any]: ...

    def unfinished(self) -> float: ...

    def state(self) -> str: ...

    def stats(self) -> Stats: ...

    def glimpse(self) -> Glimpse: ...

    def dump(self) -> str: ...

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None: ...

    def halt(self) -> None: ...

    def abandon(self) -> None: ...


class _Remote:
    """An instance in a worker."""

    def __init__(self, options: Options) -> None:
        self._options = options.call
        self.pool = Pool(options)
        self.state = self.pool.standing
        self.stats = self.pool.stats
        self.glimpse = self.pool.glimpse
        self.dump = self.pool.dump
        self.shutdown = self.pool.shutdown
        self.halt = self.pool.halt
        self.abandon = self.pool.abandon
        self.feeders = self.pool.feeders
        self.pool.start_all()

    def submit(
        self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Future[Any]:
        return self.pool.submit(call_method, (method, *args), kwargs, self._options)

    def submit_sealed(self, method: str, *parcel: Any) -> Future[Any]:
        return self.pool.submit(
            call_method, (method, *parcel), {}, self._options, sealed=True
        )

    def seal(self, item: Any) -> Any:
        return self.pool.seal(item)

    def stream(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        buffersize: int,
    ) -> Stream[Any]:
        return self.pool.stream(
            call_method, (method, *args), kwargs, self._options, buffersize
        )

    def unfinished(self) -> float:
        return float("inf") if self.pool.broken else self.pool.unfinished()


class _Local:
    """An instance in this process; for ``in_process=True``."""

    def __init__(
        self,
        options: Options,
        cls: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self._options = options
        self.pool = InlinePool(replace(options, initializer=None))
        self.stats = self.pool.stats
        self.feeders = self.pool.feeders
        self._closed = False
        self._instance = Instance(cls.__name__)
        built = self.pool.submit(
            self._instance.build, (cls, args, kwargs), {}, options.call
        )
        self._error = built.exception()

    def submit(
        self, method: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Future[Any]:
        self._check()
        call = self._instance.call
        return self.pool.submit(call, (method, args, kwargs), {}, self._options.call)

    def submit_sealed(self, method: str, *item: Any) -> Future[Any]:
        return self.submit(method, item, {})

    def seal(self, item: Any) -> Any:
        return item

    def stream(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        buffersize: int,
    ) -> Stream[Any]:
        self._check()
        call, options = self._instance.call, self._options.call
        return self.pool.stream(call, (method, args, kwargs), {}, options, buffersize)

    def _check(self) -> None:
        if self._error is not None:
            text = "".join(traceback.format_exception(self._error))
            raise reports.broken(self._options, (text,)) from self._error

    def unfinished(self) -> float:
        return 0

    def dump(self) -> str:
        name = self._instance.name
        return f"actor {name}: {self.state()}; its calls run in this process\n"

    def state(self) -> str:
        if self._closed:
            return "closed"
        return "ready" if self._error is None else "failed"

    def glimpse(self) -> Glimpse:
        trouble = "" if self._error is None else repr(self._error)
        return Glimpse(self.state(), self.stats(), trouble)

    def halt(self) -> None:
        """Nothing to do: calls run in the thread that makes them."""

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        if self._closed:
            return
        self._closed = True
        cleaned = self.pool.submit(self._instance.clean_up, (), {}, CallOptions())
        self.pool.shutdown(wait=wait, cancel_futures=cancel_futures)
        error = cleaned.exception()
        if error is not None:
            text = "".join(traceback.format_exception(error))
            msg = f"actor {self._instance.name}: cleanup() failed:\n{text}"
            warnings.warn(msg, RuntimeWarning, stacklevel=4)

    def abandon(self) -> None:
        self.shutdown(wait=False, cancel_futures=False)


def make_actor(
    options: Options,
    call: CallOptions,
    cls: object,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    replicas: int,
    max_concurrency: int,
    initialize_timeout: float | None,
    owner: object,
) -> Actor[Any]:
    """See :meth:`shmexec.Executor.actor`, which calls it.

    Args:
        options: The executor's.
        call: Of the calls of the actor; retries of which are left out: a call that
            began has seen a state that is gone.
        cls: The class, or any function that makes the instance.
        args: Its arguments.
        kwargs: Its keyword arguments.
        replicas: How many instances.
        max_concurrency: How many calls each may have under way.
        initialize_timeout: Seconds that building one may take.
        owner: What must live as long as the actor: the executor.
    """
    if not callable(cls):
        msg = f"an actor is made of a class, not {cls!r}"
        raise TypeError(msg)
    name = getattr(cls, "__qualname__", None) or type(cls).__qualname__
    name = name.rpartition("<locals>.")[2]
    count = positive_int("replicas", replicas, WORKERS_AT_MOST)
    slots = positive_int("max_concurrency", max_concurrency)
    limit = seconds_or_none("initialize_timeout", initialize_timeout)
    own = [
        replace(
            options,
            max_workers=1,
            name=f"{options.name}-{name}-{index}",
            initializer=build,
            initargs=(name, cls, args, kwargs),
            max_tasks_per_child=None,
            idle_timeout=None,
            call=CallOptions(call.timeout, 0, call.priority),
            actor=ActorOptions(name, slots, limit),
        )
        for index in range(count)
    ]
    if options.in_process:
        return Actor(
            name, cls, [_Local(each, cls, args, kwargs) for each in own], owner
        )
    made: list[_Replica] = []
    try:
        for each in own:
            made.append(_Remote(each))  # noqa: PERF401  (those made are to be ended)
    except SerializationError as error:
        raise _explained(error, name, cls, args, kwargs) from error.__cause__
    except BaseException:
        _abandon(made)
        raise
    return Actor(name, cls, made, owner)


def _explained(
    error: SerializationError,
    name: str,
    cls: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> SerializationError:
    """The same error in terms of what the actor was made of."""
    parts = {name: cls}
    parts |= {f"args[{index}]": arg for index, arg in enumerate(args)}
    parts |= {f"kwargs[{key!r}]": value for key, value in kwargs.items()}
    return explain(error.__cause__ or error, parts, f"the actor {name}")


def _abandon(replicas: list[_Replica]) -> None:
    for each in replicas:
        each.abandon()
