"""The line to the parent: what comes from it, one message at a time, and what goes there.

A worker waits only for its parent: for the next message, or for an answer to a request
for quota. If the parent dies, the lifeline kills the worker wherever it is, and the
socket ends.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from shmexec.wire.channel import Receiver, receive_descriptor, send_blocking
from shmexec.wire.messages import Kind, Message, decode, encode
from shmexec.worker import loop as event_loop
from shmexec.worker.setup import WorkerConfig

_FREEING = frozenset([Kind.CALL, Kind.PACK, Kind.FREE, Kind.CREDIT])
"""Kinds of messages whose leases are results that are no longer used."""


class ParentGone(Exception):
    """Nobody is left to serve."""


class Grant(NamedTuple):
    """What the parent answers when it is asked for quota; in bytes."""

    nbytes: int
    again: bool
    """Whether it has freed results just now, so that less is needed: ask once more."""
    used: int
    budget: int


class Line:
    """The worker's ends of its sockets.

    Args:
        config: The worker's.
    """

    def __init__(self, config: WorkerConfig) -> None:
        self.generation = config.generation
        self.packets = config.packets
        self.requests = socket.socket(fileno=config.requests.number)
        self.replies = socket.socket(fileno=config.replies.number)
        self._arenas = socket.socket(fileno=config.arenas.number)
        self._receiver = Receiver(self.requests, packets=config.packets)
        self._writing = threading.Lock()
        self.postponed: deque[Message] = deque()
        self.on_free: Callable[[tuple[int, ...]], None] | None = None
        # Of streams, when calls run one at a time; set by who runs them.
        self.on_credit: Callable[[Message], None] | None = None
        self.several = False  # calls run several at a time, in the event loop

    # -- from the parent -------------------------------------------------------------

    def has_more(self) -> bool:
        """Whether a message is there already."""
        return self._receiver.has_more()

    def receive(self) -> Message:
        """Wait for the parent; what calls left on the event loop goes on meanwhile.

        Raises:
            ParentGone: If none will come any more.
        """
        if not self.several and event_loop.is_needed():
            event_loop.run_until_readable(self.requests.fileno())
        try:
            return decode(self._receiver.receive())
        except (EOFError, ConnectionError):
            raise ParentGone from None

    def receive_nowait(self) -> Message | None:
        """A message, if one is there.

        Raises:
            ParentGone: If none will come any more.
        """
        try:
            data = self._receiver.receive_nowait()
        except (EOFError, ConnectionError):
            raise ParentGone from None
        return None if data is None else decode(data)

    def postpone(self, message: Message) -> None:
        """Keep a message for later, unless it is about the stream that runs.

        Results that it says are free are freed at once: another may need the room.
        """
        if message.kind is Kind.CREDIT and not self.several and self.on_credit:
            self.on_credit(message)
            return
        if message.leases and message.kind in _FREEING and self.on_free:
            self.on_free(message.leases)
            message = message._replace(leases=())
        if message.kind is not Kind.FREE:
            self.postponed.append(message)

    def take_postponed(self, kind: Kind) -> Message | None:
        """A message of that kind that was kept for later, if there is one."""
        for message in self.postponed:
            if message.kind is kind:
                self.postponed.remove(message)
                return message
        return None

    def want_quota(self, nbytes: int, result: int) -> Grant:
        """Ask the parent for room, and wait for its answer: it always gives one."""
        self.send(Message(Kind.WANT, number=nbytes, request=result))
        while True:
            message = self.receive()
            if message.kind is Kind.GRANT:
                return Grant(message.number, bool(message.request), *message.leases)
            self.postpone(message)

    def receive_arena(self, arena: int) -> int | None:
        """The descriptor of an arena that the parent speaks of, None if it got lost."""
        return receive_descriptor(self._arenas, arena)

    # -- to the parent ---------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send a message of this worker's generation."""
        if not message.generation:
            message = message._replace(generation=self.generation)
        self.write(encode(message))

    def write(self, data: bytes) -> None:
        """Send a message that is encoded; does not return if the parent is gone."""
        try:
            if self.packets:
                self.replies.sendall(data)
            else:
                with self._writing:  # user code logs in threads of its own
                    send_blocking(self.replies, data, packets=False)
        except ConnectionError:
            _leave()


def _leave() -> NoReturn:
    """The parent is gone: nobody is left to tell."""
    sys.stderr.flush()
    os._exit(1)
