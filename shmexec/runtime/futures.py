"""The future: a real ``concurrent.futures.Future`` whose waiter reads its own reply."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future as BaseFuture, InvalidStateError
from concurrent.futures._base import (
    CANCELLED,
    CANCELLED_AND_NOTIFIED,
    FINISHED,
    LOGGER,
    PENDING,
    RUNNING,
)
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from shmexec.deadline import Deadline

if TYPE_CHECKING:
    from shmexec.runtime.pool import Pool

T = TypeVar("T")


class _Condition:
    """What is made for each look at a future's condition: one is made if it is waited for.

    ``concurrent.futures.wait`` and ``as_completed`` take the conditions of all futures,
    and wait for none of them. One of the standard library's takes 1.4 kB.
    """

    __slots__ = ("_future",)

    def __init__(self, future: Future[Any]) -> None:
        self._future = future

    def __enter__(self) -> bool:
        return self._future._lock.__enter__()  # noqa: SLF001

    def __exit__(self, *_: object) -> None:
        self._future._lock.release()  # noqa: SLF001

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As of the lock."""
        return self._future._lock.acquire(blocking, timeout)  # noqa: SLF001

    def release(self) -> None:
        """As of the lock."""
        self._future._lock.release()  # noqa: SLF001

    def __getattr__(self, name: str) -> Any:
        return getattr(self._future.make_condition(), name)


