"""What goes wrong in a worker, as functions that it runs; and calls that are right.

Light, and importable by every system. Not a system's own tests: what is here happens to
users, and each system is asked the same.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SIZES = (8, 1 << 10, 1 << 17)
"""Elements of the arrays that go there and back: 64 bytes, 8 KB, 1 MB."""


def plus_one(array: np.ndarray) -> np.ndarray:
    """What all calls compute that are to give a result."""
    return array + 1


def here_and_now() -> tuple[int, float]:
    """Who runs this, and when: all processes have the same clock."""
    return os.getpid(), time.monotonic()


def note(path: str) -> None:
    """Write this process's number, and when it began, to a file that appears at once."""
    hidden = Path(f"{path}.new")
    hidden.write_text(f"{os.getpid()} {time.monotonic()!r}", encoding="utf-8")
    hidden.rename(path)


def wait_for_death(path: str) -> None:
    """Say who runs this, then wait to be killed."""
    note(path)
    time.sleep(60)


def heed_nothing(path: str) -> None:
    """Say who runs this, then let no signal and no exception end it."""
    ends = {signal.SIGKILL, signal.SIGSTOP}
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - ends)
    note(path)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with contextlib.suppress(BaseException):
            time.sleep(1)


# -- faults ----------------------------------------------------------------------------


def by_signal(number: int) -> None:
    """Die of it."""
    os.kill(os.getpid(), number)
    time.sleep(60)


def leave(code: int) -> None:
    """End the process, without a word."""
    os._exit(code)


def leave_politely(code: int) -> None:
    """Ask for the process's end."""
    sys.exit(code)


def press_ctrl_c() -> None:
    """As if it was interrupted."""
    raise KeyboardInterrupt


def recurse() -> None:
    """For ever."""
    recurse()


def exhaust() -> None:
    """Ask for more memory than there is."""
    np.empty(1 << 58)


def stop_and_go_on() -> int:
    """Be stopped for a while, as by a debugger; the call itself is all right."""
    code = f"sleep 0.1; kill -CONT {os.getpid()}"
    with subprocess.Popen(["/bin/sh", "-c", code]):
        os.kill(os.getpid(), signal.SIGSTOP)
    return 1


class Unfortunate(Exception):
    """Cannot be unpickled: it takes two arguments, and passes one on."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)
        self.second = second


def fail_badly() -> None:
    """With an exception that cannot be unpickled."""
    raise Unfortunate("one", "two")


def return_lock() -> Any:
    """What cannot be pickled."""
    return threading.Lock()


class Poison:
    """Cannot be unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse, ()


def _refuse() -> None:
    msg = "poison"
    raise RuntimeError(msg)


def return_poison() -> Poison:
    """What cannot be unpickled in the parent."""
    return Poison()


def take(_thing: object) -> int:
    """Any argument."""
    return 1


class Fault(NamedTuple):
    """A call that goes wrong.

    Attributes:
        name: What it is.
        fn: The call.
        args: Its arguments, made when it is submitted.
        expected: What it returns all the same; None if it has to fail.
    """

    name: str
    fn: Callable[..., Any]
    args: Callable[[], tuple[Any, ...]] = tuple
    expected: int | None = None


FAULTS = (
    Fault("SIGKILL", by_signal, lambda: (signal.SIGKILL,)),
    Fault("SIGSEGV", by_signal, lambda: (signal.SIGSEGV,)),
    Fault("SIGABRT", by_signal, lambda: (signal.SIGABRT,)),
    Fault("SIGTERM", by_signal, lambda: (signal.SIGTERM,)),
    Fault("os._exit(0)", leave, lambda: (0,)),
    Fault("os._exit(3)", leave, lambda: (3,)),
    Fault("sys.exit", leave_politely, lambda: (1,)),
    Fault("KeyboardInterrupt", press_ctrl_c),
    Fault("endless recursion", recurse),
    Fault("MemoryError", exhaust),
    Fault("SIGSTOP, SIGCONT", stop_and_go_on, expected=1),
    Fault("an exception that cannot be unpickled", fail_badly),
    Fault("a result that cannot be pickled", return_lock),
    Fault("a result that cannot be unpickled", return_poison),
    Fault("an argument that cannot be pickled", take, lambda: (threading.Lock(),)),
    Fault("an argument that cannot be unpickled", take, lambda: (Poison(),)),
)
