"""The errors that derive from those of ``concurrent.futures`` and ``queue``.

Part of ``shmexec.errors``; import them from there: only who raises or catches one pays
for those modules.
"""

from __future__ import annotations

import queue
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from typing import ClassVar

from shmexec.errors import ShmexecError

__all__ = ["CallStopped", "PoolBroken", "QueueFull", "WorkerDied"]


class WorkerDied(ShmexecError, BrokenProcessPool):
    """The worker process ended while it ran this call. Other calls are not affected.

    Attributes:
        pid: Process id of the worker.
        exitcode: As ``multiprocessing.Process.exitcode``: negative for a signal,
            ``None`` if unknown.
        memory: Private memory in bytes when last sampled, ``None`` if never.
        fault_text: What faulthandler wrote before the end, often empty.

    Example:
        >>> error = ex.submit(os._exit, 3).exception()
        >>> type(error).__name__, error.exitcode
        ('WorkerDied', 3)
    """

    _keywords: ClassVar[tuple[str, ...]] = ("pid", "exitcode", "memory", "fault_text")

    def __init__(
        self,
        message: str,
        *,
        pid: int | None = None,
        exitcode: int | None = None,
        memory: int | None = None,
        fault_text: str = "",
    ) -> None:
        super().__init__(message)
        self.pid = pid
        self.exitcode = exitcode
        self.memory = memory
        self.fault_text = fault_text


class CallStopped(ShmexecError, CancelledError):
    """A running call was stopped by ``future.cancel(running=True)``.

    Attributes:
        stack: Where it was, as :attr:`CallTimeout.stack`.

    Example:
        >>> def work(path):
        ...     Path(path).touch()
        ...     time.sleep(3600)
        >>> future = ex.submit(work, "began")
        >>> while not Path("began").exists():
        ...     time.sleep(0.01)
        >>> future.cancel(running=True)
        True
        >>> try:
        ...     future.result()
        ... except shmexec.CallStopped as error:
        ...     print("in work" in error.stack)
        True
    """

    _keywords: ClassVar[tuple[str, ...]] = ("stack",)

    def __init__(self, message: str = "", *, stack: str = "") -> None:
        super().__init__(message)
        self.stack = stack


class PoolBroken(ShmexecError, BrokenProcessPool):
    """No worker can be started any more.

    Attributes:
        reasons: Why each of the last workers failed to start, oldest first.

    Example:
        >>> with shmexec.Executor(1, initializer=int, initargs=("x",)) as broken:
        ...     error = broken.submit(abs, -1).exception()
        >>> type(error).__name__, "ValueError" in error.reasons[0]
        ('PoolBroken', True)
    """

    _keywords: ClassVar[tuple[str, ...]] = ("reasons",)

    def __init__(self, message: str, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.reasons = reasons


class QueueFull(ShmexecError, queue.Full):
    """As many items wait as may, and waiting for room is not allowed.

    Attributes:
        limit: How many that is (a batcher's ``max_queue``, a pipeline's ``buffersize``).

    Example:
        >>> def same(rows):
        ...     while not Path("go").exists():
        ...         time.sleep(0.01)
        ...     return rows
        >>> with shmexec.Executor(1) as one:
        ...     batcher = one.batcher(same, max_queue=1, on_full="refuse")
        ...     futures = [batcher(1.0), batcher(2.0)]  # one runs, one waits
        ...     try:
        ...         batcher(3.0)
        ...     except shmexec.QueueFull as error:
        ...         print(error.limit)
        ...     Path("go").touch()
        1
    """

    _keywords: ClassVar[tuple[str, ...]] = ("limit",)

    def __init__(self, message: str, *, limit: int) -> None:
        super().__init__(message)
        self.limit = limit


for _cls in (CallStopped, PoolBroken, QueueFull, WorkerDied):
    _cls.__module__ = ShmexecError.__module__  # where they are found and pickled
