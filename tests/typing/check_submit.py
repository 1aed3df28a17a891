"""Checked by mypy and pyright, not run: the types of results follow those of functions.

A line that ends in ``type: ignore`` is an error of its caller; both would say if it was
none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any, assert_type

import numpy as np

import shmexec


async def wait(number: int) -> str:
    return str(number)


def count(number: int) -> Iterator[int]:
    yield from range(number)


async def acount(number: int) -> AsyncIterator[int]:
    for each in range(number):
        yield each


def halve(number: int, *, exact: bool = True) -> float:
    return number / 2 if exact else number // 2


def repeat(text: str, times: int) -> str:
    return text * times


def between(least: int, number: float, most: int) -> bool:
    return least < number < most


def five(a: int, b: str, c: float, d: bytes, e: bool) -> tuple[int, str]:
    return a, f"{b}{c}{d!r}{e}"


def all_of(*numbers: int) -> int:
    return sum(numbers)


def scale(batch: np.ndarray) -> np.ndarray:
    return batch * 2


def names_of(batch: Sequence[float]) -> list[str]:
    return [str(row) for row in batch]


def nothing(_batch: np.ndarray) -> None: ...


def check_single_calls(ex: shmexec.Executor) -> None:
    assert_type(ex.submit(halve, 3), shmexec.Future[float])
    assert_type(ex.submit(halve, 3, exact=False).result(), float)
    assert_type(ex.submit(wait, 3), shmexec.Future[str])
    assert_type(ex.options(timeout=1).submit(halve, 3), shmexec.Future[float])
    assert_type(ex.options(timeout=1).submit(wait, 3), shmexec.Future[str])
    assert_type(ex.submit(lambda: 3).result(), int)
    assert_type(ex.submit(dict, a=1).result(), dict[str, int])
    ex.submit(halve, "three")  # type: ignore[call-overload]
    ex.submit(halve)  # type: ignore[call-overload]
    ex.submit(halve, 3, precise=True)  # type: ignore[arg-type, call-arg]
    ex.options(timeout=1).submit(halve, "three")  # type: ignore[call-overload]
    ex.options(timeout="1 s")  # type: ignore[arg-type]


def check_maps(ex: shmexec.Executor) -> None:
    assert_type(ex.map(halve, [1, 2]), Iterator[float])
    assert_type(ex.map(wait, [1, 2]), Iterator[str])
    assert_type(ex.map(repeat, ["a"], [2]), Iterator[str])
    assert_type(ex.map(between, [1], [2.5], [3], chunksize=4), Iterator[bool])
    assert_type(
        ex.map(five, [1], "b", [0.5], [b"d"], [True], ordered=False, timeout=3),
        Iterator[tuple[int, str]],
    )
    assert_type(ex.map(all_of, [1], [1], [1], [1], [1], [1], [1]), Iterator[int])
    assert_type(ex.options(retries=1).map(halve, range(3)), Iterator[float])
    assert_type(list(ex.map(lambda n: n * 2, [1, 2])), list[int])
    ex.map(halve, ["a"])  # type: ignore[arg-type]
    ex.map(halve, 3)  # type: ignore[call-overload]
    ex.map(repeat, ["a"])  # type: ignore[arg-type]
    ex.map(repeat, ["a"], ["b"])  # type: ignore[arg-type]
    ex.map(halve, [1], chunk=2)  # type: ignore[call-overload]
    ex.map(halve, [1], chunksize="2")  # type: ignore[call-overload]


def check_batches(ex: shmexec.Executor, array: np.ndarray) -> None:
    assert_type(ex.map_batches(scale, array), np.ndarray)
    assert_type(ex.map_batches(np.sqrt, array, batch_size=3), np.ndarray)
    ex.map_batches(nothing, array)  # type: ignore[arg-type]
    ex.map_batches(scale, array, batch_size="3")  # type: ignore[arg-type]
    batcher = ex.batcher(scale)
    assert_type(batcher, shmexec.Batcher[Any])
    assert_type(batcher(array), shmexec.Future[Any])
    assert_type(ex.batcher(names_of)(array), shmexec.Future[str])
    ex.batcher(scale, on_full="drop")  # type: ignore[call-overload]


def check_streams(ex: shmexec.Executor) -> None:
    assert_type(ex.stream(count, 3), shmexec.Stream[int])
    assert_type(ex.stream(acount, 3), shmexec.Stream[int])
    assert_type(ex.stream(count, 3, buffersize=2), shmexec.Stream[int])
    for number in ex.stream(count, 3):
        assert_type(number, int)
    ex.stream(count, "3")  # type: ignore[call-overload]
    ex.stream(halve, 3)  # type: ignore[call-overload]
    ex.stream(count, 3, buffersize="2")  # type: ignore[call-arg]


def check_broadcasts(ex: shmexec.Executor) -> None:
    assert_type(ex.broadcast(halve, 3), list[float])
    assert_type(ex.broadcast(wait, 3), list[str])
    ex.broadcast(halve, "3")  # type: ignore[call-overload]


def takes_any_executor(ex: Executor) -> None:
    assert_type(ex.submit(halve, 3), Future[float])


def check_the_rest(ex: shmexec.Executor, future: Future[float]) -> None:
    assert_type(ex.stats(), shmexec.Stats)
    assert_type(ex.health(), shmexec.Health)
    assert_type(ex.submit(halve, 3).cached, bool)
    assert_type(ex.submit(halve, 3).cancel(running=True), bool)
    takes_any_executor(ex)
    shmexec.Executor(2, worker_output="drop")  # type: ignore[arg-type]
    shmexec.Executor(2, timeout="3")  # type: ignore[arg-type]
    shmexec.Executor(2, max_wokers=3)  # type: ignore[call-arg]
    with shmexec.ForkPerCallExecutor(2) as forking:
        assert_type(forking.submit(halve, 3).result(), float)
        forking.submit(halve, "3")  # type: ignore[arg-type]
    ex.story(future)  # type: ignore[arg-type]


async def check_async() -> None:
    async with shmexec.Executor(2) as ex:
        assert_type(ex, shmexec.Executor)
        assert_type(await ex.asubmit(wait, 3), str)
        assert_type(await ex.options(timeout=1).asubmit(wait, 3), str)
        assert_type(await ex.asubmit(halve, 3), float)
        async for number in ex.stream(count, 3):
            assert_type(number, int)
        assert_type(ex.amap(halve, [1]), AsyncIterator[float])
        assert_type(ex.amap(wait, [1]), AsyncIterator[str])
        assert_type(ex.amap(halve, acount(3), buffersize=2), AsyncIterator[float])
        assert_type(ex.amap(repeat, ["a"], acount(3)), AsyncIterator[str])
        loop = asyncio.get_running_loop()
        assert_type(await loop.run_in_executor(ex, halve, 3), float)
        await ex.asubmit(halve, "three")  # type: ignore[call-overload]
        ex.amap(halve, ["a"])  # type: ignore[arg-type]
        ex.amap(repeat, ["a"])  # type: ignore[arg-type]
