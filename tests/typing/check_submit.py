"""Checked by mypy, not run: the types of results follow those of functions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import assert_type

import numpy as np

import shmexec


async def wait(number: int) -> str:
    return str(number)


def count(number: int) -> Iterator[int]:
    yield from range(number)


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
        assert_type(ex.actor(list, [1]), shmexec.Actor)
        assert_type(ex.options(timeout=1).actor(list, replicas=2), shmexec.Actor)
        assert_type(ex.actor(list).state, str)
        ex.submit(halve, "three")  # type: ignore[call-overload]


def check_share(array: np.ndarray) -> None:
    assert_type(shmexec.share(array), np.ndarray)
    handle = shmexec.share({"a": 1})
    assert_type(handle, shmexec.Shared[dict[str, int]])
    assert_type(handle.value, dict[str, int])


async def check_async() -> None:
    async with shmexec.Executor(2) as ex:
        assert_type(ex, shmexec.Executor)
        assert_type(ex.submit(wait, 3), shmexec.Future[str])
        assert_type(await ex.asubmit(wait, 3), str)
        assert_type(ex.options(timeout=1).submit(wait, 3), shmexec.Future[str])
        assert_type(await ex.options(timeout=1).asubmit(wait, 3), str)
        assert_type(await ex.asubmit(halve, 3), float)
        assert_type(ex.stream(count, 3), shmexec.Stream[int])
        async for number in ex.stream(count, 3):
            assert_type(number, int)
        assert_type(ex.amap(halve, [1]), AsyncIterator[float])
