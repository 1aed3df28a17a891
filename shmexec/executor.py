"""The ``concurrent.futures`` facade.

The tour of one array, from ``submit()`` to ``result()``:

1. ``submit`` (``calling``) hands the call to ``runtime.pool``. ``runtime.calls`` pickles it in
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

import sys
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Executor as BaseExecutor
from contextvars import ContextVar
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    NoReturn,
    ParamSpec,
    TextIO,
    TypeVar,
    overload,
)

from shmexec.calling import Calling
from shmexec.closing import close_apart
from shmexec.errors import MemoryWarning
from shmexec.options import (
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

    from shmexec.actors import Actor
    from shmexec.figures import Health, Stats, Story
    from shmexec.pipelines import Pipeline
    from shmexec.profiling.profile import Profile
    from shmexec.runtime.futures import Future
    from shmexec.runtime.inline import InlinePool
    from shmexec.runtime.pool import Pool
    from shmexec.runtime.streams import Stream
    from shmexec.runtime.tape import Tape

P = ParamSpec("P")
T = TypeVar("T")

__all__ = ["Executor", "OptionsView"]


# `map` refuses arguments that do not fit the function, which its base class lets pass.
class Executor(Calling, BaseExecutor):  # type: ignore[misc]
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
            together, also those of its actors and pipelines. Default: half of the memory
            that is free at first use, for all executors.
        max_worker_memory: Bytes, or a text such as ``"2GB"``, of private memory (``rss``
            without what is shared) that a worker may have after a call. One that has
            more is replaced, before its next call; an actor is rebuilt, and its state
            starts afresh. Default: no limit.
        max_worker_memory_hard: The same in the midst of a call: the worker is killed and
            the call fails with :class:`shmexec.WorkerDied`, which says so. It is looked
            at up to 10 times a second, so that it may have up to 200 MB more. Default:
            no limit.
        min_free_memory: Memory that shall be left free in the machine, or in its
            cgroup. If there is less, idle shared memory is returned; if that does not
            help, calls begin one at a time until there is more; below a quarter of it
            calls are refused with :class:`shmexec.MemoryScarce`. 0: it is not minded.
            Default: a twentieth of all memory, at most 1 GiB.
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
        max_worker_memory: int | str | None = None,
        max_worker_memory_hard: int | str | None = None,
        min_free_memory: int | str | None = None,
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
            max_worker_memory=max_worker_memory,
            max_worker_memory_hard=max_worker_memory_hard,
            min_free_memory=min_free_memory,
            idle_timeout=idle_timeout,
            threads_per_worker=threads_per_worker,
            worker_env=worker_env,
            in_process=in_process,
            worker_output=worker_output,
            name=name,
            fallback=fallback,
            context=context,
        )
        self._call_options = self._options.call
        self._max_workers = self._options.max_workers  # Dask reads it
        self._warned = False
        self._pool = _make_pool(self._options)
        self._actors: weakref.WeakSet[Actor[Any] | Pipeline[Any, Any]] = (
            weakref.WeakSet()
        )
        self._tapes: list[Tape] = []  # of profiles that are under way
        # Calls that were submitted still finish, as in the standard library.
        self._finalizer = weakref.finalize(self, _abandon, self._pool, self._actors)
        self._finalizer.atexit = False
        self._warn_of_growth()

    @property
    def _owner(self) -> Executor:
        return self

    def _adopt(self, made: Actor[Any] | Pipeline[Any, Any]) -> None:
        self._actors.add(made)
        # In this order, and a profile the other way round: one of them sees the other.
        for tape in list(self._tapes):
            for pool in made._pools():  # noqa: SLF001
                pool.start_recording(tape)
        self._warn_of_growth()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        """Shut down, without blocking the event loop."""
        import asyncio

        await asyncio.to_thread(self.shutdown)

    def options(
        self,
        *,
        timeout: float | None = None,
        retries: int | None = None,
        priority: int = 0,
        worker: int | None = None,
    ) -> OptionsView:
        """The same pool with other settings for the calls made through it.

        Args:
            timeout: Seconds a call may run. Default: the pool's.
            retries: How often it runs again after its worker died. Default: the pool's.
            priority: Calls of a higher one run earlier. Default 0.
            worker: Process id of the worker that is to run them, as :meth:`stats` and
                :meth:`dump` tell it, and ``os.getpid()`` in a call. They wait for it, and
                do not run again elsewhere: if it ends before, they fail with
                :class:`shmexec.WorkerDied`; if it has ended, calling raises
                ``ValueError``. Not for scripts, actors and pipelines. Default: any
                worker.

        Example:
            >>> ex.options(timeout=60, retries=1).submit(abs, -1).result()
            1
        """
        own = self._call_options
        return OptionsView(
            self,
            CallOptions(
                own.timeout if timeout is None else timeout,
                own.retries if retries is None else retries,
                priority,
                worker,
            ),
        )

    @overload
    def broadcast(
        self,
        fn: Callable[P, Coroutine[Any, Any, T]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> list[T]: ...

    @overload
    def broadcast(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> list[T]: ...

    def broadcast(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> list[Any]:
        """Run a call once in every worker, starting all of them; waits for the results.

        Workers that start later have not run it: for those there is ``initializer``.

        Example:
            >>> pids = ex.broadcast(os.getpid)
            >>> len(set(pids)) == len(ex.stats().workers)
            True
        """
        futures = self._pool.broadcast(fn, args, kwargs)
        try:
            return [future.result() for future in futures]
        except KeyboardInterrupt as interrupt:
            for future in futures:
                future.cancel(running=True)
            raise interrupt.with_traceback(None) from None

    def resize(self, max_workers: int) -> None:
        """Change how many workers there may be; running calls are not disturbed.

        Example:
            >>> ex.resize(3)
            >>> ex.stats().max_workers
            3
        """
        number = positive_int("max_workers", max_workers, WORKERS_AT_MOST)
        self._pool.resize(number)
        grown, self._max_workers = number > self._max_workers, number
        if grown:
            self._warn_of_growth()

    def stats(self) -> Stats:
        """Figures about workers, calls and memory at this moment.

        Example:
            >>> x = np.ones(1_000_000)
            >>> before = ex.stats()
            >>> ex.submit(len, x).result()
            1000000
            >>> ex.stats().bytes_copied_in - before.bytes_copied_in
            8000000
        """
        return self._pool.stats()

    def profile(self, *, max_calls: int = 100_000) -> Profile:
        """Record each call from here on: where the time goes, worker by worker.

        Calls of all ways are recorded: those of ``submit`` and ``map`` (a chunk of small
        items is one call), ``map_batches`` and batchers (a batch is one), scripts and
        streams, also those that are under way already; and those of the executor's
        actors and pipelines, whose workers are their own. It takes this process 5 to
        10 µs for each call; nothing when it is over.

        Profiles may overlap, and other threads may submit meanwhile; their calls are
        recorded, too.

        With ``in_process=True`` calls are recorded, streams are not. Calls that run in a
        process of their own, with a ``fallback``, are noted, but not how they fared.

        Args:
            max_calls: Calls that are kept; past that the latest take the places of the
                earliest. Each takes 120 bytes.

        Returns:
            What is a context manager: recording begins when it is entered, and ends at
            its exit. See :class:`shmexec.Profile`.

        Example:
            >>> import shmexec
            >>> with shmexec.Executor(1) as ex, ex.profile() as p:
            ...     _ = list(ex.map(abs, [-1, 2, -3], chunksize=1))
            >>> [(call.name, call.outcome) for call in p.calls]
            [('abs', 'done'), ('abs', 'done'), ('abs', 'done')]
        """
        from shmexec.profiling.profile import Profile

        return Profile(self, max_calls)

    def _pools(self) -> list[Pool | InlinePool]:
        """Its own, and those of its actors and pipelines."""
        return [
            self._pool,
            *(pool for made in list(self._actors) for pool in made._pools()),  # noqa: SLF001
        ]

    def health(self) -> Health:
        """Whether the pool is well, for a monitor: figures that are quick to get.

        Its actors have states of their own, see :attr:`Actor.state`.

        Example:
            >>> import shmexec
            >>> with shmexec.Executor(1) as ex:
            ...     ex.submit(abs, -1).result()
            ...     ex.health().state
            1
            'ready'
        """
        return self._pool.health()

    def dump(self, file: TextIO | None = None) -> None:
        """Print what each worker does now: to see where a program hangs.

        For each worker its state, its calls, for how long they run, its private memory,
        and the Python stacks of its threads, innermost call first; where it has an event
        loop, also where coroutines wait. Likewise the workers of actors and pipelines.
        Calls go on undisturbed: the stacks are written by a signal handler that needs no
        Python, also while C code holds the GIL. A worker that cannot answer (since it
        starts, is stopped, or blocks signals) is said to; this takes half a second more.

        C code that waits in a call which the system never restarts after a signal
        (``usleep``, ``poll``), and does not look whether that happened, waits for less
        long; Python's own waits go on.

        Args:
            file: Where to print, as text. Default: ``sys.stderr``.

        Example:
            >>> ex.submit(abs, -1).result()
            1
            >>> import io
            >>> text = io.StringIO()
            >>> ex.dump(text)
            >>> "worker" in text.getvalue()
            True
        """
        parts = [self._pool.dump(), *(each._dump() for each in list(self._actors))]  # noqa: SLF001
        file = sys.stderr if file is None else file
        file.write("\n".join(parts))
        file.flush()

    def story(self, future: Future[Any] | Stream[Any]) -> Story:
        """What happened to a call so far: when it was sent to which worker, and so on.

        Known of all calls that are not done; then of the latest 1,000 that went well, and
        of the latest 1,000 that did not, or not at the first attempt.

        Args:
            future: What :meth:`submit` returned, or a method of one of the executor's
                actors, or :meth:`stream`.

        Raises:
            TypeError: If it is none of these.
            ValueError: If it is another executor's.

        Example:
            >>> import shmexec
            >>> with shmexec.Executor(1) as ex:
            ...     future = ex.submit(abs, -1)
            ...     _ = future.result()
            ...     [step.what.partition(",")[0] for step in ex.story(future).steps]
            ['submitted', 'sent', 'done']
        """
        from shmexec.runtime.telling import story_of

        return story_of(self._pool, future)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; those submitted still run.

        Args:
            wait: Return only when all calls are done and all workers gone. Ctrl-C
                meanwhile ends it at once: calls are cancelled, workers killed.
            cancel_futures: Cancel calls that have not begun.

        Example:
            >>> ex = shmexec.Executor(1)
            >>> future = ex.submit(abs, -1)
            >>> ex.shutdown()
            >>> future.result()
            1
        """
        self._finalizer.detach()
        actors = list(self._actors)
        try:
            self._pool.shutdown(wait=False, cancel_futures=cancel_futures)
            for actor in actors:
                actor.close(wait=False, cancel_futures=cancel_futures)
            if wait:
                for actor in actors:
                    actor.close()
                self._pool.shutdown(wait=True)
        except KeyboardInterrupt as interrupt:
            for actor in actors:
                actor._halt()  # noqa: SLF001  (other names are for its methods)
            self._pool.halt()
            raise interrupt.with_traceback(None) from None

    def _warn_of_growth(self) -> None:
        workers = self._max_workers + sum(actor.replicas for actor in self._actors)
        if workers <= DEFAULT_WORKERS_AT_MOST or self._warned:
            return
        if self._options.in_process:
            return
        from shmexec.runtime import monitor

        self._warned = True
        sizes = map(monitor.private_bytes, self._pool.pids())
        known = [size for size in sizes if size is not None]
        text = monitor.growth_warning(workers, known)
        warnings.warn(text, MemoryWarning, stacklevel=3)

    def __reduce__(self) -> NoReturn:
        msg = (
            "an Executor cannot be pickled: calls cannot submit to the pool they run "
            "in; return what is to be done next instead"
        )
        raise TypeError(msg)

    def __repr__(self) -> str:
        from shmexec.panels import line

        return (
            f"<shmexec.Executor {self._options.name!r}: {line(self._pool.glimpse())}>"
        )

    def _repr_html_(self) -> str:
        """For notebooks; of pools that are closed or broken, too."""
        from shmexec.panels import panel

        title = f"Executor {self._options.name!r}"
        if self._options.in_process:
            title += ", in this process"
        parts = sorted(map(repr, self._actors))
        return panel(title, [self._pool.glimpse()], parts)


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


