"""The ``concurrent.futures`` facade.

The tour of one array, from ``submit()`` to ``result()``:

1. ``Executor.submit`` hands the call to ``runtime.pool``. ``runtime.calls`` pickles it in
   the caller's thread; an array of 32 KiB or more leaves the pickle
   (``wire.pickling``) and is copied into a block of the parent's arena
   (``memory.host``), which is leased to the call.
2. The scheduler (``scheduler.machine``) is told, and says: send it to that worker. A
   lease for the worker is taken, and a message of a few hundred bytes
   (``wire.messages``) goes through its socket, with the place of the block in it.
3. The worker (``worker.main``) maps the same arena; ``worker.memory`` makes an array on
   the block. The function runs. Its result is pickled alike, its array copied into a
   block of the worker's own arena; the argument's views die, and the reply says so.
4. Whoever waits (``runtime.leading``) reads the reply. The parent takes a lease on the
   result's block and makes an array on it: that is what ``result()`` returns. When the
   last view of it dies, a finalizer notes the lease, and with the next message the
   worker learns that it may use the block again.
"""

from __future__ import annotations

import os
import threading
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
    Sequence,
)
from concurrent.futures import Executor as BaseExecutor
from contextvars import ContextVar
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NoReturn,
    ParamSpec,
    TypeVar,
    overload,
)

from shmexec.errors import MemoryWarning
from shmexec.options import (
    CREDIT_AT_MOST,
    DEFAULT_WORKERS_AT_MOST,
    WORKERS_AT_MOST,
    CallOptions,
    Fallback,
    Options,
    positive_int,
)
from shmexec.runtime.server import start_fork_server

if TYPE_CHECKING:
    from typing import Self

    import numpy as np

    from shmexec.actors import Actor
    from shmexec.batcher import Batcher, OnFull
    from shmexec.figures import Stats
    from shmexec.pipelines import Pipeline
    from shmexec.runtime.futures import Future
    from shmexec.runtime.inline import InlinePool
    from shmexec.runtime.pool import Pool
    from shmexec.runtime.streams import Stream
    from shmexec.scripts import Script

P = ParamSpec("P")
T = TypeVar("T")

__all__ = ["Executor", "OptionsView"]


