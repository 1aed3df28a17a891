"""Who may have room: what is charged, what is lent twice, and why there is none.

The caller holds the host's lock, for all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

from shmexec.errors import SharedMemoryFull
from shmexec.memory.births import Births
from shmexec.memory.budget import Budget
from shmexec.memory.leases import Ledger
from shmexec.memory.worker_arena import WorkerArena

HOST = "host"
"""Holder of the leases of this program's own arrays."""


class Lending:
    """See the module.

    Args:
        budget: What all accounts have.
        births: Arrays to be born give room back.
        workers: They may have room that they do not use.
        ledger: Tells what the program holds.
        capacity: Bytes that can be had at most, whatever the budget.
        limited: What limits them to that; empty if the budget does.
        poke: Has pools that are idle look at what has changed.
    """

    def __init__(
        self,
        budget: Budget,
        births: Births,
        workers: Mapping[int, WorkerArena],
        ledger: Ledger,
        capacity: int,
        limited: str,
        poke: Callable[[], object],
    ) -> None:
        self._budget = budget
        self._births = births
        self._workers = workers
        self._ledger = ledger
        self._capacity = capacity
        self._limited = limited
        self._poke = poke
        self.strains = 0
        """How often room was lent that others had a right to, but did not use."""

    def charge(self, account: Hashable, nbytes: int) -> bool:
        """Charge an account; whether that fits."""
        if self._budget.charge(account, nbytes):
            return True
        # Arrays to be born in this program come last.
        return self._births.shrink(0) and self._budget.charge(account, nbytes)

    def borrow(
        self, account: Hashable, nbytes: int, *, but: WorkerArena | None = None
    ) -> bool:
        """Charge an account as if nobody had room but for data; whether that fits.

        A busy worker cannot be made to give quota back that holds no result: it has no
        lock that could be taken from here. Let it count twice then: what it has is pages
        that it recycles, or arrays of a running call, which would take private memory
        otherwise. It is told to give back what it can before its next call.
        """
        if not self._budget.charge(account, nbytes, self._unused(but)):
            return False
        self.strains += 1
        self._poke()  # so that pools that are idle have theirs give back at once
        return True

    def _unused(self, but: WorkerArena | None = None) -> dict[Hashable, int]:
        """Bytes by account that workers may use, and that no result takes."""
        unused: dict[Hashable, int] = {}
        for worker in self._workers.values():
            if worker.alive and worker is not but and worker.slack > 0:
                account = worker.account
                unused[account] = unused.get(account, 0) + worker.slack
        return unused

    def standing(
        self, account: Hashable, but: WorkerArena | None = None
    ) -> tuple[int, int]:
        """Of an account's limit, how much is in use, and the limit; in bytes.

        Room that workers have and no result takes is not in use, but for one of them:
        the one that wants more.
        """
        limit = self._budget.limit(account)
        free = self._budget.free(account, self._unused(but))
        return limit - min(limit, free), limit

    def full(self, account: Hashable, needed: int, why: str = "") -> SharedMemoryFull:
        """What to raise if there is no room for so many bytes."""
        used, total = self.standing(account)
        held = self._ledger.held_by(HOST)
        hint = f"; {len(held)} result arrays are still alive" if held else ""
        reason = f" ({why})" if why else ""
        advice = "raise max_shared_memory="
        if self._limited and total >= self._capacity:
            advice = f"raise the limit: {self._limited}"
        msg = (
            f"no room for {needed} bytes of shared memory: {used} of {total} bytes are "
            f"in use{hint}{reason}. Drop results, or {advice}"
        )
        return SharedMemoryFull(msg, needed=needed, used=used, budget=total)
