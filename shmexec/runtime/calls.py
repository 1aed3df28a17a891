"""Packing calls for workers, and unpacking what came back."""

from __future__ import annotations

import pickle
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import InvalidStateError
from contextvars import Context
from typing import Any, NamedTuple

from shmexec.errors import (
    MemoryWarning,
    PoolClosed,
    RemoteError,
    RemoteTraceback,
    SerializationError,
)
from shmexec.memory.host import Block
from shmexec.memory.views import Loan, Returns
from shmexec.options import INLINE_LIMIT, Options
from shmexec.runtime.futures import Future
from shmexec.runtime.room import RoomMaker
from shmexec.runtime.surroundings import Around
from shmexec.runtime.waiting import resolving
from shmexec.wire.explaining import explain
from shmexec.wire.functions import FunctionRef, describe
from shmexec.wire.messages import Kind, Mode
from shmexec.wire.parcels import Parcel
from shmexec.wire.pickling import Pickled, dump, dump_arguments, load
from shmexec.wire.sources import AnySource, PlacedSource, Source
from shmexec.worker.actor import call_method
from shmexec.worker.tasks import run_batch, run_chunk

PAYLOAD_AT_MOST = INLINE_LIMIT + 4096
"""Bytes of a call's pickle that go in its message: a parcel's own, and what is around it.

So a parcel is passed on without need of room."""


class Argument(NamedTuple):
    """A buffer of a packed call: where it lies, and how it may be used."""

    key: tuple[int, int]
    offset: int
    nbytes: int
    mode: Mode


class PackedCall:
    """A call ready to be sent, as often as it must be.

    Attributes:
        sealed: Its result is passed on as a parcel, not unpickled here.
    """

    number = 0
    payload: bytes = b""
    spilled = False
    timeout: float | None = None
    sealed = False
    arguments: Sequence[Argument] = ()
    blocks: Sequence[Block] = ()
    objects: Sequence[Any] = ()
    copied = 0
    by_reference = 0
    placed = 0
    faulted = 0
    credit = 0
    """Items it may yield at first; 0 if it is no stream."""
    items: deque[Future[Any]] | None = None
    """A stream's futures, as long as somebody wants them; the last is :attr:`future`."""
    noted: tuple[bytes | None, Future[Any] | None] = (None, None)
    """The message that brought a stream's latest item, and the future that this is for."""
    closed = False
    """Whether a stream shall end: nobody wants more of it, or the pool ends."""
    stack = ""
    """Where it was when it was cancelled beside others."""
    packing = 0.0
    """Seconds that it took to pickle and to copy it, if that was looked at."""
    again = 0
    """Bytes of arrays that an earlier call was given as well, if that was looked at."""
    context: Context | None = None
    """In which it was submitted, where that matters to what it prints."""
    only_here = False
    """Whether it makes no sense in any other process than a worker of this pool."""

    def __init__(self, function: FunctionRef, name: str) -> None:
        self.function = function
        self.name = name
        self.future: Future[Any] = Future()


def pack(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    room: RoomMaker,
    *,
    copy: bool = False,
    around: Around | None = None,
) -> PackedCall:
    """Pickle a call and copy its buffers into blocks.

    Args:
        fn: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        room: Gives the blocks.
        copy: Have the worker copy the buffers, since the call may run again.
        around: What is to surround it.

    Raises:
        SerializationError: If something cannot be pickled.
        SharedMemoryFull: If there is no room. Nothing is held after an error.
    """
    name, function, pickled = pickle_call(fn, args, kwargs, room.returns, around)
    call = PackedCall(function, name)
    try:
        _place_all(call, pickled, room, Mode.COPY if copy else Mode.PRIVATE)
    except BaseException:
        room.give_back(call.blocks)
        raise
    return call


def pickle_call(
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    returns: Returns | None,
    around: Around | None,
) -> tuple[str, FunctionRef, Pickled]:
    """The name of a call, how its function travels, and its pickle.

    Raises:
        SerializationError: If something cannot be pickled.
    """
    name = name_of(fn, args)
    try:
        function = describe(fn)
        if function.key and around is None:
            return name, function, dump_arguments(args, kwargs, returns)
        call: tuple[Any, ...] = (args, kwargs) if function.key else (fn, args, kwargs)
        if around is not None:
            call = (*call, around.packed(name))
        return name, function, dump(call, returns=returns)
    except Exception as error:
        shown = args[1:] if fn is call_method else args
        parts = {f"args[{i}]": arg for i, arg in enumerate(shown)}
        parts |= {f"kwargs[{key!r}]": value for key, value in kwargs.items()}
        if around is not None:
            parts |= around.parts()
        failure = explain(error, {**parts, "fn": fn}, f"the call of {name}")
        failure.add_note(
            "Pass what it is made from, and make it in the worker: in the call itself, "
            "or once for all calls with initializer=."
        )
        raise failure from error


