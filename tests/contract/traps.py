"""Functions that return an array and keep a way to reach it. Run in workers, by name.

Each trap makes an array, keeps something that reaches its memory in :data:`KEPT`, and
returns the array, or something made of it. `Kept.look` is that memory as it is kept.
"""

from __future__ import annotations

import array
import contextvars
import ctypes
import dataclasses
import functools
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

N = 20_000
KEPT: list[Any] = []
LOOK: list[Callable[[], Any]] = []
TRAPS: dict[str, Callable[[], Any]] = {}
VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("VARIABLE")
BUFFER: list[Any] = []


def fresh(n: int = N) -> np.ndarray:
    """``0, 1, 2, ...``, made by an operation."""
    return np.arange(float(n)) + 0.0


def trap(fn: Callable[[], Any]) -> Callable[[], Any]:
    """Add it to the traps."""
    TRAPS[fn.__name__] = fn
    return fn


def keep(thing: Any, look: Callable[[Any], Any] = np.asarray) -> None:
    """Keep something; ``look`` finds the array's memory through it."""
    KEPT.append(thing)
    LOOK.append(lambda: look(thing))


# -- called by the tests -----------------------------------------------------------------


def spring(name: str) -> Any:
    """Run a trap."""
    return TRAPS[name]()


def seen() -> list[Any]:
    """What is in the kept memory, as plain lists; None for what is gone."""
    found = [look() for look in LOOK]
    return [None if each is None else np.array(each).ravel().tolist() for each in found]


def overwrite(value: float) -> None:
    """Change the kept memory, where that can be done."""
    for look in LOOK:
        target = look()
        if target is not None and target.flags.writeable:
            target[...] = value


def forget() -> None:
    """Keep nothing any more."""
    gc.enable()
    for thing in KEPT:
        if isinstance(thing, Waiting):
            thing.end()
    KEPT.clear()
    LOOK.clear()
    cached.cache_clear()


# -- the traps ----------------------------------------------------------------------------


@trap
def module_global():
    y = fresh()
    keep(y)
    return y


@trap
def kept_view():
    y = fresh()
    keep(y[5:])
    return y


@trap
def kept_and_returns_view():
    y = fresh()
    keep(y)
    return y[5:]


@trap
def kept_transpose():
    y = fresh().reshape(100, -1)
    keep(y.T)
    return y


@trap
def view_of_view():
    y = fresh()
    keep(y.reshape(100, -1)[1:][:, 2:].T)
    return y


