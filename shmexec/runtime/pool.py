"""The pool: joins the scheduler with processes, sockets and memory.

Its lock guards the machine, the tables and the sockets' writing ends, and is held only
for bookkeeping and for writes that do not block. Calls are packed, workers started and
futures resolved without it. Order of locks: ``lead``, then this one, then the host's.

What the machine commands is done by the pool's parts, which take no lock of their own:
:mod:`~shmexec.runtime.sending`, :mod:`~shmexec.runtime.starting`, and, for what comes
back, :mod:`~shmexec.runtime.replies` and :mod:`~shmexec.runtime.quotas`.
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
from shmexec.errors import PoolBroken, SerializationError, SharedMemoryFull
from shmexec.figures import Health, Stats
from shmexec.memory.host import Block
from shmexec.memory.remains import Remains
from shmexec.memory.whole import Whole
from shmexec.options import CallOptions, Options
from shmexec.runtime import calls, lifecycle, reports
from shmexec.runtime.backend import Feeder
from shmexec.runtime.calls import Outcome, PackedCall, pack
from shmexec.runtime.counting import Counting
from shmexec.runtime.futures import Future
from shmexec.runtime.guard import Guard
from shmexec.runtime.leading import READ, Leading
from shmexec.runtime.mending import Mending
from shmexec.runtime.outputs import Outputs
from shmexec.runtime.quotas import Quotas
from shmexec.runtime.replies import Replies
from shmexec.runtime.room import RoomMaker, SharedBlocks
from shmexec.runtime.sending import Sending
from shmexec.runtime.starting import Starting
from shmexec.runtime.streams import Stream
from shmexec.runtime.surroundings import around_calls
from shmexec.runtime.tables import Tables
from shmexec.runtime.telling import Telling
from shmexec.runtime.waiting import may_block
from shmexec.runtime.workers import WorkerHandle
from shmexec.scheduler import records as r
from shmexec.wire.parcels import Parcel

SWEEP = 0.005
"""Seconds at a time that the dispatcher gives a dead worker's memory back."""
HALT_WITHIN = 2.0
"""Seconds that it waits for workers that were killed, who does not want to wait."""

GLANCE_AFTER = 64
"""Calls submitted after which the submitting thread looks at what has come."""


