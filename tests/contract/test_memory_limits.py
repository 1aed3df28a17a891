"""Limits of a worker's private memory, growth that is told, and figures about both."""

from __future__ import annotations

import os
import signal
import warnings

import pytest

import shmexec
from shmexec.runtime import guard, monitor
from tests.contract import hoards
from tests.waiting import wait_until

MB = 1 << 20


@pytest.fixture
def at_start(start_method):
    """What a worker has at its start, in bytes, give or take 10 MB.

    What a forked one has from this process counts as its own.
    """
    return monitor.private_bytes(os.getpid()) if start_method == "fork" else 20 * MB


@pytest.fixture
def limited(make_executor, at_start):
    """An executor of one worker, which may take 80 MB."""
    return make_executor(1, max_worker_memory=at_start + 80 * MB)


def only_worker(executor):
    (worker,) = [w for w in executor.stats().workers if w.state != "draining"]
    return worker


def memory_warnings(told):
    """Forking warns of threads, too, on Python 3.12 and later."""
    return [str(w.message) for w in told if w.category is shmexec.MemoryWarning]


# -- after a call ------------------------------------------------------------------------


@pytest.mark.every_start
def test_a_worker_over_its_limit_is_replaced_after_its_call(limited):
    with pytest.warns(shmexec.MemoryWarning, match="max_worker_memory=") as told:
        pids = [limited.submit(hoards.keep, 55).result() for _ in range(6)]
        assert wait_until(lambda: told)
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5]
    assert len(memory_warnings(told)) == 1, "it is said once"
    stats = limited.stats()
    assert stats.workers_replaced == 3
    assert stats.worker_deaths == stats.failed == 0


@pytest.mark.one_kind
def test_what_a_call_gives_back_does_not_count(limited):
    pids = {limited.submit(hoards.hold, 120).result() for _ in range(3)}
    assert len(pids) == 1
    assert limited.stats().workers_replaced == 0


@pytest.mark.one_kind
def test_a_worker_over_its_limit_in_its_call_goes_on_and_is_looked_at_after(
    limited, gate
):
    future = limited.submit(hoards.hold_behind, gate, 120)
    (pid,) = gate.arrived()
    assert wait_until(lambda: only_worker(limited).private_bytes > 120 * MB)
    gate.open()
    assert future.result() == pid == limited.submit(os.getpid).result()
    assert only_worker(limited).peak_bytes > 120 * MB


@pytest.mark.one_kind
def test_calls_so_many_that_not_all_can_be_looked_after_are_not_let_grow(
    make_executor, at_start, monkeypatch
):
    for name in ("LOOKS_PER_SECOND", "BURST"):
        monkeypatch.setattr(guard, name, 0.0)
    executor = make_executor(1, max_worker_memory=at_start + 80 * MB)
    pids = set()

    def replaced():
        pids.add(executor.submit(hoards.keep, 1).result())
        return len(pids) > 1 and told

    with pytest.warns(shmexec.MemoryWarning) as told:
        assert wait_until(replaced)
    assert executor.stats().workers_replaced >= 1


@pytest.mark.one_kind
def test_an_actor_over_its_limit_is_rebuilt(limited):
    with limited.actor(hoards.Hoard) as actor:
        with pytest.warns(shmexec.MemoryWarning, match="Hoard.*more than") as told:
            kept = [actor.keep(55).result()[1] for _ in range(4)]
            assert wait_until(lambda: told)
    assert kept == [1, 2, 1, 2]


@pytest.mark.one_kind
def test_a_loaded_script_has_the_limit_too(tmp_path):
    path = tmp_path / "greedy.py"
    path.write_text(
        "import os\nkept = []\n"
        "def keep():\n    kept.append(b'x' * 90_000_000)\n    return os.getpid()\n"
    )
    with (
        pytest.warns(shmexec.MemoryWarning, match="80 MB") as told,
        shmexec.load(path, max_worker_memory="80MB") as script,
    ):
        assert script.keep().result() != script.keep().result()
        assert wait_until(lambda: told)


# -- within a call -----------------------------------------------------------------------


@pytest.mark.every_start
def test_a_worker_over_the_hard_limit_is_killed_in_its_call(
    make_executor, at_start, gate
):
    limit = at_start + 100 * MB
    executor = make_executor(1, max_worker_memory_hard=limit)
    future = executor.submit(hoards.take_all, gate, 200)
    error = future.exception()
    assert isinstance(error, shmexec.WorkerDied)
    assert f"max_worker_memory_hard={limit / 1e6:.0f} MB" in str(error)
    assert error.exitcode == -signal.SIGKILL
    assert error.memory > limit
    assert executor.submit(abs, -1).result() == 1
    stats = executor.stats()
    assert (stats.workers_killed, stats.worker_deaths, stats.failed) == (1, 0, 1)


