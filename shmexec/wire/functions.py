"""How a function travels: by name, by value once per worker, or with every call.

By name if a fresh interpreter could import it. By value, kept in the worker under a
digest, if nothing mutable is captured: closures, defaults and the globals it uses are
compared by identity at each call, so that a redefined function or a changed global is
noticed. Otherwise it is pickled with each call, as if it was an argument.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from importlib import import_module
from typing import Any, NamedTuple

from shmexec.options import INLINE_LIMIT
from shmexec.wire.pickling import dump
from shmexec.wire.reloads import is_renewed, reloads

KEPT_AT_MOST = 128
"""Functions that a worker keeps by digest; the parent says which one to forget."""

_BY_NAME = b"n"
_BY_DIGEST = b"d"
_NAME_AT_MOST = 1000


class FunctionRef(NamedTuple):
    """How to say a function in a message.

    Attributes:
        key: Name or digest; empty if it is part of the payload.
        pickled: For a digest, what a worker that does not know it must be sent.
    """

    key: bytes
    pickled: bytes = b""


IN_PAYLOAD = FunctionRef(b"")


class Kept:
    """A callable that a worker keeps, and that says itself what it is known by."""

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run it."""
        raise NotImplementedError

    def ref(self) -> FunctionRef:
        """How it travels; the same each time."""
        raise NotImplementedError


_immutable = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type(Ellipsis),
    range,
    types.ModuleType,
    types.BuiltinFunctionType,
    ContextVar,  # goes by reference
)
_known: weakref.WeakKeyDictionary[
    Callable[..., object], tuple[tuple[object, ...], FunctionRef]
] = weakref.WeakKeyDictionary()

_named: dict[
    Callable[..., object],
    tuple[dict[str, object], str, str, types.ModuleType, FunctionRef],
] = {}
_DESCRIBED = frozenset({types.FunctionType, types.BuiltinFunctionType, type})


def describe(fn: Callable[..., object]) -> FunctionRef:
    """How this function shall travel.

    Raises:
        Exception: If its pickling does.
    """
    if type(fn) not in _DESCRIBED:
        return fn.ref() if isinstance(fn, Kept) else IN_PAYLOAD
    named = _named.get(fn)
    if named is not None:
        names, attribute, module_name, module, ref = named
        # Still what its name says, and the module the one that will be found?
        if names.get(attribute) is fn and sys.modules.get(module_name) is module:
            return ref
    name = importable_name(fn)
    return _by_value(fn) if name is None else _by_name(fn, FunctionRef(name))


def _by_value(fn: Callable[..., object]) -> FunctionRef:
    if type(fn) is not types.FunctionType:
        return IN_PAYLOAD
    seen = _fingerprint(fn)
    if seen is None:
        return IN_PAYLOAD
    known = _known.get(fn)
    if known is not None and _same(known[0], seen):
        return known[1]
    ref = ref_of(fn)
    _known[fn] = seen, ref
    return ref


def ref_of(fn: Callable[..., object]) -> FunctionRef:
    """How a function travels whose pickle workers may keep.

    Raises:
        Exception: If pickling it does.
    """
    # Without buffers: those of arrays, which are mutable.
    pickled = bytes(dump(fn).payload)
    if len(pickled) >= INLINE_LIMIT:
        return IN_PAYLOAD  # bulk goes through a block, as an argument does
    # The parent alone needs it, and it brings all of OpenSSL.
    import hashlib

    digest = hashlib.blake2b(pickled, digest_size=16).digest()
    return FunctionRef(_BY_DIGEST + digest, pickled)


def _by_name(fn: Callable[..., object], ref: FunctionRef) -> FunctionRef:
    """Note where a function is found by its name, if that is easily checked again."""
    module = sys.modules[fn.__module__]
    reloads.see(module)
    if type(module) is types.ModuleType and vars(module).get(fn.__qualname__) is fn:
        if len(_named) >= KEPT_AT_MOST:
            _named.clear()
        _named[fn] = vars(module), fn.__qualname__, fn.__module__, module, ref
    return ref


def importable_name(fn: Any) -> bytes | None:
    """``module:qualname`` as bytes if importing that gives this very object."""
    module_name = getattr(fn, "__module__", None)
    qualname = getattr(fn, "__qualname__", None)
    if not module_name or not qualname or module_name == "__main__":
        return None
    found: Any = sys.modules.get(module_name)
    # A module made by hand, without a spec, cannot be imported anywhere else.
    if getattr(found, "__spec__", None) is None:
        return None
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if found is not fn and not is_renewed(fn, found):
        return None
    name: bytes = _BY_NAME + f"{module_name}:{qualname}".encode()
    return name if len(name) <= _NAME_AT_MOST else None


def is_digest(key: bytes) -> bool:
    """Whether a worker can run this only after it was sent the function."""
    return key[:1] == _BY_DIGEST


@functools.lru_cache(maxsize=1024)
def find_by_name(key: bytes) -> Callable[..., object]:
    """In the worker: import what a name says.

    Raises:
        ImportError: If the module cannot be imported or has no such attribute.
    """
    module_name, _, qualname = key[1:].decode().partition(":")
    found: Any = import_module(module_name)
    for part in qualname.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            msg = f"module {module_name!r} has no {qualname!r} in the worker"
            raise ImportError(msg) from error
    return found  # type: ignore[no-any-return]


def _same(one: tuple[object, ...], other: tuple[object, ...]) -> bool:
    return len(one) == len(other) and all(map(_is, one, other))


def _is(one: object, other: object) -> bool:
    return one is other


def _fingerprint(fn: types.FunctionType) -> tuple[object, ...] | None:
    """The objects a function is made of; None if one of them is mutable."""
    parts: list[object] = []
    pending = [fn]
    seen = {id(fn)}
    while pending:
        function = pending.pop()
        if function.__dict__:
            return None
        parts.append(function.__code__)
        for value in _captured(function):
            parts.append(value)
            if type(value) is types.FunctionType and importable_name(value) is None:
                if id(value) not in seen:
                    seen.add(id(value))
                    pending.append(value)
            elif type(value) is types.ModuleType:
                reloads.see(value)
            elif not _is_immutable(value):
                return None
    return tuple(parts)


def _captured(fn: types.FunctionType) -> Iterator[object]:
    for cell in fn.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a name that is not assigned yet
            yield _UNSET
    yield from fn.__defaults__ or ()
    yield from (fn.__kwdefaults__ or {}).values()
    names = fn.__globals__
    for name in _global_names(fn.__code__):
        yield names.get(name, _UNSET)


_UNSET = Ellipsis


def _is_immutable(value: object) -> bool:
    if isinstance(value, _immutable):
        return True
    if type(value) in {tuple, frozenset}:
        return all(map(_is_immutable, value))  # type: ignore[call-overload]
    if isinstance(value, (type, types.FunctionType)) or callable(value):
        return importable_name(value) is not None
    return False


@functools.lru_cache(maxsize=1024)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """Names that the code, and the code nested in it, looks up in its globals."""
    names = {
        step.argval
        for step in dis.get_instructions(code)
        if step.opname in {"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL", "LOAD_NAME"}
    }
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(_global_names(constant))
    return tuple(sorted(names))