def _abandon(
    pool: Pool | InlinePool, actors: Iterable[Actor[Any] | Pipeline[Any, Any]]
) -> None:
    """The executor was garbage-collected."""
    pool.abandon()
    held = list(actors)
    if held:
        # A finalizer takes no lock: this thread may have it.
        close_apart(partial(_close_all, held))


def _close_all(actors: list[Actor[Any] | Pipeline[Any, Any]]) -> None:
    for actor in actors:
        actor.close(wait=False)


class OptionsView(Calling):
    """An executor's calls with other settings; made by :meth:`Executor.options`.

    It has all of its ways of calling. The time-out of a stream counts for the whole
    stream, that of a batcher for each batch, that of an actor or a pipeline for each of
    their calls. ``map(timeout=)`` is that of the iterator, here as there.

    Example:
        >>> hasty = ex.options(timeout=30)
        >>> list(hasty.map(abs, [-1, -2]))
        [1, 2]
    """

    def __init__(self, executor: Executor, options: CallOptions) -> None:
        self._executor = executor
        self._pool = executor._pool  # noqa: SLF001
        self._options = executor._options  # noqa: SLF001
        self._call_options = options

    @property
    def _owner(self) -> Executor:
        return self._executor

    def _adopt(self, made: Actor[Any] | Pipeline[Any, Any]) -> None:
        self._executor._adopt(made)  # noqa: SLF001

    def __repr__(self) -> str:
        own = self._call_options
        return (
            f"<{self._executor!r} with timeout={own.timeout}, retries={own.retries}, "
            f"priority={own.priority}, worker={own.worker}>"
        )
