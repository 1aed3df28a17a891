"""Looking at a pool's state without changing it: for tests, and for people."""

from __future__ import annotations

from shmexec.scheduler.entities import Call, Worker
from shmexec.scheduler.packs import Packs
from shmexec.scheduler.records import CallState, WorkerState
from shmexec.scheduler.state import State


def story(call: Call) -> str:
    """What happened to an unfinished call, a line for each step."""
    start = call.born
    history = [(start, CallState.PENDING, None), *(call.history or ())]
    return "\n".join(
        f"+{at - start:.3f} s {state.value}"
        + (f" in worker {worker}" if worker is not None else "")
        for at, state, worker in history
    )


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
    limited = sum(w.stop_at is not None for w in workers)
    limited += sum(c.stop_at is not None for c in calls)
    limited += sum(c.kill_at is not None for c in calls)
    assert state.timed == limited
    assert state.mute <= set(state.workers)
    idle = {
        w.id
        for w in workers
        if w.state is WorkerState.IDLE
        or (
            w.state is WorkerState.BUSY
            and 0 < len(w.flight) < state.slots
            and not w.heavy
        )
    }
    assert set(state.idle) == idle
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