# -- growth ------------------------------------------------------------------------------


@pytest.mark.one_kind
def test_steady_growth_is_told_once_in_figures(make_executor):
    executor = make_executor(1, max_worker_memory="10GB")
    with pytest.warns(shmexec.MemoryWarning, match=r"grows .* MB per call") as told:
        for _ in range(40):
            executor.submit(hoards.keep, 2).result()
        assert wait_until(lambda: told)
    (warning,) = memory_warnings(told)
    assert "2.1 MB per call" in warning
    assert "max_worker_memory=" in warning


@pytest.mark.one_kind
def test_it_is_told_without_a_limit_too(make_executor, monkeypatch):
    for name in ("INTERVAL", "INTERVAL_AT_MOST"):
        monkeypatch.setattr(guard, name, 0.001)
    executor = make_executor(1)

    def grown():
        executor.submit(hoards.keep, 2).result()
        return any(issubclass(each.category, shmexec.MemoryWarning) for each in told)

    with pytest.warns(shmexec.MemoryWarning, match=r"grows .* MB per call") as told:
        assert wait_until(grown)


# -- figures -----------------------------------------------------------------------------


@pytest.mark.one_kind
def test_figures_of_each_worker(make_executor):
    executor = make_executor(1)
    executor.submit(abs, 1).result()
    before = only_worker(executor)
    executor.submit(hoards.keep, 50).result()
    after = only_worker(executor)
    assert after.private_bytes - before.private_bytes >= 50 * MB
    assert after.growth_bytes - before.growth_bytes >= 50 * MB
    assert after.peak_bytes >= after.private_bytes
    stats = executor.stats()
    assert 0 < stats.memory_free <= monitor.total_bytes()
    assert stats.min_free_memory == monitor.default_reserve()
    assert not stats.paused


def test_shared_memory_is_not_private(make_executor):
    executor = make_executor(1)
    executor.submit(abs, 1).result()
    before = only_worker(executor).private_bytes
    result = executor.submit(bytearray_of, 64 * MB).result()
    after = only_worker(executor)
    assert after.private_bytes - before < 40 * MB
    assert after.arena_bytes >= result.nbytes


def bytearray_of(nbytes):
    import numpy as np

    return np.ones(nbytes, np.uint8)


@pytest.mark.one_kind
def test_a_worker_that_died_tells_what_it_had(make_executor, gate):
    executor = make_executor(1)
    future = executor.submit(hoards.hold_behind, gate, 60)
    (pid,) = gate.arrived()
    assert wait_until(lambda: only_worker(executor).private_bytes > 60 * MB)
    os.kill(pid, signal.SIGKILL)
    error = future.exception()
    assert error.memory > 60 * MB
    assert f"{error.memory / 1e6:.0f} MB of its own" in str(error)
    assert "possibly out of memory" in str(error)


@pytest.mark.one_kind
def test_the_kernels_own_count_says_that_memory_was_the_cause(
    make_executor, gate, monkeypatch
):
    kills = [3]
    monkeypatch.setattr(monitor, "oom_kills", lambda: kills[0])
    executor = make_executor(1)
    future = executor.submit(hoards.hold_behind, gate, 1)
    (pid,) = gate.arrived()
    kills[0] = 4
    os.kill(pid, signal.SIGKILL)
    assert "by the system for want of memory" in str(future.exception())


# -- settings ----------------------------------------------------------------------------


@pytest.mark.one_kind
@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"max_worker_memory": "much"}, ValueError, "max_worker_memory must be bytes"),
        ({"max_worker_memory": 0}, ValueError, "max_worker_memory must be greater"),
        ({"max_worker_memory_hard": 1.5}, TypeError, "max_worker_memory_hard must be"),
        ({"min_free_memory": -1}, ValueError, "min_free_memory must be"),
        (
            {"max_worker_memory": "2GB", "max_worker_memory_hard": "1GB"},
            ValueError,
            "must be at least max_worker_memory",
        ),
    ],
)
def test_settings_that_make_no_sense_fail_at_once(settings, error, text):
    with pytest.raises(error, match=text), warnings.catch_warnings():
        shmexec.Executor(1, **settings)
