"""The terminal as the live view has it: another screen, single keys, and back again."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Self

from rich.console import Console
from rich.control import Control

QUIT = frozenset({"q", "Q", "\x03", "\x04"})
"""Keys that end it: ``q``, and Ctrl-C and Ctrl-D, should they come as keys."""

_MOVES = {
    "\x1b[A": -1,
    "\x1bOA": -1,
    "k": -1,
    "\x1b[B": 1,
    "\x1bOB": 1,
    "j": 1,
    "\x1b[5~": -10,
    "\x1b[6~": 10,
    " ": 10,
}
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(Exception):
    """The user wants no more of it.

    Attributes:
        signal: That said so, 0 if it was a key.
    """

    def __init__(self, number: int = 0) -> None:
        super().__init__()
        self.signal = number


class Screen:
    """To be entered in the main thread; whatever happens then, leaving it restores all.

    Signals are noted, and looked at where it waits: a write to the terminal is not cut.

    Args:
        console: Whose terminal it is.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        stdin: Any = sys.stdin  # None, if the program was started without one
        self._keys = stdin.fileno() if stdin is not None and stdin.isatty() else -1
        self._before: list[Any] = []
        self._undo = contextlib.ExitStack()
        self._offset = 0

    @property
    def takes_keys(self) -> bool:
        """Whether there is a keyboard."""
        return self._keys >= 0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            self._signals = undo.enter_context(_noted_signals())
            undo.callback(self._leave)
            self._enter()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._undo.close()

    def _enter(self) -> None:
        if self.takes_keys:
            self._before = termios.tcgetattr(self._keys)
            tty.setcbreak(self._keys)
        self._console.control(Control.alt_screen(enable=True))
        self._console.show_cursor(False)

    def _leave(self) -> None:
        try:
            self._console.show_cursor(True)
            self._console.control(Control.alt_screen(enable=False))
        finally:
            if self._before:
                termios.tcsetattr(self._keys, termios.TCSAFLUSH, self._before)

    def draw(self, heading: Any, body: Any) -> None:
        """Show what there is room for: the heading, and the body from where it is at."""
        console = self._console
        width, height = console.size
        options = console.options.update(width=width, height=None)
        lines = console.render_lines(body, options, pad=True)
        room = max(1, height - 1)
        self._offset = min(self._offset, max(0, len(lines) - room))
        shown = lines[self._offset : self._offset + room]
        if self._offset + room < len(lines) and len(shown) > 1:
            below = len(lines) - self._offset - room + 1
            shown[-1:] = console.render_lines(f"… {below} lines more", options)
        top = console.render_lines(heading, options)[:1]
        with console.capture() as captured:
            console.control(Control.home())
            for number, line in enumerate([*top, *shown]):
                if number:
                    console.print()
                console.print(_Line(line), end="")
        # What is left of longer pictures is cleared behind the new one: no flicker.
        console.file.write(captured.get() + "\x1b[J")
        console.file.flush()

    def wait(self, seconds: float) -> None:
        """Until it is time to draw again, or a key or a signal says so.

        Raises:
            Ended: The user wants to leave, or the program is to end.
        """
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        if self.takes_keys:
            poll.register(self._keys, select.POLLIN)
        for descriptor, _ in poll.poll(seconds * 1000):
            if descriptor == self._signals:
                for number in os.read(self._signals, 64):
                    self._handle(number)
            elif not self._obey(os.read(self._keys, 64).decode(errors="replace")):
                raise Ended

    def _obey(self, keys: str) -> bool:
        """Scroll, or end: at ``q``, or if the terminal is gone."""
        if not keys or QUIT & set(keys):
            return False
        self._offset = max(0, self._offset + _MOVES.get(keys, 0))
        return True

    def _handle(self, number: int) -> None:
        if number in _ENDS:
            raise Ended(0 if number == signal.SIGINT else number)
        if number == signal.SIGTSTP:
            self._leave()
            # Stops here, until it is continued.
            os.kill(os.getpid(), signal.SIGSTOP)
            self._enter()


class _Line:
    """Segments as they are."""

    def __init__(self, segments: Any) -> None:
        self._segments = segments

    def __rich_console__(self, _console: Console, _options: Any) -> Iterator[Any]:
        yield from self._segments


@contextlib.contextmanager
def _noted_signals() -> Iterator[int]:
    """A descriptor that gives the numbers of signals, which do nothing else meanwhile."""

    def note(_number: int, _frame: object) -> None:
        pass

    reading, writing = os.pipe()
    undo: list[Callable[[], object]] = []
    try:
        os.set_blocking(writing, False)
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        undo.append(lambda: signal.set_wakeup_fd(before))
        for number in (*_ENDS, signal.SIGTSTP, signal.SIGWINCH):
            handler = signal.signal(number, note)
            undo.append(partial(signal.signal, number, handler))
        yield reading
    finally:
        for step in reversed(undo):
            step()
        os.close(reading)
        os.close(writing)
