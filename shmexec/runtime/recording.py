"""Has what becomes of a pool's calls noted on tapes, while there are any.

A pool that nobody profiles has no recorder, and looks once at each end of a call whether
it has. Else the scheduler tells of each call that is finished, by which time its worker's
reply was seen: of that comes when the call began there, by the clock that all processes
share (``CLOCK_MONOTONIC``), and what was copied.

The caller holds the pool's lock, but for :meth:`Recorder.note_arguments` and
:meth:`Recorder.note_refused`, which are called by whoever submits.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from shmexec.deadline import now
from shmexec.runtime.calls import PackedCall, error_name
from shmexec.runtime.tables import Tables
from shmexec.runtime.tape import NEVER, Outcome, Row, Tape, Who, unsent
from shmexec.runtime.workers import WorkerHandle
from shmexec.scheduler.entities import STOP, Call
from shmexec.scheduler.records import CallState
from shmexec.wire.messages import Kind, MalformedMessage, Message, decode_counts

LARGE = 1 << 20
"""Bytes of the smallest array that is known again."""

AT_A_TIME = 64
"""Calls that go to the tapes together: for many it takes a fraction of the time each."""

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


class _Facts(NamedTuple):
    """What is known of a call beside what the scheduler knows."""

    began: float
    placing: float
    error: str
    packing: float
    copied_in: int
    passed_in: int
    again: int
    copied_out: int
    passed_out: int


_Plain = tuple[float, float]
"""When it began, and how long it was packed: of a call that has no more to tell."""

_Entry = tuple[Call, _Facts | _Plain, Outcome, str]


class Recorder:
    """See the module.

    Args:
        tables: The pool's.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._name = tables.options.name
        self.tapes: tuple[Tape, ...] = ()
        self._facts: dict[
            int, _Facts | _Plain
        ] = {}  # of calls that are about to be finished
        self._ended: deque[_Entry] = deque()  # not on the tapes yet
        self._workers: dict[int, Who] = {}
        self._places: OrderedDict[tuple[int, int], weakref.ref[np.ndarray]] = (
            OrderedDict()
        )

    # -- on their way in ---------------------------------------------------------------

    def note_arguments(
        self, call: PackedCall, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """A call with much to copy is about to be submitted: see if it was known."""
        again = 0
        for value in (*args, *kwargs.values()):
            if isinstance(value, np.ndarray) and value.nbytes >= LARGE:
                again += self._is_known(value) * value.nbytes
        call.again = min(again, call.copied)

    def _is_known(self, array: np.ndarray) -> bool:
        """Whether an array, or another view of the same, was in an earlier call, too."""
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        place = array.__array_interface__["data"][0], array.nbytes
        before = self._places.get(place)
        # A place alone tells nothing: memory that was freed is used again.
        known = before is not None and before() is owner
        if not known:
            self._places[place] = weakref.ref(owner)
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
    #
    # Between a worker's reply and its next call no more is done than must be: what the
    # processor has forgotten since the last time takes ten times as long.

    def note_reply(
        self,
        handle: WorkerHandle,
        message: Message,
        call: PackedCall | None,
        views: tuple[Any, ...],
    ) -> None:
        """A worker replied, or sent an item; its figures are still those of before."""
        if (
            call is not None
            and message.kind is Kind.RESULT
            and not (message.refs or call.arguments or call.by_reference or call.credit)
        ):
            self._facts[message.request] = message.began, call.packing
            return
        facts = _facts(call, message.began)
        if message.refs:
            copied = max(0, message.number - handle.copied_out)
            passed = max(0, sum(ref.nbytes for ref in message.refs) - copied)
            placing = _placing(message.key, handle.counts.placing)
            facts = facts._replace(
                placing=placing, copied_out=copied, passed_out=passed
            )
        if message.kind is Kind.ERROR:
            payload = views[-1] if message.spilled else message.payload
            facts = facts._replace(error=error_name(payload, views))
        before = self._facts.get(message.request)
        if isinstance(before, _Facts):
            facts = _and(before, facts)
        self._facts[message.request] = facts

    def note_packed(
        self,
        number: int,
        call: PackedCall | None,
        kind: Kind,
        payload: bytes,
        began: float,
    ) -> None:
        """A result came with others."""
        facts = _facts(call, began)
        if kind is Kind.ERROR:
            facts = facts._replace(error=error_name(payload, ()))
        self._facts[number] = facts

    def note_end(self, call: Call) -> None:
        """A call is finished."""
        facts = self._facts.pop(call.id, None)
        if facts is None:
            facts = _facts(self._tables.calls.get(call.id))
        outcome, error = Outcome.DONE, ""
        if call.state is CallState.CANCELLED:
            outcome = Outcome.CANCELLED
        elif call.state is not CallState.DONE:
            outcome, error = self._why(call, facts)
        self._ended.append((call, facts, outcome, error))
        if len(self._ended) >= AT_A_TIME:
            self.flush()

    def _why(self, call: Call, facts: _Facts | _Plain) -> tuple[Outcome, str]:
        """How a call failed."""
        last = call.history[-1] if call.history else None
        if last is None or last[1] is not CallState.FAILED:
            return Outcome.FAILED, facts.error if isinstance(facts, _Facts) else ""
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

    def flush(self) -> None:
        """Have on the tapes all that are finished."""
        ended = self._ended
        while ended:
            # Taken first: after an interrupt the others are left.
            entry = ended.popleft()
            self._write(self.tapes, entry, entry[0].ended)

    def note_unfinished(self, tape: Tape) -> None:
        """What is not done goes to a tape that is about to be taken away."""
        for call in self._tables.machine.calls.values():
            facts = self._facts.get(call.id)
            if facts is None:
                facts = _facts(self._tables.calls.get(call.id))
            waits = call.state is CallState.PENDING
            outcome = Outcome.PENDING if waits else Outcome.RUNNING
            self._write((tape,), (call, facts, outcome, ""), NEVER)

    def _worker(self, number: int) -> Who:
        who = self._workers.get(number)
        if who is None or who.pid is None:
            if len(self._workers) >= WORKERS_AT_MOST:
                self._workers.clear()
            pid = self._tables.pids.get(number)
            who = self._workers[number] = Who(self._name, number, pid)
        return who

    def _write(self, tapes: tuple[Tape, ...], entry: _Entry, replied: float) -> None:
        call, facts, outcome, error = entry
        if not isinstance(facts, _Facts):
            began, packing = facts
            facts = _Facts(began, 0.0, "", packing, 0, 0, 0, 0, 0)
        began, placing, _, packing, *nbytes = facts
        sent, worker, attempts, in_pack = _sending(call)
        who = None if worker is None else self._worker(worker)
        times = call.born, sent, began or NEVER, call.seconds, replied, packing, placing
        row = Row(call.id, outcome, in_pack, attempts, *times, *nbytes)
        for tape in tapes:
            tape.add(row, call.name, error, who)


def _facts(call: PackedCall | None, began: float = 0.0) -> _Facts:
    """Of a call as it was submitted."""
    if call is None:
        return _Facts(began, 0.0, "", 0.0, 0, 0, 0, 0, 0)
    copied, passed, again = call.copied, call.by_reference, call.again
    return _Facts(began, 0.0, "", call.packing, copied, passed, again, 0, 0)


def _and(before: _Facts, facts: _Facts) -> _Facts:
    """What came of a stream so far, and what came now."""
    return before._replace(
        began=before.began or facts.began,
        error=facts.error,
        placing=before.placing + facts.placing,
        copied_out=before.copied_out + facts.copied_out,
        passed_out=before.passed_out + facts.passed_out,
    )


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
        recorder.flush()
        recorder.tapes = (*recorder.tapes, tape)


def stop(tables: Tables, tape: Tape) -> None:
    """Have them noted there no more."""
    recorder = tables.recorder
    if recorder is None or tape not in recorder.tapes:
        return
    recorder.flush()
    recorder.note_unfinished(tape)
    recorder.tapes = tuple(each for each in recorder.tapes if each is not tape)
    if not recorder.tapes:
        tables.recorder = None
        tables.machine.watch(None)