class Future(BaseFuture[T]):
    """What :meth:`shmexec.Executor.submit` returns.

    As in the standard library, with two additions: ``cancel(running=True)`` also stops
    a call that runs, and ``cached`` tells of a script's call.

    Attributes:
        cached: Whether the result was kept from an equal call before.

    Example:
        >>> future = ex.submit(pow, 2, 10)
        >>> future.result(), future.done(), future.cached
        (1024, True, False)
    """

    cached: bool = False
    interrupted: bool = False  # while it was settled
    keep: Callable[[Any], object] | None = None
    """Given the result before anybody else has it, who might write to it."""

    _pool: Pool | None = None
    _call: int = 0
    _made: threading.Condition | None = None
    _exception: BaseException | None = None
    _result: T | None = None

    # There may be very many futures. What the base class makes for each, a condition of
    # eight objects and two lists, is made for those that need it; and so what would make
    # a condition is done here without.
    _waiting: list[Any] | None = None
    _done_callbacks: Sequence[Callable[[BaseFuture[T]], Any]] = ()

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._state = PENDING
        # Set here once: CPython gives an object whose attributes come in another order
        # than those of others a dictionary of its own, of some 250 bytes.
        self._waiting = None

    def attach(self, pool: Pool, call: int) -> None:
        """Tie the future to its call; for the pool only."""
        self._pool = pool
        self._call = call

    def make_next(self) -> Future[Any]:
        """One for what the same call comes to after this; for the pool only.

        It is running, so that it cannot be cancelled for itself.
        """
        following: Future[Any] = Future()
        following._pool, following._call = self._pool, self._call
        following.begin()
        return following

    @property
    def _condition(self) -> _Condition:  # type: ignore[override]
        """What the base class, and ``concurrent.futures.wait``, lock and wait on."""
        return _Condition(self)

    def make_condition(self) -> threading.Condition:
        """For threads that wait for this future; for the pool only."""
        with self._lock:
            if self._made is None:
                self._made = threading.Condition(self._lock)
            return self._made

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]
        """Those whom ``concurrent.futures`` has told of the end; under the lock."""
        with self._lock:
            if self._waiting is None:
                self._waiting = []
            return self._waiting

    def set_result(self, result: T) -> None:
        """For the pool only."""
        with self._lock:
            if self.settled:
                self._refuse()
            if self.keep is not None:
                # Here, since several threads may resolve a call: nobody has the result
                # before it is kept, and who comes late has none.
                self.keep(result)
            self._finish(result)
        if self._done_callbacks:
            self._invoke_callbacks()

    def _finish(self, result: T) -> None:
        """Have the result; whoever calls it holds the lock, and sees to callbacks."""
        self._result = result
        self._state = FINISHED
        for waiter in self._waiting or ():
            waiter.add_result(self)
        if self._made is not None:
            self._made.notify_all()

    def set_exception(self, exception: BaseException | None) -> None:
        """For the pool only."""
        with self._lock:
            if self.settled:
                self._refuse()
            self._exception = exception
            self._state = FINISHED
            for waiter in self._waiting or ():
                waiter.add_exception(self)
            if self._made is not None:
                self._made.notify_all()
        if self._done_callbacks:
            self._invoke_callbacks()

    def _refuse(self) -> NoReturn:
        msg = f"{self._state}: {self!r}"
        raise InvalidStateError(msg)

    def _invoke_callbacks(self) -> None:
        # The base class lets SystemExit through; here it would end whichever thread
        # reads the replies of all calls.
        # Each is taken before it is called: after an interrupt the others are left.
        callbacks = self._done_callbacks
        if not isinstance(callbacks, deque):  # nothing is added any more
            callbacks = self._done_callbacks = deque(callbacks)
        while callbacks:
            try:
                callback = callbacks.popleft()
            except IndexError:  # another thread had the last one
                return
            try:
                callback(self)
            except (Exception, SystemExit):  # noqa: BLE001  (as the base class does)
                LOGGER.exception("exception calling callback for %r", self)
        self._done_callbacks = ()

    def go_on(self) -> None:
        """Tell those who were not told since an interrupt struck; for the pool only."""
        self.interrupted = False
        with self._lock:
            if self._made is not None:
                self._made.notify_all()
        self._invoke_callbacks()

    def done(self) -> bool:
        """Whether it was cancelled, or has a result or an exception.

        Example:
            >>> future = ex.submit(abs, -1)
            >>> future.result()
            1
            >>> future.done()
            True
        """
        return self.settled

    def begin(self) -> bool:
        """Call it running, unless it was cancelled; for the pool only."""
        with self._lock:
            if self._state == CANCELLED:
                self._notify_cancelled()
                return False
            if self._state == PENDING:
                self._state = RUNNING
            return True

    def _notify_cancelled(self) -> None:
        """Tell ``concurrent.futures.wait``; under the lock, once it is cancelled."""
        self._state = CANCELLED_AND_NOTIFIED
        for waiter in self._waiting or ():
            waiter.add_cancelled(self)

    def wait_again(self) -> None:
        """It had been sent, but has not begun after all; for the pool only."""
        with self._lock:
            if self._state == RUNNING:
                self._state = PENDING

    def result(self, timeout: float | None = None) -> T:
        """The call's result, or its exception raised.

        Ctrl-C while it waits stops the call, as ``cancel(running=True)`` does. To wait
        for calls that shall go on, use ``concurrent.futures.wait``.

        Args:
            timeout: Seconds to wait; None waits for ever.

        Raises:
            TimeoutError: If it is not done by then; the call goes on.
            CancelledError: If it was cancelled.

        Example:
            >>> ex.submit(int, "12").result(timeout=60)
            12
            >>> ex.submit(int, "x").result()
            Traceback (most recent call last):
            ...
            ValueError: invalid literal for int() with base 10: 'x'
        """
        try:
            left = self._drive(timeout)
            if self._state == FINISHED and self._exception is None:
                return cast("T", self._result)
            return super().result(left)
        except KeyboardInterrupt as interrupt:
            raise self._stopped_by(interrupt) from None

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The exception that the call raised, None if it returned.

        Args:
            timeout: Seconds to wait; None waits for ever.

        Raises:
            TimeoutError: If it is not done by then; the call goes on.
            CancelledError: If it was cancelled.

        Example:
            >>> ex.submit(int, "x").exception()
            ValueError("invalid literal for int() with base 10: 'x'")
        """
        try:
            return super().exception(self._drive(timeout))
        except KeyboardInterrupt as interrupt:
            raise self._stopped_by(interrupt) from None

    def _stopped_by(self, interrupt: KeyboardInterrupt) -> KeyboardInterrupt:
        """Stop the call that somebody waited for; what is to be raised.

        The frames below the one that waited tell the user nothing: they are cut off.
        """
        if interrupt is not self._exception:  # the call itself may have raised it
            interrupt = interrupt.with_traceback(None)
            self.cancel(running=True)
        return interrupt

    def _drive(self, timeout: float | None) -> float | None:
        """Read replies in this thread until done; the seconds that are left."""
        if self._pool is None or self.settled:
            return timeout
        deadline = Deadline(timeout)
        self._pool.leading.drive(self, deadline)
        return deadline.remaining()

    def cancel(self, *, running: bool = False) -> bool:
        """Cancel the call if it has not begun.

        Args:
            running: Also if it runs: its worker is interrupted, then killed, and
                replaced; the future fails with :class:`shmexec.CallStopped`, which is a
                ``CancelledError``.

        Returns:
            Whether the call will not run to its end.

        Example:
            >>> future = ex.submit(time.sleep, 3600)
            >>> future.cancel(running=True)
            True
        """
        cancelled = self._give_up()
        pool = self._pool
        if pool is not None and (cancelled or (running and not self.done())):
            return pool.cancel(self._call, running=not cancelled) or cancelled
        return cancelled

    def _give_up(self) -> bool:
        """Cancel it if it has not begun, as the base class; whether it is cancelled."""
        with self._lock:
            if self._state != PENDING:
                return self._state not in {RUNNING, FINISHED}
            self._state = CANCELLED
            if self._made is not None:
                self._made.notify_all()
        if self._done_callbacks:
            self._invoke_callbacks()
        return True

    def add_done_callback(self, fn: Callable[[BaseFuture[T]], Any]) -> None:
        """Call ``fn(future)`` when the future is done, at once if it is.

        Example:
            >>> future = ex.submit(abs, -1)
            >>> future.result()
            1
            >>> future.add_done_callback(lambda done: print("got", done.result()))
            got 1
        """
        with self._lock:
            settled = self.settled
            if not settled:
                if not isinstance(self._done_callbacks, list):
                    self._done_callbacks = []
                self._done_callbacks.append(fn)
        if settled:
            super().add_done_callback(fn)
        elif self._pool is not None:
            # Perhaps nobody ever waits for this one: the dispatcher must read.
            self._pool.leading.expect_callback()

    def settle_cancelled(self) -> None:
        """Bring the future into the state that ``wait`` looks for; for the pool only."""
        self._give_up()
        with self._lock:
            if self._state == CANCELLED:
                self._notify_cancelled()
            elif self._state == RUNNING:  # it had been sent once, and came back
                self.set_exception(CancelledError())

    def disown(self, error: BaseException) -> None:
        """In a forked child: fail without a word to anybody; for the pool only.

        Another thread may have held the condition at the fork; it does not exist here.
        """
        self._pool = None
        self._lock = threading.RLock()
        self._made = self._waiting = None
        self._done_callbacks = ()
        if self._state in {PENDING, RUNNING}:
            self._exception = error
            self._state = FINISHED

    @property
    def unwatched(self) -> bool:
        """Whether it has no callbacks, and no waiters; for the pool only."""
        return not (self._done_callbacks or self._waiting or self._made)

    @property
    def settled(self) -> bool:
        """As ``done()``, without taking the lock; for the pool only."""
        return self._state not in {PENDING, RUNNING}
