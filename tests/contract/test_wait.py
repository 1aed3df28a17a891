"""``concurrent.futures.wait`` and ``as_completed`` with this executor's futures."""

from __future__ import annotations

import asyncio
import threading
import weakref
from concurrent import futures
from concurrent.futures import Future

import pytest

from tests.contract import calls
from tests.waiting import wait_until

pytestmark = pytest.mark.one_kind


def _future(state: str) -> Future:
    future: Future = Future()
    if state == "done":
        future.set_result(42)
    elif state == "failed":
        future.set_exception(OSError())
    elif state != "pending":
        future.cancel()
        if state == "cancelled and noticed":
            future.set_running_or_notify_cancel()
    return future


def test_the_same_future_may_be_waited_for_twice(executor):
    future = executor.submit(calls.same, 1)
    done, not_done = futures.wait([future, future])
    assert (done, not_done) == ({future}, set())


def test_first_completed(executor, gate):
    quick = executor.submit(calls.add, 21, 2)
    slow = executor.submit(calls.through, gate)
    cancelled = _future("cancelled")
    done, not_done = futures.wait(
        [cancelled, quick, slow], return_when=futures.FIRST_COMPLETED
    )
    assert (done, not_done) == ({quick}, {cancelled, slow})
    gate.open()


def test_first_completed_with_some_that_are(executor, gate):
    slow = executor.submit(calls.through, gate)
    ready = {_future("cancelled and noticed"), _future("done")}
    done, not_done = futures.wait([*ready, slow], return_when=futures.FIRST_COMPLETED)
    assert (done, not_done) == (ready, {slow})
    gate.open()


def test_first_exception(executor, make_gate):
    failing, staying = make_gate(), make_gate()
    quick = executor.submit(calls.add, 2, 21)
    fails = executor.submit(calls.through_then_raise, failing, ValueError("x"))
    stays = executor.submit(calls.through, staying)
    failing.arrived()
    assert quick.result() == 23
    failing.open()
    done, not_done = futures.wait(
        [quick, fails, stays], return_when=futures.FIRST_EXCEPTION
    )
    assert (done, not_done) == ({quick, fails}, {stays})
    staying.open()


def test_first_exception_with_some_that_are_done(executor, gate):
    fails = executor.submit(divmod, 21, 0)
    stays = executor.submit(calls.through, gate)
    ready = {_future("done"), _future("cancelled and noticed")}
    cancelled = _future("cancelled")
    done, not_done = futures.wait(
        [*ready, cancelled, fails, stays], return_when=futures.FIRST_EXCEPTION
    )
    assert (done, not_done) == ({*ready, fails}, {cancelled, stays})
    gate.open()


def test_first_exception_that_was_there_before(executor, gate):
    stays = executor.submit(calls.through, gate)
    failed = _future("failed")
    done, not_done = futures.wait([failed, stays], return_when=futures.FIRST_EXCEPTION)
    assert (done, not_done) == ({failed}, {stays})
    gate.open()


def test_all_completed(executor):
    ready = {_future(s) for s in ("done", "failed", "cancelled and noticed")}
    own = {executor.submit(divmod, 2, 0), executor.submit(calls.add, 2, 21)}
    done, not_done = futures.wait([*ready, *own], return_when=futures.ALL_COMPLETED)
    assert (done, not_done) == (ready | own, set())


def test_gives_up_after_the_timeout(executor, gate):
    quick = executor.submit(calls.same, 1)
    slow = executor.submit(calls.through, gate)
    assert quick.result() == 1
    done, not_done = futures.wait([quick, slow], timeout=0.05)
    assert (done, not_done) == ({quick}, {slow})
    gate.open()


def test_many_threads_may_wait_for_one_future(executor, gate):
    future = executor.submit(calls.through, gate, 7)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(future.result()))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    gate.open()
    for thread in threads:
        thread.join()
    assert results == [7] * 6


def test_as_completed_gives_all(executor):
    ready = {_future(s) for s in ("done", "failed", "cancelled and noticed")}
    own = {executor.submit(calls.add, 2, 21), executor.submit(calls.add, 7, 6)}
    assert set(futures.as_completed(ready | own)) == ready | own


def test_as_completed_gives_the_early_ones_early(executor, gate):
    slow = executor.submit(calls.through, gate)
    quick = executor.submit(calls.same, 1)
    order = futures.as_completed([slow, quick])
    assert next(order) is quick
    gate.open()
    assert next(order) is slow


@pytest.mark.parametrize("timeout", [0, 0.05])
def test_as_completed_times_out_after_giving_what_is_done(executor, gate, timeout):
    slow = executor.submit(calls.through, gate)
    ready = {_future(s) for s in ("done", "failed", "cancelled and noticed")}
    given = set()
    with pytest.raises(TimeoutError, match=r"1 \(of 4\) futures unfinished"):
        for future in futures.as_completed([*ready, slow], timeout=timeout):
            given.add(future)
    assert given == ready
    gate.open()


def test_as_completed_gives_each_once(executor):
    future = executor.submit(calls.same, 1)
    assert list(futures.as_completed([future] * 3)) == [future]


def test_as_completed_does_not_keep_what_it_gave(executor):
    given = [executor.submit(calls.same, i) for i in range(4)]
    for future in futures.as_completed(given):
        given.remove(future)
        alive = weakref.ref(future)
        del future
        assert wait_until(lambda alive=alive: alive() is None, 1)


def test_under_asyncio_calls_run_side_by_side(executor):
    async def main():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(
            *(loop.run_in_executor(executor, calls.add, i, 1) for i in range(20))
        )

    assert asyncio.run(main()) == list(range(1, 21))


def test_wrapped_futures_progress_in_an_idle_loop(executor):
    async def main():
        return await asyncio.wrap_future(executor.submit(calls.same, 5))

    assert asyncio.run(main()) == 5
