"""A client's descriptors, and the Unix socket; what blocks and what does not.

Nothing here knows of JSON. A ``Client`` belongs to one session, which has a thread that
reads and one that writes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shmexec.deadline import Deadline

__all__ = ["Client", "Listener", "Waker"]

_READ = 256 * 1024
_WRITE = 256 * 1024
_HUNG_UP = select.POLLERR | select.POLLHUP | select.POLLNVAL


class Waker:
    """A pipe to end a poll with, from any thread."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        self._lock = threading.Lock()
        self._closed = False

    def fileno(self) -> int:
        """The end to poll."""
        return self._read

    def signals_go_to(self) -> int:
        """The end for ``signal.set_wakeup_fd``: a handler could not take the lock."""
        return self._write

    def wake(self) -> None:
        """End the poll, or the next one; nothing once it is closed."""
        # The lock keeps the descriptor from being closed, and given to another file.
        with self._lock, suppress(BlockingIOError):  # full: it wakes all the same
            if not self._closed:
                os.write(self._write, b"\0")

    def take(self) -> bytes:
        """What woke: zeros, and the numbers of signals."""
        with suppress(BlockingIOError):
            return os.read(self._read, 4096)
        return b""

    def close(self) -> None:
        """Give both ends back."""
        with self._lock:
            self._closed = True
            os.close(self._read)
            os.close(self._write)


class Client:
    """Where requests come from and replies go: two descriptors, or one socket.

    Args:
        source: Descriptor to read from; this object owns it from here on.
        sink: Descriptor to write to, likewise; may be the same one.

    Attributes:
        written: Bytes that were written.
    """

    def __init__(self, source: int, sink: int) -> None:
        self.written = 0
        self._source, self._sink = source, sink
        mode = os.fstat(sink).st_mode
        self._socket = socket.socket(fileno=sink) if stat.S_ISSOCK(mode) else None
        # A pipe that polls as writable takes so much without blocking. Its own flags are
        # left alone: others (a terminal's shell) may have the same open file.
        self._portion = select.PIPE_BUF if stat.S_ISFIFO(mode) else _WRITE
        self._ended = False

    def wait(self, waker: Waker, deadline: Deadline, *, reading: bool) -> bool:
        """Wait for input, for the waker, for the client's going, or for the deadline.

        Returns:
            Whether :meth:`read` will not block; never if not ``reading``, nor after the
            end of input.

        Raises:
            ConnectionError: Nobody reads the replies any more.
        """
        reading = reading and not self._ended
        poll = select.poll()
        poll.register(waker.fileno(), select.POLLIN)
        # Its hanging up is always reported. A client that shuts down its side for
        # writing only has not hung up.
        poll.register(self._sink, 0)
        if reading:
            poll.register(self._source, select.POLLIN)
        events = dict(poll.poll(_milliseconds(deadline)))
        if events.get(waker.fileno()):
            waker.take()
        if events.get(self._sink, 0) & _HUNG_UP:
            msg = "the client has gone"
            raise ConnectionResetError(msg)
        return reading and bool(events.get(self._source))

    def read(self) -> bytes:
        """What has come; empty at the end of input.

        Raises:
            OSError: It cannot be read.
        """
        data = os.read(self._source, _READ)
        self._ended = not data
        return data

    def write(self, data: bytes, stop: int) -> bool:
        """Write all of it, however slowly it is read.

        Args:
            data: What to write.
            stop: Descriptor that becomes readable, or hangs up, when it is to give up.

        Returns:
            Whether all was written.

        Raises:
            OSError: It cannot be written.
        """
        left = memoryview(data)
        poll = select.poll()
        poll.register(stop, select.POLLIN)
        poll.register(self._sink, select.POLLOUT)
        while left:
            # Woken by the client that reads or goes, or by the session's end.
            if any(descriptor == stop for descriptor, _ in poll.poll()):
                return False
            with suppress(BlockingIOError):
                size = self._write_some(left[: self._portion])
                self.written += size
                left = left[size:]
        return True

    def _write_some(self, data: memoryview) -> int:
        if self._socket is None:
            return os.write(self._sink, data)
        return self._socket.send(data, socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Give the descriptors back."""
        if self._socket is not None:
            self._socket.detach()  # its descriptor is one of these
        for descriptor in {self._source, self._sink}:
            os.close(descriptor)


def _milliseconds(deadline: Deadline) -> float | None:
    seconds = deadline.remaining()
    return None if seconds is None else seconds * 1000 + 1


class Listener:
    """A Unix socket that its owner alone may connect to; its file goes at the end.

    Args:
        path: Where it is to be. A file that a dead server left there is replaced.

    Raises:
        FileExistsError: Something listens there, or it is no socket.
        OSError: The folder cannot be written to, or the path is too long.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            with _locked(path.parent):
                _clear(path)
                # No other thread makes files here: the server has none yet.
                mask = os.umask(0o177)
                try:
                    self._socket.bind(str(path))
                finally:
                    os.umask(mask)
                self._made = os.lstat(path)
                self._socket.listen()
        except BaseException:
            self._socket.close()
            raise
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """What to poll."""
        return self._socket.fileno()

    def accept(self) -> Client | None:
        """The next client, None if it has gone again.

        Raises:
            OSError: There can be no more descriptors.
        """
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        descriptor = connection.detach()
        return Client(descriptor, descriptor)

    def close(self) -> None:
        """Take no more clients, and remove the file if it still is this one's."""
        self._socket.close()
        with suppress(OSError), _locked(self._path.parent):
            if os.path.samestat(os.lstat(self._path), self._made):
                self._path.unlink()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep others of this kind out: two that start must not replace each other's file.

    Held for as long as a bind takes; the kernel frees it if this process dies.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # not on every file system
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clear(path: Path) -> None:
    """Remove a socket that nobody listens at any more."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise FileExistsError(errno.EEXIST, "it exists, and is no socket", str(path))
    with socket.socket(socket.AF_UNIX) as probe:
        # Somebody who listens and has no room for one more is alive, too.
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:
            pass
    raise FileExistsError(errno.EADDRINUSE, "something listens there", str(path))
