"""What happened to a call; how the pool is; calls for one certain worker."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Future as BaseFuture

import pytest

import shmexec
from tests.contract import calls, models
from tests.integration import faults
from tests.waiting import wait_until

pytestmark = pytest.mark.one_kind


def told(executor, future):
    return [step.what for step in executor.story(future).steps]


def test_of_a_call_that_went_well(make_executor):
    executor = make_executor(1)
    future = executor.submit(calls.pid)
    pid = future.result()
    story = executor.story(future)
    assert (story.call, story.name, story.note) == (1, "pid", "")
    first, second, last = story.steps
    assert first == (0.0, "submitted", None, None)
    assert second[1:] == ("sent", 1, pid)
    assert last.what.startswith("done, after ")
    assert 0 <= second.seconds <= last.seconds
    assert str(story).splitlines()[0] == "call 1 of pid"
    assert f" s sent [worker 1, pid {pid}]" in str(story)


def test_of_a_call_on_its_way(make_executor, gate):
    executor = make_executor(1)
    first, second = (executor.submit(calls.through, gate) for _ in range(2))
    gate.arrived()
    assert told(executor, first) == ["submitted", "sent"]
    assert told(executor, second) == ["submitted"]
    gate.open()
    second.result()


def test_of_one_that_was_retried_and_failed(make_executor, tmp_path):
    executor = make_executor(1, retries=1)
    future = executor.submit(calls.kill_me)
    future.exception()
    steps = told(executor, future)
    assert steps[:2] == ["submitted", "sent"]
    assert "was killed by SIGKILL" in steps[2]
    assert steps[2].endswith("it runs again")
    assert steps[3] == "sent"
    assert steps[4].startswith("failed: died: worker 2 (pid ")
    assert len(steps) == 5


def test_of_one_that_its_worker_never_began(make_executor):
    executor = make_executor(1)
    pid = executor.submit(calls.pid).result()
    os.kill(pid, signal.SIGSTOP)
    future = executor.submit(calls.same, 1)
    os.kill(pid, signal.SIGKILL)
    assert future.result() == 1
    assert told(executor, future)[2].endswith("it had not begun")


def test_of_one_that_raised_one_cancelled_one_stopped(make_executor, gate):
    executor = make_executor(1)
    raised = executor.submit(calls.fail, ValueError("x"))
    raised.exception()
    assert told(executor, raised)[-1].startswith("failed: it raised, after ")
    stopped = executor.submit(calls.stay, gate)
    gate.arrived()
    cancelled = executor.submit(calls.same, 1)
    cancelled.cancel()
    stopped.cancel(running=True)
    stopped.exception()
    assert told(executor, cancelled) == ["submitted", "cancelled"]
    assert told(executor, stopped)[2] == "is to stop: cancelled"
    assert told(executor, stopped)[-1].startswith("failed: stopped")


def test_of_calls_in_packs(make_executor):
    executor = make_executor(1)
    executor.submit(calls.same, 0).result()
    futures = [executor.submit(calls.same, i) for i in range(50)]
    assert [future.result() for future in futures] == list(range(50))
    assert wait_until(lambda: executor.stats().done == 51)
    packed = [
        what for f in futures for what in told(executor, f) if "in a pack" in what
    ]
    assert packed
    assert all(told(executor, f)[-1].startswith("done") for f in futures)


def test_of_streams_and_actors(make_executor):
    executor = make_executor(1)
    stream = executor.stream(range, 3)
    assert list(stream) == [0, 1, 2]
    assert told(executor, stream)[1] == "sent"
    node = executor.actor(models.Counter)
    future = node.add()
    assert future.result() == 1
    assert executor.story(future).name == "add"


def test_of_many_only_the_latest_are_known(make_executor):
    executor = make_executor(1)
    first = executor.submit(calls.same, 0)
    last = [executor.submit(calls.same, i) for i in range(3000)][-1]
    last.result()
    assert told(executor, last)
    story = executor.story(first)
    assert story.steps == ()
    assert "not kept any more" in str(story)


def test_what_has_no_story(make_executor):
    executor, other = make_executor(1), make_executor(1, name="other")
    with pytest.raises(TypeError, match="a future that submit"):
        executor.story(BaseFuture())
    with pytest.raises(TypeError, match="a future that submit"):
        executor.story(3)
    with pytest.raises(ValueError, match="another executor, 'other'"):
        executor.story(other.submit(calls.same, 1))
    with executor.batcher(calls.same) as batcher:
        assert "an item of a batch" in executor.story(batcher(1.0)).note
    with shmexec.Executor(in_process=True) as here:
        assert "ran in this process" in str(here.story(here.submit(calls.same, 1)))


# -- health ------------------------------------------------------------------------------


def test_health_of_a_new_pool_and_a_closed_one(make_executor):
    executor = make_executor(2)
    health = executor.health()
    assert (health.state, health.workers, health.pending) == ("starting", 0, 0)
    assert (health.last_failure, health.last_failure_ago) == ("", None)
    executor.shutdown()
    assert executor.health().state == "closed"


def test_health_of_a_busy_pool(make_executor, gate):
    executor = make_executor(1)
    running, pending = (executor.submit(calls.through, gate) for _ in range(2))
    gate.arrived()
    health = executor.health()
    assert (health.state, health.workers, health.busy) == ("busy", 1, 1)
    assert health.pending == 1
    assert health.oldest_pending > 0
    assert health.private_bytes > 1_000_000
    gate.open()
    running.result(), pending.result()
    assert wait_until(lambda: executor.health().state == "ready")
    assert executor.health().oldest_pending == 0


def test_health_after_a_death_and_of_a_broken_pool(make_executor):
    executor = make_executor(1)
    executor.submit(calls.kill_me).exception()
    health = executor.health()
    assert health.restarts == 1
    assert "was killed by SIGKILL" in health.last_failure
    assert health.last_failure_ago >= 0
    broken = make_executor(1, initializer=calls.fail, initargs=(OSError("no disk"),))
    broken.submit(calls.same, 1).exception()
    assert broken.health().state == "failed"
    assert "no disk" in broken.health().last_failure


def test_health_in_process():
    with shmexec.Executor(in_process=True) as executor:
        assert executor.health().state == "ready"
    assert executor.health().state == "closed"


# -- options(worker=) --------------------------------------------------------------------


def test_calls_for_one_worker(make_executor):
    executor = make_executor(3)
    pids = set(executor.broadcast(os.getpid))
    assert len(pids) == 3
    for pid in pids:
        only = executor.options(worker=pid)
        assert {only.submit(calls.pid).result() for _ in range(3)} == {pid}
        assert set(only.map(calls.pid, range(20))) == {pid}
        assert set(only.stream(faults.pids, 2)) == {pid}


def test_a_call_waits_for_its_worker(make_executor, gate):
    executor = make_executor(2)
    executor.broadcast(os.getpid)
    running = executor.submit(calls.through, gate)
    [pid] = gate.arrived()
    waiting = executor.options(worker=pid).submit(calls.pid)
    assert executor.submit(calls.pid).result() != pid
    assert not waiting.done()
    gate.open()
    assert waiting.result() == pid
    running.result()


def test_a_worker_that_is_gone(make_executor, gate):
    executor = make_executor(1)
    executor.submit(calls.through, gate)
    [pid] = gate.arrived()
    future = executor.options(worker=pid, retries=3).submit(calls.same, 1)
    os.kill(pid, signal.SIGKILL)
    error = future.exception()
    assert isinstance(error, shmexec.WorkerDied)
    assert "before it began call 2 of same" in str(error)
    assert error.pid == pid
    with pytest.raises(ValueError, match=f"no worker with the process id {pid}"):
        executor.options(worker=pid).submit(calls.same, 1)
    assert executor.submit(calls.same, 1).result() == 1


def test_workers_are_named_rightly(make_executor):
    executor = make_executor(1)
    with pytest.raises(TypeError, match="worker must be an integer"):
        executor.options(worker="1")
    with pytest.raises(ValueError, match="worker must be greater than 0"):
        executor.options(worker=0)
    with pytest.raises(ValueError, match="not for an actor"):
        executor.options(worker=1).actor(models.Counter)
    with shmexec.Executor(in_process=True) as here:
        assert here.options(worker=os.getpid()).submit(calls.same, 1).result() == 1
        with pytest.raises(ValueError, match="nowhere else"):
            here.options(worker=1).submit(calls.same, 1)
