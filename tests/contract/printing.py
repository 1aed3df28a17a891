"""What the tests of output run in workers. Light: every worker imports this."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Any

from tests.contract.calls import Barrier, kill_me


def say(text: str, end: str = "\n", name: str = "stdout") -> str:
    """Print it."""
    print(text, end=end, file=getattr(sys, name))
    return text


def say_and(what: str, text: str) -> None:
    """Print without a newline, then raise or die."""
    sys.stdout.write(text)
    if what == "raise":
        raise ZeroDivisionError
    sys.stdout.flush()
    kill_me()


def say_lines(call: int, number: int) -> int:
    """Print lines that can be told apart, the last one without its end."""
    for i in range(number):
        print(f"{call}:{i}")
    print(f"{call}:end", end="|\n" if call % 2 else "|")
    return call


def write(data: bytes, descriptor: int = 1) -> int:
    """Write bytes, without Python's streams."""
    return os.write(descriptor, data)


def say_then_wait(gate: Barrier, text: str) -> None:
    """Print, and stay until the gate opens."""
    print(text)
    gate.wait()


def spoil(how: str) -> str:
    """Do what no call should do with its output."""
    if how == "close":
        os.close(1)
        os.close(2)
    elif how == "dup2":
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 1)
        os.dup2(null, 2)
        os.close(null)
    elif how == "close streams":
        sys.stdout.close()
        sys.stderr.close()
    elif how == "none":
        sys.stdout = sys.stderr = None  # type: ignore[assignment]
    elif how == "own":
        sys.stdout = sys.stderr = _Broken()  # type: ignore[assignment]
    else:
        os.write(1, bytes(range(256)) * 1000)
        os.write(2, b"\xa5\xff\x00" * 1000)
    return how


class _Broken:
    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        raise KeyboardInterrupt


def log(level: int, text: str, *args: Any, name: str = "tests.worker") -> None:
    """Log it."""
    logging.getLogger(name).log(level, text, *args, extra={"color": "blue"})


def log_error() -> None:
    """Log an exception, and what cannot be pickled."""
    try:
        raise ZeroDivisionError("in the worker")
    except ZeroDivisionError:
        extra = {"lock": threading.Lock()}
        logging.getLogger("tests.worker").exception("it %s", "failed", extra=extra)


def log_in_threads(number: int, each: int, size: int) -> None:
    """Log from several threads at once."""

    def run(which: int) -> None:
        for i in range(each):
            logging.getLogger("tests.worker").warning("%d %d %s", which, i, "x" * size)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def stream_settings() -> tuple[Any, ...]:
    """What the worker's own streams are."""
    return tuple(
        (s.encoding, s.errors, s.line_buffering, s is original)
        for s, original in ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__))
    )


def same_pipe(_: int) -> list[int]:
    """Descriptors of this process that lead where 1 and 2 do."""
    wanted = {os.readlink(f"/proc/self/fd/{number}") for number in (1, 2)}
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") in wanted:
                found.append(int(name))
        except OSError:
            continue
    return sorted(found)


def write_all(lines: int) -> None:
    """Write so many lines of 16 bytes, many at a time."""
    for _ in range(lines // 4000):
        sys.stdout.write("0123456789abcde\n" * 4000)
