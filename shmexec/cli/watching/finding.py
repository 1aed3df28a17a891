"""Finds the programs of this user that have pools, and asks them what these are at.

They listen on sockets whose names stand in ``/proc/net/unix`` (see
:mod:`shmexec.runtime.presence`). Anybody may give a socket such a name: the kernel says
whose process listens there, and what is not this user's is left alone. A program that is
stopped does not answer, and is known all the same: the connection tells its process.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

from shmexec.deadline import Deadline
from shmexec.runtime.presence import (
    BYTES_AT_MOST,
    VERSION,
    name_prefix,
    peer_of,
    possible,
)

WITHIN = 0.5
"""Seconds that programs have to answer, all of them together."""

ASKED_AT_MOST = 500
"""Programs that are asked: each takes a descriptor meanwhile."""

_TABLE = Path("/proc/net/unix")
_LISTENS = 0x10000
_RANDOM = re.compile(r"[0-9a-f]{32}\Z")


class CannotLook(Exception):
    """This system does not tell which programs have pools."""


@dataclass(frozen=True)
class Answer:
    """What came of asking one program."""

    pid: int
    facts: dict[str, Any] | None
    """What it said; None if it has not answered."""
    garbled: bool = False
    """It said what is not understood: its shmexec is of another version."""


@dataclass
class _Asked:
    sock: socket.socket
    pid: int
    fresh: bool = True


class Lookout:
    """Looks again and again.

    Who did not answer is not asked anew, and not waited for any more: its answer is
    taken when it comes.
    """

    def __init__(self) -> None:
        self._asked: dict[str, _Asked] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for each in self._asked.values():
            each.sock.close()
        self._asked.clear()

    def look(self, within: float = WITHIN) -> list[Answer]:
        """Ask all programs that there are; the answers by process id.

        Raises:
            CannotLook: This system does not tell which there are.
        """
        names = _names()
        for name in self._asked.keys() - names:
            self._asked.pop(name).sock.close()  # it has ended
        found: list[Answer] = []
        for name in sorted(names - self._asked.keys())[:ASKED_AT_MOST]:
            found += self._ask(name)
        found += self._gather(Deadline(within))
        for each in self._asked.values():
            each.fresh = False
            found.append(Answer(each.pid, None))
        return sorted(found, key=lambda answer: answer.pid)

    def _ask(self, name: str) -> list[Answer]:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        try:
            sock.connect(f"\0{name}")
        except BlockingIOError:
            # Stopped for long, and asked by so many that no more may wait.
            sock.close()
            return [Answer(pid, None) for pid in _owners(name)]
        except OSError:  # it has just ended
            sock.close()
            return []
        pid = peer_of(sock)
        if pid is None:
            sock.close()
        else:
            self._asked[name] = _Asked(sock, pid)
        return []

    def _gather(self, deadline: Deadline) -> list[Answer]:
        """Wait for those that were just asked; take what has come of the others."""
        found: list[Answer] = []
        poll = select.poll()
        names = {}
        for name, each in self._asked.items():
            poll.register(each.sock, select.POLLIN)
            names[each.sock.fileno()] = name
        while self._asked:
            fresh = any(each.fresh for each in self._asked.values())
            left = (deadline.remaining() or 0.0) if fresh else 0.0
            # Woken by an answer, or the end of a program; else by time.
            ready = poll.poll(left * 1000)
            for descriptor, _ in ready:
                poll.unregister(descriptor)
                found.append(_answer(self._asked.pop(names[descriptor])))
            if not ready:
                break
        return found


def _answer(asked: _Asked) -> Answer:
    with asked.sock as sock:
        try:
            data = sock.recv(2 * BYTES_AT_MOST)
        except OSError:
            data = b""
    if not data:
        return Answer(asked.pid, None)
    try:
        facts = json.loads(data)
        if facts["version"] == VERSION:
            return Answer(asked.pid, facts)
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    return Answer(asked.pid, None, garbled=True)


def _rows() -> list[tuple[str, str]]:
    """Names of sockets of programs with pools of this user, and their inodes."""
    if not possible():
        msg = "pools are seen on Linux only"
        raise CannotLook(msg)
    try:
        text = _TABLE.read_text(errors="replace")
    except OSError as error:
        msg = f"{_TABLE} cannot be read, which lists sockets: {error.strerror}"
        raise CannotLook(msg) from None
    prefix = f"@{name_prefix()}"
    rows = []
    for line in text.splitlines()[1:]:
        # Num RefCount Protocol Flags Type St Inode Path
        parts = line.split(maxsplit=7)
        if len(parts) < 8 or not parts[7].startswith(prefix):
            continue
        listens = int(parts[3], 16) & _LISTENS
        if listens and _RANDOM.match(parts[7].removeprefix(prefix)):
            rows.append((parts[7][1:], parts[6]))
    return rows


def _names() -> set[str]:
    return {name for name, _ in _rows()}


def _owners(name: str) -> list[int]:
    """This user's processes that have a socket, by looking at all their descriptors."""
    targets = {f"socket:[{inode}]" for each, inode in _rows() if each == name}
    owners = (
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdecimal() and targets & _descriptors(folder)
    )
    return list(islice(owners, 1))


def _descriptors(folder: Path) -> set[str]:
    found = set()
    # Those of other users cannot be read; others may just end.
    with contextlib.suppress(OSError):
        if folder.stat().st_uid == os.geteuid():
            for link in (folder / "fd").iterdir():
                with contextlib.suppress(OSError):
                    found.add(os.readlink(link))
    return found
