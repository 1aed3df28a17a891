"""The systems as :mod:`benchmarks.reliability` uses them: pools in which calls break.

Each is used as a careful program would use it: what a pool can do about a fault it may
do, and one that is broken for good is closed and made anew as soon as it says so. Only
what had been submitted by then is lost.
"""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from typing import Any, Protocol

CLOSED_WITHIN = 2.0
"""Seconds in which a pool that works gives a result, and can be closed."""


class NeverCame(Exception):
    """A call did not end in the time that it was given."""


class Ticket(Protocol):
    """A call that was submitted."""

    def result(self, timeout: float) -> Any:
        """Its result.

        Raises:
            NeverCame: If there is none in so many seconds.
        """


class Pool:
    """A pool that is open.

    Attributes:
        remade: How often it had to be made anew.
        stops: It can stop a call at a time-out.
    """

    stops = False

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.remade = 0

    def submit(self, fn: Callable[..., Any], *args: Any) -> Ticket:
        """Ask for a call."""
        raise NotImplementedError

    def submit_for(
        self, seconds: float, fn: Callable[..., Any], *args: Any
    ) -> Ticket | None:
        """Ask for a call that is stopped after so long; None if that cannot be."""
        raise NotImplementedError

    def remake(self) -> None:
        """Close what is broken, if it says so, and open another."""

    def memory(self) -> int | None:
        """Bytes of shared memory in use, after it was closed; None if it has none."""
        return None

    def close(self) -> None:
        """Close it."""
        raise NotImplementedError


class _Future:
    """A ticket, of a future."""

    def __init__(self, future: Any) -> None:
        self._future = future

    def result(self, timeout: float) -> Any:
        try:
            return self._future.result(timeout)
        except TimeoutError:
            if self._future.done():
                raise
            raise NeverCame from None


class _Futures(Pool):
    """An executor of ``concurrent.futures``; once broken, it is for good."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._executor = self._open()

    def _open(self) -> Executor:
        return ProcessPoolExecutor(self.workers)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Ticket:
        try:
            return _Future(self._executor.submit(fn, *args))
        except BrokenExecutor:
            self.remake()
            return _Future(self._executor.submit(fn, *args))

    def remake(self) -> None:
        try:
            self._executor.submit(int).result(CLOSED_WITHIN)
        except (BrokenExecutor, TimeoutError):
            self._executor.shutdown(wait=True)
            self._executor = self._open()
            self.remade += 1

    def close(self) -> None:
        self._executor.shutdown(wait=True)


class _Loky(_Futures):
    def _open(self) -> Executor:
        from loky import get_reusable_executor

        executor: Executor = get_reusable_executor(self.workers)
        return executor


class _Shmexec(_Futures):
    """Replaces its workers itself, so that `remake` is never needed."""

    stops = True

    def _open(self) -> Executor:
        import shmexec

        return shmexec.Executor(self.workers, threads_per_worker=1)

    def submit_for(self, seconds: float, fn: Callable[..., Any], *args: Any) -> Ticket:
        executor: Any = self._executor
        return _Future(executor.options(timeout=seconds).submit(fn, *args))

    def memory(self) -> int:
        import shmexec

        return shmexec.stats().used


class _Result:
    """A ticket of ``multiprocessing.Pool``."""

    def __init__(self, result: Any) -> None:
        self._result = result

    def result(self, timeout: float) -> Any:
        self._result.wait(timeout)
        if not self._result.ready():
            raise NeverCame
        return self._result.get()


class _Multiprocessing(Pool):
    """It replaces a dead worker, and never tells of the call that it ran.

    One that died as it held a lock of the queues leaves it held: the pool hangs then,
    and is made anew.
    """

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._pool = multiprocessing.Pool(workers)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Ticket:
        return _Result(self._pool.apply_async(fn, args))

    def remake(self) -> None:
        try:
            self.submit(int).result(CLOSED_WITHIN)
        except NeverCame:
            self.close()
            self._pool = multiprocessing.Pool(self.workers)
            self.remade += 1

    def close(self) -> None:
        # Not `close` and `join`: they wait for the calls that never come.
        thread = threading.Thread(target=self._pool.terminate, daemon=True)
        thread.start()
        thread.join(CLOSED_WITHIN)


class _Pebble(Pool):
    """Replaces dead workers; what it did not foresee ends it, and `submit` says so."""

    stops = True

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._pool = self._open()

    def _open(self) -> Any:
        from pebble import ProcessPool

        return ProcessPool(self.workers)

    def submit(self, fn: Callable[..., Any], *args: Any) -> Ticket:
        if not self._pool.active:
            self._remake()
        return _Future(self._pool.schedule(fn, args=args))

    def remake(self) -> None:
        try:
            self.submit(int).result(CLOSED_WITHIN)
        except Exception:  # noqa: BLE001  (any: it does not work)
            self._remake()

    def _remake(self) -> None:
        self.close()
        self._pool = self._open()
        self.remade += 1

    def submit_for(self, seconds: float, fn: Callable[..., Any], *args: Any) -> Ticket:
        return _Future(self._pool.schedule(fn, args=args, timeout=seconds))

    def close(self) -> None:
        self._pool.close()
        try:
            self._pool.join(CLOSED_WITHIN)
        except TimeoutError:
            self._pool.stop()
            self._pool.join()


class _RayTicket:
    def __init__(self, reference: Any) -> None:
        self.reference = reference

    def result(self, timeout: float) -> Any:
        import ray

        try:
            return ray.get(self.reference, timeout=timeout)
        except ray.exceptions.GetTimeoutError:
            raise NeverCame from None


class _Ray(Pool):
    """Without retries, as all others. It stops a call by ``cancel(force=True)``."""

    stops = True

    def __init__(self, workers: int) -> None:
        import ray

        super().__init__(workers)
        ray.init(
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.CRITICAL,
        )
        self._remotes: dict[Any, Any] = {}

    def submit(self, fn: Callable[..., Any], *args: Any) -> _RayTicket:
        import ray

        if fn not in self._remotes:
            self._remotes[fn] = ray.remote(max_retries=0)(fn)
        return _RayTicket(self._remotes[fn].remote(*args))

    def submit_for(self, seconds: float, fn: Callable[..., Any], *args: Any) -> Ticket:
        import ray

        ticket = self.submit(fn, *args)

        def stop() -> None:
            time.sleep(seconds)
            ray.cancel(ticket.reference, force=True)

        threading.Thread(target=stop, daemon=True).start()
        return ticket

    def close(self) -> None:
        import ray

        ray.shutdown()


POOLS: dict[str, Callable[[int], Pool]] = {
    "shmexec": _Shmexec,
    "ppe-fork": _Futures,
    "pool": _Multiprocessing,
    "loky": _Loky,
    "pebble": _Pebble,
    "ray": _Ray,
}
"""By their names in :data:`shmexec.comparing.systems.SYSTEMS`."""
