"""One stage of a pipeline, in its worker: what the actor that it is made of runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from types import CoroutineType
from typing import Any

from shmexec.wire.parcels import ForWorker
from shmexec.worker.loop import awaited
from shmexec.worker.steps import END, Steps


class FlushedAll(Exception):
    """A stage keeps nothing more."""


class Builder:
    """Makes a stage where it is to live; known by the name of what the user gave.

    Args:
        name: That name.
        make: A class or, if ``args`` is None, a function.
        args: The class's arguments.
        kwargs: Its keyword arguments.
        last: Whether results go to the program, not to another worker.
    """

    def __init__(
        self,
        name: str,
        make: Callable[..., Any],
        args: tuple[Any, ...] | None,
        kwargs: Mapping[str, Any],
        *,
        last: bool,
    ) -> None:
        self.__name__ = self.__qualname__ = name
        self._made_of = make, args, kwargs
        self._last = last

    def __call__(self) -> Running:
        """The stage."""
        make, args, kwargs = self._made_of
        if args is None:
            return Running(None, make, last=self._last)
        owner = make(*args, **kwargs)
        process = getattr(owner, "process", owner)
        return Running(owner, process, last=self._last)


class Running:
    """A stage: an instance of the user's class, or a function."""

    def __init__(
        self, owner: Any, process: Callable[[Any], Any], *, last: bool
    ) -> None:
        self._owner = owner
        self._process = process
        self._last = last
        self._flushing: Steps | None = None
        self._flushed = False

    def initialize(self) -> Any:
        """The instance's own, if it has one."""
        return self._call("initialize")

    def cleanup(self) -> Any:
        """The instance's own, if it has one."""
        return self._call("cleanup")

    def _call(self, name: str) -> Any:
        method = getattr(self._owner, name, None)
        return method() if callable(method) else None

    def process(self, item: Any) -> Any:
        """One item."""
        made = self._process(item)
        if type(made) is CoroutineType:
            return self._later(made)
        return made if self._last else ForWorker(made)

    async def _later(self, making: CoroutineType[Any, Any, Any]) -> Any:
        made = await making
        return made if self._last else ForWorker(made)

    def flush(self) -> Any:
        """The next one of what the stage kept, at the end of a stream.

        Raises:
            FlushedAll: If there is no more.
        """
        if self._flushed:
            self._flushed = False
            raise FlushedAll
        if self._flushing is None:
            made = awaited(self._call("flush"))
            if not isinstance(made, Generator | AsyncGenerator):
                if made is None:
                    raise FlushedAll
                self._flushed = True
                return made if self._last else ForWorker(made)
            self._flushing = Steps(made)
            del made
        try:
            item = self._flushing.step()
        except BaseException:
            self._flushing = None
            raise
        if item is END:
            self._flushing = None
            raise FlushedAll
        return item if self._last else ForWorker(item)
