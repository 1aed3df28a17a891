"""What a worker does once, before its first call."""

from __future__ import annotations

import contextlib
import os
import pickle
import platform
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import reduction
from typing import Any

import cloudpickle

from shmexec.worker import stacks
from shmexec.worker.blas import THREAD_VARIABLES, limit_threads

NOT_STARTED = 71
"""Exit code (``EX_OSERR``) of a worker that the system refused what it needs to start."""


class PassedDescriptor:
    """A file descriptor that goes to a new process with the process object."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getstate__(self) -> Any:
        return reduction.DupFd(self.number)

    def __setstate__(self, duplicate: Any) -> None:
        self.number = duplicate.detach()


class Inherited:
    """An initializer that goes with the process itself, as queues and locks must.

    By cloudpickle, since the initializer may be a lambda.
    """

    def __init__(self, fn: Callable[..., object], args: tuple[Any, ...]) -> None:
        self.fn = fn
        self.args = args

    def __reduce__(self) -> tuple[Any, ...]:
        return _inherited, (cloudpickle.dumps((self.fn, self.args)),)


def _inherited(data: bytes) -> Inherited:
    return Inherited(*pickle.loads(data))


@dataclass
class WorkerConfig:
    """Everything a worker must know to start."""

    generation: int
    name: str
    segment_kind: Any
    packets: bool
    threads: int
    parent_arena: int
    parent_size: int
    own_arena: int
    own_size: int
    requests: PassedDescriptor
    replies: PassedDescriptor
    arenas: PassedDescriptor
    parent_segment: PassedDescriptor
    own_segment: PassedDescriptor
    fault_log: PassedDescriptor
    lifeline: PassedDescriptor
    stdout: PassedDescriptor | None = None
    stderr: PassedDescriptor | None = None
    forward_logs: bool = False
    log_level: int = 0
    native: bool = False
    has_initializer: bool = False
    has_start_limit: bool = False
    slots: int = 1
    inherited: Inherited | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    extra_env: Mapping[str, str] = field(default_factory=dict)
    path: list[str] = field(default_factory=list)
    folder: str | None = None


def prepare(config: WorkerConfig, is_running: Callable[[], bool]) -> None:
    """Settings of the process: environment, signals, threads, name, lifeline."""
    limits = dict.fromkeys(THREAD_VARIABLES, str(config.threads))
    _change_environment({**config.env, **limits, **config.extra_env})
    sys.path[:] = config.path
    if config.folder is not None:
        with contextlib.suppress(OSError):
            os.chdir(config.folder)
    _signals(config, is_running)
    hold_lifeline(config.lifeline.number)
    limit_threads(config.threads)
    _reseed()
    _name(config.name)
    # A worker shall go before the notebook does.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")


def _change_environment(wanted: Mapping[str, str]) -> None:
    """Make it this one; most of it is, since the fork server has the same program's."""
    environment = os.environ
    for name in [name for name in environment if name not in wanted]:
        del environment[name]
    for name, value in wanted.items():
        if environment.get(name) != value:
            environment[name] = value


def _signals(config: WorkerConfig, is_running: Callable[[], bool]) -> None:
    # The terminal sends Ctrl-C to all processes; what it means is the parent's call. It
    # is blocked until here: see runtime.server.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    stacks.prepare(config.fault_log.number, is_running)
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


def hold_lifeline(pipe: int) -> None:
    """Die with the parent, even if stopped or stuck in C code that holds the GIL.

    The parent alone has the writing end of this pipe. When that closes, the kernel
    sends the signal itself. Elsewhere than on Linux a thread waits for it.
    """
    if hasattr(signal, "SIGIO") and platform.system() == "Linux":
        import fcntl

        set_signal = 10  # F_SETSIG
        fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pipe, set_signal, signal.SIGKILL)
        flags = fcntl.fcntl(pipe, fcntl.F_GETFL)
        fcntl.fcntl(pipe, fcntl.F_SETFL, flags | os.O_ASYNC | os.O_NONBLOCK)
        # It may have closed before the signal was asked for.
        try:
            gone = os.read(pipe, 1) == b""
        except BlockingIOError:
            gone = False
        if gone:
            os._exit(1)
        return

    def watch() -> None:
        os.read(pipe, 1)
        os._exit(1)

    threading.Thread(target=watch, name="shmexec-lifeline", daemon=True).start()


def _reseed() -> None:
    """Give this process random numbers of its own, whatever it was forked from."""
    random = sys.modules.get("random")
    if random is not None:
        random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _name(name: str) -> None:
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(name[:15])
