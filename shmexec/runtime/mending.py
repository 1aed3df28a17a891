"""After an interrupt in the midst of a change: the pool goes by what it knows for sure.

That is: which calls there are, and which of them have an outcome; which workers have a
process; what each was sent, since a message is noted before it goes, and goes then in any
case; which messages came and were not handled to their end. The scheduler is told of
these, and what else was under way is done, or done once more.

The caller holds the pool's lock, and is in a thread that no interrupt can strike.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures._base import CANCELLED_AND_NOTIFIED

from shmexec.deadline import now
from shmexec.runtime.calls import Outcome
from shmexec.runtime.quotas import Quotas
from shmexec.runtime.replies import Replies
from shmexec.runtime.sending import Sending
from shmexec.runtime.starting import Starting
from shmexec.runtime.tables import Tables
from shmexec.scheduler import records as r
from shmexec.scheduler.recovery import Truth


class Mending:
    """See the module.

    Args:
        tables: The pool's.
        sending: What was just being sent goes out.
        replies: What came; the message that was being handled will be again.
        quotas: Workers that wait for memory.
        starting: Workers that are to be started.
        do: Does what the scheduler says.
    """

    def __init__(
        self,
        tables: Tables,
        sending: Sending,
        replies: Replies,
        quotas: Quotas,
        starting: Starting,
        do: Callable[[r.Command], None],
    ) -> None:
        self._tables = tables
        self._sending = sending
        self._replies = replies
        self._quotas = quotas
        self._starting = starting
        self._do = do

    def mend(self) -> None:
        """Make it whole."""
        tables = self._tables
        self._quotas.mend()
        for handle in tables.workers.values():
            self._sending.mend(handle)
        self._replies.mend()
        self._forget_done()
        truth = self._truth()
        machine = tables.machine
        lost = [number for number in truth.calls if number not in machine.calls]
        sent = {number for each in truth.sent.values() for number in each}
        for number in tables.calls.keys() - sent:
            tables.calls[number].future.wait_again()
        for command in machine.recover(truth, now()):
            self._do(command)
        for number in lost:
            self._let_go(number)

    def _forget_done(self) -> None:
        """Calls that have an outcome, or were cancelled, are done."""
        tables = self._tables
        for number, outcome in list(tables.outcomes.items()):
            if outcome.item is None:
                tables.forget(number)
        for number, call in list(tables.calls.items()):
            if call.future._state == CANCELLED_AND_NOTIFIED:  # noqa: SLF001
                tables.forget(number)

    def _truth(self) -> Truth:
        tables, workers = self._tables, self._tables.workers
        return Truth(
            frozenset(tables.calls),
            {number: handle.sent for number, handle in workers.items()},
            {number for number, handle in workers.items() if handle.pack},
            {*self._starting.due, *self._starting.under_way},
            {number for number, handle in workers.items() if handle.asked},
        )

    def _let_go(self, number: int) -> None:
        """A call that the scheduler knows no more, or never knew."""
        failed = self._tables.machine.failed(number)
        if failed is not None:
            self._do(failed)
            return
        # It was just being cancelled, or submitted by whom the interrupt struck.
        call = self._tables.calls[number]
        self._tables.outcomes[number] = Outcome(call, None, cancelled=True)
        self._tables.forget(number)