def name_of(fn: Callable[..., Any], args: tuple[Any, ...]) -> str:
    """The user's word for the call, also if it is a chunk or a batch of calls."""
    if fn is call_method:
        name: str = args[0]
        return name
    if fn is run_batch or fn is run_chunk:  # fn may not be hashable
        fn = args[0]
    return getattr(fn, "__qualname__", None) or type(fn).__qualname__


def _place_all(call: PackedCall, pickled: Pickled, room: RoomMaker, mode: Mode) -> None:
    sources: list[AnySource] = pickled.sources
    if pickled.in_files:
        call.by_reference += pickled.in_files
    inline = len(pickled.payload) < PAYLOAD_AT_MOST
    if not sources and inline:
        call.payload = bytes(pickled.payload)
        return
    call.objects = pickled.objects
    call.arguments, call.blocks = arguments, blocks = [], []
    if inline:
        call.payload = bytes(pickled.payload)
    else:
        sources = [*sources, Source(pickled.payload)]
        call.spilled = True
    for source in sources:
        if isinstance(source, PlacedSource):
            key = source.block
            if isinstance(key, Loan):
                # The program may drop the array before the call is sent.
                blocks.append(room.lease(key))
                key = blocks[-1].key
            own = mode if source.mode is Mode.PRIVATE else source.mode
            arguments.append(Argument(key, source.offset, source.nbytes, own))
            call.by_reference += source.passed
            continue
        block = room.place(source.nbytes, source=source)
        blocks.append(block)
        call.placed += 1
        call.faulted += block.faulted
        call.copied += source.nbytes
        arguments.append(Argument(block.key, block.key[1], block.nbytes, mode))


def seal(obj: Any, room: RoomMaker) -> tuple[Parcel, int]:
    """An object as a parcel for a call to come, and the bytes that were copied for it.

    Raises:
        SerializationError: If it cannot be pickled.
        SharedMemoryFull: If there is no room. Nothing is held after an error.
    """
    try:
        pickled = dump(obj, returns=room.returns)
    except Exception as error:
        raise explain(error, {"item": obj}, "the item") from error
    payload: bytes | None = None
    found = pickled.sources
    if len(pickled.payload) < INLINE_LIMIT:
        payload = bytes(pickled.payload)
    else:
        found = [*found, Source(pickled.payload)]
    sources, copied = [], 0
    for source in found:
        if isinstance(source, PlacedSource):
            source.first = None  # the loan is enough
            sources.append(source)
            continue
        loan = room.hold(room.place(source.nbytes, source=source))
        sources.append(_passed_on(loan))
        sources[-1].passed = 0  # they are counted as copied
        copied += source.nbytes
    return Parcel(payload, sources, pickled.objects), copied


def _passed_on(loan: Loan) -> PlacedSource:
    return PlacedSource(loan, loan.offset, loan.nbytes, Mode.PRIVATE)


PACKABLE = 256
"""Bytes of the largest payload of a call that may be packed with others."""


def kind_of(
    call: PackedCall, timeout: float | None, worker: int | None
) -> bytes | None:
    """What tells calls that take about as long; None if this one is never packed."""
    if (
        timeout is not None
        or worker is not None
        or call.arguments
        or call.credit
        or len(call.payload) > PACKABLE
    ):
        return None
    return call.function.key or None


class Outcome(NamedTuple):
    """What a call came to; waits to be put into its future, outside of all locks."""

    call: PackedCall
    kind: Kind | None
    payload: Any = b""
    views: tuple[Any, ...] = ()
    """Of the buffers; their loans if the call is sealed."""
    error: BaseException | None = None
    cancelled: bool = False
    warning: str = ""
    after: int = 0  # what was printed up to this number comes first
    item: Future[Any] | None = None
    """The future of an item; that of the call if None."""

    @property
    def future(self) -> Future[Any]:
        """Where it is to be put."""
        return self.item or self.call.future


