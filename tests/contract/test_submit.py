"""``submit``: one call in, one future out."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from concurrent.futures import Executor, Future

import pytest

from tests.contract import calls
from tests.waiting import wait_until

pytestmark = pytest.mark.every_start


def test_is_an_executor_of_the_standard_library(executor):
    assert isinstance(executor, Executor)


def test_returns_a_future_of_the_result(executor):
    future = executor.submit(pow, 2, 8)
    assert isinstance(future, Future)
    assert future.result() == 256


def test_passes_positional_and_keyword_arguments(executor):
    future = executor.submit(calls.collect, 1, 2, a=3)
    assert future.result() == ((1, 2), {"a": 3})


@pytest.mark.parametrize("name", ["self", "fn", "args", "kwargs", "timeout", "worker"])
def test_no_keyword_is_taken_by_the_executor(executor, name):
    assert executor.submit(calls.collect, **{name: 5}).result() == ((), {name: 5})


def test_the_function_itself_is_no_keyword_argument(executor):
    with pytest.raises(TypeError):
        executor.submit(fn=pow, x=1)
    with pytest.raises(TypeError):
        executor.submit(arg=1)


def test_runs_in_another_process_with_its_main_thread(executor):
    assert executor.submit(calls.pid).result() != os.getpid()
    assert executor.submit(calls.in_main_thread).result()


def test_the_exception_of_the_call_is_raised(executor):
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        executor.submit(calls.ten_by, 0).result()


def test_calls_of_many_threads_get_each_their_own_result(executor):
    wrong = []

    def use(start):
        for x in range(start, start + 30):
            if executor.submit(calls.add, x, 1).result() != x + 1:
                wrong.append(x)

    threads = [threading.Thread(target=use, args=(100 * i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_arguments_and_function_are_not_kept_after_the_call(executor):
    thing = calls.Thing()
    alive = weakref.ref(thing)
    executor.submit(thing.method).result()
    del thing
    gc.collect()
    assert wait_until(lambda: alive() is None)


def test_a_result_goes_with_its_future(executor):
    future = executor.submit(calls.same, calls.Thing())
    alive = weakref.ref(future.result())
    del future
    gc.collect()
    assert wait_until(lambda: alive() is None, 1)
