"""OpenTelemetry, at both ends of a call; imported only where the program uses it.

Whatever fails in here, in the API, in a propagator, a span processor or an exporter, is
logged once in each process, and never touches a call.
"""

from __future__ import annotations

import os
from typing import Any

FLUSH_WITHIN = 5000
"""Milliseconds that exporting may take as a worker ends."""

_failed = False
_unusable = False


def carrier() -> dict[str, str] | None:
    """The caller's trace context as its propagators write it; None if there is none."""
    global _unusable
    if _unusable:
        return None
    found: dict[str, str] = {}
    try:
        from opentelemetry import propagate

        propagate.inject(found)
        return {str(key): str(value) for key, value in found.items()} or None
    except ImportError as error:
        _unusable = True  # looking for it again would cost each call
        _note(error)
    except Exception as error:  # noqa: BLE001
        _note(error)
    return None


class Span:
    """The span of one call, begun in the current context; a child of the caller's.

    Args:
        carrier: The caller's trace context.
        name: The span's name.
        number: The call's number.
    """

    def __init__(self, carrier: dict[str, str], name: str, number: int) -> None:
        self._context: Any = None
        self._span: Any = None
        try:
            from opentelemetry import propagate, trace

            self._context = propagate.extract(carrier)
            tracer = trace.get_tracer("shmexec")
            span = tracer.start_span(
                name,
                context=self._context,
                attributes={"shmexec.call": number, "process.pid": os.getpid()},
            )
            self._span = span
            self._context = trace.set_span_in_context(span, self._context)
        except Exception as error:  # noqa: BLE001
            _note(error)
        self.enter()

    def enter(self) -> None:
        """Make it the current one, in the current context."""
        if self._context is None:
            return
        try:
            from opentelemetry import context

            # Never detached: the context is of this call alone, and ends with it.
            context.attach(self._context)
        except Exception as error:  # noqa: BLE001
            _note(error)

    def end(self, error: BaseException | None) -> None:
        """End it, with what the call raised."""
        if self._span is None:
            return
        try:
            if error is not None:
                from opentelemetry.trace import Status, StatusCode

                self._span.record_exception(error)
                name = type(error).__qualname__
                self._span.set_status(Status(StatusCode.ERROR, f"{name}: {error}"))
        except Exception as failure:  # noqa: BLE001
            _note(failure)
        try:
            self._span.end()
        except Exception as failure:  # noqa: BLE001
            _note(failure)


def flush() -> None:
    """Have spans exported that wait for it: the process ends without its clean-up."""
    try:
        from opentelemetry import trace

        force = getattr(trace.get_tracer_provider(), "force_flush", None)
        if force is not None:
            force(FLUSH_WITHIN)
    except Exception as error:  # noqa: BLE001
        _note(error)


def _note(error: Exception) -> None:
    """Log what went wrong, the first time in this process."""
    global _failed
    if _failed:
        return
    _failed = True
    try:
        import logging

        logging.getLogger("shmexec").warning(
            "tracing fails, calls go on without it: %s: %s", type(error).__name__, error
        )
    except Exception:  # noqa: BLE001, S110  (a handler that raises is no reason either)
        pass
