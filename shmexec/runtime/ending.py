"""How a pool ends: closed in order, at once, by a bug of its own, or in a forked child.

The order of an end: who gathers calls submits the last ones; the pool takes no more; the
machine is told; the dispatcher leads until it has finished, and closes what is left.
Nothing here is called with the pool's lock held; it is taken for what it guards.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from shmexec.memory.whole import Whole
from shmexec.runtime import calls, lifecycle
from shmexec.runtime.calls import Outcome
from shmexec.runtime.crediting import Crediting
from shmexec.runtime.roster import Roster
from shmexec.runtime.sending import Sending
from shmexec.runtime.starting import Starting
from shmexec.runtime.tables import Tables
from shmexec.scheduler import records as r

if TYPE_CHECKING:
    from shmexec.runtime.attended import Attended

HALT_WITHIN = 2.0
"""Seconds that it waits for workers that were killed, who does not want to wait."""


class Ending:
    """See the module.

    Args:
        pool: Whose end it is.
        tables: The pool's.
        whole: Stands behind its lock.
        streams: End with it.
        roster: The same.
        sending: The same.
        starting: The same.
        handle: Tells the scheduler of an event, and does what it says.
    """

    def __init__(
        self,
        pool: Attended,
        tables: Tables,
        whole: Whole,
        streams: Crediting,
        roster: Roster,
        sending: Sending,
        starting: Starting,
        handle: Callable[[r.Event], None],
    ) -> None:
        self._pool = pool
        self._stands = pool.stands
        self._leading = pool.leading
        self._outputs = pool.outputs
        self._tables = tables
        self._whole = whole
        self._streams = streams
        self._roster = roster
        self._sending = sending
        self._starting = starting
        self._handle = handle

    # -- who wants it to end -----------------------------------------------------------

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        """See :meth:`shmexec.Executor.shutdown`."""
        pool, stands = self._pool, self._stands
        if stands.forked:
            return
        self.take_in(cancel=cancel_futures)
        with self._tables.lock, self._whole:
            first, stands.closed = not stands.closed, True
            self._streams.end_all()
            if first or cancel_futures:
                self._handle(r.Closed(cancel_futures))
            started = self._leading.started
        pool.resolve()
        if not started:
            if first:
                self.ended()
            return
        self._leading.wake()
        if wait:
            try:
                self._leading.join()
            except KeyboardInterrupt as interrupt:
                self.halt()
                raise interrupt.with_traceback(None) from None

    def halt(self) -> None:
        """See :meth:`shmexec.runtime.pool.Pool.halt`."""
        stands, tables = self._stands, self._tables
        if stands.forked or stands.gone.is_set():
            return
        self.take_in(cancel=True)
        with tables.lock, self._whole:
            stands.closed = True
            self._handle(r.Closed(cancel_pending=True))
            for number in list(tables.calls):
                self._handle(r.Cancelled(number, running=True))
            for handle in tables.workers.values():
                handle.kill()
        self._leading.wake()
        # Killed processes end soon; only a callback of the program's may hold it up.
        self._leading.join(HALT_WITHIN)

    def take_in(self, *, cancel: bool = False) -> None:
        """Have those who gather calls submit, or cancel, what they have: the last ones."""
        for feeder in list(self._pool.feeders):
            feeder.feed_last(cancel=cancel)

    # -- the dispatcher's last words ---------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """The dispatcher met a bug: fail everything rather than hang."""
        tables = self._tables
        self._stands.torn = error
        for handle in list(tables.workers.values()):
            handle.kill()
        broken = self._stands.error()
        for number in list(tables.calls):
            call = tables.calls.pop(number)
            tables.outcomes[number] = Outcome(call, None, error=broken)
        # Each for itself: what broke the dispatcher may have been one of them.
        for outcome in list(tables.outcomes.values()):
            with contextlib.suppress(BaseException):
                calls.resolve(outcome._replace(error=outcome.error or broken))
        tables.outcomes.clear()

    def ended(self) -> None:
        """Close what is left."""
        pool, stands, tables = self._pool, self._stands, self._tables
        if stands.forked:
            return
        for handle in list(tables.workers.values()):
            with tables.lock, self._whole, contextlib.suppress(r.IllegalEvent):
                if stands.torn is not None:
                    handle.process.reap()
                self._roster.bury(handle)
            handle.close()
        self._roster.sweep_all()
        self._outputs.write()
        self._outputs.close()
        self._starting.close()
        pool.host.remove_poke(self._leading.poke)
        pool.host.close_account(pool, pool.options.family)
        self._leading.close()
        stands.gone.set()
        # Afterwards, since it may wait for a thread.
        lifecycle.unregister(pool)
        pool.give_remarks()

    # -- a copy ------------------------------------------------------------------------

    def after_fork_in_child(self, keep: set[int]) -> None:
        """This process is a copy: the pool is the parent's, and is not to be used."""
        pool, tables = self._pool, self._tables
        self._stands.forked = True
        self._whole.changing = False
        for feeder in list(pool.feeders):
            feeder.disown(calls.closed_error(pool.options, forked=True, exiting=False))
        self._roster.after_fork_in_child(keep)
        self._sending.after_fork_in_child()
        self._outputs.after_fork_in_child()
        self._leading.close()
        for call in tables.calls.values():
            call.future.disown(
                calls.closed_error(pool.options, forked=True, exiting=False)
            )
