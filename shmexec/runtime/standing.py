"""What a pool is at, and what it says to whom it takes no call from.

Its flags are set with the pool's lock held, and looked at without it as well: each is
set once, and stays.
"""

from __future__ import annotations

import threading

from shmexec.errors import PoolBroken
from shmexec.runtime import calls, lifecycle, reports
from shmexec.runtime.tables import Tables
from shmexec.scheduler.records import WorkerState


class Standing:
    """See the module.

    Attributes:
        closed: It takes no more calls.
        forked: This process is a copy of the pool's: it is not to be used here.
        gone: Set when nothing of it is left.
        torn: What broke the parent's side of it, if anything did.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._options = tables.options
        self.closed = False
        self.forked = False
        self.gone = threading.Event()
        self.torn: BaseException | None = None

    @property
    def broken(self) -> bool:
        """Whether no worker can be started any more."""
        return bool(self._tables.machine.broken) or self.torn is not None

    def check(self) -> None:
        """Raise PoolClosed or PoolBroken if no call can be taken."""
        if self.closed or self.forked or lifecycle.exiting():
            raise calls.closed_error(
                self._options, forked=self.forked, exiting=lifecycle.exiting()
            )
        if self._tables.machine.broken or self.torn is not None:
            raise self.error()

    def error(self) -> PoolBroken:
        """Why it is broken, for whom it fails."""
        if self.torn is not None:
            return reports.interrupted(self._options, self.torn)
        return reports.broken(self._options, self._tables.machine.broken)

    def name(self) -> str:
        """Starting, ready, busy, failed, closing or closed; the caller holds the lock."""
        if self.closed or self.forked:
            return "closed" if self.forked or self.gone.is_set() else "closing"
        machine = self._tables.machine
        if machine.broken or self.torn is not None:
            return "failed"
        up = {WorkerState.IDLE, WorkerState.BUSY}
        if not any(w.state in up for w in machine.workers.values()):
            return "starting"
        return "busy" if self._tables.calls else "ready"
