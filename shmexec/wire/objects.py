"""Objects that are shared: pickled once, rebuilt once in each worker.

A shared object is one block: its pickle and all of its large buffers. What travels with a
call is a reference to that block. A worker that meets the object for the first time
rebuilds it on the block, and keeps it until the parent says that the handle has died:
so nothing must be known of workers that are new or were replaced.

Arrays in the object that are shared themselves are no part of the block: they go along
with each call, by reference.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from shmexec.errors import SerializationError
from shmexec.memory.allocator import ALIGNMENT
from shmexec.memory.views import loan_of
from shmexec.wire import foreign
from shmexec.wire.explaining import explain
from shmexec.wire.pickling import CallPickler
from shmexec.wire.sources import AnySource, Source

T = TypeVar("T")

KEPT_AT_MOST = 128
"""Objects that a worker keeps; of more, it rebuilds those that were not used longest."""

_PREFIX = b"o"
_NUMBER = struct.Struct("<Q")


class SharedObject:
    """What calls need of a shared object; dies with the handle and the last such call.

    Attributes:
        key: Its name among all processes.
        kind: Its type's name.
        data: Pickle and buffers, a shared array of bytes.
        parts: Shared arrays and objects in it.
    """

    __slots__ = ("__weakref__", "data", "key", "kind", "parts")

    def __init__(self, kind: str, data: np.ndarray, parts: tuple[Any, ...]) -> None:
        self.key = _PREFIX + os.urandom(16)
        self.kind = kind
        self.data = data
        self.parts = parts


_alive: weakref.WeakSet[SharedObject] = weakref.WeakSet()


class Shared(Generic[T]):
    """A handle of an object that was shared with workers; see :func:`shmexec.share`.

    Passed to a call, at any depth, it arrives as the object itself, where type checkers
    see a handle. The memory is given back, in workers too, when the handle and the last
    call that was given it are gone.

    Example:
        >>> words = shmexec.share({"one": 1})
        >>> ex.submit(lambda d: d["one"], words).result()
        1
    """

    __slots__ = ("__weakref__", "_object", "_value")

    def __init__(self, value: T, shared: SharedObject) -> None:
        self._value = value
        self._object = shared
        _alive.add(shared)

    @property
    def value(self) -> T:
        """The object that was shared. Workers have it as it was then.

        Example:
            >>> shmexec.share({"one": 1}).value
            {'one': 1}
        """
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        """By other picklers than a pool's, the object is pickled like any other."""
        return _same, (self._value,)

    def __repr__(self) -> str:
        shared = self._object
        return f"<shmexec.Shared {shared.kind}, {shared.data.nbytes} bytes>"


def _same(value: T) -> T:
    return value


def is_key(key: bytes) -> bool:
    """Whether this names an object, not a function."""
    return key[:1] == _PREFIX


# -- in the parent -----------------------------------------------------------------------


def _reduce_handle(handle: Shared[Any], buffers: Any) -> Any:
    shared = handle._object  # noqa: SLF001
    buffers.objects.append(shared)
    return rebuild_object, (shared.key, shared.kind, shared.data, shared.parts)


foreign.reducers[Shared] = _reduce_handle


class _ObjectPickler(CallPickler):
    """Pickles an object that is to be shared."""

    def __init__(self, file: io.BytesIO, parts: list[Any]) -> None:
        super().__init__(file)
        self._parts = parts

    def reducer_override(self, obj: Any) -> Any:
        """What is shared itself goes along with each call."""
        if isinstance(obj, Shared) or (isinstance(obj, np.ndarray) and _is_shared(obj)):
            self._parts.append(obj)
            return find_part, (len(self._parts) - 1,)
        return super().reducer_override(obj)


def _is_shared(array: np.ndarray) -> bool:
    loan = loan_of(array)
    if loan is None or loan.mode is None:
        return False
    # One that is writable though it is shared read-only is no constant.
    return loan.mode == "r+" or not array.flags.writeable


