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

    __slots__ = ("rest",)

    def __init__(self) -> None:
        self.rest = b""
        """What came of a message that is not complete."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The messages that are complete with these bytes, those before an error, too.

        Raises:
            MalformedMessage: If something is no message, or larger than any can be.
        """
        messages, self.rest, error = self.split(data)
        yield from messages
        if error is not None:
            raise error

    def split(self, data: bytes) -> tuple[list[bytes], bytes, MalformedMessage | None]:
        """The same, with what is :attr:`rest` then, and the error; changes nothing."""
        data = self.rest + data if self.rest else data
        messages, at, error = [], 0, None
        while at < len(data):
            start = data[at : at + len(_START)]
            if not _START.startswith(start):
                error = MalformedMessage(f"{start!r} where a message is to start")
                break
            if len(data) - at < _HEAD.size:
                break
            _, length = _HEAD.unpack_from(data, at)
            if length > LARGEST:
                msg = f"the head of a message of {length} bytes, larger than any can be"
                error = MalformedMessage(msg)
                break
            end = at + _HEAD.size + length
            if len(data) < end:
                break
            messages.append(data[at + _HEAD.size : end])
            at = end
        return messages, data[at:], error


class Sender:
    """The parent's writing end: never blocks, keeps what the socket does not take.

    A stopped worker does not read; its messages wait in ``backlog`` until the socket
    is writable again or the worker is dead.

    From the moment a message is in ``doing`` it will be sent once, also if an interrupt
    strikes: :meth:`mend` then goes on where that was.
    """

    __slots__ = ("_packets", "_rest", "_taken", "backlog", "doing", "sock")

    def __init__(self, sock: socket.socket, *, packets: bool) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.backlog: deque[bytes] = deque()
        self.doing: bytes | None = None
        """A message that is being sent, as :meth:`go` finds it."""
        self._taken: list[int] = []  # bytes that the socket took of the message or rest
        self._rest: bytes | None = None
        self._packets = packets

    def send(self, data: bytes) -> bool:
        """Send, or keep for later; whether it went at once.

        A closed peer is not an error here: its death is noticed by other means, and
        what it did not take is recovered then.
        """
        self.doing = data
        return self.go()

    def go(self) -> bool:
        """Send what is in ``doing``, which is not looked at before."""
        data = self.doing
        assert data is not None
        taken = self._taken
        if self.backlog:
            self._keep(data if self._packets else framed(data))
            return self.flush()
        if not self._packets:
            data = framed(data)
        try:
            # Sent and noted in one C call, so that an interrupt cannot fall between.
            taken.extend(map(self.sock.send, (data,)))
        except (BlockingIOError, BrokenPipeError, ConnectionError):
            self._keep(data)
            return False
        if taken[0] < len(data):
            self._keep(data[taken[0] :])
            return False
        self.doing = None
        taken.clear()
        return True

    def _keep(self, rest: bytes) -> None:
        self._rest = rest
        self.backlog.append(rest)
        self.doing = None
        self._taken.clear()
        self._rest = None

    def flush(self) -> bool:
        """Send what was kept; whether nothing is left."""
        backlog = self.backlog
        while backlog:
            data = self._rest = backlog[0]
            try:
                self._taken.extend(map(self.sock.send, (data,)))
            except (BlockingIOError, BrokenPipeError, ConnectionError):
                self._rest = None
                return False
            whole = self._taken[0] == len(data)
            self._advance()
            if not whole:
                return False
        return True

    def _advance(self) -> None:
        """The socket took something of the first message that was kept."""
        backlog, taken, data = self.backlog, self._taken, self._rest
        if taken and data is not None and backlog and backlog[0] is data:
            if taken[0] < len(data):
                backlog[0] = data[taken[0] :]
            else:
                backlog.popleft()
        taken.clear()
        self._rest = None

    def mend(self) -> None:
        """An interrupt may have struck in any of these: do the rest of it."""
        data = self.doing
        if data is None:
            self._advance()
            return
        if not (self.backlog and self.backlog[-1] is self._rest):
            if not self._packets:
                data = framed(data)
            sent = self._taken[0] if self._taken else 0
            if sent < len(data):
                self.backlog.append(data[sent:])
        self.doing = self._rest = None
        self._taken.clear()


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
