"""Has what becomes of a pool's calls noted on tapes, while there are any.

A pool that nobody profiles has no recorder, and looks once at each end of a call whether
it has. Else the scheduler tells of each call that is finished, by which time its worker's
reply was seen: of that comes when the call began there, by the clock that all processes
share (``CLOCK_MONOTONIC``), and what was copied.

The caller holds the pool's lock, but for :meth:`Recorder.note_packing` and
:meth:`Recorder.note_refused`, which are called by whoever submits.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from shmexec.deadline import now
from shmexec.runtime.calls import PackedCall, error_name
from shmexec.runtime.tables import Tables
from shmexec.runtime.tape import NEVER, Outcome, Tape, Who, unsent
from shmexec.runtime.workers import WorkerHandle
from shmexec.scheduler.entities import STOP, Call
from shmexec.scheduler.records import CallState
from shmexec.wire.messages import Kind, MalformedMessage, Message, decode_counts

LARGE = 1 << 20
"""Bytes of the smallest array that is known again."""

WORKERS_AT_MOST = 4096
"""Workers that are remembered."""

PLACES_AT_MOST = 4096
"""Places of such arrays that are remembered."""

_WHY = {
    "died": (Outcome.WORKER_DIED, "WorkerDied"),
    "gone": (Outcome.WORKER_DIED, "WorkerDied"),
    "timeout": (Outcome.TIMED_OUT, "CallTimeout"),
    "stopped": (Outcome.CANCELLED, "CallStopped"),
    "broken": (Outcome.FAILED, "PoolBroken"),
}


class _Came:
    """What came of a call that is about to be finished, or of a stream so far."""

    __slots__ = ("began", "call", "copied", "error", "passed", "placing")

    def __init__(self, call: PackedCall | None, began: float) -> None:
        self.call = call
        self.began = began
        self.copied = self.passed = 0
        self.placing = 0.0
        self.error = ""


class Recorder:
    """See the module.

    Args:
        tables: The pool's.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._name = tables.options.name
        self.tapes: tuple[Tape, ...] = ()
        self._came: dict[int, _Came] = {}
        self._workers: dict[int, Who] = {}
        self._places: OrderedDict[tuple[int, int], None] = OrderedDict()

    # -- on their way in ---------------------------------------------------------------

    def note_packing(
        self,
        call: PackedCall,
        started: float,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        """A call was pickled and copied, and is about to be submitted."""
        call.packing = now() - started
        if call.copied < LARGE:
            return
        again = 0
        for value in (*args, *kwargs.values()):
            if isinstance(value, np.ndarray) and value.nbytes >= LARGE:
                again += self._is_known(value) * value.nbytes
        call.again = min(again, call.copied)

    def _is_known(self, array: np.ndarray) -> bool:
        """Whether an array was at that place in an earlier call, too."""
        place = array.__array_interface__["data"][0], array.nbytes
        known = place in self._places
        self._places[place] = None
        if len(self._places) > PLACES_AT_MOST:
            self._places.popitem(last=False)
        return known

    def note_refused(self, name: str, started: float) -> None:
        """A call could not be pickled."""
        ended = now()
        row = unsent(Outcome.FAILED, started, ended)._replace(packing=ended - started)
        for tape in self.tapes:
            tape.add(row, name, "SerializationError")

    # -- on their way out --------------------------------------------------------------

    def note_reply(
        self,
        handle: WorkerHandle,
        message: Message,
        call: PackedCall | None,
        views: tuple[Any, ...],
    ) -> None:
        """A worker replied, or sent an item; its figures are still those of before."""
        came = self._came.get(message.request)
        if came is None:
            came = self._came[message.request] = _Came(call, message.began)
        came.began = came.began or message.began
        if message.refs:
            copied = max(0, message.number - handle.copied_out)
            came.copied += copied
            came.passed += max(0, sum(ref.nbytes for ref in message.refs) - copied)
            came.placing += _placing(message.key, handle.counts.placing)
        if message.kind is Kind.ERROR:
            payload = views[-1] if message.spilled else message.payload
            came.error = error_name(payload, views)

    def note_packed(
        self,
        number: int,
        call: PackedCall | None,
        kind: Kind,
        payload: bytes,
        began: float,
    ) -> None:
        """A result came with others."""
        came = self._came[number] = _Came(call, began)
        if kind is Kind.ERROR:
            came.error = error_name(payload, ())

    def note_end(self, call: Call) -> None:
        """A call is finished."""
        came = self._came.pop(call.id, None)
        if call.state is CallState.DONE:
            outcome, error = Outcome.DONE, ""
        elif call.state is CallState.CANCELLED:
            outcome, error = Outcome.CANCELLED, ""
        else:
            outcome, error = self._why(call, came)
        self._write(self.tapes, call, came, outcome, error, call.ended)

    def _why(self, call: Call, came: _Came | None) -> tuple[Outcome, str]:
        """How a call failed."""
        last = call.history[-1] if call.history else None
        if last is None or last[1] is not CallState.FAILED:
            return Outcome.FAILED, came.error if came is not None else ""
        why = last[3].partition(":")[0]
        if why == "broken" and self._tables.options.fallback:
            return Outcome.APART, ""
        if why in _WHY:
            return _WHY[why]
        # It was not sent after all.
        outcome = self._tables.outcomes.get(call.id)
        if outcome is None or outcome.error is None:
            return Outcome.CANCELLED, ""
        return Outcome.FAILED, type(outcome.error).__name__

    def note_unfinished(self, tape: Tape) -> None:
        """What is not done goes to a tape that is about to be taken away."""
        for call in self._tables.machine.calls.values():
            waits = call.state is CallState.PENDING
            outcome = Outcome.PENDING if waits else Outcome.RUNNING
            self._write((tape,), call, self._came.get(call.id), outcome, "", NEVER)

    def _worker(self, number: int) -> Who:
        who = self._workers.get(number)
        if who is None or who.pid is None:
            if len(self._workers) >= WORKERS_AT_MOST:
                self._workers.clear()
            pid = self._tables.pids.get(number)
            who = self._workers[number] = Who(self._name, number, pid)
        return who

    def _write(
        self,
        tapes: tuple[Tape, ...],
        call: Call,
        came: _Came | None,
        outcome: Outcome,
        error: str,
        replied: float,
    ) -> None:
        packed = came.call if came is not None else self._tables.calls.get(call.id)
        sent, worker, attempts, in_pack = _sending(call)
        packing, arguments = 0.0, (0, 0, 0)
        if packed is not None:
            packing = packed.packing
            arguments = packed.copied, packed.by_reference, packed.again
        began, placing, results = NEVER, 0.0, (0, 0)
        if came is not None:
            began, placing = came.began or NEVER, came.placing
            results = came.copied, came.passed
        who = None if worker is None else self._worker(worker)
        times = call.born, sent, began, call.seconds, replied, packing, placing
        # A plain tuple in the place of a `Row`: this is done for each call.
        row = (call.id, outcome, in_pack, attempts, *times, *arguments, *results)
        for tape in tapes:
            tape.add(row, call.name, error, who)


def _sending(call: Call) -> tuple[float, int | None, int, bool]:
    """When it was sent last, to which worker; how often it was; whether in a pack."""
    sent, worker, attempts, in_pack = NEVER, None, 0, False
    for at, state, number, detail in call.history or ():
        if state is CallState.RUNNING and not (detail and detail.startswith(STOP)):
            sent, worker, in_pack = at, number, bool(detail)
            attempts += 1
    return sent, worker, min(attempts, 0xFFFF), in_pack


def _placing(key: bytes, before: float) -> float:
    """Seconds that a worker has copied since."""
    if not key:
        return 0.0
    try:
        return max(0.0, decode_counts(key).placing - before)
    except MalformedMessage:
        return 0.0  # whoever takes its figures in sees to that


def start(tables: Tables, tape: Tape) -> None:
    """Have a pool's calls noted on a tape."""
    recorder = tables.recorder
    if recorder is None:
        recorder = tables.recorder = Recorder(tables)
        tables.machine.watch(recorder.note_end)
    if tape not in recorder.tapes:
        recorder.tapes = (*recorder.tapes, tape)


def stop(tables: Tables, tape: Tape) -> None:
    """Have them noted there no more."""
    recorder = tables.recorder
    if recorder is None or tape not in recorder.tapes:
        return
    recorder.note_unfinished(tape)
    recorder.tapes = tuple(each for each in recorder.tapes if each is not tape)
    if not recorder.tapes:
        tables.recorder = None
        tables.machine.watch(None)
