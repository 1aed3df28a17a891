"""Context variables that were asked for have their values in the worker."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar, copy_context

import numpy as np
import pytest

import shmexec
from tests.contract import calls
from tests.contract.calls import REQUEST, USER
from tests.waiting import LONG

pytestmark = pytest.mark.one_kind


@pytest.fixture(autouse=True)
def _variables_stay_as_they_were(request):
    tokens = [REQUEST.set("from before"), USER.set("from before")]
    USER.reset(tokens[1])
    REQUEST.reset(tokens[0])


@pytest.fixture
def executor(make_executor):
    return make_executor(context=(REQUEST, USER))


def call(executor, fn, *args, **kwargs):
    return executor.submit(fn, *args, **kwargs).result(LONG)


def in_copy(fn, *args):
    """Run in a context of its own: what it sets is gone afterwards."""
    return copy_context().run(fn, *args)


@pytest.mark.every_start
def test_values_are_those_at_submit(executor):
    def submit():
        REQUEST.set("a")
        first = executor.submit(calls.get_both)
        REQUEST.set("b")
        USER.set("me")
        return first, executor.submit(calls.get_both)

    first, second = in_copy(submit)
    assert second.result(LONG) == ("b", "me")
    assert first.result(LONG) == ("a", "nobody")


def test_without_being_asked_for_nothing_goes_along(make_executor):
    executor = make_executor()
    assert in_copy(
        lambda: [REQUEST.set("a"), call(executor, calls.get_request)][1]
    ) == ("unset")


def test_what_is_not_set_stays_unset(make_executor):
    executor = make_executor(1, context=[REQUEST])
    in_copy(lambda: [REQUEST.set("a"), call(executor, calls.get_request)])
    assert call(executor, calls.get_request) == "unset"


def test_nothing_leaks_into_the_next_call(make_executor):
    executor = make_executor(1, context=[REQUEST])
    assert [call(executor, calls.set_request, i) for i in range(3)] == ["unset"] * 3
    assert list(executor.map(calls.set_request, range(9), chunksize=3)) == ["unset"] * 9


def test_packed_calls_have_their_own(make_executor):
    executor = make_executor(1, context=[REQUEST])

    def submit(i):
        REQUEST.set(i)
        return executor.submit(calls.set_request, -1)

    futures = [in_copy(submit, i) for i in range(500)]
    assert [future.result(LONG) for future in futures] == [*range(500)]


def test_in_maps_and_batches(executor):
    def run():
        REQUEST.set(5)
        rows = np.arange(100_000.0).reshape(1000, 100)
        return (
            list(executor.map(calls.get_request, range(3))),
            list(executor.map(calls.get_request, range(600))),
            list(executor.map(calls.get_request, range(3), buffersize=1)),
            executor.map_batches(lambda x: x * REQUEST.get(), rows, batch_size=300),
            executor.broadcast(calls.get_request),
        )

    eager, many, lazy, batches, everywhere = in_copy(run)
    assert eager == lazy == [5, 5, 5]
    assert many == [5] * 600
    assert (batches == np.arange(100_000.0).reshape(1000, 100) * 5).all()
    assert everywhere == [5, 5]


def test_in_coroutines_and_streams(make_executor):
    executor = make_executor(1, context=[REQUEST])

    async def generate(number):
        for _ in range(number):
            yield await calls.get_request_later()

    async def main():
        REQUEST.set("b")
        first = await executor.asubmit(calls.get_request_later)
        REQUEST.set("c")
        items = [item async for item in executor.amap(calls.get_request, range(3))]
        return first, items

    def run():
        REQUEST.set("a")
        return (
            call(executor, calls.get_request_later),
            list(executor.map(calls.get_request_later_of, range(3), chunksize=3)),
            list(executor.stream(calls.requests, 3)),
            list(executor.stream(generate, 3)),
            asyncio.run(main()),
        )

    assert in_copy(run) == (
        "a",
        ["a"] * 3,
        ["a", 0, 1],
        ["a"] * 3,
        ("b", ["c"] * 3),
    )
    assert call(executor, calls.get_request) == "unset"


def test_a_batch_has_that_of_its_first_item(make_executor, gate):
    executor = make_executor(1, context=[REQUEST])

    def label(x):
        return [(REQUEST.get("unset"), float(each)) for each in x]

    busy = executor.submit(calls.through, gate)
    gate.arrived()
    with executor.batcher(label, max_batch_size=2) as predict:

        def submit(i):
            REQUEST.set(i)
            return predict(np.float64(i))

        futures = [in_copy(submit, i) for i in range(5)]
        gate.open()
        busy.result(LONG)
        got = [future.result(LONG) for future in futures]
    assert [value for _, value in got] == [*range(5)]
    assert all(0 <= value - first < 2 for first, value in got)


def test_arrays_and_objects_as_values(executor):
    large = np.arange(50_000.0)

    def submit():
        REQUEST.set({"table": large, "tags": {1, 2}})
        return executor.submit(calls.get_request)

    future = in_copy(submit)
    result = future.result(LONG)
    assert (result["table"] == large).all()
    assert result["tags"] == {1, 2}


@pytest.mark.parametrize("fn", [calls.get_request, lambda x=1: REQUEST.get(x)])
def test_a_value_that_cannot_be_pickled_is_named(executor, fn):
    def submit():
        REQUEST.set({"lock": threading.Lock()})
        return executor.submit(fn)

    future = in_copy(submit)
    with pytest.raises(shmexec.SerializationError, match="lock") as caught:
        future.result(LONG)
    assert caught.value.path == "context['request']['lock']"
    assert call(executor, calls.get_request) == "unset"


def test_functions_that_go_by_value_see_the_same_variable(make_executor):
    """Variables that no worker can import: of a notebook, a script, a function."""
    own, other = ContextVar("own"), ContextVar("other", default=(1, 2))
    executor = make_executor(1, context=(own,))

    def get():
        return own.get("unset"), other.get()

    def get_and_set(value):
        before = own.get("unset")
        own.set(value)
        return before

    def run():
        own.set("a")
        return call(executor, get), call(executor, get_and_set, 3), call(executor, get)

    assert in_copy(run) == (("a", (1, 2)), "a", ("a", (1, 2)))
    assert call(executor, get) == ("unset", (1, 2))


def test_a_variable_goes_there_and_back(executor):
    own = ContextVar("own")
    back = call(executor, calls.same, [own, own, REQUEST, USER])
    assert back[0] is back[1] is own
    assert back[2] is REQUEST
    assert back[3] is USER
    made = call(executor, ContextVar, "made there")
    assert made.name == "made there"
    assert call(executor, calls.same, made) is made


def test_a_variable_in_a_class(executor):
    class_ = call(executor, calls.same, calls.Holder.variable)
    assert class_ is calls.Holder.variable


def test_retried_calls_have_it_too(make_executor, tmp_path):
    executor = make_executor(1, context=[REQUEST], retries=1)
    path = tmp_path / "died"

    def die_once():
        if not path.exists():
            path.touch()
            calls.kill_me()
        return REQUEST.get("unset")

    assert in_copy(lambda: [REQUEST.set("a"), call(executor, die_once)][1]) == "a"


def test_errors_come_as_ever(executor):
    with pytest.raises(KeyError, match="x"):
        call(executor, calls.fail, KeyError("x"))
    shared = shmexec.share(np.zeros(50_000))
    with pytest.raises(ValueError, match="read-only") as caught:
        call(executor, calls.write_to, shared, 1)
    assert "array (argument 0" in caught.value.__notes__[0]
    with pytest.raises(shmexec.SerializationError) as refused:
        call(executor, calls.requests, 3)
    assert "generator" in refused.value.__notes__[0]


def test_in_process():
    with shmexec.Executor(in_process=True, context=[REQUEST]) as executor:

        def run():
            REQUEST.set("a")
            items = list(executor.stream(calls.requests, 2))
            return call(executor, calls.set_request, "b"), items, REQUEST.get()

        assert in_copy(run) == ("a", ["a", 0], "a")


@pytest.mark.filterwarnings("ignore::shmexec.FallbackWarning")
def test_in_processes_of_a_broken_pool(make_executor):
    executor = make_executor(
        initializer=calls.die_if,
        initargs=("/",),
        max_restarts=0,
        fallback="process-per-call",
        context=[REQUEST],
    )

    def run():
        REQUEST.set("a")
        pending = executor.submit(calls.get_request)
        return call(executor, calls.get_request), pending.result(LONG)

    assert in_copy(run) == ("a", "a")


@pytest.mark.parametrize("value", [REQUEST, "request", ["request"], 5, {REQUEST: 1}])
def test_only_variables_are_taken(value):
    with pytest.raises(TypeError, match="context must be a tuple of ContextVars"):
        shmexec.Executor(1, context=value)


class TestSurrounded:
    """The worker's part, on what runs on after the call: for streams and coroutines."""

    def surround(self, fn, value):
        from shmexec.runtime.surroundings import Around

        return Around([(REQUEST, value)], None).wrap(fn, 1)

    def test_a_generator(self):
        items = self.surround(calls.requests, "a")(3)
        assert next(items) == "a"
        assert REQUEST.get("unset") == "unset"
        assert list(items) == [0, 1]
        assert REQUEST.get("unset") == "unset"

    def test_a_generator_is_closed(self):
        def generate():
            try:
                yield 1
            finally:
                closed.append(REQUEST.get())

        closed = []
        items = self.surround(generate, "a")()
        next(items)
        items.close()
        assert closed == ["a"]

    def test_a_generator_that_raises(self):
        def generate():
            yield 1
            raise KeyError(REQUEST.get())

        items = self.surround(generate, "a")()
        next(items)
        with pytest.raises(KeyError, match="a"):
            next(items)

    def test_a_coroutine(self):
        async def main():
            return await asyncio.gather(
                *(self.surround(calls.get_request_later, i)() for i in range(3))
            )

        assert asyncio.run(main()) == [0, 1, 2]

    def test_an_async_generator_whose_steps_run_in_tasks_of_their_own(self):
        async def generate():
            try:
                yield REQUEST.get()
                yield await calls.get_request_later()
            finally:
                closed.append(REQUEST.get())

        async def main():
            items = self.surround(generate, "a")()
            got = [await asyncio.create_task(anext(items)) for _ in range(2)]
            assert REQUEST.get("unset") == "unset"
            await items.aclose()
            return got

        closed = []
        assert asyncio.run(main()) == ["a", "a"]
        assert closed == ["a"]
