"""Dask on a pool, with chunks that pass from task to task by reference.

``dask.config.set(scheduler=ex)`` needs nothing from here. There, a chunk is copied for
each task that takes it, as any argument is; that is as it should be for tasks that write
to what they take. With :func:`by_reference` none is copied on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from shmexec.memory.views import loan_of
from shmexec.sharing import share

try:
    from dask import local
except ImportError as error:
    msg = "Dask is not installed: pip install dask"
    raise ImportError(msg) from error

if TYPE_CHECKING:
    from shmexec.executor import Executor
    from shmexec.runtime.futures import Future

__all__ = ["by_reference"]


def by_reference(ex: Executor) -> Callable[..., Any]:
    """A scheduler for Dask whose tasks take the chunks of other tasks without a copy.

    For computations in which a chunk goes to many tasks: ``rechunk``, ``x + x.T``, matrix
    products. What a task gets so is read-only: one that writes to it fails. Chunks under
    32 KiB, those of the program's own arrays, and DataFrames are copied once for each task
    that takes them, and are writable, as with ``scheduler=ex``. Results of ``compute`` are
    writable, too.

    Args:
        ex: The executor; it may serve other calls as well, and is not closed.

    Returns:
        What ``dask.config.set(scheduler=...)`` and ``compute(scheduler=...)`` take.

    Example:
        >>> import dask.array as da
        >>> import shmexec
        >>> from shmexec.integrations.dask import by_reference
        >>> x = da.ones((400, 400), chunks=(100, 400))
        >>> with shmexec.Executor(2) as ex:
        ...     float((x + x.T).sum().compute(scheduler=by_reference(ex)))
        320000.0
    """
    return partial(_get, ex)


def _get(
    ex: Executor,
    graph: Mapping[Any, Any],
    keys: Any,
    *,
    num_workers: int | None = None,
    **settings: Any,
) -> Any:
    """Compute ``keys`` of a graph, as Dask asks its schedulers to."""
    at_once = num_workers or ex.stats().max_workers
    get: Callable[..., Any] = local.get_async
    return get(partial(_submit, ex), at_once, graph, keys, **settings)


def _submit(
    ex: Executor, run: Callable[[list[Any]], Any], tasks: list[Any]
) -> Future[Any]:
    """Submit some of Dask's tasks, each with what it takes of others."""
    for _, (_, taken), *_ in tasks:
        for key, value in taken.items():
            if _is_result(value):
                # The view is frozen; the chunk itself, which may be what the program
                # asked for, stays writable.
                taken[key] = share(value.view())
    return ex.submit(run, tasks)


def _is_result(value: Any) -> bool:
    """Whether this is an array that came from a worker, and that nobody has shared."""
    if type(value) is not np.ndarray:
        return False
    loan = loan_of(value)
    # The second time a chunk is taken, its memory is shared read-only already.
    return loan is not None and loan.mode in {None, "r"} and value.flags.writeable
