"""``shmexec serve``: a script's functions for programs in other languages.

What is here: the arguments, the signals, and the order in which things begin and end.
Requests are read and answered in :mod:`shmexec.cli.serving`.

The protocol has descriptors of its own. What was stdout is stderr for all the rest of
this process, and for the workers, before any of them begins: whatever prints, nothing of
it can come between two replies.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from shmexec.cli.output import CommandError, print_error
from shmexec.cli.serving.script import ScriptService
from shmexec.cli.serving.session import Session
from shmexec.cli.serving.transport import Client, Listener, Waker

if TYPE_CHECKING:
    import argparse

__all__ = ["serve"]

_CLIENTS: Final = 100
_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGTERM", "SIGHUP", "SIGINT")
    if hasattr(signal, name)
]


def serve(options: argparse.Namespace) -> int:
    """Carry the command out.

    Args:
        options: Parsed arguments: script, workers, socket, timeout, max_line, grace.

    Returns:
        The exit code.
    """
    try:
        number = _run(options)
    except CommandError as error:
        if error.details:
            print(error.details.strip(), file=sys.stderr)
        print_error("serve", str(error))
        return error.code
    if number:
        _say(f"stopped by {signal.Signals(number).name}")
        return 128 + number
    return 0


def _run(options: argparse.Namespace) -> int:
    """Serve until the end; the signal that asked for it, or 0."""
    script = _check_script(options.script)
    with ExitStack() as stack:
        source, sink = stack.enter_context(_private_descriptors())
        waker = Waker()
        stack.callback(waker.close)
        stack.enter_context(_signals_to(waker))
        listener = None
        if options.socket is not None:
            listener = _listen(options.socket)
            stack.callback(listener.close)
        server = _Server(options, script, waker, listener)
        try:
            if server.load():
                if listener is None:
                    server.attach(Client(os.dup(source), os.dup(sink)))
                else:
                    _say(f"{options.script} listens at {options.socket}")
                server.serve()
        finally:
            server.close()
        return server.signal


def _say(text: str) -> None:
    """Tell whoever reads stderr; nobody may, and the server does not wait for that."""
    poll = select.poll()
    poll.register(2, select.POLLOUT)
    if any(events & select.POLLOUT for _, events in poll.poll(0)):
        print(f"shmexec serve: {text}", file=sys.stderr, flush=True)


def _check_script(path: str) -> str:
    if not path.endswith(".py"):
        msg = f"the script must be a .py file, not {path!r}"
        raise CommandError(msg)
    if not os.path.isfile(path):
        what = "is not a file" if os.path.exists(path) else "does not exist"
        msg = f"script {path} {what}"
        raise CommandError(msg)
    return os.path.realpath(path)


def _listen(path: str) -> Listener:
    try:
        return Listener(Path(path).absolute())
    except OSError as error:
        msg = f"cannot listen at {path}: {error.strerror or error}"
        raise CommandError(msg) from None


@contextmanager
def _private_descriptors() -> Iterator[tuple[int, int]]:
    """Take stdin and stdout for the protocol, and give all others substitutes.

    Yields:
        Copies of both, which no other program inherits; closed at the end.
    """
    _have_stderr()
    try:
        source, sink = os.dup(0), os.dup(1)
    except OSError:
        msg = "stdin and stdout must be open"
        raise CommandError(msg) from None
    stdout = sys.stdout
    stdout.flush()
    try:
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        yield source, sink
    finally:
        sys.stdout = stdout
        os.dup2(source, 0)
        os.dup2(sink, 1)
        os.close(source)
        os.close(sink)


def _have_stderr() -> None:
    """Where stderr is closed, its number must not become that of a copy of stdout."""
    try:
        os.fstat(2)
    except OSError:
        nothing = os.open(os.devnull, os.O_WRONLY)
        if nothing != 2:
            os.dup2(nothing, 2)
            os.close(nothing)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115  (as long as the program)


@contextmanager
def _signals_to(waker: Waker) -> Iterator[None]:
    """Have signals end the main thread's poll; the waker tells which one came."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}
    previous = signal.set_wakeup_fd(waker.signals_go_to(), warn_on_full_buffer=False)
    try:
        for number in _SIGNALS:
            # Under nohup SIGHUP is ignored, and stays so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, _do_nothing)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous)


