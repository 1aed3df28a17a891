"""The child's side of one call in a process that was forked for it.

It runs the call, and sends what came of it as frames of bytes: a header, the pickle, and
its buffers, behind their number and their lengths.
"""

from __future__ import annotations

import io
import os
import pickle
import random
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

import cloudpickle

from shmexec.worker.loop import awaited
from shmexec.worker.setup import hold_lifeline

COUNT = struct.Struct("<Q")
"""The number of frames; that of their bytes follows for each."""

RESULT, RAISED, UNPICKLABLE = range(3)
"""What the header says first."""


def run_forked(
    writer: int,
    lifeline: int,
    fn: Callable[..., object],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> NoReturn:
    """Run the call and end the process; never return into the parent's stack."""
    status = 1
    try:
        hold_lifeline(lifeline)
        _settle_in()
        _send(writer, _outcome(fn, args, kwargs))
        status = 0
    except BrokenPipeError:
        pass  # the parent is gone: nobody to tell
    except BaseException:  # noqa: BLE001  (whatever it is, it must not leave this frame)
        traceback.print_exc()
    finally:
        try:
            _flush_output()
        finally:
            # Not sys.exit: the parent's atexit handlers, and what its buffers hold,
            # are the parent's business.
            os._exit(status)


def _settle_in() -> None:
    # The terminal's Ctrl-C goes to all processes of the group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A Python handler of the parent would run its clean-up here.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        # Else every call would draw the same numbers.
        numpy_random.seed()
    sys.stdout = _fresh_stream(sys.stdout)
    sys.stderr = _fresh_stream(sys.stderr)


def _fresh_stream(stream: Any) -> Any:
    """The same file with an empty buffer: the parent's unwritten text is not ours.

    A stream without a descriptor (a notebook's, a test's) is left as it is.
    """
    try:
        fd = stream.fileno()
    except (AttributeError, OSError, ValueError):
        return stream
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    # Never closed: the process ends without the interpreter's clean-up.
    return open(
        fd,
        "w",
        buffering=1,
        encoding=stream.encoding,
        errors=stream.errors,
        closefd=False,
    )


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()


def _outcome(
    fn: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Any]:
    try:
        # Who never shared an object has not imported this, and no handles.
        objects = sys.modules.get("shmexec.wire.objects")
        if objects is not None:
            fn, args, kwargs = objects.with_values((fn, args, kwargs))
        value = awaited(fn(*args, **kwargs))
    except BaseException as error:  # noqa: BLE001  (SystemExit too is the call's answer)
        return _failure(RAISED, error)
    buffers: list[pickle.PickleBuffer] = []
    try:
        body = cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        return [
            pickle.dumps((RESULT, "", "", "")),
            body,
            *(buffer.raw() for buffer in buffers),
        ]
    except Exception as error:  # noqa: BLE001  (any __reduce__ may raise anything)
        return _failure(UNPICKLABLE, error)


def _failure(kind: int, error: BaseException) -> list[Any]:
    text = "".join(traceback.format_exception(error))
    cls = type(error)
    type_name = (
        cls.__qualname__
        if cls.__module__ == "builtins"
        else f"{cls.__module__}.{cls.__qualname__}"
    )
    try:
        message = str(error)
    except Exception:  # noqa: BLE001
        message = "<its __str__ failed>"
    body = b""  # unpickling it fails, which makes a RemoteError in the parent
    if kind == RAISED:
        with suppress(Exception):
            body = cloudpickle.dumps(error, protocol=5)
    return [pickle.dumps((kind, type_name, message, text)), body]


def _send(writer: int, frames: list[Any]) -> None:
    lengths = [len(memoryview(frame).cast("B")) for frame in frames]
    head = COUNT.pack(len(frames)) + struct.pack(f"<{len(frames)}Q", *lengths)
    for frame in (head, *frames):
        view = memoryview(frame).cast("B")
        while view:
            view = view[os.write(writer, view) :]
