"""How soon a pool works again, and what it costs when it does nothing."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks import breaking, leaks
from benchmarks.breakable import POOLS, NeverCame, Pool
from shmexec.comparing import work

TIMEOUT = 0.2
"""Seconds that a call may take which never ends by itself."""

IDLE_WORKERS = 8
_STEP = 0.0005


def deaths(name: str, times: int, patience: float) -> list[float | None]:
    """Seconds from a worker's death to a reply of another one.

    The pool has one worker; a call runs when it is killed, and others wait. What needs
    a new pool is given one as soon as it says so. None: nothing came in ``patience``
    seconds.
    """
    with _pool(name, 1) as pool, tempfile.TemporaryDirectory() as folder:
        return [
            _death(pool, Path(folder, str(number)), patience) for number in range(times)
        ]


def _death(pool: Pool, path: Path, patience: float) -> float | None:
    pool.submit(breaking.here_and_now).result(patience)
    ticket = pool.submit(breaking.wait_for_death, str(path))
    pid, _ = _noted(path, patience)
    waiting = pool.submit(breaking.here_and_now)
    ended = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        select.select([ended], [], [])
    finally:
        os.close(ended)
    start = time.monotonic()
    until = start + patience
    while True:
        try:
            other, _ = waiting.result(max(0.0, until - time.monotonic()))
        except NeverCame:
            pool.remake()
            return None
        except BrokenExecutor:
            waiting = pool.submit(breaking.here_and_now)  # in a new pool
        else:
            seconds = time.monotonic() - start
            break
    assert other != pid
    # Whether its own call ever ends is not asked here.
    with contextlib.suppress(BaseException):
        ticket.result(_STEP)
    return seconds


def _noted(path: Path, patience: float) -> tuple[int, float]:
    """What :func:`benchmarks.breaking.note` wrote."""
    until = time.monotonic() + patience
    while not path.exists():
        if time.monotonic() > until:
            raise NeverCame
        time.sleep(_STEP)
    pid, began = path.read_text(encoding="utf-8").split()
    return int(pid), float(began)


def timeouts(name: str, times: int, patience: float) -> list[float | None] | None:
    """Seconds from a time-out to when another call runs in that slot.

    The call that is stopped blocks all signals and catches all exceptions; its time is
    taken from when it began. None if the system cannot stop a call.
    """
    if not POOLS[name].stops:  # type: ignore[attr-defined]
        return None
    with _pool(name, 1) as pool, tempfile.TemporaryDirectory() as folder:
        return [
            _timeout(pool, Path(folder, str(number)), patience)
            for number in range(times)
        ]


def _timeout(pool: Pool, path: Path, patience: float) -> float | None:
    pool.submit(breaking.here_and_now).result(patience)
    ticket = pool.submit_for(TIMEOUT, breaking.heed_nothing, str(path))
    assert ticket is not None
    waiting = pool.submit(breaking.here_and_now)
    _, began = _noted(path, patience)
    try:
        _, ran = waiting.result(patience)
    except NeverCame:
        return None
    with contextlib.suppress(BaseException):
        ticket.result(patience)
    return max(0.0, ran - began - TIMEOUT)


def idle(name: str, seconds: float) -> float:
    """CPU time of a pool of 8 workers that does nothing, as a part of one CPU."""
    with _pool(name, IDLE_WORKERS) as pool:
        tickets = [pool.submit(work.who, 0.1) for _ in range(2 * IDLE_WORKERS)]
        for ticket in tickets:
            ticket.result(60)
        time.sleep(min(2.0, seconds))  # what comes after the last call
        others = _cpu_of(leaks.family())
        own, start = time.process_time_ns(), time.monotonic()
        time.sleep(seconds)
        own, passed = time.process_time_ns() - own, time.monotonic() - start
        later = _cpu_of(set(others))
        spent = sum(later[pid] - others[pid] for pid in later)
        return (own + spent) / 1e9 / passed


def _cpu_of(pids: set[int]) -> dict[int, int]:
    """Nanoseconds on a CPU, of all threads of each process."""
    spent = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            spent[pid] = sum(
                int((task / "schedstat").read_text(encoding="utf-8").split()[0])
                for task in tasks
            )
    return spent


@contextmanager
def _pool(name: str, workers: int) -> Iterator[Pool]:
    pool = POOLS[name](workers)
    try:
        yield pool
    finally:
        pool.close()


# -- what the machine takes ------------------------------------------------------------

_SERVER = """
import os, sys
import numpy
while os.read(0, 1):
    if os.fork() == 0:
        os.write(1, b"x")
        os._exit(0)
    os.wait()
"""


def forks(times: int) -> list[float]:
    """Seconds until a process that has NumPy loaded, asked by a byte, was forked.

    The least that a fork server can take: the child only answers by a byte.
    """
    found = []
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        asking, answers = server.stdin.fileno(), server.stdout.fileno()
        for _ in range(times + 1):
            start = time.monotonic()
            os.write(asking, b"x")
            assert os.read(answers, 1) == b"x"
            found.append(time.monotonic() - start)
            time.sleep(_STEP)
    return found[1:]  # the first one waited for NumPy
