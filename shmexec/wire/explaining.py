"""Why something cannot be pickled: which part of it, and the path to that."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from itertools import islice
from typing import Any

from shmexec.errors import SerializationError
from shmexec.wire.pickling import CallPickler

_DEPTH = 6
_CHILDREN = 200


def explain(
    error: BaseException, parts: Mapping[str, Any], what: str
) -> SerializationError:
    """An error that names the innermost part that cannot be pickled."""
    path, culprit = "", None
    # Objects may raise anything when they are looked at; the failure must not get lost.
    with contextlib.suppress(Exception):
        for name, value in parts.items():
            if _fails(value):
                path, culprit = name, value
                path, culprit = _descend(name, value, ())
                break
    kind = f" ({type(culprit).__qualname__})" if path else ""
    where = f": {path}{kind}" if path else ""
    msg = f"cannot pickle {what}{where}: {type(error).__name__}: {error}"
    return SerializationError(msg, path)


def _descend(path: str, value: Any, inside: tuple[Any, ...]) -> tuple[str, Any]:
    if len(inside) < _DEPTH:
        inside = (*inside, value)
        for name, child in children(path, value):
            if not any(child is each for each in inside) and _fails(child):
                return _descend(name, child, inside)
    return path, value


def _fails(value: Any) -> bool:
    try:
        CallPickler(io.BytesIO()).dump(value)
    except (Exception, SystemExit, GeneratorExit):  # noqa: BLE001  (any is the answer)
        return True
    return False


def children(path: str, value: Any) -> Iterable[tuple[str, Any]]:
    """What an object is made of, each with the path to it."""
    found: list[tuple[str, Any]] = []
    items: Any
    if isinstance(value, Mapping):
        items = list(islice(value.items(), _CHILDREN))
        found += [(f"{path}[{key!r}]", item) for key, item in items]
        found += [(f"key {key!r} of {path}", key) for key, _ in items]
    elif isinstance(value, (list, tuple)):
        items = islice(enumerate(value), _CHILDREN)
        found += [(f"{path}[{index}]", item) for index, item in items]
    elif isinstance(value, (set, frozenset)):
        items = islice(value, _CHILDREN)
        found += [(f"element of {path}", item) for item in items]
    elif is_dataclass(value) and not isinstance(value, type):
        found += [
            (f"{path}.{f.name}", getattr(value, f.name, None)) for f in fields(value)
        ]
    elif isinstance(getattr(value, "__closure__", None), tuple):
        names = value.__code__.co_freevars
        for name, cell in zip(names, value.__closure__, strict=True):
            try:
                found.append((f"{name!r} captured by {path}", cell.cell_contents))
            except ValueError:
                continue
    if not found and isinstance(getattr(value, "__self__", None), object):
        owner = getattr(value, "__self__", None)
        if owner is not None and not isinstance(owner, type(sys)):
            found.append((f"{path}.__self__", owner))
    found += _attributes(path, value)
    return found[:_CHILDREN]


def _attributes(path: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, type):
        return _class_attributes(path, value)
    if callable(value):
        return []
    state = getattr(value, "__dict__", None)
    if not isinstance(state, dict):
        return []
    return [(f"{path}.{name}", item) for name, item in state.items()]


def _class_attributes(path: str, cls: type) -> list[tuple[str, Any]]:
    """Those of a class that goes by value, plain data first.

    Methods may refer to the class, and so fail because of the data.
    """
    items = [
        (f"{path}.{name}", value)
        for name, value in vars(cls).items()
        if name not in {"__dict__", "__weakref__", "__doc__", "__module__"}
    ]
    return sorted(items, key=lambda item: hasattr(item[1], "__get__"))
