"""Calls that hang, in all kinds of ways. Light: every worker imports this."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
import time
from typing import Any, NoReturn

from tests.contract.calls import Barrier


def in_python(gate: Barrier) -> Any:
    """Pass the gate, three calls below."""
    return outer(gate)


def outer(gate: Barrier) -> Any:
    """In between."""
    return innermost(gate)


def innermost(gate: Barrier) -> Any:
    """Wait, and tell how often a signal came in between."""
    gate.wait()
    return "undisturbed"


def in_c_with_the_gil(gate: Barrier) -> int:
    """Wait in C code that holds the GIL, and is not interrupted."""
    mutex = ctypes.create_string_buffer(128)
    libc = ctypes.PyDLL(None)
    libc.pthread_mutex_lock(mutex)
    gate.arrive()
    # Opened by nobody: another thread cannot run either.
    return int(libc.pthread_mutex_lock(mutex))


def read_in_c(gate: Barrier) -> tuple[int, int]:
    """Read from a pipe in C, which a signal without SA_RESTART would end."""
    libc = ctypes.CDLL(None, use_errno=True)
    go = os.open(f"{gate.folder}/go", os.O_RDWR)
    buffer = ctypes.create_string_buffer(1)
    gate.arrive()
    ctypes.set_errno(0)
    return int(libc.read(go, buffer, 1)), ctypes.get_errno()


def sleep_for(gate: Barrier, seconds: float) -> float:
    """Sleep in Python; for how long it was."""
    gate.arrive()
    started = time.monotonic()
    time.sleep(seconds)
    return time.monotonic() - started


def in_a_thread(gate: Barrier) -> None:
    """Wait for a thread that waits."""
    thread = threading.Thread(target=innermost, args=(gate,))
    thread.start()
    thread.join()


async def in_a_coroutine(gate: Barrier) -> None:
    """Wait in a coroutine of a coroutine."""
    await awaits_for_ever(gate)


async def awaits_for_ever(gate: Barrier) -> None:
    """The inner one."""
    gate.arrive()
    await asyncio.sleep(1000)


def with_signals_blocked(gate: Barrier) -> NoReturn:
    """Let no signal in that can be kept out."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    gate.arrive()
    while True:
        signal.pause()


def without_handlers(gate: Barrier) -> None:
    """Have signals do what they do by default."""
    for number in signal.valid_signals():
        try:
            signal.signal(number, signal.SIG_DFL)
        except (OSError, ValueError):
            continue
    gate.wait()


def handling(gate: Barrier) -> list[int]:
    """Handle the signals that programs use; which came."""
    came: list[int] = []
    for number in (signal.SIGUSR2, signal.SIGALRM):
        signal.signal(number, lambda number, _: came.append(number))
    gate.wait()
    return came


class Waits:
    """An actor whose calls wait."""

    async def work(self, gate: Barrier) -> None:
        await self.deep(gate)

    async def deep(self, gate: Barrier) -> None:
        gate.arrive()
        await asyncio.sleep(1000)

    def plain(self, gate: Barrier) -> Any:
        return innermost(gate)
