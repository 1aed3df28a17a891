"""Starting worker processes, without ever importing the program's ``__main__`` again.

These are ``multiprocessing`` processes under its three start methods. Only the launch is
ours: what multiprocessing sends ahead would have the child run the main script, which
then needs a main guard. The fork server is our own, too (:mod:`.server`).
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
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

from shmexec import limits
from shmexec.options import StartMethod
from shmexec.runtime.server import fork_server, interrupts_held_back, stop_fork_server
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
            with interrupts_held_back():
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
        data = _dump(self, worker)
        try:
            self._connect(data)
        except (FileNotFoundError, ConnectionError, EOFError):
            # Its socket lies in a temporary folder, which somebody cleaned up; or it
            # was killed just now.
            stop_fork_server()
            try:
                self._connect(data)
            except (ConnectionError, EOFError) as error:
                # It does not live through a fork that is refused.
                raise limits.no_process("the fork server ended at once") from error

    def _connect(self, data: memoryview) -> None:
        from multiprocessing import forkserver

        status, data_pipe = fork_server().connect_to_new_process(self._fds)
        try:
            with open(data_pipe, "wb", closefd=False) as file:
                file.write(data)
            # Who waits: the server writes at once, or is dead, which ends the pipe.
            self.pid = forkserver.read_signed(status)
        except EOFError as error:
            started = _is_read(data_pipe)
            _close_all(status, data_pipe)
            if started:
                # Another one on the same sockets would take part of its messages. It
                # ends with those, as a start that has failed closes them.
                text = "the fork server ended as it started a worker"
                raise OSError(errno.ECHILD, text) from error
            raise
        except BaseException:
            _close_all(status, data_pipe)
            raise
        self.sentinel = status
        self._finalize(data_pipe, status)

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        from multiprocessing import forkserver

        if self.returncode is None:
            timeout = 0 if flag == os.WNOHANG else None
            if not wait([self.sentinel], timeout):
                return None
            try:
                self.returncode = forkserver.read_signed(self.sentinel)
            except (OSError, EOFError):
                self.returncode = UNKNOWN_CODE  # the fork server went first
        return self.returncode


def _is_read(pipe: int) -> bool:
    """Whether a child of the fork server, which is dead, keeps the other end.

    A child has it for as long as it lives. The server's own closes as it ends, perhaps a
    little after what told of that.
    """
    poll = select.poll()
    poll.register(pipe, 0)
    return not poll.poll(1000)


UNKNOWN_CODE = 1 << 16
"""Exit code of a worker whose fork server died before it: nobody can know it."""

_NO_FOLDER = {None, errno.ENOENT, errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT}

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
        instead: Why another start method was used than was asked for, if so.
    """

    def __init__(self, method: StartMethod, config: WorkerConfig) -> None:
        self._process = WorkerMain(_POPENS[method], config)
        self.instead = ""
        try:
            self._process.start()
        except (RuntimeError, OSError) as error:
            if not self._may_spawn(method, error):
                raise
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
        # A grandchild may hold the pipe that multiprocessing watches, and the death of
        # the fork server ends its one; this tells of the worker alone.
        self.sentinel: int = self._pidfd if self._pidfd >= 0 else self._process.sentinel

    def _may_spawn(self, method: StartMethod, error: Exception) -> bool:
        """Whether a failure to start is one of the start method alone."""
        if method == "fork":
            # Python 3.12 forks no more while it ends; calls that wait still want one.
            return isinstance(error, RuntimeError)
        if method != "forkserver" or not isinstance(error, OSError):
            return False
        # Its socket needs a folder, and a path that is not too long (no number then).
        if error.errno not in _NO_FOLDER:
            return False
        self.instead = (
            f"the fork server has no place for its socket: {error}. Workers are "
            "spawned, which takes longer. Set TMPDIR to a folder that can be written to"
        )
        return True

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
            # Not `join` first: it waits for a pipe that a grandchild may hold. The fork
            # server reports the code, or is dead, which ends the pipe.
            self._process.join(5)
        code = self._process.exitcode
        return None if code == UNKNOWN_CODE else code

    def close(self) -> None:
        """Give the descriptors back."""
        # Forgotten first: an interrupt in between must not have it closed twice.
        descriptor, self._pidfd = self._pidfd, -1
        if descriptor >= 0:
            os.close(descriptor)
        with contextlib.suppress(ValueError):
            self._process.close()
