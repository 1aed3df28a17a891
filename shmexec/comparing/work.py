"""What the workers run. Light, and importable by every system."""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

_PATTERN = 251  # a prime: shifted or repeated blocks do not look like the right ones
_made: dict[int, np.ndarray] = {}


def echo(token: int) -> int:
    """Do nothing; the token proves that this very call ran."""
    return token


def each(fn: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """A chunk of a map."""
    return [fn(item) for item in items]


def who(seconds: float) -> int:
    """Keep a worker busy; its process id."""
    time.sleep(seconds)
    return os.getpid()


def last(array: np.ndarray) -> float:
    """The last element: proof of arrival that touches one page."""
    return float(array[-1])


def last_and(array: np.ndarray, token: int) -> tuple[float, int]:
    """The last element, and the token."""
    return float(array[-1]), token


def total(array: np.ndarray) -> float:
    """The sum; exact, since the elements are small whole numbers."""
    return float(array.sum())


def total_and(array: np.ndarray, token: int) -> tuple[float, int]:
    """The sum, and the token."""
    return float(array.sum()), token


def wave(array: np.ndarray) -> float:
    """The sum of the sines: some work for each element."""
    return float(np.sin(array).sum())


def wave_of(array: np.ndarray, start: int, stop: int) -> float:
    """The same over a part of an array."""
    return wave(array[start:stop])


def plus(array: np.ndarray, token: float) -> np.ndarray:
    """A new array: each element and the token."""
    return array + token


def fresh(nbytes: int, token: float) -> np.ndarray:
    """A new array that nobody else has."""
    return np.full(nbytes // 8, token)


def cached(nbytes: int, token: float) -> np.ndarray:
    """An array that was made by an earlier call, with the token as last element."""
    array = _made.get(nbytes)
    if array is None:
        array = _made[nbytes] = pattern(nbytes)
    array[-1] = token
    return array


def stamp(array: np.ndarray) -> np.ndarray:
    """The argument, the negative of its last element written to its first."""
    if not array.flags.writeable:  # some systems give no other
        array = array.copy()
    array[0] = -array[-1]
    return array


def pattern(nbytes: int) -> np.ndarray:
    """A float64 array of so many bytes with known content, every page touched."""
    return np.resize(np.arange(_PATTERN, dtype=np.float64), nbytes // 8)


# -- whole programs --------------------------------------------------------------------

WIDTHS = (256, 512, 512, 10)


@functools.cache
def layers() -> list[np.ndarray]:
    """The weights of a perceptron; a worker makes them once, as it would load a file."""
    random = np.random.default_rng(7)
    return [
        random.standard_normal((rows, columns)).astype(np.float32) / np.float32(rows)
        for rows, columns in itertools.pairwise(WIDTHS)
    ]


LAYER = (1024, 256)
"""Inputs and outputs of one layer."""


def layer(batch: np.ndarray) -> np.ndarray:
    """Rows multiplied by the weights of one layer, which a worker makes once."""
    return batch @ _layer_weights()


@functools.cache
def _layer_weights() -> np.ndarray:
    return np.random.default_rng(3).random(LAYER, np.float32)


def perceptron(batch: np.ndarray) -> np.ndarray:
    """Three layers over a batch: (rows, 256) float32 to (rows, 10)."""
    *hidden, final = layers()
    for weights in hidden:
        batch = np.maximum(batch @ weights, 0)
    return batch @ final


def perceptron_of(inputs: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The same over some rows of a larger array."""
    return perceptron(inputs[start:stop])


def frame_means(frame: Any) -> Any:
    """The mean of each column."""
    return frame.mean()


def frame_stamp(frame: Any) -> Any:
    """The argument, the negative of one element written to another."""
    value = -frame.iat[-1, 0]
    try:
        frame.iat[0, 0] = value
    except ValueError:  # read-only, as some systems give it
        frame = frame.copy()
        frame.iat[0, 0] = value
    return frame


def import_slow(token: int) -> int:
    """Use a module that takes long to import."""
    from shmexec.comparing import slow_module

    return slow_module.echo(token)
