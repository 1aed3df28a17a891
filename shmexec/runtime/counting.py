"""What a pool has done, in figures.

The caller holds the pool's lock, for all of it.
"""

from __future__ import annotations

from collections.abc import Hashable

from shmexec.figures import Stats, WorkerStats
from shmexec.memory import native
from shmexec.memory.budget import NotOpen
from shmexec.memory.host import Block
from shmexec.runtime.calls import PackedCall
from shmexec.runtime.guard import Guard
from shmexec.runtime.tables import Tables
from shmexec.runtime.workers import WorkerHandle
from shmexec.scheduler import records as r


class Counting:
    """Counts bytes and blocks; the scheduler counts calls.

    Args:
        tables: The pool's.
        account: Who it is in the budget of its memory.
        guard: Knows the memory of workers, and what is left of it.
    """

    def __init__(self, tables: Tables, account: Hashable, guard: Guard) -> None:
        self._guard = guard
        self._reserve = tables.reserve
        self._options = tables.options
        self._machine = tables.machine
        self._workers = tables.workers
        self._host = tables.host
        self._account = account
        self._copied_in = self._by_reference = 0
        self._buried = 0  # bytes that workers copied out which are gone now
        self._recycled = self._faulted = 0  # blocks, here and in workers now gone

    def add_call(self, call: PackedCall) -> None:
        """A call was taken in."""
        self._copied_in += call.copied
        self._by_reference += call.by_reference
        self._add_blocks(call.placed - call.faulted, call.faulted)

    def add_block(self, block: Block) -> None:
        """A block was made for arrays of several calls."""
        self._add_blocks(not block.faulted, block.faulted)

    def add_copied(self, nbytes: int) -> None:
        """So many bytes were copied into such a block."""
        self._copied_in += nbytes

    def _add_blocks(self, recycled: int, faulted: int) -> None:
        self._recycled += recycled
        self._faulted += faulted

    def bury(self, handle: WorkerHandle) -> None:
        """A worker has ended, and will be none of the workers: keep what it counted."""
        self._buried += handle.copied_out
        self._add_blocks(*handle.blocks)

    def stats(self) -> Stats:
        """See :meth:`shmexec.Executor.stats`."""
        machine, handles = self._machine, self._workers.values()
        self._host.settle()
        workers = tuple(
            self._worker_stats(worker.id, worker.state.value, worker.calls)
            for worker in machine.workers.values()
        )
        blocks = ((self._recycled, self._faulted), *(each.blocks for each in handles))
        recycled, faulted = (sum(each) for each in zip(*blocks, strict=True))
        with self._host.lock:
            used = self._host.budget.used(self._account)
            try:
                budget = self._host.budget.limit(self._account)
            except NotOpen:  # it has ended
                budget = 0
        return Stats(
            name=self._options.name,
            max_workers=machine.max_workers,
            workers=workers,
            submitted=machine.submitted,
            pending=machine.pending,
            running=len(machine.calls) - machine.pending,
            done=machine.counts[r.CallState.DONE],
            failed=machine.counts[r.CallState.FAILED],
            cancelled=machine.counts[r.CallState.CANCELLED],
            worker_deaths=machine.deaths,
            bytes_copied_in=self._copied_in,
            bytes_copied_out=self._buried + sum(each.copied_out for each in handles),
            bytes_by_reference=self._by_reference,
            blocks_recycled=recycled,
            blocks_faulted=faulted,
            shared_memory_used=used,
            shared_memory_budget=budget,
            native=self._options.native and native.is_built(),
            workers_replaced=machine.weight.retired,
            workers_killed=machine.weight.killed,
            memory_free=self._guard.memory().free,
            min_free_memory=self._reserve,
            paused=machine.paused,
            pauses=machine.weight.pauses,
        )

    def _worker_stats(self, number: int, state: str, done: int) -> WorkerStats:
        handle = self._workers.get(number)
        if handle is None:
            return WorkerStats(None, state, done, None, 0)
        self._guard.measure(handle)
        seen = handle.footprint
        arena = handle.arena.leased
        pid = handle.process.pid
        return WorkerStats(pid, state, done, seen.now, arena, seen.peak, seen.growth)
