"""Spans of calls are children of the caller's; what fails in tracing fails no call."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from contextvars import ContextVar

import numpy as np
import pytest

import shmexec
from shmexec.worker import tracing as ours
from tests.contract import calls
from tests.waiting import LONG

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import baggage, context, propagate
from opentelemetry.sdk.trace import TracerProvider

from tests.integration import tracing

pytestmark = pytest.mark.slow

WAYS = [
    "exporter",
    "start",
    "end",
    "propagator",
    "span",
    "tracer",
    "provider",
    "logging",
]


@pytest.fixture(scope="module")
def tracer():
    return TracerProvider(shutdown_on_exit=False).get_tracer("tests")


@pytest.fixture
def executor(make_executor):
    return make_executor(1, initializer=tracing.record)


def call(executor, fn, *args):
    return executor.submit(fn, *args).result(LONG)


def only(executor):
    """The one span that ended in the worker."""
    (span,) = call(executor, tracing.spans)
    return span


def test_a_span_for_a_call_is_a_child_of_the_callers(executor, tracer):
    with tracer.start_as_current_span("caller") as caller:
        future = executor.submit(tracing.where)
    trace_id, span_id, pid = future.result(LONG)
    own = caller.get_span_context()
    span = only(executor)
    assert span["name"] == "where"
    assert span["trace"] == trace_id == own.trace_id
    assert span["parent"] == own.span_id
    assert span["id"] == span_id
    assert span["attributes"] == {"shmexec.call": 1, "process.pid": pid}
    assert span["status"] == "UNSET"


def test_spans_of_the_call_are_its_children(executor, tracer):
    with tracer.start_as_current_span("caller"):
        around = call(executor, tracing.with_a_span_inside)
    inside, outside = call(executor, tracing.spans)
    assert inside["parent"] == outside["id"] == around


def test_without_a_span_of_the_caller_there_is_none(executor):
    assert call(executor, tracing.where)[:2] == (0, 0)
    assert call(executor, tracing.spans) == []


def test_the_next_call_is_in_no_span(executor, tracer):
    with tracer.start_as_current_span("caller"):
        call(executor, tracing.where)
    assert call(executor, tracing.where)[:2] == (0, 0)


def test_an_error_is_recorded(executor, tracer):
    with tracer.start_as_current_span("caller"):
        with pytest.raises(KeyError):
            call(executor, calls.fail, KeyError("x"))
    span = only(executor)
    assert span["status"] == "ERROR"
    assert span["events"] == ["exception"]


def test_baggage_goes_along(executor):
    token = context.attach(baggage.set_baggage("user", "me"))
    try:
        assert call(executor, tracing.get_baggage, "user") == "me"
    finally:
        context.detach(token)


def test_coroutines_and_streams_are_in_their_span(executor, tracer):
    with tracer.start_as_current_span("caller"):
        inside = call(executor, tracing.where_later)
        assert only(executor_outside(executor))["id"] == inside
    for fn in (tracing.generate, tracing.generate_later):
        with tracer.start_as_current_span("caller") as caller:
            stream = executor.stream(fn, 3)
        items = list(stream)
        span = only(executor)
        assert items == [span["id"]] * 3
        assert span["name"] == fn.__name__
        assert span["parent"] == caller.get_span_context().span_id


class executor_outside:  # noqa: N801
    """The executor, for calls that are in no span."""

    def __init__(self, executor):
        self._executor = executor

    def submit(self, *args):
        token = context.attach(context.Context())
        try:
            return self._executor.submit(*args)
        finally:
            context.detach(token)


def test_a_stream_that_is_left_ends_its_span(executor, tracer):
    with tracer.start_as_current_span("caller"):
        stream = executor.stream(tracing.generate, 100)
    next(stream)
    stream.close()
    assert only(executor)["status"] == "UNSET"


def test_maps_batches_and_tiny_calls(executor, tracer):
    rows = np.ones((1000, 100))
    with tracer.start_as_current_span("caller") as caller:
        results = [
            *executor.map(tracing.where_of, range(10), chunksize=5),
            *(f.result(LONG) for f in [executor.submit(pow, 2, 3) for _ in range(50)]),
        ]
        executor.map_batches(np.negative, rows, batch_size=500)
    spans = call(executor, tracing.spans)
    names = [span["name"] for span in spans]
    assert names[:2] == ["where_of", "where_of"]
    assert names.count("pow") == 50
    assert len(set(results[:10])) == 2
    assert {span["parent"] for span in spans} == {caller.get_span_context().span_id}


def test_with_context_variables_too(make_executor, tracer):
    executor = make_executor(1, initializer=tracing.record, context=[calls.REQUEST])
    token = calls.REQUEST.set("a")
    try:
        with tracer.start_as_current_span("caller"):
            assert call(executor, calls.get_request) == "a"
    finally:
        calls.REQUEST.reset(token)
    assert only(executor)["name"] == "get_request"


def test_in_process(tracer):
    with tracer.start_as_current_span("caller") as caller:
        with shmexec.Executor(in_process=True) as executor:
            assert (
                call(executor, tracing.where)[0] == caller.get_span_context().trace_id
            )


def test_the_api_alone_will_do(make_executor, tracer):
    """Without an SDK in the worker: the trace context is there, and no span is kept."""
    executor = make_executor(1)
    with tracer.start_as_current_span("caller") as caller:
        trace_id, span_id, _ = call(executor, tracing.where)
    own = caller.get_span_context()
    assert (trace_id, span_id) == (own.trace_id, own.span_id)


def test_spans_are_flushed_as_a_worker_ends(make_executor, tracer, tmp_path):
    path = tmp_path / "spans"
    executor = make_executor(
        1, initializer=tracing.record_in_batches, initargs=(str(path),)
    )
    with tracer.start_as_current_span("caller"):
        call(executor, calls.pid)
    executor.shutdown()
    assert path.read_text() == "pid\n"


def test_it_is_not_imported_for_its_own_sake():
    code = """
