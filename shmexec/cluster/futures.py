"""The future of a call that runs on a cluster: its result stays there until it is asked for.

It is done when Dask says that the call is. The value comes when somebody wants it, in the
thread of whoever does. If the node that had it is lost meanwhile, Dask runs the call again,
or, if what the call was given was lost, too, it is sent again from here.

Who wakes a thread that waits: Dask's thread for callbacks, when the cluster has told the
client of the call's end; if the scheduler is gone, the client, which then cancels all it
has. It never waits itself, so that no callback of a user's holds it up: those run in a
thread of the executor's own.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future as BaseFuture
from concurrent.futures._base import FINISHED
from typing import TYPE_CHECKING, Any, TypeVar, cast

from shmexec.deadline import Deadline
from shmexec.runtime.futures import Future as LocalFuture

if TYPE_CHECKING:
    from distributed import Future as DaskFuture

    from shmexec.cluster.calls import Calls
    from shmexec.cluster.packing import PackedCall
    from shmexec.options import CallOptions

T = TypeVar("T")


class Future(LocalFuture[T]):
    """What :meth:`DaskExecutor.submit` returns: a :class:`shmexec.Future`.

    Passed to another call of the same executor, at any depth in its arguments, it arrives
    as its result, read-only if that is large, which does not come here on its way.

    Callbacks are called when the value is here, so that ``asyncio`` never waits for it.

    It cannot tell whether a call has begun: ``running()`` is false until it is done, and
    ``cancel()`` of one that runs lets it run, and drops what comes of it.
    ``cancel(running=True)`` stops it.
    """

    def __init__(
        self, calls: Calls, call: PackedCall | None, options: CallOptions
    ) -> None:
        super().__init__()
        self.calls = calls
        self.call: PackedCall | None = call
        self.call_options = options
        self.remote: DaskFuture[Any] | None = None
        self.times_sent = 0
        # Held while it is sent again; who finds it lost, too, waits for that.
        self.sending = threading.Lock()
        self.fetched = False
        # Held by the thread that gets the value. Others wait for it; the cluster's
        # answer, or the loss of the scheduler, ends that.
        self._fetching = threading.Lock()

    def land(self) -> bool:
        """The call has ended well; for the executor only.

        Returns:
            Whether that is news: it may have been cancelled, say.
        """
        with self._lock:
            if self.settled:
                return False
            self._finish(cast("T", None))
        return True

    def settle(self, error: BaseException) -> bool:
        """The call has failed; for the executor only.

        Returns:
            As :meth:`land`.
        """
        with self._lock:
            if self.settled:
                return False
            self.call = None
            self._exception = error
            self._state = FINISHED
            for waiter in self._waiting or ():
                waiter.add_exception(self)
            if self._made is not None:
                self._made.notify_all()
        return True

    def is_at(self, remote: DaskFuture[Any] | None) -> bool:
        """Whether this is where it was sent to last; for the executor only."""
        return self.remote is remote

    @property
    def failed(self) -> bool:
        """Whether it has an exception; for the executor only."""
        return self._exception is not None

    def bring(self) -> None:
        """Fetch the value, if it is done and there is one; for the executor only."""
        with contextlib.suppress(Exception):  # whoever asks for it is told
            if self._state == FINISHED and self._exception is None:
                self._fetch(Deadline(None))

    def tell(self) -> None:
        """Call the callbacks, which will want the value; for the executor only."""
        if self._done_callbacks:
            self.bring()
            self._invoke_callbacks()

    def add_done_callback(self, fn: Callable[[BaseFuture[T]], Any]) -> None:
        """Call ``fn(future)`` when the value is here, at once if it is."""
        with self._lock:
            if not self.settled:
                super().add_done_callback(fn)
                return
        if self._state == FINISHED and not self.failed and not self._has_value():
            self.calls.help_out(self._bring_for, fn)
        else:
            super().add_done_callback(fn)

    def _bring_for(self, fn: Callable[[BaseFuture[T]], Any]) -> None:
        self.bring()
        super().add_done_callback(fn)

    def _drive(self, timeout: float | None) -> float | None:
        """Wait until it is done and the value is here; the seconds that are left."""
        deadline = Deadline(timeout)
        self._wait(deadline)
        if self._state == FINISHED and self._exception is None:
            self._fetch(deadline)
        return deadline.remaining()

    def _wait(self, deadline: Deadline) -> None:
        if not self.settled:
            made = self.make_condition()
            with made:
                made.wait_for(lambda: self.settled, deadline.remaining())

    def _has_value(self) -> bool:
        return self.fetched

    def _fetch(self, deadline: Deadline) -> None:
        if self._has_value():
            return
        left = deadline.remaining()
        if not self._fetching.acquire(timeout=-1 if left is None else left):
            raise TimeoutError
        try:
            if self.failed or self._has_value():
                return
            value, error = self.calls.fetch(self, deadline)
            if error is not None:  # it was run again, and failed
                self._exception = error
                return
            if self.keep is not None:
                self.keep(value)
            self._result = value
            self.fetched = True
        finally:
            self._fetching.release()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """The exception that the call raised, None if it returned; fetches no result.

        Args:
            timeout: Seconds to wait; None waits for ever.

        Raises:
            TimeoutError: If it is not done by then; the call goes on.
            CancelledError: If it was cancelled.
        """
        deadline = Deadline(timeout)
        try:
            self._wait(deadline)
        except KeyboardInterrupt as interrupt:
            raise self._stopped_by(interrupt) from None
        return BaseFuture.exception(self, 0)

    def cancel(self, *, running: bool = False) -> bool:
        """Cancel the call, if it is not done.

        Args:
            running: Stop it, too, if it runs: its worker is interrupted, then killed.

        Returns:
            Whether it is cancelled.
        """
        cancelled = self._give_up()
        if cancelled:
            self.begin()  # tells `concurrent.futures.wait`
            self.call = None
            self.calls.cancel(self, running=running)
        return cancelled
