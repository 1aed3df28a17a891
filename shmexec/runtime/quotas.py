"""Who gets how much of the budget: workers that want more, and memory that lies idle.

The caller holds the pool's lock, for all of it but :meth:`Quotas.expect_idleness`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

from shmexec.deadline import now
from shmexec.runtime import monitor
from shmexec.runtime.tables import Tables
from shmexec.runtime.workers import WorkerHandle
from shmexec.scheduler import records as r
from shmexec.wire.messages import Kind, Message

_SMALLEST_GRANT = 16 << 20

RECLAIM_WITHIN = 1.0
"""Seconds that a worker waits for others to give quota back; one may be stopped."""

TRIM_AFTER = 5.0
"""Seconds of idleness after which memory goes back to the system."""


class _Want(NamedTuple):
    """A worker waits for ``needed`` bytes of quota, for a result of ``result``.

    If that is 0 it is for arrays of calls to come: nice to have, not to be waited for.
    """

    handle: WorkerHandle
    needed: int
    result: int
    until: float


class Quotas:
    """See the module.

    A worker that wants room waits for its answer. Who gives it: whoever leads, since the
    want itself came as a message; and again when another worker has given quota back,
    which is a message, too, or at :meth:`next_due` if none did.

    Args:
        tables: The pool's.
        account: Who it is in the budget of its memory.
        tell: Sends a worker a message.
    """

    def __init__(
        self,
        tables: Tables,
        account: Hashable,
        tell: Callable[[WorkerHandle, Message], None],
    ) -> None:
        self._host = tables.host
        self._machine = tables.machine
        self._workers = tables.workers
        self._account = account
        self._tell = tell
        self.wanting: list[_Want] = []
        """Workers that wait for an answer."""
        self._trim_at: float | None = None

    def handle_want(self, handle: WorkerHandle, message: Message) -> None:
        """A worker wants room; :meth:`answer` is to follow."""
        until = now() + RECLAIM_WITHIN
        self.wanting.append(_Want(handle, message.number, message.request, until))

    def handle_returned(self, handle: WorkerHandle, message: Message) -> None:
        """A worker gives quota back: as it was asked to, or of itself."""
        asked = bool(message.request)
        if asked:
            handle.trimming = False
        self._host.returned(handle.arena, message.number, all_it_can=asked)

    def forget(self, handle: WorkerHandle) -> None:
        """A worker has ended: it wants nothing."""
        self.wanting = [want for want in self.wanting if want.handle is not handle]

    def next_due(self) -> float | None:
        """When somebody has waited for long enough."""
        return min((want.until for want in self.wanting), default=None)

    def answer(self) -> None:
        """Answer workers that want room: at once, or when reclaiming has ended."""
        for want in self.wanting[:]:
            if not want.result:
                self.wanting.remove(want)
                spare = self._host.grant_spare(want.handle.arena, want.needed)
                self._grant(want, want.needed if spare else 0, (0, 0))
                continue
            granted = self._try_grant(want)
            if not granted and self.reclaim() and now() < want.until:
                continue
            self.wanting.remove(want)
            with self._host.lock:
                budget = self._host.budget.limit(self._account)
                used = budget - min(budget, self._host.budget.free(self._account))
            if not granted and want.result > budget and monitor.can_take(want.needed):
                # Nothing that anybody gave back could make room for it.
                self._host.grant_beyond(want.handle.arena, want.needed)
                granted = want.needed
                want.handle.warning = (
                    f"a result of {want.result} bytes is larger than the {budget} bytes "
                    "of max_shared_memory; it was passed beyond them"
                )
            self._grant(want, granted, (used, budget))

    def _try_grant(self, want: _Want) -> int:
        """Give more than is needed if there is as much; how many bytes, 0 if none."""
        for nbytes in (max(want.needed, _SMALLEST_GRANT), want.needed):
            if self._host.grant(want.handle.arena, nbytes):
                return nbytes
        return 0

    def _grant(self, want: _Want, granted: int, figures: tuple[int, int]) -> None:
        self._tell(want.handle, Message(Kind.GRANT, number=granted, leases=figures))

    def reclaim(self) -> bool:
        """Ask idle workers for quota they do not need; whether answers are due."""
        asked = False
        for worker in self._machine.workers.values():
            handle = self._workers.get(worker.id)
            if handle is None:
                continue
            if (
                worker.state is r.WorkerState.IDLE
                and not handle.trimming
                and handle.arena.slack > 0
            ):
                handle.flush_frees()
                handle.trimming = True
                handle.trim_until = now() + RECLAIM_WITHIN
                self._tell(handle, Message(Kind.TRIM))
            # One that is stopped never answers: nobody waits for it any longer.
            asked = asked or (handle.trimming and now() < handle.trim_until)
        return asked

    # -- idleness ----------------------------------------------------------------------

    def expect_idleness(self) -> None:
        """Something goes on: when it has long ended, memory goes back to the system."""
        self._trim_at = now() + TRIM_AFTER

    def seconds_to_trim(self) -> float | None:
        """In idleness: seconds until memory is returned; None if there is none to."""
        return None if self._trim_at is None else max(0.0, self._trim_at - now())

    def begin_trim(self) -> None:
        """That time has come: have workers give back what they can."""
        self._trim_at = None
        self.reclaim()
