"""What has gone wrong in systems of this kind: each test shows that it does not here.

What is shown elsewhere: four hanging calls in a row (``test_timeouts``); all workers
dead, ``sys.exit`` in a call, a grandchild that holds the pipes (``test_crashes``);
submitting during a shutdown (``test_shutdown``).
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

import shmexec
from tests.contract import calls
from tests.integration import faults
from tests.waiting import LONG, wait_until

# -- replies that come too late ----------------------------------------------------------


def test_a_late_reply_of_a_timed_out_call_is_nobodys_result(make_executor, gate):
    executor = make_executor(1)
    pid = executor.submit(calls.pid).result()
    for n in range(3):
        late = executor.options(timeout=0.1).submit(faults.answer_late, gate)
        later = [executor.submit(calls.same, (n, i)) for i in range(5)]
        assert isinstance(late.exception(LONG), shmexec.CallTimeout)
        assert [future.result(LONG) for future in later] == [(n, i) for i in range(5)]
    assert executor.submit(calls.pid).result(LONG) != pid


def test_a_late_reply_of_a_stopped_call_is_nobodys_result(make_executor, gate):
    executor = make_executor(1)
    late = executor.submit(faults.answer_late, gate)
    gate.arrived()
    later = executor.submit(calls.same, "own")
    assert late.cancel(running=True)
    assert later.result(LONG) == "own"
    assert isinstance(late.exception(LONG), shmexec.CallStopped)


def test_what_a_dying_worker_still_wrote_counts_for_its_own_call(make_executor):
    # The reply is in the socket when the worker dies, before anybody has read it.
    executor = make_executor(1)
    pid = executor.submit(calls.pid).result()
    pool = executor._pool
    [worker] = pool._workers.values()
    leading = pool.leading
    leading._claimed = True
    leading.waker.wake()
    assert leading._lead.acquire(timeout=LONG)  # nobody reads
    first = executor.submit(calls.same, "own")
    assert select.select([worker.replies], [], [], LONG)[0]
    os.kill(pid, signal.SIGKILL)
    assert select.select([worker.process.sentinel], [], [], LONG)[0]
    leading._lead.release()
    second = executor.submit(calls.same, "next")
    assert first.result(LONG) == "own"
    assert second.result(LONG) == "next"


# -- workers that cannot be had ------------------------------------------------------------


def test_when_no_worker_can_be_started_any_more_queued_calls_fail(
    make_executor, gate, tmp_path
):
    path = tmp_path / "left"
    path.write_text("0")
    executor = make_executor(
        2, initializer=faults.once, initargs=(str(path),), max_restarts=1
    )
    running = [executor.submit(calls.through, gate) for _ in range(2)]
    pids = gate.arrived(2)
    queued = [executor.submit(calls.same, n) for n in range(10)]
    path.write_text("1000")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert not wait(running + queued, timeout=LONG).not_done
    for future in running:
        assert isinstance(future.exception(), shmexec.WorkerDied)
    for future in queued:
        assert isinstance(future.exception(), shmexec.PoolBroken)
    with pytest.raises(shmexec.PoolBroken):
        executor.submit(calls.same, 1)


def test_failed_starts_are_counted_afresh_after_each_success(make_executor, tmp_path):
    path = tmp_path / "left"
    path.write_text("0")
    executor = make_executor(
        1, initializer=faults.once, initargs=(str(path),), max_restarts=1
    )
    for _ in range(4):  # more of them than would break the pool in a row
        pid = executor.submit(calls.pid).result(LONG)
        path.write_text("1")
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: faults.is_gone(pid))  # noqa: B023  (called at once)
    assert executor.submit(calls.same, "right").result(LONG) == "right"
    assert path.read_text() == "0"


# -- calls that cannot reply ---------------------------------------------------------------


def test_a_call_that_closed_its_workers_descriptors_fails_alone(fresh_executor, gate):
    other = fresh_executor.submit(calls.through, gate, "right")
    gate.arrived()
    error = fresh_executor.submit(faults.close_everything).exception(LONG)
    assert isinstance(error, shmexec.WorkerDied)
    assert "close_everything" in str(error)
    assert fresh_executor.submit(calls.same, 1).result(LONG) == 1
    gate.open()
    assert other.result(LONG) == "right"


@pytest.mark.parametrize("kind", [MemoryError, RecursionError, GeneratorExit])
@pytest.mark.parametrize("at", ["call", "result"])
def test_a_call_that_fails_before_its_reply_still_replies(fresh_executor, kind, at):
    pid = fresh_executor.submit(calls.pid).result()
    fn = calls.fail if at == "call" else faults.FailsToPickle
    error = fresh_executor.submit(fn, kind("no more")).exception(LONG)
    if at == "call":
        assert type(error) is kind
    else:
        assert isinstance(error, shmexec.SerializationError)
        assert "FailsToPickle" in str(error)
    assert fresh_executor.submit(calls.pid).result() == pid


# -- the end -------------------------------------------------------------------------------


@pytest.mark.parametrize("cancel", [False, True])
def test_several_threads_shut_down_at_once(make_executor, gate, cancel):
    executor = make_executor(2)
    running = executor.submit(calls.through, gate, "right")
    gate.arrived()
    together = threading.Barrier(4)

    def end():
        together.wait()
        executor.shutdown(cancel_futures=cancel)
        return running.done()

    with ThreadPoolExecutor(4) as threads:
        ended = [threads.submit(end) for _ in range(4)]
        assert not wait(ended, timeout=0.05).done, "it waits for the call that runs"
        gate.open()
        assert all(future.result(LONG) for future in ended)
    assert running.result() == "right"


@pytest.mark.parametrize("cancel", [False, True])
def test_shutdown_when_half_of_the_workers_have_started(make_executor, gate, cancel):
    executor = make_executor(2, initializer=calls.through, initargs=(gate,))
    futures = [executor.submit(calls.pid) for _ in range(4)]
    pids = gate.arrived(2)
    gate.open(1)
    assert wait_until(lambda: all(future.done() for future in futures))
    [worker] = {future.result() for future in futures}
    ending = threading.Thread(
        target=executor.shutdown, kwargs={"cancel_futures": cancel}
    )
    ending.start()
    assert wait_until(lambda: faults.is_gone(worker))
    gate.open()
    ending.join(LONG)
    assert not ending.is_alive()
    assert all(map(faults.is_gone, pids))


# -- sys.exit and exceptions -----------------------------------------------------------------


def test_sys_exit_in_an_item_comes_after_the_items_before_it(make_executor):
    executor = make_executor(1)
    results = executor.map(faults.leave_at_3, range(6), chunksize=6)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(SystemExit):
        next(results)
    assert executor.submit(calls.same, 1).result() == 1


def test_sys_exit_in_a_callback_hurts_nobody(make_executor, gate, caplog):
    executor = make_executor(1)
    seen = []

    def leave(_):
        raise SystemExit(3)

    future = executor.submit(calls.through, gate, "right")
    future.add_done_callback(leave)
    future.add_done_callback(seen.append)
    gate.open()  # whoever reads, this thread or the dispatcher
    assert wait_until(lambda: seen == [future])
    assert future.result() == "right"
    assert executor.submit(calls.same, 1).result(LONG) == 1
    assert "exception calling callback" in caplog.text


def test_sys_exit_in_process():
    with shmexec.Executor(in_process=True) as executor:
        error = executor.submit(calls.leave, 5).exception()
        assert isinstance(error, SystemExit)
        assert executor.submit(calls.same, 1).result() == 1
        assert executor.stats().failed == 1


def test_an_initializer_that_fails_in_process_breaks_the_pool():
    with shmexec.Executor(
        in_process=True, initializer=calls.fail, initargs=(ValueError("bad day"),)
    ) as executor:
        for _ in range(2):  # no call runs in a half-made place
            with pytest.raises(shmexec.PoolBroken, match="bad day"):
                executor.submit(calls.same, 1)


@pytest.mark.parametrize("chunksize", [None, 1, 100])
def test_no_item_of_a_map_runs_twice_because_one_raised(
    make_executor, tmp_path, chunksize
):
    executor = make_executor(2, retries=0 if chunksize is None else 2)
    log = str(tmp_path / "log")
    results = executor.map(
        faults.note_and_fail_at_290, [log] * 300, range(300), chunksize=chunksize
    )
    with pytest.raises(TypeError, match="unlucky"):
        list(results)
    executor.shutdown()
    ran = Path(log).read_text().split()
    assert len(ran) == len(set(ran))
    assert "290" in ran


def test_a_batch_that_raised_does_not_run_again_without_out(make_executor, tmp_path):
    # A TypeError of the function's own is not taken for "it has no out=".
    executor = make_executor(1)
    log = str(tmp_path / "log")
    paths = faults.path_rows(log, 4)
    with pytest.raises(TypeError, match="unlucky"):
        executor.map_batches(faults.note_and_fail_with_out, paths, batch_size=4)
    assert Path(log).read_text().split() == ["ran"]


# -- whose pool it is --------------------------------------------------------------------------


@pytest.mark.every_start
def test_the_pool_outlives_the_thread_that_made_it_and_called_first(make_executor):
    made = []

    def first():
        executor = make_executor(1)
        made.append((executor, executor.submit(calls.pid).result()))

    thread = threading.Thread(target=first)
    thread.start()
    thread.join()
    [(executor, pid)] = made
    # Long enough for a signal that the kernel sends at the thread's end to arrive.
    assert executor.submit(calls.same, 1).result(LONG) == 1
    assert executor.submit(calls.pid).result(LONG) == pid
    assert executor.stats().worker_deaths == 0


def test_the_pool_outlives_event_loops(make_executor, gate):
    executor = make_executor(1)

    async def leave_one_behind():
        loop = asyncio.get_running_loop()
        first = await loop.run_in_executor(executor, calls.pid)
        running = executor.submit(calls.through, gate, "right")
        # Its wrapper dies with this loop.
        asyncio.wrap_future(running).add_done_callback(lambda _: None)
        return first, running

    async def go_on():
        loop = asyncio.get_running_loop()
        return await asyncio.wait_for(loop.run_in_executor(executor, calls.pid), LONG)

    pid, running = asyncio.run(leave_one_behind())
    gate.open()
    assert running.result(LONG) == "right"
    assert asyncio.run(go_on()) == pid
    assert asyncio.run(go_on()) == pid
    assert executor.submit(calls.pid).result(LONG) == pid


# -- idleness ------------------------------------------------------------------------------------


def _used(pids):
    """Seconds of CPU, and how often a thread went to sleep, for each process."""
    found = {}
    for pid in pids:
        seconds = sleeps = 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            seconds += int((task / "schedstat").read_text().split()[0]) / 1e9
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    sleeps += int(line.split()[1])
        found[pid] = seconds, sleeps
    return found


@pytest.mark.parametrize("state", ["idle", "waiting", "with a time-out"])
def test_a_pool_with_nothing_to_do_uses_no_cpu(make_executor, gate, state):
    executor = make_executor(2, idle_timeout=1000)
    pids = {*executor.broadcast(calls.pid), os.getpid()}
    executor.submit(calls.same, 1).result()
    waiting = threading.Thread(
        target=lambda: (
            executor.options(timeout=None if state == "waiting" else 1000)
            .submit(calls.through, gate)
            .result()
        )
    )
    if state != "idle":
        waiting.start()
        gate.arrived()
    pause = threading.Event()
    pause.wait(0.2)  # whoever watches over a busy pool has seen that it is none
    before = _used(pids)
    pause.wait(1)
    after = _used(pids)
    gate.open()
    if state != "idle":
        waiting.join()
    for pid in pids:
        seconds, sleeps = (b - a for a, b in zip(before[pid], after[pid], strict=True))
        # What is expected is well under a millisecond, and a handful.
        assert seconds < 0.1, (pid == os.getpid(), seconds)
        assert sleeps < 50, (pid == os.getpid(), sleeps)