class Executor(BaseExecutor):
    """A pool of persistent worker processes; NumPy arrays go through shared memory.

    Takes what ``ProcessPoolExecutor`` takes, and more. Workers start as calls need
    them. No ``if __name__ == "__main__"`` guard is needed.

    Args:
        max_workers: Processes at most. Default: ``SHMEXEC_WORKERS``, else the usable
            CPUs, at most 8. More than 8 give a :class:`shmexec.MemoryWarning` with
            figures.
        mp_context: A ``multiprocessing`` context or ``"fork"``, ``"forkserver"``
            (default on Linux) or ``"spawn"`` (default elsewhere).
        initializer: Called in each worker before its first call. If it raises, the
            pool is broken.
        initargs: Its arguments.
        max_tasks_per_child: Calls after which a worker is replaced. Default: never.
        timeout: Seconds that a call may run; then its worker is stopped and the call
            fails with :class:`shmexec.CallTimeout`. Default: no limit.
        retries: How often a call runs again after its worker died. Default 0.
        max_restarts: Failed starts of workers in a row after which the pool is broken.
        max_shared_memory: Bytes, or a text such as ``"2GB"``, for arguments and results
            together. Default: half of the memory that is free at first use.
        idle_timeout: Seconds after which an idle worker ends. Default: never.
        threads_per_worker: BLAS and OpenMP threads in each worker. Default: usable CPUs
            divided by workers, at least 1.
        worker_env: Environment variables for the workers, beside the program's own.
        in_process: Run calls in this process, one after the other, for a debugger.
        worker_output: What becomes of what workers print, also from C code and child
            processes. ``"forward"``: whole lines go to this process's ``sys.stdout`` and
            ``sys.stderr``, and log records to its loggers, before the future of the call
            is done. ``"inherit"``: it goes where this process's descriptors 1 and 2 lead
            when a worker starts. ``"discard"``: it is dropped.
        name: Shown in process names and messages. Default ``"shmexec"``.
        fallback: With ``"process-per-call"``, calls that were never begun run in a
            process forked for each, without ``initializer``, if the pool cannot start
            or breaks; one :class:`shmexec.FallbackWarning` says so. Not if
            ``initializer`` raised: that is for you to mend. Default: they fail with
            :class:`shmexec.PoolBroken`.
        context: Context variables (``contextvars``) whose values at ``submit`` are set in
            the worker around the call, which has a context of its own: what it sets
            itself is gone when it ends. Those that are not set are left alone.
            Default: none.

    Raises:
        TypeError, ValueError: For a setting that makes no sense, at once.

    Example:
        >>> import numpy as np, shmexec
        >>> with shmexec.Executor(2) as ex:
        ...     float(ex.submit(np.sum, np.ones(1_000_000)).result())
        1000000.0
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
        max_restarts: int = 3,
        max_shared_memory: int | str | None = None,
        idle_timeout: float | None = None,
        threads_per_worker: int | None = None,
        worker_env: Mapping[str, str] | None = None,
        in_process: bool = False,
        worker_output: Literal["forward", "inherit", "discard"] = "forward",
        name: str | None = None,
        fallback: Fallback | None = None,
        context: Iterable[ContextVar[Any]] = (),
    ) -> None:
        self._options = Options.check(
            max_workers=max_workers,
            mp_context=mp_context,
            initializer=initializer,
            initargs=initargs,
            max_tasks_per_child=max_tasks_per_child,
            timeout=timeout,
            retries=retries,
            max_restarts=max_restarts,
            max_shared_memory=max_shared_memory,
            idle_timeout=idle_timeout,
            threads_per_worker=threads_per_worker,
            worker_env=worker_env,
            in_process=in_process,
            worker_output=worker_output,
            name=name,
            fallback=fallback,
            context=context,
        )
        self._max_workers = self._options.max_workers  # Dask reads it
        self._warned = False
        self._pool = _make_pool(self._options)
        self._actors: weakref.WeakSet[Actor | Pipeline] = weakref.WeakSet()
        # Calls that were submitted still finish, as in the standard library.
        self._finalizer = weakref.finalize(self, _abandon, self._pool, self._actors)
        self._finalizer.atexit = False
        self._warn_of_growth()

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
        """
        return self._submit(self._options.call, fn, args, kwargs)

    def _submit(
        self,
        options: CallOptions,
        fn: Callable[..., T],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Future[T]:
        _check_callable(fn)
        return self._pool.submit(fn, args, kwargs, options)

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
        return await self._asubmit(self._options.call, fn, args, kwargs)

    async def _asubmit(
        self,
        options: CallOptions,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        from shmexec import aio

        future = await aio.submit(self._submit, options, fn, args, kwargs)
        return await aio.result_of(future)

    def stream(
        self,
        fn: Callable[..., Iterable[T] | AsyncIterable[T]],
        /,
        *args: Any,
        buffersize: int = 16,
        **kwargs: Any,
    ) -> Stream[T]:
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
        return self._stream(self._options.call, fn, args, kwargs, buffersize)

    def _stream(
        self,
        options: CallOptions,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        buffersize: int,
    ) -> Stream[Any]:
        _check_callable(fn)
        ahead = positive_int("buffersize", buffersize, CREDIT_AT_MOST)
        stream = self._pool.stream(fn, args, kwargs, options, ahead)
        # The pool would end with the executor, and close it.
        return stream.keep_alive(self)

    def amap(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> AsyncIterator[T]:
        """As :meth:`map`, for ``async for``; reads the iterables only as far as needed.

        Args:
            fn: The function.
            *iterables: Their items are its arguments; asynchronous ones may be among
                them. The shortest one ends the map.
            buffersize: Calls that are under way at most. Default: two for each worker.
            ordered: Whether results come in the order of the items, or as they are done.

        Returns:
            An asynchronous iterator over the results. When it is closed, or the task
            that reads it is cancelled, its calls are, also those that run.
        """
        return self._amap(
            self._options.call, fn, iterables, buffersize=buffersize, ordered=ordered
        )

    def _amap(
        self,
        options: CallOptions,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any] | AsyncIterable[Any], ...],
        **settings: Any,
    ) -> AsyncIterator[Any]:
        from shmexec import aio

        _check_callable(fn)

        def submit(fn: Callable[..., Any], *args: Any) -> Future[Any]:
            return self._submit(options, fn, args, {})

        return aio.map_calls(submit, self._pool.width(), fn, iterables, **settings)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        """Shut down, without blocking the event loop."""
        import asyncio

        await asyncio.to_thread(self.shutdown)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        ordered: bool = True,
        progress: bool = False,
    ) -> Iterator[T]:
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
        """
        return self._map(
            self._options.call,
            fn,
            iterables,
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            ordered=ordered,
            progress=progress,
        )

    def _map(
        self,
        options: CallOptions,
        fn: Callable[..., T],
        iterables: tuple[Iterable[Any], ...],
        **settings: Any,
    ) -> Iterator[T]:
        from shmexec import batches

        _check_callable(fn)
        return batches.map_calls(self._pool, options, fn, iterables, **settings)

    def map_batches(
        self,
        fn: Callable[..., Any],
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
        """
        return self._map_batches(
            self._options.call,
            fn,
            (X, *more),
            batch_size=batch_size,
            out=out,
            progress=progress,
        )

    def _map_batches(
        self,
        options: CallOptions,
        fn: Callable[..., Any],
        arrays: tuple[Any, ...],
        **settings: Any,
    ) -> np.ndarray:
        from shmexec import batches

        _check_callable(fn)
        return batches.map_batches(self._pool, options, fn, arrays, **settings)

    def batcher(
        self,
        fn: Callable[..., Any],
        *,
        max_batch_size: int = 64,
        max_delay: float = 0.0,
        max_queue: int | None = None,
        on_full: OnFull = "wait",
    ) -> Batcher:
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
        return self._batcher(
            self._options.call,
            fn,
            max_batch_size=max_batch_size,
            max_delay=max_delay,
            max_queue=max_queue,
            on_full=on_full,
        )

    def _batcher(
        self, options: CallOptions, fn: Callable[..., Any], **settings: Any
    ) -> Batcher:
        from shmexec.batcher import Batcher

        _check_callable(fn)
        return Batcher(self, self._pool, fn, options, **settings)

    def options(
        self,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        priority: int = 0,
    ) -> OptionsView:
        """The same pool with other settings for the calls made through it.

        Args:
            timeout: Seconds a call may run. Default: the pool's.
            retries: How often it runs again after its worker died. Default: the pool's.
            priority: Calls of a higher one run earlier. Default 0.
        """
        own = self._options.call
        return OptionsView(
            self,
            CallOptions(
                own.timeout if timeout is None else timeout,
                own.retries if retries is None else retries,
                priority,
            ),
        )

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

        options = self._options.call
        file = ScriptFile(
            self, self._pool, options, path, cache=cache, autoreload=autoreload
        )
        return Script(file, options)

    def actor(
        self,
        cls: Callable[..., Any],
        /,
        *args: Any,
        replicas: int = 1,
        max_concurrency: int = 1,
        initialize_timeout: float | None = None,
        **kwargs: Any,
    ) -> Actor:
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
        return self._actor(
            self._options.call,
            cls,
            args,
            kwargs,
            replicas=replicas,
            max_concurrency=max_concurrency,
            initialize_timeout=initialize_timeout,
        )

    def _actor(
        self,
        options: CallOptions,
        cls: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        **settings: Any,
    ) -> Actor:
        from shmexec.actors import make_actor

        self._pool.check_open()
        actor = make_actor(self._options, options, cls, args, kwargs, **settings)
        self._actors.add(actor)
        self._warn_of_growth()
        return actor

    def pipeline(self, *stages: Any, buffersize: int = 2) -> Pipeline:
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
        return self._pipeline(self._options.call, stages, buffersize)

    def _pipeline(
        self, options: CallOptions, stages: Sequence[Any], buffersize: int
    ) -> Pipeline:
        from shmexec.pipelines import make_pipeline

        self._pool.check_open()
        made = make_pipeline(self._options, options, stages, buffersize, self)
        self._actors.add(made)
        self._warn_of_growth()
        return made

    def broadcast(self, fn: Callable[..., T], *args: Any, **kwargs: Any) -> list[T]:
        """Run a call once in every worker, starting all of them; waits for the results.

        Workers that start later have not run it: for those there is ``initializer``.
        """
        futures = self._pool.broadcast(fn, args, kwargs)
        return [future.result() for future in futures]

    def resize(self, max_workers: int) -> None:
        """Change how many workers there may be; running calls are not disturbed."""
        number = positive_int("max_workers", max_workers, WORKERS_AT_MOST)
        self._pool.resize(number)
        grown, self._max_workers = number > self._max_workers, number
        if grown:
            self._warn_of_growth()

    def stats(self) -> Stats:
        """Figures about workers, calls and memory at this moment."""
        return self._pool.stats()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; those submitted still run.

        Args:
            wait: Return only when all calls are done and all workers gone.
            cancel_futures: Cancel calls that have not begun.
        """
        self._finalizer.detach()
        actors = list(self._actors)
        self._pool.shutdown(wait=False, cancel_futures=cancel_futures)
        for actor in actors:
            actor.close(wait=False, cancel_futures=cancel_futures)
        if wait:
            for actor in actors:
                actor.close()
            self._pool.shutdown(wait=True)

    def _warn_of_growth(self) -> None:
        workers = self._max_workers + sum(actor.replicas for actor in self._actors)
        if workers <= DEFAULT_WORKERS_AT_MOST or self._warned:
            return
        if self._options.in_process:
            return
        from shmexec.runtime import monitor

        self._warned = True
        text = monitor.growth_warning(workers, self._pool.pids())
        warnings.warn(text, MemoryWarning, stacklevel=3)

    def __reduce__(self) -> NoReturn:
        msg = (
            "an Executor cannot be pickled: calls cannot submit to the pool they run "
            "in; return what is to be done next instead"
        )
        raise TypeError(msg)

    def __repr__(self) -> str:
        stats = self._pool.stats()
        return (
            f"<shmexec.Executor {stats.name!r}: {len(stats.workers)} of "
            f"{stats.max_workers} workers, {stats.running} calls running, "
            f"{stats.pending} pending>"
        )


def _make_pool(options: Options) -> Pool | InlinePool:
    if options.in_process:
        from shmexec.runtime.inline import InlinePool

        return InlinePool(options)
    if options.start_method == "forkserver":
        # It imports NumPy and the worker's code while this process imports the pool.
        start_fork_server()
    if options.fallback is not None:
        from shmexec.fallback import make_pool

        return make_pool(options)
    from shmexec.runtime.pool import Pool

    return Pool(options)


def _abandon(pool: Pool | InlinePool, actors: Iterable[Actor | Pipeline]) -> None:
    """The executor was garbage-collected."""
    pool.abandon()
    held = list(actors)
    if held:
        # A finalizer takes no lock: this thread may have it.
        threading.Thread(target=_close_all, args=(held,)).start()


def _close_all(actors: list[Actor | Pipeline]) -> None:
    for actor in actors:
        actor.close(wait=False)


def _check_callable(fn: object) -> None:
    if not callable(fn):
        msg = f"fn must be callable, not {fn!r}"
        raise TypeError(msg)


class OptionsView:
    """An executor's calls with other settings; made by :meth:`Executor.options`."""

    def __init__(self, executor: Executor, options: CallOptions) -> None:
        self._executor = executor
        self._options = options

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """As :meth:`Executor.submit`."""
        return self._executor._submit(self._options, fn, args, kwargs)  # noqa: SLF001

    async def asubmit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        """As :meth:`Executor.asubmit`."""
        return await self._executor._asubmit(  # noqa: SLF001
            self._options, fn, args, kwargs
        )

    def stream(
        self,
        fn: Callable[..., Iterable[T] | AsyncIterable[T]],
        /,
        *args: Any,
        buffersize: int = 16,
        **kwargs: Any,
    ) -> Stream[T]:
        """As :meth:`Executor.stream`; a time-out counts for the whole stream."""
        return self._executor._stream(  # noqa: SLF001
            self._options, fn, args, kwargs, buffersize
        )

    def amap(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any] | AsyncIterable[Any],
        buffersize: int | None = None,
        ordered: bool = True,
    ) -> AsyncIterator[T]:
        """As :meth:`Executor.amap`."""
        return self._executor._amap(  # noqa: SLF001
            self._options, fn, iterables, buffersize=buffersize, ordered=ordered
        )

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | None = None,
        buffersize: int | None = None,
        ordered: bool = True,
        progress: bool = False,
    ) -> Iterator[T]:
        """As :meth:`Executor.map`; ``timeout`` here is that of the iterator."""
        return self._executor._map(  # noqa: SLF001
            self._options,
            fn,
            iterables,
            timeout=timeout,
            chunksize=chunksize,
            buffersize=buffersize,
            ordered=ordered,
            progress=progress,
        )

    def map_batches(
        self,
        fn: Callable[..., Any],
        X: Any,  # noqa: N803
        *more: Any,
        batch_size: int | None = None,
        out: Any = None,
        progress: bool | Callable[[int], object] = False,
    ) -> np.ndarray:
        """As :meth:`Executor.map_batches`."""
        return self._executor._map_batches(  # noqa: SLF001
            self._options,
            fn,
            (X, *more),
            batch_size=batch_size,
            out=out,
            progress=progress,
        )

    def actor(
        self,
        cls: Callable[..., Any],
        /,
        *args: Any,
        replicas: int = 1,
        max_concurrency: int = 1,
        initialize_timeout: float | None = None,
        **kwargs: Any,
    ) -> Actor:
        """As :meth:`Executor.actor`; ``timeout`` and priority are its calls'."""
        return self._executor._actor(  # noqa: SLF001
            self._options,
            cls,
            args,
            kwargs,
            replicas=replicas,
            max_concurrency=max_concurrency,
            initialize_timeout=initialize_timeout,
        )

    def batcher(
        self,
        fn: Callable[..., Any],
        *,
        max_batch_size: int = 64,
        max_delay: float = 0.0,
        max_queue: int | None = None,
        on_full: OnFull = "wait",
    ) -> Batcher:
        """As :meth:`Executor.batcher`; the settings are those of the batches' calls."""
        return self._executor._batcher(  # noqa: SLF001
            self._options,
            fn,
            max_batch_size=max_batch_size,
            max_delay=max_delay,
            max_queue=max_queue,
            on_full=on_full,
        )

    def pipeline(self, *stages: Any, buffersize: int = 2) -> Pipeline:
        """As :meth:`Executor.pipeline`; ``timeout`` and priority are its calls'."""
        return self._executor._pipeline(self._options, stages, buffersize)  # noqa: SLF001
