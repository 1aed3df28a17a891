"""All that an object is made of, to be compared before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set as AbstractSet
from enum import Enum
from types import FunctionType, MethodType


def snapshot(thing):
    """Its whole state as text, however deep; what is met again is only named."""
    return repr(_picture(thing, {}))


def _picture(thing, seen):
    if thing is None or isinstance(thing, (str, bytes, int, float, Enum, type)):
        return thing
    if isinstance(thing, (FunctionType, MethodType)):
        return thing.__qualname__
    if id(thing) in seen:
        return f"<{seen[id(thing)]}>"
    seen[id(thing)] = len(seen)
    if isinstance(thing, Mapping):
        return [(_picture(k, seen), _picture(v, seen)) for k, v in thing.items()]
    if isinstance(thing, AbstractSet):
        return sorted(map(repr, thing))
    if isinstance(thing, Sequence):
        return [_picture(each, seen) for each in thing]
    names = getattr(thing, "__slots__", None) or vars(thing)
    return [(name, _picture(getattr(thing, name), seen)) for name in names]
