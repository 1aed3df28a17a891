"""What came of a call, as it is sent: the pickle of a result, or that of an exception."""

from __future__ import annotations

import pickle
import traceback
from types import TracebackType
from typing import Any

from shmexec.wire.explaining import explain
from shmexec.wire.messages import Kind
from shmexec.wire.pickling import Pickled, ReplyPickler, dump


def dump_as(value: Any, what: str) -> tuple[Kind, Pickled]:
    """A result, or an item of a stream, or else why it cannot be pickled."""
    try:
        return Kind.RESULT, dump(value, ReplyPickler)
    except BaseException as error:  # noqa: BLE001  (whatever it is, it is the reply)
        failure = explain(error, {what: value}, f"the {what}")
        if hasattr(type(value), "send") and hasattr(type(value), "throw"):
            failure.add_note(
                f"The {what} is a generator, which lives in its process only: "
                "call it by stream() instead, or return list(...) of it."
            )
        return Kind.ERROR, pickle_error(failure)


def dump_error(error: BaseException) -> tuple[Kind, Pickled]:
    """An exception that was caught in the caller of this, as the reply of its call."""
    return Kind.ERROR, pickle_error(error, skip=1)


def pickle_error(error: BaseException, *, skip: int = 0) -> Pickled:
    """An exception as (type name, message, traceback text, its own pickle or b"")."""
    text = "".join(
        traceback.format_exception(type(error), error, _skip(error.__traceback__, skip))
    )
    # The frames hold the arguments; the exception may well be kept by someone.
    error.__traceback__ = None
    try:
        message = str(error)
    except Exception:  # noqa: BLE001  (a broken __str__ must not lose the failure)
        message = "<str() of the exception failed>"
    try:
        own = dump(error, ReplyPickler)
        body = bytes(own.payload) if not own.sources else _in_band(error)
    except BaseException:  # noqa: BLE001  (then it goes as RemoteError)
        body = b""
    cls = type(error)
    name = cls.__qualname__
    if cls.__module__ not in {"builtins", "__main__"}:
        name = f"{cls.__module__}.{name}"
    return Pickled(pickle.dumps((name, message, text, body), protocol=5), [])


def _in_band(error: BaseException) -> bytes:
    import cloudpickle

    data: bytes = cloudpickle.dumps(error, protocol=5)
    return data


def _skip(trace: TracebackType | None, frames: int) -> TracebackType | None:
    """Without the first frames, and those of the worker that follow."""
    for _ in range(frames):
        if trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
    outer = trace
    while trace is not None and _is_ours(trace):
        trace = trace.tb_next
    return trace or outer  # an error of the worker's own keeps them all


def _is_ours(trace: TracebackType) -> bool:
    name = trace.tb_frame.f_globals.get("__name__")
    return isinstance(name, str) and name.startswith("shmexec.worker.")
