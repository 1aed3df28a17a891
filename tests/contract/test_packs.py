"""Calls that go in packs keep every promise that a call alone does."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, wait
from pathlib import Path

import numpy as np
import pytest

import shmexec
from shmexec.runtime.replies import Replies
from shmexec.runtime.workers import WorkerHandle
from shmexec.scheduler.packs import PACK_PATIENCE, Packs
from shmexec.wire.functions import describe
from tests.contract import calls


@pytest.fixture
def packs(monkeypatch):
    """Numbers of the calls of each pack that was sent."""
    seen = []
    start = Packs.start

    def noting(self, pack, worker, now):
        seen.append([call.id for call in pack])
        return start(self, pack, worker, now)

    monkeypatch.setattr(Packs, "start", noting)
    return seen


@pytest.fixture
def one_pack(make_executor, make_gate, packs):
    """Submit many calls to one worker so that they go in one pack."""

    def submit(*args, **settings):
        executor = make_executor(1, **settings)
        gate = make_gate()
        first = executor.submit(calls.through, gate)
        gate.arrived()
        # As if it was known from calls before.
        executor._pool._machine._packs.seconds[describe(calls.act).key] = 1e-6
        futures = [executor.submit(calls.act, *each) for each in args]
        gate.open()
        first.result(20)
        return executor, futures

    yield submit
    assert packs
    assert len(packs[0]) > 1


def _notes(path):
    return Path(path).read_text().split()


def test_results_come_in_their_places(one_pack, packs):
    _, futures = one_pack(*[("say", None, i) for i in range(300)])
    assert [future.result(20) for future in futures] == [*range(300)]
    assert sum(map(len, packs)) > 100


def test_an_error_is_that_of_its_call_alone(one_pack):
    _, futures = one_pack(("say", None, 1), ("raise", None, 2), ("say", None, 3))
    assert futures[0].result(20) == 1
    assert isinstance(futures[1].exception(20), ZeroDivisionError)
    assert futures[2].result(20) == 3


@pytest.mark.parametrize("size", [100, 5000, 40_000, 3_000_000])
def test_results_of_any_size(one_pack, size):
    _, futures = one_pack(
        ("say",),
        ("text", None, size),
        ("make", None, size),
        ("say",),
        ("text", None, 3),
    )
    assert futures[1].result(20) == "x" * size
    assert np.array_equal(futures[2].result(20), np.ones(size))
    assert futures[4].result(20) == "xxx"


def test_many_results_of_some_kilobytes(one_pack):
    _, futures = one_pack(*[("text", None, 4000)] * 120)
    assert {future.result(20) for future in futures} == {"x" * 4000}


def test_finished_ones_do_not_wait_for_a_long_one_behind_them(one_pack, make_gate):
    gate = make_gate()
    _, futures = one_pack(*[("say", None, i) for i in range(5)], ("wait", gate))
    assert [future.result(20) for future in futures[:5]] == [*range(5)]
    assert not futures[5].done()
    gate.open()
    futures[5].result(20)


def test_those_behind_a_long_one_go_elsewhere(make_executor, make_gate, packs):
    executor = make_executor(2)
    first, long = make_gate(), make_gate()
    busy = [executor.submit(calls.through, first) for _ in range(2)]
    first.arrived(2)
    executor._pool._machine._packs.seconds[describe(calls.act).key] = 1e-6
    blocked = [executor.submit(calls.act, "wait", long)]
    behind = [executor.submit(calls.act, "say", None, i) for i in range(50)]
    first.open()
    assert [future.result(20) for future in behind] == [*range(50)]
    assert not blocked[0].done()
    assert packs
    long.open()
    wait([*blocked, *busy], 20)


def test_those_behind_a_long_one_can_be_cancelled(one_pack, make_gate):
    gate = make_gate()
    executor, futures = one_pack(("wait", gate), *[("say", None, i) for i in range(5)])
    gate.arrived()
    deadline = time.monotonic() + 20
    while futures[3].running() and time.monotonic() < deadline:
        wait(futures[3:4], 0.001)
    assert futures[3].cancel()
    gate.open()
    futures[0].result(20)
    assert [futures[i].result(20) for i in (1, 2, 4, 5)] == [0, 1, 3, 4]
    assert executor.stats().cancelled == 1


def test_a_death_hits_one_call_and_each_runs_once(one_pack, tmp_path):
    notes = str(tmp_path / "notes")
    _, futures = one_pack(
        *[("note", notes, i) for i in range(5)],
        ("note and die", notes, "dead"),
        *[("note", notes, i) for i in range(5, 10)],
    )
    assert [future.result(20) for future in futures[:5]] == [*range(5)]
    assert isinstance(futures[5].exception(20), shmexec.WorkerDied)
    assert [future.result(20) for future in futures[6:]] == [*range(5, 10)]
    assert _notes(notes) == [*"01234", "dead", *"56789"]


def test_a_killer_that_may_be_retried_is(one_pack, tmp_path):
    notes = str(tmp_path / "notes")
    _, futures = one_pack(
        ("note", notes, 1), ("note and die", notes, 2), ("note", notes, 3), retries=2
    )
    assert isinstance(futures[1].exception(20), shmexec.WorkerDied)
    assert futures[0].result(20) == 1
    assert futures[2].result(20) == 3
    assert sorted(_notes(notes)) == ["1", "2", "2", "2", "3"]


def test_stopping_the_long_one_of_a_pack(one_pack, make_gate):
    gate = make_gate()
    _, futures = one_pack(("say", None, 1), ("wait", gate), ("say", None, 2))
    gate.arrived()
    assert futures[1].cancel(running=True)
    with pytest.raises(CancelledError):
        futures[1].result(20)
    assert futures[0].result(20) == 1
    assert futures[2].result(20) == 2


def test_stopping_one_that_has_not_begun(one_pack, make_gate):
    gate = make_gate()
    _, futures = one_pack(("wait", gate), ("say", None, 1), ("say", None, 2))
    gate.arrived()
    assert futures[1].cancel(running=True)
    with pytest.raises(CancelledError):
        futures[1].result(20)
    gate.open()
    assert futures[0].result(20) is None
    assert futures[2].result(20) == 2


def test_shutdown_cancels_what_has_not_begun(one_pack, make_gate):
    gate = make_gate()
    executor, futures = one_pack(("wait", gate), *[("say", None, i) for i in range(5)])
    gate.arrived()
    executor.shutdown(wait=False, cancel_futures=True)
    wait(futures[1:], 20)
    gate.open()
    assert futures[0].result(20) is None
    assert all(
        isinstance(f.exception(20), CancelledError)
        for f in futures[1:]
        if not f.cancelled()
    )
    executor.shutdown()


def test_a_worker_is_replaced_after_its_calls(one_pack):
    _, futures = one_pack(*[("say", None, i) for i in range(20)], max_tasks_per_child=7)
    assert [future.result(20) for future in futures] == [*range(20)]


def test_calls_with_a_time_limit_go_alone(make_executor, packs):
    executor = make_executor(1, timeout=20.0)
    futures = [executor.submit(calls.act, "say", None, i) for i in range(100)]
    assert [future.result(20) for future in futures] == [*range(100)]
    assert not packs


def test_callbacks_come_while_a_later_one_is_at_work(one_pack, make_gate):
    gate = make_gate()
    _, futures = one_pack(("say", None, 1), ("wait", gate))
    came = make_gate()
    futures[0].add_done_callback(
        lambda _future: calls.Barrier(str(came.folder)).arrive()
    )
    came.arrived()
    assert not futures[1].done()
    gate.open()
    futures[1].result(20)


def test_each_runs_once_when_the_parent_is_slow(make_executor, monkeypatch, tmp_path):
    """What it read of one pack must not be taken for something about the next."""
    begun, empty_inbox = WorkerHandle.begun, Replies.empty_inbox

    def slow_begun(self):
        mark = begun(self)
        never.wait(PACK_PATIENCE * 2)  # the pack may end meanwhile
        return mark

    def slow_empty_inbox(self):
        empty_inbox(self)
        never.wait(PACK_PATIENCE * 1.5)  # and the next one run, in part

    never = threading.Event()
    notes = str(tmp_path / "notes")
    executor = make_executor(2)
    executor.submit(calls.act, "say").result(20)
    monkeypatch.setattr(WorkerHandle, "begun", slow_begun)
    monkeypatch.setattr(Replies, "empty_inbox", slow_empty_inbox)
    futures = []
    for i in range(300):
        what = "note and nap" if i % 10 == 3 else "note"
        executor._pool._machine._packs.seconds[describe(calls.act).key] = 1e-6
        futures.append(executor.submit(calls.act, what, notes, i))
    assert [future.result(20) for future in futures] == [*range(300)]
    assert sorted(map(int, _notes(notes))) == [*range(300)]
