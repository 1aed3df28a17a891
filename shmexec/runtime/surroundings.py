"""What goes along with a call: values of context variables, and the trace context.

This is the parent's side; :mod:`shmexec.worker.surroundings` has the worker's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from shmexec.wire.pickling import dump

_UNSET: Any = object()

_pickled: dict[ContextVar[Any], bytes] = {}


class Around:
    """What surrounds one call.

    Attributes:
        values: Variables that are set, and their values.
        carrier: The trace context, as propagators write it; None if there is none.
    """

    __slots__ = ("carrier", "values")

    def __init__(
        self,
        values: list[tuple[ContextVar[Any], Any]],
        carrier: dict[str, str] | None,
    ) -> None:
        self.values = values
        self.carrier = carrier

    def packed(self, name: str) -> tuple[Any, ...]:
        """What ``Surrounded`` takes: plain things only, but for the values."""
        pairs = [(_reference(variable), value) for variable, value in self.values]
        return pairs, self.carrier, name

    def parts(self) -> dict[str, Any]:
        """The values by what an error should call them."""
        return {f"context[{each.name!r}]": value for each, value in self.values}

    def wrap(self, fn: Callable[..., Any], number: int) -> Callable[..., Any]:
        """The function with this around it, to be called in this process."""
        from shmexec.worker.surroundings import Surrounded

        name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
        return Surrounded(fn, self.packed(name), number)


def around_calls(variables: tuple[ContextVar[Any], ...]) -> Around | None:
    """What is to surround a call that is submitted here and now; None for nothing.

    Args:
        variables: Those that were asked for.
    """
    # Never imported for its own sake: who does not use it has no spans.
    traced = "opentelemetry.trace" in sys.modules
    if not (variables or traced):
        return None
    carrier = None
    if traced:
        from shmexec.worker import tracing

        carrier = tracing.carrier()
        if not (variables or carrier):
            return None
    values = []
    for variable in variables:
        value = variable.get(_UNSET)
        if value is not _UNSET:
            values.append((variable, value))
    return Around(values, carrier)


def _reference(variable: ContextVar[Any]) -> bytes:
    """A pickle of the variable: pickled once, so that calls can be pickled quickly.

    Raises:
        ValueError: If it has a default that takes a block of its own.
    """
    known = _pickled.get(variable)
    if known is None:
        dumped = dump(variable)
        if dumped.sources:
            msg = f"the default of context variable {variable.name!r} is too large"
            raise ValueError(msg)
        known = _pickled[variable] = bytes(dumped.payload)
    return known
