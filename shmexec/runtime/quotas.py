"""Who gets how much of the budget: workers that want more, and memory that lies idle.

The caller holds the pool's lock, for all of it but :meth:`Quotas.expect_idleness`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

from shmexec.deadline import now
from shmexec.runtime import monitor
from shmexec.runtime.room import RECLAIM_WITHIN
from shmexec.runtime.tables import Tables
from shmexec.runtime.workers import WorkerHandle
from shmexec.scheduler import records as r
from shmexec.wire.messages import Kind, MalformedMessage, Message, decode

_SMALLEST_GRANT = 16 << 20

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
        # Those of before this pool was there are no reason for it to give anything back.
        self._strains = tables.host.lending.strains

    def handle_want(self, handle: WorkerHandle, message: Message) -> None:
        """A worker wants room; :meth:`answer` is to follow.

        Raises:
            MalformedMessage: If it cannot: it waits already, or asks for nothing.
        """
        if message.number <= 0:
            msg = f"it wants {message.number} bytes of quota"
            raise MalformedMessage(msg)
        if any(want.handle is handle for want in self.wanting):
            msg = "it wants quota, and waits for some already"
            raise MalformedMessage(msg)
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

    def mend(self) -> None:
        """An interrupt may have struck as one was answered: what was said is said."""
        for want in self.wanting[:]:
            data = want.handle.sender.doing
            if data is not None and decode(data).kind is Kind.GRANT:
                self.wanting.remove(want)

    def next_due(self) -> float | None:
        """When somebody has waited for long enough."""
        return min((want.until for want in self.wanting), default=None)

    def answer(self) -> None:
        """Answer workers that want room: at once, or when reclaiming has ended."""
        for want in self.wanting[:]:
            arena = want.handle.arena
            if not want.result:
                spare = self._host.grant_spare(arena, want.needed)
                self._grant(want, want.needed if spare else 0)
                self.wanting.remove(want)
                continue
            granted = self._try_grant(want)
            # Results of its own that were dropped since it was told last.
            freed = bool(arena.frees)
            want.handle.flush_frees()
            if not (granted or freed):
                if self.reclaim() and now() < want.until:
                    continue
                granted = self._lend(want)
            self._grant(want, granted, again=freed)
            self.wanting.remove(want)

    def _lend(self, want: _Want) -> int:
        """Give what busy workers have and do not need; past the limit, if nothing helps."""
        arena = want.handle.arena
        if self._host.grant(arena, want.needed, borrow=True):
            return want.needed
        with self._host.lock:
            budget = self._host.budget.limit(self._account)
        if want.result <= budget or not monitor.can_take(want.needed):
            return 0
        # Nothing that anybody gave back could make room for it.
        self._host.grant_beyond(arena, want.needed)
        want.handle.warning = (
            f"a result of {want.result} bytes is larger than the {budget} bytes "
            "of max_shared_memory; it was passed beyond them"
        )
        return want.needed

    def _try_grant(self, want: _Want) -> int:
        """Give more than is needed if there is as much; how many bytes, 0 if none."""
        for nbytes in (max(want.needed, _SMALLEST_GRANT), want.needed):
            if self._host.grant(want.handle.arena, nbytes):
                return nbytes
        return 0

    def _grant(self, want: _Want, granted: int, *, again: bool = False) -> None:
        with self._host.lock:
            figures = self._host.lending.standing(self._account, but=want.handle.arena)
        answer = Message(Kind.GRANT, int(again), number=granted, leases=figures)
        self._tell(want.handle, answer)

    def reclaim(self) -> bool:
        """Ask workers for quota they do not need; whether answers of idle ones are due.

        Busy ones answer before their next call, or the next item of their stream; nobody
        waits for that.
        """
        asked = False
        for worker in self._machine.workers.values():
            handle = self._workers.get(worker.id)
            if handle is None:
                continue
            idle = worker.state is r.WorkerState.IDLE
            if (
                (idle or worker.state is r.WorkerState.BUSY)
                and not handle.trimming
                and handle.arena.slack > 0
            ):
                handle.arena.freed = 0  # before: rather too much than too little
                handle.flush_frees()
                self._tell(handle, Message(Kind.TRIM))
                handle.trim_until = now() + RECLAIM_WITHIN
                handle.trimming = True
            # One that is stopped never answers: nobody waits for it any longer.
            asked = asked or (idle and handle.trimming and now() < handle.trim_until)
        return asked

    # -- idleness ----------------------------------------------------------------------

    def expect_idleness(self) -> None:
        """Something goes on: when it has long ended, memory goes back to the system."""
        self._trim_at = now() + TRIM_AFTER

    def _seconds_to_trim(self) -> float | None:
        if self._trim_at is None:
            return None
        if self._strains != self._host.lending.strains:
            self._strains = self._host.lending.strains
            return 0.0  # others need it now
        return max(0.0, self._trim_at - now())

    def return_idle(self) -> float | None:
        """In idleness: tell workers what to free, and to give back what they can.

        Returns:
            Seconds until they are told; 0 if they were, and memory is to be returned.
        """
        dropped = bool(self._host.returns.ended)
        self._host.settle()
        for handle in self._workers.values():
            dropped = dropped or bool(handle.arena.frees)
            handle.flush_frees()
        if dropped:  # after the last time that memory was returned, perhaps
            self.expect_idleness()
        left = self._seconds_to_trim()
        if left == 0:
            self._trim_at = None
            self.reclaim()
        return left
