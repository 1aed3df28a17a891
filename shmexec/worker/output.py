"""Where a worker's output goes: what Python, C and child processes write to 1 and 2."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any, TextIO

from shmexec.worker.setup import PassedDescriptor, WorkerConfig

_LINES = 1
"""``_IOLBF``: C code's whole lines are written at once."""

_before: list[Any] = []
"""The streams of the process that this one was forked from: they must not be collected,
since they would write what they hold once more."""


def redirect(config: WorkerConfig) -> None:
    """Have descriptors 1 and 2 lead where the program wants, or nowhere.

    Before anything that was passed is used: it may have just these numbers, if the
    program has no output.
    """
    for passed in vars(config).values():
        if isinstance(passed, PassedDescriptor) and passed.number in {1, 2}:
            above = fcntl.fcntl(passed.number, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(passed.number)
            passed.number = above
    for target, passed in ((1, config.stdout), (2, config.stderr)):
        if passed is None:
            source = os.open(os.devnull, os.O_WRONLY)
        else:
            source, passed.number = passed.number, -1
        # Children inherit these two, and no other descriptor of a pipe.
        os.dup2(source, target)
        if source != target:  # the null device may have got the free number
            os.close(source)
    _before.extend((sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__))
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = _stream(descriptor)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    _take_over_c()


def _stream(descriptor: int) -> TextIO:
    return open(
        descriptor,
        "w",
        buffering=1,
        encoding="utf-8",
        errors="backslashreplace",
        closefd=False,
    )


def _do_nothing() -> None:
    """Stands for what this system does not have."""


_flush_c: Callable[[], object] = _do_nothing


@cache
def c_stdio() -> Callable[[], Callable[[], object]]:
    """How to take over the C library's output, found once: in the fork server, if any.

    What it returns forgets what is held of the parent's output, has whole lines written
    from then on, and returns how to flush.

    Raises:
        AttributeError, ImportError, OSError, ValueError: If the library is another one.
    """
    import ctypes

    library: Any = ctypes.CDLL(None)
    name = "__stdoutp" if sys.platform == "darwin" else "stdout"
    stdout = ctypes.c_void_p.in_dll(library, name)
    purge = getattr(library, "__fpurge", None)
    if purge is not None:
        purge.argtypes, purge.restype = [ctypes.c_void_p], None
    set_buffer = library.setvbuf
    set_buffer.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    set_buffer.argtypes += [ctypes.c_size_t]
    # Not all streams, as fflush(NULL) does: a thread may be reading one, and hold it.
    flush = library.fflush
    flush.argtypes = [ctypes.c_void_p]

    def take_over() -> Callable[[], object]:
        if purge is not None:
            purge(stdout)
        set_buffer(stdout, None, _LINES, 0)
        return partial(flush, stdout)

    return take_over


def _take_over_c() -> None:
    """Forget what the C library holds of the parent's output; write lines from now on."""
    global _flush_c
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
        _flush_c = c_stdio()()


def flush() -> None:
    """Write what is held back in this process; before each reply."""
    # One may be closed, None, or the call's own: whatever it does is no matter here. Not
    # contextlib.suppress, which takes longer than the flush.
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105
            stream.flush()
        except BaseException:  # noqa: BLE001, S110
            pass
    _flush_c()
