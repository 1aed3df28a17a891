"""The scheduler in a model world: processes that start, refuse, read, finish and die.

The machine's commands are carried out by a fake runtime, which remembers what it was
told and checks each command against what a real one could do. Afterwards everything is
drained: each call must have been resolved exactly once.
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
from tests.examples import examples
from tests.property import weighing
from tests.snapshots import snapshot


class Process:
    """What a worker process does, as far as a scheduler can see."""

    def __init__(self):
        self.up = False
        self.limit = None  # when its start has taken too long
        self.call = None
        self.begun = False
        self.pack = []  # calls in order, while one is open
        self.deadline = None
        self.next = 0  # index of the call to begin next
        self.mark = 0
        self.running = None
        self.finished = {}  # noted, in order: call to ok
        self.asked = False  # to exit
        self.interrupted = False
        self.killed = False

    @property
    def draining(self):
        return self.asked or self.interrupted or self.killed


class Call:
    """What a caller knows of a call."""

    def __init__(self, event):
        self.event = event
        self.order = (-event.priority, event.call)
        self.pending = True
        self.outcomes = []
        self.attempts = 0
        self.sent_at = None
        self.stop_asked = False
        self.killers = 0
        self.taken_back_from = set()


class Scheduling(weighing.Weighing):
    @initialize(
        max_workers=st.integers(1, 3),
        max_restarts=st.integers(0, 2),
        max_calls=st.none() | st.integers(1, 3),
        idle_timeout=st.none() | st.just(5.0),
        start_timeout=st.none() | st.just(1.0),
        exclusive=st.booleans(),
        limits=weighing.limits,
        warm=st.booleans(),
    )
    def begin(
        self,
        max_workers,
        max_restarts,
        max_calls,
        idle_timeout,
        start_timeout,
        exclusive,
        limits,
        warm,
    ):
        self.limits = limits
        self.machine = Machine(
            max_workers,
            max_restarts=max_restarts,
            max_calls=max_calls,
            idle_timeout=idle_timeout,
            start_timeout=start_timeout,
            exclusive=exclusive,
            limits=limits,
        )
        self.now = 100.0
        self.calls = {}
        self.processes = {}
        self.newest = 0
        self.broken = False
        self.closed = False
        self.cancelling = False
        if warm:
            # What it would have learned from calls before; its workers are up.
            self.machine._packs.seconds["one"] = 1e-6
            self.handle(r.Everyone())
            for number, process in self.processes.items():
                process.up = True
                self.handle(r.WorkerReady(number))

    # -- the fake runtime ------------------------------------------------------------

    def handle(self, event):
        for command in self.machine.handle(event, self.now):
            getattr(self, f"do_{type(command).__name__.lower()}")(command, event)

    def do_send(self, command, _event):
        call, process = self.calls[command.call], self.processes[command.worker]
        assert call.pending
        assert not call.outcomes
        assert process.up
        assert not process.draining
        assert process.call is None
        assert not process.pack
        pinned = call.event.worker
        assert pinned in {None, command.worker}
        if pinned is None:
            first = min(
                other.order
                for other in self.calls.values()
                if other.pending and other.event.worker is None
            )
            assert call.order == first, "not first in, first out within a priority"
        self.note_begin(command.call)
        call.pending = False
        call.attempts += 1
        call.sent_at = self.now
        process.call, process.begun = command.call, False

    def do_sendpack(self, command, _event):
        process = self.processes[command.worker]
        assert process.up
        assert not process.draining
        assert process.call is None
        assert not process.pack
        assert len(command.calls) > 1
        assert command.deadline > self.now
        calls = [self.calls[number] for number in command.calls]
        for call in calls:
            event = call.event
            assert call.pending
            assert not call.outcomes
            assert event.worker is None
            assert event.timeout is None
            assert event.kind == calls[0].event.kind is not None
        waiting = [
            other.order
            for other in self.calls.values()
            if other.pending and other.event.worker is None
        ]
        assert [call.order for call in calls] == sorted(waiting)[: len(calls)]
        self.note_begin(*command.calls)
        for call in calls:
            call.pending = False
            call.attempts += 1
            call.sent_at = self.now
            # Here it may begin again.
            call.taken_back_from.discard(command.worker)
        process.pack = list(command.calls)
        process.deadline = command.deadline
        process.next, process.mark, process.running = 0, 0, None
        process.finished = {}

    def do_takeback(self, command, _event):
        call = self.calls[command.call]
        assert not call.pending
        assert not call.outcomes
        call.pending = True
        for number, process in self.processes.items():
            if command.call in process.pack:
                assert command.call not in process.finished
                assert process.running != command.call
                call.taken_back_from.add(number)

    def do_look(self, command, _event):
        process = self.processes[command.worker]
        assert process.pack
        assert self.now >= process.deadline
        self.deliver(command.worker, ended=False)
        self.handle(r.PackExpired(command.worker, process.mark))

    def deliver(self, number, *, ended):
        """Hand over the results that the parent does not have."""
        left = self.machine.workers[number].pack
        finished = self.processes[number].finished
        results = [(n, ok, 1e-6) for n, ok in finished.items() if n in left]
        stopping = {n for n, _, _ in results if left[n].stopping}
        if ended:
            self.processes[number].pack = []
        for call, ok, _ in results:
            # It is resolved by the time the machine acts on it.
            if call not in stopping:
                self.calls[call].outcomes.append("done" if ok else "failed")
        self.handle(r.PackReplied(number, tuple(results), ended))

    def do_spawn(self, command, _event):
        assert command.worker > self.newest, "a worker's number was used again"
        assert not self.broken
        self.newest = command.worker
        self.processes[command.worker] = Process()
        active = sum(
            self.machine.exclusive or not each.draining
            for each in self.processes.values()
        )
        assert active <= self.machine.max_workers

    def do_exit(self, command, _event):
        process = self.processes[command.worker]
        assert not process.asked
        assert not process.killed
        assert process.call is None
        # One that came back from an interrupt may clean up.
        assert not process.interrupted or self.machine.exclusive
        process.asked = True

    def do_kill(self, command, event):
        process = self.processes[command.worker]
        if command.force:
            if isinstance(event, r.MemorySampled):
                assert self.sizes[command.worker] > self.limits.within
                assert process.call is not None or process.pack
            else:
                assert process.draining
            process.killed = True
        else:
            overdue = process.limit is not None and self.now >= process.limit
            assert process.call is not None or process.pack or overdue
            process.interrupted = True

    def do_drop(self, command, _event):
        self.calls[command.call].pending = False
        self.calls[command.call].outcomes.append("cancelled")

    def do_fail(self, command, event):
        call = self.calls[command.call]
        call.pending = False
        call.outcomes.append(command.why)
        limit = call.event.timeout
        died = isinstance(event, r.WorkerDead)
        allowed = {
            "died": died,
            "gone": died and call.event.worker == command.worker,
            "timeout": limit is not None
            and call.sent_at is not None
            and self.now >= call.sent_at + limit,
            "stopped": call.stop_asked,
            "broken": self.broken,
            "cancelled": self.cancelling,
        }
        assert allowed[command.why], command
        if command.why == "died":
            if call.event.worker is None:
                assert event.worker == command.worker
                assert not event.unread or self.broken
                assert event.begun in {0, command.call}
                assert call.attempts > 0
            if not self.broken and call.event.worker is None:
                assert call.killers == call.event.retries + 1

    def do_broke(self, command, _event):
        assert not self.broken
        assert command.reasons
        self.broken = True

    # -- callers ---------------------------------------------------------------------

    @precondition(lambda self: not self.closed)
    @rule(
        timeout=st.none() | st.sampled_from([1.0, 3.0]),
        retries=st.integers(0, 2),
        priority=st.integers(-1, 1),
        kind=st.sampled_from([None, "one", "one", "other"]),
        times=st.sampled_from([1, 1, 5]),
        data=st.data(),
    )
    def submit(self, timeout, retries, priority, kind, times, data):
        for _ in range(times):
            self.submit_one(timeout, retries, priority, kind, data)

    def submit_one(self, timeout, retries, priority, kind, data):
        known = sorted(self.machine.workers)
        worker = data.draw(st.none() | st.sampled_from(known)) if known else None
        if worker is not None or timeout is not None:
            kind = None
        number = len(self.calls) + 1
        event = r.Submitted(number, timeout, retries, priority, worker, kind)
        self.calls[event.call] = Call(event)
        self.handle(event)

    @precondition(lambda self: not self.closed)
    @rule(count=st.integers(4, 9), retries=st.integers(0, 1))
    def burst(self, count, retries):
        for _ in range(count):
            event = r.Submitted(len(self.calls) + 1, retries=retries, kind="one")
            self.calls[event.call] = Call(event)
            self.handle(event)

    @rule(data=st.data(), running=st.booleans())
    def cancel(self, data, running):
        number = data.draw(st.integers(0, len(self.calls) + 1))
        call = self.calls.get(number)
        before = call.outcomes[:] if call else None
        if call and running:
            call.stop_asked = True
        pending = call is not None and call.pending
        self.handle(r.Cancelled(number, running))
        if pending:
            assert call.outcomes == ["cancelled"]
        elif call:
            assert call.outcomes == before

    @rule(number=st.integers(1, 4))
    def resize(self, number):
        self.handle(r.Resized(number))

    @rule()
    def everyone(self):
        if not self.closed:
            self.handle(r.Everyone())

    @rule(cancel=st.booleans(), sure=st.integers(0, 4))
    def close(self, cancel, sure):
        if sure == 0:
            self.closed = True
            self.cancelling = self.cancelling or cancel
            self.handle(r.Closed(cancel))

    # -- processes ---------------------------------------------------------------------

    def draw_process(self, data, wanted):
        numbers = [n for n, each in self.processes.items() if wanted(each)]
        return data.draw(st.sampled_from(numbers)) if numbers else None

    @rule(data=st.data())
    def begin_to_start(self, data):
        number = self.draw_process(
            data, lambda each: not each.up and each.limit is None and not each.killed
        )
        limit = self.machine.start_timeout
        if number is not None and limit is not None:
            self.processes[number].limit = self.now + limit
            self.handle(r.WorkerBegan(number))

    @rule(data=st.data())
    def ready(self, data):
        number = self.draw_process(data, lambda each: not each.up and not each.killed)
        if number is not None:
            self.processes[number].up = True
            self.handle(r.WorkerReady(number))

    @rule(data=st.data(), sure=st.integers(0, 5))
    def refuse(self, data, sure):
        number = self.draw_process(data, lambda each: not each.up and not each.killed)
        if number is not None and sure == 0:
            self.handle(r.WorkerRefused(number, "no"))
            assert self.broken

    @rule(data=st.data())
    def read(self, data):
        number = self.draw_process(data, lambda each: each.call and not each.begun)
        if number is not None:
            self.processes[number].begun = True

    @rule(data=st.data(), ok=st.booleans())
    def finish(self, data, ok):
        number = self.draw_process(data, lambda each: each.call and not each.killed)
        if number is not None:
            self.finish_one(number, ok)

    @rule(data=st.data(), steps=st.integers(1, 4), ok=st.booleans())
    def go_on_with_pack(self, data, steps, ok):
        number = self.draw_process(data, lambda each: each.pack and not each.killed)
        if number is not None:
            for _ in range(steps):
                if self.processes[number].pack:
                    self.step(number, ok)

    @rule(data=st.data())
    def deliver_some(self, data):
        number = self.draw_process(data, lambda each: each.pack and not each.killed)
        if number is not None:
            self.deliver(number, ended=False)

    def step(self, number, ok=True):
        """What a worker does with a pack, one thing at a time."""
        process = self.processes[number]
        if process.running is not None:
            process.finished[process.running] = ok
            process.running = None
            return
        if process.next < len(process.pack):
            process.mark = process.pack[process.next]
            if process.next == 0 or self.now < process.deadline:
                process.running = process.mark
                process.next += 1
                assert number not in self.calls[process.running].taken_back_from
                return
        self.deliver(number, ended=True)

    def finish_one(self, number, ok=True):
        process = self.processes[number]
        call, process.call = self.calls[process.call], None
        seconds = 1e-6 if call.event.kind == "one" else 1.0
        self.handle(r.Finished(call.event.call, number, ok, seconds))
        if not process.interrupted:
            call.outcomes.append("done" if ok else "failed")

    @rule(data=st.data())
    def die(self, data):
        number = self.draw_process(data, lambda _each: True)
        if number is not None:
            self.die_one(number)

    @rule(data=st.data())
    def die_in_pack(self, data):
        number = self.draw_process(data, lambda each: each.pack)
        if number is not None:
            self.die_one(number)

    def die_one(self, number):
        process = self.processes[number]
        if process.pack:
            self.die_with_pack(number, process)
            return
        del self.processes[number]
        unread = process.call is not None and not process.begun
        call = self.calls.get(process.call)
        if call is not None and not process.interrupted:
            call.killers += process.begun
            # What it does next is up to the machine: wait again, or fail.
            call.pending = True
        self.handle(r.WorkerDead(number, "gone", unread))

    def die_with_pack(self, number, process):
        if process.mark in process.finished:
            # Nobody can tell whether it had: its note may be half written.
            del process.finished[process.mark]
        self.deliver(number, ended=False)
        del self.processes[number]
        for call_id in list(self.machine.workers[number].pack):
            call = self.calls[call_id]
            if not self.machine.calls[call_id].stopping:
                call.killers += call_id == process.mark
                call.pending = False
                # The one that was begun may wait again, by its retries.
                call.pending = call_id == process.mark
        self.handle(r.WorkerDead(number, "gone", begun=process.mark))

    @rule(seconds=st.sampled_from([0.0, 0.006, 0.05, 0.2, 1.0, 12.0]))
    def tick(self, seconds):
        self.now += seconds
        self.handle(r.Tick())
        due = self.machine.next_tick()
        assert due is None or due > self.now, "it would be asked again and again"

    # -- what cannot be ----------------------------------------------------------------

    @rule(data=st.data())
    def illegal(self, data):
        events = [
            r.WorkerReady(self.newest + 1),
            r.WorkerRefused(self.newest + 1, "no"),
            r.WorkerDead(self.newest + 1, "gone"),
            r.Finished(len(self.calls) + 1, self.newest, ok=True),
            r.Submitted(len(self.calls) + 1, worker=self.newest + 1),
        ]
        if self.closed:
            events.append(r.Submitted(len(self.calls) + 1))
        for number, process in self.processes.items():
            if process.up and not process.draining:
                events += [r.WorkerReady(number), r.WorkerRefused(number, "no")]
                events.append(r.WorkerBegan(number))
            for call in list(self.calls)[-5:]:
                if process.call != call:
                    events.append(r.Finished(call, number, ok=True))
        events += [r.Submitted(call) for call in self.machine.calls]
        events += self.illegal_for_packs()
        event = data.draw(st.sampled_from(events))
        before = snapshot(self.machine)
        try:
            self.machine.handle(event, self.now)
        except r.IllegalEvent:
            pass
        else:
            raise AssertionError(event)
        assert snapshot(self.machine) == before

    def illegal_for_packs(self):
        events = []
        for number, process in self.processes.items():
            if not process.pack:
                events += [r.PackReplied(number, (), True), r.PackExpired(number, 0)]
            elif self.now < process.deadline:
                events.append(r.PackExpired(number, process.mark))
            if process.pack:
                events.append(r.PackReplied(number, ((0, True, 0.0),), False))
        return events

    # -- always ------------------------------------------------------------------------

    @invariant()
    def consistent(self):
        machine = self.machine
        machine.validate()
        for number, call in self.calls.items():
            assert len(call.outcomes) <= 1
            assert (number in machine.calls) == (not call.outcomes)
            if number in machine.calls:
                is_pending = machine.calls[number].state is r.CallState.PENDING
                assert call.pending == is_pending
                assert machine.story(number)
        assert machine.pending == sum(call.pending for call in self.calls.values())
        assert machine.submitted == len(self.calls)
        assert set(machine.workers) == set(self.processes)
        # Whoever was told to end is killed if it does not.
        for number, process in self.processes.items():
            if process.draining and not process.killed:
                assert machine.workers[number].kill_at is not None

    @invariant()
    def somebody_works(self):
        """What waits has a worker that may take it, one that starts, or a due tick."""
        machine = self.machine
        if any(c.pending and c.event.worker is None for c in self.calls.values()):
            active = [each for each in self.processes.values() if not each.draining]
            dying = machine.exclusive and any(p.killed for p in self.processes.values())
            assert active or dying or machine.next_tick() is not None

    def go_on(self):
        """Every process does the next thing that is expected of it."""
        for number, process in list(self.processes.items()):
            if process.draining:
                if process.call and process.interrupted and not process.killed:
                    self.finish_one(number)
                self.die_one(number)
            elif not process.up:
                process.up = True
                self.handle(r.WorkerReady(number))
            elif process.call:
                self.finish_one(number)
            elif process.pack:
                self.step(number)

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
        counts = self.machine.counts
        assert sum(counts.values()) == len(self.calls)


TestScheduling = Scheduling.TestCase
TestScheduling.settings = settings(
    max_examples=examples(250),
    stateful_step_count=50,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
