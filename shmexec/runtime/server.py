"""This process's fork server: one for all executors, started as early as can be.

The program has one of its own in multiprocessing, which it may have started with other
modules. Ours imports ``shmexec.worker.served``, and with it NumPy and the worker's code,
while the parent goes on: the executor starts it before it imports the rest of the
parent's side, so this module imports next to nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any


class _Preload(list[str]):
    """Modules, and the path to find them on: that of this program.

    The server is given a path, and does not use it: it would take what lies in the
    current directory, be it another copy of this package. What it does use is the
    ``repr`` of this list, as part of a command.
    """

    def __repr__(self) -> str:
        path = f"__import__('sys').path.__setitem__(slice(None), {sys.path!r})"
        return f"({path}, {list(self)!r})[1]"


_PRELOAD = _Preload(["shmexec.worker.served"])
_lock = threading.Lock()
_server: Any = None


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Have processes that this thread starts begin with SIGINT blocked.

    The terminal, or the notebook, sends Ctrl-C to all of them. One that is still loading
    modules would end with a traceback; once it ignores that signal, it unblocks it. Not
    for the main thread: Ctrl-C in here would leave it blocked.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def fork_server() -> Any:
    """The fork server, which may not run yet."""
    global _server
    with _lock:
        if _server is None:
            _server = _make()
            _server.set_forkserver_preload(_PRELOAD)
        return _server


def _make() -> Any:
    from multiprocessing import resource_tracker  # noqa: TID251
    from multiprocessing.forkserver import ForkServer

    class Server(ForkServer):
        def ensure_running(self) -> None:
            # Started first, since it unblocks the signal once it is.
            resource_tracker.ensure_running()
            with interrupts_held_back():
                super().ensure_running()

    return Server()


def start_fork_server() -> None:
    """Start it if it does not run, and do not wait for it.

    A failure is no error here: the first worker's start will meet it, and report it.
    """

    def start() -> None:
        with contextlib.suppress(OSError):
            fork_server().ensure_running()

    thread = threading.Thread(target=start)
    with contextlib.suppress(RuntimeError):
        thread.start()
        thread.join()  # it only starts a process


def stop_fork_server() -> None:
    """End the fork server, if it runs; the next worker starts another."""
    global _server
    with _lock:
        server, _server = _server, None
    if server is not None:
        server._stop()  # noqa: SLF001  (has no public end)


def forget_fork_server() -> None:
    """In a forked child: the fork server is the parent's, and must not live for us."""
    global _server, _lock
    server, _server = _server, None
    _lock = threading.Lock()
    alive = getattr(server, "_forkserver_alive_fd", None)
    if alive is not None:
        with contextlib.suppress(OSError):
            os.close(alive)
