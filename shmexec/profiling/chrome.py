"""Writes a profile as a trace in the Trace Event Format, which Perfetto opens.

Times are in microseconds. A worker is a thread of its pool; where it runs several calls
at a time, so is each lane of it, since events of a thread must not overlap. What calls
went through before they ran are asynchronous events, which may.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shmexec.profiling.table import Table
from shmexec.profiling.timeline import lanes_of
from shmexec.runtime.tape import Outcome

Event = dict[str, Any]

_HERE = 1
"""Number of the process that stands for this program; those of pools come after it."""


def write(table: Table, path: Path) -> None:
    """See :meth:`shmexec.Profile.to_chrome_trace`."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
            for i, event in enumerate(events(table)):
                file.write(",\n" if i else "")
                file.write(json.dumps(event, allow_nan=False))
            file.write("\n]}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def events(table: Table) -> Iterator[Event]:
    """The events of a trace."""
    pools = sorted({who.pool for who in table.workers})
    process = {name: _HERE + 1 + i for i, name in enumerate(pools)}
    yield _name("process_name", _HERE, 0, "calls, as the program sees them")
    for pool, number in process.items():
        yield _name("process_name", number, 0, f"workers of {pool}")
    thread = 0
    for index, who in enumerate(table.workers):
        used = lanes_of(table, index)
        for lane in range(max(used.values(), default=0) + 1):
            thread += 1
            pid = f" (pid {who.pid})" if who.pid else ""
            more = f", lane {lane + 1}" if lane else ""
            number = process[who.pool]
            title = f"worker {who.number}{pid}{more}"
            yield _name("thread_name", number, thread, title)
            own = [call for call, at in used.items() if at == lane]
            for call in own:
                yield from _ran(table, call, number, thread)
    for call in range(len(table)):
        yield from _waited(table, call)
    yield from _counters(table)


def _name(kind: str, process: int, thread: int, text: str) -> Event:
    return {
        "name": kind,
        "ph": "M",
        "pid": process,
        "tid": thread,
        "args": {"name": text},
    }


def _ran(table: Table, call: int, process: int, thread: int) -> Iterator[Event]:
    """A call in its worker, and the copying of its results."""
    began, ended = float(table.began[call]), float(table.ended[call])
    if np.isnan(ended):
        ended = float(table.replied[call])
    if np.isnan(ended):
        ended = table.facts.seconds
    name = table.names[table.name[call]]
    common = {"ph": "X", "pid": process, "tid": thread}
    placing = float(table.placing[call])
    yield {
        **common,
        "name": name,
        "cat": "call",
        "ts": _micros(began),
        "dur": _micros(max(0.0, ended - began)),
        "args": _arguments(table, call),
    }
    if placing > 0:
        yield {
            **common,
            "name": "copying results",
            "cat": "copy",
            "ts": _micros(ended),
            "dur": _micros(placing),
            "args": {"bytes": int(table.copied_out[call])},
        }


def _waited(table: Table, call: int) -> Iterator[Event]:
    """What a call went through in this program: packing, waiting, and the way back."""
    queued, sent = float(table.queued[call]), float(table.sent[call])
    replied = float(table.replied[call])
    began = queued - float(table.packing[call])
    last = replied if np.isfinite(replied) else table.facts.seconds
    name = table.names[table.name[call]]
    common = {
        "cat": "call",
        "id": f"{call:x}",
        "pid": _HERE,
        "tid": 0,
    }
    steps = [(name, began, last), ("packing", began, queued)]
    steps.append(("waiting", queued, sent if np.isfinite(sent) else last))
    for what, start, stop in steps:
        if stop > start or what == name:
            yield {**common, "name": what, "ph": "b", "ts": _micros(start)}
            yield {**common, "name": what, "ph": "e", "ts": _micros(max(start, stop))}


def _counters(table: Table) -> Iterator[Event]:
    """How many calls wait, and how many are with workers."""
    never = table.facts.seconds
    sent = np.where(np.isfinite(table.sent), table.sent, table.replied)
    waits_end = np.where(np.isfinite(sent), sent, never)
    is_sent = np.isfinite(table.sent)
    replied = np.where(np.isfinite(table.replied), table.replied, never)[is_sent]
    for what, begins, ends in (
        ("pending", table.queued, waits_end),
        ("running", table.sent[is_sent], replied),
    ):
        times = np.concatenate((begins, ends))
        steps = np.concatenate((np.ones(len(begins)), -np.ones(len(ends))))
        order = np.argsort(times, kind="stable")
        counts = np.cumsum(steps[order])
        for at, value in zip(times[order], counts, strict=True):
            yield {
                "name": what,
                "ph": "C",
                "pid": _HERE,
                "tid": 0,
                "ts": _micros(float(at)),
                "args": {"calls": max(0, int(value))},
            }


def _arguments(table: Table, call: int) -> Event:
    error = int(table.error[call])
    return {
        "call": int(table.call[call]),
        "outcome": Outcome(table.outcome[call]).text,
        **({"error": table.errors[error]} if error >= 0 else {}),
        "attempts": int(table.attempts[call]),
        "in a pack": bool(table.packed[call]),
        "bytes copied in": int(table.copied_in[call]),
        "bytes by reference": int(table.passed_in[call]),
        "bytes copied out": int(table.copied_out[call]),
        "bytes handed over": int(table.passed_out[call]),
        "waited ms": _millis(table.sent[call] - table.queued[call]),
        "packing ms": _millis(table.packing[call]),
    }


def _micros(value: float) -> float:
    """From seconds, to the nanosecond."""
    return round(value * 1e6, 3)


def _millis(value: float) -> float:
    return round(float(value) * 1e3, 6)
