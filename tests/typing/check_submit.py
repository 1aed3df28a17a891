"""Checked by mypy, not run: the types of results follow those of functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import assert_type

import numpy as np

import shmexec


def halve(number: int, *, exact: bool = True) -> float:
    return number / 2 if exact else number // 2


def check() -> None:
    with shmexec.Executor(2) as ex:
        assert_type(ex.submit(halve, 3), shmexec.Future[float])
        assert_type(ex.submit(halve, 3, exact=False).result(), float)
        assert_type(ex.map(halve, [1, 2]), Iterator[float])
        assert_type(ex.options(timeout=1).submit(halve, 3), shmexec.Future[float])
        assert_type(ex.broadcast(halve, 3), list[float])
        assert_type(ex.stats(), shmexec.Stats)
        ex.submit(halve, "three")  # type: ignore[arg-type]


def check_share(array: np.ndarray) -> None:
    assert_type(shmexec.share(array), np.ndarray)
    handle = shmexec.share({"a": 1})
    assert_type(handle, shmexec.Shared[dict[str, int]])
    assert_type(handle.value, dict[str, int])
