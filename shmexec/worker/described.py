"""What a script offers, in a form that travels: names, kinds, signatures.

Apart from :mod:`shmexec.worker.script`, since only one worker of a pool needs it.
"""

from __future__ import annotations

import inspect
import reprlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from shmexec.worker.script import lies_in, needs_instance

FunctionKind = Literal["function", "async", "generator", "async generator"]


class Parameter(NamedTuple):
    """One parameter; values as texts, since theirs may mean nothing elsewhere."""

    name: str
    kind: int
    default: str | None
    annotation: str | None


class Note(NamedTuple):
    """A function of a script.

    Attributes:
        name: ``function`` or ``Class.method``.
        kind: What calling it gives.
        parameters: None if it does not say what it takes.
        returns: The annotation, if there is one.
        doc: The first line of its doc string.
    """

    name: str
    kind: FunctionKind
    parameters: tuple[Parameter, ...] | None
    returns: str | None
    doc: str


def describe(module: types.ModuleType, folder: str) -> list[Note]:
    """What can be called in a script, in the order in which it is defined.

    That are its public functions, callable objects and methods, those that come from a
    neighbour too, but nothing else that it imported, unless ``__all__`` names it.
    """
    notes: list[Note] = []
    chosen = getattr(module, "__all__", None)
    names = [n for n in vars(module) if n[:1] != "_"] if chosen is None else chosen
    for name in names:
        value = getattr(module, name, None)
        if chosen is None and not _is_own(value, module, folder):
            continue
        if isinstance(value, type):
            notes += _methods(name, value)
        elif callable(value):
            notes.append(_note(name, value, bound=True))
    return notes


def _is_own(value: object, module: types.ModuleType, folder: str) -> bool:
    """Whether a name stands for something of the script's or of a neighbour's."""
    home = getattr(value, "__module__", None)
    if not isinstance(home, str) or home == module.__name__:
        return True
    named = (type, types.FunctionType, types.BuiltinFunctionType)
    if not isinstance(value, named) and "__module__" not in _attributes(value):
        return True  # an object; it is its class that comes from elsewhere
    found = sys.modules.get(home)
    return found is not None and lies_in(found, folder)


def _attributes(value: object) -> dict[str, Any]:
    return getattr(value, "__dict__", {})


def _methods(name: str, cls: type) -> Iterator[Note]:
    seen = set()
    for base in cls.__mro__:
        if base.__module__ in {"builtins", "typing", "abc"}:
            continue
        for method, value in vars(base).items():
            if method in seen or (method[:1] == "_" and method != "__call__"):
                continue
            seen.add(method)
            if isinstance(value, type):
                yield from _methods(f"{name}.{method}", value)
                continue
            path = f"{name}.{method}"
            if not needs_instance(cls, method):
                yield _note(path, getattr(cls, method), bound=True)
            elif callable(value):
                yield _note(path, value, bound=not hasattr(type(value), "__get__"))


def _note(name: str, value: Callable[..., Any], *, bound: bool) -> Note:
    doc = inspect.getdoc(value) if inspect.isroutine(value) else None
    doc = doc or getattr(value, "__doc__", None)
    first = doc.strip().split("\n", 1)[0] if isinstance(doc, str) else ""
    parameters, returns = _signature(value, bound=bound)
    return Note(name, _kind(value), parameters, returns, first)


def _kind(value: Callable[..., Any]) -> FunctionKind:
    candidates = [value, inspect.unwrap(value)]
    if not inspect.isroutine(value):
        candidates.append(type(value).__call__)
    for fn in candidates:
        if inspect.isasyncgenfunction(fn):
            return "async generator"
        if inspect.iscoroutinefunction(fn):
            return "async"
        if inspect.isgeneratorfunction(fn):
            return "generator"
    return "function"


def _signature(
    value: Callable[..., Any], *, bound: bool
) -> tuple[tuple[Parameter, ...] | None, str | None]:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return None, None
    parameters = [*signature.parameters.values()]
    if not bound:
        if not parameters or parameters[0].kind > inspect.Parameter.VAR_POSITIONAL:
            return None, None
        if parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL:
            del parameters[0]  # self
    described = tuple(
        Parameter(
            each.name,
            int(each.kind),
            None if each.default is each.empty else _text(each.default),
            None if each.annotation is each.empty else _annotation(each.annotation),
        )
        for each in parameters
    )
    returns = signature.return_annotation
    return described, None if returns is signature.empty else _annotation(returns)


def _text(value: object) -> str:
    try:
        return reprlib.repr(value)
    except Exception:  # noqa: BLE001  (whose __repr__ fails has none)
        return f"<{type(value).__name__}>"


def _annotation(value: object) -> str:
    return value if isinstance(value, str) else inspect.formatannotation(value)
