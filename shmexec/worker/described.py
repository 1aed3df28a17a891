"""What a script offers, in a form that travels: names, kinds, signatures.

Apart from :mod:`shmexec.worker.script`, since only one worker of a pool needs it.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import reprlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from shmexec.worker.script import Loaded, lies_in, needs_instance

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


class Description(NamedTuple):
    """What the parent is told of a script.

    Attributes:
        notes: What can be called, in the order in which it is defined.
        neighbours: Names the contents of the neighbours that it imports.
    """

    notes: list[Note]
    neighbours: bytes


def describe(script: Loaded) -> Description:
    """Look through a script that was loaded.

    What can be called are its public functions, callable objects and methods, those that
    come from a neighbour too, but nothing else that it imported, unless ``__all__`` names
    it.
    """
    return Description(_notes(script.module, script.folder), _contents(script))


def _contents(script: Loaded) -> bytes:
    found = hashlib.blake2b(digest_size=16)
    files = {getattr(module, "__file__", "") for module in script.neighbours.values()}
    for file in sorted(files):
        name = os.path.relpath(file, script.folder).encode("utf-8", "surrogateescape")
        try:
            with open(file, "rb") as opened:
                contents = hashlib.blake2b(opened.read()).digest()
        except OSError:
            contents = b""  # it is gone by now
        found.update(len(name).to_bytes(8, "little") + name + contents)
    return found.digest()


def _notes(module: types.ModuleType, folder: str) -> list[Note]:
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
