"""Starting workers, and the initializer that each of them gets first.

A process is started without the pool's lock; what it becomes one of, the caller holds
it for, as for all that is not said to be done without.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable

from shmexec import faultpoints, limits
from shmexec.errors import SerializationError
from shmexec.runtime.calls import PackedCall, pack
from shmexec.runtime.processes import can_be_inherited
from shmexec.runtime.sending import Sending
from shmexec.runtime.tables import Tables
from shmexec.runtime.workers import WorkerHandle
from shmexec.scheduler import records as r
from shmexec.worker.setup import Inherited


class Starting:
    """See the module.

    Args:
        tables: The pool's.
        account: Who it is in the budget of its memory.
        sending: Sends new workers the initializer.

    Raises:
        SerializationError: If the initializer can neither be pickled nor inherited.
        SharedMemoryFull: If there is no room for its arguments. Nothing is held after
            an error.
    """

    def __init__(self, tables: Tables, account: Hashable, sending: Sending) -> None:
        self._tables = tables
        self._options = tables.options
        self._account = account
        self._sending = sending
        self.due: deque[int] = deque()
        """Numbers of workers that are to be started; looked at without the lock."""
        self.under_way: set[int] = set()
        """Those that somebody starts just now."""
        self._initializer: PackedCall | None = None
        self._inherited: Inherited | None = None
        if self._options.initializer is not None:
            self._pack(self._options.initializer)

    def _pack(self, initializer: Callable[..., object]) -> None:
        options = self._options
        try:
            self._initializer = pack(
                initializer, options.initargs, {}, self._tables.room, copy=True
            )
        except SerializationError:
            inherited = Inherited(initializer, options.initargs)
            if not can_be_inherited(options.start_method, inherited):
                raise
            self._inherited = inherited

    def note(self, command: r.Spawn) -> None:
        """A worker is to be started."""
        self.due.append(command.worker)

    def take(self) -> int | None:
        """The next one to start, None if there is none any more."""
        while self.due:
            number = self.due[0]
            wanted = number in self._tables.machine.workers
            if wanted:
                self.under_way.add(number)
            self.due.popleft()
            if wanted:
                return number
        return None

    def start(self, number: int) -> WorkerHandle:
        """Start its process; without the lock, since that takes time.

        Raises:
            OSError: If the system has no room for it.
        """
        faultpoints.reach("parent.starting")
        limits.check_descriptors(spare=bool(self._tables.workers))
        return WorkerHandle(
            number, self._options, self._tables.host, self._account, self._inherited
        )

    def greet(self, handle: WorkerHandle) -> None:
        """It runs: have it call the initializer, or end if it is not wanted any more."""
        if self._initializer is not None:
            self._sending.initialize(self._initializer, handle)
        worker = self._tables.machine.workers.get(handle.number)
        if worker is not None and worker.state is r.WorkerState.DRAINING:
            self._sending.ask_to_end(handle)

    def close(self) -> None:
        """No worker is started any more."""
        if self._initializer is not None:
            self._tables.room.give_back(self._initializer.blocks)
