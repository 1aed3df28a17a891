"""Batches of items: their futures, and what each gets of a result or an error."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Sequence
from concurrent.futures import Future as BaseFuture, InvalidStateError
from concurrent.futures._base import RUNNING
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from shmexec.deadline import Deadline, now
from shmexec.runtime.futures import Future
from shmexec.runtime.rows import Form, Rows
from shmexec.scheduler.grouping import Batch
from shmexec.wire.messages import Mode

if TYPE_CHECKING:
    from shmexec.runtime.gathering import Gatherer


class _Waiter:
    """A thread that waits for one future; what ``concurrent.futures`` tells of its end.

    A condition does as much, and takes three times as long to make and to wait for.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout: float | None) -> None:
        """Wait until the future is done or cancelled, as :class:`Item` says."""
        self._lock.acquire(timeout=-1 if timeout is None else max(0.0, timeout))

    def wake(self, _: object = None) -> None:
        """It is; for the first one who says so."""
        self._lock.release()

    add_result = add_exception = wake

    def add_cancelled(self, _: object) -> None:
        """Its ``cancel`` has said so."""


class Item(Future[Any]):
    """The future of one item.

    Who waits for it is woken by whoever settles its batch, or cancels it.
    """

    batch: Gathered | None = None
    gatherer: Gatherer | None = None
    row = 0
    counted = False  # as cancelled

    def cancel(self, *, running: bool = False) -> bool:
        """Drop the item if its batch has not started.

        Args:
            running: Of no effect: other items run with this one.
        """
        cancelled = super().cancel()
        if cancelled and self.gatherer is not None:
            self.gatherer.note_cancelled(self)
            for waiter in list(self._waiters):
                if isinstance(waiter, _Waiter):
                    with contextlib.suppress(RuntimeError):  # awake already
                        waiter.wake()
        return cancelled

    def give(self, value: Any) -> None:
        """As ``set_result``, for what may be done already."""
        with self._lock:
            if self._state != RUNNING:
                return
            self._finish(value)
        if self._done_callbacks:
            self._invoke_callbacks()

    def _drive(self, timeout: float | None) -> float | None:
        waiter = _Waiter()
        with self._lock:
            if self.settled:
                return timeout
            self._waiters.append(waiter)
        if timeout is None:
            waiter.wait(None)
            return None
        deadline = Deadline(timeout)
        waiter.wait(timeout)
        if not self.settled:  # it is late: there may be many who look in vain
            with self._lock:
                self._waiters.remove(waiter)
        return deadline.remaining()


class Gathered(Batch):
    """A batch and what was gathered for it.

    Attributes:
        items: In order; when it starts, those that were not cancelled.
        came: When each item came.
        rows: Where they are. Each has room for more rows than the one before, and has
            those that this one had no room for.
        writing: Items that are being written.
        held_up: Whether it would have started, or ended, but for these.
        running: Whether it was taken to be run, and its result has not come.
        started: When it did.
        context: That of the thread or task whose item came first: the call's is taken
            from it, whoever starts the batch.
    """

    def __init__(self, key: Hashable, number: int, opened: float) -> None:
        super().__init__(key, number, opened)
        self.items: list[Item] = []
        self.came: list[float] = []
        self.rows: list[Rows] = []
        self.writing = 0
        self.held_up = False
        self.running = False
        self.started = 0.0
        self.context = copy_context()

    def has_rows(self) -> bool:
        """Whether there is a row for one more item."""
        return self.size < self.rows[-1].capacity

    def start(self) -> bool:
        """Drop the items that were cancelled, for ever; whether others are left."""
        self.started = now()
        kept = [i for i, item in enumerate(self.items) if item.begin()]
        if kept:
            self._gather()
        if len(kept) < len(self.items):
            self.items = [self.items[i] for i in kept]
            self.came = [self.came[i] for i in kept]
            if kept:
                self.rows[-1].compact(kept)
        return bool(kept)

    def _gather(self) -> None:
        """Have all rows in the last of the places."""
        *others, last = self.rows
        start = 0
        for rows in others:
            last.take_over(rows, start, rows.capacity)
            start = rows.capacity
            rows.close()
        self.rows = [last]

    def arguments(self, mode: Mode) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments for the function."""
        arrays = self.rows[-1].arguments(len(self.items), mode)
        names = cast("Form", self.key).names
        if names is None:
            return tuple(arrays), {}
        return (), dict(zip(names, arrays, strict=True))

    def close(self) -> None:
        """Let its memory go."""
        for rows in self.rows:
            rows.close()
        self.rows = []

    def settle(self, call: BaseFuture[Any]) -> int:
        """Give each item its part of the result; how many of them failed."""
        if call.cancelled():
            for item in self.items:
                item.settle_cancelled()
            return 0
        error = call.exception()
        if error is not None:
            return self.fail(error)
        try:
            values, mixed = _split(call.result(), len(self.items))
        except ValueError as raised:
            return self.fail(raised.with_traceback(None))
        failed = 0
        for item, value in zip(self.items, values, strict=True):
            if mixed and isinstance(value, BaseException):
                item.set_exception(value)
                failed += 1
            else:
                item.give(value)
        return failed

    def fail(self, error: BaseException) -> int:
        """Have all items that are not done fail; how many."""
        failed = [item for item in self.items if not item.settled]
        for item in failed:
            with contextlib.suppress(InvalidStateError):  # cancelled a moment ago
                item.set_exception(_copy_of(error, len(self.items)))
        return len(failed)


def _split(result: Any, count: int) -> tuple[Sequence[Any], bool]:
    """The parts of a result, one per item; whether there may be exceptions among them.

    Raises:
        ValueError: If there are not as many as items, or it is nothing to split.
    """
    if isinstance(result, np.ndarray):
        if result.ndim:
            _check_count(len(result), count)
            return list(result), result.dtype.hasobject
    elif isinstance(result, list):
        _check_count(len(result), count)
        return result, True
    elif isinstance(result, dict) and result:
        columns = [_split(part, count)[0] for part in result.values()]
        names = list(result)
        return [dict(zip(names, row, strict=True)) for row in zip(*columns)], False  # noqa: B905  (checked)
    elif isinstance(result, tuple) and result:
        columns = [_split(part, count)[0] for part in result]
        make = getattr(type(result), "_make", tuple)
        return list(map(make, zip(*columns))), False  # noqa: B905  (checked)
    msg = (
        f"the function returned {type(result).__name__} for a batch of {count} items: it "
        f"must return an array of length {count}, a tuple or dict of such arrays, or a "
        "list of as many results"
    )
    raise ValueError(msg)


def _check_count(got: int, count: int) -> None:
    if got != count:
        msg = (
            f"the function returned {got} results for a batch of {count} items, so it "
            "cannot be told which is whose"
        )
        raise ValueError(msg)


def _copy_of(error: BaseException, count: int) -> BaseException:
    """An exception of an item's own: where it is raised, tracebacks are added to it."""
    copied = error
    try:
        function, args, *state = cast("Any", error.__reduce__())
        made = function(*args)
        if type(made) is type(error):
            made.__dict__.update(state[0] if state and state[0] else {})
            copied = made
    except Exception:  # noqa: BLE001  (then they share it)
        return error
    copied.__cause__ = error.__cause__
    copied.__context__ = error.__context__
    copied.__suppress_context__ = error.__suppress_context__
    if hasattr(error, "__notes__"):
        copied.__notes__ = list(error.__notes__)
    copied.add_note(f"a batch of {count} items failed with it")
    return copied