def _do_nothing(_number: int, _frame: object) -> None:
    """The waker's pipe has the number already."""


class _Server:
    """The main thread's part: who may come, and when all of it ends."""

    def __init__(
        self,
        options: argparse.Namespace,
        script: str,
        waker: Waker,
        listener: Listener | None,
    ) -> None:
        self.signal = 0
        self._options = options
        self._waker = waker
        self._listener = listener
        self._full = False
        self._stops = 0
        # Guards what threads of sessions change, too.
        self._lock = threading.Lock()
        self._sessions: set[Session] = set()
        self._shut_down = False
        self._failure: OSError | None = None
        self._service = ScriptService(
            script,
            workers=options.workers,
            timeout=options.timeout,
            shutdown=self._ask_to_shut_down,
            figures=self._figures,
        )

    def load(self) -> bool:
        """Load the script; False if a signal came first.

        Raises:
            CommandError: It cannot be loaded; the details have its traceback.
        """
        outcome: list[BaseException | None] = []

        def load() -> None:
            try:
                self._service.load()
                outcome.append(None)
            except BaseException as error:  # noqa: BLE001  (raised where it is awaited)
                outcome.append(error)
            self._waker.wake()

        threading.Thread(target=load, name="shmexec-serve-load", daemon=True).start()
        # Woken by that thread, whose worker answers or dies, or by a signal.
        while not outcome and not self._stops:
            self._poll(accepting=False)
        if self._stops:
            return False
        if outcome[0] is not None:
            raise outcome[0]
        return True

    def attach(self, client: Client) -> None:
        """Serve a client.

        Raises:
            OSError, RuntimeError: There can be no more descriptors or threads.
        """
        try:
            session = Session(
                client,
                self._service,
                max_line=self._options.max_line,
                grace=self._options.grace,
                ended=self._on_ended,
            )
        except OSError:
            client.close()
            raise
        with self._lock:
            self._sessions.add(session)
        try:
            session.start()
        except RuntimeError:
            with self._lock:
                self._sessions.discard(session)
            raise

    def serve(self) -> None:
        """Until the only client's input has ended, a shutdown, or a signal.

        Raises:
            CommandError: Replies could not be written.
        """
        stops = 0
        # Woken by clients that come, sessions that end, requests to shut down, signals.
        # After a stop sessions end in time, whatever their clients and calls do.
        while self._sessions or self._listener is not None:
            self._poll(accepting=len(self._sessions) < _CLIENTS and not self._full)
            if stops < self._stops:
                stops = self._stops
                self._stop(self._options.grace if stops == 1 else 0.0)
        if self._failure is not None:
            msg = f"cannot write replies: {self._failure.strerror}"
            raise CommandError(msg, code=1)

    def _stop(self, grace: float) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        with self._lock:
            sessions = [*self._sessions]
        for session in sessions:
            session.stop(grace)

    def _poll(self, *, accepting: bool) -> None:
        poll = select.poll()
        poll.register(self._waker.fileno(), select.POLLIN)
        if accepting and self._listener is not None:
            poll.register(self._listener.fileno(), select.POLLIN)
        ready = dict(poll.poll())
        for number in self._waker.take():
            if number:
                self.signal = self.signal or number
                self._stops += 1
        if self._shut_down and not self._stops:
            self._stops = 1
        if self._listener is not None and self._listener.fileno() in ready:
            self._accept(self._listener)

    def _accept(self, listener: Listener) -> None:
        try:
            client = listener.accept()
            if client is not None:
                self.attach(client)
        except (OSError, RuntimeError) as error:
            # Too many open files, or threads: try again when a client has gone.
            self._full = bool(self._sessions)
            _say(f"cannot take one more client: {error}")

    def close(self) -> None:
        """End the workers, and whatever still waits for one of them."""
        self._service.close()

    # -- from other threads ------------------------------------------------------------

    def _on_ended(self, session: Session) -> None:
        with self._lock:
            self._sessions.discard(session)
            self._full = False
            self._failure = self._failure or session.failure
        self._waker.wake()

    def _ask_to_shut_down(self) -> None:
        self._shut_down = True
        self._waker.wake()

    def _figures(self) -> dict[str, int]:
        with self._lock:
            sessions = [*self._sessions]
        return {
            "clients": len(sessions),
            "in_flight": sum(session.in_flight() for session in sessions),
        }