@trap
def other_view_returned():
    y = fresh()
    keep(y[: N // 4])
    return y[N // 8 :]


@trap
def disjoint_views():
    y = fresh()
    keep(y[: N // 4])
    return y[N // 4 :]


@trap
def strided():
    y = fresh()
    keep(np.lib.stride_tricks.as_strided(y, (N // 2,), (16,)))
    return y


@trap
def base_chain():
    y = fresh()
    keep(np.asarray(memoryview(np.asarray(memoryview(y[1:])))[1:]))
    return y


@trap
def from_buffer():
    y = fresh()
    keep(np.frombuffer(y, np.uint8).view(float))
    return y[10:]


@trap
def a_memoryview():
    y = fresh()
    keep(memoryview(y))
    return y


@trap
def cast_memoryview():
    y = fresh()
    keep(y.data.cast("B"), lambda kept: np.frombuffer(kept, float))
    return y


@trap
def pickle_buffer():
    import pickle

    y = fresh()
    keep(pickle.PickleBuffer(y), lambda kept: np.frombuffer(kept, float))
    return y


@trap
def ctypes_object():
    y = fresh()
    keep((ctypes.c_double * N).from_buffer(y))
    return y


@trap
def ctypes_pointer():
    y = fresh()
    pointer = y.ctypes.data_as(ctypes.POINTER(ctypes.c_double))
    keep(pointer, lambda kept: np.ctypeslib.as_array(kept, (N,)))
    return y


@trap
def dlpack():
    y = fresh()
    keep(np.from_dlpack(y))
    return y


@trap
def flat_iterator():
    y = fresh()
    keep(y.flat, lambda kept: kept.base)
    return y


@trap
def nditer():
    y = fresh()
    keep(np.nditer(y, flags=["external_loop"]), lambda kept: kept.operands[0])
    return y


@trap
def broadcast():
    y = fresh()
    keep(np.broadcast_to(y, (3, N)))
    return y


@trap
def broadcast_returned():
    y = fresh()
    keep(y)
    return np.broadcast_to(y, (3, N))


class Nosy(np.ndarray):
    """Keeps what it was made from."""

    def __array_finalize__(self, parent):
        self.parent = parent


@trap
def subclass():
    y = fresh()
    keep(y.view(Nosy))
    return y


@trap
def subclass_returned():
    y = fresh()
    z = y.view(Nosy)
    keep(z.parent)
    return z


@trap
def object_array():
    y = fresh()
    holder = np.empty(1, object)
    holder[0] = y
    keep(holder, lambda kept: kept[0])
    return y


@trap
def out_argument():
    if not BUFFER:
        BUFFER.append(fresh())
    np.add(np.arange(float(N)), 0, out=BUFFER[0])
    keep(BUFFER[0])
    return BUFFER[0]


@trap
def out_result():
    y = np.empty(N)
    keep(y)
    return np.add(np.arange(float(N)), 0, out=y)


@functools.lru_cache
def cached():
    return fresh()


@trap
def cached_result():
    keep(cached())
    return cached()


@trap
def closure():
    y = fresh()
    keep(lambda: y, lambda kept: kept())
    return y


@trap
def default_argument():
    y = fresh()
    keep(lambda kept=y: kept, lambda kept: kept())
    return y


@trap
def partial():
    y = fresh()
    keep(functools.partial(np.asarray, y), lambda kept: kept())
    return y


@trap
def generator_frame():
    def run():
        yield y

    y = fresh()
    running = run()
    next(running)
    keep(running, lambda kept: kept.gi_frame.f_locals["y"])
    return y


@trap
def coroutine_frame():
    async def run(value):
        return value

    y = fresh()
    waiting = run(y)
    keep(waiting, lambda kept: kept.cr_frame.f_locals["value"])
    KEPT.append(Closing(waiting))
    return y


class Closing:
    """Closes a coroutine in time."""

    def __init__(self, coroutine):
        self.coroutine = coroutine

    def __del__(self):
        self.coroutine.close()


@trap
def traceback_frame():
    y = fresh()
    try:
        raise ValueError
    except ValueError as error:
        keep(error, lambda kept: kept.__traceback__.tb_frame.f_locals["y"])
    return y


class Waiting:
    """A thread whose frame holds the array."""

    def __init__(self, y):
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(y,))
        self.thread.start()

    def run(self, y):
        self.view = weakref.ref(y)
        self.over.wait()

    def end(self):
        self.over.set()
        self.thread.join()


@trap
def thread():
    y = fresh()
    keep(Waiting(y), lambda kept: kept.view())
    return y


@trap
def context_variable():
    y = fresh()
    context = contextvars.copy_context()
    context.run(VARIABLE.set, y)
    keep(context, lambda kept: kept[VARIABLE])
    return y


@trap
def finalizer_argument():
    class Thing:
        pass

    y, thing = fresh(), Thing()
    finalizer = weakref.finalize(thing, lambda _: None, y)
    keep((thing, finalizer), lambda kept: kept[1].peek()[2][0])
    return y


@trap
def weak_reference():
    y = fresh()
    keep(weakref.ref(y), lambda kept: kept())
    return y


@trap
def weak_reference_with_callback():
    y = fresh()
    keep(weakref.ref(y, lambda _: None), lambda kept: kept())
    return y


@trap
def uncollected_cycle():
    gc.disable()  # until it is forgotten
    y = fresh()
    cycle = [y]
    cycle.append(cycle)
    keep(weakref.ref(y), lambda kept: kept())
    return y


@trap
def field_view():
    y = np.empty(N, [("a", "f8"), ("b", "f8")])
    y["b"] = np.arange(N)
    keep(y["b"])
    return y


@trap
def field_view_returned():
    y = np.empty(N, [("a", "f8"), ("b", "f8")])
    y["b"] = np.arange(N)
    keep(y)
    return y["b"]


@trap
def over_bytearray():
    kept = bytearray(fresh().tobytes())
    keep(kept, lambda kept: np.frombuffer(kept, float))
    return np.frombuffer(kept)


@trap
def over_array_array():
    kept = array.array("d", fresh())
    keep(kept, lambda kept: np.frombuffer(kept, float))
    return np.frombuffer(kept)


@trap
def data_frame():
    import pandas as pd

    y = fresh().reshape(-1, 4)
    keep(pd.DataFrame(y, copy=False), lambda kept: kept.to_numpy())
    return y


@trap
def data_frame_returned():
    import pandas as pd

    y = fresh().reshape(-1, 4)
    keep(y)
    return pd.DataFrame(y, copy=False).to_numpy()


@trap
def sparse_matrix():
    from scipy import sparse

    y = fresh()
    index = np.arange(N, dtype=np.int32)
    kept = sparse.csr_array((y, index, np.array([0, N], np.int32)), copy=False)
    keep(kept, lambda kept: kept.data)
    return y


@trap
def masked_array():
    y = fresh()
    keep(np.ma.masked_array(y, copy=False), lambda kept: kept.data)
    return y


@trap
def masked_array_returned():
    y = fresh()
    keep(y)
    return np.ma.masked_less(y, -1, copy=False)


@dataclasses.dataclass
class Holder:
    """Holds something."""

    value: Any


@trap
def inside_dataclass():
    holder = Holder(fresh())
    keep(holder, lambda kept: kept.value)
    return holder


@trap
def inside_list():
    holder = [1, [fresh()]]
    keep(holder, lambda kept: kept[1][0])
    return holder


@trap
def inside_dict():
    holder = {"a": {"b": fresh()}}
    keep(holder["a"], lambda kept: kept["b"])
    return holder


@trap
def class_attribute():
    Holder.last = fresh()
    keep(Holder, lambda kept: kept.last)
    return Holder.last


@trap
def resized():
    y = fresh(N // 2)
    y.resize(N, refcheck=False)
    y[:] = np.arange(N)
    keep(y)
    return y


@trap
def zeros():
    y = np.zeros(N)
    y += np.arange(N)
    keep(y)
    return y


@trap
def read_only():
    y = fresh()
    y.flags.writeable = False
    keep(y)
    return y


def keep_argument(x: Any, how: str) -> Any:
    """Keep an argument, and return it."""
    if how == "it":
        keep(x)
    elif how == "view":
        keep(x[5:])
    elif how == "memoryview":
        keep(memoryview(x))
    elif how == "closure":
        keep(lambda: x, lambda kept: kept())
    elif how == "weak":
        keep(weakref.ref(x), lambda kept: kept())
    return x
