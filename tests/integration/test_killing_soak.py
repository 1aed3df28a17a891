"""Many calls, with workers killed at random meanwhile: only the killed ones fail."""

from __future__ import annotations

import os
import random
import signal

import numpy as np
import pytest

import shmexec
from tests.contract import calls

pytestmark = pytest.mark.slow


def doubled(x):
    """Of a number or an array."""
    return x * 2


def soak(executor, make_gate, number, seed):
    """Each hundredth call is caught while it runs, and its worker killed."""
    chance = random.Random(seed)
    array = np.arange(20_000, dtype=np.float64)
    futures, expected, killed = [], [], set()

    def check(count):
        while futures and len(futures) > count:
            future, right = futures.pop(0), expected.pop(0)
            if future in killed:
                killed.discard(future)
                error = future.exception()
                assert isinstance(error, shmexec.WorkerDied), error
                assert error.exitcode == -signal.SIGKILL
            else:
                np.testing.assert_array_equal(future.result(), right)

    deaths = 0
    victim_at = chance.randrange(100)
    for n in range(number):
        if n % 100 == victim_at:
            gate = make_gate()
            future = executor.submit(calls.through, gate, n)
            killed.add(future)
            futures.append(future)
            expected.append(None)
            # Calls behind and beside it are under way when the worker dies.
            for behind in range(chance.randrange(4)):
                futures.append(executor.submit(doubled, array + behind))
                expected.append((array + behind) * 2)
            os.kill(gate.arrived()[0], signal.SIGKILL)
            deaths += 1
            victim_at = chance.randrange(100)
        elif chance.random() < 0.1:
            futures.append(executor.submit(doubled, array + n))
            expected.append((array + n) * 2)
        else:
            futures.append(executor.submit(doubled, n))
            expected.append(n * 2)
        check(30)
    check(0)
    assert not killed
    assert executor.stats().worker_deaths == deaths
    assert executor.stats().failed == deaths
    assert deaths > number // 200


def test_killed_calls_fail_and_no_others(make_executor, make_gate):
    soak(make_executor(2), make_gate, 500, seed=1)


@pytest.mark.stress
@pytest.mark.every_start
def test_thousands_of_calls(make_executor, make_gate, start_method):
    number = 2_000 if start_method == "spawn" else 10_000  # each death is a start
    soak(make_executor(2), make_gate, number, seed=2)


def test_idle_and_reading_workers_killed_at_random(make_executor):
    """Killed at any moment: a call may be hit or not, but all end, and none is wrong."""
    executor = make_executor(2)
    chance = random.Random(3)
    array = np.arange(10_000)
    failed = 0
    for n in range(80):
        futures = [executor.submit(doubled, array + k) for k in range(3)]
        pids = [w.pid for w in executor.stats().workers if w.pid]
        if n % 10 == 0 and pids:
            os.kill(chance.choice(pids), signal.SIGKILL)
        for k, future in enumerate(futures):
            error = future.exception()
            if error is None:
                np.testing.assert_array_equal(future.result(), (array + k) * 2)
            else:
                assert isinstance(error, shmexec.WorkerDied)
                failed += 1
    assert failed <= 8
    assert executor.submit(doubled, 1).result() == 2
