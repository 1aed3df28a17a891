"""Starting worker processes, without ever importing the program's ``__main__`` again.

These are ``multiprocessing`` processes under its three start methods. Only the launch is
ours: what multiprocessing sends ahead would have the child run the main script, which
then needs a main guard. The fork server is our own, too (:mod:`.server`).
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import (
    popen_fork,
    popen_forkserver,
    popen_spawn_posix,
    process,
    reduction,
    spawn,
    util,
)
from multiprocessing.connection import wait
from multiprocessing.context import set_spawning_popen
from typing import Any

from shmexec.options import StartMethod
from shmexec.runtime.server import fork_server, stop_fork_server
from shmexec.worker.main import WorkerMain
from shmexec.worker.setup import Inherited, WorkerConfig


def _preparation(name: str) -> dict[str, Any]:
    """What the child is told first. No main module: that is the point."""
    return {
        "log_to_stderr": False,
        "authkey": bytes(process.current_process().authkey),
        "name": name,
        "sys_path": sys.path[:],
        "sys_argv": sys.argv,
    }


def _dump(popen: Any, worker: process.BaseProcess) -> memoryview:
    data = io.BytesIO()
    set_spawning_popen(popen)
    try:
        reduction.dump(_preparation(worker.name), data)
        reduction.dump(worker, data)
    finally:
        set_spawning_popen(None)
    return data.getbuffer()


def _close_all(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class _Passing(popen_fork.Popen):
    """What spawn and the fork server share: descriptors that go along."""

    def __init__(self, worker: process.BaseProcess) -> None:
        self._fds: list[int] = []
        super().__init__(worker)

    def _finalize(self, *descriptors: int) -> None:
        self.finalizer = util.Finalize(self, _close_all, descriptors)


class _SpawnPopen(_Passing):
    method = "spawn"
    DupFd = popen_spawn_posix._DupFd  # noqa: SLF001  (what a spawned child unpickles)

    def duplicate_for_child(self, descriptor: int) -> int:
        self._fds.append(descriptor)
        return descriptor

    def _launch(self, worker: process.BaseProcess) -> None:
        # The child would start a resource tracker of its own, were it not given ours.
        from multiprocessing import resource_tracker  # noqa: TID251

        tracker: Any = resource_tracker.getfd()
        data = _dump(self, worker)
        ended, child_ended = os.pipe()
        child_data, data_pipe = os.pipe()
        self._finalize(ended, data_pipe)
        self.sentinel = ended
        try:
            command = spawn.get_command_line(tracker_fd=tracker, pipe_handle=child_data)
            passed = [*self._fds, tracker, child_data, child_ended]
            executable: Any = spawn.get_executable()
            self.pid = util.spawnv_passfds(executable, command, passed)
        finally:
            os.close(child_data)
            os.close(child_ended)
        with open(data_pipe, "wb", closefd=False) as file:
            file.write(data)


class _ServedPopen(_Passing):
    """A child of the fork server: not ours to wait for; the server reports its end."""

    method = "forkserver"
    DupFd = popen_forkserver._DupFd  # noqa: SLF001

    def duplicate_for_child(self, descriptor: int) -> int:
        self._fds.append(descriptor)
        return len(self._fds) - 1

    def _launch(self, worker: process.BaseProcess) -> None:
        from multiprocessing import forkserver

        data = _dump(self, worker)
        try:
            connected = fork_server().connect_to_new_process(self._fds)
        except (FileNotFoundError, ConnectionRefusedError):
            # Its socket lies in a temporary folder, which somebody cleaned up.
            stop_fork_server()
            connected = fork_server().connect_to_new_process(self._fds)
        self.sentinel, data_pipe = connected
        self._finalize(data_pipe, self.sentinel)
        with open(data_pipe, "wb", closefd=False) as file:
            file.write(data)
        self.pid = forkserver.read_signed(self.sentinel)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        from multiprocessing import forkserver

        if self.returncode is None:
            timeout = 0 if flag == os.WNOHANG else None
            if not wait([self.sentinel], timeout):
                return None
            try:
                self.returncode = forkserver.read_signed(self.sentinel)
            except (OSError, EOFError):
                self.returncode = 255  # the fork server went first
        return self.returncode


_POPENS: dict[StartMethod, Callable[[Any], Any]] = {
    "fork": popen_fork.Popen,
    "spawn": _SpawnPopen,
    "forkserver": _ServedPopen,
}


class _Rehearsal:
    """Stands for a popen, to find out whether something could be sent with it."""

    DupFd = staticmethod(int)

    def duplicate_for_child(self, descriptor: int) -> int:
        return descriptor


def can_be_inherited(method: StartMethod, thing: Inherited) -> bool:
    """Whether a new process can be given this: queues and locks can, at its start."""
    if method == "fork":
        return True
    rehearsal: Any = _Rehearsal()
    set_spawning_popen(rehearsal)
    try:
        reduction.ForkingPickler.dumps(thing)
    except Exception:  # noqa: BLE001  (any failure is the answer)
        return False
    finally:
        set_spawning_popen(None)
    return True


class WorkerProcess:
    """A started worker.

    Attributes:
        pid: Its process id.
        sentinel: Readable once it has ended.
    """

    def __init__(self, method: StartMethod, config: WorkerConfig) -> None:
        self._process = WorkerMain(_POPENS[method], config)
        try:
            self._process.start()
        except RuntimeError:
            if method != "fork":
                raise
            # Python 3.12 forks no more while it ends; calls that wait still want one.
            method = "spawn"
            self._process = WorkerMain(_POPENS[method], config)
            self._process.start()
        # Nobody else may collect it: multiprocessing does so with all children whenever
        # a process is started, and between that and noting its exit code in another
        # thread, the code is known to nobody.
        process._children.discard(self._process)  # type: ignore[attr-defined] # noqa: SLF001
        self.pid: int = self._process.pid or 0
        self._pidfd = -1
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(self.pid)
        # A grandchild may hold the pipe that multiprocessing watches; it cannot hold
        # this. The fork server's report comes from the server, and has the exit code.
        own_child = method != "forkserver"
        self.sentinel: int = (
            self._pidfd if own_child and self._pidfd >= 0 else self._process.sentinel
        )

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError, OSError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)
            elif self._process.is_alive():
                os.kill(self.pid, number)

    def reap(self) -> int | None:
        """Its exit code, once the sentinel is readable; makes sure that it is gone."""
        self.signal(signal.SIGKILL)  # if only the fork server died, it still runs
        if self._process.exitcode is None:
            # Not `join` first: it waits for a pipe that a grandchild may hold.
            self._process.join(5)
        return self._process.exitcode

    def close(self) -> None:
        """Give the descriptors back."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        with contextlib.suppress(ValueError):
            self._process.close()
