"""Stages of pipelines for tests. Light: every worker imports this."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import numpy as np

from tests.contract.calls import Barrier


class Add:
    """Adds a number, in place."""

    def __init__(self, number: float) -> None:
        self.number = number

    def process(self, x: Any) -> Any:
        """One item."""
        x += self.number
        return x


class Scale:
    """Multiplies; a new array."""

    def __init__(self, by: float = 2) -> None:
        self.by = by

    def __call__(self, x: Any) -> Any:
        """One item."""
        return x * self.by


def negative(x: Any) -> Any:
    """A stage without state."""
    return -x


def same(x: Any) -> Any:
    """What it is given."""
    return x


async def later(x: Any) -> Any:
    """One that awaits."""
    import asyncio

    await asyncio.sleep(0)
    return x


class Counts:
    """Says how many items it has had: state that stays."""

    def __init__(self) -> None:
        self.count = 0

    def process(self, x: Any) -> Any:
        """One item."""
        self.count += 1
        return x, self.count


class Keeps:
    """Keeps items in the ways there are of giving them back."""

    def __init__(self, how: str = "yields") -> None:
        self.how = how
        self.kept: list[Any] = []

    def process(self, x: Any) -> Any:
        """One item."""
        self.kept.append(x if isinstance(x, (int, str)) else np.array(x))
        return x

    def flush(self) -> Any:
        """In one of the ways."""
        kept, self.kept = self.kept, []
        return {
            "yields": lambda: self._each(kept),
            "returns": lambda: kept or None,
            "awaits": lambda: self._soon(kept or None),
            "async": lambda: self._one_by_one(kept),
            "nothing": lambda: None,
            "fails": lambda: 1 // 0,
        }[self.how]()

    def _each(self, kept: list[Any]) -> Iterator[Any]:
        for x in kept:
            yield "kept", x

    async def _soon(self, kept: Any) -> Any:
        return kept

    async def _one_by_one(self, kept: list[Any]) -> AsyncIterator[Any]:
        for x in kept:
            yield "kept", x


class Fails:
    """Raises, or dies, at one item."""

    def __init__(self, at: Any, dies: bool = False) -> None:
        self.at = at
        self.dies = dies
        self.count = 0

    def process(self, x: Any) -> Any:
        """One item."""
        self.count += 1
        if np.ravel(x)[0] == self.at:
            if self.dies:
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyError(self.at)
        return x

    def flush(self) -> Iterator[Any]:
        """How many it has had since it was built or flushed."""
        count, self.count = self.count, 0
        yield f"{count} items"


class Waits:
    """Passes a gate with each item, or with one of them."""

    def __init__(self, gate: Barrier, at: Any = None) -> None:
        self.gate = gate
        self.at = at

    def process(self, x: Any) -> Any:
        """One item."""
        if self.at is None or x == self.at:
            self.gate.wait()
        return x


class Reads:
    """Says what a context variable has, and at the end again."""

    def __init__(self, variable: ContextVar[str]) -> None:
        self.variable = variable

    def process(self, x: Any) -> Any:
        """One item."""
        return f"{x} {self.variable.get()}"

    def flush(self) -> Any:
        """At the end."""
        return f"end {self.variable.get()}"


class CannotBeBuilt:
    """Its ``__init__`` raises."""

    def __init__(self) -> None:
        msg = "no such weights"
        raise OSError(msg)

    def process(self, x: Any) -> Any:
        """Never called."""


class Life:
    """Writes down what happens to it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.note("init")

    def note(self, what: str) -> None:
        """A line."""
        with open(self.path, "a") as file:
            file.write(f"{what}\n")

    def initialize(self) -> None:
        """As actors have it."""
        self.note("initialize")

    def process(self, x: Any) -> Any:
        """One item."""
        self.note(f"process {x}")
        return x

    def flush(self) -> None:
        """Nothing comes of it."""
        self.note("flush")

    def cleanup(self) -> None:
        """As actors have it."""
        self.note("cleanup")
