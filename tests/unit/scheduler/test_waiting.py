"""The queue of calls: its order, and what cancelled calls leave in it."""

from __future__ import annotations

import random

import pytest

from shmexec.scheduler import records as r, waiting
from shmexec.scheduler.machine import Machine
from shmexec.scheduler.waiting import place_of


def busy_machine(workers=1):
    """All of its workers run a call; what is submitted waits."""
    machine = Machine(workers)
    for call in range(1, workers + 1):
        for command in machine.handle(r.Submitted(call), 0.0):
            machine.handle(r.WorkerReady(command.worker), 0.0)
    assert machine.pending == 0
    return machine


@pytest.mark.parametrize("priorities", [(0,), (-3, 0, 1, 70), (-(10**30), 10**30)])
def test_places_are_in_the_order_of_priorities_then_numbers(priorities):
    chance = random.Random(1)
    calls = [
        (chance.choice(priorities), chance.randrange(1, 1 << 40)) for _ in range(200)
    ]
    by_place = sorted(calls, key=lambda call: place_of(call[1], call[0]))
    assert by_place == sorted(calls, key=lambda call: (-call[0], call[1]))


def test_a_call_of_the_usual_priority_needs_nothing_for_its_place():
    number = 1 << 30
    assert place_of(number, 0) is number


@pytest.mark.parametrize("seed", range(5))
def test_cancelled_calls_are_passed_over(seed, monkeypatch):
    monkeypatch.setattr(waiting, "LEFT_AT_LEAST", 4)
    chance = random.Random(seed)
    machine = busy_machine()
    left = {}
    for call in range(2, 300):
        priority = chance.choice((0, 0, 5, -5))
        left[call] = (-priority, call)
        assert machine.handle(r.Submitted(call, priority=priority), 0.0) == []
        if chance.random() < 0.7:
            unwanted = chance.choice(list(left))
            del left[unwanted]
            assert machine.handle(r.Cancelled(unwanted), 0.0) == [r.Drop(unwanted)]
        machine.validate()
    running = 1
    for call in sorted(left, key=left.__getitem__):
        assert machine.handle(r.Finished(running, 1, True), 0.0) == [r.Send(call, 1)]
        machine.validate()
        running = call


def test_what_is_cancelled_does_not_heap_up():
    machine = busy_machine()
    most = 0
    for call in range(2, 20_000):
        machine.handle(r.Submitted(call), 0.0)
        if call > 100:
            machine.handle(r.Cancelled(call - 50), 0.0)
        most = max(most, len(machine._state.waiting.queue))
    assert most <= 2 * waiting.LEFT_AT_LEAST + 200
    machine.validate()


def test_calls_for_one_worker_leave_in_any_order():
    machine = busy_machine(2)
    calls = list(range(10, 60))
    for call in calls:
        machine.handle(r.Submitted(call, worker=1 + call % 2), 0.0)
    chance = random.Random(2)
    chance.shuffle(calls)
    for call in calls[:30]:
        assert machine.handle(r.Cancelled(call), 0.0) == [r.Drop(call)]
        machine.validate()
    last = {worker.id: worker.call.id for worker in machine.workers.values()}
    for call in sorted(calls[30:]):
        worker = 1 + call % 2
        finished = r.Finished(last[worker], worker, True)
        assert machine.handle(finished, 0.0) == [r.Send(call, worker)]
        machine.validate()
        last[worker] = call
    assert machine.pending == 0


def test_all_are_dropped_when_the_pool_closes():
    machine = busy_machine()
    for call in range(2, 50):
        machine.handle(r.Submitted(call, worker=1 if call % 3 else None), 0.0)
    commands = machine.handle(r.Closed(cancel_pending=True), 0.0)
    assert [command.call for command in commands] == list(range(2, 50))
    machine.validate()
    assert not machine._state.waiting.queue
