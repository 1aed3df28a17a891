"""What ``fallback="process-per-call"`` does: calls of a broken pool, each in a process.

A call that a broken pool never began is not failed: a thread forks a process for it
(see :mod:`shmexec.forkpercall`), which unpacks it there as a worker would, and sends the
result back through a pipe. A call that had begun is not run again; it fails as without
a fallback. Calls that are for one certain worker fail, too, and streams.

:class:`RescuingPool` is a pool that may break, :class:`ProcessPool` stands for one that
could not even be made.
"""

from __future__ import annotations

import pickle
import threading
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future as BaseFuture
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn, cast

import numpy as np

from shmexec.errors import FallbackWarning, PoolBroken, SerializationError
from shmexec.figures import Glimpse, Health, Stats
from shmexec.forkpercall import run_in_child
from shmexec.memory.host import Host
from shmexec.memory.lending import HOST
from shmexec.memory.views import lend
from shmexec.options import CallOptions, Options
from shmexec.runtime.calls import Argument, PackedCall, closed_error, pickle_call
from shmexec.runtime.futures import Future
from shmexec.runtime.inline import InlinePool, NoBlocks
from shmexec.runtime.pool import Pool
from shmexec.runtime.surroundings import around_calls
from shmexec.runtime.tape import Tape
from shmexec.scheduler import records as r
from shmexec.wire import functions
from shmexec.wire.channel import Waker
from shmexec.wire.messages import Mode
from shmexec.wire.pickling import load
from shmexec.wire.sources import Source
from shmexec.worker.surroundings import Surrounded

__all__ = ["ProcessPool", "RescuingPool", "make_pool"]


def make_pool(options: Options) -> Pool | InlinePool:
    """A pool that falls back, or what stands for one if none can be made."""
    try:
        return RescuingPool(options)
    except (OSError, MemoryError) as error:
        return ProcessPool(options, f"it could not be made: {error!r}")


