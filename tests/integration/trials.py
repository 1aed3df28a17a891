"""A fault of the matrix that is tried: armed, struck, and what it should lead to."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

import shmexec
from tests.integration import matrix
from tests.integration.faults import is_gone
from tests.integration.matrix import Pair
from tests.waiting import LONG, wait_until

PATIENCE = 2.5 * LONG
"""Seconds for what should happen: two starts of a worker may be part of it."""

TEXTS = {
    "SIGKILL": "SIGKILL",
    "SIGSEGV": "SIGSEGV",
    "os._exit": "code 7",
    "sys.exit": "code 7",
    "KeyboardInterrupt": "code 1",
    "stack overflow": "SIGSEGV",
    "MemoryError": "code 1",
    "closed descriptors": "code 1|closed its end of the connection",
    "closed, and goes on": "closed its end of the connection",
    "empty message": "closed its end of the connection",
    "grandchild": "SIGKILL",
    "truncated message": "that are no message|code 7",
    "garbage": "35 bytes that are no message|where a message is to start",
}
"""What WorkerDied says of it."""

STAY = {"SIGTERM ignored", "closed, and goes on", "empty message", "garbage"}

OWN = {
    "sys.exit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "MemoryError": MemoryError,
}

OTHERS = {
    matrix.TIMEOUT: shmexec.CallTimeout,
    matrix.BROKEN: shmexec.PoolBroken,
    matrix.FULL: shmexec.SharedMemoryFull,
}


class Trial:
    """One pair, tried."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self.pair = pair
        self.folder = folder
        # Processes that do not end, nor come to the end of the fault.
        self.stays = pair.fault in STAY
        # Nothing limits a start: calls wait for another worker.
        self.starves = pair.fault == "SIGTERM ignored" and pair.moment in {
            "starting",
            "initializer",
        }

    # -- the fault -----------------------------------------------------------------------

    def env(self) -> dict[str, str]:
        """What workers are told."""
        return {
            "SHMEXEC_FAULT_HOOK": "tests.integration.matrix_faults:hook",
            "MATRIX_FAULT": self.pair.fault,
            "MATRIX_MOMENT": matrix.MOMENTS[self.pair.moment],
            "MATRIX_FOLDER": str(self.folder),
        }

    def arm(self) -> None:
        """The next worker that gets there is struck."""
        (self.folder / "armed").touch()

    def has_struck(self) -> int:
        """The process that was struck, if any."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int((self.folder / "pid").read_text())
        return 0

    def strike(self, pid: int) -> None:
        """Have a worker that waits for a message be struck; returns when it was."""
        os.kill(pid, signal.SIGUSR2)
        assert wait_until(self.has_struck, PATIENCE)
        if self.stays:
            return
        assert wait_until(lambda: self.is_over(pid))

    def is_over(self, pid: int) -> bool:
        """Whether the fault has come to its end, one way or the other."""
        return (
            (self.folder / "survived").exists() or is_gone(pid) or state_of(pid) == "T"
        )

    def between_lease_and_send(self, point: str, handle) -> None:
        """The hook in this process."""
        if point == "parent.leased" and (self.folder / "armed").exists():
            self.strike(handle.process.pid)

    def resume(self) -> None:
        """Have a stopped worker go on."""
        assert wait_until(self.has_struck, PATIENCE)
        pid = self.has_struck()
        assert wait_until(lambda: state_of(pid) == "T")
        os.kill(pid, signal.SIGCONT)

    def check(self, error: BaseException) -> None:
        """It is what a call that was hit fails with."""
        expected, fault = self.pair.expected, self.pair.fault
        if expected == matrix.DIED:
            assert type(error) is shmexec.WorkerDied
            assert re.search(TEXTS[fault], str(error)), str(error)
        elif expected == matrix.OWN:
            assert type(error) is OWN[fault]
        else:
            assert type(error) is OTHERS[expected]

    def clean_up(self) -> None:
        """End what the fault has left running."""
        with contextlib.suppress(OSError, ValueError):
            os.kill(int((self.folder / "grandchild").read_text()), signal.SIGKILL)


def state_of(pid: int) -> str:
    """As in ``ps``; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
