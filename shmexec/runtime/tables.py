"""What the parts of a pool have in common: its calls, its workers, its scheduler.

The pool's lock guards all of it. Two things are done without: to look whether there is
anything in :attr:`Tables.outcomes`, and to resolve what is there, number by number.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from shmexec.deadline import now
from shmexec.memory.host import Host
from shmexec.options import Options
from shmexec.runtime import monitor
from shmexec.runtime.calls import Outcome, PackedCall
from shmexec.runtime.room import RoomMaker
from shmexec.runtime.workers import WorkerHandle
from shmexec.scheduler.machine import Machine
from shmexec.scheduler.records import WorkerState
from shmexec.scheduler.weight import Limits

if TYPE_CHECKING:
    from shmexec.runtime.recording import Recorder

PIDS_KEPT = 4096
"""Workers whose process ids are remembered, for stories of calls."""


class Tables:
    """See the module.

    Attributes:
        options: The pool's settings.
        born: When it was made.
        host: Its memory.
        lock: The pool's; in a forked child another one.
        room: Gives calls their blocks.
        reserve: Bytes of the machine's memory that shall be left.
        machine: The scheduler.
        calls: Calls that are not done, by their numbers.
        outcomes: Of calls that are done, and of items of streams; not resolved yet.
        workers: Those that run, by their numbers.
        showing: Held by the thread that asks workers for their stacks; never inside the
            pool's lock.
        pids: Of workers, also of the latest of those that are gone.
        recorder: Notes what becomes of calls, while somebody profiles the pool.
    """

    def __init__(self, options: Options, host: Host, room: RoomMaker) -> None:
        self.options = options
        self.born = now()
        self.lock = threading.Lock()
        self.host = host
        self.room = room
        own = options.min_free_memory
        self.reserve = monitor.default_reserve() if own is None else own
        self.machine = Machine(
            options.max_workers,
            max_restarts=options.max_restarts,
            max_calls=options.max_tasks_per_child,
            idle_timeout=options.idle_timeout,
            start_timeout=options.actor.start_timeout if options.actor else None,
            exclusive=options.actor is not None,
            slots=options.actor.slots if options.actor else 1,
            limits=Limits(
                options.max_worker_memory,
                options.max_worker_memory_hard,
                self.reserve,
            ),
        )
        self.calls: dict[int, PackedCall] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.workers: dict[int, WorkerHandle] = {}
        self.showing = threading.Lock()
        self.pids: OrderedDict[int, int] = OrderedDict()
        self.recorder: Recorder | None = None

    def adopt(self, handle: WorkerHandle) -> None:
        """A worker's process runs."""
        self.workers[handle.number] = handle
        self.pids[handle.number] = handle.process.pid
        if len(self.pids) > PIDS_KEPT:
            self.pids.popitem(last=False)

    def number_of(self, pid: int) -> int:
        """The number of the worker that has this process id.

        Raises:
            ValueError: If there is none, or it is about to end.
        """
        up = {}
        for number, handle in self.workers.items():
            worker = self.machine.workers.get(number)
            if worker is not None and worker.state is not WorkerState.DRAINING:
                up[handle.process.pid] = number
        if pid not in up:
            now = ", ".join(map(str, up)) or "none"
            msg = (
                f"{self.options.name!r} has no worker with the process id {pid}, or not "
                f"any more (its workers now: {now}). Submit the call for another one"
            )
            raise ValueError(msg)
        return up[pid]

    def forget(self, number: int) -> PackedCall | None:
        """A call is done, or will never be: its blocks are given back."""
        call = self.calls.pop(number, None)
        if call is not None and call.blocks:
            self.room.give_back(call.blocks)
        return call
