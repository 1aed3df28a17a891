"""What is read of processes: their private memory, until they have ended."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys

import psutil
import pytest

from shmexec.runtime import monitor
from tests.waiting import wait_until

MB = 1 << 20


@pytest.fixture
def sleeper():
    """A process that ends when its input does."""
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    yield process
    process.communicate()


def test_a_gauge_reads_again_and_again():
    gauge, part = monitor.Gauge(os.getpid()), b"x" * MB
    before = gauge.read()
    # What an allocator gives may have been this process's before, or goes with what was.
    more = mmap.mmap(-1, 30 * MB, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(30):
        more.write(part)
    after = gauge.read()
    assert after - before > 29 * MB
    assert after == pytest.approx(monitor.private_bytes(os.getpid()), abs=2 * MB)
    more.close()
    gauge.close()


def test_without_proc_psutil_is_asked(monkeypatch):
    direct = monitor.private_bytes(os.getpid())
    monkeypatch.setattr(monitor, "_PROC", False)
    assert monitor.private_bytes(os.getpid()) == pytest.approx(direct, abs=2 * MB)
    assert monitor.private_bytes(_free_pid()) is None


def test_a_process_that_has_ended_has_no_reading(sleeper):
    gauge = monitor.Gauge(sleeper.pid)
    assert wait_until(gauge.read)
    sleeper.stdin.close()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert gauge.read() is None, "it was not reaped yet"
    sleeper.wait()
    assert gauge.read() is None
    assert monitor.private_bytes(sleeper.pid) is None
    gauge.close()


def test_a_gauge_of_no_process():
    gauge = monitor.Gauge(_free_pid())
    assert gauge.read() is None
    gauge.close()


def test_the_reserve_is_a_twentieth_and_at_most_a_gibibyte(monkeypatch):
    for total, reserve in ((2 << 30, (2 << 30) // 20), (64 << 30, 1 << 30)):
        monkeypatch.setattr(monitor, "memory", lambda n=total: monitor.Memory(n, n))
        assert monitor.default_reserve.__wrapped__() == reserve


def _free_pid():
    return next(n for n in range(300_000, 10**6) if not psutil.pid_exists(n))