import sys, contextvars, shmexec
v = contextvars.ContextVar("v")
with shmexec.Executor(1, context=[v]) as executor:
    there = executor.submit(eval, "'opentelemetry' in __import__('sys').modules")
    assert not there.result()
assert "opentelemetry" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- what fails ------------------------------------------------------------------------


@pytest.mark.parametrize("how", WAYS)
def test_each_call_runs_once_whatever_fails_in_the_worker(
    make_executor, tracer, tmp_path, how
):
    log, runs = tmp_path / "log", tmp_path / "runs"
    executor = make_executor(
        1, initializer=tracing.break_down, initargs=(how, str(log)), retries=2
    )
    with tracer.start_as_current_span("caller"):
        assert call(executor, calls.count, runs, 5) == 5
        with pytest.raises(KeyError):
            call(executor, calls.fail, KeyError("x"))
        assert list(executor.map(calls.count, [runs] * 4, chunksize=2)) == [None] * 4
        assert list(executor.stream(calls.count_and_yield, str(runs))) == [1, 2]
    assert runs.read_text() == "." * 6
    if how != "exporter":  # the SDK itself logs that
        assert log.read_text().count("\n") == 1
        assert "tracing is broken" in log.read_text()


def test_each_call_runs_once_if_the_context_cannot_be_written(
    make_executor, tracer, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(ours, "_failed", False)
    monkeypatch.setattr(propagate, "inject", tracing.fail)
    executor = make_executor(1, retries=2)
    runs = tmp_path / "runs"
    with tracer.start_as_current_span("caller"), caplog.at_level(logging.WARNING):
        assert [call(executor, calls.count, runs, i) for i in range(3)] == [0, 1, 2]
    assert runs.read_text() == "..."
    assert [record.name for record in caplog.records] == ["shmexec"]


def test_what_a_propagator_writes_is_taken_as_text(make_executor, tracer, monkeypatch):
    def inject(carrier):
        carrier["odd"] = open(os.devnull)  # noqa: SIM115
        carrier["odd"].close()

    monkeypatch.setattr(propagate, "inject", inject)
    executor = make_executor(1)
    assert call(executor, calls.same, 5) == 5


VALUE: ContextVar[object] = ContextVar("value")


def test_a_value_that_cannot_be_rebuilt_fails_its_call_which_never_runs(
    make_executor, tmp_path
):
    executor = make_executor(1, retries=2, context=[VALUE])
    runs = tmp_path / "runs"
    token = VALUE.set(calls.Awkward("loads", "error"))
    try:
        future = executor.submit(calls.count, runs)
    finally:
        VALUE.reset(token)
    with pytest.raises(ZeroDivisionError):
        future.result(LONG)
    assert not runs.exists()
    assert call(executor, calls.count, runs, 5) == 5
    assert runs.read_text() == "."


@pytest.mark.parametrize("error", [TypeError("not these arguments"), ValueError("out")])
def test_a_call_that_raises_is_not_called_in_another_way(
    make_executor, tmp_path, error
):
    """As if it had been given its arguments in a wrong way."""
    executor = make_executor(1, retries=2)
    runs = tmp_path / "runs"

    def raises(*_args, out=None):
        calls.count(runs)
        raise error

    with pytest.raises(type(error)):
        call(executor, raises, 1)
    with pytest.raises(type(error)):
        list(executor.map(raises, [1, 2], chunksize=2))
    with pytest.raises(type(error)):
        executor.map_batches(raises, np.ones((4, 2)), batch_size=4)
    assert runs.read_text() == "..."
