"""What the tests of failures run in workers. Light: every worker imports this."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from tests.contract.calls import Barrier


def arrive(gate: Barrier) -> None:
    """Tell the test that this call is here, and go on."""
    arrived = os.open(f"{gate.folder}/arrived", os.O_WRONLY)
    os.write(arrived, os.getpid().to_bytes(8, "little"))
    os.close(arrived)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; called by the tests themselves."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        )
    except OSError:
        return True


def segfault() -> None:
    """Read at address zero."""
    ctypes.string_at(0)


def once(path: str, number: int = signal.SIGKILL) -> int:
    """Die at the first attempts, as often as the file allows; then return."""
    with open(path) as file:
        left = int(file.read())
    if left:
        with open(path, "w") as file:
            file.write(str(left - 1))
        os.kill(os.getpid(), number)
    return os.getpid()


def die_on_first_run(array: np.ndarray, path: str) -> float:
    """Spoil the argument and die; the second time return its sum."""
    total = float(array.sum())
    array[:] = 0
    once(path)
    return total


def with_subprocess(path: str) -> int:
    """Have a program run that inherits what is inheritable, then return."""
    child = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()"], close_fds=False
    )
    with open(path, "w") as file:
        file.write(str(child.pid))
    child.returncode = 0  # or its __del__ warns
    return os.getpid()


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """Have so many files open that new descriptors are above 1024."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limits[1]), limits[1]))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        yield
    finally:
        for descriptor in opened:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """Have the system give this process no more than it has."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def fork_among_many_files(array: np.ndarray) -> int:
    """Have a forked child that could look at the argument; then return its sum."""
    with many_files():
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    return int(array.sum())


def come_back_as_two(value: Any) -> Any:
    """Fork, and return from the call in both."""
    os.fork()
    return value


def sleep_for_ever(gate: Barrier) -> NoReturn:
    """In the simplest way."""
    arrive(gate)
    while True:
        signal.pause()


def ignore_everything(gate: Barrier) -> NoReturn:
    """Ignore SIGTERM and swallow what is raised."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    arrive(gate)
    while True:
        try:
            signal.pause()
        except BaseException:  # noqa: BLE001  (that is the point)
            continue


def block_signals(gate: Barrier) -> NoReturn:
    """Let no signal in that can be kept out."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    arrive(gate)
    while True:
        signal.pause()


def sleep_in_c(gate: Barrier) -> None:
    """Hold the GIL, in a call that a signal ends."""
    arrive(gate)
    ctypes.PyDLL(None).sleep(1000)


def stuck_in_c(gate: Barrier) -> None:
    """Hold the GIL, in a call that nothing ends: a mutex that is locked already."""
    arrive(gate)
    mutex = ctypes.create_string_buffer(128)
    libc = ctypes.PyDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def answer_late(gate: Barrier) -> str:
    """Catch the interrupt that is to stop this call, and return as if nothing was."""
    arrive(gate)
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        return "late"


def close_everything() -> None:
    """Close all descriptors, also those that are none of the call's business."""
    os.closerange(3, 1000)


class FailsToPickle:
    """Raises when it is pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> NoReturn:
        raise self.error


def leave_at_3(x: int) -> int:
    """Return it; ``sys.exit`` for 3."""
    if x == 3:
        sys.exit(5)
    return x


def note_and_fail_at_290(path: str, x: int) -> int:
    """Note the item and return it; raise for one."""
    with open(path, "a") as file:
        file.write(f"{x}\n")
    if x == 290:
        raise TypeError("unlucky")
    return x


def path_rows(path: str, rows: int) -> np.ndarray:
    """An array that tells a batch a path: the same bytes in each row."""
    return np.tile(np.frombuffer(path.encode().ljust(512, b"\0"), np.uint8), (rows, 1))


def note_and_fail_with_out(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Note that it ran, at the path in the rows, and raise."""
    with open(bytes(x[0]).decode().rstrip("\0"), "a") as file:
        file.write("ran\n")
    raise TypeError("unlucky")


HANGS = (sleep_for_ever, ignore_everything, block_signals, sleep_in_c, stuck_in_c)


