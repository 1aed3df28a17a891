"""The pool, as the program sees it: calls in, questions, and its end.

What carries them on is beneath (:mod:`~shmexec.runtime.attended`), which says what its
lock guards. Calls are packed without it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any

from shmexec.closing import close_apart
from shmexec.deadline import now
from shmexec.errors import SerializationError
from shmexec.figures import Glimpse, Health, Stats
from shmexec.options import CallOptions, Options
from shmexec.runtime import calls, lifecycle
from shmexec.runtime.attended import Attended
from shmexec.runtime.backend import Feeder
from shmexec.runtime.calls import PackedCall, name_of, pack
from shmexec.runtime.cells import attend, is_kernel
from shmexec.runtime.futures import Future
from shmexec.runtime.recording import LARGE, start, stop
from shmexec.runtime.streams import Stream
from shmexec.runtime.surroundings import around_calls
from shmexec.runtime.tape import Tape
from shmexec.runtime.waiting import may_block
from shmexec.scheduler import records as r
from shmexec.wire.parcels import Parcel

GLANCE_AFTER = 64
"""Calls submitted after which the submitting thread looks at what has come."""


class Pool(Attended):
    """See the module. Made by the executor, kept alive by its dispatcher."""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._since_glance = 0
        self._in_cells = is_kernel()
        attend()
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
        recorder = self._tables.recorder
        started = 0.0 if recorder is None else now()
        try:
            call = pack(
                fn, args, kwargs, self.room, copy=options.retries > 0, around=around
            )
            call.sealed = sealed
            if self._in_cells:
                call.context = copy_context()
        except SerializationError as error:
            if recorder is not None:
                recorder.note_refused(name_of(fn, args), started)
            # As the standard library: it is the call that failed, not its submission.
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed
        if recorder is not None:
            call.packing = now() - started
            if call.copied >= LARGE:
                recorder.note_arguments(call, args, kwargs)
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
        recorder = self._tables.recorder
        started = 0.0 if recorder is None else now()
        call = pack(fn, args, kwargs, self.room, around=around)
        if recorder is not None:
            call.packing = now() - started
            if call.copied >= LARGE:
                recorder.note_arguments(call, args, kwargs)
        call.credit = buffersize
        if self._in_cells:
            call.context = copy_context()
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

    def _refuse(self) -> None:
        """Take no call, unless there is more memory than when somebody last looked."""
        with self._lock, self._whole:
            self._guard.look_anew()
        self.leading.wake()
        if self._guard.refusing:
            raise self._guard.refusal()

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
        self._ending.take_in(cancel=cancel)

    def abandon(self) -> None:
        """The executor was garbage-collected; called in a finalizer."""
        close_apart(partial(self.shutdown, wait=False))

    def after_fork_in_child(self, keep: set[int]) -> None:
        """This process is a copy: the pool is the parent's, and is not to be used."""
        self._lock = self._tables.lock = threading.Lock()
        self.telling.after_fork_in_child(self._lock)
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

    def glimpse(self) -> Glimpse:
        """What a display shows of it; waits for no lock for long."""
        return self.telling.glimpse(self._stats)

    # -- figures -----------------------------------------------------------------------

    def start_recording(self, tape: Tape) -> None:
        """Have what becomes of calls noted on a tape; harmless if it is already."""
        if tape.adopt(self):
            with self._lock, self._whole:
                start(self._tables, tape)

    def flush_recording(self) -> None:
        """Have on the tapes all calls that are finished."""
        with self._lock, self._whole:
            if self._tables.recorder is not None:
                self._tables.recorder.flush()

    def stop_recording(self, tape: Tape) -> None:
        """Note how far calls are that are not done, and no more."""
        with self._lock, self._whole:
            stop(self._tables, tape)

    def stats(self) -> Stats:
        """See :meth:`shmexec.Executor.stats`."""
        with self._lock:
            return self._stats()

    def _stats(self) -> Stats:
        """The same, with the lock held."""
        with self._whole:
            return self._counting.stats()
