"""The script that the Node.js program calls."""

import os


def predict(x):
    """Twice x."""
    print("predicting")  # noqa: T201  (never mixed up with what the server says)
    return x * 2


def echo(value):
    return value


def fail(text):
    raise ValueError(text)


def die():
    os._exit(3)


def count_up(n):
    yield from range(n)


def endless():
    n = 0
    while True:
        yield n
        n += 1
