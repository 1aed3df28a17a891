"""Packages of others, and one subprocess per call, as their documentation has it."""

from __future__ import annotations

import itertools
import logging
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shmexec.comparing.caller import Caller, Submit

_SCATTER_FROM = 1 << 20
"""Bytes: larger arguments are ``scatter``ed, as Dask's warning about them asks for."""


@contextmanager
def loky(workers: int) -> Iterator[Caller]:
    """The reusable executor."""
    from loky import get_reusable_executor

    executor = get_reusable_executor(workers)
    yield Submit(executor, workers)
    executor.shutdown()


@contextmanager
def joblib(workers: int) -> Iterator[Caller]:
    """``Parallel``; arrays of 1 MB and more are memory-mapped automatically."""
    from joblib import Parallel

    with Parallel(workers) as parallel:
        yield _Joblib(parallel, workers)
    from joblib.externals.loky import get_reusable_executor

    get_reusable_executor().shutdown()


class _Joblib(Caller):
    """One ``Parallel`` for each batch of calls; one for all where input is reused.

    The latter writes an array to a file only once, and so does not see it change.
    """

    views = False  # a view would be written to a file of its own

    def __init__(self, parallel: Any, workers: int) -> None:
        self._kept = parallel
        self.workers = workers
        self._reuses = False

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self.gather(fn, [args])[0]

    def gather(self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Any:
        from joblib import Parallel, delayed

        changes = any(hasattr(arg, "shape") for arg in calls[0])
        fresh = changes and not self._reuses
        parallel = Parallel(self.workers) if fresh else self._kept
        return parallel(delayed(fn)(*args) for args in calls)

    def keep(self, value: Any) -> Any:
        self._reuses = True
        return value


@contextmanager
def mpire(workers: int) -> Iterator[Caller]:
    """``WorkerPool`` with workers kept alive; reused inputs are ``shared_objects``."""
    from mpire import WorkerPool

    with WorkerPool(workers, start_method="fork", keep_alive=True) as pool:
        yield _Mpire(pool, workers)


class _Shared:
    """Stands for what the pool's workers inherit."""


class _Box:
    """Around it: the pool compares shared objects, which arrays do not like."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _with_shared(shared: _Box, fn: Callable[..., Any], *args: Any) -> Any:
    return fn(*(shared.value if isinstance(arg, _Shared) else arg for arg in args))


class _Mpire(Caller):
    views = False

    def __init__(self, pool: Any, workers: int) -> None:
        self._pool = pool
        self.workers = workers
        self._shares = False

    def _call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, Any]:
        return (_with_shared, (fn, *args)) if self._shares else (fn, args)

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self._pool.apply(*self._call(fn, args))

    def gather(self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Any:
        results = [self._pool.apply_async(*self._call(fn, args)) for args in calls]
        return [result.get() for result in results]

    def map(self, fn: Callable[..., Any], items: Sequence[Any]) -> Iterable[Any]:
        return self._pool.map(fn, items)

    def map_chunked(
        self, fn: Callable[..., Any], items: Sequence[Any]
    ) -> Iterable[Any]:
        return self._pool.map(fn, items, chunk_size=self.chunk(items))

    def keep(self, value: Any) -> Any:
        # Workers inherit it when they are forked: those that run must be replaced.
        self._pool.stop_and_join()
        self._pool.set_shared_objects(_Box(value))
        self._shares = True
        return _Shared()


@contextmanager
def pebble(workers: int) -> Iterator[Caller]:
    """``ProcessPool``."""
    from pebble import ProcessPool

    with ProcessPool(workers) as pool:
        yield _Pebble(pool, workers)


class _Pebble(Caller):
    def __init__(self, pool: Any, workers: int) -> None:
        self._pool = pool
        self.workers = workers

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self._pool.schedule(fn, args=args).result()

    def gather(self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Any:
        futures = [self._pool.schedule(fn, args=args) for args in calls]
        return [future.result() for future in futures]

    def map(self, fn: Callable[..., Any], items: Sequence[Any]) -> Iterable[Any]:
        return self._pool.map(fn, items).result()

    def map_chunked(
        self, fn: Callable[..., Any], items: Sequence[Any]
    ) -> Iterable[Any]:
        return self._pool.map(fn, items, chunksize=self.chunk(items)).result()


@contextmanager
def ray(workers: int) -> Iterator[Caller]:
    """A local cluster; reused inputs are ``put`` into its object store."""
    import ray as package

    package.init(
        num_cpus=workers,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield _Ray(package, workers)
    finally:
        package.shutdown()


class _Ray(Caller):
    views = False

    def __init__(self, package: Any, workers: int) -> None:
        self._ray = package
        self.workers = workers
        self._remotes: dict[Any, Any] = {}

    def _remote(self, fn: Callable[..., Any]) -> Any:
        if fn not in self._remotes:
            self._remotes[fn] = self._ray.remote(fn)
        return self._remotes[fn]

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self._ray.get(self._remote(fn).remote(*args))

    def gather(self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Any:
        remote = self._remote(fn)
        return self._ray.get([remote.remote(*args) for args in calls])

    def keep(self, value: Any) -> Any:
        return self._ray.put(value)


@contextmanager
def dask(workers: int) -> Iterator[Caller]:
    """A ``LocalCluster`` of processes; large inputs are ``scatter``ed."""
    from distributed import Client, LocalCluster

    with LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        silence_logs=logging.CRITICAL,
    ) as cluster:
        with Client(cluster) as client:
            yield _Dask(client, workers)


class _Dask(Caller):
    views = False

    def __init__(self, client: Any, workers: int) -> None:
        self._client = client
        self.workers = workers

    def _sent(self, args: tuple[Any, ...]) -> list[Any]:
        return [
            self._client.scatter(arg, hash=False)
            if _nbytes(arg) >= _SCATTER_FROM
            else arg
            for arg in args
        ]

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        return self._client.submit(fn, *self._sent(args), pure=False).result()

    def gather(self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Any:
        columns = zip(*(self._sent(args) for args in calls), strict=True)
        futures = self._client.map(fn, *map(list, columns), pure=False)
        return self._client.gather(futures)

    def keep(self, value: Any) -> Any:
        return self._client.scatter(value, broadcast=True, hash=False)


def _nbytes(value: Any) -> int:
    """Of an array or a data frame; 0 for all else."""
    if isinstance(value, np.ndarray):
        return value.nbytes
    if hasattr(value, "memory_usage"):
        return int(value.memory_usage().sum())
    return 0


@contextmanager
def subprocess_per_call(workers: int) -> Iterator[Caller]:
    """``python -c`` for each call; arrays go through ``.npy`` files, all else pickled."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(workers) as threads,
    ):
        yield _Subprocess(Path(folder), threads, workers)


