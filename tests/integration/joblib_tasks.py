"""What tasks of `test_joblib` do; imported by name in workers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import joblib
from joblib import Parallel, delayed
from joblib.parallel import get_active_backend


class Holder:
    """An object with an array in it, as estimators have."""

    def __init__(self, values):
        self.values = {"here": [values]}


def pid(_=None):
    return os.getpid()


def look(array):
    """Sum, and whether it may be written to."""
    return float(array.sum()), array.flags.writeable


def look_into(holder):
    return look(holder.values["here"][0])


def look_at_frame(frame):
    return float(frame.to_numpy().sum()), frame.to_numpy().flags.writeable


def write(array, value):
    array[0] = value
    return float(array[0])


def write_and_tell(array, value, path):
    found = float(array[0])
    array[0] = value
    Path(path).touch()
    return found


def first_after(array, path):
    """What is there once another task has told."""
    while not Path(path).exists():
        time.sleep(0.005)
    return float(array[0])


def put(array, index):
    array[index] = index


def fail(path):
    """Raise, once another task runs."""
    while not Path(path).exists():
        time.sleep(0.005)
    raise ZeroDivisionError("on purpose")


def stay(path=None, seconds=60):
    if path is not None:
        Path(path).touch()
    time.sleep(seconds)


def strike(parent, path):
    """Interrupt the program that started this, and stay."""
    os.kill(parent, signal.SIGINT)
    stay(path)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def nesting(levels):
    """Kinds and levels of the backends below this task, innermost last."""
    backend, _ = get_active_backend()
    here = [(type(backend).__name__, backend.nesting_level)]
    if levels:
        here += Parallel(n_jobs=2)(delayed(nesting)(levels - 1) for _ in range(2))[0]
    return here


def threads():
    return os.environ["OMP_NUM_THREADS"], os.environ["NUMBA_NUM_THREADS"]


def on_the_backend(numbers):
    with joblib.parallel_config(backend="shmexec", n_jobs=2):
        return Parallel()(delayed(abs)(number) for number in numbers)
