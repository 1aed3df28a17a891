"""Log records on their way to the program's loggers.

Imported when a worker starts: cloudpickle has loaded ``logging`` by then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

from shmexec.wire.messages import Kind, Message, encode
from shmexec.worker.calls import Calls
from shmexec.worker.line import Line

RECORD_AT_MOST = 60_000
"""Bytes of a record that goes as it is."""

_TEXTS = {"msg": 8192, "exc_text": 4096, "stack_info": 2048}
"""Characters that are kept of the texts in a larger one; each may take four bytes."""

_OWN = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}
_OWN |= {"worker_pid", "call_id"}


class Forwarder(logging.Handler):
    """Sends each record to the parent.

    Args:
        send: Sends one, in any thread of this process.
        call: The number of the call that runs, None if none does.
        packets: Whether a forked child may write to the same socket: the kernel keeps
            packets apart, but not the parts of a stream.
    """

    def __init__(
        self,
        send: Callable[[bytes], None],
        call: Callable[[], int | None],
        *,
        packets: bool,
    ) -> None:
        super().__init__()
        self._send = send
        self._call = call
        self._packets = packets
        self._pid = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        """Send it; from a forked child it may have to go as text."""
        try:
            if os.getpid() == self._pid or self._packets:
                self._send(pack(record, self._pid, self._call()))
            else:
                sys.stderr.write(f"{self.format(record)}\n")
        except Exception:  # noqa: BLE001  (as every handler of the standard library)
            self.handleError(record)


def pack(record: logging.LogRecord, pid: int, call: int | None) -> bytes:
    """A record as bytes: with its text made, since its arguments may be anything."""
    fields = dict(vars(record))
    extra = {name: fields.pop(name) for name in vars(record) if name not in _OWN}
    fields["msg"], fields["args"] = record.getMessage(), None
    error, fields["exc_info"] = fields.get("exc_info"), None
    if error and not fields.get("exc_text"):
        fields["exc_text"] = logging.Formatter().formatException(error)
    # It may come from a worker of a pool in this worker.
    fields.setdefault("worker_pid", pid)
    fields.setdefault("call_id", call)
    data = pickle.dumps((fields, _pack_extra(extra)), 5)
    if len(data) > RECORD_AT_MOST:
        for name, kept in _TEXTS.items():
            text = fields.get(name) or ""
            if len(text) > kept:
                note = f" ... ({len(text) - kept} characters more)"
                fields[name] = text[:kept] + note
        fields.pop("message", None)
        data = pickle.dumps((fields, _pack_extra({})), 5)
    return data


def _pack_extra(extra: dict[str, Any]) -> bytes:
    try:
        return pickle.dumps(extra, 5)
    except Exception:  # noqa: BLE001  (whatever the program hung on its record)
        return pickle.dumps({name: _text(value) for name, value in extra.items()}, 5)


def _text(value: object) -> Any:
    if value is None or isinstance(value, (str, bytes, int, float)):
        return value
    try:
        return repr(value)
    except Exception:  # noqa: BLE001
        return object.__repr__(value)


def forward(forwarder: Forwarder, level: int | None) -> None:
    """Have all records go to the parent, and nowhere else.

    A forked worker has the program's handlers: they handle each record in the program,
    and would do it here once more.
    """
    root = logging.getLogger()
    for logger in (root, *root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            for handler in logger.handlers[:]:
                logger.removeHandler(handler)
            if logger is root or not logger.propagate:
                logger.addHandler(forwarder)
    if level is not None:
        root.setLevel(level)


class _Sender:
    """Writes records to the line, in any thread of user code, perhaps in a forked child."""

    def __init__(self, line: Line, calls: Calls) -> None:
        self._line = line
        self._calls = calls
        self._pid = os.getpid()
        self._thread = threading.get_ident()

    def running_call(self) -> int | None:
        if self._line.several:
            from shmexec.worker.flight import running_call

            return running_call()
        return self._calls.running_call()

    def send(self, record: bytes) -> None:
        line, calls = self._line, self._calls
        data = encode(Message(Kind.LOG, generation=line.generation, payload=record))
        if os.getpid() != self._pid:
            with contextlib.suppress(OSError):  # it may have outlived everything else
                line.replies.sendall(data)
        elif threading.get_ident() != self._thread:
            line.write(data)
        else:
            # An interrupt in the middle would leave half a message in a stream. One that
            # comes now is lost: the parent waits a moment for it, then kills.
            running, calls.running = calls.running, False
            try:
                line.write(data)
            finally:
                calls.running = running


def forward_to(line: Line, calls: Calls, level: int | None) -> None:
    """Send log records to the parent from now on."""
    sender = _Sender(line, calls)
    forwarder = Forwarder(sender.send, sender.running_call, packets=line.packets)
    forward(forwarder, level)