class Pool:
    """See the module. Made by the executor, kept alive by its dispatcher."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.host = lifecycle.host(options.segment)
        self._lock = threading.Lock()
        self.host.open_account(self, options.family, options.max_shared_memory)
        self.room = RoomMaker(self.host, self)
        self.blocks = SharedBlocks(self.room, self.host, self._count_placed)
        self._tables = tables = Tables(options, self.host, self.room)
        self._machine = tables.machine
        self._calls, self._workers = tables.calls, tables.workers
        self._outcomes = tables.outcomes
        self._numbers = itertools.count(1)
        self._by_descriptor: dict[int, WorkerHandle] = {}
        self._ended: deque[WorkerHandle] = deque()
        self._remains: deque[Remains] = deque()
        self._events: deque[r.Event] = deque()
        self._to_look: deque[int] = deque()
        self._dropped: deque[int] = deque()  # streams without a consumer
        self._since_glance = 0
        self._remarks: deque[Warning] = deque()  # what the dispatcher is to warn of
        self._remarked: set[str] = set()  # what it need not warn of again
        self.feeders: weakref.WeakSet[Feeder] = weakref.WeakSet()
        self._closed = False
        self._forked = False
        self._gone = threading.Event()
        self.leading = Leading(self)
        self._whole = Whole(self._mend, self.leading.wake)
        self.outputs = Outputs(self.leading)
        self._sending = Sending(tables, self.leading.poller, self._events.append)
        self._guard = Guard(tables, self._handle, self._remarks.append)
        self._counting = Counting(tables, self, self._guard)
        self.telling = Telling(tables, self._lock, self._standing)
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
            r.TakeBack: self._take_back,
            r.Look: lambda command: self._to_look.append(command.worker),
            r.Spawn: self._starting.note,
            r.Exit: self._sending.exit,
            r.Interrupt: self._sending.interrupt,
            r.Kill: self._kill,
            r.Trim: self._trim,
            r.Warn: self._guard.warn,
            r.Drop: self._drop,
            r.Fail: self._tell_failed,
            r.Broke: self._broke,
        }
        self.torn: BaseException | None = None
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
                if self._closed or self._machine.broken or self.torn is not None:
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
        if self._forked:
            return
        with self._lock, self._whole:
            self._sending.give_credit(number, credit)

    def close_stream(self, number: int) -> None:
        """Nobody wants more of a stream."""
        if self._forked:
            return
        with self._lock, self._whole:
            self._close_stream(number)
        self.resolve()
        self.leading.wake()

    def _close_stream(self, number: int) -> None:
        call = self._calls.get(number)
        if call is not None:
            call.items = None
            self._end_stream(call)

    def _end_stream(self, call: PackedCall) -> None:
        call.closed = True
        self._handle(r.Cancelled(call.number))  # if it has not begun
        self._sending.give_credit(call.number, 0)

    def drop_stream(self, number: int) -> None:
        """As :meth:`close_stream`, in a finalizer."""
        self._dropped.append(number)
        self.leading.waker.wake()

    def check_open(self) -> None:
        """Raise PoolClosed or PoolBroken if no call can be taken."""
        if self._closed or self._forked or lifecycle.exiting():
            raise calls.closed_error(
                self.options, forked=self._forked, exiting=lifecycle.exiting()
            )
        if self._machine.broken or self.torn is not None:
            raise self._broken()

    def _broken(self) -> PoolBroken:
        if self.torn is not None:
            return reports.interrupted(self.options, self.torn)
        return reports.broken(self.options, self._machine.broken)

    def cancel(self, number: int, *, running: bool) -> bool:
        """Drop a pending call whose future is cancelled, or stop a running one."""
        with self._lock, self._whole:
            known = number in self._calls
            self._handle(r.Cancelled(number, running))
        self.resolve()
        # Of one that has not begun nothing else comes: very many may be cancelled.
        if running or self._closed or self.leading.leads_for(number):
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
            return self._standing()

    def _standing(self) -> str:
        if self._closed or self._forked:
            return "closed" if self._forked or self._gone.is_set() else "closing"
        if self._machine.broken or self.torn is not None:
            return "failed"
        up = {r.WorkerState.IDLE, r.WorkerState.BUSY}
        if not any(w.state in up for w in self._machine.workers.values()):
            return "starting"
        return "busy" if self._calls else "ready"

    @property
    def broken(self) -> bool:
        """Whether no worker can be started any more."""
        return bool(self._machine.broken) or self.torn is not None

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
            if not self._closed:
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
        if self.torn is not None:
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
            self.torn = error
        self.leading.wake()

    def _do(self, command: r.Command) -> None:
        self._doers[type(command)](command)

    def _broke(self, command: r.Broke) -> None:
        """Nothing to do: whoever submits next is told."""

    def _take_back(self, command: r.TakeBack) -> None:
        self._calls[command.call].future.wait_again()

    def _drop(self, command: r.Drop) -> None:
        call = self._calls.get(command.call)
        if call is not None:
            self._outcomes[call.number] = Outcome(call, None, cancelled=True)
            self._tables.forget(call.number)

    def _kill(self, command: r.Kill) -> None:
        handle = self._workers.get(command.worker)
        if handle is not None:
            if command.force:
                handle.kill()
            else:
                handle.interrupt()

    def _tell_failed(self, command: r.Fail) -> None:
        self._fail(command)
        self._machine.told(command.call)

    def _fail(self, command: r.Fail) -> None:
        # The outcome is noted first: an interrupt in between loses nothing.
        call = self._calls.get(command.call)
        if call is None:
            return
        if command.why == "cancelled":
            self._outcomes[call.number] = Outcome(call, None, cancelled=True)
            self._tables.forget(call.number)
            return
        handle = self._workers.get(command.worker or 0)
        after = 0 if handle is None else self.outputs.drain(handle.output)
        error = reports.failure(command, call, handle, self._broken, self.options.actor)
        self._outcomes[call.number] = Outcome(call, None, error=error, after=after)
        self._tables.forget(call.number)

    # -- replies ---------------------------------------------------------------------

    def take(self, descriptor: int, event: int) -> None:
        """Move what a descriptor has into the inbox; the leader calls it."""
        handle = self._by_descriptor.get(descriptor)
        if handle is None:
            with self._lock, self._whole:
                self._sending.go_on(descriptor, event)
        elif descriptor == handle.process.sentinel:
            self.leading.poller.remove(descriptor)
            self._ended.append(handle)
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
            or self._ended
            or ticking
            or self._quotas.wanting
            or self._dropped
            or self._whole.changing  # perhaps it is to be mended
        ):
            return
        with self._lock, self._whole:
            self._replies.empty_inbox()
            while self._dropped:
                self._close_stream(self._dropped[0])
                self._dropped.popleft()
            while self._ended:
                self._bury(self._ended[0])
                self._ended.popleft()
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

    def _bury(self, handle: WorkerHandle) -> None:
        """A worker's process has ended: take its words in, then let it go."""
        if handle.number in self._workers:  # else an interrupt struck as it was closed
            self._take_leave(handle)
        if (remains := handle.close()) is not None:
            self._remains.append(remains)
            self.leading.wake()  # the dispatcher sees to them, after new workers

    def _take_leave(self, handle: WorkerHandle) -> None:
        self._replies.bury(handle)
        self._counting.bury(handle)
        self._sending.forget(handle)
        for number in (
            handle.replies.fileno(),
            handle.process.sentinel,
            *handle.output.descriptors,
        ):
            self.leading.poller.remove(number)
            self._by_descriptor.pop(number, None)
        self._workers.pop(handle.number, None)

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
            dropped = bool(self.host.returns.ended)
            self.host.settle()
            for handle in self._workers.values():
                dropped = dropped or bool(handle.arena.frees)
                handle.flush_frees()
            if dropped:  # after the last time that memory was returned, perhaps
                self._quotas.expect_idleness()
            left = self._quotas.seconds_to_trim()
            if left is None or left > 0:
                return left
            self._quotas.begin_trim()
        self.host.trim()
        return None

    def has_work(self) -> bool:
        """Whether the dispatcher has to do something that takes time, or runs code."""
        waiting = self._starting.due or self._remarks or self._remains
        return bool(waiting) or self.torn is not None

    def has_spawns(self) -> bool:
        """Whether workers are to be started."""
        return bool(self._starting.due)

    def has_unread(self) -> bool:
        """Whether something came that was not handled yet."""
        return bool(self._replies.inbox or self._ended)

    def has_resolutions(self) -> bool:
        """Whether futures are to be resolved, or something printed is to be written."""
        outputs = self.outputs
        return bool(self._outcomes or (outputs.queue and outputs.writer is None))

    def unresolved(self) -> bool:
        """Whether anything goes on that somebody must attend to."""
        return self._machine.unresolved

    def finished(self) -> bool:
        """Whether the pool has ended."""
        return self._machine.finished or self._forked

    def work(self) -> None:
        """Start the workers that are to be started; the dispatcher calls it."""
        if self.torn is not None:
            raise self.torn
        self._give_remarks()
        self.start_workers()
        if self._remains and not self._remains[0].sweep(SWEEP):
            self._remains.popleft()

    def start_workers(self) -> None:
        """Start those that are to be started, together with other threads that do."""
        self._quotas.expect_idleness()
        while True:
            with self._lock, self._whole:
                number = self._starting.take()
            if number is None:
                return
            try:
                handle = self._starting.start(number)
            except BaseException as error:
                reason, scarce = reports.not_started(error)
                with self._lock, self._whole:
                    self._starting.under_way.discard(number)
                    self._handle(r.WorkerDead(number, reason, scarce=scarce))
                    running = len(self._workers)
                if scarce and running:
                    self._remark_once(
                        "fewer", reports.fewer(self.options, running, reason)
                    )
                self.leading.waker.wake()  # whoever leads: the next try has its time
                if isinstance(error, Exception):
                    continue  # the machine decides
                raise
            with self._lock, self._whole:
                self._adopt(handle)

    def _remark_once(self, what: str, text: str) -> None:
        if what not in self._remarked:
            self._remarked.add(what)
            self._remarks.append(RuntimeWarning(text))

    def _adopt(self, handle: WorkerHandle) -> None:
        if handle.process.instead:
            self._remark_once("instead", handle.process.instead)
        self._tables.adopt(handle)
        for descriptor in (handle.replies.fileno(), handle.process.sentinel):
            self._by_descriptor[descriptor] = handle
            self.leading.poller.add(descriptor, READ)
        for descriptor in handle.output.descriptors:
            self._by_descriptor[descriptor] = handle
        self.outputs.adopt(handle.output)
        self._starting.greet(handle)
        self._starting.under_way.discard(handle.number)

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
        self.torn = error
        for handle in list(self._workers.values()):
            handle.kill()
        broken = self._broken()
        for number in list(self._calls):
            call = self._calls.pop(number)
            self._outcomes[number] = Outcome(call, None, error=broken)
        # Each for itself: what broke the dispatcher may have been one of them.
        for outcome in list(self._outcomes.values()):
            with contextlib.suppress(BaseException):
                calls.resolve(outcome._replace(error=outcome.error or broken))
        self._outcomes.clear()

    def ended(self) -> None:
        """The dispatcher's last word: close what is left."""
        if self._forked:
            return
        for handle in list(self._workers.values()):
            with self._lock, self._whole, contextlib.suppress(r.IllegalEvent):
                if self.torn is not None:
                    handle.process.reap()
                self._bury(handle)
            handle.close()
        while self._remains:
            self._remains.popleft().sweep()
        self.outputs.write()
        self.outputs.close()
        self._starting.close()
        self.host.remove_poke(self.leading.poke)
        self.host.close_account(self, self.options.family)
        lifecycle.unregister(self)
        self.leading.close()
        self._gone.set()
        self._give_remarks()

    def _give_remarks(self) -> None:
        while self._remarks:
            reports.warn(self._remarks.popleft())

    # -- its end -----------------------------------------------------------------------

    def shutdown(self, *, wait: bool = True, cancel_futures: bool = False) -> None:
        """Take no more calls; see :meth:`shmexec.Executor.shutdown`."""
        if self._forked:
            return
        self.take_in(cancel=cancel_futures)
        with self._lock, self._whole:
            first, self._closed = not self._closed, True
            for call in [call for call in self._calls.values() if call.credit]:
                # One that is not read to its end would keep the pool alive.
                self._end_stream(call)
            if first or cancel_futures:
                self._handle(r.Closed(cancel_futures))
            started = self.leading.started
        self.resolve()
        if not started:
            if first:
                self.ended()
            return
        self.leading.wake()
        if wait:
            try:
                self.leading.join()
            except KeyboardInterrupt as interrupt:
                self.halt()
                raise interrupt.with_traceback(None) from None

    def halt(self) -> None:
        """End now: who waited for the pool's end does not want to any longer.

        What has not begun is cancelled, what runs is stopped, workers are killed.
        """
        if self._forked or self._gone.is_set():
            return
        self.take_in(cancel=True)
        with self._lock, self._whole:
            self._closed = True
            self._handle(r.Closed(cancel_pending=True))
            for number in list(self._calls):
                self._handle(r.Cancelled(number, running=True))
            for handle in self._workers.values():
                handle.kill()
        self.leading.wake()
        # Killed processes end soon; only a callback of the program's may hold it up.
        self.leading.join(HALT_WITHIN)

    def take_in(self, *, cancel: bool = False) -> None:
        """Have those who gather calls submit, or cancel, what they have: the last ones."""
        for feeder in list(self.feeders):
            feeder.feed_last(cancel=cancel)

    def abandon(self) -> None:
        """The executor was garbage-collected; called in a finalizer."""
        threading.Thread(target=self.shutdown, kwargs={"wait": False}).start()

    def after_fork_in_child(self, keep: set[int]) -> None:
        """This process is a copy: the pool is the parent's, and is not to be used."""
        self._forked = True
        self._lock = threading.Lock()
        self._whole.changing = False
        for feeder in list(self.feeders):
            feeder.disown(calls.closed_error(self.options, forked=True, exiting=False))
        for handle in self._workers.values():
            handle.close_in_child(keep)
        self._workers.clear()
        self._by_descriptor.clear()
        self._sending.after_fork_in_child()
        self.outputs.after_fork_in_child()
        self.leading.close()
        for call in self._calls.values():
            call.future.disown(
                calls.closed_error(self.options, forked=True, exiting=False)
            )

    # -- for people --------------------------------------------------------------------

    def dump(self) -> str:
        """See :meth:`shmexec.Executor.dump`."""
        if self._forked:
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
            return self._counting.stats(gone=self._gone.is_set())
