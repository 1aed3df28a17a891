"""What the soak runs in workers. Light: every worker imports this."""

from __future__ import annotations

import os
import signal
import time

import numpy as np


def same(x):
    return x


def plus_one(x):
    return x + 1


def plus_one_in_place(x):
    x += 1
    return x


def total(x):
    return int(x.sum(dtype=np.int64))


def evens(x):
    return x[::2]


def twice(x):
    return [x, {"same": x, "more": x + 1}]


def scaled(x, factor):
    return x * factor


async def later(x):
    return x


def refuse(x):
    raise ValueError(x)


def nap(seconds):
    time.sleep(seconds)


def die(how):
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), getattr(signal, how))


def arrays(count, nbytes):
    for number in range(count):
        yield np.full(nbytes, number % 251, np.uint8)


class Model:
    def __init__(self, weight):
        self.weight = weight
        self.calls = 0

    def step(self, x):
        self.calls += 1
        return self.calls, x * self.weight


SCRIPT = """
import numpy as np

OFFSET = 3

def predict(x):
    return np.asarray(x) + OFFSET
"""
