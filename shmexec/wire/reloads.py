"""Modules that the program has reloaded since they were imported.

A worker imports a module once, and would keep that version for good. So the parent notes
what is reloaded here, and each worker that runs longer is told before its next call (see
:mod:`shmexec.worker.reloading`).

That a module was reloaded shows in its ``__spec__``, which is another object then. One
module is looked at as a function refers to it; all of them only when somebody says that
it is time, as notebooks do with each cell (:mod:`shmexec.runtime.cells`), since that takes
as long as ten calls.

What is found together is told in the order in which it was reloaded, since one may take
names from another: a module that is reloaded becomes the last of ``sys.modules``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any

NAME_AT_MOST = 1000
"""Characters of a module's name; one with more stays as it is."""

_OWN = "shmexec"

Marks = Mapping[str, object]
"""By a module's name what is another object as soon as it was reloaded."""


class Reloads:
    """See the module. One for the process; needs no lock: what is noted twice does no harm.

    Attributes:
        stamp: How many reloads there were.
    """

    def __init__(self) -> None:
        self.stamp = 0
        self._names: list[str] = []
        self._specs: dict[str, object] = {}
        self._others: list[tuple[Callable[[], Marks], dict[str, object]]] = []

    def see(self, module: ModuleType) -> None:
        """A call refers to this module."""
        name, spec = module.__name__, module.__spec__
        seen = self._specs.get(name)
        # Else it may be gone, or made by hand.
        if seen is not spec and sys.modules.get(name) is module:
            self._specs[name] = spec
            if seen is not None:
                self._note([name])

    def watch(self, marks: Callable[[], Marks]) -> None:
        """Look also at other marks, besides the modules' own, and at all from now on."""
        self._others.append((marks, {}))
        self.look()

    def since(self, stamp: int) -> tuple[list[str], int]:
        """Modules that were reloaded since then, and the stamp of that.

        Each once, in the order of the last time.
        """
        names = self._names[stamp:]
        return list(dict.fromkeys(reversed(names)))[::-1], stamp + len(names)

    def look(self) -> None:
        """Look at all modules."""
        # Some modules are loaded when they are looked at: those are of a class of its own.
        modules = list(sys.modules.items())
        specs = {
            name: module.__dict__.get("__spec__")
            for name, module in modules
            if type(module) is ModuleType
        }
        changed = set(_changed(self._specs, specs))
        for marks, seen in self._others:
            changed |= set(_changed(seen, marks()))
        ranks = {name: rank for rank, (name, _) in enumerate(modules)}
        self._note(sorted(changed, key=lambda name: (ranks.get(name, -1), name)))

    def _note(self, names: list[str]) -> None:
        theirs = [
            name
            for name in names
            if name != "__main__"
            and name.partition(".")[0] != _OWN
            and len(name) < NAME_AT_MOST
        ]
        if theirs:
            self._names += theirs
            self.stamp = len(self._names)


def _changed(seen: dict[str, object], marks: Marks) -> Iterator[str]:
    for name, mark in marks.items():
        before = seen.get(name)
        if before is not mark:
            seen[name] = mark
            if before is not None:
                yield name


reloads = Reloads()


# -- functions that are the same as others ------------------------------------------------


def is_renewed(fn: object, found: object) -> bool:
    """Whether a function was made the same as the one that has taken its place.

    So ``%autoreload`` does with functions of a module that it reloads.
    """
    return (
        type(fn) is FunctionType
        and type(found) is FunctionType
        and fn.__code__ is found.__code__
        and fn.__globals__ is found.__globals__
        and fn.__defaults__ is found.__defaults__
        and fn.__kwdefaults__ is found.__kwdefaults__
        and fn.__closure__ is found.__closure__
    )


def reduce_renewed(fn: FunctionType) -> Any:
    """How such a function is pickled: as the other one; None if it is none."""
    found: Any = sys.modules.get(fn.__module__)
    for part in fn.__qualname__.split("."):
        found = getattr(found, part, None)
    return (itself, (found,)) if found is not fn and is_renewed(fn, found) else None


def itself(fn: FunctionType) -> FunctionType:
    """What is called when that is loaded."""
    return fn
