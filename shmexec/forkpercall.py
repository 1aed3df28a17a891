"""The baseline: one fresh forked process for each call, behind the same facade.

A forked child sees the function and its arguments by copy-on-write, so they cost nothing
and need not be picklable; the result comes back through a pipe. Nothing here uses the
pool's memory, wire or scheduler: it is what those are measured against, and a simple
way to run a few long calls that must not share a process.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import struct
import sys
import threading
import warnings
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from shmexec.deadline import Deadline
from shmexec.errors import (
    CallStopped,
    CallTimeout,
    PoolClosed,
    RemoteError,
    RemoteTraceback,
    SerializationError,
    WorkerDied,
)
from shmexec.options import WORKERS_AT_MOST, default_workers, positive_int
from shmexec.worker.forked import COUNT, RAISED, RESULT, UNPICKLABLE, run_forked

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import override
else:

    def override(method: Any) -> Any:
        """Stand in for ``typing.override``, which Python 3.11 lacks."""
        return method


__all__ = ["ForkPerCallExecutor"]

P = ParamSpec("P")
T = TypeVar("T")

_PIPE_BYTES = 1 << 20


class _ParentSide:
    """The descriptors that the parent keeps for its running calls.

    ``lock`` is held from making a pipe until the parent has closed the writing end, so
    that no two calls of this module fork inside that window and a child never holds
    another child's writing end. ``descriptors`` (reading ends, lifelines and pidfds) are
    closed in every forked child: one that kept a sibling's would have that one live on,
    blocked in ``write`` perhaps, after the parent was killed.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.descriptors: set[int] = set()

    def close(self, fd: int) -> None:
        # Forgotten first: a fork in between leaks it into a child, which is harmless;
        # the other order could close another file that got the same number.
        self.descriptors.discard(fd)
        os.close(fd)

    def forget_in_child(self) -> None:
        self.lock = threading.Lock()
        for fd in self.descriptors:
            with suppress(OSError):
                os.close(fd)
        self.descriptors = set()


_parent = _ParentSide()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_parent.forget_in_child)


