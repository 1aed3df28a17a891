"""Classes that the tests keep in workers. Light: every worker imports this."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.contract.calls import Barrier


def kill_me() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


class Counter:
    """Counts its calls; tells of itself."""

    def __init__(self, start: int = 0, *, step: int = 1) -> None:
        self.value = start
        self.step = step
        self.seen: list[Any] = []
        self.failures = 0
        self.size = 5

    @property
    def double(self) -> int:
        return 2 * self.value

    def add(self, *args: Any, **kwargs: Any) -> int:
        self.seen.append(kwargs or args)
        self.value += self.step
        return self.value

    def close(self) -> str:
        return "its own"

    def what(self) -> list[Any]:
        return self.seen

    def pid(self) -> int:
        return os.getpid()

    def wait(self, gate: Barrier, value: Any = None) -> Any:
        gate.wait()
        self.seen.append(value)
        return value

    def stay(self, gate: Barrier) -> None:
        gate.arrive()
        while True:
            signal.pause()

    def fail(self, error: BaseException) -> None:
        self.failures += 1
        raise error

    async def later(self, value: Any) -> tuple[Any, int]:
        import asyncio

        await asyncio.sleep(0)
        return value, id(asyncio.get_running_loop())

    async def fail_later(self, error: BaseException) -> None:
        self.failures += 1
        raise error

    def get_failures(self) -> int:
        return self.failures

    def count(self, number: int) -> Iterator[int]:
        try:
            for i in range(number):
                self.at = i
                yield i
        finally:
            self.closed = self.at

    async def count_later(self, number: int) -> AsyncIterator[int]:
        import asyncio

        for i in range(number):
            await asyncio.sleep(0)
            yield i

    def closed_at(self) -> int:
        return self.closed

    def die(self) -> None:
        kill_me()

    def times(self, array: np.ndarray, factor: float) -> np.ndarray:
        return array * factor

    def write(self, array: np.ndarray) -> None:
        array[0] = 1


class Noting:
    """Notes in a file what is done with it, and does as it is told at each step.

    Args:
        path: The file.
        does: What to do there: step to ``"raise"``, ``"kill"`` or ``"hang"``.
        gate: Where to arrive before that.
    """

    def __init__(
        self, path: Path, does: dict[str, str] | None = None, gate: Any = None
    ) -> None:
        self.path = path
        self.does = does or {}
        self.gate = gate
        self.step("init")

    def step(self, name: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{name} {os.getpid()}\n")
        does = self.does.get(name)
        if does and self.gate is not None:
            self.gate.arrive()
        if does == "raise":
            raise ValueError(f"cannot {name}")
        if does == "kill":
            kill_me()
        while does == "hang":
            signal.pause()

    def initialize(self) -> None:
        self.step("initialize")

    def work(self, value: Any = None) -> Any:
        self.step("work")
        return value

    def cleanup(self) -> None:
        self.step("cleanup")


class AsyncNoting(Noting):
    """The same in coroutines."""

    async def initialize(self) -> None:  # type: ignore[override]
        import asyncio

        await asyncio.sleep(0)
        self.step("initialize")

    async def cleanup(self) -> None:  # type: ignore[override]
        import asyncio

        await asyncio.sleep(0)
        self.step("cleanup")


class Service:
    """Waits, most of the time, as what it calls does."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.order: list[Any] = []
        self.released: Any = None
        self.ended: list[str] = []

    async def wait(self, value: Any = None) -> Any:
        """Until :meth:`release`."""
        import asyncio

        self.order.append(value)
        self.now += 1
        self.most = max(self.most, self.now)
        if self.released is None:
            self.released = asyncio.Event()
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.ended.append(f"cancelled {value}")
            raise
        finally:
            self.now -= 1
        return value

    async def release(self) -> None:
        self.released.set()

    def get(self, name: str) -> Any:
        return getattr(self, name)

    async def same(self, value: Any) -> Any:
        return value

    async def fail(self, error: BaseException) -> None:
        raise error

    async def arrays(self, number: int, value: float) -> np.ndarray:
        import asyncio

        array = np.zeros(number)
        await asyncio.sleep(0)
        array += value
        await asyncio.sleep(0)
        return array

    async def total(self, array: np.ndarray) -> float:
        import asyncio

        await asyncio.sleep(0)
        return float(array.sum())

    async def count(self, number: int, size: int = 10_000) -> AsyncIterator[np.ndarray]:
        import asyncio

        try:
            for i in range(number):
                await asyncio.sleep(0)
                yield np.full(size, i)
        finally:
            self.ended.append("count")

    async def log(self, text: str) -> None:
        import asyncio
        import logging

        for _ in range(3):
            logging.getLogger("service").warning(text)
            await asyncio.sleep(0)

    def plain_count(self, number: int) -> Iterator[int]:
        try:
            yield from range(number)
        finally:
            self.ended.append("plain_count")

    async def fail_in_stream(self) -> AsyncIterator[int]:
        yield 1
        raise KeyError("k")

    async def never(self, gate: Barrier) -> AsyncIterator[int]:
        import asyncio

        gate.arrive()
        try:
            await asyncio.Event().wait()
            yield 1
        finally:
            self.ended.append("never")

    async def stubborn(self, gate: Barrier) -> None:
        import asyncio

        gate.arrive()
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

    async def die(self) -> None:
        kill_me()

    def block(self, gate: Barrier) -> None:
        gate.arrive()
        while True:
            signal.pause()

    async def write(self, array: np.ndarray) -> None:
        array[0] = 1


def make_counter(start: int) -> Counter:
    """A function that makes an instance."""
    return Counter(start)
