"""Classes that scripts define, on their way between processes.

The parent cannot import them, so they travel by value; but a process that has the class,
or had it before, is given that one. Otherwise what arrives would be another class each
time, and one that came back would replace the methods of the script's own by copies,
which have other globals.
"""

from __future__ import annotations

import pickle
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as _tracking

_MARK = "__shmexec_version__"
_PREFIX = "shmexec script"

_pickles: weakref.WeakKeyDictionary[type, bytes] = weakref.WeakKeyDictionary()

find_script: list[Callable[[str], object]] = []
"""Load the script of a version, if the process knows it; set by the worker's side."""


def mark(module: types.ModuleType, version: str) -> None:
    """Note that a module's classes are those of one version of a script."""
    vars(module).setdefault(_MARK, version)


def reduce(cls: type) -> tuple[Any, ...] | None:
    """How to pickle a script's class; None if it is none."""
    tracked = _tracking._DYNAMIC_CLASS_TRACKER_BY_CLASS  # noqa: SLF001
    known: str = tracked.get(cls, "")
    if known.startswith(_PREFIX):
        _, version, module, name = known.split(":")
    else:
        module, name = cls.__module__, cls.__qualname__
        version = _version(module)
        if not version or _find(version, module, name) is not cls:
            return None
        known = f"{_PREFIX}:{version}:{module}:{name}"
        tracked[cls] = known
        _tracking._DYNAMIC_CLASS_TRACKER_BY_ID[known] = cls  # noqa: SLF001
    pickled = _pickles.get(cls)
    if pickled is None:
        pickled = _pickles[cls] = cloudpickle.dumps(cls, 5)
    return rebuild, (version, module, name, pickled)


def rebuild(version: str, module: str, name: str, pickled: bytes) -> type:
    """The class, of the script itself if that can be loaded here."""
    found = _find(version, module, name)
    if found is None:
        for find in find_script:
            find(version)
        found = _find(version, module, name)
    if found is None:
        known = f"{_PREFIX}:{version}:{module}:{name}"
        found = _tracking._DYNAMIC_CLASS_TRACKER_BY_ID.get(known)  # noqa: SLF001
    return pickle.loads(pickled) if found is None else found


def _version(module: str) -> str:
    """Of which version of a script a module is; empty if it is of none."""
    found = sys.modules.get(module)
    version: str = getattr(found, "__dict__", {}).get(_MARK, "")
    return version


def _find(version: str, module: str, name: str) -> type | None:
    if _version(module) != version:
        return None
    found: Any = sys.modules[module]
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None