def resolve(outcome: Outcome) -> None:
    """Put an outcome into its future; harmless if somebody did so already.

    Runs callbacks, which may submit, and wait.
    """
    future = outcome.future
    result, error = None, outcome.error
    if not (outcome.cancelled or future.settled or error is not None):
        result, error = _unpack(outcome)
    if outcome.warning:
        try:
            warnings.warn(outcome.warning, MemoryWarning, stacklevel=2)
        except MemoryWarning as raised:  # the program has made errors of them
            # Its frames hold the result.
            result, error = None, raised.with_traceback(None)
    before = resolving.active
    resolving.active = True
    try:
        if outcome.cancelled:
            future.settle_cancelled()
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)
    except InvalidStateError:
        # Another thread was quicker, or this one, with which it did not come to an end.
        if future.interrupted:
            future.go_on()
    except BaseException:
        future.interrupted = True
        raise
    finally:
        resolving.active = before


def _unpack(outcome: Outcome) -> tuple[Any, BaseException | None]:
    if outcome.kind is Kind.ERROR:
        return None, _unpack_error(outcome)
    if outcome.call.sealed:
        return _parcel(outcome), None
    try:
        return load(outcome.payload, outcome.views), None
    except BaseException as cause:
        if is_for_this_thread(cause):
            raise  # not the call's; it is unpacked again later
        msg = (
            f"the result of {outcome.call.name} cannot be unpickled here: "
            f"{type(cause).__name__}: {cause}"
        )
        error = SerializationError(msg, "result")
        error.__cause__ = cause
        return None, error


def _parcel(outcome: Outcome) -> Parcel:
    payload, loans = outcome.payload, outcome.views
    if isinstance(payload, Loan):
        loans, payload = (*loans, payload), None
    return Parcel(payload, [_passed_on(loan) for loan in loans])


def is_for_this_thread(error: BaseException) -> bool:
    """Whether it may be the user's Ctrl-C, which only the main thread gets."""
    return (
        isinstance(error, KeyboardInterrupt)
        and threading.current_thread() is threading.main_thread()
    )


def _unpack_error(outcome: Outcome) -> BaseException:
    try:
        name, message, text, body = load(outcome.payload, outcome.views)
    except BaseException as cause:
        if is_for_this_thread(cause):
            raise
        name = outcome.call.name
        msg = f"what {name} raised cannot be read: {type(cause).__name__}: {cause}"
        error = SerializationError(msg, "exception")
        error.__cause__ = cause
        return error
    return _rebuild_error(name, message, text, body)


def _rebuild_error(name: str, message: str, text: str, body: bytes) -> BaseException:
    error: BaseException
    try:
        error = pickle.loads(body) if body else RemoteError(name, message, text)
        if not isinstance(error, BaseException):
            raise TypeError
    except BaseException as cause:
        if is_for_this_thread(cause):
            raise
        error = RemoteError(name, message, text)  # it cannot be rebuilt, its text can
    error.__cause__ = RemoteTraceback(text)
    return error


def closed_error(options: Options, *, forked: bool, exiting: bool) -> PoolClosed:
    """Why a call cannot be taken."""
    actor = options.actor
    who = f"executor {options.name!r}" if actor is None else f"actor {actor.name}"
    if forked:
        return PoolClosed(f"{who} belongs to the parent of this process; make one here")
    if exiting:
        return PoolClosed(
            f"{who}: cannot schedule new futures after interpreter shutdown"
        )
    if actor is not None:
        return PoolClosed(f"{who} is closed, or its executor is: make another one")
    return PoolClosed(f"{who}: cannot schedule new futures after shutdown")


def traceback_of(payload: Any, views: tuple[Any, ...]) -> str:
    """The traceback in a worker's error, as text; empty if there is none."""
    try:
        _, _, text, _ = load(payload, views)
    except Exception:  # noqa: BLE001  (it is for people; nothing depends on it)
        return ""
    return text if isinstance(text, str) else ""


def error_name(payload: Any, views: tuple[Any, ...]) -> str:
    """The type of the exception in a worker's error; ``?`` if that cannot be read."""
    try:
        name, _, _, _ = load(payload, views)
    except Exception:  # noqa: BLE001  (nothing depends on it)
        return "?"
    return name if isinstance(name, str) else "?"


def rebuild_error(data: bytes) -> BaseException:
    """The exception that a worker pickled as part of a result."""
    return _rebuild_error(*pickle.loads(data))
