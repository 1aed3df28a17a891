"""The worker's fault log: which call it began, and its stacks, written when asked for.

The log is a file that the parent has, too, and reads also after the worker's death. At
its start there is the number of the call that the worker began last, then how much it
shows; then results of a pack of calls as they come; last, since it may be of any length,
what ``faulthandler`` writes.

Two signals from the parent have the stacks of all threads written, by ``faulthandler``
and so whatever the interpreter does, even in C code that holds the GIL:
:data:`INTERRUPT` also interrupts the call, :data:`SHOW` leaves it alone. Where the worker
has an event loop the coroutines that wait there are written as well, by a handler in
Python: ``faulthandler`` does not see them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from shmexec.worker import loop as event_loop

INTERRUPT = getattr(signal, "SIGUSR1", None)
"""Sent by the parent to a worker whose call must stop: dumps the stacks, interrupts."""

SHOW: int | None = (
    signal.SIGRTMAX - 5
    if hasattr(signal, "SIGRTMAX")
    else getattr(signal, "SIGUSR2", None)
)
"""Sent by the parent to see the stacks. Where there are signals without a name it is one
of those, which next to no program uses."""

MARK_BYTES = 8
"""At the start of the fault log the worker writes the number of the call it begins."""

SHOWS_AT = MARK_BYTES
"""Behind it, in a byte, what :data:`SHOW` brings."""

SHOWS_THREADS, SHOWS_TASKS = b"\1", b"\2"
"""Stacks of threads; also the coroutines of the event loop, and then :data:`TASKS_END`."""

TASKS_END = b"\4\n"

_TASKS_AT_MOST = 100
"""As many threads ``faulthandler`` writes."""

PACK_LOG_AT = 4096
"""Where in the fault log, which is sparse, the results of a pack are noted as they come.

From there the parent takes them if a call that follows them in the pack is long, or kills
the worker."""

PACK_LOG_AT_MOST = 1 << 20
"""Bytes of that."""

TEXT_AT = PACK_LOG_AT + PACK_LOG_AT_MOST
"""Where the text begins. The parent sets the position that both have in the file."""


class Interrupted(KeyboardInterrupt):
    """Raised in a call that the parent wants to stop."""


def prepare(log: int, is_running: Callable[[], bool]) -> None:
    """Write to the log what goes wrong, and what the two signals ask for.

    Args:
        log: Descriptor of the fault log.
        is_running: Whether user code runs, so that it may be interrupted.
    """
    faulthandler.enable(log, all_threads=True)
    if INTERRUPT is None or SHOW is None:
        return

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        _write_tasks(log)
        if is_running():
            raise Interrupted

    signal.signal(INTERRUPT, interrupt)
    # The dump comes from C, whatever the interpreter does; then the handler above.
    faulthandler.register(INTERRUPT, file=log, all_threads=True, chain=True)
    # There must always be a handler: by default it would end the process.
    signal.signal(SHOW, signal.SIG_IGN)
    # Without a chain it restarts the system call that it comes into (SA_RESTART).
    faulthandler.register(SHOW, file=log, all_threads=True, chain=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {INTERRUPT, SHOW})
    os.pwrite(log, SHOWS_THREADS, SHOWS_AT)
    event_loop.on_made = lambda: _show_tasks_too(log)


def _show_tasks_too(log: int) -> None:
    """There is an event loop now: coroutines wait there, on no thread's stack."""
    event_loop.on_made = None
    if SHOW is None:
        return

    def show(_signum: int, _frame: FrameType | None) -> None:
        _write_tasks(log)
        os.write(log, TASKS_END)

    # Not a moment without a handler. What comes in between is ignored, and the parent
    # waits for it no longer than for a worker that is stuck.
    faulthandler.unregister(SHOW)
    signal.signal(SHOW, show)
    faulthandler.register(SHOW, file=log, all_threads=True, chain=True)
    os.pwrite(log, SHOWS_TASKS, SHOWS_AT)


def _write_tasks(log: int) -> None:
    """Write where the coroutines of the event loop wait; in a signal handler."""
    asyncio: Any = sys.modules.get("asyncio")
    loop = event_loop.made()
    if asyncio is None or loop is None or loop.is_closed():
        return
    with contextlib.suppress(Exception):  # what is shown must not fail what runs
        running = asyncio.current_task(loop)
        for task in itertools.islice(asyncio.all_tasks(loop), _TASKS_AT_MOST):
            if task is not running:  # which is on the stack of its thread
                lines = [f"  {_line(frame)}\n" for frame in _frames(task.get_coro())]
                text = f"{task.get_name()} (most recent call first):\n"
                os.write(log, f"\n{text}{''.join(lines[::-1])}".encode())


def _line(frame: FrameType) -> str:
    code = frame.f_code
    return f'File "{code.co_filename}", line {frame.f_lineno} in {code.co_name}'


def _frames(waiting: Any) -> Iterator[FrameType]:
    """The frames of a coroutine, from the outermost one to where it waits."""
    while waiting is not None:
        frame, following = None, None
        for kind in ("cr", "gi", "ag"):
            frame = getattr(waiting, f"{kind}_frame", None)
            if frame is not None:
                name = "gi_yieldfrom" if kind == "gi" else f"{kind}_await"
                following = getattr(waiting, name)
                break
        if frame is None:
            return
        ours = frame.f_globals.get("__name__", "").startswith("shmexec.worker.")
        if not ours:
            yield frame
        elif following is None or kind == "gi":
            # The worker drives a call's coroutine by hand: see `flight`.
            following = frame.f_locals.get("user")
        waiting = following
