"""Actors with several calls under way at once."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import CancelledError

import numpy as np
import pytest

import shmexec
from shmexec.scheduler import slots
from tests.contract.models import AsyncNoting, Counter, Service
from tests.waiting import LONG, wait_until

pytestmark = pytest.mark.one_kind


@pytest.fixture
def executor(make_executor):
    return make_executor(1)


@pytest.fixture
def node(executor):
    with executor.actor(Service, max_concurrency=8) as node:
        yield node


@pytest.fixture
def patient(monkeypatch):
    """Cancelled calls have all the time they need, on however busy a machine."""
    monkeypatch.setattr(slots, "CANCEL_WITHIN", LONG)


def under_way(node, number):
    assert wait_until(lambda: node.get("now").result() == number)


def test_coroutines_run_beside_each_other(node):
    waiting = [node.wait(i) for i in range(7)]
    under_way(node, 7)
    assert node.same("beside").result() == "beside"
    assert node.state == "busy"
    node.release().result()
    assert [future.result() for future in waiting] == list(range(7))
    assert node.get("order").result() == list(range(7))


@pytest.mark.usefixtures("patient")
def test_but_no_more_than_were_allowed(executor):
    with executor.actor(Service, max_concurrency=3) as node:
        waiting = [node.wait(i) for i in range(2)]
        under_way(node, 2)
        waiting += [node.wait(i) for i in range(2, 6)]
        assert node.stats()[0].running == 3
        assert not waiting[3].running()
        # All slots are taken: what sets them free must wait until some have ended.
        releasing = node.release()
        for future in waiting[:4]:
            assert future.cancel(running=True)
        assert releasing.result() is None
        assert [future.result() for future in waiting[4:]] == [4, 5]
        assert node.get("most").result() <= 3


def test_plain_methods_run_in_between(executor):
    with executor.actor(Counter, max_concurrency=4) as node:
        futures = [node.add(i) for i in range(100)]
        assert [future.result() for future in futures] == list(range(1, 101))
        assert node.what().result() == [(i,) for i in range(100)]


def test_many_calls(node):
    futures = [node.same(i) for i in range(500)]
    assert [future.result() for future in futures] == list(range(500))


def test_an_exception_hits_one_call(node):
    waiting = node.wait(1)
    under_way(node, 1)
    with pytest.raises(ZeroDivisionError) as caught:
        node.fail(ZeroDivisionError("z")).result()
    assert "in fail" in str(caught.value.__cause__)
    with pytest.raises(SystemExit):
        node.fail(SystemExit(3)).result()
    with pytest.raises(KeyboardInterrupt):
        node.fail(KeyboardInterrupt()).result()
    with pytest.raises(ValueError, match="read-only") as noted:
        node.write(shmexec.share(np.zeros(10_000))).result()
    assert noted.value.__notes__
    with pytest.raises(shmexec.SerializationError, match="the result"):
        node.get("released").result()
    node.release()
    assert waiting.result() == 1


def test_arrays_of_calls_do_not_get_mixed_up(node):
    for _ in range(5):
        futures = [node.arrays(20_000, i) for i in range(16)]
        totals = [node.total(np.full(20_000, float(i))) for i in range(16)]
        for i, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(), np.full(20_000, float(i)))
        assert [f.result() for f in totals] == [20_000.0 * i for i in range(16)]


@pytest.mark.skipif(not shmexec.stats().native, reason="results are copied once")
def test_arrays_come_without_a_copy(node):
    node.arrays(100_000, 1).result()  # there was no room yet for it to be born in
    before = node.stats()[0].bytes_copied_out
    futures = [node.arrays(100_000, i) for i in range(4)]
    assert [float(f.result()[0]) for f in futures] == [0, 1, 2, 3]
    assert node.stats()[0].bytes_copied_out == before


def test_streams_beside_each_other(node):
    streams = [node.count(30) for _ in range(3)] + [node.plain_count(30)]
    firsts = [next(stream) for stream in streams]
    assert node.same(1).result() == 1
    for stream, first in zip(streams, firsts, strict=True):
        items = [float(np.mean(item)) for item in [first, *stream]]
        assert items == [float(i) for i in range(30)]
    with pytest.raises(KeyError):
        list(node.fail_in_stream())


@pytest.mark.parametrize("name", ["count", "plain_count"])
def test_a_stream_that_is_left_is_closed(node, name):
    with node.stream(name, 10**9, buffersize=2) as stream:
        next(stream)
    assert wait_until(lambda: node.get("ended").result() == [name])
    assert wait_until(lambda: node.state == "ready")


@pytest.mark.usefixtures("patient")
def test_a_stream_that_waits_is_stopped(node, gate):
    stream = node.never(gate)
    gate.arrived()
    stream.cancel()
    assert wait_until(lambda: node.get("ended").result() == ["never"])
    assert node.stats()[0].worker_deaths == 0


def test_streams_that_wait_for_room_lose_no_credit(node):
    streams = [node.stream("count", 20, 10**6, buffersize=2) for _ in range(5)]
    rows = [[int(item[0]) for item in row] for row in zip(*streams, strict=True)]
    assert rows == [[i] * 5 for i in range(20)]


def test_a_stream_is_closed_before_it_has_begun(executor, gate):
    with executor.actor(Counter, max_concurrency=3) as node:
        waiting = node.wait(gate)
        gate.arrived()
        node.count(10**9).close()
        gate.open()
        waiting.result()
        assert wait_until(lambda: node.state == "ready")


def test_a_closed_stream_does_not_come_back_when_its_worker_died(executor, gate):
    with executor.actor(Counter, max_concurrency=3) as node:
        waiting = node.wait(gate)
        (pid,) = gate.arrived()
        node.count(10**9).close()
        later = node.add()
        os.kill(pid, 9)
        with pytest.raises(shmexec.WorkerDied):
            waiting.result()
        assert later.result() == 1
        assert wait_until(lambda: node.state == "ready")


@pytest.mark.usefixtures("patient")
def test_a_call_is_cancelled_before_it_has_begun(executor, gate):
    with executor.actor(Counter, max_concurrency=3) as node:
        waiting = node.wait(gate)
        gate.arrived()
        calls = [node.add("no"), node.add("yes")]
        assert calls[0].cancel(running=True)
        gate.open()
        waiting.result()
        assert calls[1].result() == 1
        with pytest.raises(CancelledError):
            calls[0].result()
        assert node.what().result() == [None, ("yes",)]


# -- calls that must stop ------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
def test_a_call_is_cancelled_and_the_others_go_on(node):
    waiting = [node.wait(i) for i in range(3)]
    under_way(node, 3)
    assert waiting[1].cancel(running=True)
    with pytest.raises(CancelledError, match="other calls go on"):
        waiting[1].result()
    assert node.get("ended").result() == ["cancelled 1"]
    node.release()
    assert [waiting[0].result(), waiting[2].result()] == [0, 2]
    assert node.stats()[0].worker_deaths == 0


@pytest.mark.usefixtures("patient")
def test_each_has_its_own_time_out(executor):
    quick = executor.options(timeout=0.2)
    with quick.actor(Service, max_concurrency=4) as node:
        late = node.wait("late")
        with pytest.raises(shmexec.CallTimeout, match="was cancelled; other calls"):
            late.result()
        assert node.get("ended").result() == ["cancelled late"]
        assert node.stats()[0].worker_deaths == 0


@pytest.mark.usefixtures("patient")
def test_tasks_that_are_cancelled_cancel_their_calls(node):
    async def main():
        tasks = [asyncio.create_task(node.acall("wait", i)) for i in range(6)]
        await asyncio.to_thread(under_way, node, 6)
        for task in tasks[:5]:
            task.cancel()
        await asyncio.wait(tasks[:5])
        await asyncio.to_thread(under_way, node, 1)
        await node.acall("release")
        return await tasks[5]

    assert asyncio.run(main()) == 5
    assert node.stats()[0].worker_deaths == 0


@pytest.mark.parametrize("name", ["stubborn", "block"])
def test_one_that_does_not_end_costs_the_worker(node, gate, name):
    waiting = node.wait("beside")
    under_way(node, 1)
    staying = node.call(name, gate)
    (pid,) = gate.arrived()
    assert staying.cancel(running=True)
    with pytest.raises(CancelledError):
        staying.result()
    with pytest.raises(shmexec.WorkerDied, match="was cancelled and did not end"):
        waiting.result()
    assert node.same(1).result() == 1
    assert not os.path.exists(f"/proc/{pid}")


def test_one_that_holds_up_a_cancelled_call_ends_with_the_worker(node, gate):
    blocking = node.block(gate)
    gate.arrived()
    later = node.same(1)
    assert later.cancel(running=True)
    with pytest.raises(CancelledError):
        later.result()
    with pytest.raises(shmexec.WorkerDied, match="state starts afresh"):
        blocking.result()
    assert node.same(1).result() == 1


# -- ends ----------------------------------------------------------------------------------


def test_when_it_dies_what_has_begun_fails_and_the_rest_goes_on(node, gate):
    waiting = [node.wait(i) for i in range(2)]
    under_way(node, 2)
    dying = node.block(gate)
    (pid,) = gate.arrived()
    later = [node.same(i) for i in range(20)]
    os.kill(pid, 9)
    for future in [*waiting, dying]:
        with pytest.raises(shmexec.WorkerDied, match="starts afresh"):
            future.result()
    assert [future.result() for future in later] == list(range(20))
    assert node.get("order").result() == []


def test_a_call_that_kills_its_worker(node):
    with pytest.raises(shmexec.WorkerDied):
        node.die().result()
    assert node.same(1).result() == 1


def test_calls_made_before_its_end_still_run(executor, tmp_path):
    log = tmp_path / "log"
    node = executor.actor(AsyncNoting, log, max_concurrency=4)
    futures = [node.work(i) for i in range(20)]
    executor.shutdown()
    assert [future.result() for future in futures] == list(range(20))
    lines = [line.split()[0] for line in log.read_text().splitlines()]
    assert lines == ["init", "initialize", *["work"] * 20, "cleanup"]


def test_if_it_cannot_be_built(executor, tmp_path):
    node = executor.actor(
        AsyncNoting, tmp_path / "log", {"initialize": "raise"}, max_concurrency=2
    )
    with pytest.raises(shmexec.PoolBroken, match="cannot initialize"):
        node.work().result()
    node.close()


def test_its_size_is_checked(executor):
    with pytest.raises(ValueError, match="max_concurrency"):
        executor.actor(Service, max_concurrency=0)


def test_log_records_say_which_call_they_belong_to(executor, caplog):
    with executor.actor(Service, max_concurrency=4) as node, caplog.at_level("WARNING"):
        futures = [node.log(f"call {i}") for i in range(3)]
        for future in futures:
            future.result()
        records = [r for r in caplog.records if r.name == "service"]
    numbers = {}
    for record in records:
        numbers.setdefault(record.getMessage().split()[1], set()).add(record.call_id)
    assert sorted(map(len, numbers.values())) == [1, 1, 1]
    assert len(set.union(*numbers.values())) == 3