class _Once:
    """Warns of a fallback, the first time it is asked to."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._first = [None]  # popped by one thread alone

    def warn(self, reason: str) -> None:
        """Warn, unless that was done.

        Raises:
            FallbackWarning: If the program has made errors of these.
        """
        try:
            self._first.pop()
        except IndexError:
            return
        msg = (
            f"pool {self._name!r} is broken ({reason}): calls that have not begun run "
            "in a new process each, without an initializer. Mend the cause and make a "
            "new executor"
        )
        warnings.warn(msg, FallbackWarning, stacklevel=3)


class _Apart:
    """A call that runs in a process of its own.

    Args:
        future: Its future, which nobody else resolves.
        name: What errors call it.
        unpack: Gives the function and arguments to run in the child; called in the
            thread that forks, when the call begins.
        timeout: Seconds it may run.
        warn: Called first; what it raises is the call's failure.
    """

    def __init__(
        self,
        future: Future[Any],
        name: str,
        unpack: Callable[[], tuple[Any, ...]],
        timeout: float | None,
        warn: Callable[[], None],
    ) -> None:
        self.future = future
        self.began = False
        self._name = name
        self._unpack = unpack
        self._timeout = timeout
        self._warn = warn
        self._lock = threading.Lock()
        self._stop: Waker | None = None

    def run(self) -> None:
        """Fork, wait and resolve the future, unless it was cancelled."""
        with self._lock:
            # Under the lock of `cancel`: one of them comes first.
            if self.future.cancelled():
                self.future.settle_cancelled()
                return
            if not self.future.begin():
                return
            self.began = True
        try:
            result = self._run()
        except BaseException as error:  # noqa: BLE001  (it belongs to the future)
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def _run(self) -> Any:
        self._warn()
        with self._lock:
            stop = self._stop = Waker()
        try:
            return run_in_child(
                _run_unpacked,
                self._unpack(),
                {},
                name=self._name,
                timeout=self._timeout,
                stop=stop.fileno,
            )
        finally:
            with self._lock:
                stop.close()

    def cancel(self, *, running: bool) -> bool:
        """As ``Pool.cancel``; the future itself is cancelled if it has not begun."""
        with self._lock:
            if self._stop is not None:
                if running:
                    self._stop.wake()  # `run_in_child` waits for it
                return running
        if not BaseFuture.cancel(self.future):
            return False
        self.future.settle_cancelled()
        return True


class _Threads:
    """Runs calls apart, so many at once; the threads end when there is nothing to do.

    No thread of these waits for another one; each waits for its own child process, and
    `run_in_child` says who wakes it.
    """

    def __init__(self, at_most: int, name: str) -> None:
        self._at_most = at_most
        self._name = name
        self._lock = threading.Lock()
        self._waiting: deque[tuple[_Apart, Callable[[], None]]] = deque()
        self._threads: set[threading.Thread] = set()

    def take(self, call: _Apart, done: Callable[[], None]) -> None:
        """Run a call as soon as there is room, then call ``done``."""
        with self._lock:
            self._waiting.append((call, done))
            if len(self._threads) >= self._at_most:
                return
            # Not daemonic: the interpreter's end waits for calls that were submitted.
            thread = threading.Thread(target=self._serve, name=f"{self._name}-apart")
            self._threads.add(thread)
            try:
                thread.start()
            except BaseException:
                self._threads.discard(thread)
                if not self._threads:
                    self._waiting.pop()
                    raise

    def _serve(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads.discard(threading.current_thread())
                    return
                call, done = self._waiting.popleft()
            try:
                call.run()
            finally:
                done()
                del call, done

    def join(self) -> None:
        """Wait until all have ended, but for the thread that asks."""
        while True:
            with self._lock:
                threads = self._threads - {threading.current_thread()}
            if not threads:
                return
            for thread in threads:
                thread.join()


# -- in the child --------------------------------------------------------------------------


def _run_unpacked(
    number: int,
    key: bytes,
    pickled: bytes,
    payload: Any,
    buffers: list[np.ndarray],
    spilled: bool,
) -> Any:
    """Unpack a call and run it, as a worker does."""
    if spilled:
        payload = buffers.pop()
    if not key:
        fn, args, kwargs, *around = load(payload, buffers)
    else:
        fn = pickle.loads(pickled) if pickled else functions.find_by_name(key)
        args, kwargs, *around = load(payload, buffers)
    if around:
        fn = Surrounded(fn, around[0], number)
    return fn(*args, **kwargs)


# -- a pool that may break ------------------------------------------------------------------


class RescuingPool(Pool):
    """A pool whose calls run apart if it breaks before they began.

    ``_apart`` has the calls that were taken from the broken pool and are not done; the
    pool does not end before it is empty. ``_to_start`` has those of them that no thread
    was given yet: they were taken under the pool's lock, where no thread is started.
    """

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self._once = _Once(options.name)
        self._threads = _Threads(options.max_workers, options.name)
        self._apart: dict[int, _Apart] = {}
        self._to_start: deque[tuple[PackedCall, _Apart]] = deque()
        self._taken = 0
        self._ends = {"done": 0, "failed": 0, "cancelled": 0}

    def check_open(self) -> None:
        """As that of any pool, but that a broken one takes calls."""
        if self._rescues() and not self.stands.closed and not self.stands.forked:
            return
        super().check_open()

    def _rescues(self) -> bool:
        """Whether it is broken in such a way that calls run apart."""
        broken, refused = self._machine.broken, self._replies.refused
        return bool(broken) and not refused and self.stands.torn is None

    def enter(
        self, call: PackedCall, options: CallOptions, worker: int | None = None
    ) -> Future[Any]:
        """As that of any pool."""
        pinned = worker is not None or options.worker is not None
        call.only_here = call.only_here or pinned
        future = super().enter(call, options, worker)
        self._start_apart()
        return future

    def broadcast(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> list[Future[Any]]:
        """As that of any pool: without workers there is nobody to run it."""
        super().check_open()
        if self._machine.broken:
            raise self.stands.error()
        return super().broadcast(fn, args, kwargs)

    def _fail(self, command: r.Fail) -> None:
        # "broken" is said of calls only that have not begun, or may run again.
        call = self._calls.get(command.call)
        if (
            command.why != "broken"
            or call is None
            or call.only_here
            or call.credit
            or call.sealed
            or not self._rescues()
        ):
            super()._fail(command)
            return
        del self._calls[call.number]
        call.future.wait_again()
        reason = "; ".join(self._machine.broken)
        apart = _Apart(
            call.future,
            f"{call.number} of {call.name}",
            partial(self._unpack, call),
            call.timeout,
            partial(self._once.warn, reason),
        )
        self._taken += 1
        self._apart[call.number] = apart
        self._to_start.append((call, apart))

    def _unpack(self, call: PackedCall) -> tuple[Any, ...]:
        """What the child needs."""
        views = [_view(self.host, argument) for argument in call.arguments]
        ref = call.function
        return call.number, ref.key, ref.pickled, call.payload, views, call.spilled

    def _start_apart(self) -> None:
        """Give threads to calls that were taken; no lock is held."""
        while self._to_start:
            try:
                call, apart = self._to_start.popleft()
            except IndexError:
                return  # another thread was quicker
            try:
                self._threads.take(apart, partial(self._ended_apart, call))
            except RuntimeError as error:  # the interpreter is ending
                broken = self.stands.error()
                broken.__cause__ = error
                apart.future.set_exception(broken)
                self._ended_apart(call)

    def _ended_apart(self, call: PackedCall) -> None:
        self.room.give_back(call.blocks)
        with self._lock:
            self._ends[_end(self._apart.pop(call.number).future)] += 1
        # Whoever leads may do so for this very future, or wait for the pool's end.
        self.leading.wake()

    def has_resolutions(self) -> bool:
        """As that of any pool; calls that are to run apart wait for `resolve`, too."""
        return bool(self._to_start) or super().has_resolutions()

    def resolve(self) -> None:
        """As that of any pool; starts what is to run apart."""
        self._start_apart()
        super().resolve()

    def finished(self) -> bool:
        """As that of any pool, and when no call runs apart any more."""
        return super().finished() and (self.stands.forked or not self._apart)

    def cancel(self, number: int, *, running: bool) -> bool:
        """As that of any pool."""
        apart = self._apart.get(number)
        if apart is None:
            return super().cancel(number, running=running)
        return apart.cancel(running=running)

    def shutdown(self, *, wait: bool = True, cancel_futures: bool = False) -> None:
        """As that of any pool; waits for calls that run apart, too."""
        if cancel_futures and not self.stands.forked:
            for apart in list(self._apart.values()):
                apart.cancel(running=False)
        super().shutdown(wait=wait, cancel_futures=cancel_futures)

    def after_fork_in_child(self, keep: set[int]) -> None:
        """As that of any pool."""
        apart, self._apart = self._apart, {}
        super().after_fork_in_child(keep)
        error = closed_error(self.options, forked=True, exiting=False)
        for call in apart.values():
            call.future.disown(error)

    def stats(self) -> Stats:
        """As those of any pool; calls that run apart are among them."""
        return self._with_apart(super().stats())

    def glimpse(self) -> Glimpse:
        """As that of any pool."""
        seen = super().glimpse()
        if seen.stats is None:
            return seen
        return seen._replace(stats=self._with_apart(seen.stats))

    def _with_apart(self, stats: Stats) -> Stats:
        with self._lock:
            ends, calls = dict(self._ends), list(self._apart.values())
            taken = self._taken
        running = sum(call.began for call in calls)
        return replace(
            stats,
            pending=stats.pending + len(calls) - running,
            running=stats.running + running,
            done=stats.done + ends["done"],
            failed=stats.failed - taken + ends["failed"],
            cancelled=stats.cancelled + ends["cancelled"],
        )


def _view(host: Host, argument: Argument) -> np.ndarray:
    """A buffer of a packed call as a worker would see it; has a lease of its own."""
    key, offset, nbytes, mode = argument
    with host.lock:
        lease = host.lease(key, HOST)
        segment = host.segment_of(key[0])
    readonly = mode in {Mode.SHARED, Mode.COPY_ON_WRITE}
    place = (key[0], offset, nbytes)
    return lend(segment, place, lease, host.returns, readonly=readonly)


# -- in the place of a pool -----------------------------------------------------------------


class ProcessPool(InlinePool):
    """Stands for a pool that could not be made.

    Args:
        options: The settings of that pool.
        reason: Why it could not.
    """

    def __init__(self, options: Options, reason: str) -> None:
        super().__init__(options)
        self.blocks = NoBlocks(writes=False)
        self._once = _Once(options.name)
        self._reason = reason
        self._threads = _Threads(options.max_workers, options.name)
        self._lock = threading.Lock()
        self._calls: dict[int, _Apart] = {}
        self._ends = {"done": 0, "failed": 0, "cancelled": 0}

    def submit(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        options: CallOptions,
        worker: int | None = None,
        keep: Callable[[Any], object] | None = None,
    ) -> Future[Any]:
        """Run the call in a process of its own, on what its arguments are now."""
        with self._lock:
            if self._closed:
                raise closed_error(self.options, forked=False, exiting=False)
            if options.worker is not None:
                raise self._no_workers()
            number = next(self._numbers)
        future: Future[Any] = Future()
        future.keep = keep
        try:
            around = around_calls(self.options.context)
            name, ref, pickled = pickle_call(fn, args, kwargs, None, around)
        except SerializationError as error:
            future.set_exception(error)
            return future
        buffers = []
        for source in pickled.sources:
            assert isinstance(source, Source)  # nothing is placed here
            buffers.append(np.empty(source.nbytes, np.uint8))
            source.fill(buffers[-1])
        payload = bytes(pickled.payload)
        parts = (number, ref.key, ref.pickled, payload, buffers, False)
        warn = partial(self._once.warn, self._reason)
        name = f"{number} of {name}"
        apart = _Apart(future, name, lambda: parts, options.timeout, warn)
        future.attach(cast("Pool", self), number)
        self._calls[number] = apart
        self._threads.take(apart, partial(self._ended, number))
        return future

    def _ended(self, number: int) -> None:
        with self._lock:
            self._ends[_end(self._calls.pop(number).future)] += 1

    def cancel(self, number: int, *, running: bool) -> bool:
        """As that of a pool."""
        apart = self._calls.get(number)
        return apart is not None and apart.cancel(running=running)

    def stream(self, *_: Any) -> NoReturn:
        """Items come from workers only."""
        raise self._no_workers()

    @property
    def leading(self) -> ProcessPool:
        """For futures: they wait for their own threads, which nobody leads."""
        return self

    def drive(self, _future: Future[Any], _deadline: object) -> None:
        """Nothing to read in this thread."""

    def expect_callback(self) -> None:
        """The thread of the call calls it."""

    def broadcast(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> list[Future[Any]]:
        """There are no workers to run it."""
        raise self._no_workers()

    def _no_workers(self) -> PoolBroken:
        msg = f"pool {self.options.name!r} has no workers: {self._reason}"
        return PoolBroken(msg, (self._reason,))

    def width(self) -> int:
        """How many calls may run at once."""
        return self.options.max_workers

    def start_recording(self, tape: Tape) -> NoReturn:
        """There are no workers to be seen at work."""
        msg = (
            f"{self._no_workers()}: calls run in a process each, which none can profile"
        )
        raise RuntimeError(msg)

    def dump(self) -> str:
        """See :meth:`shmexec.Executor.dump`."""
        stats = self.stats()
        return (
            f"executor {self.options.name!r}: it has no workers, since {self._reason}\n"
            f"  {stats.running} calls run in a process each, {stats.pending} pending\n"
        )

    def health(self) -> Health:
        """See :meth:`shmexec.Executor.health`."""
        pending = self.stats().pending
        state = "closed" if self._closed else "failed"
        failed = self._reason
        return replace(
            super().health(), state=state, pending=pending, last_failure=failed
        )

    def stats(self) -> Stats:
        """Figures, most of them zero."""
        with self._lock:
            ends, calls = dict(self._ends), list(self._calls.values())
        running = sum(call.began for call in calls)
        return replace(
            super().stats(),
            max_workers=self.options.max_workers,
            submitted=sum(ends.values()) + len(calls),
            pending=len(calls) - running,
            running=running,
            done=ends["done"],
            failed=ends["failed"],
            cancelled=ends["cancelled"],
        )

    def shutdown(self, *, wait: bool = True, cancel_futures: bool = False) -> None:
        """Take no more calls; those that were submitted still run."""
        with self._lock:
            self._closed = True
            calls = list(self._calls.values())
        if cancel_futures:
            for apart in calls:
                apart.cancel(running=False)
        if wait:
            self._threads.join()

    def abandon(self) -> None:
        """The executor was garbage-collected: its calls still run."""
        self._closed = True


def _end(future: Future[Any]) -> str:
    """Under which figure a settled future counts."""
    if future.cancelled():
        return "cancelled"
    return "done" if future.exception(0) is None else "failed"
