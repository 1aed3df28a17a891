"""What surrounds a call in a worker: a context of its own, and a span.

A call with surroundings runs in a copy of the worker's context, in which the values that
came with it are set. So nothing that it sets is seen by the next one. Coroutines and
generators run in it, too, for as long as they go on.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextvars import Context, ContextVar, copy_context
from types import AsyncGeneratorType, CoroutineType, GeneratorType
from typing import Any

from shmexec.worker.tasks import run_chunk

_find: Callable[[bytes], ContextVar[Any]] = functools.lru_cache(256)(pickle.loads)
"""The variable of a reference, which is its pickle."""

_here: ContextVar[object] = ContextVar("shmexec_surroundings", default=None)
"""Whose surroundings these are, for coroutines: not all run in one context."""


class Surrounded:
    """A function with what surrounds one call of it.

    Args:
        fn: The function.
        around: References of variables and their values; the trace context, or None; the
            call's name.
        number: The call's number.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        around: tuple[Sequence[tuple[bytes, Any]], dict[str, str] | None, str],
        number: int,
    ) -> None:
        self.__wrapped__ = fn
        self._values, self._carrier, self._name = around
        self._number = number

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function in its surroundings."""
        context = copy_context()
        if self.__wrapped__ is run_chunk:
            # Each item is a call of its own.
            args = (_Isolated(args[0]), *args[1:])
        return context.run(self._call, context, args, kwargs)

    def _call(
        self, context: Context, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self._enter()
        span = self._begin()
        try:
            result = self.__wrapped__(*args, **kwargs)
        except BaseException as error:
            span.end(error)
            raise
        if type(result) is CoroutineType:
            return self._awaited(result, span)
        return self._ended(result, span, context)

    def _ended(self, result: Any, span: Any, context: Context) -> Any:
        """What the function returned, or what goes on in its surroundings."""
        # Exactly these types: nothing else is known to run later, in this process.
        if type(result) is GeneratorType:
            return self._iterated(result, context, span)
        if type(result) is AsyncGeneratorType:
            return self._iterated_async(result, span)
        span.end(None)
        return result

    def _enter(self) -> None:
        """Set the values in the current context."""
        for reference, value in self._values:
            _find(reference).set(value)
        _here.set(self)

    def _enter_again(self, span: Any) -> None:
        """The same for a step that may run in a task, and so a context, of its own."""
        if _here.get() is not self:
            self._enter()
            span.enter()

    def _begin(self) -> Any:
        if self._carrier is None:
            return _NO_SPAN
        from shmexec.worker import tracing

        return tracing.Span(self._carrier, self._name, self._number)

    async def _awaited(self, result: Coroutine[Any, Any, Any], span: Any) -> Any:
        self._enter_again(span)
        try:
            value = await result
        except BaseException as error:
            span.end(error)
            raise
        return self._ended(value, span, copy_context())

    def _iterated(
        self, items: Generator[Any, Any, Any], context: Context, span: Any
    ) -> Generator[Any, Any, Any]:
        value = None
        try:
            try:
                while True:
                    # In no variable: it may be an array that can be handed over.
                    yield context.run(next, items)
            except StopIteration as stop:
                value = stop.value
        except BaseException as error:
            context.run(items.close)
            span.end(None if isinstance(error, GeneratorExit) else error)
            raise
        span.end(None)
        return value

    async def _iterated_async(
        self, items: AsyncGenerator[Any, Any], span: Any
    ) -> AsyncGenerator[Any, Any]:
        try:
            try:
                while True:
                    self._enter_again(span)
                    yield await anext(items)
            except StopAsyncIteration:
                pass
        except BaseException as error:
            self._enter_again(span)
            await items.aclose()
            span.end(None if isinstance(error, GeneratorExit) else error)
            raise
        span.end(None)


class _Isolated:
    """A function that has a context of its own each time it is called."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.__wrapped__ = fn

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return copy_context().run(self.__wrapped__, *args, **kwargs)


class _NoSpan:
    """Stands for a span where there is no trace."""

    def enter(self) -> None:
        """Nothing to enter."""

    def end(self, _error: BaseException | None) -> None:
        """Nothing to end."""


_NO_SPAN = _NoSpan()
