"""Functions that the tests run in workers. Light: every worker imports this."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, NoReturn

import numpy as np


class Barrier:
    """The worker's side of the fixture ``gate``."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def wait(self) -> None:
        """Tell that this call is here, and wait until it may go on."""
        self.arrive()
        go = os.open(f"{self.folder}/go", os.O_RDWR)
        # What is written from now on cannot be lost; what was before left a mark.
        if not os.path.exists(f"{self.folder}/over"):
            os.read(go, 1)
        os.close(go)

    def arrive(self) -> None:
        """Tell that this call is here."""
        arrived = os.open(f"{self.folder}/arrived", os.O_RDWR)
        os.write(arrived, os.getpid().to_bytes(8, "little"))
        os.close(arrived)


def through(gate: Barrier, value: Any = None) -> Any:
    """Pass the gate, then return the value."""
    gate.wait()
    return value


def through_then_raise(gate: Barrier, error: BaseException) -> NoReturn:
    """Pass the gate, then raise."""
    gate.wait()
    raise error


def stay(gate: Barrier) -> NoReturn:
    """Arrive, and never leave."""
    gate.arrive()
    while True:
        signal.pause()


def same(value: Any) -> Any:
    """Return it."""
    return value


def collect(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return all arguments."""
    return args, kwargs


def add(a: Any, b: Any) -> Any:
    """The sum."""
    return a + b


@functools.lru_cache
def cached(x: int) -> int:
    """Twice as much; no plain function."""
    return x * 2


def ten_by(x: int) -> float:
    """Fails for zero."""
    return 10 / x


def fail(error: BaseException) -> NoReturn:
    """Raise it."""
    raise error


def pid(*_: Any) -> int:
    """The worker's process id."""
    return os.getpid()


def in_main_thread() -> bool:
    """Whether calls run in the process's main thread."""
    return threading.current_thread() is threading.main_thread()


def kill_me(number: int = signal.SIGKILL, *_: Any) -> NoReturn:
    """End this worker by a signal."""
    os.kill(os.getpid(), number)
    while True:
        signal.pause()


def leave_at_once(code: int = 3) -> NoReturn:
    """End this worker without clean-up."""
    os._exit(code)


def leave(code: int = 3) -> NoReturn:
    """``sys.exit``."""
    raise SystemExit(code)


def interrupt() -> NoReturn:
    """As if somebody had pressed Ctrl-C in the worker."""
    raise KeyboardInterrupt


# -- objects that fail on their way --------------------------------------------------------


class Awkward:
    """Does something when it is pickled (``at="dumps"``) or unpickled (``"loads"``)."""

    def __init__(self, at: str, what: str) -> None:
        self.at = at
        self.what = what

    def __reduce__(self) -> tuple[Any, ...]:
        if self.at == "dumps":
            HAPPENS[self.what]()
        return HAPPENS[self.what], ()


class AwkwardError(Exception):
    """The same as an exception."""

    def __init__(self, at: str, what: str) -> None:
        super().__init__(at, what)
        self.at = at
        self.what = what

    def __reduce__(self) -> tuple[Any, ...]:
        return Awkward.__reduce__(self)  # type: ignore[arg-type]


class TwoArgumentsError(Exception):
    """Cannot be called back with its ``args``, as pickle does."""

    def __init__(self, first: object, second: object) -> None:
        super().__init__(f"{first} and {second}")


class Proxy:
    """Stands for something that is not there: whatever is asked of it raises."""

    def __getattr__(self, name: str) -> NoReturn:
        raise RuntimeError("nobody is bound")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise RuntimeError("nobody is bound")


def raise_division() -> NoReturn:
    """What an ``Awkward`` may do: raise."""
    raise ZeroDivisionError("awkward")


HAPPENS = {"error": raise_division, "exit": leave, "crash": leave_at_once}


def make_awkward(at: str, what: str) -> Awkward:
    """Return such an object."""
    return Awkward(at, what)


def raise_awkward(at: str, what: str) -> NoReturn:
    """Raise such an exception."""
    raise AwkwardError(at, what)


def raise_two_arguments() -> NoReturn:
    """Raise an exception that cannot be rebuilt."""
    raise TwoArgumentsError("this", "that")


class ErrorWithLock(Exception):
    """An exception that holds what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("has a lock")
        self.lock = threading.Lock()


def raise_lock() -> NoReturn:
    """Raise it."""
    raise ErrorWithLock


def make_lock() -> Any:
    """Return what cannot be pickled."""
    return {"model": [threading.Lock()]}


def generate() -> Any:
    """A generator function."""
    yield 1


class Noting:
    """Writes to a file when it is collected."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __del__(self) -> None:
        with open(self.path, "a") as file:
            file.write(f"{os.getpid()}\n")


class Thing:
    """Has a method, and can be watched by a weak reference."""

    def method(self) -> int:
        """The answer."""
        return 42

    def __call__(self, x: int) -> int:
        """An instance that is a function."""
        return x + 42


def nested_error() -> None:
    """Raise with a cause, two frames deep."""
    try:
        raise_division()
    except ZeroDivisionError as error:
        raise ValueError("outer") from error


STATE: dict[str, Any] = {}


def set_state(**values: Any) -> None:
    """An initializer."""
    STATE.update(values)


def get_state(name: str) -> Any:
    """What the initializer set."""
    return STATE.get(name)


def fail_in_file(path: str) -> None:
    """An initializer that fails from the second process on."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        raise ValueError("no second one") from None


def note(path: str, text: str) -> None:
    """Append a line to a file."""
    with open(path, "a") as file:
        file.write(f"{text}\n")


def note_start(*args: Any) -> None:
    """An initializer that keeps its arguments."""
    STATE["start"] = args


def try_lock() -> bool:
    """Whether the lock that the initializer got is free."""
    lock = STATE["lock"]
    free: bool = lock.acquire(False)
    if free:
        lock.release()
    return free


def pid_and(value: Any) -> tuple[int, str]:
    """The worker's process id; the value is only looked at."""
    return os.getpid(), type(value).__name__


# -- arrays --------------------------------------------------------------------------------


@dataclasses.dataclass
class Record:
    """Holds arrays."""

    array: Any
    more: Any


class WithUnit(np.ndarray):
    """A subclass with an attribute that its pickle carries."""

    unit = ""

    @classmethod
    def make(cls, array: np.ndarray, unit: str) -> WithUnit:
        """A view of an array, with a unit."""
        view = array.view(cls)
        view.unit = unit
        return view

    def __reduce__(self) -> Any:
        rebuild, args, state = super().__reduce__()
        return rebuild, args, (state, self.unit)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state[0])
        self.unit = state[1]


