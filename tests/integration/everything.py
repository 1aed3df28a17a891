"""A program that has all of it open, to be ended somehow; imported by scripts."""

from __future__ import annotations

import os
import time

import numpy as np

import shmexec

SIZE = 100_000


class Model:
    """Of actors and pipelines."""

    def __init__(self):
        self.count = 0

    def process(self, x):
        self.count += 1
        return x + self.count


def nap(x, seconds=0.02):
    time.sleep(seconds)
    return x


def items(count):
    for number in range(count):
        yield np.full(SIZE, number)


def double(rows):
    return rows * 2


class Everything:
    """An executor whose calls, streams, actors, batchers and pipelines are under way."""

    def __init__(self, method):
        self.ex = ex = shmexec.Executor(2, method)
        self.result = ex.submit(np.ones, SIZE).result()
        self.shared = shmexec.share(np.ones(SIZE))
        self.actor = ex.actor(Model)
        self.pipe = ex.pipeline(Model)
        self.batch = ex.batcher(double)
        self.stream = ex.stream(items, 1000, buffersize=2)
        next(self.stream)
        self.lazy = ex.map(nap, range(1000), buffersize=2)
        next(self.lazy)
        self.pipe.submit(1).result()
        self.futures = [ex.submit(nap, self.shared) for _ in range(4)]
        self.futures += [
            self.actor.process(np.zeros(SIZE)),
            self.batch(np.ones(4)),
            self.pipe.submit(np.zeros(SIZE)),
        ]

    def uses(self):
        """What may be asked of it, each waited for.

        Not what waits for every worker: one is busy with the stream.
        """
        ex = self.ex
        return [
            lambda: ex.submit(int).result(),
            lambda: list(ex.map(int, [1])),
            lambda: list(ex.map_batches(double, np.ones((4, 2)), batch_size=2)),
            lambda: list(ex.stream(items, 2)),
            lambda: ex.resize(3),
            lambda: ex.actor(Model).process(1).result(),
            lambda: list(ex.pipeline(Model).map([1])),
            lambda: ex.batcher(double)(np.ones(4)).result(),
            lambda: self.actor.process(1).result(),
            lambda: self.pipe.submit(1).result(),
            lambda: list(self.pipe.map([1, 2])),
            lambda: self.batch(np.ones(4)).result(),
            lambda: [next(self.lazy) for _ in range(20)],
            lambda: [next(self.stream) for _ in range(20)],
        ]

    def goes_on(self):
        """Check that all of it still works."""
        sums = [float(future.result().sum()) for future in self.futures]
        assert sums == [SIZE] * 5 + [8.0, 2 * SIZE], sums
        assert next(self.stream)[0] == 1
        assert next(self.lazy) == 1
        assert self.ex.submit(nap, 5).result() == 5
        assert self.actor.process(1).result() == 3
        assert self.pipe.submit(1).result() == 4
        assert self.batch(np.ones(4)).result().sum() == 8
        assert self.result.sum() == self.shared.sum() == SIZE

    def close(self):
        """Drop what holds workers for ever, and use what is left."""
        self.stream.close()
        self.lazy.close()
        self.ex.resize(2)
        assert len(set(self.ex.broadcast(os.getpid))) >= 2