def filled(nbytes: int, value: int = 1) -> np.ndarray:
    """A new array of bytes."""
    return np.full(nbytes, value, np.uint8)


def filled_behind(gate: Barrier, nbytes: int, value: int = 1) -> np.ndarray:
    """The same, after passing the gate."""
    gate.wait()
    return filled(nbytes, value)


def total(array: np.ndarray) -> int:
    """The sum."""
    return int(array.sum())


def total_behind(gate: Barrier, array: np.ndarray) -> int:
    """The sum, after passing the gate."""
    gate.wait()
    return int(array.sum())


def address(array: np.ndarray) -> int:
    """Where it lies in this process."""
    return int(array.__array_interface__["data"][0])


def half(x: np.ndarray) -> np.ndarray:
    """Half of it."""
    return x / 2


def is_read_only(x: np.ndarray) -> np.ndarray:
    """A row for each, saying whether it may not be written to."""
    return np.full(len(x), not x.flags.writeable)


def kind_of(x: np.ndarray) -> np.ndarray:
    """A row for each, saying what type it came as."""
    return np.full(len(x), isinstance(x, np.memmap))


def weighted(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Rows times weights."""
    return x * w[:, None]


def too_few(x: np.ndarray) -> np.ndarray:
    """One row less than there were."""
    return x[1:]


def other_shape_for_later(x: np.ndarray) -> np.ndarray:
    """Another trailing shape from row 10 on."""
    return x if x[0, 0] < 10 else x[:, :1]


def other_dtype_for_later(x: np.ndarray) -> np.ndarray:
    """Another dtype from row 10 on."""
    return x if x[0, 0] < 10 else x.astype(np.float32)


def fail_at_13(x: np.ndarray) -> np.ndarray:
    """Raise where a row starts with 13."""
    if 13 in x[:, 0]:
        raise ZeroDivisionError("unlucky")
    return x


def die_at_13(x: np.ndarray, path: np.ndarray) -> np.ndarray:
    """Die, once, where a row starts with 13; the file's path is in the rows."""
    if 13 in x[:, 0]:
        once(bytes(path[0]).decode().rstrip("\0"))
    return x


def hang_at_13(x: np.ndarray) -> np.ndarray:
    """Hang where a row starts with 13."""
    while 13 in x[:, 0]:
        signal.pause()
    return x


def print_by_child(text: str) -> None:
    """Have a child process print to both streams."""
    subprocess.run(["/bin/sh", "-c", f"echo {text}; echo {text} >&2"], check=True)


def print_by_c(text: bytes, *, die: bool = False) -> None:
    """Print with the C library, whose buffer Python knows nothing of."""
    library = ctypes.CDLL(None)
    library.printf(text)
    if die:
        os.kill(os.getpid(), signal.SIGKILL)


def print_later_by_child(path: str, text: str) -> int:
    """Start a child that prints when somebody opens the other end of the pipe."""
    command = f"read x < {path}; echo {text}; sleep 60"
    child = subprocess.Popen(
        ["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, start_new_session=True
    )
    child.returncode = 0  # not to be waited for
    return child.pid


def close_output() -> None:
    """Leave the writing ends to others."""
    os.close(1)
    os.close(2)


def log_in_child() -> tuple[int, int]:
    """Fork, and log there."""
    import logging

    child = os.fork()
    if child == 0:
        logging.getLogger("tests.child").warning("in the child")
        os._exit(0)
    os.waitpid(child, 0)
    return child, os.getpid()


def print_in_inner_pool(text: str) -> tuple[int, int]:
    """Print and log in a worker of a worker."""
    import shmexec

    with shmexec.Executor(1) as executor:
        return os.getpid(), executor.submit(print_and_log, text).result()


def print_and_log(text: str) -> int:
    """Both."""
    import logging

    sys.stdout.write(f"{text}\n")
    logging.getLogger("tests.inner").warning(text)
    return os.getpid()


def print_lines(call: int, number: int) -> int:
    """Print lines that can be told apart."""
    for i in range(number):
        sys.stdout.write(f"{call}:{i}\n")
    return call


def pids(number: int) -> Iterator[int]:
    """Yield the process id so often."""
    for _ in range(number):
        yield os.getpid()
