"""Profiles: each call is recorded, with what became of it, and in the order of time."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from matplotlib.figure import Figure

import shmexec
from shmexec.runtime.tape import ROW_BYTES
from tests.contract import calls, models
from tests.waiting import wait_until

one_kind = pytest.mark.one_kind
MEGABYTE = np.zeros(1 << 20, np.uint8)


def axes():
    return Figure().subplots()


def in_order(call):
    """Whether the times of a call that ran follow each other."""
    times = (call.queued, call.sent, call.began, call.ended, call.replied)
    return list(times) == sorted(times)


def test_calls_of_every_size(executor):
    executor.submit(calls.pid).result()
    with executor.profile() as profile:
        first = executor.submit(calls.pid).result()
        back = executor.submit(calls.same, MEGABYTE).result()
    executor.submit(calls.pid).result()
    assert np.array_equal(back, MEGABYTE)
    one, two = profile.calls
    assert [call.name for call in profile.calls] == ["pid", "same"]
    assert {call.outcome for call in profile.calls} == {"done"}
    assert all(map(in_order, profile.calls))
    assert all(call.queued > 0 for call in profile.calls)
    assert all(call.replied < profile.seconds for call in profile.calls)
    assert (one.pid, one.attempts, one.error) == (first, 1, "")
    assert (one.copied_in, one.copied_out, one.by_reference_out) == (0, 0, 0)
    assert two.copied_in == MEGABYTE.nbytes
    assert two.copied_out + two.by_reference_out == MEGABYTE.nbytes


def test_every_kind_has_one_clock(executor):
    with executor.profile() as profile:
        list(executor.map(calls.same, range(50), chunksize=1))
    table = profile.table
    assert len(table) == 50
    # Recorded by workers, and not moved to where the parent's times have them.
    raw = profile._tape.read().rows
    assert (raw["sent"] <= raw["began"]).all()
    assert (raw["began"] + raw["seconds"] <= raw["replied"]).all()


@one_kind
def test_calls_in_packs_are_recorded_each(make_executor):
    executor = make_executor(1)
    executor.submit(calls.same, 0).result()
    with executor.profile() as profile:
        futures = [executor.submit(calls.same, i) for i in range(400)]
        [future.result() for future in futures]
    assert len(profile) == 400
    packed = [call for call in profile.calls if call.packed]
    assert packed
    assert all(map(in_order, profile.calls))
    # They ran one after the other, each in a time of its own.
    ran = sorted(profile.calls, key=lambda call: call.began)
    assert all(a.ended <= b.began for a, b in itertools.pairwise(ran))
    assert len({call.began for call in packed}) == len(packed)


@one_kind
def test_bytes_agree_with_the_figures(make_executor):
    executor = make_executor(2)
    executor.broadcast(os.getpid)
    before = executor.stats()
    with executor.profile() as profile:
        kept = shmexec.share(MEGABYTE)
        futures = [executor.submit(calls.same, MEGABYTE) for _ in range(6)]
        futures += [executor.submit(calls.add, kept, 1) for _ in range(3)]
        [future.result() for future in futures]
    after, found = executor.stats(), profile.summary()
    assert found.copied_in == after.bytes_copied_in - before.bytes_copied_in
    assert found.copied_out == after.bytes_copied_out - before.bytes_copied_out
    assert found.by_reference_in == after.bytes_by_reference - before.bytes_by_reference
    assert found.copied_again == 5 * MEGABYTE.nbytes
    assert found.outcomes == {"done": 9}


@one_kind
def test_what_was_copied_again_is_not_told_by_its_address(make_executor):
    executor = make_executor(1)
    memory = bytearray(2 * MEGABYTE.nbytes)
    kept = np.frombuffer(memory, np.uint8)
    with executor.profile() as profile:
        for array in (kept, kept[:], kept.view(np.int8), kept[: MEGABYTE.nbytes]):
            executor.submit(np.sum, array).result()
        for _ in range(3):  # each another array, where the one before was
            executor.submit(np.sum, np.frombuffer(memory, np.uint8)).result()
    assert profile.summary().copied_again == 2 * kept.nbytes


# -- what becomes of calls ---------------------------------------------------------------


def unpicklable():
    return threading.Lock()


@one_kind
def test_outcomes(make_executor, gate):
    executor = make_executor(1)
    executor.submit(calls.pid).result()
    with executor.profile() as profile:
        executor.submit(calls.fail, KeyError("x")).exception()
        executor.submit(calls.same, threading.Lock()).exception()
        executor.submit(unpicklable).exception()
        executor.options(timeout=0.05).submit(calls.stay, gate).exception()
        gate.arrived()
        executor.submit(calls.kill_me).exception()
        stopped = executor.submit(calls.stay, gate)
        gate.arrived()
        dropped = executor.submit(calls.same, 1)
        dropped.cancel()
        stopped.cancel(running=True)
        stopped.exception()
    assert [(call.name, call.outcome, call.error) for call in profile.calls] == [
        ("fail", "failed", "KeyError"),
        ("same", "failed", "SerializationError"),
        ("unpicklable", "failed", "shmexec.errors.SerializationError"),
        ("stay", "timed out", "CallTimeout"),
        ("kill_me", "worker died", "WorkerDied"),
        ("stay", "cancelled", "CallStopped"),
        ("same", "cancelled", ""),
    ]
    assert profile.calls[1].sent is None
    assert profile.calls[6].worker is None
    assert profile.calls[4].pid not in {None, profile.calls[5].pid}
    assert "1 calls ended with their worker" in str(profile.summary())


@one_kind
def test_a_call_that_ran_twice(make_executor, tmp_path):
    executor = make_executor(1, retries=1)
    with executor.profile() as profile:
        executor.submit(calls.kill_me).exception()
    [call] = profile.calls
    assert (call.attempts, call.worker, call.outcome) == (2, 2, "worker died")


@one_kind
def test_what_is_under_way_at_either_end(make_executor, make_gate):
    executor = make_executor(1)
    first, second = make_gate(), make_gate()
    early = executor.submit(calls.through, first)
    first.arrived()
    with executor.profile() as profile:
        first.open()
        early.result()
        late = executor.submit(calls.through, second)
        second.arrived()
        waiting = executor.submit(calls.same, 1)
        assert len(profile.calls) == 1  # meanwhile: what is done
    second.open()
    late.result(), waiting.result()
    assert [call.outcome for call in profile.calls] == ["done", "running", "pending"]
    done, running, pending = profile.calls
    assert done.queued < 0 < done.replied
    assert (running.replied, pending.sent) == (None, None)
    str(profile.summary()), profile.plot(axes())


# -- ways of calling -----------------------------------------------------------------------


def squares(n):
    for i in range(n):
        yield MEGABYTE[: i + (1 << 16)]


@one_kind
def test_streams_batchers_actors_pipelines(make_executor):
    executor = make_executor(1)
    with executor.profile() as profile:
        assert len(list(executor.stream(squares, 5))) == 5
        with executor.batcher(calls.same) as batcher:
            [batcher(float(i)).result() for i in range(2)]
        node = executor.actor(models.Counter)
        node.add().result()
        with executor.pipeline(np.sqrt, np.negative) as pipe:
            assert [float(y) for y in pipe.map([1.0, 4.0])] == [-1.0, -2.0]
        executor.map_batches(np.sqrt, np.ones(100), batch_size=50)
        node.close()
    names = [call.name for call in profile.calls]
    assert names.count("same") == 2
    assert names.count("add") == 1
    assert "squares" in names
    by_name = {call.name: call for call in profile.calls}
    stream, add = by_name["squares"], by_name["add"]
    assert stream.copied_out + stream.by_reference_out >= 5 * (1 << 16)
    assert in_order(stream)
    assert add.pool.endswith("Counter-0")
    assert add.pid != stream.pid
    pools = {call.pool for call in profile.calls}
    assert len(pools) == 4  # the executor's, the actor's, two stages'
    assert all(call.outcome == "done" for call in profile.calls)


@one_kind
def test_an_actor_from_before(make_executor):
    executor = make_executor(1)
    node = executor.actor(models.Counter)
    node.add().result()
    with executor.profile() as profile:
        node.add().result()
    node.add().result()
    assert [call.name for call in profile.calls] == ["add"]


@one_kind
def test_several_calls_at_a_time_have_lanes(make_executor, gate):
    executor = make_executor(1)
    node = executor.actor(models.Service, max_concurrency=4)
    with executor.profile() as profile:
        futures = [node.wait(i) for i in range(3)]
        wait_until(lambda: node.get("now").result() == 3)
        node.release().result()
        [future.result() for future in futures]
    waits = [call for call in profile.calls if call.name == "wait"]
    begins = [call.began for call in waits]
    ends = [call.ended for call in waits]
    assert max(begins) < min(ends)  # they overlapped
    ax = profile.plot(axes())
    assert len(ax.get_yticks()) == 4


@one_kind
def test_a_stream_beside_other_calls_begins_before_its_first_item(make_executor):
    executor = make_executor(1)
    node = executor.actor(models.Service, max_concurrency=4)
    node.get("now").result()
    with executor.profile() as profile:
        assert len(list(node.stream("count", 3, 10**6))) == 3
    [row] = profile._tape.read().rows
    assert row["sent"] <= row["began"]
    assert row["began"] + row["seconds"] <= row["replied"]


def test_in_process():
    with shmexec.Executor(in_process=True) as executor:
        with executor.profile() as profile:
            executor.submit(calls.same, 1).result()
            executor.submit(calls.fail, KeyError("x")).exception()
            with executor.actor(models.Counter) as node:
                node.add().result()
        executor.submit(calls.same, 1).result()
    done, failed, *of_actor = profile.calls
    assert (done.outcome, done.pid, done.worker) == ("done", os.getpid(), 0)
    assert (failed.outcome, failed.error) == ("failed", "KeyError")
    assert in_order(done)
    assert "add" in [call.name for call in of_actor]
    assert f"{len(profile)} calls" in str(profile.summary())


# -- profiles themselves -------------------------------------------------------------------


@one_kind
def test_profiles_nest_and_overlap(executor):
    outer, inner = executor.profile(), executor.profile()
    with outer:
        executor.submit(calls.same, 1).result()
        inner.__enter__()
        executor.submit(calls.add, 1, 2).result()
    executor.submit(calls.pid).result()
    inner.__exit__(None, None, None)
    executor.submit(calls.same, 1).result()
    assert [call.name for call in outer.calls] == ["same", "add"]
    assert [call.name for call in inner.calls] == ["add", "pid"]
    assert executor._pool._tables.recorder is None


@one_kind
def test_a_profile_records_once(executor):
    with executor.profile() as profile:
        with pytest.raises(RuntimeError, match="records once"):
            profile.__enter__()
    with pytest.raises(RuntimeError, match="records once"), profile:
        pass
    with pytest.raises(ValueError, match="max_calls must be greater than 0"):
        executor.profile(max_calls=0)


@one_kind
def test_it_ends_even_if_its_pools_cannot_be_looked_at(make_executor, monkeypatch):
    executor, profile = make_executor(1), None
    with pytest.raises(ValueError, match="no figures"):
        with executor.profile() as profile:
            executor.submit(calls.same, 1).result()
            monkeypatch.setattr(executor._pool, "stats", _no_figures)
    assert len(profile.calls) == 1
    with pytest.raises(ValueError, match="no figures"), executor.profile():
        pass
    assert executor._pool._tables.recorder is None
    assert not executor._tapes


def _no_figures():
    raise ValueError("no figures")


@one_kind
def test_calls_of_many_threads(executor):
    def some(number):
        return [executor.submit(calls.add, number, i).result() for i in range(20)]

    with executor.profile() as profile, ThreadPoolExecutor(4) as threads:
        list(threads.map(some, range(4)))
    assert profile.summary().outcomes == {"done": 80}
    numbers = [call.call for call in profile.calls]
    assert len(set(numbers)) == 80


@one_kind
def test_it_outlives_its_executor(make_executor):
    executor = make_executor(1)
    with executor.profile() as profile:
        executor.submit(calls.same, 1).result()
        executor.shutdown()
    assert [call.outcome for call in profile.calls] == ["done"]
    assert profile.summary().calls == 1
    assert "over: 1 calls" in repr(profile)


@one_kind
def test_no_more_than_max_calls_are_kept(executor):
    with executor.profile(max_calls=10) as profile:
        for i in range(25):
            executor.submit(calls.same, i).result()
    assert len(profile) == 25
    numbers = [call.call for call in profile.calls]
    assert numbers == list(range(numbers[0], numbers[0] + 10))
    assert profile.summary().lost == 15
    assert "15 earlier calls were not kept" in str(profile.summary())
    assert len(profile._tape._data) == 10 * ROW_BYTES


@one_kind
def test_results_are_not_kept_alive(make_executor):
    executor = make_executor(1)
    with executor.profile():
        executor.submit(calls.same, MEGABYTE).result()
        # Else the block would still be a result's.
        assert wait_until(lambda: _alive(executor) == 0)


def _alive(executor):
    return sum(worker.arena_bytes for worker in executor.stats().workers)


@one_kind
def test_a_call_that_dies_while_another_thread_profiles(make_executor):
    executor = make_executor(1)
    pid = executor.submit(calls.pid).result()
    with executor.profile() as profile:
        os.kill(pid, signal.SIGSTOP)
        future = executor.submit(calls.same, 1)
        os.kill(pid, signal.SIGKILL)
        assert future.result() == 1
    [call] = profile.calls
    assert (call.outcome, call.attempts) == ("done", 2)
    assert in_order(call)


# -- what is made of them ------------------------------------------------------------------


@one_kind
def test_frames_traces_and_what_is_shown(executor, tmp_path, monkeypatch):
    with executor.profile() as profile:
        [executor.submit(calls.same, i).result() for i in range(3)]
        executor.submit(calls.fail, KeyError("<x>")).exception()
    frame = profile.to_frame()
    assert list(frame.columns) == list(shmexec.CallRecord.__slots__)
    assert frame.groupby("outcome").size().to_dict() == {"done": 3, "failed": 1}
    assert (frame["sent"] <= frame["began"]).all()
    assert frame.iloc[0].to_dict() == {
        name: getattr(profile.calls[0], name) for name in frame.columns
    }
    profile.to_chrome_trace(tmp_path / "trace.json")
    assert (tmp_path / "trace.json").stat().st_size > 1000
    assert "4 calls in" in profile._repr_html_()
    for name in ("pandas", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="needs pandas"):
        profile.to_frame()
    with pytest.raises(ImportError, match=r"shmexec\[plot\]"):
        profile.plot()


@one_kind
def test_a_profile_lets_its_executor_go():
    executor = shmexec.Executor(1)
    with executor.profile() as profile:
        executor.submit(calls.same, 1).result()
    gone = weakref.ref(executor)
    executor.shutdown()
    del executor
    assert wait_until(lambda: gc.collect() >= 0 and gone() is None)
    assert len(profile.calls) == 1
