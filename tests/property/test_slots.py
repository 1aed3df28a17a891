"""The scheduler with several calls in each worker, in a model world.

Workers read the calls they were sent in order, begin each as they read it, and finish
them in any order; they die anywhere. As in ``test_scheduler``, everything is drained
afterwards: each call must have been resolved exactly once.
"""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
)

from shmexec.scheduler import records as r
from shmexec.scheduler.machine import Machine
from shmexec.scheduler.slots import CANCEL_WITHIN
from tests.property import weighing
from tests.snapshots import snapshot


class Process:
    def __init__(self):
        self.up = False
        self.sent = []  # not read yet
        self.open = []  # begun
        self.asked_to_cancel = {}  # call to time
        self.mark = 0
        self.asked = self.interrupted = self.killed = False

    @property
    def draining(self):
        return self.asked or self.interrupted or self.killed


class Call:
    def __init__(self, event):
        self.event = event
        self.order = (-event.priority, event.call)
        self.pending = True
        self.outcomes = []
        self.killers = 0
        self.sent_at = None
        self.stop_asked = False


class Sharing(weighing.Weighing):
    @initialize(
        max_workers=st.integers(1, 2),
        slots=st.integers(2, 4),
        idle_timeout=st.none() | st.just(5.0),
        exclusive=st.booleans(),
        limits=weighing.limits,
    )
    def begin(self, max_workers, slots, idle_timeout, exclusive, limits):
        self.limits = limits
        self.machine = Machine(
            max_workers,
            idle_timeout=idle_timeout,
            exclusive=exclusive,
            slots=slots,
            limits=limits,
        )
        self.now = 100.0
        self.calls = {}
        self.processes = {}
        self.closed = self.cancelling = self.broken = False

    def handle(self, event):
        for command in self.machine.handle(event, self.now):
            getattr(self, f"do_{type(command).__name__.lower()}")(command, event)

    # -- what the machine has done -------------------------------------------------------

    def do_send(self, command, _event):
        call, process = self.calls[command.call], self.processes[command.worker]
        assert call.pending
        assert not call.outcomes
        assert process.up
        assert not process.draining
        assert len(process.sent) + len(process.open) < self.machine.slots
        assert call.event.worker in {None, command.worker}
        if call.event.worker is None:
            assert call.order == min(
                other.order
                for other in self.calls.values()
                if other.pending and other.event.worker is None
            )
        self.note_begin(command.call)
        call.pending = False
        call.sent_at = self.now
        process.sent.append(command.call)

    def do_interrupt(self, command, _event):
        process = self.processes[command.worker]
        assert command.call in process.sent + process.open
        assert not process.draining
        assert command.call not in process.asked_to_cancel
        call = self.calls[command.call]
        assert call.stop_asked or self.is_late(call)
        process.asked_to_cancel[command.call] = self.now

    def is_late(self, call):
        limit = call.event.timeout
        return limit is not None and self.now >= call.sent_at + limit

    def do_spawn(self, command, _event):
        assert not self.broken
        self.processes[command.worker] = Process()
        active = [
            each
            for each in self.processes.values()
            if self.machine.exclusive or not each.draining
        ]
        assert len(active) <= self.machine.max_workers

    def do_exit(self, command, _event):
        process = self.processes[command.worker]
        assert not process.asked
        assert not process.sent
        assert not process.open
        assert not process.interrupted or self.machine.exclusive
        process.asked = True

    def do_kill(self, command, event):
        process = self.processes[command.worker]
        if command.force:
            if isinstance(event, r.MemorySampled):
                assert self.sizes[command.worker] > self.limits.within
                assert process.sent or process.open
            else:
                assert process.draining
            process.killed = True
            return
        assert not process.draining
        patience = [
            number
            for number, at in process.asked_to_cancel.items()
            if number in process.sent + process.open and self.now >= at + CANCEL_WITHIN
        ]
        assert patience, "no call refused to end"
        process.interrupted = True

    def do_drop(self, command, _event):
        self.calls[command.call].pending = False
        self.calls[command.call].outcomes.append("cancelled")

    def do_broke(self, _command, _event):
        self.broken = True

    def do_fail(self, command, event):
        call = self.calls[command.call]
        call.pending = False
        call.outcomes.append(command.why)
        assert {
            "died": isinstance(event, r.WorkerDead),
            "gone": call.event.worker == command.worker,
            "timeout": call.event.timeout is not None,
            "stopped": call.stop_asked,
            "broken": self.broken,
            "cancelled": self.cancelling,
        }[command.why]
        if command.gently:
            assert isinstance(event, r.Finished)
            assert not self.processes[event.worker].draining
        if command.why == "died" and not self.broken and call.event.worker is None:
            assert call.killers == call.event.retries + 1

    # -- what happens --------------------------------------------------------------------

    @precondition(lambda self: not self.closed)
    @rule(
        timeout=st.none() | st.sampled_from([1.0, 3.0]),
        retries=st.integers(0, 1),
        priority=st.integers(-1, 1),
        times=st.sampled_from([1, 2, 5]),
        data=st.data(),
    )
    def submit(self, timeout, retries, priority, times, data):
        for _ in range(times):
            known = sorted(self.machine.workers)
            worker = data.draw(st.none() | st.sampled_from(known)) if known else None
            number = len(self.calls) + 1
            event = r.Submitted(number, timeout, retries, priority, worker)
            self.calls[number] = Call(event)
            self.handle(event)

    @rule(data=st.data(), running=st.booleans())
    def cancel(self, data, running):
        number = data.draw(st.integers(1, len(self.calls) + 1))
        call = self.calls.get(number)
        if call is not None:
            call.stop_asked = call.stop_asked or running
        pending = call is not None and call.pending
        self.handle(r.Cancelled(number, running))
        if pending:
            assert call.outcomes == ["cancelled"]

    @rule(number=st.integers(1, 3))
    def resize(self, number):
        self.handle(r.Resized(number))

    @rule(cancel=st.booleans(), sure=st.integers(0, 4))
    def close(self, cancel, sure):
        if sure == 0:
            self.closed = True
            self.cancelling = self.cancelling or cancel
            self.handle(r.Closed(cancel))

    def draw_process(self, data, wanted):
        numbers = [n for n, each in self.processes.items() if wanted(each)]
        return data.draw(st.sampled_from(numbers)) if numbers else None

    @rule(data=st.data())
    def ready(self, data):
        number = self.draw_process(data, lambda each: not each.up and not each.killed)
        if number is not None:
            self.processes[number].up = True
            self.handle(r.WorkerReady(number))

    @rule(data=st.data(), times=st.integers(1, 3))
    def read(self, data, times):
        number = self.draw_process(data, lambda each: each.sent and not each.killed)
        for _ in range(times):
            if number is not None and self.processes[number].sent:
                self.read_one(self.processes[number])

    def read_one(self, process):
        process.mark = process.sent.pop(0)
        process.open.append(process.mark)

    @rule(data=st.data(), ok=st.booleans())
    def finish(self, data, ok):
        number = self.draw_process(data, lambda each: each.open and not each.killed)
        if number is not None:
            call = data.draw(st.sampled_from(self.processes[number].open))
            self.finish_one(number, call, ok)

    def finish_one(self, number, call, ok=True, begun=True):
        process = self.processes[number]
        (process.open if begun else process.sent).remove(call)
        process.asked_to_cancel.pop(call, None)
        stopping = self.machine.calls[call].stopping
        if not stopping:  # resolved by the time the machine acts on it
            self.calls[call].outcomes.append("done" if ok else "failed")
        self.handle(r.Finished(call, number, ok, 1e-6, begun))

    @rule(data=st.data())
    def was_not_sent_after_all(self, data):
        """Its future had been cancelled: the runtime leaves it out."""
        number = self.draw_process(
            data, lambda each: len(each.sent) > 0 and not each.draining
        )
        if number is not None:
            last = self.processes[number].sent[-1]
            if self.calls[last].sent_at == self.now:
                self.finish_one(number, last, ok=False, begun=False)

    @rule(data=st.data())
    def die(self, data):
        number = self.draw_process(data, lambda _each: True)
        if number is not None:
            self.die_one(number)

    def die_one(self, number):
        process = self.processes.pop(number)
        for begun, numbers in ((True, process.open), (False, process.sent)):
            for each in numbers:
                if not self.machine.calls[each].stopping:
                    self.calls[each].killers += begun
                    self.calls[each].pending = True  # again, or it fails
        self.handle(r.WorkerDead(number, "gone", bool(process.sent), process.mark))
        # What had begun was charged with it; what had not waits again.
        for each in process.open:
            call = self.calls[each]
            assert call.outcomes or call.killers <= call.event.retries
        for each in process.sent:
            call = self.calls[each]
            must_wait = call.event.worker is None and not self.broken
            assert not (must_wait and "died" in call.outcomes)

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.2, 1.0, 12.0]))
    def tick(self, seconds):
        self.now += seconds
        self.handle(r.Tick())
        due = self.machine.next_tick()
        assert due is None or due > self.now, "it would be asked again and again"

    @rule(data=st.data())
    def illegal(self, data):
        events = [r.Finished(len(self.calls) + 1, 1, ok=True)]
        for number, process in self.processes.items():
            here = process.sent + process.open
            events += [
                r.Finished(call, number, ok=True)
                for call in list(self.calls)[-5:]
                if call not in here
            ]
            events.append(r.PackReplied(number, (), True))
        before = snapshot(self.machine)
        try:
            self.machine.handle(data.draw(st.sampled_from(events)), self.now)
        except r.IllegalEvent:
            pass
        else:
            raise AssertionError
        assert snapshot(self.machine) == before

    # -- always --------------------------------------------------------------------------

    @invariant()
    def consistent(self):
        machine = self.machine
        machine.validate()
        assert set(machine.workers) == set(self.processes)
        for number, process in self.processes.items():
            assert sorted(machine.workers[number].flight) == sorted(
                process.sent + process.open
            )
        for number, call in self.calls.items():
            assert len(call.outcomes) <= 1
            assert (number in machine.calls) == (not call.outcomes)
            if number in machine.calls:
                is_pending = machine.calls[number].state is r.CallState.PENDING
                assert call.pending == is_pending
        for number, process in self.processes.items():
            if process.draining and not process.killed:
                assert machine.workers[number].kill_at is not None

    @invariant()
    def slots_are_used(self):
        """Nobody waits beside a worker that has a slot."""
        if self.broken:
            return
        waiting = [c for c in self.calls.values() if c.pending and not c.event.worker]
        for number, process in self.processes.items():
            if waiting and process.up and not process.draining:
                here = len(process.sent) + len(process.open)
                assert here == self.machine.slots or self.held_back(number)

    def held_back(self, number):
        """It is over its limit and has calls, or memory is scarce and others run."""
        if self.machine.paused:
            return any(not c.pending and not c.outcomes for c in self.calls.values())
        return (
            self.machine.workers[number].heavy and self.machine.workers[number].flight
        )

    def go_on(self):
        for number, process in list(self.processes.items()):
            if process.draining:
                self.die_one(number)
            elif not process.up:
                process.up = True
                self.handle(r.WorkerReady(number))
            elif process.sent:
                self.read_one(process)
            elif process.open:
                self.finish_one(number, process.open[0])

    def teardown(self):
        if not hasattr(self, "machine"):
            return
        self.handle(r.Closed())
        self.closed = True
        for _ in range(500):
            if self.machine.finished:
                break
            self.go_on()
            due = self.machine.next_tick()
            if due is not None:
                self.now = max(self.now, due)
            self.handle(r.Tick())
            self.machine.validate()
        assert self.machine.finished
        assert not self.processes
        for call in self.calls.values():
            assert len(call.outcomes) == 1, "lost, or resolved twice"


TestSharing = Sharing.TestCase
TestSharing.settings = settings(
    max_examples=70,
    stateful_step_count=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
