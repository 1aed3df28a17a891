"""What type checkers are told of settings that several overloads take.

Nothing here is imported when a program runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Literal, TypedDict

from shmexec.options import Fallback


class MapSettings(TypedDict, total=False):
    """Of :meth:`shmexec.Executor.map`, which explains them."""

    timeout: float | None
    chunksize: int | None
    buffersize: int | None
    ordered: bool
    progress: bool


class AsyncMapSettings(TypedDict, total=False):
    """Of :meth:`shmexec.Executor.amap`, which explains them."""

    buffersize: int | None
    ordered: bool


class ExecutorSettings(TypedDict, total=False):
    """Of :class:`shmexec.Executor`, which explains them, beside the number of workers."""

    mp_context: Any
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    max_tasks_per_child: int | None
    timeout: float | None
    retries: int
    max_restarts: int
    max_shared_memory: int | str | None
    max_worker_memory: int | str | None
    max_worker_memory_hard: int | str | None
    min_free_memory: int | str | None
    idle_timeout: float | None
    threads_per_worker: int | None
    worker_env: Mapping[str, str] | None
    in_process: bool
    worker_output: Literal["forward", "inherit", "discard"]
    name: str | None
    fallback: Fallback | None
    context: Iterable[ContextVar[Any]]
