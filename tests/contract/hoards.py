"""What calls do that take memory and keep it; for workers to import."""

from __future__ import annotations

import os

MB = 1 << 20

kept: list[bytearray] = []


def keep(megabytes: int) -> int:
    """Keep so much more; the worker's process id."""
    kept.append(bytearray(megabytes * MB))
    fill(kept[-1])
    return os.getpid()


def hold(megabytes: int) -> int:
    """Take so much, and give it back; the worker's process id."""
    fill(bytearray(megabytes * MB))
    return os.getpid()


def hold_behind(gate, megabytes: int) -> int:
    """The same, and wait in between."""
    taken = bytearray(megabytes * MB)
    fill(taken)
    gate.wait()
    return os.getpid()


def take_all(gate, megabytes: int) -> None:
    """Take 10 MB at a time, up to so much, and wait."""
    taken = []
    for _ in range(megabytes // 10):
        taken.append(bytearray(10 * MB))
        fill(taken[-1])
    gate.wait()


def fill(data: bytearray) -> None:
    """Write to each page: else it is no memory yet."""
    data[::4096] = b"x" * len(data[::4096])


class Hoard:
    """An actor that keeps what it is given."""

    def __init__(self):
        self.kept = []

    def keep(self, megabytes):
        self.kept.append(bytearray(megabytes * MB))
        fill(self.kept[-1])
        return os.getpid(), len(self.kept)