class ForkPerCallExecutor(Executor):
    """Runs each call in a process forked for it.

    The child sees the arguments as they are when its call *starts*, which for a call
    that had to wait is later than ``submit``. A print in the child goes to the same
    standard output. As with any fork of a process that has threads, a lock held by
    another thread at that moment stays locked in the child.

    Args:
        max_workers: Processes at once, at least 1. Default: ``SHMEXEC_WORKERS``, else
            the usable CPUs, eight at most.

    Raises:
        TypeError: ``max_workers`` is no integer.
        ValueError: ``max_workers`` is not from 1 to 4096.
        NotImplementedError: This system has no ``os.fork``.

    Example:
        >>> with shmexec.ForkPerCallExecutor(2) as ex:
        ...     ex.submit(lambda x: x + 1, 41).result()
        42
    """

    def __init__(self, max_workers: int | None = None) -> None:
        if not hasattr(os, "fork"):
            msg = (
                "ForkPerCallExecutor needs os.fork, which this system does not have; "
                "use shmexec.Executor"
            )
            raise NotImplementedError(msg)
        self._max_workers = (
            default_workers()
            if max_workers is None
            else positive_int("max_workers", max_workers, WORKERS_AT_MOST)
        )
        self._pid = os.getpid()
        # One thread for each running call: it forks, reads and reaps.
        self._threads = ThreadPoolExecutor(
            self._max_workers, thread_name_prefix="shmexec-fork"
        )

    @override
    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Future[T]:
        """Run ``fn(*args, **kwargs)`` in a process of its own.

        Args:
            fn: Any callable, also a lambda or a closure.
            *args: Its arguments, not copied and not pickled.
            **kwargs: Its keyword arguments.

        Returns:
            A future of the result, which is pickled.

        Raises:
            TypeError: ``fn`` is not callable.
            PoolClosed: After ``shutdown``, or in a forked child of the process that
                made this executor.

        Example:
            >>> with shmexec.ForkPerCallExecutor(1) as forking:
            ...     forking.submit(os.getpid).result() == os.getpid()
            False
        """
        if not callable(cast("object", fn)):
            msg = f"submit needs a callable, not {fn!r}"
            raise TypeError(msg)
        if os.getpid() != self._pid:
            msg = (
                f"submit({_name_of(fn)}): this ForkPerCallExecutor belongs to process "
                f"{self._pid}; make a new one in this process"
            )
            raise PoolClosed(msg)
        try:
            return self._threads.submit(run_in_child, fn, args, kwargs)
        except RuntimeError as error:
            msg = f"submit({_name_of(fn)}): {error}"
            raise PoolClosed(msg) from None

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; those that run are finished.

        Args:
            wait: Return only when all calls are done.
            cancel_futures: Cancel the calls that have not started.

        Example:
            >>> forking = shmexec.ForkPerCallExecutor(1)
            >>> future = forking.submit(abs, -1)
            >>> forking.shutdown()
            >>> future.result()
            1
        """
        if os.getpid() == self._pid:
            self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)

    def __repr__(self) -> str:
        return f"<shmexec.ForkPerCallExecutor: {self._max_workers} processes at most>"


def _name_of(fn: Callable[..., object]) -> str:
    return str(getattr(fn, "__qualname__", None) or repr(fn))


# ---- the parent's side of one call


def run_in_child(
    fn: Callable[..., T],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    name: str = "",
    timeout: float | None = None,
    stop: int | None = None,
) -> T:
    """Run a call in a process forked for it, and wait for what comes of it.

    Args:
        fn: The function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        name: What errors call it; by default the function's name.
        timeout: Seconds after which the process is killed.
        stop: A descriptor; the process is killed when that becomes readable.

    Raises:
        WorkerDied: The process ended before it sent a result.
        CallTimeout: The time was over.
        CallStopped: ``stop`` became readable.
        Exception: What the call raised.
    """
    name = name or _name_of(fn)
    limit = _Limit(name, timeout, stop)
    pid, reader, lifeline = _fork(fn, args, kwargs)
    exitcode: int | None = None
    try:
        frames = _receive(pid, reader, limit)
    except BaseException:
        # No more reading here (out of memory, say), so the child could block for ever.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        raise
    finally:
        _parent.close(reader)
        exitcode = _reap(pid)
        _parent.close(lifeline)
    if frames is None:
        raise _death(name, pid, exitcode)
    return cast("T", _unpack(name, frames))


class _Limit:
    """When to wait no longer for a call: its time is over, or somebody stopped it."""

    def __init__(self, name: str, seconds: float | None, stop: int | None) -> None:
        self._name = name
        self._seconds = seconds
        self._deadline = Deadline(seconds)
        self.stop = stop

    def select(self, selector: selectors.BaseSelector) -> set[int]:
        """Descriptors that are ready: woken by the child's data or its death.

        Raises:
            CallTimeout: The time is over.
            CallStopped: The call was stopped.
        """
        while True:
            ready = {key.fd for key, _ in selector.select(self._deadline.remaining())}
            if self.stop in ready:
                msg = f"the call {self._name} was stopped by cancel(running=True)"
                raise CallStopped(msg)
            if ready:
                return ready
            if self._deadline.passed():
                seconds = self._seconds or 0.0
                msg = (
                    f"the call {self._name} ran longer than its timeout of "
                    f"{seconds:g} s; its process was stopped"
                )
                raise CallTimeout(msg, seconds=seconds)


def _fork(
    fn: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[int, int, int]:
    """Fork for a call: the child, what it sends, and the lifeline that it holds."""
    with _parent.lock, ExitStack() as kept, ExitStack() as childs:
        reader, writer = os.pipe()
        _parent.descriptors.add(reader)
        kept.callback(_parent.close, reader)
        childs.callback(os.close, writer)
        _widen(writer)
        line, lifeline = os.pipe()
        _parent.descriptors.add(lifeline)
        kept.callback(_parent.close, lifeline)
        childs.callback(os.close, line)
        _silence_fork_warning()
        pid = os.fork()
        if pid == 0:
            run_forked(writer, line, fn, args, kwargs)
        kept.pop_all()
    return pid, reader, lifeline


def _widen(fd: int) -> None:
    """Ask for a larger pipe, so that a large result takes fewer turns."""
    import fcntl  # here, since this module can be imported where there is no fork

    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # over the user's limit: the default must do
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _silence_fork_warning() -> None:
    """Ignore Python 3.12's warning about threads, where this module forks.

    Not ``catch_warnings``: it restores the filters of the whole process, and another
    thread may have changed them meanwhile.
    """
    if sys.version_info >= (3, 12):
        warnings.filterwarnings(
            "ignore",
            message=r"This process .* is multi-threaded, use of fork\(\)",
            category=DeprecationWarning,
            module=r"shmexec\.forkpercall",
        )


def _receive(pid: int, reader: int, limit: _Limit) -> list[bytearray] | None:
    """Read the child's message; None if it ended without sending all of it.

    The end of file alone would not do: a process forked elsewhere in this program may
    hold the writing end open. The pidfd tells of the death, the lengths of the end.
    """
    os.set_blocking(reader, False)
    pidfd = _pidfd(pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(reader, selectors.EVENT_READ)
            if pidfd is not None:
                selector.register(pidfd, selectors.EVENT_READ)
            if limit.stop is not None:
                selector.register(limit.stop, selectors.EVENT_READ)
            return _read_frames(_Reader(reader, pidfd, selector, limit))
    except EOFError:
        return None
    finally:
        if pidfd is not None:
            _parent.close(pidfd)


def _pidfd(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:  # no such system call, or reaped since SIGCHLD is ignored
        return None
    _parent.descriptors.add(pidfd)
    return pidfd


class _Reader:
    """Exact reads from a non-blocking pipe, until its writer is dead and it is empty."""

    def __init__(
        self,
        fd: int,
        pidfd: int | None,
        selector: selectors.BaseSelector,
        limit: _Limit,
    ) -> None:
        self._fd = fd
        self._pidfd = pidfd
        self._selector = selector
        self._limit = limit
        self._dead = False

    def read(self, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        done = 0
        while done < count:
            try:
                got = os.readv(self._fd, [view[done:]])
            except BlockingIOError:
                self._wait()
                continue
            if got == 0:
                raise EOFError
            done += got
        return data

    def _wait(self) -> None:
        # Found empty after the death was seen, so nothing more can come.
        if self._dead:
            raise EOFError
        self._dead = self._pidfd in self._limit.select(self._selector)


def _read_frames(reader: _Reader) -> list[bytearray]:
    (count,) = COUNT.unpack(reader.read(COUNT.size))
    lengths = struct.unpack(f"<{count}Q", reader.read(count * COUNT.size))
    return [reader.read(length) for length in lengths]


def _reap(pid: int) -> int | None:
    try:
        _, status = os.waitpid(pid, 0)
    except ChildProcessError:  # SIGCHLD is ignored, or somebody else waited for it
        return None
    return os.waitstatus_to_exitcode(status)


def _death(name: str, pid: int, exitcode: int | None) -> WorkerDied:
    if exitcode is None:
        how = "ended for an unknown reason"
    elif exitcode >= 0:
        how = f"ended with exit code {exitcode} before it returned a result"
    else:
        how = f"was killed by {_signal_name(-exitcode)}"
    if exitcode == -signal.SIGKILL:
        how += ", possibly because the machine ran out of memory"
    msg = f"the process (pid {pid}) of the call {name} {how}; other calls go on"
    return WorkerDied(msg, pid=pid, exitcode=exitcode)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _unpack(name: str, frames: list[bytearray]) -> object:
    header, body, *buffers = frames
    kind, type_name, message, text = pickle.loads(header)
    if kind == UNPICKLABLE:
        msg = (
            f"the result of {name} cannot be pickled ({type_name}: {message}); "
            "return arrays, numbers, texts or objects that pickle takes"
        )
        raise SerializationError(msg, "result") from RemoteTraceback(text)
    try:
        value = pickle.loads(body, buffers=buffers)
    except Exception as error:
        if kind == RAISED:
            remote = RemoteError(type_name, message, text)
            raise remote from RemoteTraceback(text)
        msg = f"the result of {name} cannot be unpickled ({error!r})"
        raise SerializationError(msg, "result") from error
    if kind == RESULT:
        return value
    if not isinstance(value, BaseException):
        raise RemoteError(type_name, message, text) from RemoteTraceback(text)
    raise value from RemoteTraceback(text)
