"""Where other programs of this user ask what the pools of this process are at.

On Linux one abstract Unix socket listens for the whole process while pools of it run.
Its name is random, and stands in ``/proc/net/unix``; it has no file, so that it ends with
the process, however that ends, and needs no folder that can be written to. To connect is
to ask: whoever does gets one message, if the kernel says that it is a process of the same
user, and nothing otherwise. What it says is not read. Whoever asks checks alike whom it
asked, since anybody can give a socket such a name.

A thread of its own waits there, so that no pool is woken and nobody who reads replies is
held up; it sleeps until somebody asks, or until the last pool has ended,
which shuts the socket down. It never waits for who asked: what they do not take at once
they do not get.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from shmexec.deadline import Deadline

NAME = "shmexec."
"""Begins the names of such sockets; then come the user's id and what is random."""

WAITING_AT_MOST = 64
"""Who may have asked while the process is stopped, and has no answer yet."""

VERSION = 1
"""Of an answer; raised when something that was said before is said otherwise."""

BYTES_AT_MOST = 100_000
"""Of an answer: what the kernel takes at once, whoever reads it."""

WITHIN = 0.2
"""Seconds that locks are waited for, for all pools together."""

_PAUSE = 1.0
"""Seconds without looking, where the process has no descriptor left for who asks."""

_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_CREDENTIALS = struct.Struct("3i")


def possible() -> bool:
    """Whether this system has such sockets."""
    return sys.platform == "linux"


def name_prefix() -> str:
    """What names begin with for this user."""
    return f"{NAME}{os.geteuid()}."


def peer_of(sock: socket.socket) -> int | None:
    """The process at the other end; None if it is not this user's.

    Or if it cannot be seen from here: it is in another container.
    """
    size = _CREDENTIALS.size
    try:
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    except OSError:
        return None
    pid, user, _ = _CREDENTIALS.unpack(data)
    return pid if pid > 0 and user == os.geteuid() else None


def message(pools: Iterable[Callable[[Deadline], dict[str, Any]]]) -> bytes:
    """What all pools of this process are at, as JSON.

    Pools for which there is no room, and those that cannot be looked at, are counted.
    """
    import json  # here: most programs are never asked

    deadline = Deadline(WITHIN)
    told: list[str] = []
    room, left_out = BYTES_AT_MOST, 0
    for facts in pools:
        try:
            text = json.dumps(facts(deadline))
        except Exception:  # noqa: BLE001  (of one: the others are told all the same)
            left_out += 1
            continue
        room -= len(text)
        if room < 0:
            left_out += 1
        else:
            told.append(text)
    version = json.dumps(sys.version.split()[0])
    return (
        f'{{"version": {VERSION}, "python": {version}, "left_out": {left_out}, '
        f'"pools": [{", ".join(told)}]}}'
    ).encode()


class Presence:
    """See the module.

    Args:
        describe: Makes an answer, in the thread. It is small, and takes no time.

    Raises:
        OSError, RuntimeError: There can be no more descriptors, or threads.
    """

    def __init__(self, describe: Callable[[], bytes]) -> None:
        self._describe = describe
        self._gone = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.bind(f"\0{name_prefix()}{os.urandom(16).hex()}")
            self._listener.listen(WAITING_AT_MOST)
            self._listener.setblocking(False)
            self._thread = threading.Thread(
                target=self._serve, name="shmexec-presence", daemon=True
            )
            self._thread.start()
        except BaseException:
            self._listener.close()
            raise

    def _serve(self) -> None:
        poll = select.poll()
        with self._listener as listener:
            poll.register(listener, select.POLLIN)
            while True:
                # Woken by who asks, or by `close`. To wait in `accept` would take one
                # descriptor more meanwhile.
                poll.poll()
                if self._gone.is_set():
                    break
                try:
                    asker, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    if error.errno not in _SCARCE:
                        # The program has closed it; the descriptor is another's.
                        listener.detach()
                        break
                    # `close` ends the wait; who asked waits on.
                    self._gone.wait(_PAUSE)
                    continue
                with asker:
                    self._answer(asker)

    def _answer(self, asker: socket.socket) -> None:
        if peer_of(asker) is None:
            return
        # Whatever is wrong with the answer, the next one is to be given.
        with contextlib.suppress(Exception):
            asker.send(self._describe(), socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Be seen no more; returns when the thread has ended, which it does at once."""
        self._gone.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        if self._thread is not threading.current_thread():
            self._thread.join(_PAUSE)

    def close_in_child(self) -> None:
        """In a forked child, which lacks the thread: the socket is the parent's."""
        self._listener.close()
