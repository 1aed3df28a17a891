"""Looking at a pool's state without changing it: for tests, and for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from shmexec.scheduler.entities import STOP, Call, Worker
from shmexec.scheduler.packs import Packs
from shmexec.scheduler.records import CallState, WorkerState
from shmexec.scheduler.state import State


class Told(NamedTuple):
    """A step in the life of a call."""

    at: float
    what: str
    worker: int | None


def sent_at(call: Call) -> float:
    """When it was sent to the worker that it is with."""
    steps = call.history or ()
    sent = (at for at, _, _, detail in reversed(steps) if not detail.startswith(STOP))
    return next(sent, call.born)


def pending(state: State) -> Iterator[Call]:
    """The calls that wait, in the order they came in."""
    return (c for c in state.calls.values() if c.state is CallState.PENDING)


def story(call: Call) -> list[Told]:
    """What happened to a call so far."""
    told = [Told(call.born, "submitted", None)]
    sent, ended = False, False
    for at, state, worker, detail in call.history or ():
        if state is CallState.PENDING:
            told.append(Told(at, f"waits again: {detail}", worker))
        elif state is CallState.RUNNING:
            what = "" if detail.startswith(STOP) else "sent"
            told.append(Told(at, f"{what} {detail}".strip(), worker))
            sent = True
        else:
            told.append(Told(at, f"{state.value}: {detail}", worker))
            ended = True
    if call.state in {CallState.PENDING, CallState.RUNNING} or ended:
        return told
    took = (
        f", after {call.seconds:.6f} s in the worker" if sent and call.seconds else ""
    )
    what = "failed: it raised" if call.state is CallState.FAILED else call.state.value
    return [*told, Told(call.ended, f"{what}{took}", None)]


def validate(state: State, packs: Packs) -> None:
    """Check the invariants."""
    _validate_counts(state, packs)
    for call in state.calls.values():
        _validate_call(call, state)
    for worker in state.workers.values():
        _validate_worker(worker, state)
    if not state.broken:
        # Nobody waits beside an idle worker that might take the call.
        calls = state.calls.values()
        free = [c for c in calls if c.state is CallState.PENDING and not c.pinned]
        assert not (free and state.idle) or not state.may_begin()


def _validate_counts(state: State, packs: Packs) -> None:
    workers, calls = state.workers.values(), state.calls.values()
    by_state = [w.state for w in workers]
    assert state.starting == by_state.count(WorkerState.STARTING)
    assert state.draining == by_state.count(WorkerState.DRAINING)
    assert packs.open == sum(w.look_at is not None for w in workers)
    assert state.timed == state.count_limited()
    assert state.mute <= set(state.workers)
    assert set(state.idle) == state.find_idle().keys()
    assert state.pending == sum(c.state is CallState.PENDING for c in calls)
    _validate_waiting(state)


def _validate_waiting(state: State) -> None:
    pending = [c for c in state.calls.values() if c.state is CallState.PENDING]
    places = {c.order for c in pending if c.pinned is None}
    assert places <= set(state.waiting.queue)
    assert state.waiting.count() == len(places)
    pinned = {c.id for c in pending if c.pinned is not None}
    assert pinned == set().union(*state.waiting.pinned.values())
    assert state.waiting.count_pinned() == len(pinned)


def _validate_call(call: Call, state: State) -> None:
    assert call.state in {CallState.PENDING, CallState.RUNNING}
    running = call.state is CallState.RUNNING
    assert running == (call.worker is not None)
    if call.worker is not None:
        worker = call.worker
        assert (
            worker.call is call
            or worker.pack.get(call.id) is call
            or worker.flight.get(call.id) is call
        )
        assert state.workers[call.worker.id] is call.worker


def _validate_worker(worker: Worker, state: State) -> None:
    if worker.state is WorkerState.BUSY:
        busy_with = (
            worker.call is not None,
            worker.packed,
            bool(worker.flight),
        )
        assert sum(busy_with) == 1
    places = [call.sent for call in worker.flight.values()]
    assert places == sorted(places)
    assert len(places) <= state.slots
    for each in worker.flight.values():
        assert each.worker is worker
        assert worker.state in {WorkerState.BUSY, WorkerState.DRAINING}
    assert worker.packed or not (worker.pack or worker.look_at)
    for each in worker.pack.values():
        assert each.worker is worker
    if worker.call is not None:
        assert worker.state in {WorkerState.BUSY, WorkerState.DRAINING}
