"""What type checkers are told of settings that several overloads take.

Nothing here is imported when a program runs.
"""

from __future__ import annotations

from typing import TypedDict


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
