"""What the pools of nodes are made with, checked where the program can be told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed.protocol.pickle import dumps

from shmexec.options import (
    arguments,
    byte_count,
    callable_or_none,
    environment,
    positive_int,
)
from shmexec.wire.explaining import explain


def pool_settings(
    *,
    initializer: object,
    initargs: object,
    threads_per_worker: object,
    max_shared_memory: object,
    worker_env: object,
) -> dict[str, Any]:
    """For :class:`shmexec.Executor` on each node.

    Raises:
        TypeError, ValueError: For one that makes no sense.
        SerializationError: If the initializer or its arguments cannot be pickled.
    """
    fn, args = callable_or_none("initializer", initializer), arguments(initargs)
    checked = {
        "initializer": fn,
        "initargs": args,
        "threads_per_worker": None
        if threads_per_worker is None
        else positive_int("threads_per_worker", threads_per_worker),
        "max_shared_memory": byte_count("max_shared_memory", max_shared_memory),
        "worker_env": environment(worker_env),
    }
    if fn is not None:
        _check_travels(fn, args)
    return checked


def _check_travels(initializer: Callable[..., object], args: tuple[Any, ...]) -> None:
    try:
        dumps((initializer, args))  # as Dask will
    except Exception as error:
        named = {f"initargs[{index}]": value for index, value in enumerate(args)}
        parts = {**named, "initializer": initializer}
        raise explain(error, parts, "the initializer") from error
