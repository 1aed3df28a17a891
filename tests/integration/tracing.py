"""What the tests of tracing run in workers."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any, NoReturn

from opentelemetry import baggage, propagate, trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()


def record() -> None:
    """As an initializer: keep the spans that end in this worker."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def spans() -> list[dict[str, Any]]:
    """Those that have ended since last asked."""
    ended = exporter.get_finished_spans()
    exporter.clear()
    return [
        {
            "name": span.name,
            "trace": span.context.trace_id,
            "id": span.context.span_id,
            "parent": span.parent.span_id if span.parent else None,
            "attributes": dict(span.attributes or {}),
            "status": span.status.status_code.name,
            "events": [event.name for event in span.events],
        }
        for span in ended
    ]


def where() -> tuple[int, int, int]:
    """Trace and span that are current, and this process."""
    context = trace.get_current_span().get_span_context()
    return context.trace_id, context.span_id, os.getpid()


def where_of(_item: Any) -> int:
    """The span that is current."""
    return where()[1]


def with_a_span_inside() -> int:
    """Make a span of its own; the span around it."""
    around = where()[1]
    with trace.get_tracer("user").start_as_current_span("inside"):
        return around


async def where_later() -> int:
    """The span that is current in a coroutine."""
    return where()[1]


def generate(number: int) -> Iterator[int]:
    """The span that is current, at each step."""
    for _ in range(number):
        yield where()[1]


async def generate_later(number: int) -> AsyncIterator[int]:
    """The same."""
    for _ in range(number):
        yield where()[1]


def get_baggage(name: str) -> object:
    """What came along beside the span."""
    return baggage.get_baggage(name)


# -- what fails ----------------------------------------------------------------------------


def fail(*_: Any, **__: Any) -> NoReturn:
    """Raise."""
    msg = "tracing is broken"
    raise RuntimeError(msg)


class FailingExporter(SpanExporter):
    """Cannot export."""

    export = fail  # type: ignore[assignment]


class FailsAtStart(SpanProcessor):
    """Fails as a span begins."""

    on_start = fail


class FailsAtEnd(SpanProcessor):
    """Fails as a span ends."""

    on_end = fail


class FailingPropagator(TextMapPropagator):
    """Fails at both ends."""

    inject = fail
    extract = fail  # type: ignore[assignment]
    fields = frozenset()  # type: ignore[assignment]


class FailingTracer(trace.Tracer):
    """Makes no spans."""

    start_span = fail
    start_as_current_span = fail


class FailingSpan(trace.NonRecordingSpan):
    """Fails whatever it is asked for."""

    set_attribute = set_attributes = fail
    record_exception = set_status = end = fail

    def __init__(self) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)


class TracerOfFailingSpans(trace.Tracer):
    """Makes spans that fail."""

    start_as_current_span = fail

    def start_span(self, *_: Any, **__: Any) -> trace.Span:
        """Make one."""
        return FailingSpan()


class ProviderOf(trace.TracerProvider):
    """Gives the same tracer to all."""

    def __init__(self, tracer: trace.Tracer | None) -> None:
        self._tracer = tracer

    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        """Give it, if there is one."""
        return self._tracer or fail()


class LogToFile(logging.Handler):
    """Adds a line to a file for each record."""

    def __init__(self, path: str, *, fails: bool) -> None:
        super().__init__()
        self._path = path
        self._fails = fails

    def emit(self, record: logging.LogRecord) -> None:
        """Add it."""
        with open(self._path, "a") as file:
            file.write(f"{os.getpid()} {record.getMessage()}\n")
        if self._fails:
            fail()


def break_down(how: str, log: str) -> None:
    """As an initializer: have tracing fail in some way, and logs go to a file."""
    handler = LogToFile(log, fails=how == "logging")
    logging.getLogger("shmexec").addHandler(handler)
    sdk = TracerProvider()
    provider: trace.TracerProvider = sdk
    if how == "exporter":
        sdk.add_span_processor(SimpleSpanProcessor(FailingExporter()))
    elif how == "start":
        sdk.add_span_processor(FailsAtStart())
    elif how == "end":
        sdk.add_span_processor(FailsAtEnd())
    elif how == "propagator":
        propagate.set_global_textmap(FailingPropagator())
    elif how == "span":
        provider = ProviderOf(TracerOfFailingSpans())
    elif how == "provider":
        provider = ProviderOf(None)
    else:
        provider = ProviderOf(FailingTracer())
    trace.set_tracer_provider(provider)


class FileExporter(SpanExporter):
    """Adds a line to a file for each span."""

    def __init__(self, path: str) -> None:
        self._path = path

    def export(self, spans: Any) -> Any:
        """Add them."""
        with open(self._path, "a") as file:
            file.writelines(f"{span.name}\n" for span in spans)


def record_in_batches(path: str) -> None:
    """As an initializer: write spans to a file, long after they ended."""
    provider = TracerProvider(shutdown_on_exit=False)
    processor = BatchSpanProcessor(FileExporter(path), schedule_delay_millis=3_600_000)
    provider.add_span_processor(processor)
    trace.set_tracer_provider(provider)
