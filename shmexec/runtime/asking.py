"""Asks a worker for its stacks, without disturbing what it does.

They come by way of its fault log, from a signal that leaves the call alone (see
:mod:`shmexec.worker.stacks`). Nothing tells that they are written: who asked looks again
and again, for :data:`SHOWN_WITHIN` at most. A worker that cannot answer is told from one
that is stuck by what the system says of it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from shmexec.deadline import Deadline, now
from shmexec.runtime.faultlog import text_end
from shmexec.runtime.workers import WorkerHandle
from shmexec.worker.stacks import SHOW, SHOWS_TASKS, SHOWS_THREADS, TASKS_END

SHOWN_WITHIN = 0.5
"""Seconds that workers get to write their stacks."""

SHOWN_AT_MOST = 1 << 16
"""Bytes of one worker's stacks."""

_LOOK_EACH = 0.002
_SETTLED = 0.05
"""Seconds without a word after which a text is taken to be whole, where the system does
not say whether the signal is still being handled."""


class _Status(NamedTuple):
    """What the system says of a process, or of a thread."""

    state: str
    blocks: bool
    catches: bool
    pends: bool


def _status(path: Path) -> _Status | None:
    """None if it is gone, or the system does not tell."""
    try:
        lines = (path / "status").read_text(errors="replace").splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        bit = 1 << ((SHOW or 1) - 1)
        blocks, catches, pends, private = (
            bool(int(found[name], 16) & bit)
            for name in ("SigBlk", "SigCgt", "ShdPnd", "SigPnd")
        )
        return _Status(found["State"].split()[0], blocks, catches, pends or private)
    except (OSError, KeyError, ValueError, IndexError):
        return None


class Asked:
    """A worker that was asked; to be made with the pool's lock held.

    Args:
        handle: Of the worker, which must not be closed.

    Raises:
        OSError: If there are no descriptors left.
    """

    def __init__(self, handle: WorkerHandle) -> None:
        log = handle.log
        assert log is not None
        self._log = log
        self._handle = handle
        self._folder = Path(f"/proc/{handle.process.pid}")
        self._shows = log.shows()
        self._start = self._seen = 0
        self._seen_at = 0.0
        self._blocking: frozenset[str] = frozenset()
        self.why = self._why_not()
        """Why there are no stacks to come."""
        self._descriptor = os.dup(log.descriptor)
        if not self.why:
            self._start = self._seen = log.begin_text()
            self._blocking = self._threads_that_block()
            handle.process.signal(SHOW or signal.SIGUSR2)

    def _why_not(self) -> str:
        """Why it cannot answer, as far as that is known before it is asked."""
        if SHOW is None:
            return "this system has no signal to ask for it"
        if self._shows not in {SHOWS_THREADS, SHOWS_TASKS}:
            return "its process is starting, and shows nothing yet"
        status = _status(self._folder)
        if status is None:
            return ""
        if status.state in "Tt":
            return "it is stopped (by SIGSTOP, or by a debugger)"
        if not status.catches:
            # By default the signal would end it.
            return f"a call has taken the handler of signal {SHOW:d} away"
        return "it blocks signals" if status.blocks and status.pends else ""

    def _threads_that_block(self) -> frozenset[str]:
        try:
            threads = list((self._folder / "task").iterdir())
        except OSError:
            return frozenset()
        return frozenset(
            thread.name
            for thread in threads
            if (status := _status(thread)) is not None and status.blocks
        )

    def has_answered(self) -> bool:
        """Whether there is nothing more to come."""
        if self.why:
            return True
        end = text_end(self._descriptor)
        if end == self._start:
            return False
        if self._shows == SHOWS_TASKS:
            tail = os.pread(self._descriptor, len(TASKS_END), end - len(TASKS_END))
            return tail == TASKS_END
        if self._folder.exists():
            # While a signal is handled, its thread blocks it.
            return self._threads_that_block() <= self._blocking
        if end != self._seen:
            self._seen, self._seen_at = end, now()
        return now() - self._seen_at > _SETTLED

    def answer(self) -> str:
        """The stacks, or why there are none; with the pool's lock held again."""
        if self.why:
            return f"({self.why})\n"
        start = self._start
        size = min(SHOWN_AT_MOST, text_end(self._descriptor) - start)
        data = os.pread(self._descriptor, size, start)
        if self._handle.log is not None and self._log.descriptor >= 0:
            data = self._log.end_text(start, data)
        text = data.removesuffix(TASKS_END).decode(errors="replace").strip("\n")
        return f"{text}\n" if text else f"({self._why_silent()})\n"

    def _why_silent(self) -> str:
        status = _status(self._folder)
        if status is None and not self._folder.exists():
            return "it has ended meanwhile"
        if status is not None and status.state in "Tt":
            return "it is stopped (by SIGSTOP, or by a debugger)"
        if status is not None and status.pends and status.blocks:
            return "it blocks signals"
        if status is not None and status.state == "D":
            return "it is in a system call that cannot be interrupted"
        return f"it did not answer within {SHOWN_WITHIN:g} s: the machine may be busy"

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._descriptor)


def wait_for_all(asked: Sequence[Asked]) -> None:
    """Wait until all have answered, or cannot; no lock of the pool's is held.

    Nobody wakes who waits here: it looks again.
    """
    deadline = Deadline(SHOWN_WITHIN)
    pause = threading.Event()
    left = list(asked)
    while left := [each for each in left if not each.has_answered()]:
        if deadline.passed():
            return
        pause.wait(_LOOK_EACH)
