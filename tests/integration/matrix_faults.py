"""The faults of the matrix, as they come about in workers. Light: they import this."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

from tests.contract.calls import Barrier

CODE = 7
"""Of workers that exit."""

HALF = 40
"""Bytes of what was to be a message of 100: a head, and no more than part of the rest."""


class Plan:
    """Which fault strikes at which moment: once, in the first worker that gets there.

    The folder tells what became of it: ``armed``, then ``struck`` with the process id in
    it, then ``survived`` if the worker is able to go on.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self.fault = FAULTS[env["MATRIX_FAULT"]]
        self.moment = env["MATRIX_MOMENT"]
        self.folder = env["MATRIX_FOLDER"]
        self.replies = -1
        self.packets = True

    def reach(self, point: str, about: Any) -> None:
        """The hook."""
        if point == "worker.starting":  # a config
            self.replies, self.packets = about.replies.number, about.packets
        elif point.startswith("worker."):  # a line
            self.replies = about.replies.fileno()
        if point == self.moment:
            self.strike()

    def strike(self) -> None:
        """Bring the fault about, if it is armed."""
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{self.folder}/armed", f"{self.folder}/striking.{os.getpid()}")
            os.rename(f"{self.folder}/striking.{os.getpid()}", f"{self.folder}/struck")
            with open(f"{self.folder}/pid", "w") as file:
                file.write(str(os.getpid()))
            try:
                self.fault(self)
            finally:  # some faults leave no descriptor to tell it with
                os.rename(f"{self.folder}/struck", f"{self.folder}/survived")


_plan: Plan | None = None


def hook(env: Mapping[str, str]) -> Callable[[str, Any], object]:
    """What ``SHMEXEC_FAULT_HOOK`` names. Told by a signal, faults strike in idleness."""
    global _plan
    _plan = plan = Plan(env)
    signal.signal(signal.SIGUSR2, lambda *_: plan.strike())
    return plan.reach


def reach(point: str) -> None:
    """A moment that is in user code."""
    if _plan is not None:
        _plan.reach(point, None)


# -- what is called --------------------------------------------------------------------


def initialize(payload: np.ndarray) -> None:
    """The initializer."""
    assert payload[0] == payload[-1] == 5
    reach("test.initializer")


def double(array: np.ndarray) -> np.ndarray:
    """The call."""
    reach("test.call")
    return array * 2


def double_behind(gate: Barrier, array: np.ndarray) -> np.ndarray:
    """The call that another worker is at meanwhile."""
    gate.wait()
    return array * 2


HIT = 5
"""The item at which a fault strikes, in other ways of calling."""


def row(number: int) -> np.ndarray:
    """What an item becomes."""
    return np.full(50_000, number, np.uint8)


def tiny(number: int) -> int:
    """One of many in a pack."""
    if number == HIT:
        reach("test.call")
    return 2 * number


def stream(items: int) -> Iterator[np.ndarray]:
    """Items one after another."""
    for number in range(items):
        if number == HIT:
            reach("test.call")
        yield row(number)


class Model:
    """An actor's."""

    def step(self, number: int) -> np.ndarray:
        """One call at a time."""
        if number == HIT:
            reach("test.call")
        return row(number)


class Several:
    """An actor's that has several calls under way."""

    async def step(self, number: int) -> np.ndarray:
        """One of them."""
        await asyncio.sleep(0)
        if number == HIT:
            reach("test.call")
        return row(number)


def batch(items: list[int]) -> list[int]:
    """Items that were gathered."""
    if HIT in items:
        reach("test.call")
    return [2 * item for item in items]


def rows(x: np.ndarray) -> np.ndarray:
    """Some rows of an array."""
    if (x[:, 0] == HIT).any():
        reach("test.call")
    return x * 2


# -- faults ----------------------------------------------------------------------------


def _kill(_: Plan) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _segv(_: Plan) -> None:
    ctypes.string_at(0)


def _stop(_: Plan) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _hang(_: Plan) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        with contextlib.suppress(BaseException):
            signal.pause()


def _os_exit(_: Plan) -> NoReturn:
    os._exit(CODE)


def _sys_exit(_: Plan) -> NoReturn:
    sys.exit(CODE)


def _interrupt(_: Plan) -> NoReturn:
    raise KeyboardInterrupt


def _overflow(_: Plan) -> None:
    # The C library's parser calls itself for each parenthesis.
    soft, hard = 1 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]
    resource.setrlimit(resource.RLIMIT_STACK, (soft, hard))
    compiled = ctypes.create_string_buffer(1024)
    ctypes.CDLL(None).regcomp(compiled, b"(" * 1_000_000, 1)


def _no_memory(_: Plan) -> NoReturn:
    raise MemoryError("there is none left")


def _close(_: Plan) -> None:
    os.closerange(3, 1024)


def _close_and_stay(plan: Plan) -> NoReturn:
    os.close(plan.replies)
    while True:
        with contextlib.suppress(BaseException):
            signal.pause()


def _say_nothing(plan: Plan) -> NoReturn:
    """In packets a message without bytes looks like the end of data."""
    if plan.packets:
        socket.socket(fileno=os.dup(plan.replies)).send(b"")
        while True:
            with contextlib.suppress(BaseException):
                signal.pause()
    _close_and_stay(plan)


def _exhaust(_: Plan) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))


def _thread(_: Plan) -> None:
    threading.Thread(target=threading.Event().wait).start()


def _grandchild(plan: Plan) -> None:
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    with open(f"{plan.folder}/grandchild", "w") as file:
        file.write(str(child))
    os.kill(os.getpid(), signal.SIGKILL)


def _fill(_: Plan) -> None:
    """All room is used, and the parent has no more: once."""
    [memory] = [each for each in gc.get_objects() if _is_memory(each)]
    ask = memory._want_quota

    def refuse(nbytes: int, result: int) -> Any:
        from shmexec.worker.line import Grant

        if result:
            memory._want_quota = ask
        return Grant(0, False, memory.arena.quota, memory.arena.quota)

    memory._want_quota = refuse
    memory.arena.quota = memory.arena.blocks.used


def _is_memory(thing: Any) -> bool:
    cls = type(thing)
    return cls.__name__ == "WorkerMemory" and cls.__module__ == "shmexec.worker.memory"


def _truncate(plan: Plan) -> NoReturn:
    from shmexec.wire.messages import Kind, Message, encode

    data = encode(Message(Kind.LOG, payload=bytes(100)))
    if not plan.packets:
        from shmexec.wire.channel import framed

        data = framed(data)
    os.write(plan.replies, data[:HALF])
    os._exit(CODE)


def _garbage(plan: Plan) -> NoReturn:
    os.write(plan.replies, b"Traceback (most recent call last):\n")
    while True:  # it is for the parent to make an end of this
        with contextlib.suppress(BaseException):
            signal.pause()


FAULTS: dict[str, Callable[[Plan], object]] = {
    "SIGKILL": _kill,
    "SIGSEGV": _segv,
    "SIGSTOP, SIGCONT": _stop,
    "SIGTERM ignored": _hang,
    "os._exit": _os_exit,
    "sys.exit": _sys_exit,
    "KeyboardInterrupt": _interrupt,
    "stack overflow": _overflow,
    "MemoryError": _no_memory,
    "closed descriptors": _close,
    "closed, and goes on": _close_and_stay,
    "empty message": _say_nothing,
    "no descriptors left": _exhaust,
    "thread still running": _thread,
    "grandchild": _grandchild,
    "arena filled": _fill,
    "truncated message": _truncate,
    "garbage": _garbage,
}