def look_at(array: np.ndarray) -> dict[str, Any]:
    """What can be seen of an array, but for its strides."""
    return {
        "type": type(array).__name__,
        "dtype": array.dtype.str,
        "shape": array.shape,
        "sum": float(array.sum()),
        "last": float(array.flat[-1]),
        "writeable": bool(array.flags.writeable),
    }


def total_and_type(array: np.ndarray) -> tuple[float, str]:
    """The sum, and the type's name."""
    return float(array.sum()), type(array).__name__


def fill(array: np.ndarray, value: float) -> np.ndarray:
    """Write to the argument, and return it."""
    array[...] = value
    return array


def set_item(table: Any, key: Any, value: Any) -> Any:
    """Change the argument, and return it."""
    table[key] = value
    return table


def are_same(one: Any, other: Any) -> bool:
    """Whether the two are one object."""
    return one is other


def twice(value: Any) -> tuple[Any, Any]:
    """The same object two times."""
    return value, value


def kept_array(n: int) -> np.ndarray:
    """An array that this worker keeps."""
    array = STATE["array"] = np.ones(n)
    return array


def change_kept() -> None:
    """Change it later."""
    if "array" in STATE:
        STATE["array"][:] = -1


def keep(array: np.ndarray) -> None:
    """Keep the argument."""
    STATE["array"] = array


def kept() -> Any:
    """What was kept."""
    return STATE["array"]


def act(what: str, where: Any = None, value: Any = None) -> Any:
    """One of several things, so that they are calls of one kind, tiny ones mostly."""
    if what == "wait":
        where.wait()
    elif what == "note":
        note(where, str(value))
    elif what == "note and wait":
        note(where.folder + "/notes", str(value))
        where.wait()
    elif what == "note and nap":
        note(where, str(value))
        time.sleep(0.012)
    elif what == "note and die":
        note(where, str(value))
        kill_me()
    elif what == "raise":
        raise ZeroDivisionError(value)
    elif what == "make":
        return np.full(value, 1.0)
    elif what == "text":
        return "x" * value
    return value


async def double_later(x: Any) -> Any:
    """Twice ``x``, by way of the event loop."""
    import asyncio

    await asyncio.sleep(0)
    return 2 * x


def touch_and_sleep(folder: Any) -> None:
    """Leave a file with the worker's name; then run until stopped."""
    (folder / str(os.getpid())).touch()
    time.sleep(60)


def die_if(path: str) -> None:
    """As an initializer: end the worker if there is such a file."""
    if os.path.exists(path):
        os._exit(3)


def count(path: str, value: Any = None) -> Any:
    """Leave a mark for each time that this runs."""
    with open(path, "a") as file:
        file.write(".")
    return value


def count_and_die(path: str) -> NoReturn:
    """Leave a mark, then end the process."""
    count(path)
    os._exit(3)


def write_to(array: np.ndarray, value: float) -> float:
    """Set all of an array; what it was in sum."""
    total = float(array.sum())
    array[...] = value
    return total


async def later(value: Any) -> Any:
    """A coroutine function."""
    return value


REQUEST: ContextVar[Any] = ContextVar("request")
USER: ContextVar[str] = ContextVar("user", default="nobody")


def get_request(*_: Any) -> Any:
    """The value of a context variable; "unset" if it has none."""
    return REQUEST.get("unset")


def set_request(value: Any) -> Any:
    """Set it; what it was before."""
    before = REQUEST.get("unset")
    REQUEST.set(value)
    return before


def get_both() -> tuple[Any, str]:
    """The values of both."""
    return REQUEST.get("unset"), USER.get()


async def get_request_later() -> Any:
    """The value, in a coroutine."""
    await asyncio.sleep(0)
    return REQUEST.get("unset")


async def get_request_later_of(_item: Any) -> Any:
    """The same for each item of a map."""
    return await get_request_later()


def requests(number: int) -> Iterator[Any]:
    """The value, that often; sets it as it goes on."""
    for i in range(number):
        yield REQUEST.get("unset")
        REQUEST.set(i)


class Holder:
    """Has a context variable that can be imported."""

    variable: ContextVar[Any] = ContextVar("in a class")


def count_and_yield(path: str) -> Iterator[int]:
    """Leave a mark, then yield."""
    count(path)
    yield from (1, 2)