class PackedObject:
    """An object that was pickled, to be put into one block.

    Args:
        value: The object.
        make_pickler: Makes what pickles it, of a file and a list for the parts that are
            not to be in the block.

    Raises:
        SerializationError: If it cannot be pickled; names the culprit. With a pickler of
            another kind, whatever pickling raises.

    Attributes:
        nbytes: What the block takes.
        parts: What is not in it.
    """

    def __init__(
        self,
        value: Any,
        make_pickler: Callable[[io.BytesIO, list[Any]], CallPickler] | None = None,
    ) -> None:
        self._kind = type(value).__qualname__
        file, parts = io.BytesIO(), list[Any]()
        foreign.look_around()
        pickler = (make_pickler or _ObjectPickler)(file, parts)
        try:
            pickler.dump(value)
        except Exception as error:
            if make_pickler is not None:
                raise
            what = f"the {self._kind} that was to be shared"
            raise explain(error, {"object": value}, what) from error
        self.parts = tuple(parts)
        self._sources: list[AnySource] = [
            Source(file.getbuffer()),
            *pickler.buffers.sources,
        ]
        self._spans: list[tuple[int, int]] = []
        end = _NUMBER.size * (1 + 2 * len(self._sources))
        for source in self._sources:
            start = -(-end // ALIGNMENT) * ALIGNMENT
            end = start + source.nbytes
            self._spans.append((start, end))
        self.nbytes = end

    def fill(self, target: np.ndarray) -> None:
        """Write it all to ``nbytes`` of ``uint8``: number of spans, spans, contents."""
        numbers = [len(self._spans), *(bound for span in self._spans for bound in span)]
        head = struct.pack(f"<{len(numbers)}Q", *numbers)
        target[: len(head)] = np.frombuffer(head, np.uint8)
        for source, (start, end) in zip(self._sources, self._spans, strict=True):
            assert isinstance(source, Source)
            source.fill(target[start:end])

    def placed(self, data: np.ndarray) -> SharedObject:
        """The object, once it was written to a shared array."""
        return SharedObject(self._kind, data, self.parts)


# -- in workers --------------------------------------------------------------------------

_built: OrderedDict[bytes, Any] = OrderedDict()


class _Current(threading.local):
    """What is being rebuilt in a thread, one inside of another: their parts."""

    def __init__(self) -> None:
        self.parts: list[Sequence[Any]] = []


_current = _Current()


def rebuild_object(
    key: bytes, kind: str, data: np.ndarray, parts: tuple[Any, ...]
) -> Any:
    """The object of that name, rebuilt if this process does not have it.

    Raises:
        SerializationError: If that fails.
    """
    try:
        value = _built[key]
    except KeyError:
        value = _built[key] = _build(kind, data, parts)
        if len(_built) > KEPT_AT_MOST:
            _built.popitem(last=False)
    else:
        _built.move_to_end(key)
    return value


def _build(kind: str, data: np.ndarray, parts: tuple[Any, ...]) -> Any:
    # Read-only, also where it had to be copied: from memory of another kind.
    data = data.view()
    data.flags.writeable = False
    try:
        return unpack(data, parts)
    except Exception as error:
        msg = (
            f"the shared {kind} cannot be rebuilt in the worker: "
            f"{type(error).__name__}: {error}"
        )
        raise SerializationError(msg, kind) from error


def unpack(data: np.ndarray, parts: Sequence[Any] = ()) -> Any:
    """What a :class:`PackedObject` was made of, on the block that it was written to.

    Args:
        data: The block, ``uint8``. Arrays in the object lie in it, and can be written to
            if it can.
        parts: What was not in it, for :func:`find_part`.
    """
    (count,) = _NUMBER.unpack_from(data.data)
    bounds = struct.unpack_from(f"<{2 * count}Q", data.data, _NUMBER.size)
    spans = [
        data[start:end] for start, end in zip(bounds[::2], bounds[1::2], strict=True)
    ]
    _current.parts.append(parts)
    try:
        return pickle.loads(spans[0].data, buffers=spans[1:])
    finally:
        _current.parts.pop()


def find_part(index: int) -> Any:
    """A part of the object that is being rebuilt."""
    return _current.parts[-1][index]


def forget(key: bytes) -> None:
    """No call will ask for it any more."""
    _built.pop(key, None)


# -- without workers ---------------------------------------------------------------------


class _LocalPickler(CallPickler):
    """Takes a call apart only as far as handles may be in it."""

    def __init__(self, file: io.BytesIO, kept: list[Any]) -> None:
        super().__init__(file)
        self._kept = kept
        self.handles = 0

    def reducer_override(self, obj: Any) -> Any:
        """Handles as their objects; arrays and classes stay what they are."""
        if isinstance(obj, Shared):
            self.handles += 1
            obj = obj.value
        elif not isinstance(obj, (np.ndarray, type)):
            return super().reducer_override(obj)
        self._kept.append(obj)
        return find_part, (len(self._kept) - 1,)


Call = tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]


def with_values(call: Call) -> Call:
    """A call that runs in this process, with the objects in the place of their handles.

    Without handles it is left as it is. Otherwise it is rebuilt as it would be in a
    worker, but for its arrays.

    Raises:
        SerializationError: If it has handles and cannot be pickled.
    """
    if not _alive:
        return call
    kept: list[Any] = []
    file = io.BytesIO()
    pickler = _LocalPickler(file, kept)
    try:
        pickler.dump(call)
    except Exception as error:
        if not pickler.handles:
            return call
        raise explain(
            error, {"call": call}, "a call that was given a handle"
        ) from error
    if not pickler.handles:
        return call
    _current.parts.append(kept)
    try:
        buffers = []
        for source in pickler.buffers.sources:
            assert isinstance(source, Source)
            buffers.append(np.empty(source.nbytes, np.uint8))
            source.fill(buffers[-1])
        rebuilt: Call = pickle.loads(file.getbuffer(), buffers=buffers)
        return rebuilt
    finally:
        _current.parts.pop()
