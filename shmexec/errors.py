"""Everything shmexec raises, in one tree, by who is to blame.

::

    ShmexecError
    ├── RemoteError            the call's own exception, which could not be pickled
    ├── SerializationError     an argument or a result cannot be pickled (PicklingError)
    ├── WorkerDied             the process ended in mid-call (BrokenProcessPool)
    ├── CallTimeout            ``timeout=`` passed (TimeoutError)
    ├── CallStopped            stopped by ``future.cancel(running=True)``
    ├── PoolBroken             no worker can be started any more (BrokenProcessPool)
    ├── UnknownFunction        a script has no function of that name (AttributeError)
    ├── WrongArguments         a script's function does not take them (TypeError)
    ├── SharedMemoryFull       over the budget and not allowed to wait (MemoryError)
    │   └── MemoryScarce       the machine has too little memory left
    ├── ClusterError           a cluster, or a node of it, cannot be used (RuntimeError)
    ├── QueueFull              no more items are taken now (queue.Full)
    └── PoolClosed             used after shutdown, or in a forked child (RuntimeError)

An exception that user code raised in a worker arrives as itself, with
:class:`RemoteTraceback` as its cause. Each error says what happened, to which call, and
what to do next, in that order.

Workers import this module, and shall not pay for ``concurrent.futures``: what derives
from its errors, and from those of ``queue``, is in ``shmexec.breakage``, and comes from there when it is asked for.
"""

from __future__ import annotations

import pickle
from functools import partial
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from shmexec.breakage import CallStopped, PoolBroken, QueueFull, WorkerDied

__all__ = [
    "CallStopped",
    "CallTimeout",
    "ClusterError",
    "FallbackWarning",
    "MemoryScarce",
    "MemoryWarning",
    "PoolBroken",
    "PoolClosed",
    "QueueFull",
    "RemoteError",
    "RemoteTraceback",
    "SerializationError",
    "SharedMemoryFull",
    "ShmexecError",
    "UnknownFunction",
    "WorkerDied",
    "WrongArguments",
]


