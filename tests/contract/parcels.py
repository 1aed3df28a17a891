"""What the tests of parcels run in workers. Light: every worker imports this."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import numpy as np

from shmexec.wire.parcels import ForWorker
from tests.contract import calls
from tests.integration import faults

_kept: list[Any] = []


def on(fn: Any, value: Any, *args: Any) -> ForWorker:
    """Call ``fn``; its result is for another worker."""
    return ForWorker(fn(value, *args))


def add_one(x: np.ndarray) -> np.ndarray:
    """In place."""
    x += 1
    return x


def another(x: np.ndarray) -> np.ndarray:
    """A new array."""
    return x + 1


def most(x: np.ndarray) -> np.ndarray:
    """Not all of it."""
    return x[: len(x) * 3 // 4]


def thinned(x: np.ndarray) -> np.ndarray:
    """Nothing that lies in one piece."""
    return x[::2]


def parts(x: np.ndarray) -> list[np.ndarray]:
    """Views of one block."""
    return [x[: len(x) // 2], x[len(x) // 2 :], x]


def keep(x: np.ndarray) -> np.ndarray:
    """Return what is kept as well."""
    _kept[:] = [x]
    return x


def kept(_: Any = None) -> float:
    """What is kept, its first element; changes it, and lets go of it."""
    (x,) = _kept
    first = float(x[0])
    x[:] = -1
    _kept.clear()
    return first


def flags(x: np.ndarray) -> tuple[bool, float]:
    """Whether it may be written to, and its sum."""
    return x.flags.writeable, float(x.sum())


def boxed(x: np.ndarray) -> Any:
    """An object of a class that only this worker knows."""

    class Box:
        made_in = os.getpid()

        def __init__(self, x: np.ndarray) -> None:
            self.x = x

    return Box(x)


def marked(cls: Any, x: Any) -> Any:
    """An object of a class that came by value; its class is changed here."""
    cls.count += 1
    return cls(x)


def count_of(box: Any) -> tuple[int, bool]:
    """What the class says here, and whether it is the one that is known here."""
    return type(box).count, type(box) is type(_kept[0])


def know(box: Any) -> None:
    """Keep an object, and so its class."""
    _kept[:] = [box]


def forget() -> None:
    """Keep nothing."""
    _kept.clear()


def spoil_and_die(x: np.ndarray, path: str) -> float:
    """See :func:`faults.die_on_first_run`."""
    return faults.die_on_first_run(x, path)


def stay(_: Any, gate: calls.Barrier) -> NoReturn:
    """Arrive, and never leave."""
    calls.stay(gate)
