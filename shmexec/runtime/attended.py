"""A pool as whoever leads it sees it: events in, commands out.

It joins the scheduler with processes, sockets and memory. Its lock guards the machine,
the tables and the sockets' writing ends, and is held only for bookkeeping and for writes
that do not block. Workers are started and futures resolved without it. Order of locks:
``lead``, then this one, then the host's.

What the machine commands is done by the pool's parts, which have no lock of their own:
:mod:`~shmexec.runtime.sending`, :mod:`~shmexec.runtime.starting` and
:mod:`~shmexec.runtime.doing`, and, for what comes back, :mod:`~shmexec.runtime.replies`,
:mod:`~shmexec.runtime.quotas` and :mod:`~shmexec.runtime.roster`.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from shmexec.deadline import Deadline, now
from shmexec.errors import SharedMemoryFull
from shmexec.memory.host import Block
from shmexec.memory.whole import Whole
from shmexec.options import Options
from shmexec.runtime import calls, lifecycle, reports
from shmexec.runtime.backend import Feeder
from shmexec.runtime.counting import Counting
from shmexec.runtime.crediting import Crediting
from shmexec.runtime.doing import Doing
from shmexec.runtime.ending import Ending
from shmexec.runtime.guard import Guard
from shmexec.runtime.leading import Leading
from shmexec.runtime.mending import Mending
from shmexec.runtime.outputs import Outputs
from shmexec.runtime.quotas import Quotas
from shmexec.runtime.replies import Replies
from shmexec.runtime.room import RoomMaker, SharedBlocks
from shmexec.runtime.roster import Roster
from shmexec.runtime.sending import Sending
from shmexec.runtime.standing import Standing
from shmexec.runtime.starting import Starting
from shmexec.runtime.tables import Tables
from shmexec.runtime.telling import Telling
from shmexec.scheduler import records as r


class Attended:
    """See the module; the base of :class:`~shmexec.runtime.pool.Pool`."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.host = lifecycle.host(options.segment)
        self.host.open_account(self, options.family, options.max_shared_memory)
        self.room = RoomMaker(self.host, self, self.scarcity)
        self.blocks = SharedBlocks(self.room, self.host, self._count_placed)
        self._tables = tables = Tables(options, self.host, self.room)
        self._lock = tables.lock
        self._machine = tables.machine
        self._calls, self._workers = tables.calls, tables.workers
        self._outcomes = tables.outcomes
        self._numbers = itertools.count(1)
        self._events: deque[r.Event] = deque()
        self._to_look: deque[int] = deque()
        self._remarks: deque[Warning] = deque()  # what the dispatcher is to warn of
        self.feeders: weakref.WeakSet[Feeder] = weakref.WeakSet()
        self.stands = Standing(tables)
        self.leading = Leading(self)
        self._whole = Whole(self._mend, self.leading.wake)
        self.outputs = Outputs(self.leading)
        self._sending = Sending(tables, self.leading.poller, self._events.append)
        self._guard = Guard(tables, self._handle, self._remarks.append)
        self._counting = Counting(tables, self, self._guard)
        self.telling = Telling(tables, self._lock, self.stands.name)
        self._quotas = Quotas(tables, self, self._sending.tell)
        self._replies = Replies(
            tables,
            self._quotas,
            self.outputs,
            self.leading.poller,
            self._numbers,
            self._handle,
            self._remarks.append,
            self._guard,
        )
        try:
            self._starting = Starting(tables, self, self._sending)
        except BaseException:
            self.outputs.close()
            self.leading.close()
            self.host.close_account(self, options.family)
            raise
        self._streams = Crediting(tables, self._sending, self._handle)
        self._roster = Roster(
            tables,
            self._whole,
            self.leading,
            self.outputs,
            self._starting,
            self._sending,
            self._replies,
            self._counting,
            self._handle,
            self._remarks.append,
        )
        self._ending = Ending(
            self,
            tables,
            self._whole,
            self._streams,
            self._roster,
            self._sending,
            self._starting,
            self._handle,
        )
        self._doing = Doing(tables, self.outputs, self.stands)
        self._mending = Mending(
            tables,
            self._sending,
            self._replies,
            self._quotas,
            self._starting,
            self._do,
        )
        self._doers = self._who_does()

    def _who_does(self) -> dict[type, Callable[[Any], None]]:
        """By command."""
        doing = self._doing
        return {
            r.Send: self._sending.send,
            r.SendPack: self._sending.send_pack,
            r.TakeBack: doing.take_back,
            r.Look: lambda command: self._to_look.append(command.worker),
            r.Spawn: self._starting.note,
            r.Exit: self._sending.exit,
            r.Interrupt: self._sending.interrupt,
            r.Kill: doing.kill,
            r.Trim: self._trim,
            r.Warn: self._guard.warn,
            r.Drop: doing.drop,
            r.Fail: self._tell_failed,
            r.Broke: doing.broke,
        }

    # -- the machine -----------------------------------------------------------------

    def _handle(
        self, event: r.Event, decided: Callable[[], None] | None = None
    ) -> None:
        """Let the machine decide, and do it. The caller holds the lock.

        Args:
            event: What it is told.
            decided: Called in between. An interrupt before that has the event told once
                more, one behind it has what was decided done.
        """
        if self.stands.torn is not None:
            return  # all calls have failed: none is to be sent as its workers end
        commands = self._machine.handle(event, now())
        if decided is not None:
            decided()
        for command in commands:
            self._do(command)
        if self._events:
            self._go_on()

    def _go_on(self) -> None:
        """Tell the machine what came of what it said."""
        while self._events:
            for command in self._machine.handle(self._events.popleft(), now()):
                self._do(command)

    def _mend(self) -> None:
        """An interrupt has left the state half changed."""
        self._events.clear()
        self._to_look.clear()  # the next tick tells
        self._guard.arm()
        try:
            self._mending.mend()
            self._go_on()
        except BaseException as error:  # noqa: BLE001  (nobody can vouch for it now)
            self.stands.torn = error
        self.leading.wake()

    def _do(self, command: r.Command) -> None:
        self._doers[type(command)](command)

    def _tell_failed(self, command: r.Fail) -> None:
        self._fail(command)
        self._machine.told(command.call)

    def _fail(self, command: r.Fail) -> None:
        self._doing.fail(command)

    def _count_placed(self, copied: int, block: Block | None) -> None:
        with self._lock, self._whole:
            self._counting.add_copied(copied)
            if block is not None:
                self._counting.add_block(block)

    def _trim(self, _command: r.Trim) -> None:
        self._quotas.reclaim()
        self._guard.trimming = True

    # -- replies ---------------------------------------------------------------------

    def take(self, descriptor: int, event: int) -> None:
        """Move what a descriptor has into the inbox; the leader calls it."""
        handle = self._roster.by_descriptor.get(descriptor)
        if handle is None:
            with self._lock, self._whole:
                self._sending.go_on(descriptor, event)
        elif descriptor == handle.process.sentinel:
            # First noted: an interrupt in between has it seen once more, not never.
            self._roster.ended.append(handle)
            self.leading.poller.remove(descriptor)
        elif descriptor == handle.replies.fileno():
            self._replies.take(handle, descriptor)
        else:
            self.outputs.take(descriptor)

    def process(self, *, ticking: bool) -> None:
        """Handle what is in the inbox, then deaths, then time."""
        if self.outputs.muted:
            self.outputs.unmute()
        if not (
            self._replies.inbox
            or self._roster.ended
            or ticking
            or self._quotas.wanting
            or self._streams.dropped
            or self._whole.changing  # perhaps it is to be mended
        ):
            return
        with self._lock, self._whole:
            self._replies.empty_inbox()
            if self._streams.dropped:
                self._streams.close_dropped()
            if self._roster.ended:
                self._roster.bury_ended()
            if ticking:
                self._tick()
            while self._to_look:
                self._replies.look(self._to_look[0])
                self._to_look.popleft()
            if self._quotas.wanting:
                self._quotas.answer()
        if self._guard.trimming:
            self._guard.trimming = False
            self.host.trim()

    def _tick(self) -> None:
        moment = now()
        due, look = self._machine.next_tick(), self._guard.due
        if due is not None and due <= moment:
            self._handle(r.Tick())
        if look is not None and look <= moment:
            self._guard.look()

    def scarcity(self, nbytes: int) -> SharedMemoryFull | None:
        """Why a block should not be made now, if the machine has too little memory."""
        return self._guard.refusal(nbytes) if self._machine.paused else None

    # -- for whoever leads -------------------------------------------------------------

    def seconds_to_tick(self) -> float | None:
        """Seconds until the machine wants to know the time."""
        # Looked at without the lock: whoever changes it wakes the leader afterwards.
        look = self._guard.due
        if not (self._machine.has_timers or self._quotas.wanting):
            return None if look is None else max(0.0, look - now())
        with self._lock, self._whole:  # other threads submit meanwhile
            times = (self._machine.next_tick(), self._quotas.next_due(), look)
        due = min((time for time in times if time is not None), default=None)
        return None if due is None else max(0.0, due - now())

    def seconds_to_trim(self) -> float | None:
        """In idleness: tell workers what to free; seconds until memory is returned."""
        with self._lock, self._whole:
            left = self._quotas.return_idle()
        if left is None or left > 0:
            return left
        self.host.trim()
        return None

    def has_work(self) -> bool:
        """Whether the dispatcher has to do something that takes time, or runs code."""
        waiting = self._starting.due or self._remarks or self._roster.remains
        return bool(waiting) or self.stands.torn is not None

    def has_remains(self) -> bool:
        """Whether memory of dead workers is still to be given back, piece by piece."""
        return bool(self._roster.remains)

    def has_spawns(self) -> bool:
        """Whether workers are to be started."""
        return bool(self._starting.due)

    def has_unread(self) -> bool:
        """Whether something came that was not handled yet."""
        return bool(self._replies.inbox or self._roster.ended)

    def has_resolutions(self) -> bool:
        """Whether futures are to be resolved, or something printed is to be written."""
        outputs = self.outputs
        return bool(self._outcomes or (outputs.queue and outputs.writer is None))

    def unresolved(self) -> bool:
        """Whether anything goes on that somebody must attend to."""
        return self._machine.unresolved

    def finished(self) -> bool:
        """Whether the pool has ended."""
        return self._machine.finished or self.stands.forked

    def work(self) -> None:
        """Start the workers that are to be started; the dispatcher calls it."""
        if self.stands.torn is not None:
            raise self.stands.torn
        self.give_remarks()
        self.start_workers()
        self._roster.sweep()

    def start_workers(self) -> None:
        """Start those that are to be started, together with other threads that do."""
        self._quotas.expect_idleness()
        self._roster.start_due()

    def resolve(self) -> None:
        """Put outcomes into their futures; no lock is held, since callbacks run.

        What was printed before is written first.
        """
        self.outputs.write()
        for number in list(self._outcomes):
            outcome = self._outcomes.get(number)
            if outcome is not None:
                self.outputs.settle(outcome.after)
                calls.resolve(outcome)
                self._outcomes.pop(number, None)

    def resolve_unwatched(self) -> None:
        """The same for those futures that have no callbacks, and that nobody waits for."""
        for number in list(self._outcomes):
            outcome = self._outcomes.get(number)
            if (
                outcome is not None
                and outcome.future.unwatched
                and outcome.after <= self.outputs.written
            ):
                calls.resolve(outcome)
                self._outcomes.pop(number, None)

    def appear(self) -> None:
        """Be seen by other programs of this user; the dispatcher calls it."""
        if self.options.visible:
            lifecycle.appear()

    def facts(self, deadline: Deadline) -> dict[str, Any]:
        """What they are told of it; locks are waited for until then."""
        return self.telling.facts(self, deadline)

    def dispatcher_failed(self, error: BaseException) -> None:
        """The dispatcher met a bug: fail everything rather than hang."""
        self._ending.fail(error)

    def ended(self) -> None:
        """The dispatcher's last word: close what is left."""
        self._ending.ended()

    def give_remarks(self) -> None:
        """Warn of what calls cannot tell; no lock is held, since code may run."""
        while self._remarks:
            reports.warn(self._remarks.popleft())