class ShmexecError(Exception):
    """Base of all errors that shmexec itself raises.

    Example:
        >>> try:
        ...     ex.submit(os._exit, 3).result()
        ... except shmexec.ShmexecError as error:
        ...     print(type(error).__name__)
        WorkerDied
    """

    _keywords: ClassVar[tuple[str, ...]] = ()
    """What the constructor takes beside the message; kept as attributes."""

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with what the constructor takes, and with notes."""
        keywords = {name: self.__dict__[name] for name in self._keywords}
        return partial(type(self), **keywords), self.args, self.__dict__


class RemoteTraceback(Exception):
    """Carries a worker's traceback as text; the cause of the call's own exception.

    Example:
        >>> error = ex.submit(int, "x").exception()
        >>> "ValueError: invalid literal" in error.__cause__.text
        True
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class RemoteError(ShmexecError):
    """The call raised an exception that cannot be pickled, or not be rebuilt here.

    Attributes:
        type_name: Qualified name of the exception's type.
        message: Its ``str()``.
        traceback_text: The worker's formatted traceback.

    Example:
        >>> class Odd(Exception):
        ...     def __reduce__(self):
        ...         raise TypeError("cannot be pickled")
        >>> def fail():
        ...     raise Odd
        >>> ex.submit(fail).exception().type_name
        'Odd'
    """

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with what the constructor takes, and with notes."""
        args = (self.type_name, self.message, self.traceback_text)
        return type(self), args, self.__dict__

    def __init__(self, type_name: str, message: str, traceback_text: str) -> None:
        super().__init__(f"{type_name}: {message}")
        self.type_name = type_name
        self.message = message
        self.traceback_text = traceback_text


class SerializationError(ShmexecError, pickle.PicklingError):
    """An argument, a function or a result cannot be pickled.

    Attributes:
        path: Where the culprit is, such as ``args[1]['model'].lock``.

    Example:
        >>> import threading
        >>> ex.submit(len, [1, threading.Lock()]).exception().path
        'args[0][1]'
    """

    _keywords: ClassVar[tuple[str, ...]] = ("path",)

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class CallTimeout(ShmexecError, TimeoutError):
    """The call ran longer than ``timeout=`` allows; its worker was stopped.

    Attributes:
        seconds: The limit that passed.
        stack: The Python stacks of the worker's threads at that moment, as faulthandler
            prints them, and where the coroutines of its event loop waited. Of a call that
            was cancelled beside others: its own traceback. Empty if the call blocked all
            signals.

    Example:
        >>> ex.options(timeout=0.1).submit(time.sleep, 3600).exception().seconds
        0.1
    """

    _keywords: ClassVar[tuple[str, ...]] = ("seconds", "stack")

    def __init__(self, message: str, *, seconds: float, stack: str = "") -> None:
        super().__init__(message)
        self.seconds = seconds
        self.stack = stack


class SharedMemoryFull(ShmexecError, MemoryError):
    """The shared-memory budget is used up and waiting for room was not possible.

    Attributes:
        needed: Bytes asked for.
        used: Bytes in use now.
        free: Bytes of the budget that are free.
        budget: The limit in bytes (``max_shared_memory``).

    Example:
        >>> with shmexec.Executor(1, max_shared_memory="1MB") as small:
        ...     try:
        ...         small.submit(len, np.ones(1_000_000))
        ...     except shmexec.SharedMemoryFull as error:
        ...         print(error.needed, error.budget)
        8000000 1000000
    """

    _keywords: ClassVar[tuple[str, ...]] = ("needed", "used", "budget")

    def __init__(self, message: str, *, needed: int, used: int, budget: int) -> None:
        super().__init__(message)
        self.needed = needed
        self.used = used
        self.free: int = max(0, budget - used)
        self.budget = budget


class MemoryScarce(SharedMemoryFull):
    """The machine, or its cgroup, has too little memory left for calls to be taken.

    Attributes:
        needed: Bytes asked for; 0 for a call without large arguments.
        used: Bytes of it in use, by whatever program.
        free: Bytes that are left.
        budget: Bytes that there are in all.
        threshold: Bytes that shall be left (``min_free_memory``).

    Example:
        >>> try:
        ...     print(ex.submit(len, np.ones(1_000_000)).result())
        ... except shmexec.MemoryScarce as error:
        ...     print(f"{error.free} bytes left: try later")
        1000000
    """

    _keywords: ClassVar[tuple[str, ...]] = ("needed", "used", "budget", "threshold")

    def __init__(
        self, message: str, *, needed: int, used: int, budget: int, threshold: int
    ) -> None:
        super().__init__(message, needed=needed, used=used, budget=budget)
        self.threshold = threshold


class UnknownFunction(ShmexecError, AttributeError, KeyError):
    """A script has no function of that name.

    Attributes:
        names: What it has.
        closest: The most similar of them, or None.

    Example:
        >>> _ = Path("model.py").write_text("def double(x): return 2 * x")
        >>> try:
        ...     ex.script("model.py").duoble(21)
        ... except shmexec.UnknownFunction as error:
        ...     print(error.closest)
        double
    """

    _keywords: ClassVar[tuple[str, ...]] = ("names", "closest")

    def __init__(
        self, message: str, *, names: tuple[str, ...] = (), closest: str | None = None
    ) -> None:
        super().__init__(message)
        self.names = names
        self.closest = closest

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would put it in quotes


class WrongArguments(ShmexecError, TypeError):
    """A script's function does not take these arguments; nothing was sent.

    A ``TypeError`` that the function raises itself comes through the future.

    Example:
        >>> _ = Path("model.py").write_text("def double(x): return 2 * x")
        >>> ex.script("model.py").double(1, 2)
        Traceback (most recent call last):
        ...
        shmexec.errors.WrongArguments: ...
    """


class PoolClosed(ShmexecError, RuntimeError):
    """The executor was shut down, or belongs to another process.

    Example:
        >>> ex = shmexec.Executor(1)
        >>> ex.shutdown()
        >>> ex.submit(abs, -1)
        Traceback (most recent call last):
        ...
        shmexec.errors.PoolClosed: ...
    """


class ClusterError(ShmexecError, RuntimeError):
    """A cluster cannot be used: it is not there, lacks shmexec, or has another version.

    Example:
        >>> try:
        ...     raise shmexec.ClusterError("no scheduler at tcp://10.0.0.1:8786")
        ... except shmexec.ShmexecError as error:
        ...     print(error)
        no scheduler at tcp://10.0.0.1:8786
    """


class MemoryWarning(UserWarning):
    """A pool needs more memory than it may take, or than the machine has left.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("ignore", shmexec.MemoryWarning)
        ...     ex = shmexec.Executor(12)  # more than eight
        >>> ex.shutdown()
    """


class FallbackWarning(UserWarning):
    """A pool is broken; its calls run in a process each, as ``fallback=`` asked for.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", shmexec.FallbackWarning)  # do not go on that way
        ...     with shmexec.Executor(1, fallback="process-per-call") as ex:
        ...         ex.submit(abs, -1).result()
        1
    """


def __getattr__(name: str) -> object:
    if name not in {"CallStopped", "PoolBroken", "QueueFull", "WorkerDied"}:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from shmexec import breakage

    value = globals()[name] = getattr(breakage, name)
    return value
