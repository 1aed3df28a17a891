"""What is added to errors of user code, so that they say what to do next."""

from __future__ import annotations

import inspect
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from shmexec.wire.explaining import children

_READ_ONLY = re.compile("read-only|WRITEABLE")
_HEAD = "Read-only arguments of this call: "
_LISTED = 10
_LOOKED_AT = 2000
"""Objects among which arrays are looked for: this must not take long."""


class _Part(NamedTuple):
    """Something that the function was given: how it calls it, and where it stood."""

    path: str
    place: str
    value: Any


def note_read_only(
    error: BaseException,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> None:
    """Add to NumPy's error about a write which arguments could not be written to.

    Does nothing for other errors, or if the call had no read-only arrays.
    """
    if not isinstance(error, ValueError) or not _READ_ONLY.search(str(error)):
        return
    if any(note.startswith(_HEAD) for note in getattr(error, "__notes__", ())):
        return  # by the batch or chunk that the call is part of
    found = _read_only_arrays(_parts(fn, args, kwargs))
    if not found:
        return
    listed = [
        f"{path} ({place}, {array.dtype} {array.shape})"
        for path, place, array in found[:_LISTED]
    ]
    if len(found) > _LISTED:
        listed.append(f"and {len(found) - _LISTED} more")
    name = found[0].path
    error.add_note(
        f"{_HEAD}{', '.join(listed)}. To write to one, copy it ({name} = {name}.copy()), "
        'or share it with mode="r+" (all processes see what is written) or mode="c" '
        "(each call has its own copy of what it writes to)."
    )


def _parts(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Iterator[_Part]:
    names = _names(fn, len(args))
    for index, value in enumerate(args):
        yield _Part(names.get(index, f"args[{index}]"), f"argument {index}", value)
    for name, value in kwargs.items():
        yield _Part(name, "keyword argument", value)
    for path, value in children(getattr(fn, "__name__", "the function"), fn):
        yield _Part(path, "part of the function", value)


def _names(fn: Callable[..., Any], count: int) -> dict[int, str]:
    """Names of the parameters that so many positional arguments are bound to."""
    try:
        parameters = [*inspect.signature(fn).parameters.values()]
    except (TypeError, ValueError):
        return {}
    if not parameters:
        return {}
    names = {}
    for index in range(count):
        parameter = parameters[min(index, len(parameters) - 1)]
        if parameter.kind is parameter.VAR_POSITIONAL:
            first = parameters.index(parameter)
            names[index] = f"{parameter.name}[{index - first}]"
        else:
            names[index] = parameter.name
    return names


def _read_only_arrays(parts: Iterable[_Part]) -> list[_Part]:
    """The arrays among them, and inside of them at any depth, nearest first."""
    found: list[_Part] = []
    # Keeps what was seen, so that no other object can get its id.
    seen: dict[int, object] = {}
    todo = deque(parts)
    while todo and len(seen) < _LOOKED_AT:
        path, place, value = part = todo.popleft()
        if id(value) in seen:
            continue
        seen[id(value)] = value
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            if not value.flags.writeable:
                found.append(part)
            continue
        if place.startswith(("argument", "keyword")):
            place = f"in {place}"
        todo.extend(_Part(name, place, child) for name, child in children(path, value))
    return found
