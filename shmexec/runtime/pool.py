"""The pool: joins the scheduler with processes, sockets and memory.

Its lock guards the machine, the tables and the sockets' writing ends, and is held only
for bookkeeping and for writes that do not block. Calls are packed, workers started and
futures resolved without it. Order of locks: ``lead``, then this one, then the host's.

What the machine commands is done by the pool's parts, which have no lock of their own:
:mod:`~shmexec.runtime.sending`, :mod:`~shmexec.runtime.starting` and
:mod:`~shmexec.runtime.doing`, and, for what comes back, :mod:`~shmexec.runtime.replies`,
:mod:`~shmexec.runtime.quotas` and :mod:`~shmexec.runtime.roster`.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from shmexec.deadline import now
from shmexec.errors import SerializationError, SharedMemoryFull
from shmexec.figures import Health, Stats
from shmexec.memory.host import Block
from shmexec.memory.whole import Whole
from shmexec.options import CallOptions, Options
from shmexec.runtime import calls, lifecycle, reports
from shmexec.runtime.backend import Feeder
from shmexec.runtime.calls import PackedCall, pack
from shmexec.runtime.counting import Counting
from shmexec.runtime.crediting import Crediting
from shmexec.runtime.doing import Doing
from shmexec.runtime.ending import Ending
from shmexec.runtime.futures import Future
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
from shmexec.runtime.streams import Stream
from shmexec.runtime.surroundings import around_calls
from shmexec.runtime.tables import Tables
from shmexec.runtime.telling import Telling
from shmexec.runtime.waiting import may_block
from shmexec.scheduler import records as r
from shmexec.wire.parcels import Parcel

GLANCE_AFTER = 64
"""Calls submitted after which the submitting thread looks at what has come."""


class Pool:
    """See the module. Made by the executor, kept alive by its dispatcher."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.host = lifecycle.host(options.segment)
        self.host.open_account(self, options.family, options.max_shared_memory)
        self.room = RoomMaker(self.host, self)
        self.blocks = SharedBlocks(self.room, self.host, self._count_placed)
        self._tables = tables = Tables(options, self.host, self.room)
        self._lock = tables.lock
        self._machine = tables.machine
        self._calls, self._workers = tables.calls, tables.workers
        self._outcomes = tables.outcomes
        self._numbers = itertools.count(1)
        self._events: deque[r.Event] = deque()
        self._to_look: deque[int] = deque()
        self._since_glance = 0
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
        self._doing = doing = Doing(tables, self.outputs, self.stands)
        self._mending = Mending(
            tables,
            self._sending,
            self._replies,
            self._quotas,
            self._starting,
            self._do,
        )
        self._doers: dict[type, Callable[[Any], None]] = {
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
        lifecycle.register(self)

    # -- calls in --------------------------------------------------------------------

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        worker: int | None = None,
        *,
        sealed: bool = False,
        keep: Callable[[Any], object] | None = None,
    ) -> Future[Any]:
        """Take a call in; see :meth:`shmexec.Executor.submit`.

        If ``sealed``, the result is a :class:`~shmexec.wire.parcels.Parcel`, to be
        given to another call. It goes to ``keep`` before anybody else has it.
        """
        self.check_open()
        if self._guard.refusing and not sealed:
            self._refuse()
        around = around_calls(self.options.context)
        try:
            call = pack(
                fn, args, kwargs, self.room, copy=options.retries > 0, around=around
            )
            call.sealed = sealed
        except SerializationError as error:
            # As the standard library: it is the call that failed, not its submission.
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed
        if keep is not None:
            call.future.keep = keep
        return self.enter(call, options, worker)

    def enter(
        self, call: PackedCall, options: CallOptions, worker: int | None = None
    ) -> Future[Any]:
        """Hand a packed call to the scheduler."""
        try:
            with self._lock, self._whole:
                stands = self.stands
                if stands.closed or self._machine.broken or stands.torn is not None:
                    self.check_open()
                if options.worker is not None:
                    worker = self._tables.number_of(options.worker)
                if not self.leading.started:
                    self.leading.start()
                armed = self._guard.due is None and self._guard.arm()
                call.number = number = next(self._numbers)
                call.future.attach(self, number)
                self._calls[number] = call
                self._since_glance += 1
                if call.placed or call.by_reference:
                    self._counting.add_call(call)
                call.timeout = timeout = options.timeout
                self._handle(
                    r.Submitted(
                        number,
                        timeout,
                        options.retries,
                        options.priority,
                        worker,
                        calls.kind_of(call, timeout, worker),
                        call.name,
                    )
                )
        except Exception:
            self._calls.pop(call.number, None)
            self.room.give_back(call.blocks)
            raise
        except BaseException:
            # Nobody will have the future. If it is in the tables, it is theirs.
            if call.number in self._calls:
                call.future.cancel(running=True)
            else:
                self.room.give_back(call.blocks)
            raise
        if (
            options.timeout is not None
            or self._starting.due
            or call.number in self._outcomes
            or armed
        ):
            self.leading.wake()
        elif self._since_glance >= GLANCE_AFTER and may_block():
            # Not in a callback, nor under an event loop.
            self._since_glance = 0
            self.leading.glance()
        return call.future

    # -- streams ---------------------------------------------------------------------

    def stream(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        buffersize: int,
    ) -> Stream[Any]:
        """Take a call in whose items are wanted; see :meth:`shmexec.Executor.stream`."""
        self.check_open()
        if self._guard.refusing:
            self._refuse()
        around = around_calls(self.options.context)
        call = pack(fn, args, kwargs, self.room, around=around)
        call.credit = buffersize
        call.items = items = deque([call.future])
        # Items that have been taken cannot be unmade: no retries.
        try:
            self.enter(call, replace(options, retries=0))
            return Stream(self, call.number, items, buffersize)
        except BaseException:
            if call.number:
                self.drop_stream(call.number)  # nobody will read it
            raise

    def give_credit(self, number: int, credit: int) -> None:
        """A stream's call may yield so many items more."""
        if self.stands.forked:
            return
        with self._lock, self._whole:
            self._streams.give(number, credit)

    def close_stream(self, number: int) -> None:
        """Nobody wants more of a stream."""
        if self.stands.forked:
            return
        with self._lock, self._whole:
            self._streams.close(number)
        self.resolve()
        self.leading.wake()

    def drop_stream(self, number: int) -> None:
        """As :meth:`close_stream`, in a finalizer."""
        self._streams.dropped.append(number)
        self.leading.waker.wake()

    def check_open(self) -> None:
        """Raise PoolClosed or PoolBroken if no call can be taken."""
        stands = self.stands
        if (
            stands.closed
            or stands.forked
            or self._machine.broken
            or stands.torn is not None
            or lifecycle.exiting()
        ):
            stands.check()

    def cancel(self, number: int, *, running: bool) -> bool:
        """Drop a pending call whose future is cancelled, or stop a running one."""
        with self._lock, self._whole:
            known = number in self._calls
            self._handle(r.Cancelled(number, running))
        self.resolve()
        # Of one that has not begun nothing else comes: very many may be cancelled.
        if running or self.stands.closed or self.leading.leads_for(number):
            self.leading.wake()
        return known

    def broadcast(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> list[Future[Any]]:
        """Submit a call to each worker, after starting as many as the pool may have."""
        self.check_open()
        with self._lock, self._whole:
            self._handle(r.Everyone())
            numbers = [
                worker.id
                for worker in self._machine.workers.values()
                if worker.state is not r.WorkerState.DRAINING
            ]
        options = self.options.call
        futures = []
        for number in numbers:
            # One that has died since is none of the pool's workers any more.
            with contextlib.suppress(r.IllegalEvent):
                futures.append(self.submit(fn, args, kwargs, options, number))
        return futures

    def start_all(self) -> None:
        """Start as many workers as the pool may have, before there are calls."""
        with self._lock, self._whole:
            self._handle(r.Everyone())
            if not self.leading.started:
                self.leading.start()
        self.leading.wake()

    def standing(self) -> str:
        """What the pool is at: starting, ready, busy, failed, closing or closed."""
        with self._lock, self._whole:
            return self.stands.name()

    @property
    def broken(self) -> bool:
        """Whether no worker can be started any more."""
        return self.stands.broken

    def unfinished(self) -> int:
        """How many calls pend or run."""
        return len(self._calls)

    def add_feeder(self, feeder: Feeder) -> None:
        """Tell it before the pool's end.

        It may submit the pool's first call then, when the program ends and no thread can
        be started any more (Python 3.12).
        """
        self.feeders.add(feeder)
        with self._lock, self._whole:
            if not self.stands.closed:
                self.leading.start()

    def resize(self, max_workers: int) -> None:
        """Change the number of workers; surplus ones end when idle."""
        with self._lock, self._whole:
            self.check_open()
            self._handle(r.Resized(max_workers))
        self.leading.wake()

    def pids(self) -> list[int]:
        """Process ids of the workers that run."""
        with self._lock, self._whole:
            return [handle.process.pid for handle in self._workers.values()]

    # -- memory for batches ------------------------------------------------------------

    def width(self) -> int:
        """How many calls may run at once."""
        return self._machine.max_workers

    def seal(self, obj: Any) -> Parcel:
        """An object as a parcel: pickled, and copied into blocks, as an argument is.

        Raises:
            SerializationError: If it cannot be pickled.
            SharedMemoryFull: If there is no room. Nothing is held after an error.
        """
        self.check_open()
        parcel, copied = calls.seal(obj, self.room)
        self._count_placed(copied, None)
        return parcel

    def _count_placed(self, copied: int, block: Block | None) -> None:
        with self._lock, self._whole:
            self._counting.add_copied(copied)
            if block is not None:
                self._counting.add_block(block)

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

    # -- replies ---------------------------------------------------------------------

    def take(self, descriptor: int, event: int) -> None:
        """Move what a descriptor has into the inbox; the leader calls it."""
        handle = self._roster.by_descriptor.get(descriptor)
        if handle is None:
            with self._lock, self._whole:
                self._sending.go_on(descriptor, event)
        elif descriptor == handle.process.sentinel:
            self.leading.poller.remove(descriptor)
            self._roster.ended.append(handle)
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
            self._streams.close_dropped()
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

    # -- memory ----------------------------------------------------------------------

    def reclaim(self) -> bool:
        """Ask workers for quota they do not need; whether answers of idle ones are due."""
        with self._lock, self._whole:
            return self._quotas.reclaim()

    def in_flight(self) -> bool:
        """Whether calls pend or run, whose end may give memory back.

        Streams do not count: who waits may be the one that is to read them.
        """
        with self._lock, self._whole:
            return any(not call.credit for call in self._calls.values())

    def _trim(self, _command: r.Trim) -> None:
        self._quotas.reclaim()
        self._guard.trimming = True

    def scarcity(self, nbytes: int) -> SharedMemoryFull | None:
        """Why a block should not be made now, if the machine has too little memory."""
        return self._guard.refusal(nbytes) if self._machine.paused else None

    def _refuse(self) -> None:
        """Take no call, unless there is more memory than when somebody last looked."""
        with self._lock, self._whole:
            self._guard.look_anew()
        self.leading.wake()
        if self._guard.refusing:
            raise self._guard.refusal()

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

    # -- its end -----------------------------------------------------------------------

    def shutdown(self, *, wait: bool = True, cancel_futures: bool = False) -> None:
        """Take no more calls; see :meth:`shmexec.Executor.shutdown`."""
        self._ending.shutdown(wait=wait, cancel_futures=cancel_futures)

    def halt(self) -> None:
        """End now: who waited for the pool's end does not want to any longer.

        What has not begun is cancelled, what runs is stopped, workers are killed.
        """
        self._ending.halt()

    def take_in(self, *, cancel: bool = False) -> None:
        """Have those who gather calls submit, or cancel, what they have: the last ones."""
        for feeder in list(self.feeders):
            feeder.feed_last(cancel=cancel)

    def abandon(self) -> None:
        """The executor was garbage-collected; called in a finalizer."""
        threading.Thread(target=self.shutdown, kwargs={"wait": False}).start()

    def after_fork_in_child(self, keep: set[int]) -> None:
        """This process is a copy: the pool is the parent's, and is not to be used."""
        self._lock = self._tables.lock = threading.Lock()
        self._ending.after_fork_in_child(keep)

    # -- for people --------------------------------------------------------------------

    def dump(self) -> str:
        """See :meth:`shmexec.Executor.dump`."""
        if self.stands.forked:
            error = calls.closed_error(self.options, forked=True, exiting=False)
            return f"{error}\n"
        return self.telling.dump()

    def health(self) -> Health:
        """See :meth:`shmexec.Executor.health`."""
        return self.telling.health()

    # -- figures -----------------------------------------------------------------------

    def stats(self) -> Stats:
        """See :meth:`shmexec.Executor.stats`."""
        with self._lock, self._whole:
            return self._counting.stats(gone=self.stands.gone.is_set())
