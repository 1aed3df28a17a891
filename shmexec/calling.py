"""The ways of calling, as methods: of an executor, or of one with other settings.

Each is thin; the module that does it is imported when it is first called.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
)
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, overload

from shmexec.options import CREDIT_AT_MOST, CallOptions, Options, positive_int

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Unpack

    from shmexec.actors import Actor
    from shmexec.batcher import Batcher, OnFull
    from shmexec.pipelines import Pipeline
    from shmexec.runtime.futures import Future
    from shmexec.runtime.inline import InlinePool
    from shmexec.runtime.pool import Pool
    from shmexec.runtime.streams import Stream
    from shmexec.scripts import Script
    from shmexec.signatures import AsyncMapSettings, MapSettings

P = ParamSpec("P")
T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")


class Calling(ABC):
    """See the module; for those who derive from it.

    Attributes:
        _pool: Where calls run.
        _options: The settings of that.
        _call_options: Those of the calls that are made here.
    """

    _pool: Pool | InlinePool
    _options: Options
    _call_options: CallOptions

    @property
    @abstractmethod
    def _owner(self) -> object:
        """The executor: what is made here and needs its pool keeps it alive."""

    @abstractmethod
    def _adopt(self, made: Actor[Any] | Pipeline[Any, Any]) -> None:
        """What has workers of its own was made: it ends with the executor."""

    # -- single calls ------------------------------------------------------------------

    @overload
    def submit(
        self,
        fn: Callable[P, Coroutine[Any, Any, T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Future[T]: ...

    @overload
    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]: ...

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` in a worker.

        A coroutine, as an ``async def`` function returns it, is awaited there, on the
        one event loop that the worker has.

        Arrays behave as if they were copied when this returns. If shared memory is
        used up, it waits for room; in a callback or under an event loop it raises.

        What cannot be pickled fails the future with :class:`shmexec.SerializationError`,
        which names the culprit.

        Raises:
            TypeError: If ``fn`` is not callable.
            SharedMemoryFull: If there is no room and waiting cannot help.
            PoolClosed: After :meth:`shutdown`, or in a forked child.
            PoolBroken: If no worker can be started.

        Example:
            >>> ex.submit(pow, 2, 10).result()
            1024
            >>> x = np.ones(1_000_000)
            >>> future = ex.submit(lambda a: a * 2, x)  # x is the call's own from here on
            >>> x[:] = 0
            >>> float(future.result().sum())
            2000000.0
        """
        _check_callable(fn)
        return self._pool.submit(fn, args, kwargs, self._call_options)

    @overload
    async def asubmit(
        self,
        fn: Callable[P, Coroutine[Any, Any, T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T: ...

    @overload
    async def asubmit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    async def asubmit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        """Run ``fn(*args, **kwargs)`` in a worker and await its result.

        As :meth:`submit`, but it waits for room in shared memory, without blocking the
        event loop. If the awaiting task is cancelled, so is the call: if it runs, its
        worker is stopped and replaced.

        Example:
            >>> import asyncio, shmexec
            >>> async def main():
            ...     async with shmexec.Executor(1) as ex:
            ...         return await ex.asubmit(pow, 2, 10)
            >>> asyncio.run(main())
            1024
        """
        from shmexec import aio

        future = await aio.submit(self.submit, fn, *args, **kwargs)
        return await aio.result_of(future)

    @overload
    def stream(
        self,
        fn: Callable[..., Iterable[T] | AsyncIterable[T]],
        /,
        *args: Any,
        buffersize: int,
        **kwargs: Any,
    ) -> Stream[T]: ...

    @overload
    def stream(
        self,
        fn: Callable[P, Iterable[T] | AsyncIterable[T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Stream[T]: ...

    def stream(  # type: ignore[misc]  # no function can be given its own `buffersize`
        self,
        fn: Callable[..., Iterable[Any] | AsyncIterable[Any]],
        /,
        *args: Any,
        buffersize: int = 16,
        **kwargs: Any,
    ) -> Stream[Any]:
        """Run a generator function in a worker; its items come as they are yielded.

        Iterate with ``for`` or ``async for``. Leaving the loop closes the generator in
        the worker: its ``finally`` runs. An exception comes after the items before it.
        Arrays come without a copy, as results do; an array that the generator keeps (as
        a local variable, say) is copied once in the worker. An open stream occupies its
        worker; :meth:`shutdown` closes it.

        Args:
            fn: A generator function, plain or ``async``, or one that returns something
                to iterate over.
            *args: Its arguments.
            buffersize: How many items the worker may be ahead of the consumer.
            **kwargs: Its keyword arguments.

        Raises:
            SerializationError: If the call cannot be pickled.
            SharedMemoryFull, PoolClosed, PoolBroken: As :meth:`submit`.

        Example:
            >>> import shmexec
            >>> def squares(n):
            ...     for i in range(n):
            ...         yield i * i
            >>> with shmexec.Executor(1) as ex:
            ...     list(ex.stream(squares, 4))
            [0, 1, 4, 9]
        """
        _check_callable(fn)
        ahead = positive_int("buffersize", buffersize, CREDIT_AT_MOST)
        made = self._pool.stream(fn, args, kwargs, self._call_options, ahead)
        # The pool would end with the executor, and close it.
        return made.keep_alive(self._owner)

    # -- many calls --------------------------------------------------------------------

    @overload
    def map(
        self,
        fn: Callable[[A], Coroutine[Any, Any, T]],
        a: Iterable[A],
        /,
        **settings: Unpack[MapSettings],
    ) -> Iterator[T]: ...

    @overload
    def map(
        self,
        fn: Callable[[A, B], Coroutine[Any, Any, T]],
        a: Iterable[A],
        b: Iterable[B],
        /,
        **settings: Unpack[MapSettings],
    ) -> Iterator[T]: ...

    @overload
    def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        a: Iterable[Any],
        b: Iterable[Any],
        c: Iterable[Any],
        /,
        *more: Iterable[Any],
        **settings: Unpack[MapSettings],
    ) -> Iterator[T]: ...

    @overload
    def map(
        self,
        fn: Callable[[A], T],
        a: Iterable[A],
        /,
        **settings: Unpack[MapSettings],
    ) -> Iterator[T]: ...

    @overload
    def map(
        self,
        fn: Callable[[A, B], T],
        a: Iterable[A],
        b: Iterable[B],
        /,
        **settings: Unpack[MapSettings],
    ) -> Iterator[T]: ...

    @overload
    def map(
        self,
        fn: Callable[[A, B, C], T],
        a: Iterable[A],
        b: Iterable[B],
        c: Iterable[C],
        /,
        **settings: Unpack[MapSettings],
    ) -> Iterator[T]: ...

    @overload
    def map(
        self,
        fn: Callable[[A, B, C, D], T],
        a: Iterable[A],
        b: Iterable[B],
        c: Iterable[C],
        d: Iterable[D],
        /,
        **settings: Unpack[MapSettings],
    ) -> Iterator[T]: ...

    @overload
    def map(
        self,
        fn: Callable[[A, B, C, D, E], T],
        a: Iterable[A],
        b: Iterable[B],
        c: Iterable[C],
        d: Iterable[D],
        e: Iterable[E],
        /,
        **settings: Unpack[MapSettings],
    ) -> Iterator[T]: ...

    @overload
    def map(
        self,
        fn: Callable[..., T],
        a: Iterable[Any],
        b: Iterable[Any],
        c: Iterable[Any],
        d: Iterable[Any],
        e: Iterable[Any],
        f: Iterable[Any],
        /,
        *more: Iterable[Any],
        **settings: Unpack[MapSettings],
    ) -> Iterator[T]: ...

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        ordered: bool = True,
        progress: bool = False,
    ) -> Iterator[Any]:
        """Call ``fn`` for each item, or for items of several iterables in parallel.

        Args:
            fn: The function.
            *iterables: Their items are its arguments; the shortest one ends the map.
            timeout: Seconds from this call after which the iterator raises.
            chunksize: Items per call of a worker. Default: one; more if there are many
                items and the first ones show that each takes well under 2 ms. A worker
                that dies takes the items of its chunk with it.
            buffersize: Read the iterables only so many items ahead of what was taken
                from the iterator. Default: all at once, as the standard library does.
            ordered: Whether results come in the order of the items, or as they are done.
            progress: Show a tqdm bar.

        Returns:
            An iterator over the results. Leaving it early cancels what has not begun.

        Raises:
            TimeoutError: From the iterator, if ``timeout`` passed.

        Example:
            >>> list(ex.map(lambda a, b: a * b, [1, 2, 3], [4, 5, 6]))
            [4, 10, 18]
        """
        from shmexec import batches

        _check_callable(fn)
        return batches.map_calls(
            self._pool,
            self._call_options,
            fn,
            iterables,
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            ordered=ordered,
            progress=progress,
        )

    @overload
    def amap(
        self,
        fn: Callable[[A], Coroutine[Any, Any, T]],
        a: Iterable[A] | AsyncIterable[A],
        /,
        **settings: Unpack[AsyncMapSettings],
    ) -> AsyncIterator[T]: ...

    @overload
    def amap(
        self,
        fn: Callable[[A, B], Coroutine[Any, Any, T]],
        a: Iterable[A] | AsyncIterable[A],
        b: Iterable[B] | AsyncIterable[B],
        /,
        **settings: Unpack[AsyncMapSettings],
    ) -> AsyncIterator[T]: ...

    @overload
    def amap(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        a: Iterable[Any] | AsyncIterable[Any],
        b: Iterable[Any] | AsyncIterable[Any],
        c: Iterable[Any] | AsyncIterable[Any],
        /,
        *more: Iterable[Any] | AsyncIterable[Any],
        **settings: Unpack[AsyncMapSettings],
    ) -> AsyncIterator[T]: ...

    @overload
    def amap(
        self,
        fn: Callable[[A], T],
        a: Iterable[A] | AsyncIterable[A],
        /,
        **settings: Unpack[AsyncMapSettings],
    ) -> AsyncIterator[T]: ...

    @overload
    def amap(
        self,
        fn: Callable[[A, B], T],
        a: Iterable[A] | AsyncIterable[A],
        b: Iterable[B] | AsyncIterable[B],
        /,
        **settings: Unpack[AsyncMapSettings],
    ) -> AsyncIterator[T]: ...

    @overload
    def amap(
        self,
        fn: Callable[[A, B, C], T],
        a: Iterable[A] | AsyncIterable[A],
        b: Iterable[B] | AsyncIterable[B],
        c: Iterable[C] | AsyncIterable[C],
        /,
        **settings: Unpack[AsyncMapSettings],
    ) -> AsyncIterator[T]: ...

    @overload
    def amap(
        self,
        fn: Callable[[A, B, C, D], T],
        a: Iterable[A] | AsyncIterable[A],
        b: Iterable[B] | AsyncIterable[B],
        c: Iterable[C] | AsyncIterable[C],
        d: Iterable[D] | AsyncIterable[D],
        /,
        **settings: Unpack[AsyncMapSettings],
    ) -> AsyncIterator[T]: ...

    @overload
    def amap(
        self,
        fn: Callable[[A, B, C, D, E], T],
        a: Iterable[A] | AsyncIterable[A],
        b: Iterable[B] | AsyncIterable[B],
        c: Iterable[C] | AsyncIterable[C],
        d: Iterable[D] | AsyncIterable[D],
        e: Iterable[E] | AsyncIterable[E],
        /,
        **settings: Unpack[AsyncMapSettings],
    ) -> AsyncIterator[T]: ...

    @overload
    def amap(
        self,
        fn: Callable[..., T],
        a: Iterable[Any] | AsyncIterable[Any],
        b: Iterable[Any] | AsyncIterable[Any],
        c: Iterable[Any] | AsyncIterable[Any],
        d: Iterable[Any] | AsyncIterable[Any],
        e: Iterable[Any] | AsyncIterable[Any],
        f: Iterable[Any] | AsyncIterable[Any],
        /,
        *more: Iterable[Any] | AsyncIterable[Any],
        **settings: Unpack[AsyncMapSettings],
    ) -> AsyncIterator[T]: ...

    def amap(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> AsyncIterator[Any]:
        """As :meth:`map`, for ``async for``; reads the iterables only as far as needed.

        Args:
            fn: The function.
            *iterables: Their items are its arguments; asynchronous ones may be among
                them. The shortest one ends the map.
            buffersize: Calls that are under way at most. Default: two for each worker.
            ordered: Whether results come in the order of the items, or as they are done.

        Returns:
            An asynchronous iterator over the results. When it is closed, one of the
            calls raises, or the task that reads it is cancelled, so are its other calls,
            also those that run.

        Example:
            >>> async def main():
            ...     return [y async for y in ex.amap(abs, [-1, -2, 3])]
            >>> asyncio.run(main())
            [1, 2, 3]
        """
        from shmexec import aio

        _check_callable(fn)
        width = self._pool.width()
        return aio.map_calls(
            self.submit, width, fn, iterables, buffersize=buffersize, ordered=ordered
        )

    def map_batches(
        self,
        fn: Callable[..., npt.ArrayLike],
        X: Any,  # noqa: N803  (the field's name for it)
        *more: Any,
        batch_size: int | None = None,
        out: Any = None,
        progress: bool | Callable[[int], object] = False,
    ) -> np.ndarray:
        """Apply ``fn`` to batches of rows; one array with the results, in order.

        The arrays go into shared memory once and are passed as read-only views; an
        ``np.memmap`` opened ``"r"`` is mapped from its file instead. Workers write their
        results into one output array. A ufunc, or a function with a parameter named
        ``out``, is called with ``out=`` its part of that, as soon as it is known: if it
        returns that, nothing is copied.

        Args:
            fn: Gets a batch of each array; returns one row per row.
            X: Array, split along its first axis.
            *more: Arrays of the same length, split alike.
            batch_size: Rows per batch. Default: four batches for each worker.
            out: Where results go: an array, an ``np.memmap`` opened ``"r+"`` or ``"w+"``,
                an array shared ``"r+"`` (workers write to these two directly), or a
                callable ``out(shape, dtype)`` that makes one when the first batch
                has told what is needed. Must not overlap an input. Default: a new
                array.
            progress: True shows a tqdm bar; a callable is given the rows of each batch.

        Returns:
            Array of shape ``(len(X), *trailing shape of the results)``.

        Raises:
            ValueError: If lengths differ, ``out`` does not fit, or a batch returns
                another number of rows, another shape or dtype than those before; a note
                names the batch.
            TypeError: If ``out`` is nothing to write to, or the function must be given
                ``out=`` and there is none.

        Example:
            >>> x = np.arange(6.0).reshape(3, 2)
            >>> ex.map_batches(lambda rows: rows.sum(axis=1), x)
            array([1., 5., 9.])
        """
        from shmexec import batches

        _check_callable(fn)
        return batches.map_batches(
            self._pool,
            self._call_options,
            fn,
            (X, *more),
            batch_size=batch_size,
            out=out,
            progress=progress,
        )

    @overload
    def batcher(
        self,
        fn: Callable[..., list[T]],
        *,
        max_batch_size: int = 64,
        max_delay: float = 0.0,
        max_queue: int | None = None,
        on_full: OnFull = "wait",
    ) -> Batcher[T]: ...

    @overload
    def batcher(
        self,
        fn: Callable[..., Any],
        *,
        max_batch_size: int = 64,
        max_delay: float = 0.0,
        max_queue: int | None = None,
        on_full: OnFull = "wait",
    ) -> Batcher[Any]: ...

    def batcher(
        self,
        fn: Callable[..., Any],
        *,
        max_batch_size: int = 64,
        max_delay: float = 0.0,
        max_queue: int | None = None,
        on_full: OnFull = "wait",
    ) -> Batcher[Any]:
        """A callable that takes single items and runs ``fn`` on batches of them.

        Many threads and ``asyncio`` tasks call it; what they submit while the workers
        are busy runs as one call. An item is an array, a number, or a tuple or dict of
        these, and is copied into shared memory at once. Items of equal shapes and
        dtypes form batches: of ``n`` items ``fn`` gets an array of shape
        ``(n, *item.shape)``, that is ``fn(array)``, ``fn(*arrays)`` for tuples or
        ``fn(**arrays)`` for dicts. The arrays are writable and ``fn``'s own.

        It returns an array of length ``n``, a tuple or dict of such arrays, or a list of
        ``n`` results. Each item's future gets its own: the row, a tuple or dict of rows, or
        the entry. An exception in a list fails that item alone. Rows are views, which
        keep the whole result: copy one that is to be kept for long.

        What fails a call fails all items of the batch, each with an exception of its own
        and a note that says how many there were.

        Args:
            fn: The function.
            max_batch_size: Items per call at most.
            max_delay: Seconds that a batch waits for more items although a worker is
                free, counted from its first item. Default 0: what waits when a worker
                becomes free is a batch. As many batches run as there are workers.
            max_queue: Items that may wait for their batch to start. Default: 16 full
                batches.
            on_full: What submitting does then: ``"wait"`` for room, or ``"refuse"``,
                which is to raise :class:`shmexec.QueueFull`.

        Raises:
            TypeError, ValueError: For a setting that makes no sense.

        Example:
            >>> import numpy as np, shmexec
            >>> with shmexec.Executor(2) as ex, ex.batcher(np.sqrt) as root:
            ...     futures = [root(number) for number in (1.0, 4.0, 9.0)]
            ...     [float(future.result()) for future in futures]
            [1.0, 2.0, 3.0]
        """
        from shmexec.batcher import Batcher

        _check_callable(fn)
        return Batcher(
            self._owner,
            self._pool,
            fn,
            self._call_options,
            max_batch_size=max_batch_size,
            max_delay=max_delay,
            max_queue=max_queue,
            on_full=on_full,
        )

    # -- with a state ------------------------------------------------------------------

    def script(
        self,
        path: str | os.PathLike[str],
        *,
        cache: str | int | os.PathLike[str] | None = None,
        autoreload: bool = False,
    ) -> Script:
        """Load a Python file once in each worker, and call its functions.

        It is loaded in one worker now, and in the others before their first call of it.
        What it keeps in its module stays, worker by worker.

        Args:
            path: The file; its folder is put on ``sys.path`` in the workers.
            cache: Keep results, for scripts whose results depend on nothing but the
                arguments: an amount of memory (bytes, or a text such as ``"256MB"``;
                what was not used longest goes first) or a folder (a
                :class:`pathlib.Path`, trusted as the script itself is). They are known
                by the contents of the script, of the neighbours that it imports and
                of the arguments. Default: none are kept.
            autoreload: Look at each call whether the file has changed, and load it again
                if it has.

        Returns:
            What has the script's functions as its attributes, see
            :class:`shmexec.Script`.

        Raises:
            FileNotFoundError, IsADirectoryError, ValueError: If there is no such ``.py``
                file.
            Exception: Whatever the script raises while it is loaded.

        Example:
            >>> from pathlib import Path
            >>> import tempfile, shmexec
            >>> with tempfile.TemporaryDirectory() as folder, shmexec.Executor(1) as ex:
            ...     path = Path(folder, "model.py")
            ...     _ = path.write_text("def double(x): return 2 * x")
            ...     ex.script(path).double(21).result()
            42
        """
        from shmexec.scripts import Script, ScriptFile

        self._check_any_worker("a script")
        options = self._call_options
        file = ScriptFile(
            self._owner, self._pool, options, path, cache=cache, autoreload=autoreload
        )
        return Script(file, options)

    @overload
    def actor(
        self,
        cls: Callable[..., T],
        /,
        *args: Any,
        replicas: int,
        max_concurrency: int = ...,
        initialize_timeout: float | None = ...,
        **kwargs: Any,
    ) -> Actor[T]: ...

    @overload
    def actor(
        self,
        cls: Callable[..., T],
        /,
        *args: Any,
        max_concurrency: int,
        initialize_timeout: float | None = ...,
        **kwargs: Any,
    ) -> Actor[T]: ...

    @overload
    def actor(
        self,
        cls: Callable[..., T],
        /,
        *args: Any,
        initialize_timeout: float | None,
        **kwargs: Any,
    ) -> Actor[T]: ...

    @overload
    def actor(
        self,
        cls: Callable[P, T],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Actor[T]: ...

    def actor(  # type: ignore[misc]  # nor can a class its own `replicas`
        self,
        cls: Callable[..., Any],
        /,
        *args: Any,
        replicas: int = 1,
        max_concurrency: int = 1,
        initialize_timeout: float | None = None,
        **kwargs: Any,
    ) -> Actor[Any]:
        """Keep an instance of a class in a worker of its own; call its methods.

        It is built there, beginning now: ``cls(*args, **kwargs)``, then its method
        ``initialize()`` if it has one. Its methods are called through the handle; its
        ``cleanup()``, if there is one, is called when the actor is closed, and before it
        is replaced because a call was stopped, but not after a crash. Both of these may
        be ``async``.

        The worker is none of the pool's, which goes on beside it; it is set up alike, and
        ends with the executor. ``timeout`` holds for calls of the actor as for others,
        ``retries`` does not.

        Args:
            cls: The class, or any function that makes the instance.
            *args: Its arguments.
            replicas: How many instances, each in a worker. Calls go to the one with the
                fewest unfinished calls.
            max_concurrency: Calls that an instance may have under way. With more than
                one, ``async`` methods and generators run beside each other on the
                worker's event loop; a plain method holds up the others while it runs.
                One that times out or is cancelled gets ``asyncio.CancelledError``, and
                its worker is stopped only if it does not end.
            initialize_timeout: Seconds that building an instance may take; then the
                actor has failed. Default: no limit.
            **kwargs: Keyword arguments for ``cls``. (For one that is named as those
                above, pass ``functools.partial(cls, ...)``.)

        Returns:
            The handle: ``node.method(...)`` gives a future.

        Raises:
            SerializationError: If the class or an argument cannot be pickled; names the
                attribute.
            PoolClosed: After :meth:`shutdown`.

        Example:
            >>> import collections, shmexec
            >>> with shmexec.Executor(1) as ex:
            ...     counter = ex.actor(collections.Counter, "abca")
            ...     counter.update("bb").result()
            ...     counter.most_common(1).result()
            [('b', 3)]
        """
        self._check_any_worker("an actor")
        self._pool.check_open()
        made = self._make_actor(
            cls, args, kwargs, replicas, max_concurrency, initialize_timeout
        )
        self._adopt(made)
        return made

    def _make_actor(
        self,
        cls: object,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        replicas: int,
        max_concurrency: int,
        initialize_timeout: float | None,
    ) -> Actor[Any]:
        from shmexec.actors import make_actor

        return make_actor(
            self._options,
            self._call_options,
            cls,
            args,
            kwargs,
            replicas=replicas,
            max_concurrency=max_concurrency,
            initialize_timeout=initialize_timeout,
            owner=self._owner,
        )

    def pipeline(self, *stages: Any, buffersize: int = 2) -> Pipeline[Any, Any]:
        """Chain stages, each in a worker of its own.

        Items go through all of them, in order. What a stage returns is passed on from its
        worker to the next one by reference: arrays do not come to this process in
        between, and are not copied.

        The workers are none of the pool's, as those of actors; they end with the
        executor. ``timeout`` holds for each item in each stage.

        Args:
            *stages: Each is a class, a tuple ``(Class, *args)``, a function of one item,
                or a :class:`shmexec.Stage`. A class has a method ``process(item)``, or
                ``__call__(item)``, which returns one item (and may be ``async``). It may
                have ``flush()``, see :class:`shmexec.Pipeline`, and ``initialize()`` and
                ``cleanup()`` as actors have.
            buffersize: Items that may wait before each stage.

        Returns:
            The pipeline: ``map`` and ``submit`` send items through it.

        Raises:
            TypeError: If a stage is nothing of that kind.
            SerializationError: If one cannot be pickled; names stage and attribute.
            PoolClosed: After :meth:`shutdown`.

        Example:
            >>> import numpy as np, shmexec
            >>> with shmexec.Executor(1) as ex:
            ...     pipe = ex.pipeline(np.sqrt, np.negative)
            ...     [float(y) for y in pipe.map([1.0, 4.0, 9.0])]
            [-1.0, -2.0, -3.0]
        """
        from shmexec.pipelines import make_pipeline

        self._check_any_worker("a pipeline")
        self._pool.check_open()
        made = make_pipeline(
            self._options, self._call_options, stages, buffersize, self._owner
        )
        self._adopt(made)
        return made

    def _check_any_worker(self, what: str) -> None:
        """Raise ValueError if calls are for one certain worker."""
        if self._call_options.worker is not None:
            msg = f"options(worker=) is for calls, not for {what}"
            raise ValueError(msg)


def _check_callable(fn: object) -> None:
    if not callable(fn):
        msg = f"fn must be callable, not {fn!r}"
        raise TypeError(msg)
