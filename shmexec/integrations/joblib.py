"""joblib on a pool of shmexec: importing this module registers the backend.

What a ``Parallel`` call submits are batches of tasks; each is one call of a pool. Pools
are kept, one of each size, for later ``Parallel`` calls. Results are dealt with in
callbacks, in whichever thread reads the pool's replies; joblib submits more tasks there,
under a lock of its own. So nothing here waits for room in shared memory while calls are
under way whose end would bring some: their callbacks might need that lock.

Example:
    >>> import joblib
    >>> import shmexec.integrations.joblib
    >>> with joblib.parallel_config(backend="shmexec", n_jobs=2):
    ...     joblib.Parallel()(joblib.delayed(abs)(i) for i in (-1, 2, -3))
    [1, 2, 3]
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future as BaseFuture
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from shmexec.errors import SharedMemoryFull
from shmexec.options import settings_of_environment
from shmexec.runtime.waiting import unblocking
from shmexec.wire import foreign

try:
    from joblib.parallel import (
        AutoBatchingMixin,
        FallbackToBackend,
        ParallelBackendBase,
        SequentialBackend,
        cpu_count,
        register_parallel_backend,
    )
except ImportError as error:
    msg = "joblib is not installed, or is too old: pip install 'shmexec[joblib]'"
    raise ImportError(msg) from error

if TYPE_CHECKING:
    from shmexec.executor import Executor
    from shmexec.integrations.once import SharedOnce
    from shmexec.runtime.futures import Future

__all__ = ["ShmexecBackend", "close_pools"]

IDLE_TIMEOUT = 300.0
"""Seconds after which an idle worker ends, as with joblib's own processes."""

# -- what is pickled ---------------------------------------------------------------------


class _Task:
    """A batch of joblib's on its way to a pool, and who is told of its end."""

    def __init__(
        self,
        batch: Callable[[], Any],
        callback: Callable[[Any], object] | None,
        arrays: SharedOnce,
    ) -> None:
        # First, for an error that names the culprit: tasks[0][1][0] is its first argument.
        self.tasks = getattr(batch, "items", None)
        self.batch = batch
        self.callback = callback
        self.arrays = arrays
        self.future: Future[Any] | None = None

    def end(self, future: BaseFuture[Any]) -> None:
        """Tell of it."""
        if self.callback is not None:
            self.callback(future)


def _reduce_task(task: _Task, buffers: Any) -> Any:
    buffers.stand_in = task.arrays
    return _same, (task.batch,)


def _same(batch: Callable[[], Any]) -> Callable[[], Any]:
    return batch


foreign.reducers[_Task] = _reduce_task


def run_tasks(batch: Callable[[], Any]) -> Any:
    """In a worker: run a batch. That this is imported has registered the backend there."""
    return batch()


# -- pools -------------------------------------------------------------------------------

_pools: dict[tuple[int, int], tuple[dict[str, Any], Executor]] = {}
"""By process and number of workers; with the settings that each was made with."""

_lock = threading.Lock()


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def close_pools() -> None:
    """End the pools that were made for ``Parallel`` calls; later calls make new ones.

    Without it they end with the program, their workers after five minutes of idleness.

    Example:
        >>> import shmexec.integrations.joblib
        >>> shmexec.integrations.joblib.close_pools()
    """
    with _lock:
        mine = [key for key in _pools if key[0] == os.getpid()]
        closing = [_pools.pop(key)[1] for key in mine]
    for executor in closing:
        executor.shutdown()


def _pool(workers: int, settings: dict[str, Any]) -> Executor:
    """The pool of that size, a new one if there is none with these settings."""
    from shmexec.executor import Executor

    key = os.getpid(), workers
    with _lock:
        found = _pools.get(key)
        if found is not None:
            kept, executor = found
            usable = executor.health().state in {"starting", "ready", "busy"}
            if usable and _alike(kept, settings):
                return executor
        executor = Executor(workers, **settings)
        # What another Parallel still has in the one before comes to its end.
        _pools[key] = settings, executor
        return executor


