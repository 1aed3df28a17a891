"""Context variables on their way: by reference, since they cannot be pickled.

One that can be imported goes by module and name. Any other (of ``__main__``, of a
notebook, made in a function) gets a key the first time it is sent; each process has one
variable for a key, so that all functions of ``__main__`` that refer to it see the same.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar
from importlib import import_module
from typing import Any

_Reference = tuple[Callable[..., ContextVar[Any]], tuple[Any, ...]]

# Variables are few, live long and take no weak references. No lock: of several threads
# that add to these at once, one does, and all take what is there then.
_references: dict[ContextVar[Any], _Reference] = {}
_by_key: dict[bytes, ContextVar[Any]] = {}


def reduce_variable(variable: ContextVar[Any], _buffers: object = None) -> Any:
    """What to pickle for a context variable."""
    known = _references.get(variable)
    return known or _references.setdefault(variable, _make_reference(variable))


def _make_reference(variable: ContextVar[Any]) -> _Reference:
    names = next(_names(variable), None)
    if names is not None:
        return find_variable, names
    key = os.urandom(16)
    _by_key[key] = variable
    return make_variable, (key, variable.name, *_default(variable))


def _default(variable: ContextVar[Any]) -> tuple[Any, ...]:
    """Its default value, if it has one: seen in a context where nothing is set."""
    try:
        return (Context().run(variable.get),)
    except LookupError:
        return ()


def _names(variable: ContextVar[Any]) -> Iterator[tuple[str, str]]:
    """Modules that a worker can import, and the variable's name in them."""
    for module_name, module in list(sys.modules.items()):
        if module_name in {"__main__", "__mp_main__"}:
            continue
        # A module made by hand, without a spec, cannot be imported anywhere else.
        if getattr(module, "__spec__", None) is None:
            continue
        for name, value in list(vars(module).items()):
            if value is variable:
                yield module_name, name
            elif isinstance(value, type) and value.__module__ == module_name:
                for inner, attribute in list(vars(value).items()):
                    if attribute is variable:
                        yield module_name, f"{name}.{inner}"


def find_variable(module_name: str, path: str) -> ContextVar[Any]:
    """The variable of that name.

    Raises:
        ImportError: If there is none in this process.
    """
    found: Any = import_module(module_name)
    for part in path.split("."):
        found = getattr(found, part, None)
    if isinstance(found, ContextVar):
        return found
    msg = f"module {module_name!r} has no context variable {path!r} in this process"
    raise ImportError(msg)


def make_variable(key: bytes, name: str, *default: Any) -> ContextVar[Any]:
    """The variable of that key, made if this process has none."""
    variable = _by_key.get(key)
    if variable is None:
        # Its default is passed on as it came, if it came.
        made = ContextVar(name, default=default[0]) if default else ContextVar(name)
        variable = _by_key.setdefault(key, made)
        _references[variable] = make_variable, (key, name, *default)
    return variable
