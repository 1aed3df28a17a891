"""Calls that come from another machine, opened in the worker that runs them.

What a node's own process has of them is bytes: a call, the large things that it is given,
and what comes of it. So user code is imported and run in workers only, and nothing of it
in the process that holds a node's memory.

A value travels in one of two forms, see :class:`Form`. A call is a packed one, of
``(fn, args, kwargs)``; the large things in it are its *parts*, which come beside it.
"""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from types import CoroutineType
from typing import Any, Literal, NamedTuple

import numpy as np

from shmexec.wire.objects import PackedObject, find_part, unpack
from shmexec.wire.pickling import ReplyPickler
from shmexec.worker.actor import Instance
from shmexec.worker.failures import pickle_error
from shmexec.worker.notes import note_read_only

Form = Literal["array", "object", "error"]
"""What lies in the bytes: an array as it is, a packed object, or a packed exception."""


class Sealed(NamedTuple):
    """A value that was not opened."""

    form: Form
    data: np.ndarray


def read(index: int) -> Any:
    """A part of the call that is being opened, as all calls see it."""
    return find_part(index)(copy=False)


def own(index: int) -> Any:
    """The same, copied: the call may write to it."""
    return find_part(index)(copy=True)


class _Part:
    """Opens a part at most once, since it may stand at several places."""

    def __init__(self, part: Any) -> None:
        self._part = part
        self._opened: list[Any] = []

    def __call__(self, *, copy: bool) -> Any:
        if not isinstance(self._part, Sealed):
            return self._part  # a shared object, which is here already
        if copy:
            return open_sealed(self._part.form, self._part.data.copy())
        if not self._opened:
            self._opened.append(open_sealed(*self._part))
        return self._opened[0]


def open_sealed(form: Form, data: np.ndarray) -> Any:
    """The value; writable if the array is."""
    return data if form == "array" else unpack(data)


def seal(value: Any) -> Sealed:
    """A result, so that anybody may open it: this program's client or another worker."""
    if type(value) is np.ndarray and not value.dtype.hasobject:
        return Sealed("array", value)
    packed = PackedObject(value, _make_pickler)
    data = np.empty(packed.nbytes, np.uint8)
    packed.fill(data)
    return Sealed("object", data)


class _ResultPickler(ReplyPickler):
    """Classes go by value beside their tracker id: whoever opens it may not have them."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.buffers.for_worker = True


def _make_pickler(file: io.BytesIO, _parts: list[Any]) -> _ResultPickler:
    return _ResultPickler(file)


Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]


def open_call(call: np.ndarray, parts: Sequence[Any]) -> Call:
    """The function and its arguments."""
    opened: Call = unpack(call, [_Part(part) for part in parts])
    return opened


def _failed(error: BaseException) -> Sealed:
    payload = bytes(pickle_error(error, skip=1).payload)
    return Sealed("error", np.frombuffer(payload, np.uint8))


def run(call: np.ndarray, parts: Sequence[Any]) -> Any:
    """Run a call; returns what came of it, sealed, or a coroutine that does."""
    opened: Call | None = None
    try:
        fn, args, kwargs = opened = open_call(call, parts)
        result = fn(*args, **kwargs)
        if type(result) is CoroutineType:
            return _awaited(result)
        return seal(result)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (it is the answer)
        if opened is not None:
            note_read_only(error, *opened)
        return _failed(error)


async def _awaited(result: CoroutineType[Any, Any, Any]) -> Sealed:
    try:
        return seal(await result)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (it is the answer)
        return _failed(error)


def iterate(call: np.ndarray, parts: Sequence[Any]) -> Any:
    """The items of a call that yields, each sealed; an error is the last one."""
    try:
        fn, args, kwargs = open_call(call, parts)
        made = fn(*args, **kwargs)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (it is the answer)
        return iter([_failed(error)])
    return _later(made) if hasattr(made, "__aiter__") else _items(made)


def _items(made: Any) -> Iterator[Sealed]:
    try:
        iterator = iter(made)
        yield from map(seal, iterator)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (it is the last item)
        yield _failed(error)


async def _later(made: Any) -> AsyncIterator[Sealed]:
    try:
        async for item in made:
            yield seal(item)
    except (Exception, SystemExit) as error:  # noqa: BLE001  (it is the last item)
        yield _failed(error)


_here = Instance("")


def call_method(name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Call a method of this worker's instance."""
    return _here.call(name, args, kwargs)


class RemoteInstance:
    """What an actor's worker holds: builds the instance, and opens calls of it.

    Args:
        name: Of its class.
        call: Of that.
        parts: Of the call.
    """

    def __init__(self, name: str, call: np.ndarray, parts: Sequence[Any]) -> None:
        self._name = name
        self._call = call, parts

    def initialize(self) -> Any:
        """Build the instance, and initialise it; may return a coroutine."""
        global _here
        _here = Instance(self._name)
        return _here.build(*open_call(*self._call))

    def cleanup(self) -> Any:
        """As the instance's own, if it has one."""
        return _here.clean_up()

    def run(self, call: np.ndarray) -> Any:
        """Run a call of :func:`call_method`; see :func:`run`."""
        return run(call, ())

    def iterate(self, call: np.ndarray) -> Any:
        """The items of such a call; see :func:`iterate`."""
        return iterate(call, ())