def _alike(one: Any, other: Any) -> bool:
    """Whether settings are the same; objects that may be costly to compare, if identical."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _alike(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_alike, one, other))
    return isinstance(one, (int, float, str)) and one == other


# -- the backend -------------------------------------------------------------------------


class ShmexecBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs the tasks of one ``joblib.Parallel`` in the processes of a pool.

    For users it is ``backend="shmexec"``. ``n_jobs`` is the number of workers; pools are
    kept for later calls with the same number. Arguments of ``joblib.parallel_config``,
    or of ``joblib.Parallel``, beside joblib's own:

    * ``executor``: a :class:`shmexec.Executor` to run the tasks in, which is not closed.
      ``n_jobs=-1`` then means all of its workers.
    * ``idle_worker_timeout``: seconds after which idle workers end. Default 300.
    * whatever :class:`shmexec.Executor` takes, such as ``initializer``, ``initargs``,
      ``retries`` or ``max_worker_memory``.

    Of joblib's own:

    * ``max_nbytes`` (default 1 MB): arrays of more bytes, at any depth in the arguments,
      are copied into shared memory once for each ``Parallel`` call; tasks get them, and
      views of them, without another copy. With ``None`` each task has copies of its own.
      Arrays that were passed to :func:`shmexec.share` are not copied at all.
    * ``mmap_mode`` (default ``"r"``): tasks may read those, ``"c"``: change them in
      private, ``"r+"`` or ``"w+"``: change them for all tasks to see. ``None`` is as
      ``max_nbytes=None``.
    * ``inner_max_num_threads``: threads of BLAS and OpenMP libraries in each worker.
    * ``temp_folder``: of no effect, since no files are made.

    An ``np.memmap`` is mapped from its file, and written to if opened ``"r+"`` or
    ``"w+"``.

    Example:
        >>> import joblib
        >>> with joblib.parallel_config(backend="shmexec", n_jobs=2):
        ...     joblib.Parallel()(joblib.delayed(abs)(i) for i in (-1, 2, -3))
        [1, 2, 3]
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    supports_sharedmem = False

    parallel: Any = None
    _workers: Executor | None = None
    _max_nbytes: int | None = None
    _mmap_mode: str | None = None

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        *,
        executor: Executor | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads
        )
        self._executor = executor
        self._settings = settings
        self._reset()

    def _reset(self) -> None:
        self.parallel = None
        self._workers = None
        self._arrays = self._none_shared()
        # Guards the two below. Nobody waits, or runs foreign code, with it.
        self._lock = threading.Lock()
        self._under_way: set[_Task] = set()
        self._parked: deque[_Task] = deque()
        self._resuming = threading.local()  # whether this thread does
        self.reset_batch_stats()

    def __reduce__(self) -> Any:
        """In another process: one without a pool as yet, and without an executor."""
        own = type(self), self.nesting_level, self.inner_max_num_threads
        return _rebuild, (*own, self._settings)

    # -- what joblib asks --------------------------------------------------------------

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """So many tasks run at a time; see :class:`joblib.Parallel` for ``n_jobs``."""
        if n_jobs == 0:
            msg = "n_jobs == 0 in Parallel has no meaning"
            raise ValueError(msg)
        if n_jobs is None:
            return 1
        if multiprocessing.current_process().daemon:
            if n_jobs != 1:
                text = (
                    "shmexec-backed parallel loops cannot be used in a daemonic "
                    "process, which may have no children: setting n_jobs=1"
                )
                warnings.warn(text, stacklevel=3)
            return 1
        if self._executor is not None:
            there_are = self._executor._max_workers  # noqa: SLF001
            if n_jobs < 0:
                return max(there_are + 1 + n_jobs, 1)
            return min(n_jobs, there_are)
        if n_jobs < 0:
            return max(int(cpu_count()) + 1 + n_jobs, 1)
        return n_jobs

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,  # joblib has looked at these two
        require: str | None = None,
        *,
        max_nbytes: int | None = 1 << 20,
        mmap_mode: str | None = "r",
        temp_folder: Any = None,  # no files are made
        verbose: int = 0,
        context: Any = None,  # the pool has its own
        **settings: Any,
    ) -> int:
        """Get ready for a ``Parallel``; the number of its workers.

        Raises:
            FallbackToBackend: If there is one worker, or this one has a ``Parallel``
                already: each has a backend of its own, so that it can be aborted alone.
        """
        workers = self.effective_n_jobs(n_jobs)
        if workers == 1:
            level = self.nesting_level
            raise FallbackToBackend(SequentialBackend(nesting_level=level))
        if self.parallel is not None and self.parallel is not parallel:
            twin = object.__new__(type(self))
            twin.__dict__.update(self.__dict__)
            twin._reset()
            raise FallbackToBackend(twin)
        if self._executor is None:
            self._workers = _pool(workers, self._pool_settings(workers, settings))
        else:
            self._workers = self._executor
        self.parallel = parallel
        self._max_nbytes, self._mmap_mode = max_nbytes, mmap_mode
        return workers

    def _pool_settings(self, workers: int, more: Mapping[str, Any]) -> dict[str, Any]:
        """What the executor is made with."""
        settings = {**self._settings, **more}
        idle = settings.pop("idle_worker_timeout", None)
        settings.setdefault("idle_timeout", IDLE_TIMEOUT if idle is None else idle)
        settings.setdefault("name", "joblib")
        inner = self.inner_max_num_threads
        names = [*self.MAX_NUM_THREADS_VARS, self.TBB_ENABLE_IPC_VAR]
        # What the program's own environment says comes before joblib's default.
        given = {} if inner is not None else settings_of_environment(names)
        threads = max(cpu_count() // workers, 1) if inner is None else inner
        env = dict.fromkeys(self.MAX_NUM_THREADS_VARS, str(threads))
        env |= {self.TBB_ENABLE_IPC_VAR: "1"} | given
        settings["worker_env"] = env | dict(settings.get("worker_env") or {})
        for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
            if given.get(name, "").isdigit():
                threads = max(int(given[name]), 1)
                break
        settings.setdefault("threads_per_worker", threads)
        return settings

    def start_call(self) -> None:
        """A call of the ``Parallel`` begins: arrays are as they are now."""
        from shmexec.integrations.once import SharedOnce

        modes = {None: None, "w+": "r+"}
        mode = modes.get(self._mmap_mode, self._mmap_mode)
        if self._max_nbytes is None:
            mode = None
        self._arrays = SharedOnce(self._max_nbytes or 0, cast("Any", mode))

    def stop_call(self) -> None:
        """It has ended: what was shared for it goes."""
        self._arrays = self._none_shared()

    def _none_shared(self) -> SharedOnce:
        from shmexec.integrations.once import SharedOnce

        return SharedOnce(0, None)

    def terminate(self) -> None:
        """The ``Parallel`` needs no workers any more; the pool is kept for others."""
        self._workers = None
        self.reset_batch_stats()

    # -- tasks -------------------------------------------------------------------------

    def submit(
        self,
        func: Callable[[], Any],
        callback: Callable[[Any], object] | None = None,
    ) -> Any:
        """Have a batch run; ``callback`` gets its future, whatever becomes of it."""
        task = _Task(func, callback, self._arrays)
        self._begin(task)
        return task

    def apply_async(
        self,
        func: Callable[[], Any],
        callback: Callable[[Any], object] | None = None,
    ) -> Any:
        """As :meth:`submit`, for joblib before 1.5."""
        return self.submit(func, callback)

    def retrieve_result_callback(self, out: BaseFuture[Any]) -> Any:
        """The results of a batch, or what it raised."""
        return out.result()

    def _begin(self, task: _Task) -> bool:
        """Send a task to the pool; False if it has to wait until others have ended."""
        try:
            if not self._send_nowait(task):
                if self._park(task):
                    return False
                # None of ours is under way, whose callbacks could be held up: if this
                # thread may wait for others' calls to make room, it does.
                self._send(task)
        except Exception as error:  # noqa: BLE001  (the Parallel is told of it)
            failed: BaseFuture[Any] = BaseFuture()
            failed.set_exception(error)
            task.end(failed)
        return True

    def _send_nowait(self, task: _Task) -> bool:
        """False if there is no room in shared memory now."""
        try:
            unblocking(self._send, task)
        except SharedMemoryFull:
            return False
        return True

    def _send(self, task: _Task) -> None:
        assert self._workers is not None, "it is configured"
        future = task.future = self._workers.submit(run_tasks, cast("Any", task))
        with self._lock:
            self._under_way.add(task)
        future.add_done_callback(partial(self._end, task))

    def _park(self, task: _Task) -> bool:
        """Have a task wait for the end of another; False if there is none.

        Who wakes it: the callback of each that is under way; all of them end, if only
        since their worker died, or the pool did.
        """
        with self._lock:
            if self._under_way:
                self._parked.append(task)
            return bool(self._under_way)

    def _end(self, task: _Task, future: BaseFuture[Any]) -> None:
        with self._lock:
            self._under_way.discard(task)
        # A task may end as it begins: then the loop that began it goes on with the others.
        if not getattr(self._resuming, "here", False):
            self._resuming.here = True
            try:
                self._resume()
            finally:
                self._resuming.here = False
        task.end(future)

    def _resume(self) -> None:
        """Begin what is parked, as far as there is room; the rest is parked again.

        One at a time, so that those that end meanwhile see all the others.
        """
        while (parked := self._next_parked()) is not None and self._begin(parked):
            pass

    def _next_parked(self) -> _Task | None:
        with self._lock:
            return self._parked.popleft() if self._parked else None

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Stop this ``Parallel``'s tasks, also those that run; the pool goes on."""
        with self._lock:
            self._parked.clear()
            under_way = list(self._under_way)
        for task in under_way:
            if task.future is not None:
                task.future.cancel(running=True)


def _rebuild(
    cls: type[ShmexecBackend],
    nesting_level: int | None,
    threads: int | None,
    settings: dict[str, Any],
) -> ShmexecBackend:
    return cls(nesting_level, threads, **settings)


register_parallel_backend("shmexec", ShmexecBackend)
