"""Message boundaries on socket pairs.

On Linux the sockets are ``SOCK_SEQPACKET`` and keep boundaries themselves: one read is
one message. The portable path has streams, where each message follows a mark and its
length; then a reader keeps what it has of an unfinished one. By the mark it knows at once
when something else was written there, and does not wait for the rest of it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Iterator

from shmexec.wire.messages import LARGEST, MalformedMessage

_START = b"\xa5shm"
_HEAD = struct.Struct("<4sI")


def pair(*, packets: bool) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, of packets or of a stream."""
    if packets:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return socket.socketpair()


def framed(data: bytes) -> bytes:
    """A message as it goes through a stream."""
    return _HEAD.pack(_START, len(data)) + data


class Framer:
    """Splits a stream into messages. Pure: bytes in, messages out."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are complete with these bytes, those before an error, too.

        Raises:
            MalformedMessage: If something is no message, or larger than any can be.
        """
        buffer = self._buffer
        buffer += data
        while buffer:
            start = bytes(buffer[: len(_START)])
            if not _START.startswith(start):
                msg = f"{start!r} where a message is to start"
                raise MalformedMessage(msg)
            if len(buffer) < _HEAD.size:
                break
            _, length = _HEAD.unpack_from(buffer)
            if length > LARGEST:
                msg = f"the head of a message of {length} bytes, larger than any can be"
                raise MalformedMessage(msg)
            end = _HEAD.size + length
            if len(buffer) < end:
                break
            message = bytes(buffer[_HEAD.size : end])
            del buffer[:end]
            yield message


class Sender:
    """The parent's writing end: never blocks, keeps what the socket does not take.

    A stopped worker does not read; its messages wait in ``backlog`` until the socket
    is writable again or the worker is dead.
    """

    __slots__ = ("_packets", "backlog", "sock")

    def __init__(self, sock: socket.socket, *, packets: bool) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.backlog: deque[bytes] = deque()
        self._packets = packets

    def send(self, data: bytes) -> bool:
        """Send, or keep for later; whether it went at once.

        A closed peer is not an error here: its death is noticed by other means, and
        what it did not take is recovered then.
        """
        if not self._packets:
            data = framed(data)
        if self.backlog:
            self.backlog.append(data)
            return self.flush()
        try:
            sent = self.sock.send(data)
        except (BlockingIOError, BrokenPipeError, ConnectionError):
            sent = 0
        if sent < len(data):
            self.backlog.append(data[sent:])
            return False
        return True

    def flush(self) -> bool:
        """Send what was kept; whether nothing is left."""
        while self.backlog:
            data = self.backlog[0]
            try:
                sent = self.sock.send(data)
            except (BlockingIOError, BrokenPipeError, ConnectionError):
                return False
            if sent < len(data):
                self.backlog[0] = data[sent:]
                return False
            self.backlog.popleft()
        return True


class Receiver:
    """The worker's reading end: blocks until a whole message is there."""

    __slots__ = ("_framer", "_poll", "_ready", "_sock")

    def __init__(self, sock: socket.socket, *, packets: bool) -> None:
        self._sock = sock
        self._framer = None if packets else Framer()
        self._ready: deque[bytes] = deque()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def receive(self) -> bytes:
        """The next message; ``EOFError`` when the parent is gone."""
        if self._framer is None:
            data = self._sock.recv(LARGEST)
            if not data:
                raise EOFError
            return data
        while not self._ready:
            # Not a byte beyond this message: the parent may take back the rest.
            data = self._sock.recv(LARGEST)
            if not data:
                raise EOFError
            self._ready.extend(self._framer.feed(data))
        return self._ready.popleft()

    def receive_nowait(self) -> bytes | None:
        """The next message if it is there; ``EOFError`` when the parent is gone."""
        # Messages are small: what has begun comes whole.
        return self.receive() if self.has_more() else None

    def has_more(self) -> bool:
        """Whether a message is there, or the parent is gone."""
        return bool(self._ready or self._poll.poll(0))


_TAG = struct.Struct("<Q")


def send_descriptor(sock: socket.socket, tag: int, descriptor: int) -> None:
    """Send a descriptor under a number, without waiting.

    Raises:
        OSError: If the peer has not taken those before, or the system has no room.
    """
    socket.send_fds(sock, [_TAG.pack(tag)], [descriptor], socket.MSG_DONTWAIT)


def receive_descriptor(sock: socket.socket, tag: int) -> int | None:
    """The descriptor that was sent under a number; None if it did not arrive.

    Does not wait: to be called when the sender has said, on another way, that it sent
    it. One sent before that nobody asked for is closed.
    """
    flags = socket.MSG_DONTWAIT | getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(sock, _TAG.size, 1, flags)
        except (BlockingIOError, ConnectionError):
            return None
        if len(data) == _TAG.size and _TAG.unpack(data)[0] == tag:
            # None came along if this process may have no more of them.
            return descriptors[0] if descriptors else None
        for descriptor in descriptors:
            os.close(descriptor)
        if not data:
            return None


def send_blocking(sock: socket.socket, data: bytes, *, packets: bool) -> None:
    """The worker's way to write one message."""
    sock.sendall(data if packets else framed(data))


class Waker:
    """Something to wake a thread that polls; safe in finalizers and signal handlers."""

    def __init__(self) -> None:
        self._eventfd = hasattr(os, "eventfd")
        if self._eventfd:
            self.fileno = self._write = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self.fileno, self._write = os.pipe()
            os.set_blocking(self.fileno, False)
            os.set_blocking(self._write, False)
        self._word = (1).to_bytes(8, "little")

    def wake(self) -> None:
        """Make :attr:`fileno` readable."""
        with contextlib.suppress(OSError):  # full is as good as written; closed: late
            os.write(self._write, self._word)

    def clear(self) -> None:
        """Make it unreadable again."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.fileno, 4096)

    def close(self) -> None:
        """Close it; later wakes do nothing."""
        descriptors = {self.fileno, self._write} - {-1}
        self.fileno = self._write = -1
        for descriptor in descriptors:
            os.close(descriptor)