_SCRIPT = """
import importlib, pickle, sys
import numpy as np

module, name, folder = sys.argv[1:]
with open(folder + "/args.pickle", "rb") as file:
    args = pickle.load(file)
args = [np.load(arg[0]) if type(arg) is list else arg for arg in args]
result = getattr(importlib.import_module(module), name)(*args)
if isinstance(result, np.ndarray):
    np.save(folder + "/result.npy", result)
else:
    with open(folder + "/result.pickle", "wb") as file:
        pickle.dump(result, file)
"""


class _File:
    """An array that was saved once for many calls."""

    def __init__(self, path: Path) -> None:
        self.path = path


class _Subprocess(Caller):
    views = False

    def __init__(self, folder: Path, threads: ThreadPoolExecutor, workers: int) -> None:
        self._folder = folder
        self._threads = threads
        self.workers = workers
        self._numbers = itertools.count()

    def call(self, fn: Callable[..., Any], *args: Any) -> Any:
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            folder = Path(name)
            sent = [self._saved(arg, folder) for arg in args]
            (folder / "args.pickle").write_bytes(pickle.dumps(sent))
            command = [sys.executable, "-c", _SCRIPT]
            command += [fn.__module__, fn.__qualname__, name]
            subprocess.run(command, check=True)
            array = folder / "result.npy"
            if array.exists():
                return np.load(array)
            return pickle.loads((folder / "result.pickle").read_bytes())

    def gather(self, fn: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Any:
        return [*self._threads.map(lambda args: self.call(fn, *args), calls)]

    def keep(self, value: Any) -> Any:
        path = self._folder / f"kept{next(self._numbers)}.npy"
        np.save(path, value)
        return _File(path)

    def _saved(self, arg: Any, folder: Path) -> Any:
        if isinstance(arg, _File):
            return [str(arg.path)]
        if not isinstance(arg, np.ndarray):
            return arg
        path = folder / f"{next(self._numbers)}.npy"
        np.save(path, arg)
        return [str(path)]
