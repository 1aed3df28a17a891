"""Arrays of this program that are born in shared memory: their arena and its quota.

The caller holds the host's lock, for all of it.
"""

from __future__ import annotations

from collections.abc import Callable

from shmexec.memory.arena import RETAIN
from shmexec.memory.budget import Budget
from shmexec.memory.native import NativeArena

SHARED = "shared"
"""Account of the arrays that are shared: of the process, whatever executors it has."""


class Births:
    """See the module.

    Args:
        make: Makes the arena, when the first array is to be born.
        budget: Whose account :data:`SHARED` pays for them.
        tell: Called when there is room that was not there before.
    """

    def __init__(
        self,
        make: Callable[[], NativeArena],
        budget: Budget,
        tell: Callable[[], object],
    ) -> None:
        self._make = make
        self._budget = budget
        self._tell = tell
        self.arena: NativeArena | None = None
        self.wanted = 0
        """How many have it open."""

    def open(self) -> NativeArena:
        """The arena, with half of the room there is as quota, until it is shrunk."""
        if self.arena is None:
            self.arena = self._make()
        births = self.arena
        self.wanted += 1
        unused = max(0, births.quota - births.blocks.used)
        more = self._budget.free(SHARED) // 2 - unused
        if more > 0 and self._budget.charge(SHARED, more):
            births.quota += more
        return births

    def close(self) -> None:
        """No more arrays are to be born, for one of those that opened it."""
        self.wanted -= 1
        if not self.wanted:
            self.shrink(RETAIN)

    def shrink(self, keep: int) -> bool:
        """Give back quota that no array needs but for ``keep`` bytes; whether there was."""
        births = self.arena
        if births is None:
            return False
        quota = births.quota
        births.quota = left = min(quota, births.blocks.used + keep)
        if left == quota:
            return False
        births.trim(keep)
        self._budget.discharge(SHARED, quota - left)
        self._tell()
        return True

    def note_fork(self) -> int:
        """See :meth:`NativeArena.note_fork`; 0 if nothing was ever born."""
        return 0 if self.arena is None else self.arena.note_fork()

    def keep_forks(self, last: Callable[[], int]) -> None:
        """See :meth:`NativeArena.keep_forks`; the last note is asked for if need be."""
        if self.arena is not None:
            self.arena.keep_forks(last())
