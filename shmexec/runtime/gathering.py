"""Gathers items into batches, has the pool run these, and gives out the results.

Its lock guards the grouping and the batches that wait; it is held for bookkeeping, and
while a row of a few kilobytes is copied. No other is taken inside. ``_making`` comes before
it: whoever gets memory for more rows holds it, so that others do not get as much. Batches
are sent and futures resolved without either.

Every wait, and who ends it. A thread that waits for an item's result, by whoever
resolves the call of its batch: the pool sees to that in all cases, also if a worker or
its dispatcher dies. One that waits for room in the queue, by whoever takes a batch or
cancels an item; there is always a batch that runs, or is due, while the queue is full.
The timer, by its deadline or by who rings; it is only there if there is a delay, and
nobody waits for it but for that. It dies with the program only.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future as BaseFuture
from functools import partial
from queue import Empty, SimpleQueue
from statistics import fmean, median
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from shmexec.deadline import now
from shmexec.errors import PoolClosed, QueueFull
from shmexec.figures import BatcherStats, Durations
from shmexec.options import INLINE_LIMIT, CallOptions
from shmexec.runtime.backend import Backend
from shmexec.runtime.parts import Gathered, Item
from shmexec.runtime.rows import Form, Rows
from shmexec.scheduler.grouping import Grouping
from shmexec.wire.messages import Mode

SIZES_AT_MOST = 256
"""Kinds of items of which it is remembered how large their batches were."""


class _Pumping(threading.local):
    active = False


class Gatherer:
    """See the module. Kept alive by the calls under way and by the timer."""

    def __init__(
        self,
        backend: Backend,
        fn: Callable[..., Any],
        options: CallOptions,
        grouping: Grouping[Gathered],
    ) -> None:
        self._backend = backend
        self._fn = fn
        self.name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
        self._options = options
        # A call that may run again must find its arguments as they were.
        self._mode = Mode.COPY if options.retries else Mode.PRIVATE
        self._grouping = grouping
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._pumping = _Pumping()
        self._unsettled: set[Gathered] = set()  # taken, and items are not all done
        self._gates: list[BaseFuture[None]] = []  # who waits for room
        self._idle: list[BaseFuture[None]] = []  # who waits for the end
        self._why_closed = ""
        self._abandoned = False
        self._timer: threading.Thread | None = None
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._wakes_at = math.inf
        self._spares: list[Rows] = []  # of batches that ended, for those that come
        self._letting_others = False
        self._last_count = 0
        self._sizes: dict[Form, int] = {}  # of the latest batches of each form
        self._items = self._cancelled = self._failed = 0
        self._histogram: Counter[int] = Counter()
        self._wait_seconds: deque[float] = deque(maxlen=4096)
        self._run_seconds: deque[float] = deque(maxlen=1024)
        backend.add_feeder(self)

    # -- items in ------------------------------------------------------------------------

    def put(self, form: Form, parts: Sequence[np.ndarray], item: Item) -> None:
        """Take an item in.

        Raises:
            PoolClosed: If nothing is taken in any more.
            QueueFull: If as many wait as may.
            SharedMemoryFull: If there is no room for it, and waiting would not help, or is
                not possible in this thread.
        """
        rows = self._enter(form, None, parts, item)
        if rows is None:
            rows = self._enter_with_new(form, parts, item)
        if not rows.are_small:
            self._write(rows, parts, item)
        # What is not started here is by whoever ends a batch, or has let others.
        running = self._grouping.running
        if running < self._backend.width() and not self._letting_others:
            self._let_others()

    def _enter_with_new(
        self, form: Form, parts: Sequence[np.ndarray], item: Item
    ) -> Rows:
        """The same, where there is no row yet."""
        with self._making:
            # Others may have made some meanwhile.
            rows = self._enter(form, None, parts, item)
            if rows is not None:
                return rows
            new = self._make_rows(form)
            if new is not None:
                return self._enter_first(form, new, parts, item)
        # What waits has memory: no more is gathered before it runs.
        with self._lock:
            self._grouping.shut()
            spares, self._spares = self._spares, []
        _close(spares)
        self._pump()
        new = Rows.make(self._backend, form, 1, may_wait=True)
        assert new is not None
        return self._enter_first(form, new, parts, item)

    def _enter_first(
        self, form: Form, new: Rows, parts: Sequence[np.ndarray], item: Item
    ) -> Rows:
        rows = None
        try:
            rows = self._enter(form, new, parts, item)
            assert rows is not None
            return rows
        finally:
            if rows is not new:
                new.close()

    def _make_rows(self, form: Form) -> Rows | None:
        """Rows for a new batch, or more for the open one; None if memory is short."""
        with self._lock:
            batch = self._grouping.open_batch(form)
            # As many as of late, and some more.
            seen = (
                self._sizes.get(form, 0) * 5 // 4 if batch is None else 2 * batch.size
            )
        small = (INLINE_LIMIT - 1) // max(1, form.row_bytes())
        many = min(self._grouping.max_size, max(1, small, seen))
        return Rows.make(self._backend, form, many, may_wait=False)

    def _enter(
        self,
        form: Form,
        new: Rows | None,
        parts: Sequence[np.ndarray],
        item: Item,
    ) -> Rows | None:
        """Give an item its row, one of the new rows if need be; None if there is none."""
        with self._lock:
            if self._grouping.closed:
                raise PoolClosed(self._why_closed)
            if not self._grouping.has_room():
                raise self._queue_full()
            rows = self._rows_for(form, new)
            if rows is None:
                return None
            self._join(form, rows, item)
            if rows.are_small:
                rows.write(item.row, parts)
        return rows

    def _rows_for(self, form: Form, new: Rows | None) -> Rows | None:
        """Where the next item of this form goes. The caller has the lock."""
        batch = self._grouping.open_batch(form)
        if batch is not None and batch.has_rows():
            return batch.rows[-1]
        size = 0 if batch is None else batch.size
        if new is None:
            for spare in self._spares:
                if spare.form == form and spare.capacity > size:
                    self._spares.remove(spare)
                    return spare
        elif new.capacity <= size:
            self._grouping.shut()  # they cannot enlarge it: they begin another
        return new

    def _join(self, form: Form, rows: Rows, item: Item) -> None:
        """Have an item join its batch. The caller has the lock."""
        came = now()
        batch = self._grouping.join(form, came)
        if not batch.rows or batch.rows[-1] is not rows:
            batch.rows.append(rows)
        item.gatherer, item.batch, item.row = self, batch, batch.size - 1
        batch.items.append(item)
        batch.came.append(came)
        self._items += 1
        if not rows.are_small:
            batch.writing += 1
        if self._grouping.max_delay:
            self._arm()

    def _let_others(self) -> None:
        """Start a batch, after other threads have submitted what they are about to.

        They have just been given results, perhaps, and wait for the interpreter. Without
        them the first one would make a batch of a single item.
        """
        try:
            if self._last_count > 1:
                self._letting_others = True
                os.sched_yield()
        finally:
            self._letting_others = False
            self._pump()

    def _write(self, rows: Rows, parts: Sequence[np.ndarray], item: Item) -> None:
        """Write a large item; its batch does not start before."""
        batch = item.batch
        assert batch is not None
        try:
            rows.write(item.row, parts)
        except BaseException:
            item.cancel()
            raise
        finally:
            with self._lock:
                batch.writing -= 1
                go_on = batch.held_up and not batch.writing
            if go_on and batch.running:
                self._start(batch)
            elif go_on:
                batch.close()

    def note_cancelled(self, item: Item) -> None:
        """An item's future was cancelled."""
        gone = None
        with self._lock:
            batch = item.batch
            if batch is None or item.counted:
                return
            item.counted = True
            self._cancelled += 1
            if self._grouping.cancel(batch):
                gone = batch
                gone.held_up = bool(batch.writing)
        if gone is not None and not gone.held_up:
            gone.close()
        self._open_gates()
        self._look_if_idle()

    def _queue_full(self) -> QueueFull:
        limit = self._grouping.max_queue
        return QueueFull(
            f"{limit} items wait for batches of {self.name}, as many as max_queue "
            "allows. Submit fewer at a time, or from threads that may wait",
            limit=limit,
        )

    def gate(self) -> BaseFuture[None]:
        """What is done when there may be room again, at once if there is."""
        gate: BaseFuture[None] = BaseFuture()
        with self._lock:
            if not (self._grouping.closed or self._grouping.has_room()):
                self._gates.append(gate)
                return gate
        gate.set_result(None)
        return gate

    def _open_gates(self) -> None:
        """Let all who wait for room try again."""
        if not self._gates:
            return
        with self._lock:
            gates, self._gates = self._gates, []
        _open(gates)

    # -- batches out ---------------------------------------------------------------------

    def _pump(self) -> None:
        """Start all batches that may run."""
        if self._pumping.active:
            return  # further down in this thread it is done
        self._pumping.active = True
        taken = None
        try:
            while True:
                with self._lock:
                    taken = self._grouping.take(now(), self._backend.width())
                    if taken is None:
                        break
                    held_up = self._hand_out(taken)
                if not held_up:
                    batch, taken = taken, None
                    self._start(batch)
                self._open_gates()
        except BaseException as error:
            if taken is not None:
                self._give_up(taken, error)
            raise
        finally:
            self._pumping.active = False

    def _give_up(self, batch: Gathered, error: BaseException) -> None:
        """An interrupt struck between taking a batch and starting it."""
        with self._lock:
            held_up = self._hand_out(batch)  # once more, to be sure
        if not held_up:  # else whoever writes to it starts it
            self._end(batch, batch.fail(error))

    def _hand_out(self, batch: Gathered) -> bool:
        """Note that a batch runs; whether it is still written to. Under the lock."""
        batch.running = True
        self._unsettled.add(batch)
        batch.held_up = bool(batch.writing)
        return batch.held_up

    def _start(self, batch: Gathered) -> None:
        """Send a batch that was taken."""
        call = None
        try:
            if not batch.start():
                self._end(batch, 0)
                return
            args, kwargs = batch.arguments(self._mode)
            submit = self._backend.submit
            call = batch.context.run(submit, self._fn, args, kwargs, self._options)
            call.add_done_callback(partial(self._finish, batch))
        except BaseException as error:
            failed = batch.fail(error)
            if call is None:
                self._end(batch, failed)
            else:
                # An interrupt. The call has the memory until it ends; twice is harmless.
                call.add_done_callback(partial(self._finish, batch))
            if not isinstance(error, Exception):
                raise

    def _finish(self, batch: Gathered, call: BaseFuture[Any]) -> None:
        """A batch's call is done."""
        failed = 0
        try:
            self._has_run(batch)
            # First of all, so that the worker does not wait.
            self._pump()
            failed = batch.settle(call)
        except BaseException as error:
            failed = batch.fail(error)
            raise
        finally:
            self._end(batch, failed)

    def _has_run(self, batch: Gathered) -> None:
        """Let another batch run in the place of this one."""
        with self._lock:
            if not batch.running:
                return
            batch.running = False
            self._grouping.finished()
            count = len(batch.items)
            if count:
                self._histogram[count] += 1
                self._last_count = count
                self._wait_seconds.extend([batch.started - at for at in batch.came])
                self._run_seconds.append(now() - batch.started)
                self._remember_size(cast("Form", batch.key), count)
        self._let_go(batch)

    def _let_go(self, batch: Gathered) -> None:
        """Keep the rows of a batch that ran for the next one, or give them back."""
        rows, batch.rows = batch.rows, []
        if len(rows) == 1 and rows[0].can_be_used_again():
            with self._lock:
                if len(self._spares) <= self._backend.width():
                    self._spares += rows
                    return
        _close(rows)

    def _remember_size(self, form: Form, count: int) -> None:
        sizes = self._sizes
        if form not in sizes and len(sizes) >= SIZES_AT_MOST:
            sizes.pop(next(iter(sizes)))
        sizes[form] = max(count, sizes.get(form, 0) * 7 // 8)

    def _end(self, batch: Gathered, failed: int) -> None:
        """All items of a batch are done."""
        self._has_run(batch)
        batch.items = []  # they refer to it
        with self._lock:
            self._failed += failed
            self._unsettled.discard(batch)
        self._look_if_idle()

    def _look_if_idle(self) -> None:
        """If nothing goes on: let memory go, and who waits for that."""
        with self._lock:
            if not self._is_idle():
                return
            idle, self._idle = self._idle, []
            spares, self._spares = self._spares, []
        _close(spares)
        _open(idle)

    # -- its end ---------------------------------------------------------------------------

    def _is_idle(self) -> bool:
        return not (self._unsettled or self._grouping.waiting)

    def close(self, why: str) -> None:
        """Take no more items, and do not wait for any."""
        with self._lock:
            if not self._grouping.closed:
                self._why_closed = f"{why}: it takes no more items"
            self._grouping.close()
        self._bell.put(None)
        self._open_gates()
        self._pump()

    def join(self) -> None:
        """Wait until all items are done, when no more can come."""
        with self._lock:
            if self._is_idle():
                return
            gate: BaseFuture[None] = BaseFuture()
            self._idle.append(gate)
        gate.result()  # done when the last batch has ended

    def feed_last(self, *, cancel: bool) -> None:
        """The pool is being closed: submit what waits, or cancel it."""
        self.close("the executor was shut down")
        with self._lock:
            batches = self._grouping.take_all()
            ready = [batch for batch in batches if not self._hand_out(batch)]
        if cancel:
            for batch in batches:
                for item in batch.items:
                    item.cancel()
        for batch in ready:
            self._start(batch)
        self._open_gates()

    def disown(self, error: BaseException) -> None:
        """In a forked child: the pool is the parent's, and so are the items."""
        self._lock, self._making = threading.Lock(), threading.Lock()
        self._timer = None
        self._why_closed = str(error)
        for batch in (*self._grouping.take_all(), *self._unsettled):
            for item in batch.items:
                item.disown(error)
        self._unsettled.clear()  # nobody here will settle them

    def abandon(self) -> None:
        """Nobody can submit any more; called in a finalizer, so it takes no lock."""
        self._abandoned = True
        self._bell.put(None)

    # -- time ------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Have the timer wake when the oldest batch is due. The caller has the lock."""
        due = self._grouping.due(self._backend.width())
        if due is None:
            return
        if self._timer is None:
            self._timer = threading.Thread(
                target=self._tick, name="shmexec-batcher", daemon=True
            )
            self._timer.start()
        elif due < self._wakes_at:
            self._wakes_at = due
            self._bell.put(None)

    def _tick(self) -> None:
        """Start batches when they are due: the timer's thread."""
        while True:
            if self._abandoned:
                self.close("the batcher is gone")
            self._pump()
            with self._lock:
                if self._grouping.closed:
                    return  # what waits is ready: it starts when another one has ended
                due = self._grouping.due(self._backend.width())
                self._wakes_at = math.inf if due is None else due
            # Rung when a batch is due before that, or nothing more will come.
            with contextlib.suppress(Empty):
                self._bell.get(timeout=None if due is None else max(0.0, due - now()))

    # -- figures -----------------------------------------------------------------------------

    def stats(self) -> BatcherStats:
        """See :meth:`shmexec.Batcher.stats`."""
        with self._lock:
            sizes = dict(sorted(self._histogram.items()))
            return BatcherStats(
                items=self._items,
                batches=self._histogram.total(),
                waiting=self._grouping.waiting,
                running=self._grouping.running,
                cancelled=self._cancelled,
                failed=self._failed,
                batch_sizes=MappingProxyType(sizes),
                wait_seconds=_durations(self._wait_seconds),
                run_seconds=_durations(self._run_seconds),
            )


def _durations(seconds: deque[float]) -> Durations:
    if not seconds:
        return Durations(0.0, 0.0, 0.0)
    return Durations(fmean(seconds), median(seconds), max(seconds))


def _close(rows: Sequence[Rows]) -> None:
    for each in rows:
        each.close()


def _open(gates: Sequence[BaseFuture[None]]) -> None:
    """Wake who waits; some may have been cancelled."""
    for gate in gates:
        if gate.set_running_or_notify_cancel():
            gate.set_result(None)
