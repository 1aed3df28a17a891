"""Reloads, in the worker, what the program has reloaded.

The module's code runs again in the same namespace, as with :func:`importlib.reload`: what
it defines is new, what calls have put there besides stays. Whoever still has a function or
a class of before (``from module import f``, an actor's instance) gets the new code, too.
"""

from __future__ import annotations

import gc
import importlib
import sys
import traceback
from contextlib import suppress
from enum import EnumMeta
from importlib.machinery import SourceFileLoader
from types import (
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    ModuleType,
)
from typing import Any

from shmexec.wire import functions

_OF_A_FUNCTION = ("__code__", "__defaults__", "__kwdefaults__", "__annotations__")
_OF_A_CLASS = frozenset({"__dict__", "__weakref__", "__module__"})
_OF_ONE_LAYOUT = (MemberDescriptorType, GetSetDescriptorType)
"""What reads and writes slots; refuses instances of other classes."""


def reload_all(names: list[str]) -> None:
    """Reload modules, if they are loaded here.

    One that cannot be is left as it was, and the traceback goes to stderr: it need not be
    of any matter to the call that comes next.
    """
    for name in names:
        module = sys.modules.get(name)
        if isinstance(module, ModuleType):
            _reload(module)
    # What was found there may have been replaced.
    functions.find_by_name.cache_clear()


def _reload(module: ModuleType) -> None:
    before = dict(vars(module))
    try:
        _run_again(module)
    except (Exception, SystemExit):  # noqa: BLE001  (as the module's own; it is told)
        vars(module).update(before)
        text = traceback.format_exc()
        sys.stderr.write(f"[{module.__name__} cannot be reloaded here: {text}]\n")
        return
    after = vars(module)
    for name, old in before.items():
        if getattr(old, "__module__", None) == module.__name__:
            _renew(old, after.get(name))


def _run_again(module: ModuleType) -> None:
    loader = getattr(module, "__loader__", None)
    if type(loader) is not SourceFileLoader:
        importlib.reload(module)
        return
    # From its source: bytecode that was kept is not told from that of an edit within the
    # same second.
    source = loader.get_data(loader.path)
    code = loader.source_to_code(source, loader.path)
    exec(code, vars(module))  # noqa: S102  (that is what it is for)


def _renew(old: Any, new: Any) -> None:
    """Have an object do what the one that has taken its place does."""
    if old is new:
        return
    if type(old) is FunctionType and type(new) is FunctionType:
        with suppress(ValueError):  # other variables are captured: it stays as it is
            for name in _OF_A_FUNCTION:
                setattr(old, name, getattr(new, name))
            vars(old).update(vars(new))
    elif isinstance(old, type) and isinstance(new, type):
        _renew_class(old, new)


def _renew_class(old: type, new: type) -> None:
    # The members of an Enum, and what finds them, belong to the one class alone.
    members = isinstance(old, EnumMeta) or isinstance(new, EnumMeta)
    for name, value in list(vars(new).items()):
        if name in _OF_A_CLASS or isinstance(value, _OF_ONE_LAYOUT):
            continue
        before = vars(old).get(name)
        if type(before) is FunctionType and type(value) is FunctionType:
            _renew(before, value)
        elif not members:
            with suppress(AttributeError, TypeError):  # a metaclass may refuse
                setattr(old, name, value)
    for each in () if members else gc.get_referrers(old):
        if type(each) is old:
            with suppress(TypeError):  # of another layout: it stays what it is
                each.__class__ = new
